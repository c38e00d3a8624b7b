"""From stored values to what a reader sees: Modality LUT, VOI LUT, MONOCHROME1 inverted, padding and shutter left out.

The chain of PS3.4 section N.2 for one image without a presentation state. It is computed once for every possible pixel value,
and the pixels are looked up in the result. `geometry` handles orientation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from cxr_node.prepare.header import number, numbers
from cxr_node.prepare.lut import LookupTable, items_of
from cxr_node.prepare.network_image import content_box
from cxr_node.prepare.shutter import shutter_of
from cxr_node.records import Greys, Table

_LOW_PERCENTILE, _HIGH_PERCENTILE = 0.5, 99.5
_SAMPLES_A_SIDE = 512
"""Percentiles use about this many rows and columns."""

_FLAT = 0.02
"""A VOI transformation that leaves less than this (of 0..1) between the 1st and 99th percentile shows nothing."""
_CLIPPED = 0.01
"""A grey this close to black or white counts as clipped."""
_LEAST_SHOWN = 0.25
"""A VOI transformation that clips all but this fraction of the patient shows too little: a window of 8 bits on 12-bit values."""
_MOST_INSIDE = 0.05
"""Padding lies at the edges: where so much of the image is padding that no edge reaches, the range is nonsense."""

_MOST_BEYOND = 0.01
"""A padding range lies at an end of the values: hardly any of the image lies on its other side."""

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

    def greys(self) -> Greys:
        return Greys(window=(self.centre, self.width), function=self.function)

    def in_words(self) -> str:
        return f"window of centre {self.centre:g} and width {self.width:g}"


@dataclass(frozen=True)
class _VoiLut:
    """One item of VOILUTSequence."""

    table: LookupTable

    def __call__(self, values: Values) -> Values:
        """Modality values to 0..1."""
        return self.table.scaled(values)

    def greys(self) -> Greys:
        return Greys(voi_lut=_as_table(self.table))

    def in_words(self) -> str:
        return f"VOI LUT of {self.table.entries.size} entries"


def render(ds: Dataset, stored: NDArray[Any]) -> tuple[NDArray[np.float32], Greys]:
    """What a reader sees of an image, and how it came about.

    The first item of VOILUTSequence, else the first window, that shows something of the image; else what
    lies between the 0.5 and 99.5 percentile of the pixels that are neither padding nor uniform border. An image FOR
    PROCESSING without a VOI has no display meaning yet: the X-ray intensity that PixelIntensityRelationship and its sign
    describe is turned into attenuation first (PS3.3 C.8.11.3), bright where less came through.

    PhotometricInterpretation alone decides on the inversion: PresentationLUTShape INVERSE accompanies MONOCHROME1 and
    says the same once more (PS3.3 C.8.11.3), so heeding both would undo it.

    Args:
        ds: the image's header.
        stored: (rows, columns) integers from `decode_pixels`.

    Returns:
        float32 (rows, columns) in 0..1, MONOCHROME2; NaN where PixelPaddingValue and PixelPaddingRangeLimit say so, and
        outside the display shutter (PS3.3 C.7.6.11).
    """
    shutter = shutter_of(ds, *stored.shape)
    sample = _sample(stored)
    padded = _padding(ds, sample)
    hidden = np.zeros(sample.shape, np.bool_) if padded is None else padded(sample)
    if shutter is not None:
        hidden = hidden | _sample(shutter.hidden)
    modality, said = _modality(ds, sample)
    display, greys = _display(ds, modality, modality(sample.astype(np.float64)), hidden)
    greys = replace(greys, rescale=said.rescale, modality_lut=said.modality_lut)

    def look_up(values: NDArray[Any]) -> NDArray[np.float32]:
        seen = display(modality(values.astype(np.float64))).astype(np.float32)
        if padded is not None:
            seen[padded(values)] = np.nan
        return seen

    if stored.dtype.itemsize > 2:
        pixels = look_up(stored)
    else:
        unsigned = np.dtype(f"u{stored.dtype.itemsize}")
        every_value = np.arange(2 ** (8 * unsigned.itemsize)).astype(unsigned).view(stored.dtype)
        pixels = np.asarray(cv2.LUT(np.ascontiguousarray(stored).view(unsigned), look_up(every_value)), np.float32)
    if shutter is not None:
        pixels[shutter.hidden] = np.nan
        greys = replace(greys, shutter=shutter.attributes, shutter_grey=shutter.grey)
    return pixels, greys


def _modality(ds: Dataset, sample: NDArray[Any]) -> tuple[Callable[[Values], Values], Greys]:
    """Modality LUT or rescale (PS3.3 C.11.1), and that of it which `Greys` keeps; one that erases the image is passed over.

    sample: some of the stored values.
    """
    for item in items_of(ds, "ModalityLUTSequence"):
        table = LookupTable.read(item, ds)
        if table is not None and np.ptp(table.raw(sample.astype(np.float64))) > 0:
            return table.raw, Greys(modality_lut=_as_table(table))
    slope, intercept = number(ds, "RescaleSlope", 1.0), number(ds, "RescaleIntercept", 0.0)
    if slope == 0:
        slope, intercept = 1.0, 0.0  # would erase the image: a header filled with zeroes
    return (lambda values: values * slope + intercept), Greys(rescale=(slope, intercept))


def _display(
    ds: Dataset, modality: Callable[[Values], Values], sample: Values, hidden: NDArray[np.bool_]
) -> tuple[Callable[[Values], Values], Greys]:
    """Modality values to 0..1, MONOCHROME2. `sample`: some of them, of which some are hidden."""
    inside = _inside(sample, hidden)
    inverted = ds.get("PhotometricInterpretation") == "MONOCHROME1"
    disbelieved: list[str] = []
    for voi in _vois(ds, inside):
        if _shows(voi, inside):
            greys = replace(voi.greys(), inverted=inverted, disbelieved=tuple(disbelieved))
            return (lambda values: 1 - voi(values)) if inverted else voi, greys  # noqa: B023 - returned at once
        disbelieved.append(voi.in_words())
    if ds.get("PresentationIntentType") == "FOR PROCESSING":
        display, greys = _attenuation(ds, inside, inverted)
    else:
        window = _between_percentiles(inside)
        display = (lambda values: 1 - window(values)) if inverted else window
        greys = replace(window.greys(), inverted=inverted)
    return display, replace(greys, disbelieved=tuple(disbelieved))


def _shows(voi: Callable[[Values], Values], inside: Values) -> bool:
    """Whether a VOI transformation separates the patient's greys and clips no more than a reader would accept."""
    low, high = voi(np.percentile(inside, (1, 99)))
    seen = voi(inside)
    shown = ((seen > _CLIPPED) & (seen < 1 - _CLIPPED)).mean()
    return bool(abs(high - low) >= _FLAT and shown >= _LEAST_SHOWN)


