"""Links a result to the order of its source: requests and referenced studies, copied from the source.

Only attributes that the standard has there are copied. Numbers of orders are copied as they are, because systems match by them:
a part of one is the number of another order. Names are cut to what their VR allows.
"""

from __future__ import annotations

import re

from pydicom import DataElement, Dataset
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.uid import UID

from cxr_node.compose.copied_items import LONGEST_LO, is_valid
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

_VALUES_OF_CODES = ("CodeValue", "LongCodeValue", "URNCodeValue")
_CODE = (*_VALUES_OF_CODES, "CodingSchemeDesignator", "CodingSchemeVersion", "CodeMeaning")
_ORDER_NUMBERS = ("PlacerOrderNumberImagingServiceRequest", "FillerOrderNumberImagingServiceRequest")

_NUMBERS = frozenset(("AccessionNumber", "RequestedProcedureID", "ScheduledProcedureStepID", *_ORDER_NUMBERS))
_NAMES = frozenset(("RequestedProcedureDescription", "ScheduledProcedureStepDescription", "ReasonForTheRequestedProcedure"))

_MOST_ITEMS, _LONGEST_NUMBER = 16, 256
"""Items of a sequence and characters of a number that are copied: they go into every result."""

REFERENCED_REQUESTS = "ReferencedRequestSequence"
"""A document's; images have Request Attributes Sequence."""


def add_requests(ds: Dataset, source: Dataset, *, is_document: bool) -> None:
    """Copy Request Attributes (or a document's Referenced Request) and Referenced Study Sequence, in place.

    Args:
        ds: the result.
        source: the image's header, or for a document that of another document.
        is_document: the result is a report or a rejection note, whose requests are of PS3.3 C.17.2 and C.17.6.2.
    """
    studies = _references(source, "ReferencedStudySequence")
    if studies and not is_document:
        ds.ReferencedStudySequence = studies
    given = values_of(source, "RequestAttributesSequence")
    if is_document and not given:
        given = values_of(source, REFERENCED_REQUESTS)
    requests = [item for item in given[:_MOST_ITEMS] if isinstance(item, Dataset)]
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
    _set(item, "AccessionNumber", asked.get("AccessionNumber") or _number(source, "AccessionNumber"))
    for keyword, given in zip(_ORDER_NUMBERS, ("PlacerOrderNumber", "FillerOrderNumber"), strict=True):
        _set(item, keyword, asked.get(keyword) or _number(source, keyword) or _number(source, f"{given}Procedure"))
    _set(item, "RequestedProcedureID", asked.get("RequestedProcedureID", ""))
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
    return [item for item in items if "CodeMeaning" in item and _is_code(item)]


def _is_code(item: Dataset) -> bool:
    """Whether it has a value, and the scheme that all values but a URN need (PS3.3 section 8.1)."""
    return "URNCodeValue" in item or ("CodingSchemeDesignator" in item and any(value in item for value in _VALUES_OF_CODES))


def _copied(given: Dataset, keywords: tuple[str, ...]) -> Dataset:
    """Those of the attributes that have a value of their VR, and the numbers and names that have any."""
    item = Dataset()
    for keyword in keywords:
        if keyword in _NUMBERS:
            value = _number(given, keyword)
        else:
            value = _printable(given, keyword)
            value = value[:LONGEST_LO].strip() if keyword in _NAMES or keyword == "CodeMeaning" else value
        if value and (keyword in _NUMBERS or is_valid(_vr(keyword), value)):
            _set(item, keyword, value)
    return item


def _number(ds: Dataset, keyword: str) -> str:
    """The number of an order; empty where there is none, or one that is too long for any."""
    value = _printable(ds, keyword)
    return value if len(value) <= _LONGEST_NUMBER else ""


def _printable(ds: Dataset, keyword: str) -> str:
    return re.sub(r"[\x00-\x1a\x1c-\x1f\\]", " ", text(ds, keyword)).strip()


def _set(item: Dataset, keyword: str, value: str) -> None:
    """Give an item a value, whatever its length."""
    item[keyword] = DataElement(keyword, _vr(keyword), value, validation_mode=0)


def _vr(keyword: str) -> str:
    tag = tag_for_keyword(keyword)
    assert tag is not None
    return dictionary_VR(tag)
