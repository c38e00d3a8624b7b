"""A result ties to the order that its radiograph was taken for: requests and referenced studies, copied from the source."""

from io import BytesIO

import pydicom
import pytest
from pydicom import Dataset

from cxr_node.compose import compose_results
from cxr_node.records import ANALYSIS_KINDS, ResultKind
from tests.compose_inputs import NOW, SMALL, findings, radiograph, source, upright_chest

STUDY = "1.2.826.0.1.3680043.8.498.1.77"


def referenced_study(uid: str = STUDY) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = "1.2.840.10008.3.1.2.3.1", uid
    return item


def request(**changes: str) -> Dataset:
    item = Dataset()
    values = {
        "AccessionNumber": "A-77",
        "RequestedProcedureID": "RP-1",
        "RequestedProcedureDescription": "Chest 2 views",
        "ScheduledProcedureStepID": "SPS-1",
        "ScheduledProcedureStepDescription": "Chest PA",
    }
    for keyword, value in (values | changes).items():
        setattr(item, keyword, value)
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "399208008", "SCT", "Chest X-ray"
    item.RequestedProcedureCodeSequence = [code]
    return item


def results(ds: Dataset) -> dict[ResultKind, Dataset]:
    made = compose_results(ds, radiograph(upright_chest(160, 128)), findings(), kinds=ANALYSIS_KINDS, overlay=SMALL, now=NOW)
    return {item.kind: pydicom.dcmread(BytesIO(item.content)) for item in made}


def test_every_image_carries_the_request_and_the_report_refers_to_it():
    ds = source(RequestAttributesSequence=[request()], ReferencedStudySequence=[referenced_study()])
    ds.PlacerOrderNumberImagingServiceRequest = "P-9"
    for kind, result in results(ds).items():
        if kind is ResultKind.REPORT:
            (asked,) = result.ReferencedRequestSequence
            assert (asked.StudyInstanceUID, asked.AccessionNumber) == (ds.StudyInstanceUID, "A-77")
            assert asked.PlacerOrderNumberImagingServiceRequest == "P-9"
            assert asked.FillerOrderNumberImagingServiceRequest == ""
            assert asked.ReferencedStudySequence[0].ReferencedSOPInstanceUID == STUDY
            assert "RequestAttributesSequence" not in result
        else:
            (asked,) = result.RequestAttributesSequence
            assert (asked.ScheduledProcedureStepID, asked.ScheduledProcedureStepDescription) == ("SPS-1", "Chest PA")
            assert result.ReferencedStudySequence[0].ReferencedSOPInstanceUID == STUDY
        assert asked.RequestedProcedureID == "RP-1"
        assert asked.RequestedProcedureCodeSequence[0].CodeValue == "399208008"


def test_two_requests_stay_two():
    ds = source(RequestAttributesSequence=[request(), request(RequestedProcedureID="RP-2")])
    for kind, result in results(ds).items():
        items = result.ReferencedRequestSequence if kind is ResultKind.REPORT else result.RequestAttributesSequence
        assert [item.RequestedProcedureID for item in items] == ["RP-1", "RP-2"]


@pytest.mark.parametrize("given", [{}, {"RequestAttributesSequence": [Dataset()]}], ids=["absent", "an empty item"])
def test_nothing_is_made_up(given):
    for result in results(source(**given)).values():
        assert "RequestAttributesSequence" not in result
        assert "ReferencedRequestSequence" not in result
        assert "ReferencedStudySequence" not in result


@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")
def test_a_reference_without_a_valid_uid_is_left_out():
    ds = source(ReferencedStudySequence=[referenced_study("no uid"), referenced_study()])
    for kind, result in results(ds).items():
        if kind is not ResultKind.REPORT:
            assert [item.ReferencedSOPInstanceUID for item in result.ReferencedStudySequence] == [STUDY]


@pytest.mark.filterwarnings("ignore:The value length")
@pytest.mark.parametrize("keyword", ["AccessionNumber", "RequestedProcedureID", "PlacerOrderNumberImagingServiceRequest"])
def test_a_long_number_of_an_order_is_never_cut(keyword):
    """A part of it is the number of another order."""
    number = "2026-03-04-" + "7" * 60
    ds = source(RequestAttributesSequence=[request(**{keyword: number})])
    for kind, result in results(ds).items():
        if kind is ResultKind.REPORT:
            assert result.ReferencedRequestSequence[0][keyword].value == number
        elif keyword != "PlacerOrderNumberImagingServiceRequest":  # not of an image's request
            assert result.RequestAttributesSequence[0][keyword].value == number


@pytest.mark.filterwarnings("ignore:The value length")
def test_a_long_accession_number_of_the_image_is_the_request_s():
    asked = request()
    del asked.AccessionNumber
    report = results(source(AccessionNumber="2026030400000012345", RequestAttributesSequence=[asked]))[ResultKind.REPORT]
    assert report.ReferencedRequestSequence[0].AccessionNumber == "2026030400000012345"


@pytest.mark.filterwarnings("ignore:The value length")
def test_a_long_name_is_cut_and_its_code_is_kept():
    asked = request(RequestedProcedureDescription="Chest " * 20)
    asked.RequestedProcedureCodeSequence[0].CodeMeaning = "Chest X-ray " * 10
    for kind, result in results(source(RequestAttributesSequence=[asked])).items():
        (item,) = result.ReferencedRequestSequence if kind is ResultKind.REPORT else result.RequestAttributesSequence
        assert item.RequestedProcedureDescription == ("Chest " * 20)[:64].strip()
        assert item.RequestedProcedureCodeSequence[0].CodeValue == "399208008"
        assert len(item.RequestedProcedureCodeSequence[0].CodeMeaning) <= 64


@pytest.mark.parametrize(
    ("keyword", "value", "scheme"),
    [("LongCodeValue", "882784691000119100", "SCT"), ("URNCodeValue", "urn:oid:2.16.840.1.113883.6.96", None)],
)
def test_a_procedure_s_code_of_any_form_is_copied(keyword, value, scheme):
    asked, code = request(), Dataset()
    setattr(code, keyword, value)
    code.CodeMeaning = "Chest X-ray"
    if scheme:
        code.CodingSchemeDesignator = scheme
    asked.RequestedProcedureCodeSequence = [code]
    for kind, result in results(source(RequestAttributesSequence=[asked])).items():
        (item,) = result.ReferencedRequestSequence if kind is ResultKind.REPORT else result.RequestAttributesSequence
        assert item.RequestedProcedureCodeSequence[0] == code
