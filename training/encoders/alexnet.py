"""AlexNet as a five-stage feature encoder, with torchvision's parameter names."""

from __future__ import annotations

from torch import Tensor, nn

from cxr_node.nets.encoders.base import Encoder


class AlexNet(Encoder):
    """AlexNet in the narrower form of "One weird trick" (Krizhevsky 2014), which torchvision publishes weights for.

    A stage is a convolution, since there are five of them but only four sizes: the stem strides by 4, and the third to
    fifth convolutions keep their size. Needs at least 63 × 63 pixels.
    """

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 64, 11, 4, 2),
            nn.ReLU(inplace=True),  # feature 0
            nn.MaxPool2d(3, 2),
            nn.Conv2d(64, 192, 5, padding=2),
            nn.ReLU(inplace=True),  # feature 1
            nn.MaxPool2d(3, 2),
            nn.Conv2d(192, 384, 3, padding=1),
            nn.ReLU(inplace=True),  # feature 2
            nn.Conv2d(384, 256, 3, padding=1),
            nn.ReLU(inplace=True),  # feature 3
            nn.Conv2d(256, 256, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2),  # feature 4
        )
        self.channels = (64, 192, 384, 256, 256)

    def forward(self, x: Tensor) -> list[Tensor]:
        """RGB normalised as for ImageNet, (N, 3, H, W), to features at about H/4, H/8, H/16, H/16, H/32."""
        features = []
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in (1, 4, 7, 9, 12):
                features.append(x)
        return features


def alexnet() -> AlexNet:
    """AlexNet."""
    return AlexNet()
