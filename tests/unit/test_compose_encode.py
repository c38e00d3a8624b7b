"""The bytes of composed objects are those that pydicom's writer makes of the same data sets."""

from __future__ import annotations

import warnings
from io import BytesIO

import pydicom
import pytest
from pydicom import Dataset, Sequence
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.uid import ExplicitVRLittleEndian

from cxr_node import compose
from cxr_node.compose.encode import encode
from cxr_node.records import ResultKind
from tests.compose_inputs import NOW, SMALL, findings, radiograph, source

CHARACTER_SETS = {
    "none": {},
    "Latin": {"SpecificCharacterSet": "ISO_IR 100", "PatientName": "Müßig^Jörg", "StudyDescription": "Röntgen Thorax"},
    "Japanese": {"SpecificCharacterSet": ["", "ISO 2022 IR 87"], "PatientName": "Yamada^Tarou=山田^太郎=やまだ^たろう"},
    "beyond its own": {"SpecificCharacterSet": "ISO_IR 100", "PatientName": "山田^太郎"},
}


def by_pydicom(ds):
    buffer = DicomBytesIO()
    buffer.is_little_endian, buffer.is_implicit_VR = True, False
    write_dataset(buffer, ds)
    return buffer.getvalue()


@pytest.mark.parametrize("attributes", CHARACTER_SETS.values(), ids=CHARACTER_SETS)
def test_every_kind_of_object_is_encoded_as_pydicom_does(monkeypatch, attributes):
    made = {}
    to_composed = compose.to_composed

    def watched(ds, kind):
        made[kind] = ds, to_composed(ds, kind)
        return made[kind][1]

    monkeypatch.setattr(compose, "to_composed", watched)
    arguments = (source(**attributes), radiograph(), findings())
    compose.compose_results(*arguments, kinds=tuple(ResultKind), overlay=SMALL, now=NOW)
    assert len(made) >= 6
    for ds, composed in made.values():
        file = BytesIO()
        ds.save_as(file, enforce_file_format=True)
        assert composed.content == file.getvalue()


def read_item():
    """An item as it comes from a source, with lengths that are undefined."""
    inner, outer = Dataset(), Dataset()
    inner.CodeValue, inner.CodeMeaning = "1", "Größe"
    inner.is_undefined_length_sequence_item = True
    outer.SpecificCharacterSet = "ISO_IR 100"
    outer.PurposeOfReferenceCodeSequence = [inner]
    outer["PurposeOfReferenceCodeSequence"].is_undefined_length = True
    file = BytesIO()
    outer.save_as(file, implicit_vr=False, little_endian=True)
    return pydicom.dcmread(BytesIO(file.getvalue()), force=True)


def odd(name):
    ds = Dataset()
    ds.SpecificCharacterSet = "ISO_IR 192"
    match name:
        case "empty":
            ds.PatientName, ds.Rows, ds.PatientOrientation, ds.ProcedureCodeSequence = None, None, "", []
        case "an item that was read":
            ds.ProcedureCodeSequence = [read_item()]
        case "an item of undefined length":
            item = Dataset()
            item.CodeMeaning, item.is_undefined_length_sequence_item = "Größe", True
            ds.ProcedureCodeSequence = [item]
        case "a sequence of undefined length":
            ds.ProcedureCodeSequence = Sequence([Dataset()])
            ds["ProcedureCodeSequence"].is_undefined_length = True
        case "an ambiguous VR":
            ds.PixelRepresentation, ds.SmallestImagePixelValue = 1, -3
        case "tags":
            ds.FrameIncrementPointer, ds.DimensionIndexPointer = [0x00181063, 0x00181065], 0x0062000B
        case "too long":
            ds.add_new("LUTData", "US", [7] * 40_000)
        case "an item with its own character set":
            item = Dataset()
            item.SpecificCharacterSet, item.CodeMeaning = "ISO_IR 100", "Größe"
            ds.ProcedureCodeSequence = [item]
        case "numbers":
            ds.Rows, ds.GraphicData, ds.FloatingPointValue, ds.PatientWeight = 7, [1.5, 2.5], 0.1, "70.5"
        case _:
            raise AssertionError(name)
    return ds


@pytest.mark.parametrize(
    "name",
    [
        *("empty", "an item that was read", "an item of undefined length", "a sequence of undefined length", "an ambiguous VR"),
        *("tags", "too long", "an item with its own character set", "numbers"),
    ],
)
def test_what_is_not_ordinary_is_encoded_as_pydicom_does(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # what is too long for its VR is written as UN
        expected, given = by_pydicom(odd(name)), encode(odd(name))
    assert given == expected
    assert len(given) > 20


def test_an_object_can_be_read_back():
    (composed,) = compose.compose_results(
        *(source(), radiograph(), findings()), kinds=(ResultKind.REPORT,), overlay=SMALL, now=NOW
    )
    ds = pydicom.dcmread(BytesIO(composed.content))
    assert ds.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
    assert str(ds.SOPInstanceUID) == ds.file_meta.MediaStorageSOPInstanceUID == composed.sop_instance_uid
