"""Puts the steps of `prepare` together: from a data set, or from a picture's pixels, to a Radiograph."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from cxr_node.prepare.decode import decode_pixels
from cxr_node.prepare.geometry import geometry_of, to_upright
from cxr_node.prepare.network_image import to_network_image
from cxr_node.prepare.quality import check_pixels
from cxr_node.prepare.render import render
from cxr_node.records import Geometry, Radiograph


def prepare_dataset(ds: Dataset, stored: NDArray[Any] | None = None) -> Radiograph:
    """Decode and render an image whose header was checked (`quality.check_header`).

    Args:
        ds: the data set.
        stored: its pixels, where `decode.decode_pixels` has decoded them already.

    Raises:
        Rejected: it can't be decoded, or its pixels show nothing.
    """
    stored = decode_pixels(ds) if stored is None else stored
    return _radiograph(render(ds, stored), geometry_of(ds, *stored.shape))


def prepare_pixels(pixels: NDArray[Any]) -> Radiograph:
    """Take a picture that is meant to be looked at as it is, such as a PNG: MONOCHROME2, upright.

    Args:
        pixels: uint8 or uint16 (rows, columns) from `decode.read_image_file`; the largest value says how many of the bits
            are used.

    Raises:
        Rejected: its pixels show nothing.
    """
    bits = max(8, int(pixels.max()).bit_length())
    return _radiograph(pixels.astype(np.float32) / np.float32(2**bits - 1), Geometry(*pixels.shape))


def _radiograph(pixels: NDArray[np.float32], geometry: Geometry) -> Radiograph:
    check_pixels(pixels)
    return Radiograph(pixels, to_network_image(to_upright(pixels, geometry)), geometry)
