"""From stored values to what a reader sees: Modality LUT, VOI LUT, MONOCHROME1 inverted, padding left out.

The chain of PS3.4 section N.2 for one image without a presentation state. It is computed once for every value that a
pixel can have, and the pixels are looked up in the result. Which way up the image lies is `geometry`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from cxr_node.prepare.lut import LookupTable, first_item
from cxr_node.prepare.network_image import content_box

_LOW_PERCENTILE, _HIGH_PERCENTILE = 0.5, 99.5
_SAMPLES_A_SIDE = 512
"""Percentiles are taken from about so many rows and columns."""

_FLAT = 0.02
"""A VOI transformation that leaves less than this (of 0..1) between the 1st and 99th percentile shows nothing."""

Values = NDArray[np.float64]
Where = Callable[[NDArray[Any]], NDArray[np.bool_]]


@dataclass(frozen=True)
class _Window:
    """One window of the VOI LUT module (PS3.3 C.11.2.1.2 and C.11.2.1.3)."""

    centre: float
    width: float
    function: str

    def __call__(self, values: Values) -> Values:
        """Modality values to 0..1."""
        if self.function == "SIGMOID":
            return np.asarray(1 / (1 + np.exp(np.clip(-4 * (values - self.centre) / self.width, -500, 500))))
        if self.function == "LINEAR_EXACT":
            return np.clip((values - self.centre) / self.width + 0.5, 0, 1)
        if self.width == 1:
            return np.asarray(values > self.centre - 0.5, np.float64)
        return np.clip((values - (self.centre - 0.5)) / (self.width - 1) + 0.5, 0, 1)


def render(ds: Dataset, stored: NDArray[Any]) -> NDArray[np.float32]:
    """What a reader sees of an image.

    The first item of VOILUTSequence, else the first window; else, or where that shows nothing of the image, what
    lies between the 0.5 and 99.5 percentile of the pixels that are neither padding nor uniform border. An image FOR
    PROCESSING without a VOI has no display meaning yet: the X-ray intensity that PixelIntensityRelationship and its sign
    describe is turned into attenuation first (PS3.3 C.8.11.3), bright where less came through.

    PhotometricInterpretation alone decides on the inversion: PresentationLUTShape INVERSE accompanies MONOCHROME1 and
    says the same once more (PS3.3 C.8.11.3), so heeding both would undo it.

    Args:
        ds: the image's header.
        stored: (rows, columns) integers from `decode_pixels`.

    Returns:
        float32 (rows, columns) in 0..1, MONOCHROME2; NaN where PixelPaddingValue and PixelPaddingRangeLimit say so.
    """
    sample = _sample(stored)
    padded = _padding(ds, stored.dtype)
    modality = _modality(ds)
    display = _display(ds, modality, sample, padded)

    def look_up(values: NDArray[Any]) -> NDArray[np.float32]:
        seen = display(modality(values.astype(np.float64))).astype(np.float32)
        if padded is not None:
            seen[padded(values)] = np.nan
        return seen

    if stored.dtype.itemsize > 2:
        return look_up(stored)
    unsigned = np.dtype(f"u{stored.dtype.itemsize}")
    every_value = np.arange(2 ** (8 * unsigned.itemsize)).astype(unsigned).view(stored.dtype)
    return np.asarray(cv2.LUT(np.ascontiguousarray(stored).view(unsigned), look_up(every_value)), np.float32)


def _modality(ds: Dataset) -> Callable[[Values], Values]:
    """Modality LUT or rescale (PS3.3 C.11.1)."""
    if (item := first_item(ds, "ModalityLUTSequence")) is not None and (table := LookupTable.read(item, ds)) is not None:
        return table.raw
    slope, intercept = _number(ds, "RescaleSlope", 1.0), _number(ds, "RescaleIntercept", 0.0)
    if slope == 0:
        slope = 1.0  # would erase the image: a header filled with zeroes
    return lambda values: values * slope + intercept


def _display(
    ds: Dataset, modality: Callable[[Values], Values], sample: NDArray[Any], padded: Where | None
) -> Callable[[Values], Values]:
    """Modality values to 0..1, MONOCHROME2."""
    inside = _inside(modality(sample.astype(np.float64)), None if padded is None else padded(sample))
    inverted = ds.get("PhotometricInterpretation") == "MONOCHROME1"
    for voi in _vois(ds, inside):
        low, high = voi(np.percentile(inside, (1, 99)))
        if abs(high - low) >= _FLAT:
            return (lambda values: 1 - voi(values)) if inverted else voi  # noqa: B023 - returned at once
    if ds.get("PresentationIntentType") == "FOR PROCESSING":
        return _attenuation(ds, inside, inverted)
    spread = _between_percentiles(inside)
    return (lambda values: 1 - spread(values)) if inverted else spread


def _vois(ds: Dataset, inside: Values) -> Sequence[Callable[[Values], Values]]:
    """The header's transformations, the preferred one first."""
    vois: list[Callable[[Values], Values]] = []
    if (item := first_item(ds, "VOILUTSequence")) is not None:
        table = LookupTable.read(item, ds, signed_input=bool(inside.min() < 0))
        if table is not None:
            vois.append(table.scaled)
    centre, width = _number(ds, "WindowCenter"), _number(ds, "WindowWidth")
    if centre is not None and width is not None:
        function = str(ds.get("VOILUTFunction") or "LINEAR").upper()
        if width >= 1 if function == "LINEAR" else width > 0:
            vois.append(_Window(centre, width, function))
    return vois


