"""From findings to the objects that go back to the archive: an overlay and a structured report."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime

from pydicom import Dataset

from cxr_node.compose.identity import identify, place, to_composed
from cxr_node.compose.report import compose_report
from cxr_node.compose.secondary_capture import compose_secondary_capture, draw_overlay, pixel_aspect
from cxr_node.records import ComposedObject, Findings, Radiograph, ResultKind

__all__ = ["compose_results", "draw_overlay", "pixel_aspect"]


def compose_results(
    source: Dataset,
    radiograph: Radiograph,
    findings: Findings,
    *,
    revision: int = 0,
    kinds: Collection[ResultKind] = (ResultKind.OVERLAY, ResultKind.REPORT),
    max_side_px: int = 1280,
    now: datetime,
) -> list[ComposedObject]:
    """The results of one analysis. The same input gives the same bytes, UIDs included; only dates follow `now`.

    Args:
        source: the source's data set; its pixels are not read, and it is left as it is.
        radiograph: the source, rendered.
        findings: what the networks said of it.
        revision: 0 for the first content of this SOP instance UID, then counting up: each has results of its own.
        kinds: what to make, in this order of delivery: the overlay first, since the report refers to it.
        max_side_px: longest side of the overlay.
        now: when the results are made, with a time zone.
    """
    model = findings.model
    made: dict[ResultKind, Dataset] = {}
    if ResultKind.OVERLAY in kinds:
        picture = draw_overlay(radiograph, findings, max_side_px, pixel_aspect=pixel_aspect(source))
        where = place(source, model, ResultKind.OVERLAY, revision)
        made[ResultKind.OVERLAY] = compose_secondary_capture(source, picture, where)
    if ResultKind.REPORT in kinds:
        where = place(source, model, ResultKind.REPORT, revision)
        overlay = made.get(ResultKind.OVERLAY)
        made[ResultKind.REPORT] = compose_report(source, radiograph.geometry, findings, where, overlay)
    composed = []
    for kind, ds in made.items():
        identify(ds, source, model, kind, now)
        composed.append(to_composed(ds, kind))
    return composed
