"""Notices that an image was not analysed, and why: a missing result must not look like a healthy one."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime

import numpy as np
from pydicom import Dataset

from cxr_node.compose import content_items as items
from cxr_node.compose.codes import concept
from cxr_node.compose.identity import ResultIdentity, bare_reference, content_key, identify, place, to_composed
from cxr_node.compose.overlay import draw_not_analysed
from cxr_node.compose.report import document, measurement_group
from cxr_node.compose.report_regions import region
from cxr_node.compose.secondary_capture import NOTICE, compose_secondary_capture
from cxr_node.prepare.content import content_digest as content_digest_of
from cxr_node.prepare.header import number
from cxr_node.records import ComposedObject, Model, ResultKind

_VARIANT = "not analysed"
_DESCRIPTION = "Not analysed: no AI result"


def compose_not_analysed(
    source: Dataset,
    reasons: Sequence[str],
    model: Model,
    *,
    content_digest: str = "",
    kinds: Collection[ResultKind] = (ResultKind.REPORT,),
    predecessor: Dataset | None = None,
    now: datetime,
) -> list[ComposedObject]:
    """Notices of an unanalysed image: a picture (overlay) and a structured report.

    Args:
        source: the image's header; it has to say study, class and instance.
        reasons: sentences for a radiographer.
        model: what would have analysed it.
        content_digest: of the image, or what else tells its content.
        kinds: others than overlay and report are ignored.
        predecessor: the report of an earlier revision, which this one's replaces.
        now: when the notices are made, with a time zone.
    """
    replaced = str(predecessor.SOPInstanceUID) if predecessor is not None else ""
    told = content_digest or content_digest_of(source)
    key = content_key(model, told, now.isoformat(), *reasons, "replaces", replaced)
    made: dict[ResultKind, Dataset] = {}
    if ResultKind.OVERLAY in kinds:
        where = place(source, model, ResultKind.OVERLAY, key, _VARIANT)
        made[ResultKind.OVERLAY] = compose_secondary_capture(source, draw_not_analysed(reasons), where, description=NOTICE)
    if ResultKind.REPORT in kinds:
        where = place(source, model, ResultKind.REPORT, key, _VARIANT)
        image = bare_reference(source)
        made[ResultKind.REPORT] = document(model, [image], [_group(source, image, reasons, model, where)], where, predecessor)
    composed = []
    for kind, ds in made.items():
        identify(ds, source, model, kind, now, _DESCRIPTION)
        composed.append(to_composed(ds, kind))
    return composed


def _group(source: Dataset, image: Dataset, reasons: Sequence[str], model: Model, where: ResultIdentity) -> Dataset:
    """TID 1410 without a measurement. Its region is the whole image: viewers show nothing of a group without one."""
    columns, rows = (max(1.0, number(source, keyword, 1.0)) for keyword in ("Columns", "Rows"))
    corners = np.array([(0, 0), (columns, 0), (columns, rows), (0, rows), (0, 0)], np.float64)
    return measurement_group(
        ("AI chest radiograph: not analysed", where.tracking_uid(_VARIANT)),
        concept("finding", "not_analysed"),
        model,
        region(image, corners),
        more=[items.text(items.CONTAINS, concept("text", "reason"), reason) for reason in reasons],
    )
