"""The stages of CXRNet's training and their losses: encoder and head, decoder, or all jointly."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from cxr_node.nets.cxrnet import CXRNet
from cxr_node.records import LABELS
from training.fit import recipe
from training.fit.losses import fusion_loss

HEALTHY = LABELS.index("healthy")

Figures = dict[str, Tensor]
"""What the log shows beside the loss, scalars by name."""


class Stage(nn.Module):
    """A loss over CXRNet, and the parts of the network that it trains; the rest stays at rest, batch statistics too."""

    def __init__(self, network: CXRNet, parts: list[nn.Module]) -> None:
        super().__init__()
        self.network = network
        self.parts = parts
        for parameter in network.parameters():
            parameter.requires_grad_(False)
        for parameter in self.trained():
            parameter.requires_grad_(True)

    def trained(self) -> list[nn.Parameter]:
        """Parameters that this stage trains."""
        return [parameter for part in self.parts for parameter in part.parameters()]

    def ready(self) -> None:
        """Batch normalisation learns in the trained parts and is at rest elsewhere."""
        self.network.eval()
        for part in self.parts:
            part.train()


class EncoderStage(Stage):
    """First encoder and head, by cross-entropy."""

    def __init__(self, network: CXRNet, label_smoothing: float) -> None:
        super().__init__(network, [network.encoder, network.fc])
        self.label_smoothing = label_smoothing

    def forward(self, image: Tensor, lungs: Tensor, target: Tensor) -> tuple[Tensor, Figures]:
        """Image float (B, 1, S, S) in 0..1, lungs 0 or 1 (B, 1, S, S) and target int64 (B,) to loss and figures."""
        logits = self.network.classify(self.network.encode(image)[-1])
        loss = functional.cross_entropy(logits, target, label_smoothing=self.label_smoothing)
        return loss, {"accuracy": _agreement(logits, target)}


class DecoderStage(Stage):
    """The decoder, the shared encoder at rest.

    Differs: the paper asks only that the representation image is classified rightly, which a copy of the image does
    as well. Here it must be enough (fusion loss), what it leaves out must hold no sign of disease (`removal`), and it
    must be as little as both allow (`sparsity`, `outside`, `smoothness`, `certainty`); cf. Dabkowski and Gal 2017.
    """

    def __init__(self, network: CXRNet, weights: recipe.DecoderStageRecipe) -> None:
        super().__init__(network, [network.decoder, network.draw])
        self.weights = weights

    def forward(self, image: Tensor, lungs: Tensor, target: Tensor) -> tuple[Tensor, Figures]:
        """Image float (B, 1, S, S) in 0..1, lungs 0 or 1 (B, 1, S, S) and target int64 (B,) to loss and figures."""
        network, weights = self.network, self.weights
        with torch.no_grad():
            features = network.encode(image)
        representation, relevance = network.decode(features, image)
        first = network.classify(features[-1])
        second = network.classify(network.encode(representation)[-1])
        fusion = fusion_loss(first, second, target)
        inside = (relevance * lungs).sum() / lungs.sum().clamp(min=1)
        outside = (relevance * (1 - lungs)).sum() / (1 - lungs).sum().clamp(min=1)
        roughness = relevance.diff(dim=2).abs().mean() + relevance.diff(dim=3).abs().mean()
        doubt = (relevance * (1 - relevance) * lungs).sum() / lungs.sum().clamp(min=1)
        loss = fusion + weights.sparsity * inside + weights.outside * outside + weights.smoothness * roughness
        figures = {
            "fusion": fusion,
            "inside": inside,
            "outside": outside,
            "doubt": doubt,
            "agreement": _agreement(second, first.argmax(1)),
        }
        loss = loss + weights.certainty * doubt
        if weights.removal:
            left = network.classify(network.encode(image * (1 - relevance))[-1])
            removal = functional.cross_entropy(left, torch.full_like(target, HEALTHY))
            loss = loss + weights.removal * removal
            figures["removal"] = removal
        return loss, figures


class JointStage(Stage):
    """Everything at once by the fusion loss, as in the paper (CXRNet eq. 5 and 6)."""

    def __init__(self, network: CXRNet, label_smoothing: float) -> None:
        super().__init__(network, [network])
        self.label_smoothing = label_smoothing

    def forward(self, image: Tensor, lungs: Tensor, target: Tensor) -> tuple[Tensor, Figures]:
        """Image float (B, 1, S, S) in 0..1, lungs 0 or 1 (B, 1, S, S) and target int64 (B,) to loss and figures."""
        output = self.network(image)
        loss = fusion_loss(output.logits, output.representation_logits, target, self.label_smoothing)
        return loss, {
            "accuracy": _agreement(output.logits, target),
            "agreement": _agreement(output.representation_logits, output.logits.argmax(1)),
        }


def stage_of(name: str, network: CXRNet, of: recipe.ClassifyRecipe) -> Stage:
    """The stage that a recipe's table of this name (`recipe.STAGES`) asks for."""
    if name == "decoder_stage":
        assert of.decoder_stage is not None
        return DecoderStage(network, of.decoder_stage)
    return (EncoderStage if name == "encoder_stage" else JointStage)(network, of.label_smoothing)


def _agreement(logits: Tensor, classes: Tensor) -> Tensor:
    return (logits.argmax(1) == classes).float().mean()
