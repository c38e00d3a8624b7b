"""Checks the Image Pixel module of a header, before anything is decoded by it."""

from __future__ import annotations

import re

from pydicom import Dataset

from cxr_node.errors import Rejected
from cxr_node.prepare.header import first_of, text

MAX_PIXELS = 100_000_000
"""Rows × columns; the largest radiographs have about 20 million. More is a decompression bomb or a mistake."""

PALETTE = "PALETTE COLOR"
_GREY = ("MONOCHROME1", "MONOCHROME2")

_NEEDED = (
    *("Rows", "Columns", "PhotometricInterpretation", "SamplesPerPixel", "BitsAllocated", "BitsStored", "PixelRepresentation"),
)


def check_pixel_header(ds: Dataset) -> None:
    """Check the Image Pixel module before decoding.

    Raises:
        Rejected: with every reason that is found.
    """
    if "PixelData" not in ds:
        raise Rejected("The object has no pixel data.")
    _settle_pixel_header(ds)
    missing = [keyword for keyword in _NEEDED if first_of(ds, keyword) in (None, "")]
    if missing:
        size = [keyword for keyword in missing if keyword in ("Rows", "Columns")]
        told = [f"The header does not say how large the picture is: it lacks {' and '.join(size)}."] if size else []
        others = [keyword for keyword in missing if keyword not in size]
        verb = "is" if len(others) == 1 else "are"
        told += [f"The header lacks {', '.join(others)}, which {verb} needed to read the picture."] if others else []
        raise Rejected(*told)
    rows, columns = ds.Rows, ds.Columns
    reasons = []
    if rows < 1 or columns < 1:
        reasons.append("The header does not say how large the picture is: Rows or Columns is 0.")
    elif rows * columns > MAX_PIXELS:
        reasons.append(f"The picture has {rows} x {columns} pixels, more than can be analysed.")
    if (ds.get("NumberOfFrames") or 1) != 1:
        reasons.append("The object has several frames; only single radiographs are analysed.")
    photometric, samples = ds.PhotometricInterpretation, ds.SamplesPerPixel
    if samples not in (1, 3) or (samples == 3 and not photometric.startswith(("RGB", "YBR"))):
        reasons.append("The header's SamplesPerPixel and PhotometricInterpretation contradict each other.")
    elif samples == 1 and photometric not in (*_GREY, PALETTE):
        reasons.append(f"The header's PhotometricInterpretation is neither {_GREY[0]} nor {_GREY[1]}: black may be white.")
    if ds.BitsAllocated not in (8, 16, 32) or not 1 <= ds.BitsStored <= ds.BitsAllocated or ds.PixelRepresentation not in (0, 1):
        reasons.append("The number of bits per pixel is not that of a radiograph.")
    if reasons:
        raise Rejected(*reasons)


def _settle_pixel_header(ds: Dataset) -> None:
    """Reduce attributes of the Image Pixel module to single values, in place: the first counts."""
    for keyword in (*_NEEDED, "HighBit", "PlanarConfiguration", "NumberOfFrames"):
        value = first_of(ds, keyword)
        if keyword != "PhotometricInterpretation" and value is not None:
            try:
                value = int(value)
            except (TypeError, ValueError, OverflowError):
                value = None
        elif keyword == "PhotometricInterpretation":
            value = text(ds, keyword).upper() or None
            bare = re.sub(r"[\s_]", "", value or "")
            value = bare if bare in _GREY else value
        if value is None and keyword in ds:
            del ds[keyword]
        elif value is not None and ds.get(keyword) != value:
            setattr(ds, keyword, value)
