"""U-Net that finds the lungs (CXRNet figure 2, section III-A.1).

Architecture only; `prepare` prepares the image, `analyse.segment` cleans the mask.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def convolutions(in_channels: int, out_channels: int) -> nn.Sequential:
    """Two 3×3 convolutions, each followed by batch normalisation and ReLU; keeps height and width."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
        nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


class UNet(nn.Module):
    """Contracting and expanding path joined by skip concatenations.

    Differs: narrower than the original (16…256 channels for 64…1024) and padded, so that the mask has the size of
    the image; and it works on patches of `patch` × `patch` pixels, folded into channels on the way in and unfolded on
    the way out. Lungs are large and smooth, and so a CPU finds them in tens of milliseconds.
    """

    def __init__(self, widths: tuple[int, ...] = (16, 32, 64, 128, 256), patch: int = 2) -> None:
        super().__init__()
        self.widths = widths
        self.patch = patch
        self.down = nn.ModuleList()
        channels = patch * patch
        for width in widths:
            self.down.append(convolutions(channels, width))
            channels = width
        self.reduce = nn.ModuleList()
        self.up = nn.ModuleList()
        for width in reversed(widths[:-1]):
            self.reduce.append(nn.Conv2d(channels, width, 1))
            self.up.append(convolutions(2 * width, width))
            channels = width
        self.head = nn.Conv2d(channels, patch * patch, 1)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Lung logits, and a summary of the deepest layer.

        Args:
            image: float (N, 1, H, W) in 0..1, MONOCHROME2; H and W divisible by patch * 2 ** (len(widths) - 1).

        Returns:
            logits float (N, 1, H, W), lung where > 0; and the bottleneck's mean and maximum over the image,
            float (N, 2 * widths[-1]), the features of the gate.
        """
        x = nn.functional.pixel_unshuffle((image - 0.5) / 0.25, self.patch)
        skips: list[Tensor] = []
        for depth, block in enumerate(self.down):
            x = block(x if depth == 0 else nn.functional.max_pool2d(x, 2))
            skips.append(x)
        bottleneck = torch.cat([x.mean((2, 3)), x.amax((2, 3))], dim=1)
        for skip, reduce, block in zip(reversed(skips[:-1]), self.reduce, self.up, strict=True):
            x = nn.functional.interpolate(reduce(x), scale_factor=2, mode="bilinear", align_corners=False)
            x = block(torch.cat([x, skip], dim=1))
        return nn.functional.pixel_shuffle(self.head(x), self.patch), bottleneck
