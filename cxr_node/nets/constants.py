"""Constants shared by the networks and the serving code, for programs that do not load torch."""

from __future__ import annotations

STRONGEST_SHARE = 0.15
"""Of the lungs: the part whose mean is the evidence of an image."""

SIDE_SIZE_PX = 96
"""Input size of the side network: large enough for the heart's apex, too small for most letters on the film."""

LETTER_SIZE_PX = 32
"""Input size of the network that reads letters."""

LETTER_CLASSES = ("none", "R", "L", "mirrored R", "mirrored L")
"""In the order of its outputs."""
