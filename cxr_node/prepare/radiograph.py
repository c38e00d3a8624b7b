"""Combines the steps of `prepare`: from a data set, or from a picture's pixels, to a Radiograph."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from cxr_node.errors import Rejected
from cxr_node.prepare.decode import decode_pixels
from cxr_node.prepare.geometry import geometry_of, to_upright
from cxr_node.prepare.letterbox import cut, picture_box
from cxr_node.prepare.letters import find_letters
from cxr_node.prepare.network_image import to_network_image
from cxr_node.prepare.quality import check_pixels
from cxr_node.prepare.render import render
from cxr_node.records import Geometry, Greys, Radiograph


def prepare_dataset(ds: Dataset, stored: NDArray[Any] | None = None) -> Radiograph:
    """Decode and render an image whose header was checked (`quality.check_header`).

    Args:
        ds: the data set.
        stored: its pixels, where `decode.decode_pixels` has decoded them already.

    Raises:
        Rejected: it can't be decoded, or its pixels show nothing.
    """
    stored = decode_pixels(ds) if stored is None else stored
    pixels, greys = render(ds, stored)
    return _radiograph(pixels, geometry_of(ds, *stored.shape), greys)


def prepare_pixels(pixels: NDArray[Any]) -> Radiograph:
    """Use a picture as it is, such as a PNG: MONOCHROME2, head up, unknown sides.

    Args:
        pixels: uint8 or uint16 (rows, columns) from `image_file.read_image_file`; the largest value says how many of the bits
            are used.

    Raises:
        Rejected: its pixels show nothing.
    """
    bits = max(8, int(pixels.max()).bit_length())
    return _radiograph(
        pixels.astype(np.float32) / np.float32(2**bits - 1), Geometry(pixels.shape[0], pixels.shape[1], sides_said=False)
    )


def _radiograph(pixels: NDArray[np.float32], geometry: Geometry, greys: Greys = Greys()) -> Radiograph:  # noqa: B008 - frozen
    try:
        check_pixels(pixels)
    except Rejected as rejected:
        told = [f"The header's {name} shows nothing of it." for name in greys.disbelieved]
        raise Rejected(*rejected.reasons, *told) from rejected
    geometry = replace(geometry, box=picture_box(pixels))
    upright = to_upright(cut(pixels, geometry), geometry)
    return Radiograph(pixels, to_network_image(upright), geometry, greys, find_letters(upright))
