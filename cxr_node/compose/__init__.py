"""From findings to DICOM objects: overlays, segmentations, presentation states and reports."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import replace
from datetime import datetime

from pydicom import Dataset

from cxr_node.compose.identity import content_key, findings_digest, identify, place, to_composed
from cxr_node.compose.not_analysed import compose_not_analysed
from cxr_node.compose.overlay import draw_overlay, shrink_for_overlay
from cxr_node.compose.presentation import compose_presentation, has_presentation
from cxr_node.compose.rejection_note import compose_rejection_note
from cxr_node.compose.report import compose_report
from cxr_node.compose.secondary_capture import compose_secondary_capture
from cxr_node.compose.segmentation import compose_heat_levels, compose_heat_values, compose_lungs
from cxr_node.compose.sides import stated_orientation, turned
from cxr_node.compose.source_pixels import SourceMaps, pixel_aspect
from cxr_node.dicom.uids import derived_uid
from cxr_node.prepare.content import content_digest as content_digest_of
from cxr_node.records import ANALYSIS_KINDS, DEFAULT_KINDS, ComposedObject, Findings, Radiograph, ResultKind
from cxr_node.settings import OverlaySettings

__all__ = [
    "DEFAULT_KINDS",
    "compose_not_analysed",
    "compose_rejection_note",
    "compose_results",
    "draw_overlay",
    "pixel_aspect",
    "shrink_for_overlay",
]

_OVER_THE_SOURCE = {
    ResultKind.LUNGS: compose_lungs,
    ResultKind.HEATMAP: compose_heat_levels,
    ResultKind.HEATVALUES: compose_heat_values,
    ResultKind.PRESENTATION: compose_presentation,
}


def compose_results(
    source: Dataset,
    radiograph: Radiograph,
    findings: Findings,
    *,
    content_digest: str = "",
    kinds: Collection[ResultKind] = DEFAULT_KINDS,
    overlay: OverlaySettings = OverlaySettings(),  # noqa: B008 - frozen
    predecessor: Dataset | None = None,
    now: datetime,
) -> list[ComposedObject]:
    """The results of one analysis. The same input gives the same bytes, UIDs included.

    Objects that differ in anything they show, the date included, have different SOP instance UIDs.

    Args:
        source: the source's data set; its pixels are not read, and it is left as it is.
        radiograph: the source, rendered.
        findings: the networks' findings.
        content_digest: of the image, independent of its encoding (`prepare.content`); empty: computed from the other arguments.
        kinds: what to make; nothing else is computed.
        overlay: how it is drawn and encoded.
        predecessor: the report of an earlier revision, which this one's replaces: its UIDs are read.
        now: when the results are made, with a time zone.

    Returns:
        the objects in the order of ResultKind, which is that of delivery; a source in colour has no presentation state.
    """
    model = findings.model
    analysis = (content_digest or _content_of(source, radiograph), findings_digest(findings), now.isoformat())
    drawn = (str(overlay.max_side_px), overlay.compression, str(overlay.side_by_side))
    radiograph = replace(radiograph, geometry=turned(radiograph.geometry, findings.sides))
    maps = SourceMaps(findings, radiograph.geometry, radiograph.greys)
    made: dict[ResultKind, Dataset] = {}
    for kind in ANALYSIS_KINDS:
        if kind not in kinds or (kind == ResultKind.PRESENTATION and not has_presentation(source)):
            continue
        shows = {ResultKind.OVERLAY: drawn, ResultKind.REPORT: _refers_to(made, predecessor)}.get(kind, ())
        where = replace(
            place(source, model, kind, content_key(model, *analysis, *shows)),
            analysis_uid=derived_uid("analysis", content_key(model, *analysis)),
        )
        if kind == ResultKind.OVERLAY:
            picture = draw_overlay(
                *(radiograph, findings, overlay.max_side_px),
                pixel_aspect=pixel_aspect(source),
                side_by_side=overlay.side_by_side,
            )
            made[kind] = compose_secondary_capture(
                *(source, picture, where, overlay.transfer_syntax_uid), orientation=stated_orientation(source, findings.sides)
            )
        elif kind == ResultKind.REPORT:
            made[kind] = compose_report(
                *(source, maps, where),
                overlay=made.get(ResultKind.OVERLAY),
                lungs=made.get(ResultKind.LUNGS),
                predecessor=predecessor,
            )
        else:
            made[kind] = _OVER_THE_SOURCE[kind](source, maps, where)
    composed = []
    for kind, ds in made.items():
        identify(ds, source, model, kind, now)
        composed.append(to_composed(ds, kind))
    return composed


def _refers_to(made: dict[ResultKind, Dataset], predecessor: Dataset | None) -> tuple[str, ...]:
    """The SOP instance UIDs of the objects that a report names."""
    others = [str(ds.SOPInstanceUID) for ds in made.values()]
    return (*others, "replaces", str(predecessor.SOPInstanceUID) if predecessor is not None else "")


def _content_of(source: Dataset, radiograph: Radiograph) -> str:
    """A digest of an image whose file is not available: of its header and its rendered pixels."""
    return content_digest_of(source) + hashlib.sha256(radiograph.pixels.tobytes()).hexdigest()
