"""The encoders that CXRNet can be built on, by name."""

from __future__ import annotations

from collections.abc import Callable

from cxr_node.nets.encoders.base import Encoder
from cxr_node.nets.encoders.resnet import resnet34, resnet50, resnet50_v1

ENCODERS: dict[str, Callable[[], Encoder]] = {
    "resnet34": resnet34,
    "resnet50": resnet50,
    "resnet50_v1": resnet50_v1,
}
"""The training adds the paper's (`training.encoders`).

Each builds a module with `channels` (five numbers) whose forward gives five features, shallow to deep."""
