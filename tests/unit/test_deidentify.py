"""Objects without patient data: nothing of the patient, the place or the time is left in any kind of them."""

from __future__ import annotations

from dataclasses import replace
from io import BytesIO

import numpy as np
import pydicom
import pytest
from pydicom.sequence import Sequence

from cxr_node.compose import compose_results
from cxr_node.compose.deidentify import DUMMY_TIME, deidentified, shows_text
from cxr_node.prepare.render import render
from cxr_node.records import ANALYSIS_KINDS, ResultKind
from tests.compose_inputs import SMALL, findings, radiograph, source
from tests.images import lut_item

PRIVATE = {
    "PatientName": "Secretname^Given",
    "PatientID": "SECRET-ID",
    "PatientBirthDate": "19411231",
    "PatientAge": "084Y",
    "PatientComments": "Secret comment",
    "AccessionNumber": "SECRETACC",
    "StudyID": "SECRETSTUDY",
    "StudyDate": "20250607",
    "StudyTime": "112233",
    "StudyDescription": "Secret description",
    "ReferringPhysicianName": "Secretdoctor^Given",
    "InstitutionName": "Secret hospital",
    "StationName": "SECRETSTATION",
    "DeviceSerialNumber": "SECRETSERIAL",
    "IssuerOfPatientID": "SECRETISSUER",
    "ClinicalTrialSubjectID": "SECRETSUBJECT",
    "StudyInstanceUID": "1.2.826.0.1.3680043.8.498.77771",
    "SeriesInstanceUID": "1.2.826.0.1.3680043.8.498.77772",
    "SOPInstanceUID": "1.2.826.0.1.3680043.8.498.77773",
}


def identified():
    ds = source(**PRIVATE, Rows=640, Columns=512, WindowCenter=1000, WindowWidth=500)
    item = pydicom.Dataset()
    item.PatientID, item.TypeOfPatientID = "SECRETOTHER", "TEXT"
    ds.OtherPatientIDsSequence = Sequence([item])
    ds.VOILUTSequence = [lut_item(0, 8, [0, 255])]
    ds.VOILUTSequence[0].LUTExplanation = "SECRETTABLE"
    block = ds.private_block(0x0029, "SECRETMAKER", create=True)
    block.add_new(1, "LO", "SECRETPRIVATE")
    return ds


@pytest.mark.parametrize("kind", ANALYSIS_KINDS)
def test_nothing_of_the_source_s_identity_is_in_the_bytes(kind):
    (item,) = compose_results(deidentified(identified()), radiograph(), findings(), kinds=[kind], overlay=SMALL, now=DUMMY_TIME)
    for value in (*PRIVATE.values(), "SECRET", "Secret", "secret"):
        assert value.encode() not in item.content


def test_without_it_the_same_values_are_in_the_bytes():
    """The negative control."""
    (item,) = compose_results(identified(), radiograph(), findings(), kinds=[ResultKind.REPORT], now=DUMMY_TIME)
    for keyword in ("PatientName", "PatientID", "AccessionNumber", "StudyDate", "StudyInstanceUID", "SOPInstanceUID"):
        assert PRIVATE[keyword].encode() in item.content


def test_the_presentation_state_keeps_the_shutter():
    """What it hides may name the patient."""
    edges = {"ShutterLeftVerticalEdge": 21, "ShutterRightVerticalEdge": 480}
    edges |= {"ShutterUpperHorizontalEdge": 11, "ShutterLowerHorizontalEdge": 600}
    given = source(**PRIVATE, ShutterShape="RECTANGULAR", **edges)
    shown = radiograph()
    shown = replace(shown, greys=render(given, (shown.pixels * 4095).astype(np.uint16))[1])
    (item,) = compose_results(deidentified(given), shown, findings(), kinds=[ResultKind.PRESENTATION], now=DUMMY_TIME)
    ds = pydicom.dcmread(BytesIO(item.content))
    assert ds.ShutterShape == "RECTANGULAR"
    assert {keyword: ds[keyword].value for keyword in edges} == edges


def test_the_objects_of_one_study_still_belong_together():
    made = compose_results(
        deidentified(identified()), radiograph(), findings(), kinds=list(ResultKind), overlay=SMALL, now=DUMMY_TIME
    )
    read = [pydicom.dcmread(BytesIO(item.content)) for item in made]
    assert len({ds.StudyInstanceUID for ds in read}) == 1
    assert len({ds.PatientID for ds in read}) == 1
    for ds in read:
        assert ds.PatientIdentityRemoved == "YES"
        assert (ds.StudyDate, ds.StudyTime, ds.PatientBirthDate) == ("20000101", "000000", "")
        assert ds.DeidentificationMethodCodeSequence[0].CodeValue == "113100"
        assert ds.ContentDate == "20000101" if "ContentDate" in ds else ds.PresentationCreationDate == "20000101"


def test_two_images_of_one_study_stay_in_one_study_and_two_patients_are_two():
    first, second = deidentified(identified()), identified()
    second.SOPInstanceUID = "1.2.3.4"
    assert deidentified(second).StudyInstanceUID == first.StudyInstanceUID
    assert deidentified(second).SOPInstanceUID != first.SOPInstanceUID
    assert deidentified(source()).PatientID != first.PatientID


def test_keeps_what_says_how_the_image_lies_and_looks():
    given, twin = identified(), deidentified(identified())
    for keyword in ("PatientOrientation", "Rows", "Columns", "WindowCenter", "WindowWidth", "Modality", "SOPClassUID"):
        assert twin[keyword].value == given[keyword].value
    assert list(twin.VOILUTSequence[0].LUTData) == [0, 255]


def test_leaves_the_source_as_it_was():
    given = identified()
    deidentified(given)
    assert given == identified()


@pytest.mark.parametrize(("value", "shown"), [("YES", True), ("NO", False), (None, False), ("", False)])
def test_knows_a_picture_with_text_burned_in(value, shown):
    assert shows_text(source(BurnedInAnnotation=value)) is shown
