"""The grayscale transformations of a presentation state, as in the overlay.

A presentation state replaces those of the image, so it may have only one window or one VOI LUT (PS3.3 C.11.8).
"""

from __future__ import annotations

import numpy as np
from pydicom import Dataset
from pydicom.valuerep import format_number_as_ds

from cxr_node.prepare.header import numbers, text, value_of, values_of
from cxr_node.records import Greys, Table

_DEPTHS = (8, 16)
_LONGEST_SHORTS = 32_000
"""Entries that an explicit VR of US has room for."""

_SHUTTER = {
    "RECTANGULAR": (
        *("ShutterLeftVerticalEdge", "ShutterRightVerticalEdge"),
        *("ShutterUpperHorizontalEdge", "ShutterLowerHorizontalEdge"),
    ),
    "CIRCULAR": ("CenterOfCircularShutter", "RadiusOfCircularShutter"),
    "POLYGONAL": ("VerticesOfThePolygonalShutter",),
}


def add_greys(ds: Dataset, source: Dataset, greys: Greys, *, inverted: bool) -> None:
    """Modality LUT, VOI LUT and polarity (PS3.3 C.11.1, C.11.8, C.11.6).

    Args:
        ds: the presentation state.
        source: the image's header.
        greys: how the image was rendered.
        inverted: its greys are inverted against its header, as it was analysed.
    """
    if greys.modality_lut is not None:
        item = _lut(greys.modality_lut, scaled=False)
        first = next(iter(values_of(source, "ModalityLUTSequence")), Dataset())
        item.ModalityLUTType = text(first, "ModalityLUTType") or "US"
        ds.ModalityLUTSequence = [item]
    elif greys.rescale != (1.0, 0.0) or value_of(source, "RescaleSlope") is not None:
        ds.RescaleSlope, ds.RescaleIntercept = (format_number_as_ds(float(value)) for value in greys.rescale)
        ds.RescaleType = text(source, "RescaleType")[:64] or "US"
    voi = Dataset()
    if greys.voi_lut is not None:
        voi.VOILUTSequence = [_lut(greys.voi_lut, scaled=True)]
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


def add_shutter(ds: Dataset, source: Dataset, greys: Greys) -> None:
    """The source's display shutter (PS3.3 C.7.6.11), if it was applied."""
    if not greys.shutter:
        return
    shapes = []
    for shape in (str(value).strip().upper() for value in values_of(source, "ShutterShape")):
        found = {
            keyword: [value for value in numbers(source, keyword) if value is not None] for keyword in _SHUTTER.get(shape, ())
        }
        if not found or not all(found.values()):
            continue
        shapes.append(shape)
        for keyword, values in found.items():
            whole = [round(value) for value in values]
            setattr(ds, keyword, whole if keyword.startswith(("Center", "Vertices")) else whole[0])
    ds.ShutterShape = shapes
    ds.ShutterPresentationValue = round(65535 * greys.shutter_grey)


def _lut(table: Table, *, scaled: bool) -> Dataset:
    """A table as an item of a LUT sequence, with entries of 8 or 16 bits: every reader takes them.

    PS3.3 C.11.2.1.1 allows all depths between for a VOI LUT here, but dciodvfy doesn't.

    Args:
        table: the table.
        scaled: entries are shares of the largest possible one, and so change with the depth.
    """
    bits = next(depth for depth in _DEPTHS if depth >= min(table.bits, _DEPTHS[-1]))
    entries = table.entries.astype(np.float64)
    if scaled:
        entries *= (2**bits - 1) / (2**table.bits - 1)
    item = Dataset()
    count = entries.size if entries.size < 2**16 else 0
    vr = "SS" if table.first_mapped < 0 else "US"
    item.add_new("LUTDescriptor", vr, [count - 2**16 if vr == "SS" and count >= 2**15 else count, table.first_mapped, bits])
    whole = np.rint(entries).astype("<u2")
    if whole.size <= _LONGEST_SHORTS:
        item.add_new("LUTData", "US", [int(entry) for entry in whole])
    else:
        item.add_new("LUTData", "OW", whole.tobytes())
    return item
