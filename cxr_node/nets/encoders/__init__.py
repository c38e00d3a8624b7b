"""The encoders that CXRNet can be built on, by name."""

from __future__ import annotations

from collections.abc import Callable

from cxr_node.nets.encoders.resnet import ResNet, resnet34, resnet50, resnet50_v1

ENCODERS: dict[str, Callable[[], ResNet]] = {
    "resnet34": resnet34,
    "resnet50": resnet50,
    "resnet50_v1": resnet50_v1,
}
"""Each builds a module with `channels` (five numbers) whose forward gives five features, shallow to deep."""
