"""Elements of group 0002 inside of a data set, and elements that are there twice: what comes first counts."""

from __future__ import annotations

import struct

import pytest
from pydicom import Dataset, dcmread, uid

from cxr_node.dicom.part10 import read_meta, source_of
from cxr_node.prepare.decode import read_dataset
from cxr_node.receive.intake.header import read_header
from cxr_node.receive.transport.incoming import file_meta
from tests.receiver import encoded, radiograph

SYNTAXES = [
    uid.ExplicitVRLittleEndian,
    uid.ImplicitVRLittleEndian,
    uid.ExplicitVRBigEndian,
    uid.DeflatedExplicitVRLittleEndian,
    uid.JPEG2000Lossless,
]


def embedded(syntax, named):
    """Group 0002 as the data set's own encoding has it: group length, version, and a transfer syntax."""
    order = ">" if syntax == uid.ExplicitVRBigEndian else "<"

    def element(number, vr, value):
        head = struct.pack(f"{order}HH", 2, number)
        if syntax == uid.ImplicitVRLittleEndian:
            return head + struct.pack("<L", len(value)) + value
        if vr == b"OB":
            return head + vr + struct.pack(f"{order}HL", 0, len(value)) + value
        return head + vr + struct.pack(f"{order}H", len(value)) + value

    name = named.encode() + b"\0" * (len(named) % 2)
    body = element(1, b"OB", b"\0\1") + element(0x10, b"UI", name) + element(0x16, b"AE", b"MODALITY")
    return element(0, b"UL", struct.pack(f"{order}L", len(body))) + body


def written(tmp_path, syntax, inside, ds):
    path = tmp_path / "image.dcm"
    meta = file_meta(ds.SOPClassUID, ds.SOPInstanceUID, syntax, "MODALITY1")
    path.write_bytes(meta + inside + encoded(ds, uid.UID(syntax)))
    return path, len(meta)


@pytest.mark.parametrize("named", [uid.JPEGLosslessSV1, uid.ImplicitVRLittleEndian, uid.ExplicitVRBigEndian, "1.2.3"])
@pytest.mark.parametrize("syntax", [one for one in SYNTAXES if one != uid.DeflatedExplicitVRLittleEndian])
def test_the_syntax_in_front_counts(tmp_path, syntax, named):
    ds = radiograph()
    path, offset = written(tmp_path, syntax, embedded(syntax, named), ds)
    found = read_dataset(path)
    assert found.file_meta.TransferSyntaxUID == syntax == read_meta(path).TransferSyntaxUID
    assert (found.SOPInstanceUID, found.PatientID, found.Rows) == (ds.SOPInstanceUID, "P1", 64)
    header, _ = read_header(path, offset, syntax)
    assert (header.sop_instance_uid, header.transfer_syntax_uid) == (ds.SOPInstanceUID, syntax)


def test_explicit_elements_in_an_implicit_data_set_are_passed_over_too(tmp_path):
    ds = radiograph()
    inside = embedded(uid.ExplicitVRLittleEndian, uid.JPEGLosslessSV1)
    path, offset = written(tmp_path, uid.ImplicitVRLittleEndian, inside, ds)
    assert read_dataset(path).PatientID == "P1"
    assert read_header(path, offset, uid.ImplicitVRLittleEndian)[0].patient_id == "P1"
    assert read_header(path, offset, uid.ImplicitVRLittleEndian, path.read_bytes())[0].patient_id == "P1"


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_a_file_without_such_elements_is_read_where_it_lies(tmp_path, syntax):
    path, _ = written(tmp_path, syntax, b"", radiograph())
    assert source_of(path) == path


def test_a_deflated_data_set_that_happens_to_begin_so_is_left_alone(tmp_path):
    path, _ = written(tmp_path, uid.DeflatedExplicitVRLittleEndian, b"\x02\x00", radiograph())
    assert source_of(path) == path


@pytest.mark.parametrize("broken", [b"\2\0\x10\0UI\xff\xff1.2", b"\2\0\1\0OB\0\0\xff\xff\xff\xff", b"\2\0\x10\0"])
def test_a_broken_element_does_not_lead_astray(tmp_path, broken):
    ds = radiograph()
    path = tmp_path / "image.dcm"
    path.write_bytes(file_meta(ds.SOPClassUID, ds.SOPInstanceUID, uid.ExplicitVRLittleEndian, "M") + broken)
    source_of(path)
    assert read_meta(path).TransferSyntaxUID == uid.ExplicitVRLittleEndian


def test_a_data_set_alone_is_read_where_it_lies(tmp_path):
    path = tmp_path / "image.dcm"
    path.write_bytes(encoded(radiograph()))
    assert source_of(path) == path
    assert dcmread(source_of(path), force=True).PatientID == "P1"


@pytest.mark.parametrize("syntax", [one for one in SYNTAXES if not uid.UID(one).is_deflated])
def test_of_an_element_that_is_there_twice_the_first_counts(tmp_path, syntax):
    ds, again = radiograph(PatientName="First^One"), Dataset()
    again.PatientName, again.Rows, again.StudyDescription = "Second^Two", 9, "only once"
    alike = uid.ExplicitVRLittleEndian if uid.UID(syntax).is_encapsulated else syntax
    path, _ = written(tmp_path, syntax, b"", ds)
    path.write_bytes(path.read_bytes() + encoded(again, uid.UID(alike)))
    found = read_dataset(path)
    assert (found.PatientName, found.Rows, found.StudyDescription) == ("First^One", 64, "only once")
    assert found.PixelData == dcmread(written(tmp_path, syntax, b"", ds)[0]).PixelData


def test_of_an_element_that_is_there_twice_the_first_counts_in_a_data_set_alone(tmp_path):
    again = Dataset()
    again.PatientID = "P2"
    path = tmp_path / "image.dcm"
    path.write_bytes(encoded(radiograph()) + encoded(again))
    assert read_dataset(path).PatientID == "P1"
