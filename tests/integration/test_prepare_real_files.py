"""Real radiographs, in DICOM and as pictures, and real objects that must be turned away."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from cxr_node.analyse.networks import load_networks
from cxr_node.analyse.pipeline import analyse
from cxr_node.errors import Rejected
from cxr_node.prepare.decode import is_dicom, read_dataset
from cxr_node.prepare.image_file import read_image_file
from cxr_node.prepare.network_image import to_network_image
from cxr_node.prepare.quality import check_header
from cxr_node.prepare.radiograph import prepare_dataset, prepare_pixels
from cxr_node.prepare.wrap_picture import radiograph_from_image
from cxr_node.settings import InferenceSettings

pytestmark = pytest.mark.data

CHESTS = {
    "1.2.276.0.7230010.3.1.4.8323329.6904.1517875201.850819.dcm": (1024, 1024),
    "1.3.6.1.4.1.11129.5.5.110503645592756492463169821050252582267888.dcm": (1024, 1024),
    "966_fixed.dcm": (2128, 2000),
    "Fake_MONOHR1.dcm": (1024, 1024),
    "RG1_J2KI.dcm": (1955, 1841),
    "RG1_JLSN.dcm": (1955, 1841),
    "fodicom-CR-MONO1-10-chest-no-file-meta": (440, 440),
    "gdcm-CR-MONO1-10-chest.dcm": (440, 440),
}

REJECTS = {
    "broken-jpeg2000-codestream.dcm": "damaged",
    "dog-thorax-dx.dcm": "animal",
    "hip-jpeg-lossless.dcm": "HIP",
    "hip-jpegls.dcm": "HIP",
    "tibia-jpeg2000.dcm": "EXTREMITY",
}


def prepared(path):
    assert is_dicom(path)
    ds = read_dataset(path)
    check_header(ds)
    return prepare_dataset(ds)


@pytest.mark.parametrize(("name", "shape"), CHESTS.items(), ids=lambda value: str(value)[:20])
def test_prepares_a_real_chest_radiograph(name, shape, data_folder):
    radiograph = prepared(data_folder / "dicom" / "chest" / name)
    assert radiograph.pixels.shape == (radiograph.geometry.rows, radiograph.geometry.columns) == shape
    assert radiograph.pixels.dtype == np.float32
    assert 0 <= radiograph.pixels.min() < 0.2
    assert 0.8 < radiograph.pixels.max() <= 1
    image = radiograph.network_image
    lungs_px = (image[60:130, 40:80].mean() + image[60:130, 148:186].mean()) / 2
    if name != "Fake_MONOHR1.dcm":  # its header says the wrong PhotometricInterpretation
        assert image[100:190, 95:138].mean() > lungs_px + 40, "lungs dark, heart bright"


def test_all_files_are_in_the_tables(data_folder):
    assert {path.name for path in (data_folder / "dicom" / "chest").iterdir()} == set(CHESTS)
    assert {path.name for path in (data_folder / "dicom" / "reject").iterdir()} == set(REJECTS)


@pytest.mark.parametrize(("name", "reason"), REJECTS.items(), ids=REJECTS)
def test_turns_away_what_is_no_chest_radiograph(name, reason, data_folder):
    with pytest.raises(Rejected, match=reason):
        prepared(data_folder / "dicom" / "reject" / name)


def test_a_header_that_says_the_wrong_photometric_interpretation_is_followed_here_and_overruled_by_the_networks(data_folder):
    """The one file is a copy of the other whose header was changed to MONOCHROME1, and its pixels not."""
    right = prepared(data_folder / "dicom" / "chest" / "1.2.276.0.7230010.3.1.4.8323329.6904.1517875201.850819.dcm")
    wrong = prepared(data_folder / "dicom" / "chest" / "Fake_MONOHR1.dcm")
    assert np.abs(right.network_image.astype(int) - (255 - wrong.network_image)).max() <= 2
    one, other = analyse([right.network_image, wrong.network_image], load_networks(InferenceSettings(device="cpu")))
    assert (one.greys_inverted, other.greys_inverted) == (False, True)
    assert other.probabilities == pytest.approx(one.probabilities, abs=0.02)


def test_a_negative_that_the_gate_would_let_pass_is_noticed(data_folder):
    """This one's negative has a score of 0.2."""
    image = cv2.imread(str(data_folder / "images" / "kermany" / "kermany-63fada54c026.jpg"), cv2.IMREAD_GRAYSCALE)
    positive = to_network_image(image.astype(np.float32) / 255)
    one, other = analyse([positive, np.asarray(255 - positive, np.uint8)], load_networks(InferenceSettings(device="cpu")))
    assert (one.greys_inverted, other.greys_inverted) == (False, True)


def test_a_negative_that_is_turned_away_is_named(data_folder):
    image = cv2.imread(str(data_folder / "images" / "armiro" / "armiro-51420f48384d.jpg"), cv2.IMREAD_GRAYSCALE)
    positive = to_network_image(image.astype(np.float32) / 255)
    one, other = analyse([positive, np.asarray(255 - positive, np.uint8)], load_networks(InferenceSettings(device="cpu")))
    assert not one.greys_inverted
    assert "greys look inverted" in other.reasons[0]


def test_one_image_compressed_in_two_ways_looks_the_same(data_folder):
    lossless, lossy = (prepared(data_folder / "dicom" / "chest" / name) for name in ("RG1_JLSN.dcm", "RG1_J2KI.dcm"))
    assert np.abs(lossless.pixels - lossy.pixels).mean() < 0.005


def test_one_image_with_and_without_file_meta_information_looks_the_same(data_folder):
    names = ("gdcm-CR-MONO1-10-chest.dcm", "fodicom-CR-MONO1-10-chest-no-file-meta")
    one, other = (prepared(data_folder / "dicom" / "chest" / name) for name in names)
    assert np.array_equal(one.pixels, other.pixels)


def test_pictures_are_seen_as_in_training(data_folder):
    for path in sorted((data_folder / "images" / "kermany").iterdir())[:5]:
        grey = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        trained = to_network_image(grey.astype(np.float32) / 255)
        served = prepare_pixels(read_image_file(path)).network_image
        assert np.abs(served.astype(int) - trained).max() <= 2


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_a_picture_wrapped_as_dicom_is_seen_as_the_picture(photometric, data_folder):
    path = sorted((data_folder / "fullres").iterdir())[0]
    picture = prepare_pixels(read_image_file(path))
    wrapped = prepare_dataset(radiograph_from_image(path, photometric=photometric))
    assert np.abs(wrapped.network_image.astype(int) - picture.network_image).max() <= 1