def _vois(ds: Dataset, inside: Values) -> Iterator[_VoiLut | _Window]:
    """The header's transformations, the preferred one first; those that PS3.3 C.11.2.1 forbids are left out."""
    for item in items_of(ds, "VOILUTSequence"):
        table = LookupTable.read(item, ds, signed_input=bool(inside.min() < 0))
        if table is not None:
            yield _VoiLut(table)
    function = str(ds.get("VOILUTFunction") or "LINEAR").strip().upper()
    for centre, width in zip(numbers(ds, "WindowCenter"), numbers(ds, "WindowWidth"), strict=False):
        if centre is not None and width is not None and (width > 0 if function in ("SIGMOID", "LINEAR_EXACT") else width >= 1):
            yield _Window(centre, width, function if function in ("SIGMOID", "LINEAR_EXACT") else "LINEAR")


def _attenuation(ds: Dataset, inside: Values, inverted: bool) -> tuple[Callable[[Values], Values], Greys]:
    """Display of an image FOR PROCESSING: bright where fewer X-rays came through.

    `inverted` (MONOCHROME1) stands in for a sign that is missing: high values are dark, and so much intensity.
    """
    sign = number(ds, "PixelIntensityRelationshipSign") or (1.0 if inverted else -1.0)
    logarithm = ds.get("PixelIntensityRelationship") == "LIN"
    darkest = float(inside.min() if sign > 0 else inside.max())

    def attenuation(values: Values) -> Values:
        intensity = np.maximum((values - darkest) * sign, 0)
        return np.asarray(-np.log1p(intensity) if logarithm else -intensity)

    spread = _between_percentiles(attenuation(inside))
    # without the logarithm, the same window of the values themselves; with it, no window says it
    greys = Greys() if logarithm else _between_percentiles(inside).greys()
    return (lambda values: spread(attenuation(values))), replace(greys, inverted=sign > 0)


