"""The grayscale transformations of a presentation state, as in the overlay.

A presentation state replaces those of the image, so it may have only one window or one VOI LUT (PS3.3 C.11.8).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from pydicom import Dataset
from pydicom.valuerep import format_number_as_ds

from cxr_node.prepare.header import text, value_of, values_of
from cxr_node.records import Greys, Table

_BITS = 16
_WHITE = 2**_BITS - 1
_LONGEST_SHORTS = 32_000
"""Entries that an explicit VR of US has room for."""


def add_greys(ds: Dataset, source: Dataset, greys: Greys, *, inverted: bool) -> None:
    """Modality LUT, VOI LUT and polarity (PS3.3 C.11.1, C.11.8, C.11.6).

    Args:
        ds: the presentation state.
        source: the image's header.
        greys: how the image was rendered.
        inverted: its greys are inverted against its header, as it was analysed.
    """
    if greys.modality_lut is not None:
        item = _lut(greys.modality_lut)
        first = next(iter(values_of(source, "ModalityLUTSequence")), Dataset())
        is_whole = greys.modality_lut.bits == _BITS
        item.ModalityLUTType = (text(first, "ModalityLUTType") if is_whole else "") or "US"  # spread, its values lose their unit
        ds.ModalityLUTSequence = [item]
        greys = _of_spread_values(greys, _spread(greys.modality_lut))
    elif greys.rescale != (1.0, 0.0) or value_of(source, "RescaleSlope") is not None:
        ds.RescaleSlope, ds.RescaleIntercept = (format_number_as_ds(float(value)) for value in greys.rescale)
        ds.RescaleType = text(source, "RescaleType")[:64] or "US"
    voi = Dataset()
    if greys.voi_lut is not None:
        voi.VOILUTSequence = [_lut(greys.voi_lut)]
    elif greys.window is not None:
        centre, width, function = *greys.window, greys.function
        if function == "LINEAR_EXACT" and text(source, "VOILUTFunction").upper() != "LINEAR_EXACT":
            # the node's own window, in the form that every viewer supports
            centre, width, function = centre + 0.5, width + 1, "LINEAR"
        voi.WindowCenter, voi.WindowWidth = format_number_as_ds(float(centre)), format_number_as_ds(float(width))
        if function != "LINEAR":
            voi.VOILUTFunction = function
    if len(voi):
        ds.SoftcopyVOILUTSequence = [voi]
    ds.PresentationLUTShape = "INVERSE" if greys.inverted != inverted else "IDENTITY"


def add_shutter(ds: Dataset, greys: Greys) -> None:
    """The source's display shutter (PS3.3 C.7.6.11), as far as it was applied."""
    if not greys.shutter:
        return
    for keyword, values in greys.shutter:
        setattr(ds, keyword, list(values) if len(values) > 1 else values[0])
    ds.ShutterPresentationValue = round(65535 * greys.shutter_grey)


def _spread(table: Table) -> float:
    """What a table's entries are multiplied with to fill 16 bits."""
    return float(_WHITE / (2**table.bits - 1))


def _of_spread_values(greys: Greys, spread: float) -> Greys:
    """The same window or VOI LUT for modality values that are multiplied by `spread`, which is 1 or more."""
    if greys.window is not None:
        centre, width = greys.window
        shift = 0.5 if greys.function == "LINEAR" else 0.0  # PS3.3 C.11.2.1.2.1: centre and width less a half and one
        window = ((centre - shift) * spread + shift, (width - 2 * shift) * spread + 2 * shift)
        greys = replace(greys, window=window)
    if greys.voi_lut is not None and spread > 1:
        table = greys.voi_lut
        index = np.rint(np.arange(2**_BITS) / spread).astype(np.int64) - table.first_mapped
        greys = replace(greys, voi_lut=Table(table.entries[np.clip(index, 0, table.entries.size - 1)], 0, table.bits))
    return greys


def _lut(table: Table) -> Dataset:
    """A table as an item of a LUT sequence, its entries spread over 16 bits: every reader takes them.

    PS3.3 C.11.2.1.1 allows fewer for a VOI LUT here, and for a Modality LUT 8 or 16 (C.11.1.1.1), but dciodvfy finds fault with
    other depths, with words that hold one entry of 8 bits each, and with entries that leave some of the 16 unused.
    """
    entries = np.rint(table.entries.astype(np.float64) * _spread(table)).astype("<u2")
    item = Dataset()
    count = entries.size if entries.size < 2**16 else 0
    # the number of entries is unsigned whatever the VR (PS3.3 C.11.1.1.1), and pydicom writes it so
    item.add_new("LUTDescriptor", "SS" if table.first_mapped < 0 else "US", [count, table.first_mapped, _BITS])
    if entries.size <= _LONGEST_SHORTS:
        item.add_new("LUTData", "US", [int(entry) for entry in entries])
    else:
        item.add_new("LUTData", "OW", entries.tobytes())
    return item
