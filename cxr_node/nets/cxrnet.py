"""CXRNet: encoder, decoder, the same encoder again (CXRNet section III-B, figures 4 to 6).

The first pass of the encoder classifies the lungs, the decoder makes a representation image from its features, and the second
pass classifies that. The parts that the decoder keeps in the representation image are the explanation.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from cxr_node.nets.constants import STRONGEST_SHARE
from cxr_node.nets.encoders import ENCODERS

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_DEVIATION = (0.229, 0.224, 0.225)
DECODER_CHANNELS = (128, 64, 48, 32, 16)
FEATURE_AXES = 48
"""Principal axes of the training images' features that the weights keep; see `CXRNet.distance`."""

_RENAMED = {f"usual_{name}": f"feature_{name}" for name in ("mean", "axes", "spread")}
"""Names that weight files and checkpoints up to weights 0.5.0 give the feature statistics."""

Representation = Literal["mask", "image"]
AnswerSource = Literal["image", "evidence"]


class CXRNetOutput(NamedTuple):
    """What one pass says.

    logits: float (N, C), the first encoder's.
    representation_logits: float (N, C), the second encoder's.
    representation: float (N, 1, H, W) in 0..1, the representation image.
    relevance: float (N, 1, H, W) in 0..1, the heat: how much of each pixel the decoder kept.
    """

    logits: Tensor
    representation_logits: Tensor
    representation: Tensor
    relevance: Tensor


def icnr_(weight: Tensor, scale: int = 2) -> None:
    """Initialise a convolution before a pixel shuffle so that it starts as nearest-neighbour enlargement.

    Args:
        weight: float (out * scale², in, k, k), changed in place: the scale² filters of one output channel are equal,
            so that no checkerboard appears (Aitken et al. 2017, cited by the paper for ICNR).
        scale: the pixel shuffle's factor.
    """
    with torch.no_grad():
        kernel = torch.empty_like(weight[:: scale * scale])
        nn.init.kaiming_normal_(kernel)
        weight.copy_(kernel.repeat_interleave(scale * scale, dim=0))


