"""Converts a report to a simpler SR class, for destinations that refuse Comprehensive 3D SR.

Made from the stored report when it is sent: patient, study, evidence and content stay; the content items are adapted to what
the class allows (PS3.3 A.35.1 to A.35.3). Comprehensive and Enhanced SR keep the report's tree, and with it
template TID 1500. Basic Text SR, which has neither numbers nor regions, becomes a narrative after TID 2000. The instance has
a UID of its own, always the same for the same report and class. Reads and writes no file.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence

from pydicom import Dataset
from pydicom.uid import UID, BasicTextSRStorage, ComprehensiveSRStorage

from cxr_node.dicom.references import Reference
from cxr_node.dicom.uids import derived_uid

CodeTriple = tuple[str, str, str]
"""Value, scheme and meaning."""

_REPORT: CodeTriple = ("18748-4", "LN", "Diagnostic Imaging Report")
_FINDINGS: CodeTriple = ("121070", "DCM", "Findings")
_FINDING: CodeTriple = ("121071", "DCM", "Finding")
_SOURCE: CodeTriple = ("121112", "DCM", "Source of Measurement")
_TRACKING_IDENTIFIER = "112039"
_GROUPS = "126010"
"""Imaging Measurements (DCM): the container of TID 1500 that holds the measurement groups."""

_WORDS = {"TEXT", "CODE", "NUM", "DATETIME", "DATE", "TIME", "UIDREF", "PNAME"}
_VALUE_TYPES = _WORDS | {"SCOORD", "TCOORD", "COMPOSITE", "IMAGE", "WAVEFORM", "CONTAINER"}
"""Of Enhanced and Comprehensive SR: tables A.35.2-1 and A.35.3-1."""
_SELECTED = {("SCOORD", "IMAGE"), ("TCOORD", "SCOORD"), ("TCOORD", "IMAGE"), ("TCOORD", "WAVEFORM")}


def report_as(report: Dataset, sop_class_uid: str, sent_as: Callable[[str], Reference | None] = lambda _: None) -> Dataset:
    """The report as another class of structured report, with its file meta information.

    Args:
        report: a Comprehensive 3D SR after TID 1500; left as it is.
        sop_class_uid: one of `records.REPORT_CLASSES` but the first.
        sent_as: SOP class and instance UID under which the destination has an earlier report, by the UID of that report here;
            None: as it is here. A predecessor is named as the destination knows it.
    """
    ds = copy.deepcopy(report)
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = UID(sop_class_uid)
    uid = instance_uid_as(str(report.SOPInstanceUID), sop_class_uid)
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = UID(uid)
    if sop_class_uid == BasicTextSRStorage:
        ds.ConceptNameCodeSequence = [_code(_REPORT)]
        ds.ContentTemplateSequence[0].TemplateIdentifier = "2000"
        ds.ContentSequence = _narrative(ds.ContentSequence)
    else:
        tree = _Tree(by_reference=sop_class_uid == ComprehensiveSRStorage)
        ds.ContentSequence = tree.children("CONTAINER", ds.ContentSequence)
        if tree.is_changed:  # it no longer follows the template, so it must not name it
            _forget_templates(ds)
    for study in ds.get("PredecessorDocumentsSequence", []):
        for series in study.ReferencedSeriesSequence:
            for item in series.ReferencedSOPSequence:
                if (known := sent_as(str(item.ReferencedSOPInstanceUID))) is not None:
                    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = known
    return ds


def instance_uid_as(sop_instance_uid: str, sop_class_uid: str) -> str:
    """The UID that a report has as another class: two classes under one UID would be two contents of one instance."""
    return derived_uid("report as", sop_instance_uid, sop_class_uid)


class _Tree:
    """Adapts content items to Enhanced or Comprehensive SR, and notes whether any changed."""

    def __init__(self, *, by_reference: bool) -> None:
        self._is_comprehensive = by_reference
        self.is_changed = False

    def children(self, source: str, items: Sequence[Dataset]) -> list[Dataset]:
        """The content items below one of value type `source`; those that the class can't express are left out."""
        fitting = []
        for found in items:
            item = found
            if "ReferencedContentItemIdentifier" in item and self._is_comprehensive:
                fitting.append(item)
                continue
            if item.get("ValueType") == "SCOORD3D":
                self.is_changed = True
                item = _text_item(_name(item), _value(item), item.get("ContentSequence", []))
            if not self._allows(source, item.RelationshipType, item.get("ValueType", "")):
                self.is_changed = True
                continue
            if "ContentSequence" in item:
                below = self.children(item.ValueType, item.ContentSequence)
                if below:
                    item.ContentSequence = below
                else:
                    del item.ContentSequence
            fitting.append(item)
        return fitting

    def _allows(self, source: str, relationship: str, target: str) -> bool:
        """Tables A.35.2-2 and A.35.3-2, for items by value."""
        match relationship:
            case "CONTAINS":
                return source == "CONTAINER" and target in _VALUE_TYPES
            case "HAS OBS CONTEXT":
                return source == "CONTAINER" and target in _WORDS | {"COMPOSITE"}
            case "HAS ACQ CONTEXT":
                return source in {"CONTAINER", "IMAGE", "WAVEFORM", "COMPOSITE"} and target in _WORDS
            case "HAS CONCEPT MOD":
                return target in {"TEXT", "CODE"}
            case "HAS PROPERTIES" | "INFERRED FROM":
                types = _VALUE_TYPES if self._is_comprehensive else _VALUE_TYPES - {"CONTAINER"}
                return source in {"TEXT", "CODE", "NUM"} and target in types
            case "SELECTED FROM":
                return (source, target) in _SELECTED
        return False


