"""The encoders that CXRNet can be built on, by name."""

from __future__ import annotations

from collections.abc import Callable

from cxr_node.nets.encoders.alexnet import alexnet
from cxr_node.nets.encoders.base import Encoder
from cxr_node.nets.encoders.inception import inception_v3
from cxr_node.nets.encoders.resnet import resnet34, resnet50, resnet50_v1
from cxr_node.nets.encoders.vgg import vgg16, vgg19

ENCODERS: dict[str, Callable[[], Encoder]] = {
    "alexnet": alexnet,
    "inception_v3": inception_v3,
    "resnet34": resnet34,
    "resnet50": resnet50,
    "resnet50_v1": resnet50_v1,
    "vgg16": vgg16,
    "vgg19": vgg19,
}
"""Each builds a module with `channels` (five numbers) whose forward gives five features, shallow to deep."""
