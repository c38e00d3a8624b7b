"""VGG-16 and VGG-19 without batch normalisation as five-stage feature encoders, with torchvision's parameter names."""

from __future__ import annotations

from torch import Tensor, nn

from cxr_node.nets.encoders.base import Encoder


class VGG(Encoder):
    """Five runs of 3×3 convolutions, each closed by a pooling that halves the size; a feature is what a pooling gives."""

    def __init__(self, depths: tuple[int, ...]) -> None:
        super().__init__()
        self.channels = (64, 128, 256, 512, 512)
        layers: list[nn.Module] = []
        channels = 3
        for width, depth in zip(self.channels, depths, strict=True):
            for _ in range(depth):
                convolution = nn.Conv2d(channels, width, 3, padding=1)
                # Nothing normalises here: with torch's own initialisation sixteen layers fade the image to nothing.
                nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(convolution.bias)  # type: ignore[arg-type]
                layers += [convolution, nn.ReLU(inplace=True)]
                channels = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> list[Tensor]:
        """RGB normalised as for ImageNet, (N, 3, H, W), to five features at H/2, H/4, H/8, H/16, H/32 (rounded down)."""
        features = []
        for layer in self.features:
            x = layer(x)
            if isinstance(layer, nn.MaxPool2d):
                features.append(x)
        return features


def vgg16() -> VGG:
    """VGG-16 (configuration D of the original paper)."""
    return VGG((2, 2, 3, 3, 3))


def vgg19() -> VGG:
    """VGG-19 (configuration E of the original paper)."""
    return VGG((2, 2, 4, 4, 4))