def _forget_templates(ds: Dataset) -> None:
    if "ContentTemplateSequence" in ds:
        del ds.ContentTemplateSequence
    for item in ds.get("ContentSequence", []):
        _forget_templates(item)


def _narrative(items: Sequence[Dataset]) -> list[Dataset]:
    """TID 2000: language, observer and procedure as they are; under the heading "Findings" each measurement group in words."""
    narrative = []
    for item in items:
        if item.ValueType != "CONTAINER":
            narrative.append(item)
        elif _name(item)[0] == _GROUPS:
            narrative += [_findings(group.ContentSequence) for group in item.ContentSequence if group.ValueType == "CONTAINER"]
    return narrative


def _findings(items: Sequence[Dataset]) -> Dataset:
    """One measurement group: subject and finding first, then numbers, regions and images, then the algorithm."""
    title = next((item.TextValue for item in items if _name(item)[0] == _TRACKING_IDENTIFIER), "")
    sites = [_value(item) for item in items if item.ValueType == "CODE" and item.RelationshipType == "HAS CONCEPT MOD"]
    said: list[Dataset] = []
    by_what: list[Dataset] = []
    for item in items:
        name = _name(item)
        if item.ValueType == "CODE" and name[:2] == _FINDING[:2]:
            words = f"{title}: {_value(item)}" if title else str(_value(item))
            said.insert(0, _text_item(_FINDING, _with(words, sites)))
        elif item.ValueType == "IMAGE":
            said.append(item)
        elif item.ValueType in ("NUM", "SCOORD", "SCOORD3D") or (item.ValueType == "TEXT" and name[0] != _TRACKING_IDENTIFIER):
            words = _with(f"{name[2]}: {_value(item)}", list(_modifiers(item)))
            part = by_what if item.RelationshipType == "HAS CONCEPT MOD" else said
            part.append(_text_item(_FINDING, words, item.get("ContentSequence", [])))
    heading = Dataset()
    heading.RelationshipType, heading.ValueType, heading.ContinuityOfContent = "CONTAINS", "CONTAINER", "SEPARATE"
    heading.ConceptNameCodeSequence = [_code(_FINDINGS)]
    heading.ContentSequence = said + by_what
    return heading


def _with(words: str, more: Sequence[str]) -> str:
    return f"{words} ({', '.join(more)})" if more else words


def _modifiers(item: Dataset) -> Iterator[str]:
    """The values of the codes that modify an item, and of those that modify these: a site, and its side."""
    for below in item.get("ContentSequence", []):
        if below.get("RelationshipType") == "HAS CONCEPT MOD" and below.get("ValueType") == "CODE":
            yield _value(below)
            yield from _modifiers(below)


def _text_item(name: CodeTriple, text: str, below: Sequence[Dataset] = ()) -> Dataset:
    """A TEXT that its container contains; the images among what was below are what it was inferred from."""
    item = Dataset()
    item.RelationshipType, item.ValueType, item.TextValue = "CONTAINS", "TEXT", text
    item.ConceptNameCodeSequence = [_code(name)]
    images = [copy.deepcopy(one) for one in below if one.get("ValueType") == "IMAGE"]
    for image in images:
        image.RelationshipType = "INFERRED FROM"
        image.ConceptNameCodeSequence = [_code(_SOURCE)]
    if images:
        item.ContentSequence = images
    return item


def _code(code: CodeTriple) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = code
    return item


def _name(item: Dataset) -> CodeTriple:
    names = item.get("ConceptNameCodeSequence") or []
    if not names:
        return ("", "", "")
    return (str(names[0].get("CodeValue", "")), str(names[0].CodingSchemeDesignator), str(names[0].CodeMeaning))


def _value(item: Dataset) -> str:
    """The value of a content item in words."""
    match item.ValueType:
        case "NUM":
            return _number(item)
        case "SCOORD":
            return _extent(item, {"columns": 0, "rows": 1}, "of the image")
        case "SCOORD3D":
            return _extent(item, {"x": 0, "y": 1, "z": 2}, "mm")
        case "CODE":
            return str(item.ConceptCodeSequence[0].CodeMeaning)
    return str(item.get("TextValue", ""))


def _number(item: Dataset) -> str:
    values = item.get("MeasuredValueSequence") or []
    if not values:
        qualifier = item.get("NumericValueQualifierCodeSequence") or []
        return str(qualifier[0].CodeMeaning) if qualifier else "no value"
    unit = values[0].MeasurementUnitsCodeSequence[0]
    return f"{values[0].NumericValue} {unit.CodeValue if unit.CodingSchemeDesignator == 'UCUM' else unit.CodeMeaning}"


def _extent(item: Dataset, axes: dict[str, int], unit: str) -> str:
    """The bounds of a graphic along its axes."""
    bounds = []
    for axis, offset in axes.items():
        along = item.GraphicData[offset :: len(axes)]
        bounds.append(f"{axis} {min(along):.1f} to {max(along):.1f}")
    return f"{str(item.GraphicType).lower()}, {', '.join(bounds)} {unit}"