class DecoderBlock(nn.Module):
    """One decoder step, Decoder_n = F(U(Decoder_{n-1}) + Encoder_{4-n}) (CXRNet eq. 3, figure 5).

    U is pixel shuffle ×2, + is concatenation, F is ReLU and two blocks of 3×3 convolution, batch norm and leaky
    ReLU with slope 0.1 (eq. 4).
    """

    def __init__(self, in_channels: int, skip_channels: int, out_channels: int) -> None:
        super().__init__()
        self.enlarge = nn.Conv2d(in_channels, out_channels * 4, 1)
        icnr_(self.enlarge.weight)
        nn.init.zeros_(self.enlarge.bias)  # type: ignore[arg-type]
        self.convolutions = nn.Sequential(
            nn.Conv2d(out_channels + skip_channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.LeakyReLU(0.1, inplace=True),
            nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.LeakyReLU(0.1, inplace=True),
        )

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """X (N, in, H, W) and skip (N, skip, h, w), usually twice as large, to (N, out, h, w)."""
        x = functional.pixel_shuffle(self.enlarge(x), 2)
        if x.shape[2:] != skip.shape[2:]:  # a stage that didn't halve: AlexNet's stem (/4), Inception, odd sizes
            x = functional.interpolate(x, size=skip.shape[2:], mode="bilinear", align_corners=False)
        return self.convolutions(functional.relu(torch.cat([x, skip], dim=1)))  # type: ignore[no-any-return]


class EvidenceOutput(NamedTuple):
    """What a network says that answers from evidence.

    evidence: float (N, 1, H, W), log-odds of opacity at each pixel; its sigmoid is the heat.
    which_logits: float (N, 3), given that there is pneumonia: LABELS without healthy.
    other_logit: float (N,), log-odds of a disease that isn't opacity.
    distance: float (N,), how far the first pass's deepest features lie from those of the training images, whose mean is 1.
    """

    evidence: Tensor
    which_logits: Tensor
    other_logit: Tensor
    distance: Tensor


def pooled_evidence(evidence: Tensor, lungs: Tensor, share: float = STRONGEST_SHARE) -> Tensor:
    """The mean of the strongest `share` of the lungs, float (N,); of the whole image if the lungs are nearly empty.

    Args:
        evidence: float (N, 1, H, W).
        lungs: bool (N, 1, H, W).
        share: 0..1.
    """
    values = []
    for one, lung in zip(evidence[:, 0], lungs[:, 0], strict=True):
        inside = one[lung]
        inside = inside if inside.numel() >= 50 else one.flatten()
        values.append(inside.topk(max(20, int(share * inside.numel()))).values.mean())
    return torch.stack(values)


class CXRNet(nn.Module):
    """Encoder-decoder-encoder with shared encoder weights.

    representation "image" is the paper's form: the decoder draws the image itself. "mask" Differs: the decoder draws
    a mask in 0..1 and the representation image is input × mask, so that a decoder with skips cannot copy the image
    and brightness alone is not relevance; training asks for as little mask as the second encoder can do with.

    answer "image" takes the class from the first pass. answer "evidence" Differs: the decoder is taught by people's marks
    and draws the log-odds of opacity; whether there is pneumonia is their strongest part, and which one it is the second
    pass says, over input × evidence at half size.
    """

    def __init__(
        self,
        encoder: str = "resnet50_v1",
        num_classes: int = 4,
        representation: Representation = "mask",
        decoder_channels: tuple[int, ...] = DECODER_CHANNELS,
        answer: AnswerSource = "image",
    ) -> None:
        super().__init__()
        self.answer: AnswerSource = answer
        self.encoder = ENCODERS[encoder]()
        channels = self.encoder.channels
        skips = (*reversed(channels[:-1]), 1)  # the last block's skip is the input image
        blocks = []
        current = channels[-1]
        for skip, width in zip(skips, decoder_channels, strict=True):
            blocks.append(DecoderBlock(current, skip, width))
            current = width
        self.decoder = nn.ModuleList(blocks)
        self.draw = nn.Conv2d(current, 1, 1)
        self.fc = nn.Linear(channels[-1], num_classes)
        if answer == "evidence":
            self.which = nn.Linear(channels[-1], num_classes - 1)
            self.other = nn.Linear(channels[-1], 1)
            self.register_buffer("feature_mean", torch.zeros(channels[-1]))
            self.register_buffer("feature_axes", torch.zeros(FEATURE_AXES, channels[-1]))
            self.register_buffer("feature_spread", torch.ones(FEATURE_AXES + 1))
        self.representation: Representation = representation
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor(IMAGENET_DEVIATION).view(1, 3, 1, 1), persistent=False)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *more: Any) -> None:
        for old, new in _RENAMED.items():
            if prefix + old in state_dict:
                state_dict[prefix + new] = state_dict.pop(prefix + old)
        super()._load_from_state_dict(state_dict, prefix, *more)

    def encode(self, image: Tensor) -> list[Tensor]:
        """Image float (N, 1, H, W) in 0..1 to the encoder's five features."""
        rgb = (image - self.get_buffer("mean")) / self.get_buffer("deviation")
        return self.encoder(rgb)  # type: ignore[no-any-return]

    def classify(self, features: Tensor) -> Tensor:
        """Deepest features (N, K, h, w) to logits (N, C): average pool and the fully connected head."""
        return self.fc(features.mean((2, 3)))  # type: ignore[no-any-return]

    def decode(self, features: list[Tensor], image: Tensor) -> tuple[Tensor, Tensor]:
        """Features of `image` to the representation image and the relevance, both float (N, 1, H, W) in 0..1."""
        drawn = torch.sigmoid(self.draw_logits(features, image))
        return (image * drawn if self.representation == "mask" else drawn), drawn

    def draw_logits(self, features: list[Tensor], image: Tensor) -> Tensor:
        """What `decode` draws before it is brought to 0..1, float (N, 1, H, W): the evidence, where a network answers from it."""
        x = features[-1]
        for block, skip in zip(self.decoder, (*reversed(features[:-1]), image), strict=True):
            x = block(x, skip)
        return self.draw(x)  # type: ignore[no-any-return]

    def second_pass(self, image: Tensor, evidence: Tensor) -> Tensor:
        """Deepest features, float (N, K), of the second pass: over input × evidence, its strongest part undimmed, at half size.

        The strongest part is shown as it is however faint the evidence, so that faint disease remains visible to the second pass.
        """
        relevance = torch.sigmoid(evidence)
        strongest = functional.avg_pool2d(relevance, 8).flatten(1).amax(1).clamp_min(1e-4).view(-1, 1, 1, 1)
        shown = image * (relevance / strongest).clamp(0, 1)
        small = functional.avg_pool2d(shown, 2)
        return self.encode(small)[-1].mean((2, 3))

    def type_logits(self, features: Tensor, second: Tensor) -> Tensor:
        """Logits, float (N, 3), of LABELS without healthy.

        COVID-19 against the rest is the second pass's alone. Bacterial against viral may also go by the first one's features,
        float (N, K), as the head for images sees them: nearly all of both are of one hospital, so there is no shortcut to learn.
        """
        logits: Tensor = self.which(second)
        by_image = self.fc(features)
        contrast = (by_image[:, 1] - by_image[:, 2]) / 2
        return logits + functional.pad(torch.stack([contrast, -contrast], dim=1), (0, logits.shape[1] - 2))

    def examine(self, image: Tensor) -> EvidenceOutput:
        """Evidence, and what it is evidence of, of radiographs float (N, 1, H, W) in 0..1; with `answer` "evidence"."""
        features = self.encode(image)
        evidence = self.draw_logits(features, image)
        pooled = features[-1].mean((2, 3))
        which = self.type_logits(pooled, self.second_pass(image, evidence))
        return EvidenceOutput(evidence, which, self.other(pooled)[:, 0], self.distance(pooled))

    def serve(self, image: Tensor) -> tuple[Tensor, ...]:
        """The outputs of serving: EvidenceOutput's parts, or logits (N, C) and relevance (N, 1, H, W), by `answer`."""
        if self.answer == "evidence":
            return tuple(self.examine(image))
        features = self.encode(image)
        return self.classify(features[-1]), self.decode(features, image)[1]

    def distance(self, pooled: Tensor) -> Tensor:
        """How far features float (N, K) lie from those of the training images, float (N,).

        Half of it is the squared distance along the axes in which those differ, each in its own spread; half what is left
        beside these axes (cf. Lee et al. 2018). The mean over the training images is 1.
        """
        axes, spread = self.get_buffer("feature_axes"), self.get_buffer("feature_spread")
        away = pooled.to(axes.dtype) - self.get_buffer("feature_mean")
        along = away @ axes.T
        beside = away.square().sum(1) - along.square().sum(1)
        return (along / spread[:-1]).square().mean(1) / 2 + beside / spread[-1].square() / 2

    def forward(self, image: Tensor) -> CXRNetOutput:
        """Classify and explain radiographs, or lungs cut out of them, enhanced, float (N, 1, H, W) in 0..1."""
        features = self.encode(image)
        representation, relevance = self.decode(features, image)
        second = self.encode(representation)
        return CXRNetOutput(self.classify(features[-1]), self.classify(second[-1]), representation, relevance)
