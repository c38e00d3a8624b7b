"""The notices of an image that was not analysed: they say so, and why, and are no result."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pydicom
import pytest
from highdicom.sr import Comprehensive3DSR

from cxr_node.compose import compose_not_analysed, compose_results
from cxr_node.compose.overlay import draw_not_analysed
from cxr_node.records import ResultKind
from tests.compose_inputs import MODEL, NOW, SMALL, findings, radiograph, source

REASONS = ("The image is a lateral view.", "The picture is too small: 40 x 40 pixels, at least 128 a side are needed.")
OVERLAY, REPORT = ResultKind.OVERLAY, ResultKind.REPORT


def composed(ds=None, **options):
    made = compose_not_analysed(ds or source(Rows=300, Columns=200), REASONS, MODEL, now=NOW, **options)
    return {item.kind: pydicom.dcmread(BytesIO(item.content)) for item in made}


def items(ds):
    for item in ds.get("ContentSequence", []):
        yield item
        yield from items(item)


def test_the_report_gives_every_reason_and_no_number():
    ds = composed()[REPORT]
    texts = [item.TextValue for item in items(ds) if item.ValueType == "TEXT"]
    assert [text for text in texts if text in REASONS] == list(REASONS)
    assert not [item for item in items(ds) if item.ValueType == "NUM"]
    (group,) = Comprehensive3DSR.from_dataset(ds).content.get_planar_roi_measurement_groups()
    assert group.finding_type.value == "NOT-ANALYSED"
    assert group.roi.value.max(axis=0).tolist() == [200, 300]


def test_says_so_in_the_list_of_series():
    for ds in composed(kinds=list(ResultKind)).values():
        assert ds.SeriesDescription == "Not analysed: no AI result"


def test_is_another_instance_in_another_series_than_the_result_would_be():
    results = compose_results(source(), radiograph(), findings(), overlay=SMALL, now=NOW)
    notices = composed(source(), kinds=(OVERLAY, REPORT))
    for item in results:
        result = pydicom.dcmread(BytesIO(item.content))
        assert result.SOPInstanceUID != notices[item.kind].SOPInstanceUID
        assert result.SeriesInstanceUID != notices[item.kind].SeriesInstanceUID


def test_makes_the_kinds_that_there_are_of_those_asked_for():
    assert set(composed(kinds=list(ResultKind))) == {OVERLAY, REPORT}
    assert set(composed(kinds=[OVERLAY])) == {OVERLAY}
    assert composed(kinds=[ResultKind.LUNGS]) == {}


@pytest.mark.parametrize("attributes", [{}, {"Rows": 0, "Columns": 0}, {"SeriesInstanceUID": None, "Modality": None}])
def test_a_poor_header_is_enough(attributes):
    assert len(composed(source(**attributes), kinds=(OVERLAY, REPORT))) == 2


def test_the_picture_grows_with_the_reasons_and_shows_them_all():
    few, many = draw_not_analysed(REASONS[:1]), draw_not_analysed([*REASONS, "x" * 300])
    assert many.shape[0] > few.shape[0]
    assert (few.shape[1], few.dtype) == (1024, np.uint8)
    for picture in (few, many):
        assert not picture[-8:].any()
        assert not picture[:, -12:].any()
        last_line = picture[-round(0.075 * 1024) :]
        assert last_line.any()


def test_names_the_report_of_the_image_before_it_was_corrected():
    earlier = composed()[REPORT]
    ds = composed(content_digest="another", predecessor=earlier)[REPORT]
    (study,) = ds.PredecessorDocumentsSequence
    (reference,) = study.ReferencedSeriesSequence[0].ReferencedSOPSequence
    assert reference.ReferencedSOPInstanceUID == earlier.SOPInstanceUID != ds.SOPInstanceUID


@pytest.mark.parametrize(
    "attributes",
    [
        {"SpecificCharacterSet": ["", "ISO 2022 IR 87"], "PatientName": "Yamada^Tarou=山田^太郎=やまだ^たろう"},
        {"SpecificCharacterSet": "ISO_IR 144", "PatientName": "Люкceмбypг^Анна"},
        {"SpecificCharacterSet": "ISO_IR 100", "PatientName": "Müßig^Jörg"},
        {"PatientName": None, "AccessionNumber": None, "StudyDate": None},
    ],
    ids=["Japanese", "Cyrillic", "German", "nobody"],
)
def test_is_of_the_patient_of_the_image(attributes):
    for ds in composed(source(**attributes), kinds=(OVERLAY, REPORT)).values():
        assert ds.PatientName == (attributes["PatientName"] or "")
        assert ds.get("SpecificCharacterSet") == attributes.get("SpecificCharacterSet")
        assert ds.StudyInstanceUID == source().StudyInstanceUID


def test_composing_twice_gives_the_same_bytes():
    twice = [compose_not_analysed(source(), REASONS, MODEL, kinds=(OVERLAY, REPORT), now=NOW) for _ in range(2)]
    assert twice[0] == twice[1]
