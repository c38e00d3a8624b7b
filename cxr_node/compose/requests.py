"""Links a result to the order of its source: requests and referenced studies, copied from the source.

Only attributes that the standard has there are copied, each value in the form of its VR.
"""

from __future__ import annotations

import re

from pydicom import Dataset
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.uid import UID
from pydicom.valuerep import validate_value

from cxr_node.prepare.header import text, values_of

_REQUEST = (
    *(
        "AccessionNumber",
        "StudyInstanceUID",
        "RequestedProcedureID",
        "RequestedProcedureDescription",
        "ReasonForTheRequestedProcedure",
    ),
    *("ScheduledProcedureStepID", "ScheduledProcedureStepDescription"),
)
"""Of PS3.3 table 10-9, Request Attributes Macro."""

_CODE = ("CodeValue", "CodingSchemeDesignator", "CodingSchemeVersion", "CodeMeaning")
_ORDER_NUMBERS = ("PlacerOrderNumberImagingServiceRequest", "FillerOrderNumberImagingServiceRequest")

_MOST_ITEMS = 16
"""Of a sequence that are copied: they go into every result."""


def add_requests(ds: Dataset, source: Dataset, *, is_document: bool) -> None:
    """Copy Request Attributes (or a document's Referenced Request) and Referenced Study Sequence, in place.

    Args:
        ds: the result.
        source: the image's header.
        is_document: the result is a report, whose requests are of PS3.3 C.17.2.
    """
    studies = _references(source, "ReferencedStudySequence")
    if studies and not is_document:
        ds.ReferencedStudySequence = studies
    given = values_of(source, "RequestAttributesSequence")[:_MOST_ITEMS]
    requests = [item for item in given if isinstance(item, Dataset)]
    if is_document:
        made = [item for request in requests if (item := _referenced_request(request, source)) is not None]
        if made:
            ds.ReferencedRequestSequence = made
    elif made := [item for request in requests if len(item := _request(request))]:
        ds.RequestAttributesSequence = made


def _request(request: Dataset) -> Dataset:
    item = _copied(request, _REQUEST)
    if codes := _codes(request, "RequestedProcedureCodeSequence"):
        item.RequestedProcedureCodeSequence = codes
    if codes := _codes(request, "ScheduledProtocolCodeSequence"):
        item.ScheduledProtocolCodeSequence = codes
    return item


def _referenced_request(request: Dataset, source: Dataset) -> Dataset | None:
    """An item of PS3.3 table C.17-2: mostly of type 2, what the request doesn't say is the source's or empty."""
    asked = _copied(request, (*_REQUEST, *_ORDER_NUMBERS))
    if not len(asked):
        return None
    item = Dataset()
    item.StudyInstanceUID = asked.get("StudyInstanceUID") or source.StudyInstanceUID
    item.ReferencedStudySequence = _references(source, "ReferencedStudySequence") or _references(
        request, "ReferencedStudySequence"
    )
    item.AccessionNumber = asked.get("AccessionNumber") or text(source, "AccessionNumber")[:16]
    for keyword, given in zip(_ORDER_NUMBERS, ("PlacerOrderNumber", "FillerOrderNumber"), strict=True):
        value = asked.get(keyword) or text(source, keyword) or text(source, f"{given}Procedure")
        setattr(item, keyword, value[:64])
    item.RequestedProcedureID = asked.get("RequestedProcedureID", "")
    item.RequestedProcedureDescription = asked.get("RequestedProcedureDescription", "")
    item.RequestedProcedureCodeSequence = _codes(request, "RequestedProcedureCodeSequence")
    return item


def _references(ds: Dataset, keyword: str) -> list[Dataset]:
    """Items that name a SOP class and an instance by valid UIDs."""
    items = []
    for given in values_of(ds, keyword)[:_MOST_ITEMS]:
        if not isinstance(given, Dataset):
            continue
        names = (text(given, "ReferencedSOPClassUID"), text(given, "ReferencedSOPInstanceUID"))
        if all(UID(name).is_valid for name in names):
            item = Dataset()
            item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = names
            items.append(item)
    return items


def _codes(ds: Dataset, keyword: str) -> list[Dataset]:
    items = [_copied(given, _CODE) for given in values_of(ds, keyword)[:_MOST_ITEMS] if isinstance(given, Dataset)]
    return [item for item in items if all(keyword in item for keyword in ("CodeValue", "CodingSchemeDesignator", "CodeMeaning"))]


def _copied(given: Dataset, keywords: tuple[str, ...]) -> Dataset:
    """Those of the attributes that have a value of their VR."""
    item = Dataset()
    for keyword in keywords:
        value = re.sub(r"[\x00-\x1a\x1c-\x1f\\]", " ", text(given, keyword)).strip()
        tag = tag_for_keyword(keyword)
        assert tag is not None
        vr = dictionary_VR(tag)
        if not value or (vr == "UI" and not UID(value).is_valid):
            continue
        try:
            validate_value(vr, value, validation_mode=2)
        except ValueError:
            continue
        setattr(item, keyword, value)
    return item
