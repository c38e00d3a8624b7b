"""ResNet-34 and ResNet-50 as five-stage feature encoders, with torchvision's parameter names.

Both arrangements of the bottleneck are here: stride on the 3×3 convolution (torchvision, "v1.5") and on the first 1×1
("v1", the original paper).
"""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from cxr_node.nets.encoders.base import Encoder


class BasicBlock(nn.Module):
    """Two 3×3 convolutions around a shortcut."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int, first_stride: bool) -> None:
        super().__init__()
        del first_stride  # only the bottleneck has a choice
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(in_channels, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in, H, W) to (N, width, H / stride, W / stride)."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return cast(Tensor, self.relu(out + (x if self.downsample is None else self.downsample(x))))


class Bottleneck(nn.Module):
    """1×1, 3×3, 1×1 convolutions around a shortcut; the last widens fourfold."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int, first_stride: bool) -> None:
        super().__init__()
        out_channels = width * self.expansion
        self.conv1 = nn.Conv2d(in_channels, width, 1, stride if first_stride else 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1 if first_stride else stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in, H, W) to (N, 4 width, H / stride, W / stride)."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return cast(Tensor, self.relu(out + (x if self.downsample is None else self.downsample(x))))


def _shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels))


class ResNet(Encoder):
    """A residual network without its classifier; five stages, each half the size of the one before."""

    def __init__(self, block: type[BasicBlock] | type[Bottleneck], depths: tuple[int, ...], first_stride: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        channels = 64
        widths = (64, 128, 256, 512)
        for index, (width, depth) in enumerate(zip(widths, depths, strict=True), start=1):
            stage = []
            for position in range(depth):
                stride = 2 if index > 1 and position == 0 else 1
                stage.append(block(channels, width, stride, first_stride))
                channels = width * block.expansion
            self.add_module(f"layer{index}", nn.Sequential(*stage))
        self.channels = (64, *(width * block.expansion for width in widths))

    def forward(self, x: Tensor) -> list[Tensor]:
        """RGB normalised as for ImageNet, (N, 3, H, W), to five features at H/2, H/4, H/8, H/16, H/32."""
        features = [self.relu(self.bn1(self.conv1(x)))]
        x = self.maxpool(features[0])
        for name in ("layer1", "layer2", "layer3", "layer4"):
            x = self.get_submodule(name)(x)
            features.append(x)
        return features


def resnet34() -> ResNet:
    """ResNet-34."""
    return ResNet(BasicBlock, (3, 4, 6, 3), first_stride=False)


def resnet50() -> ResNet:
    """ResNet-50 as torchvision has it (stride on the 3×3 convolution)."""
    return ResNet(Bottleneck, (3, 4, 6, 3), first_stride=False)


def resnet50_v1() -> ResNet:
    """ResNet-50 as first published (stride on the first 1×1 convolution)."""
    return ResNet(Bottleneck, (3, 4, 6, 3), first_stride=True)
