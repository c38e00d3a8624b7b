"""Base class of encoders: five feature maps of an image, and their channels."""

from __future__ import annotations

from torch import nn


class Encoder(nn.Module):
    """A classification network without its classifier.

    forward: RGB normalised as for ImageNet, float (N, 3, H, W), to a list of five features float (N, channels[i], h, w),
    shallow to deep, none larger than the one before.
    """

    channels: tuple[int, ...]
    """Channels of the five features, shallow to deep."""
