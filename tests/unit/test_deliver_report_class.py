"""What becomes of each kind of content item in a plainer class of structured report."""

from __future__ import annotations

import pytest
from pydicom import Dataset
from pydicom.uid import BasicTextSRStorage, Comprehensive3DSRStorage, ComprehensiveSRStorage, EnhancedSRStorage

from cxr_node.deliver.report_class import instance_uid_as, report_as

PLAINER = (ComprehensiveSRStorage, EnhancedSRStorage, BasicTextSRStorage)


def coded(value: str, meaning: str, scheme: str = "DCM") -> list[Dataset]:
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = value, scheme, meaning
    return [code]


def item(value_type: str, relationship: str = "CONTAINS", *below: Dataset, **attributes) -> Dataset:
    ds = Dataset()
    ds.ValueType, ds.RelationshipType = value_type, relationship
    ds.ConceptNameCodeSequence = coded("1", value_type.capitalize())
    for keyword, value in attributes.items():
        setattr(ds, keyword, value)
    if below:
        ds.ContentSequence = list(below)
    return ds


def number(
    value: str, unit: tuple[str, str, str] = ("%", "percent", "UCUM"), *below: Dataset, relationship="CONTAINS"
) -> Dataset:
    measured = Dataset()
    measured.NumericValue = value
    measured.MeasurementUnitsCodeSequence = coded(*unit)
    return item("NUM", relationship, *below, MeasuredValueSequence=[measured])


def by_reference() -> Dataset:
    ds = Dataset()
    ds.RelationshipType, ds.ReferencedContentItemIdentifier = "INFERRED FROM", [1, 1]
    return ds


def document(*items: Dataset) -> Dataset:
    ds = Dataset()
    ds.file_meta = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = Comprehensive3DSRStorage, "1.2.3"
    ds.ValueType = "CONTAINER"
    template = Dataset()
    template.MappingResource, template.TemplateIdentifier = "DCMR", "1500"
    ds.ContentTemplateSequence = [template]
    ds.ContentSequence = list(items)
    return ds


def kinds(items) -> list:
    """Relationship, value type and what is below, as nested lists."""
    return [
        (one.RelationshipType, one.get("ValueType", ""), kinds(one.ContentSequence))
        if "ContentSequence" in one
        else (one.RelationshipType, one.get("ValueType", ""))
        for one in items
    ]


def group(*items: Dataset) -> Dataset:
    """The container of TID 1500 that holds measurement groups, with one of them."""
    container = item("CONTAINER", "CONTAINS", item("CONTAINER", "CONTAINS", *items))
    container.ConceptNameCodeSequence = coded("126010", "Imaging Measurements")
    return container


def said(ds: Dataset) -> list[str]:
    """The texts under the first heading."""
    [heading] = [one for one in ds.ContentSequence if one.ValueType == "CONTAINER"]
    return [one.TextValue for one in heading.ContentSequence if one.ValueType == "TEXT"]


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        ("87.34", ("%", "percent", "UCUM"), "Num: 87.34 %"),
        ("3", ("mm", "millimeter", "UCUM"), "Num: 3 mm"),
        ("2", ("X1", "points of a score", "99LOCAL"), "Num: 2 points of a score"),
    ],
)
def test_a_number_becomes_text_where_there_are_no_numbers(value, unit, text):
    report = document(group(number(value, unit)))
    assert said(report_as(report, BasicTextSRStorage)) == [text]
    for sop_class in PLAINER[:2]:
        assert report_as(report, sop_class).ContentSequence == report.ContentSequence


def test_a_number_without_a_value_says_so():
    without = item("NUM", MeasuredValueSequence=[])
    with_reason = item("NUM", MeasuredValueSequence=[], NumericValueQualifierCodeSequence=coded("114000", "Not a number"))
    assert said(report_as(document(group(without, with_reason)), BasicTextSRStorage)) == ["Num: no value", "Num: Not a number"]


def test_a_site_and_its_side_are_said_with_the_number():
    side = item("CODE", "HAS CONCEPT MOD", ConceptCodeSequence=coded("2", "Right"))
    site = item("CODE", "HAS CONCEPT MOD", side, ConceptCodeSequence=coded("1", "Lung"))
    assert said(report_as(document(group(number("5", ("%", "percent", "UCUM"), site))), BasicTextSRStorage)) == [
        "Num: 5 % (Lung, Right)"
    ]


def test_the_finding_comes_first_with_what_it_is_about_and_the_algorithm_last():
    tracking = item("TEXT", "HAS OBS CONTEXT", TextValue="Right lung")
    tracking.ConceptNameCodeSequence = coded("112039", "Tracking Identifier")
    finding = item("CODE", ConceptCodeSequence=coded("9", "Opacity"))
    finding.ConceptNameCodeSequence = coded("121071", "Finding")
    algorithm = item("TEXT", "HAS CONCEPT MOD", TextValue="CXRNet")
    site = item("CODE", "HAS CONCEPT MOD", ConceptCodeSequence=coded("1", "Lung"))
    ds = report_as(document(group(tracking, algorithm, number("1"), finding, site)), BasicTextSRStorage)
    assert said(ds) == ["Right lung: Opacity (Lung)", "Num: 1 %", "Text: CXRNet"]