def _attenuation(ds: Dataset, inside: Values, inverted: bool) -> Callable[[Values], Values]:
    """Display of an image FOR PROCESSING: bright where fewer X-rays came through.

    `inverted` (MONOCHROME1) stands in for a sign that is missing: high values are dark, and so much intensity.
    """
    sign = _number(ds, "PixelIntensityRelationshipSign") or (1.0 if inverted else -1.0)
    logarithm = ds.get("PixelIntensityRelationship") == "LIN"
    darkest = float(inside.min() if sign > 0 else inside.max())

    def attenuation(values: Values) -> Values:
        intensity = np.maximum((values - darkest) * sign, 0)
        return np.asarray(-np.log1p(intensity) if logarithm else -intensity)

    spread = _between_percentiles(attenuation(inside))
    return lambda values: spread(attenuation(values))


def _between_percentiles(inside: Values) -> Callable[[Values], Values]:
    low, high = (float(value) for value in np.percentile(inside, (_LOW_PERCENTILE, _HIGH_PERCENTILE)))
    if high <= low:
        low, high = float(inside.min()), float(inside.max())
    width = max(high - low, 1e-6)
    return lambda values: np.clip((values - low) / width, 0, 1)


def _inside(sample: Values, padding: NDArray[np.bool_] | None) -> Values:
    """The values that are neither padding nor uniform border; all where nothing else is left. float64 (N,)."""
    kept = np.ones(sample.shape, np.bool_) if padding is None or padding.all() else ~padding
    low, high = float(sample[kept].min()), float(sample[kept].max())
    grey = np.where(kept, (sample - low) / max(high - low, 1e-6), 0).astype(np.float32)
    top, bottom, left, right = content_box(grey)
    inside = sample[top:bottom, left:right][kept[top:bottom, left:right]]
    return inside if inside.size else sample[kept]


def _sample(stored: NDArray[Any]) -> NDArray[Any]:
    rows, columns = (max(1, side // _SAMPLES_A_SIDE) for side in stored.shape)
    return stored[::rows, ::columns]


def _padding(ds: Dataset, dtype: np.dtype[Any]) -> Where | None:
    """Which stored values are padding (PS3.3 C.7.5.1.1.2), None if none are."""
    first, last = _number(ds, "PixelPaddingValue"), _number(ds, "PixelPaddingRangeLimit")
    if first is None:
        return None
    # An unsigned number for signed pixels, or the other way round, is common: its bits are meant.
    bounds = [np.array([int(value)]).astype(dtype)[0] for value in (first, first if last is None else last)]
    low, high = min(bounds), max(bounds)
    return lambda values: np.asarray((values >= low) & (values <= high))


def _number(ds: Dataset, keyword: str, default: float | None = None) -> Any:
    """The first value of a number in the header; the default where it is absent, empty or no finite number."""
    try:
        value = ds.get(keyword)  # raises where the text in the header is no number
        if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
            value = value[0]
        number = float(value)
    except (TypeError, ValueError, IndexError, OverflowError):
        return default
    return number if np.isfinite(number) else default
