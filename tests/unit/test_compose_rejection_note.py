"""The rejection note: what it withdraws, under which title, and of whom it is."""

from __future__ import annotations

import copy
from io import BytesIO

import pydicom
import pytest
from pydantic import ValidationError
from pydicom import Dataset
from pydicom.uid import BasicTextSRStorage, KeyObjectSelectionDocumentStorage

from cxr_node.compose import compose_rejection_note, compose_results
from cxr_node.records import ANALYSIS_KINDS, ResultKind
from cxr_node.settings import DestinationSettings
from tests.compose_inputs import NOW, SMALL, findings, radiograph, source


@pytest.fixture(scope="module")
def results() -> list[Dataset]:
    made = compose_results(
        source(SpecificCharacterSet="ISO_IR 100", PatientName="Müßig^Jörg"),
        *(radiograph(), findings()),
        **{"kinds": ANALYSIS_KINDS, "overlay": SMALL, "now": NOW},
    )
    return [pydicom.dcmread(BytesIO(item.content), stop_before_pixels=True) for item in made]


def note_of(results, now=NOW, **changes) -> Dataset:
    return pydicom.dcmread(BytesIO(compose_rejection_note(results, now, **changes).content))


def referenced(note: Dataset) -> set[tuple[str, str]]:
    """Class and instance UID of each reference in the content tree."""
    return {
        (item.ReferencedSOPSequence[0].ReferencedSOPClassUID, item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID)
        for item in note.ContentSequence
        if "ReferencedSOPSequence" in item
    }


def listed(note: Dataset) -> set[tuple[str, str, str]]:
    """Series, class and instance UID of each in the evidence."""
    [study] = note.CurrentRequestedProcedureEvidenceSequence
    assert study.StudyInstanceUID == note.StudyInstanceUID
    return {
        (series.SeriesInstanceUID, item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID)
        for series in study.ReferencedSeriesSequence
        for item in series.ReferencedSOPSequence
    }


def test_it_names_every_result_with_its_series(results):
    note = note_of(results)
    assert referenced(note) == {(ds.SOPClassUID, ds.SOPInstanceUID) for ds in results}
    assert listed(note) == {(ds.SeriesInstanceUID, ds.SOPClassUID, ds.SOPInstanceUID) for ds in results}


def test_pictures_and_segmentations_are_images_and_all_else_is_composite(results):
    types = {
        item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID: item.ValueType for item in note_of(results).ContentSequence[-6:]
    }
    assert types == {ds.SOPInstanceUID: "IMAGE" if "Rows" in ds else "COMPOSITE" for ds in results}


@pytest.mark.parametrize(
    ("title", "code"),
    [
        (None, ("113038", "DCM", "Incorrect Modality Worklist Entry")),
        ("patient_safety", ("113037", "DCM", "Rejected for Patient Safety Reasons")),
    ],
)
def test_its_title_is_one_under_which_objects_are_hidden(results, title, code):
    note = note_of(results, **({} if title is None else {"title": title}))
    [found] = note.ConceptNameCodeSequence
    assert (found.CodeValue, found.CodingSchemeDesignator, found.CodeMeaning) == code
    assert (note.SOPClassUID, note.Modality) == (KeyObjectSelectionDocumentStorage, "KO")


def test_it_is_of_the_patient_under_whom_the_results_were_sent(results):
    note = note_of(results)
    for keyword in (
        "PatientName",
        "PatientID",
        "PatientBirthDate",
        "StudyInstanceUID",
        "AccessionNumber",
        "SpecificCharacterSet",
    ):
        assert note[keyword].value == results[0][keyword].value, keyword
    assert str(note.PatientName) == "Müßig^Jörg"


@pytest.mark.parametrize("without_report", [False, True])
def test_it_refers_to_the_request_as_a_document_does(without_report):
    """PS3.3 C.17.6.2: a Key Object Document has Referenced Request Sequence, and no Request Attributes Sequence."""
    asked = Dataset()
    asked.AccessionNumber, asked.RequestedProcedureID, asked.PlacerOrderNumberImagingServiceRequest = "A-77", "RP-1", "P-9"
    kinds = [ResultKind.OVERLAY] if without_report else [ResultKind.OVERLAY, ResultKind.REPORT]
    made = compose_results(
        source(RequestAttributesSequence=[asked]), radiograph(), findings(), kinds=kinds, overlay=SMALL, now=NOW
    )
    note = note_of([pydicom.dcmread(BytesIO(item.content), stop_before_pixels=True) for item in made])
    assert "RequestAttributesSequence" not in note
    (request,) = note.ReferencedRequestSequence
    assert (request.AccessionNumber, request.RequestedProcedureID) == ("A-77", "RP-1")
    assert request.StudyInstanceUID == note.StudyInstanceUID
    assert request.PlacerOrderNumberImagingServiceRequest == ("" if without_report else "P-9")


def test_a_report_that_went_as_another_class_is_named_as_the_destination_has_it(results):
    report = results[-1]
    note = note_of(results, sent_as={str(report.SOPInstanceUID): (BasicTextSRStorage, "2.25.7")})
    own = (report.SOPClassUID, report.SOPInstanceUID)
    assert (BasicTextSRStorage, "2.25.7") in referenced(note)
    assert own not in referenced(note)
    assert (report.SeriesInstanceUID, BasicTextSRStorage, "2.25.7") in listed(note)


def test_the_same_objects_have_the_same_note_and_others_another(results):
    first = compose_rejection_note(results, NOW)
    assert first.kind == ResultKind.WITHDRAWAL
    assert compose_rejection_note(results, NOW) == first
    others = [
        compose_rejection_note(results[1:], NOW),
        compose_rejection_note(results, NOW, title="patient_safety"),
        compose_rejection_note(results, NOW, sent_as={str(results[-1].SOPInstanceUID): (BasicTextSRStorage, "2.25.7")}),
    ]
    assert len({first.sop_instance_uid, *(other.sop_instance_uid for other in others)}) == 4
    assert compose_rejection_note(results[::-1], NOW).sop_instance_uid == first.sop_instance_uid


def test_the_results_are_left_as_they_are(results):
    before = [ds.to_json() for ds in results]
    note_of(results)
    assert [ds.to_json() for ds in results] == before


def test_what_can_not_be_one_note(results):
    other = copy.deepcopy(results[0])
    other.StudyInstanceUID = "1.2.3"
    for unfit in ([], [results[0], other]):
        with pytest.raises(ValueError, match=r"withdraw|one study"):
            compose_rejection_note(unfit, NOW)


def test_an_analysis_makes_none(results):
    made = compose_results(source(), radiograph(), findings(), kinds=tuple(ResultKind), overlay=SMALL, now=NOW)
    assert {item.kind for item in made} == set(ANALYSIS_KINDS)


def test_it_is_asked_for_by_withdraw_and_not_by_send():
    with pytest.raises(ValidationError, match="withdraw"):
        DestinationSettings(name="p", ae_title="P", host="h", port=1, send=("withdrawal",))
