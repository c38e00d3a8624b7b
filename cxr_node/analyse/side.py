"""Which side of an image is the patient's right: what its header says, held against what the picture shows.

The picture is judged by a small network of its own (`nets.side`); its weights are made by `python -m training side`.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from cxr_node.nets.side import SIZE_PX, SideJudge, shipped_side_judge
from cxr_node.records import Sides, SidesBy


def judge_sides(
    network_images: Sequence[NDArray[np.uint8]], sides_said: Sequence[bool], judge: SideJudge | None = None
) -> list[Sides]:
    """How the sides of each image are known.

    Args:
        network_images: uint8 (224, 224) each, turned upright as far as their headers say how they lie.
        sides_said: of each, whether its header says where the patient's right is.
        judge: None: the shipped one.
    """
    if not network_images:
        return []
    judge = judge or shipped_side_judge()
    small = np.stack([cv2.resize(image, (SIZE_PX, SIZE_PX), None, 0, 0, cv2.INTER_AREA) for image in network_images])
    with torch.inference_mode():
        found = judge.network(torch.from_numpy(small).float().div(255).unsqueeze(1))
    return [as_sides(float(log_odds), said, judge.threshold) for log_odds, said in zip(found, sides_said, strict=True)]


def as_sides(log_odds: float, said: bool, threshold: float) -> Sides:
    """What is believed: the header unless the picture surely contradicts it; of a silent header, the picture if it is sure."""
    if abs(log_odds) < threshold:
        return Sides(SidesBy.HEADER if said else SidesBy.UNKNOWN, log_odds)
    if said:
        return Sides(SidesBy.HEADER if log_odds > 0 else SidesBy.CONTRADICTED, log_odds)
    return Sides(SidesBy.PICTURE, log_odds, mirrored=log_odds < 0)