def test_language_observer_and_procedure_stay():
    context = item("UIDREF", "HAS OBS CONTEXT", UID="1.2.3")
    ds = report_as(document(context, group(number("1"))), BasicTextSRStorage)
    assert ds.ContentSequence[0] == context


def test_a_region_becomes_text_that_was_inferred_from_the_image():
    graphic = {"GraphicType": "POLYLINE", "GraphicData": [10.0, 20.0, 30.5, 5.0, 10, 20]}
    region = item("SCOORD", "CONTAINS", item("IMAGE", "SELECTED FROM"), **graphic)
    ds = report_as(document(group(region)), BasicTextSRStorage)
    assert said(ds) == ["Scoord: polyline, columns 10.0 to 30.5, rows 5.0 to 20.0 of the image"]
    assert kinds(ds.ContentSequence) == [("CONTAINS", "CONTAINER", [("CONTAINS", "TEXT", [("INFERRED FROM", "IMAGE")])])]
    [enhanced] = report_as(document(region), EnhancedSRStorage).ContentSequence
    assert enhanced == region


def test_a_picture_stays():
    ds = report_as(document(group(item("IMAGE"))), BasicTextSRStorage)
    assert kinds(ds.ContentSequence) == [("CONTAINS", "CONTAINER", [("CONTAINS", "IMAGE")])]


@pytest.mark.parametrize("sop_class", PLAINER[:2])
def test_a_region_in_space_becomes_text_and_the_template_is_no_longer_claimed(sop_class):
    region = item("SCOORD3D", GraphicType="POINT", GraphicData=[1, 2, 3], ReferencedFrameOfReferenceUID="1.2")
    ds = report_as(document(region), sop_class)
    assert ds.ContentSequence[0].TextValue == "point, x 1.0 to 1.0, y 2.0 to 2.0, z 3.0 to 3.0 mm"
    assert "ReferencedFrameOfReferenceUID" not in ds.ContentSequence[0]
    assert "ContentTemplateSequence" not in ds
    below = item("CONTAINER", "CONTAINS", region, ContentTemplateSequence=document().ContentTemplateSequence)
    assert "ContentTemplateSequence" not in report_as(document(below), sop_class).ContentSequence[0]


@pytest.mark.parametrize(
    ("sop_class", "template"), [(ComprehensiveSRStorage, "1500"), (EnhancedSRStorage, "1500"), (BasicTextSRStorage, "2000")]
)
def test_which_template_is_claimed(sop_class, template):
    ds = report_as(document(group(number("1"))), sop_class)
    assert ds.ContentTemplateSequence[0].TemplateIdentifier == template


@pytest.mark.parametrize(("sop_class", "kept"), [(ComprehensiveSRStorage, True), (EnhancedSRStorage, False)])
def test_only_comprehensive_sr_has_items_by_reference(sop_class, kept):
    code = item("CODE", "CONTAINS", by_reference())
    [found] = report_as(document(code), sop_class).ContentSequence
    assert ("ContentSequence" in found) == kept


@pytest.mark.parametrize(
    ("parent", "child", "enhanced", "comprehensive"),
    [
        (item("CODE"), item("TEXT", "HAS PROPERTIES"), True, True),
        (item("TEXT"), item("SCOORD", "INFERRED FROM"), True, True),
        (item("CODE"), item("CODE", "HAS CONCEPT MOD"), True, True),
        (item("CODE"), item("IMAGE", "HAS CONCEPT MOD"), False, False),
        (item("TEXT"), item("CONTAINER", "HAS PROPERTIES"), False, True),
        (item("IMAGE"), item("TEXT", "HAS PROPERTIES"), False, False),
        (item("IMAGE"), item("NUM", "HAS ACQ CONTEXT"), True, True),
        (item("TEXT"), item("CODE", "HAS ACQ CONTEXT"), False, False),
        (item("CONTAINER"), item("COMPOSITE", "HAS OBS CONTEXT"), True, True),
        (item("TEXT"), item("TEXT", "CONTAINS"), False, False),
        (item("SCOORD"), item("IMAGE", "SELECTED FROM"), True, True),
        (item("WAVEFORM"), item("IMAGE", "SELECTED FROM"), False, False),
        (item("CONTAINER"), item("TABLE", "CONTAINS"), False, False),
    ],
)
def test_what_a_class_has_no_way_to_say_is_left_out(parent, child, enhanced, comprehensive):
    """Tables A.35.2-2 and A.35.3-2 of PS3.3."""
    for sop_class, allowed in ((EnhancedSRStorage, enhanced), (ComprehensiveSRStorage, comprehensive)):
        parent.ContentSequence = [child]
        [found] = report_as(document(parent), sop_class).ContentSequence
        assert ("ContentSequence" in found) == allowed, sop_class.name


@pytest.mark.parametrize("sop_class", PLAINER)
def test_the_stored_report_is_left_as_it_is(sop_class):
    report = document(group(number("1"), item("SCOORD", GraphicType="POINT", GraphicData=[1, 2])))
    before = report.to_json()
    report_as(report, sop_class)
    assert report.to_json() == before


def test_every_class_has_a_uid_of_its_own_that_never_changes():
    uids = {instance_uid_as("1.2.3", sop_class) for sop_class in PLAINER}
    assert len(uids) == 3
    assert instance_uid_as("1.2.4", BasicTextSRStorage) not in uids
    assert instance_uid_as("1.2.3", BasicTextSRStorage) == "2.25.9780872708421768505296166353007277138"
