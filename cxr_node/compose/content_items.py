"""Content items of a structured report (PS3.3 C.17.3), as plain data sets.

highdicom's templates copy and check every item and every code several times, which took most of a report's time.
tests/unit/test_compose_content_items.py compares the items made here with those of highdicom, element by element.

Data sets that are the same in every report (a value type, a code) are made once and shared: do not change them in place.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, lru_cache
from typing import Any

import numpy as np
from highdicom.sr import CodedConcept
from numpy.typing import NDArray
from pydicom import DataElement, Dataset
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.valuerep import DS

from cxr_node.compose.codes import Concept

CONTAINS, CONTEXT, MODIFIER = "CONTAINS", "HAS OBS CONTEXT", "HAS CONCEPT MOD"
INFERRED, SELECTED = "INFERRED FROM", "SELECTED FROM"
"""Relationship types (PS3.3 table C.17.3.2.4-1)."""


def container(name: Concept, children: Sequence[Dataset], template: str | None = None) -> Dataset:
    """A CONTAINER within another; `template`: of PS3.16, that the children follow."""
    values = [_constant("ContinuityOfContent", "CONTINUOUS")]
    if template is not None:
        values.append(_template(template))
    return _item("CONTAINER", CONTAINS, name, values, children)


def coded(relationship: str, name: Concept, value: Concept, children: Sequence[Dataset] = ()) -> Dataset:
    """A CODE."""
    return _item("CODE", relationship, name, [_coded("ConceptCodeSequence", value)], children)


def text(relationship: str, name: Concept, value: str) -> Dataset:
    """A TEXT."""
    return _item("TEXT", relationship, name, [_element("TextValue", value)])


def uid(relationship: str, name: Concept, value: str) -> Dataset:
    """A UIDREF."""
    return _item("UIDREF", relationship, name, [_element("UID", value)])


def number(name: Concept, value: float, unit: Concept, children: Sequence[Dataset] = ()) -> Dataset:
    """A NUM, both as decimal string and in full."""
    measured = _dataset(
        _element("NumericValue", DS(value, auto_format=True)),
        _element("FloatingPointValue", value),
        _coded("MeasurementUnitsCodeSequence", unit),
    )
    return _item("NUM", CONTAINS, name, [_element("MeasuredValueSequence", [measured])], children)


def image(relationship: str, name: Concept, ds: Dataset, segment_number: int | None = None) -> Dataset:
    """An IMAGE: a reference to an object, or to one segment of it."""
    reference = _dataset(
        _element("ReferencedSOPClassUID", str(ds.SOPClassUID)), _element("ReferencedSOPInstanceUID", str(ds.SOPInstanceUID))
    )
    if segment_number is not None:
        reference.ReferencedSegmentNumber = segment_number
    return _item("IMAGE", relationship, name, [_element("ReferencedSOPSequence", [reference])])


def polyline(name: Concept, points: NDArray[np.float64], children: Sequence[Dataset]) -> Dataset:
    """A SCOORD: a polyline, float64 (N, 2), column and row, on the image that is the child."""
    values = [_constant("GraphicType", "POLYLINE"), _element("GraphicData", points.flatten().tolist())]
    return _item("SCOORD", CONTAINS, name, values, children)


def _item(
    value_type: str, relationship: str, name: Concept, values: Sequence[DataElement], children: Sequence[Dataset] = ()
) -> Dataset:
    below = [_element("ContentSequence", list(children))] if children else []
    return _dataset(
        _constant("RelationshipType", relationship),
        _constant("ValueType", value_type),
        _coded("ConceptNameCodeSequence", name),
        *values,
        *below,
    )


def _dataset(*elements: DataElement) -> Dataset:
    return Dataset({element.tag: element for element in elements})


def _element(keyword: str, value: Any) -> DataElement:
    tag, vr = _tag_and_vr(keyword)
    return DataElement(tag, vr, value)


@cache
def _constant(keyword: str, value: str) -> DataElement:
    return _element(keyword, value)


@lru_cache(maxsize=1024)  # weights bring codes of their own
def _coded(keyword: str, concept: Concept) -> DataElement:
    return _element(keyword, [CodedConcept(*concept)])


@cache
def _template(number: str) -> DataElement:
    return _element(
        "ContentTemplateSequence", [_dataset(_element("MappingResource", "DCMR"), _element("TemplateIdentifier", number))]
    )


@cache
def _tag_and_vr(keyword: str) -> tuple[int, str]:
    tag = tag_for_keyword(keyword)
    assert tag is not None
    return tag, dictionary_VR(tag)
