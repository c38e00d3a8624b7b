"""Data sets that are not written as they should be: a whole file, or elements out of order."""

from __future__ import annotations

from io import BytesIO

import pydicom
import pytest
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_data_element

from cxr_node.store.files.digests import file_digest
from tests.receiver import Receiver, associated, encoded, radiograph, store

SYNTAXES = (
    uid.ExplicitVRLittleEndian,
    uid.ImplicitVRLittleEndian,
    uid.ExplicitVRBigEndian,
    uid.DeflatedExplicitVRLittleEndian,
    uid.JPEGLSLossless,
)


@pytest.fixture
def receiver(tmp_path):
    with Receiver(tmp_path / "data") as running:
        yield running


def whole_file(ds, syntax, named=None):
    """The data set in a transfer syntax, behind a preamble and file meta information that names one."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = ds.SOPClassUID, ds.SOPInstanceUID
    meta.TransferSyntaxUID = named or syntax
    file = BytesIO()
    pydicom.filewriter.write_file_meta_info(file, meta)
    return bytes(128) + b"DICM" + file.getvalue() + encoded(ds, syntax)


def out_of_order(ds, syntax, *, pixels_first=True):
    """The elements of a data set backwards, or in order but for the UIDs, which come last."""
    ds = pydicom.dcmread(BytesIO(whole_file(ds, syntax)))
    file = DicomBytesIO()
    file.is_implicit_VR, file.is_little_endian = syntax.is_implicit_VR, syntax.is_little_endian
    elements = list(ds)
    order = elements[::-1] if pixels_first else [*elements[3:], *elements[:3]]
    for element in order:
        write_data_element(file, element)
    return file.getvalue()


@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda syntax: syntax.name)
def test_a_whole_file_is_taken_as_the_data_set_in_it(receiver, syntax):
    ds = radiograph()
    with associated(receiver, transfer_syntaxes=(syntax,)) as assoc:
        answers = [store(assoc, content, ds.SOPInstanceUID).Status for content in (whole_file(ds, syntax), encoded(ds, syntax))]
    assert answers == [0x0000, 0x0000]
    (instance,) = receiver.rows("instances")  # the same image as the data set alone
    path = receiver.folder / instance["path"]
    assert path.read_bytes().endswith(encoded(ds, syntax))
    assert path.read_bytes().count(b"DICM") == 1
    assert path.stat().st_size == instance["size_bytes"]
    assert instance["digest"] == file_digest(path)
    assert pydicom.dcmread(path).PatientID == "P1"


def test_a_large_whole_file_is_taken_too(receiver):
    ds = radiograph(PixelData=bytes(range(256)) * 12_000)
    with associated(receiver) as assoc:
        assert store(assoc, whole_file(ds, uid.ExplicitVRLittleEndian), ds.SOPInstanceUID).Status == 0x0000
    (instance,) = receiver.rows("instances")
    path = receiver.folder / instance["path"]
    assert path.read_bytes().endswith(encoded(ds))
    assert (instance["digest"], instance["size_bytes"]) == (file_digest(path), path.stat().st_size)


def test_a_whole_file_of_another_transfer_syntax_is_refused_for_that_reason(receiver):
    ds = radiograph()
    with associated(receiver) as assoc:
        answer = store(assoc, whole_file(ds, uid.ImplicitVRLittleEndian), ds.SOPInstanceUID)
    assert (answer.Status, answer.ErrorComment) == (0xC000, "Not understood: it is a file of another transfer syntax (Implici")
    assert "(Implicit VR Little Endian)" in receiver.rows("audit")[-1]["detail"]
    assert len(receiver.files("unparsed")) == 1


@pytest.mark.parametrize("pixels_first", [True, False])
@pytest.mark.parametrize("syntax", [syntax for syntax in SYNTAXES if not syntax.is_deflated], ids=lambda syntax: syntax.name)
def test_elements_out_of_order_are_sorted(receiver, syntax, pixels_first):
    ds = radiograph(RequestAttributesSequence=[Dataset()])
    ds.RequestAttributesSequence[0].RequestedProcedureID = "R1"
    content = out_of_order(ds, syntax, pixels_first=pixels_first)
    with associated(receiver, transfer_syntaxes=(syntax,)) as assoc:
        assert [store(assoc, content, ds.SOPInstanceUID).Status for _ in range(2)] == [0x0000, 0x0000]
    (instance,) = receiver.rows("instances")
    assert (instance["patient_id"], instance["study_instance_uid"]) == ("P1", ds.StudyInstanceUID)
    path = receiver.folder / instance["path"]
    assert path.read_bytes().endswith(encoded(ds, syntax))
    assert instance["digest"] == file_digest(path)


@pytest.mark.parametrize("syntax", [syntax for syntax in SYNTAXES if not syntax.is_deflated], ids=lambda syntax: syntax.name)
@pytest.mark.parametrize("size_bytes", [512, 200_000])
def test_a_patient_who_is_named_behind_the_pixels_is_read(receiver, syntax, size_bytes):
    ds = radiograph(PatientName="Late^One", AccessionNumber="A9", PixelData=bytes(size_bytes))
    named = ("PatientName", "PatientID", "AccessionNumber")
    late, early = (
        Dataset({element.tag: element for element in ds if (element.keyword in named) is wanted}) for wanted in (True, False)
    )
    content = encoded(early, syntax) + encoded(late, uid.ExplicitVRLittleEndian if syntax.is_encapsulated else syntax)
    with associated(receiver, transfer_syntaxes=(syntax,)) as assoc:
        assert [store(assoc, content, ds.SOPInstanceUID).Status for _ in range(2)] == [0x0000, 0x0000]
    (instance,) = receiver.rows("instances")
    assert (instance["patient_id"], instance["accession_number"]) == ("P1", "A9")
    path = receiver.folder / instance["path"]
    assert path.read_bytes().endswith(encoded(ds, syntax))
    assert instance["digest"] == file_digest(path)


@pytest.mark.parametrize(
    "rest", [b"", bytes(1000), b"\xfc\xff\xfc\xffOB\0\0\x04\0\0\0abcd", b"\xe1\x7f\x10\0LO\x02\0ab", b"\x10\0\x10\0"], ids=len
)
def test_what_may_follow_the_pixels_or_is_no_element_stays(receiver, rest):
    ds = radiograph()
    content = encoded(ds) + rest
    with associated(receiver) as assoc:
        assert store(assoc, content, ds.SOPInstanceUID).Status == 0x0000
    (instance,) = receiver.rows("instances")
    assert (receiver.folder / instance["path"]).read_bytes().endswith(content)


def test_another_patient_behind_the_pixels_is_refused(receiver):
    ds = radiograph()
    late = Dataset()
    late.PatientID = "P2"
    with associated(receiver) as assoc:
        answer = store(assoc, encoded(ds) + encoded(late), ds.SOPInstanceUID)
    assert answer.Status == 0xC000
    assert "twice" in receiver.rows("audit")[-1]["detail"]


@pytest.mark.parametrize("spoil", [lambda content: content + content[-24:], lambda content: content[:-3]])
def test_what_would_lose_something_by_being_sorted_is_not(receiver, spoil):
    ds = radiograph()
    with associated(receiver) as assoc:
        answer = store(assoc, spoil(out_of_order(ds, uid.ExplicitVRLittleEndian)), ds.SOPInstanceUID)
    assert answer.Status == 0xC000
    assert receiver.rows("instances") == []
