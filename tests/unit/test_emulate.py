"""What the emulated modality makes is valid, labelled, and shows the picture it was made of."""

from __future__ import annotations

import subprocess
from datetime import datetime

import numpy as np
import pytest
from PIL import Image
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLSLossless,
)

from cxr_node.errors import Rejected
from cxr_node.prepare.decode import decode_pixels, read_dataset
from cxr_node.prepare.quality import check_header
from cxr_node.prepare.radiograph import prepare_dataset
from cxr_node.prepare.wrap_picture import TRANSFER_SYNTAXES, radiograph_from_image
from tests.images import ramp, save

LOSSLESS = [syntax for syntax in TRANSFER_SYNTAXES if syntax != JPEGBaseline8Bit]


@pytest.mark.parametrize("bits_stored", [8, 10, 12, 16])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("syntax", LOSSLESS, ids=lambda uid: uid.keyword)
def test_the_picture_comes_back(syntax, photometric, bits_stored, tmp_path):
    picture = ramp(151, 203)
    ds = radiograph_from_image(picture, photometric=photometric, bits_stored=bits_stored, transfer_syntax=syntax)
    ds = read_dataset(save(ds, tmp_path / "image.dcm"))
    check_header(ds)
    np.testing.assert_allclose(prepare_dataset(ds).pixels, picture / 255, atol=0.6 / (2**bits_stored - 1))
    assert ds.file_meta.TransferSyntaxUID == syntax


def test_monochrome1_holds_the_inverted_values():
    picture = ramp()
    one = radiograph_from_image(picture, photometric="MONOCHROME1", bits_stored=8)
    assert np.array_equal(decode_pixels(one), 255 - picture)


def test_values_of_12_bits_stay_what_they_are():
    picture = (ramp(dtype=np.uint16) * 16).astype(np.uint16)
    assert np.array_equal(decode_pixels(radiograph_from_image(picture)), picture)


@pytest.mark.peer
@pytest.mark.parametrize("modality", ["DX", "CR"])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize(
    ("syntax", "bits_stored"),
    [*((syntax, 12) for syntax in LOSSLESS if syntax != DeflatedExplicitVRLittleEndian), (JPEGBaseline8Bit, 8)],
)
def test_a_validator_finds_no_fault(modality, photometric, syntax, bits_stored, peer, tmp_path):
    Image.fromarray(ramp()).save(tmp_path / "image.jpg")
    ds = radiograph_from_image(
        tmp_path / "image.jpg", modality=modality, photometric=photometric, transfer_syntax=syntax, bits_stored=bits_stored
    )
    path = save(ds, tmp_path / "image.dcm")
    assert faults(peer("dciodvfy"), path) == []
    del ds.StudyInstanceUID  # a negative control
    ds.save_as(path)
    assert faults(peer("dciodvfy"), path)


def faults(dciodvfy, path):
    verdict = subprocess.run([dciodvfy, path], capture_output=True, text=True, check=False)
    return [line for line in (verdict.stdout + verdict.stderr).splitlines() if line.startswith(("Error", "Warning"))]


def test_the_patient_is_labelled_as_emulated():
    ds = radiograph_from_image(ramp())
    assert "EMULATED" in str(ds.PatientName)
    assert ds.PatientID.startswith("EMULATED")
    assert "not a real patient" in ds.PatientComments


def test_given_attributes_are_kept():
    ds = radiograph_from_image(
        ramp(),
        patient_name="DOE^JANE",
        patient_id="4711",
        accession_number="A1",
        view_position="AP",
        study_instance_uid="1.2.3",
        series_instance_uid="1.2.3.4",
        taken_at=datetime(2024, 5, 6, 7, 8, 9),
    )
    assert (ds.PatientName, ds.PatientID, ds.AccessionNumber, ds.ViewPosition) == ("DOE^JANE", "4711", "A1", "AP")
    assert (ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.StudyDate, ds.StudyTime) == ("1.2.3", "1.2.3.4", "20240506", "070809")


def test_a_seed_makes_the_same_object_again(tmp_path):
    paths = [save(radiograph_from_image(ramp(), uid_seed="one"), tmp_path / f"{number}.dcm") for number in range(2)]
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_other_seeds_and_no_seed_make_other_objects():
    made = [radiograph_from_image(ramp(), uid_seed=seed) for seed in ("one", "two", "", "")]
    for keyword in ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID"):
        assert len({ds[keyword].value for ds in made}) == 4


def test_a_jpeg_is_marked_as_lossy_and_a_png_is_not(tmp_path):
    for kind, lossy in (("jpg", "01"), ("png", "00")):
        Image.fromarray(ramp()).save(tmp_path / f"image.{kind}")
        assert radiograph_from_image(tmp_path / f"image.{kind}").LossyImageCompression == lossy
    twice = radiograph_from_image(tmp_path / "image.jpg", transfer_syntax=JPEGBaseline8Bit, bits_stored=8)
    assert list(twice.LossyImageCompressionMethod) == ["ISO_10918_1", "ISO_10918_1"]


@pytest.mark.parametrize(
    "arguments",
    [
        {"bits_stored": 7},
        {"bits_stored": 17},
        {"modality": "CT"},
        {"photometric": "RGB"},
        {"view_position": "LL"},
        {"transfer_syntax": JPEGExtended12Bit},
        {"transfer_syntax": JPEGBaseline8Bit, "bits_stored": 12},
    ],
    ids=str,
)
def test_arguments_out_of_range_are_refused(arguments):
    with pytest.raises(ValueError, match=r"must be|can't be written|no emulated"):
        radiograph_from_image(ramp(), **arguments)


@pytest.mark.parametrize("picture", [np.zeros((5, 5, 3), np.uint8), np.zeros((5, 5), np.float32)])
def test_pixels_of_another_kind_are_refused(picture):
    with pytest.raises(ValueError, match="uint8 or uint16"):
        radiograph_from_image(picture)


def test_a_file_that_is_no_picture_is_turned_away(tmp_path):
    (tmp_path / "image.png").write_text("no picture")
    with pytest.raises(Rejected):
        radiograph_from_image(tmp_path / "image.png")


def test_the_time_is_now_without_a_seed():
    before = datetime.now()
    ds = radiograph_from_image(ramp(), transfer_syntax=ExplicitVRLittleEndian)
    assert before.strftime("%Y%m%d%H%M%S") <= ds.StudyDate + ds.StudyTime <= datetime.now().strftime("%Y%m%d%H%M%S")


def test_an_odd_number_of_bytes_is_padded():
    ds = radiograph_from_image(ramp(151, 203), bits_stored=8)
    assert len(ds.PixelData) == 151 * 203 + 1
    assert len(radiograph_from_image(ramp(151, 203), transfer_syntax=JPEGLSLossless).PixelData) % 2 == 0
