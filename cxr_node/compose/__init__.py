"""From findings to the objects that go back to the archive: pictures, segmentations, presentation states and reports."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from datetime import datetime

from pydicom import Dataset

from cxr_node.compose.identity import identify, place, to_composed
from cxr_node.compose.not_analysed import compose_not_analysed
from cxr_node.compose.overlay import draw_overlay
from cxr_node.compose.presentation import compose_presentation
from cxr_node.compose.report import compose_report
from cxr_node.compose.secondary_capture import compose_secondary_capture
from cxr_node.compose.segmentation import compose_heat_levels, compose_heat_values, compose_lungs
from cxr_node.compose.sides import stated_orientation, turned
from cxr_node.compose.source_pixels import SourceMaps, pixel_aspect
from cxr_node.records import DEFAULT_KINDS, ComposedObject, Findings, Radiograph, ResultKind
from cxr_node.settings import OverlaySettings

__all__ = ["DEFAULT_KINDS", "compose_not_analysed", "compose_results", "draw_overlay", "pixel_aspect"]

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
    revision: int = 0,
    kinds: Collection[ResultKind] = DEFAULT_KINDS,
    overlay: OverlaySettings = OverlaySettings(),  # noqa: B008 - frozen
    predecessor: Dataset | None = None,
    now: datetime,
) -> list[ComposedObject]:
    """The results of one analysis. The same input gives the same bytes, UIDs included; only dates follow `now`.

    Args:
        source: the source's data set; its pixels are not read, and it is left as it is.
        radiograph: the source, rendered.
        findings: what the networks said of it.
        revision: 0 for the first content of this SOP instance UID, then counting up: each has results of its own.
        kinds: what to make; nothing else is computed.
        overlay: how it is drawn and encoded.
        predecessor: the report of an earlier revision, which this one's replaces: its UIDs are read.
        now: when the results are made, with a time zone.

    Returns:
        the objects in the order of ResultKind, which is that of delivery.
    """
    model = findings.model
    radiograph = replace(radiograph, geometry=turned(radiograph.geometry, findings.sides))
    maps = SourceMaps(findings, radiograph.geometry, radiograph.greys)
    made: dict[ResultKind, Dataset] = {}
    for kind in ResultKind:
        if kind not in kinds:
            continue
        where = place(source, model, kind, revision)
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
