"""What the receiver reads of a header, in every encoding, and what it makes of broken ones."""

from __future__ import annotations

import tracemalloc
import zlib

import pytest
from pydicom import uid
from pydicom.dataset import Dataset

from cxr_node.errors import Rejected
from cxr_node.receive.intake.header import read_header
from cxr_node.records import MODEL_NAME
from tests.receiver import encoded, radiograph


def write(folder, content, before=b""):
    path = folder / "instance"
    path.write_bytes(before + content)
    return path


@pytest.mark.parametrize(
    "transfer_syntax",
    [
        uid.ExplicitVRLittleEndian,
        uid.ImplicitVRLittleEndian,
        uid.ExplicitVRBigEndian,
        uid.DeflatedExplicitVRLittleEndian,
        uid.JPEGLSLossless,
    ],
    ids=lambda syntax: syntax.name,
)
def test_reads_every_encoding(tmp_path, transfer_syntax):
    ds = radiograph()
    header, is_own = read_header(write(tmp_path, encoded(ds, transfer_syntax), b"meta"), 4, transfer_syntax)
    assert header.sop_instance_uid == ds.SOPInstanceUID
    assert header.sop_class_uid == ds.SOPClassUID
    assert header.study_instance_uid == ds.StudyInstanceUID
    assert header.series_instance_uid == ds.SeriesInstanceUID
    assert (header.patient_id, header.accession_number) == ("P1", "A1")
    assert header.transfer_syntax_uid == transfer_syntax
    assert not is_own


def test_needs_nothing_from_the_pixels_on(tmp_path):
    content = encoded(radiograph())
    pixels = content.index(b"\xe0\x7f\x10\x00")
    header, _ = read_header(write(tmp_path, content[: pixels + 12]), 0, uid.ExplicitVRLittleEndian)
    assert header.patient_id == "P1"


@pytest.mark.parametrize("transfer_syntax", [uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian, uid.ExplicitVRBigEndian])
def test_opens_no_file_whose_beginning_is_at_hand_as_far_as_the_pixels(tmp_path, transfer_syntax):
    content = encoded(radiograph(), transfer_syntax)
    header, _ = read_header(tmp_path / "there is none", 4, transfer_syntax, b"meta" + content[: len(content) - 100])
    assert header == read_header(write(tmp_path, content), 0, transfer_syntax)[0]


def test_reads_the_same_header_wherever_the_beginning_ends(tmp_path):
    """Most of all where that is between two elements, and what is missing is an accession number or a model name."""
    content = encoded(radiograph(ContributingEquipmentSequence=[contribution(MODEL_NAME)]))
    path = write(tmp_path, content)
    expected = read_header(path, 0, uid.ExplicitVRLittleEndian)
    assert expected[1]
    for end in range(1, content.index(b"\xe0\x7f\x10\x00") + 20):
        assert read_header(path, 0, uid.ExplicitVRLittleEndian, content[:end]) == expected, end


def test_a_beginning_makes_a_broken_data_set_no_better(tmp_path):
    content = encoded(radiograph())
    broken = content[:40] + b"\xff" * 8 + content[48:]
    told = []
    for beginning in (b"", broken[:60], broken):
        with pytest.raises(Rejected) as rejected:
            read_header(write(tmp_path, broken), 0, uid.ExplicitVRLittleEndian, beginning)
        told.append(str(rejected.value))
    assert len(set(told)) == 1


@pytest.mark.parametrize(
    ("character_set", "patient_id"), [("ISO_IR 100", "Müller-7"), ("ISO_IR 192", "患者-7"), (["", "ISO 2022 IR 87"], "P-7")]
)
def test_reads_a_patient_id_in_its_character_set(tmp_path, character_set, patient_id):
    ds = radiograph(SpecificCharacterSet=character_set, PatientID=patient_id)
    header, _ = read_header(write(tmp_path, encoded(ds)), 0, uid.ExplicitVRLittleEndian)
    assert header.patient_id == patient_id


def test_does_not_mind_absent_identifiers(tmp_path):
    ds = radiograph()
    del ds.PatientID, ds.AccessionNumber, ds.SpecificCharacterSet
    header, _ = read_header(write(tmp_path, encoded(ds)), 0, uid.ExplicitVRLittleEndian)
    assert (header.patient_id, header.accession_number) == ("", "")


def contribution(model_name):
    item = Dataset()
    item.ManufacturerModelName = model_name
    return item


@pytest.mark.parametrize("transfer_syntax", [uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian])
@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({"ManufacturerModelName": MODEL_NAME}, True),
        ({"ManufacturerModelName": "Detector 3000"}, False),
        ({"ManufacturerModelName": f"{MODEL_NAME} compatible"}, False),
        ({"ContributingEquipmentSequence": [contribution("PACS"), contribution(MODEL_NAME)]}, True),
        ({"ContributingEquipmentSequence": [contribution("PACS")]}, False),
        ({"ContributingEquipmentSequence": []}, False),
    ],
)
def test_knows_what_a_node_like_this_one_made(tmp_path, transfer_syntax, attributes, expected):
    _, is_own = read_header(write(tmp_path, encoded(radiograph(**attributes), transfer_syntax)), 0, transfer_syntax)
    assert is_own is expected


@pytest.mark.parametrize("keyword", ["SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"])
@pytest.mark.parametrize("value", [None, "", "../../x", "1..2"])
@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")
def test_rejects_an_instance_without_its_uids(tmp_path, keyword, value):
    ds = radiograph()
    if value is None:
        del ds[keyword]
    else:
        setattr(ds, keyword, value)
    with pytest.raises(Rejected, match=keyword):
        read_header(write(tmp_path, encoded(ds)), 0, uid.ExplicitVRLittleEndian)


@pytest.mark.parametrize("content", [b"", b"x", b"no data set at all", b"\xff" * 4096, b"\x08\x00\x16\x00UI\xff\xff1.2"])
def test_rejects_what_is_no_data_set(tmp_path, content):
    with pytest.raises(Rejected):
        read_header(write(tmp_path, content), 0, uid.ExplicitVRLittleEndian)


def test_rejects_a_broken_deflated_stream(tmp_path):
    with pytest.raises(Rejected, match="parsed"):
        read_header(write(tmp_path, b"\xff" * 100), 0, uid.DeflatedExplicitVRLittleEndian)


def test_inflates_no_more_than_a_header_needs(tmp_path):
    compressor = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    header = encoded(radiograph())
    header = header[: header.index(b"\xe0\x7f\x10\x00")]
    bomb = compressor.compress(header + b"\xe0\x7f\x10\x00OW\x00\x00\x00\x00\x00\x20")
    bomb += b"".join(compressor.compress(bytes(2**20)) for _ in range(512)) + compressor.flush()
    tracemalloc.start()
    try:
        read, _ = read_header(write(tmp_path, bomb), 0, uid.DeflatedExplicitVRLittleEndian)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert read.patient_id == "P1"
    assert peak < 32 * 2**20, "512 MiB would have been inflated"
