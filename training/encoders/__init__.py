"""The paper's encoders that no shipped weights use; importing this registers them with CXRNet by name."""

from __future__ import annotations

from cxr_node.nets.encoders import ENCODERS
from training.encoders.alexnet import alexnet
from training.encoders.inception import inception_v3
from training.encoders.vgg import vgg16, vgg19

ENCODERS.update({"alexnet": alexnet, "inception_v3": inception_v3, "vgg16": vgg16, "vgg19": vgg19})
