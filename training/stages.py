"""What the stages of CXRNet's training learn and by which loss: encoder and head, decoder, or everything at once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from cxr_node.nets.cxrnet import CXRNet
from cxr_node.nets.losses import fusion_loss
from cxr_node.records import LABELS

HEALTHY = LABELS.index("healthy")

Figures = dict[str, Tensor]
"""What the log shows beside the loss, scalars by name."""


class Stage(nn.Module):
    """A loss over CXRNet, and the parts of the network that it trains; the rest stays at rest, batch statistics too."""

    def __init__(self, network: CXRNet, plan: dict[str, Any], parts: list[nn.Module]) -> None:
        super().__init__()
        self.network = network
        self.plan = plan
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

    def __init__(self, network: CXRNet, plan: dict[str, Any]) -> None:
        super().__init__(network, plan, [network.encoder, network.fc])

    def forward(self, image: Tensor, lungs: Tensor, target: Tensor) -> tuple[Tensor, Figures]:
        """Image float (B, 1, S, S) in 0..1, lungs 0 or 1 (B, 1, S, S) and target int64 (B,) to loss and figures."""
        logits = self.network.classify(self.network.encode(image)[-1])
        loss = functional.cross_entropy(logits, target, label_smoothing=self.plan["label_smoothing"])
        return loss, {"accuracy": _agreement(logits, target)}


class DecoderStage(Stage):
    """The decoder, the shared encoder at rest.

    Differs: the paper asks only that the representation image is classified rightly, which a copy of the image does
    as well. Here it must be enough (fusion loss), what it leaves out must hold no sign of disease (`removal`), and it
    must be as little as both allow (`sparsity`, `outside`, `smoothness`, `certainty`); cf. Dabkowski and Gal 2017.
    """

    def __init__(self, network: CXRNet, plan: dict[str, Any]) -> None:
        super().__init__(network, plan, [network.decoder, network.draw])

    def forward(self, image: Tensor, lungs: Tensor, target: Tensor) -> tuple[Tensor, Figures]:
        """Image float (B, 1, S, S) in 0..1, lungs 0 or 1 (B, 1, S, S) and target int64 (B,) to loss and figures."""
        network, plan = self.network, self.plan
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
        loss = fusion + plan["sparsity"] * inside + plan["outside"] * outside + plan["smoothness"] * roughness
        figures = {
            "fusion": fusion,
            "inside": inside,
            "outside": outside,
            "doubt": doubt,
            "agreement": _agreement(second, first.argmax(1)),
        }
        loss = loss + plan["certainty"] * doubt
        if plan["removal"]:
            left = network.classify(network.encode(image * (1 - relevance))[-1])
            removal = functional.cross_entropy(left, torch.full_like(target, HEALTHY))
            loss = loss + plan["removal"] * removal
            figures["removal"] = removal
        return loss, figures


class JointStage(Stage):
    """Everything at once by the fusion loss, as in the paper (CXRNet eq. 5 and 6)."""

    def __init__(self, network: CXRNet, plan: dict[str, Any]) -> None:
        super().__init__(network, plan, [network])

    def forward(self, image: Tensor, lungs: Tensor, target: Tensor) -> tuple[Tensor, Figures]:
        """Image float (B, 1, S, S) in 0..1, lungs 0 or 1 (B, 1, S, S) and target int64 (B,) to loss and figures."""
        output = self.network(image)
        loss = fusion_loss(output.logits, output.representation_logits, target, self.plan["label_smoothing"])
        return loss, {
            "accuracy": _agreement(output.logits, target),
            "agreement": _agreement(output.representation_logits, output.logits.argmax(1)),
        }


STAGES: dict[str, type[EncoderStage] | type[DecoderStage] | type[JointStage]] = {
    "encoder_stage": EncoderStage,
    "decoder_stage": DecoderStage,
    "joint_stage": JointStage,
}
"""By their tables in a recipe, in the order in which they run; a recipe leaves out what it doesn't want."""


def _agreement(logits: Tensor, classes: Tensor) -> Tensor:
    return (logits.argmax(1) == classes).float().mean()
