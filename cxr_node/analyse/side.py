"""Determines which side of an image is the patient's right, from its header, its pixels and the film's own letter.

A small network (`nets.side`) classifies the picture; `python -m training side` makes its weights. `analyse.letters` reads
the letter.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cache
from importlib.resources import files

import cv2
import numpy as np
from numpy.typing import NDArray

from cxr_node.nets.constants import SIDE_SIZE_PX
from cxr_node.records import Marker, Sides, SidesBy


def classify_sides(
    network_images: Sequence[NDArray[np.uint8]],
    sides_said: Sequence[bool],
    log_odds: Callable[[NDArray[np.uint8]], NDArray[np.float32]],
    markers: Sequence[Marker | None] | None = None,
) -> list[Sides]:
    """How the sides of each image are known.

    Args:
        network_images: uint8 (224, 224) each, turned upright as far as their headers say how they lie.
        sides_said: of each, whether its header says where the patient's right is.
        log_odds: the side network of an engine: uint8 (N, 96, 96) to float32 (N,).
        markers: the film's own letter of each image; None: none was read, of one or of all.
    """
    if not network_images:
        return []
    size = (SIDE_SIZE_PX, SIDE_SIZE_PX)
    small = np.stack([cv2.resize(image, size, None, 0, 0, cv2.INTER_AREA) for image in network_images]).astype(np.uint8)
    # one at a time: in a batch the last digits depend on its size, and the UIDs of results on these
    alone = [log_odds(one[np.newaxis])[0] for one in small]
    seen = zip(alone, sides_said, markers or [None] * len(small), strict=True)
    return [as_sides(float(odds), said, _threshold(), marker) for odds, said, marker in seen]


@cache
def _threshold() -> float:
    return float(json.loads((files("cxr_node.nets") / "sides" / "side.json").read_text("utf-8"))["threshold"])


def as_sides(log_odds: float, said: bool, threshold: float, marker: Marker | None = None) -> Sides:
    """The decision: header, picture (if it is sure) and marker must not contradict each other; the first that speaks says it.

    A mirrored letter is a marker that lay face down, or of a picture that is mirrored: where it stands may contradict, but is
    not believed alone.
    """
    picture = 0 if abs(log_odds) < threshold else 1 if log_odds > 0 else -1
    film = 0 if marker is None else 1 if marker.right_at_left else -1
    header = 1 if said else 0
    if -1 in (header * picture, header * film, picture * film):
        against = [name for name, says in (("header", header), ("picture", picture)) if film * says < 0]
        if header * film > 0:  # it is the picture alone that contradicts
            against = []
        return Sides(SidesBy.CONTRADICTED, log_odds, marker=marker, marker_against=" and ".join(against))
    if said:
        return Sides(SidesBy.HEADER, log_odds, marker=marker)
    if picture:
        return Sides(SidesBy.PICTURE, log_odds, mirrored=picture < 0, marker=marker)
    if marker is not None and not marker.mirrored:
        return Sides(SidesBy.MARKER, log_odds, mirrored=film < 0, marker=marker)
    return Sides(SidesBy.UNKNOWN, log_odds, marker=marker)