def _between_percentiles(inside: Values) -> _Window:
    low, high = (float(value) for value in np.percentile(inside, (_LOW_PERCENTILE, _HIGH_PERCENTILE)))
    if high <= low:
        low, high = float(inside.min()), float(inside.max())
    return _Window((low + high) / 2, high - low if high > low else 1.0, "LINEAR_EXACT")


def _inside(sample: Values, hidden: NDArray[np.bool_]) -> Values:
    """The values that are neither hidden nor uniform border; all where nothing else is left. float64 (N,)."""
    kept = np.ones(sample.shape, np.bool_) if hidden.all() else ~hidden
    low, high = float(sample[kept].min()), float(sample[kept].max())
    grey = np.where(kept, (sample - low) / (high - low if high > low else 1.0), 0).astype(np.float32)
    top, bottom, left, right = content_box(grey)
    inside = sample[top:bottom, left:right][kept[top:bottom, left:right]]
    return inside if inside.size else sample[kept]


def _sample(stored: NDArray[Any]) -> NDArray[Any]:
    rows, columns = (max(1, side // _SAMPLES_A_SIDE) for side in stored.shape)
    return stored[::rows, ::columns]


def _padding(ds: Dataset, sample: NDArray[Any]) -> Where | None:
    """Which stored values are padding (PS3.3 C.7.5.1.1.2); None if none are, or if what the header says is nonsense."""
    first, last = number(ds, "PixelPaddingValue"), number(ds, "PixelPaddingRangeLimit")
    if first is None:
        return None
    # An unsigned number for signed pixels, or the other way round, is common: its bits are meant.
    bounds = [np.array([int(value)]).astype(sample.dtype)[0] for value in (first, first if last is None else last)]
    low, high = min(bounds), max(bounds)

    def padded(values: NDArray[Any]) -> NDArray[np.bool_]:
        return np.asarray((values >= low) & (values <= high))

    where = padded(sample)
    between = np.count_nonzero(sample < low), np.count_nonzero(sample > high)
    if low < high and min(between) > _MOST_BEYOND * np.count_nonzero(~where):
        return None  # the patient's own values lie on both sides
    return padded if _lies_at_the_edges(where) else None


def _lies_at_the_edges(padding: NDArray[np.bool_]) -> bool:
    """Whether padding leaves something of the image, and lies mostly at the edges, hardly where none is reached."""
    if padding.all():
        return False
    framed = np.pad(padding, 1, constant_values=True).astype(np.uint8)
    _, parts = cv2.connectedComponents(framed, connectivity=4)
    inside = np.count_nonzero((parts != parts[0, 0]) & (framed > 0))
    return bool(inside <= min(_MOST_INSIDE * padding.size, padding.sum() / 2))


def _as_table(table: LookupTable) -> Table:
    return Table(np.rint(table.entries).astype(np.uint16), table.first_mapped, table.bits)
