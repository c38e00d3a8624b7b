"""The gate on the image content: is this a frontal chest radiograph?

A linear classifier on the U-Net's deepest features and on the shape of the lungs. `prepare.quality` checks headers;
`python -m training gate` makes the weights.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cxr_node.analyse.segment import right_and_left
from cxr_node.errors import Rejected


def shape_features(lungs: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Size and place of the two lungs: float32 (12,), shares of the image.

    Args:
        lungs: bool (H, W), cleaned, upright.
    """
    height, width = lungs.shape
    features: list[float] = []
    for lung in right_and_left(lungs):
        rows, columns = np.nonzero(lung)
        if rows.size == 0:
            features += [0.0] * 6
            continue
        features += [
            rows.size / lungs.size,
            rows.mean() / height,
            columns.mean() / width,
            (rows.max() - rows.min()) / height,
            (columns.max() - columns.min()) / width,
            rows.size / ((rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1)),
        ]
    return np.array(features, np.float32)


def frontal_score(bottleneck: NDArray[np.float32], lungs: NDArray[np.bool_], gate: dict[str, Any]) -> float:
    """Log-odds that this is a frontal chest radiograph.

    Args:
        bottleneck: float32 (2 K,), from the U-Net.
        lungs: bool (H, W), cleaned.
        gate: mean, scale, coefficients (each 2 K + 12 long) and intercept.
    """
    features = np.concatenate([bottleneck, shape_features(lungs)])
    standard = np.clip((features - np.asarray(gate["mean"])) / np.asarray(gate["scale"]), -6, 6)
    return float(standard @ np.asarray(gate["coefficients"]) + gate["intercept"])


def check_frontal(score: float, gate: dict[str, Any]) -> None:
    """Reject what doesn't look like a frontal chest radiograph, by its `frontal_score`.

    Raises:
        Rejected: the score is below the gate's threshold.
    """
    if score < gate["threshold"]:
        raise Rejected(
            "The image does not look like an upright frontal chest radiograph "
            f"(score {score:.1f}, at least {gate['threshold']:.1f} is required): lateral view, other body part or rotated?"
        )
