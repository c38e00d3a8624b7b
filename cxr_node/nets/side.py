"""A small network that determines right and left of a chest: heart, aortic arch, stomach bubble and diaphragm.

Architecture and weights only; `analyse.side` interprets the output, `training.fit.side` trains it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import torch
from safetensors.torch import load
from torch import Tensor, nn

from cxr_node.nets.constants import SIDE_SIZE_PX

WIDTHS = (12, 24, 48, 48)
"""Channels of its layers."""


class SideNet(nn.Module):
    """Four strided convolutions and a linear layer that knows where things lie.

    The answer of an image is that of its head minus that of the mirrored image, so mirroring an image changes the sign
    and nothing else: symmetric features cancel.
    """

    def __init__(self, widths: tuple[int, ...] = WIDTHS) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 1
        for depth, width in enumerate(widths):
            kernel = 5 if depth == 0 else 3
            layers += [
                nn.Conv2d(channels, width, kernel, stride=2, padding=kernel // 2, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
            ]
            channels = width
        self.features = nn.Sequential(*layers)
        self.dropout = nn.Dropout(0.3)
        self.head = nn.Linear(channels * (SIDE_SIZE_PX // 2 ** len(widths)) ** 2, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Log-odds that the patient's right lies on the image's left.

        Args:
            image: float (N, 1, 96, 96) in 0..1, MONOCHROME2, head up.

        Returns:
            float (N,).
        """
        both = torch.cat((image, image.flip(3)))  # (2 N, 1, 96, 96)
        seen = self.head(self.dropout(self.features((both - 0.5) / 0.25).flatten(1))).squeeze(1)  # (2 N,)
        right, mirrored = seen.chunk(2)
        log_odds: Tensor = (right - mirrored) / 2
        return log_odds


@dataclass(frozen=True)
class SideClassifier:
    """The network with the threshold that turns log-odds into an answer.

    threshold: log-odds smaller than this, of either sign, give no answer.
    description: what it was trained on and how right it is.
    """

    network: SideNet
    threshold: float
    description: dict[str, Any]


@cache
def shipped_side_classifier() -> SideClassifier:
    """The network that comes with the program."""
    folder = files("cxr_node.nets") / "sides"
    description = json.loads((folder / "side.json").read_text("utf-8"))
    network = SideNet(tuple(description["widths"]))
    network.load_state_dict({name: tensor.float() for name, tensor in load((folder / "side.safetensors").read_bytes()).items()})
    return SideClassifier(network.eval(), float(description["threshold"]), description)
