"""The manifest refuses what would spoil a training, and serving and training see the same image."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from PIL import Image

from cxr_node.errors import Rejected
from cxr_node.prepare.source import read_any
from training.data.dataset import load_prepared, read_manifest

HEADER = "image,mask,fullres,label,population,source,patient_id,view,licence,split"


def write_manifest(folder, *rows: str) -> None:
    (folder / "manifest.csv").write_text("\n".join([HEADER, *rows]) + "\n")


def test_rows_are_read_by_split(tmp_path):
    write_manifest(tmp_path, "a.jpg,a.png,,healthy,adult,s,1,PA,x,train", "b.jpg,,,viral_pneumonia,adult,s,2,,x,val")
    assert [row.image for row in read_manifest(tmp_path)] == ["a.jpg", "b.jpg"]
    (only,) = read_manifest(tmp_path, "val")
    assert (only.image, only.mask, only.class_index, only.patient_id) == ("b.jpg", "", 2, "2")


def test_a_patient_in_two_splits_is_refused(tmp_path):
    write_manifest(tmp_path, "a.jpg,,,healthy,adult,s,1,,x,train", "b.jpg,,,healthy,adult,s,1,,x,test")
    with pytest.raises(ValueError, match="patient 1 of s is in both train and test"):
        read_manifest(tmp_path, "val")


@pytest.mark.parametrize("second", ["b.jpg,,,healthy,adult,other,1,,x,test", "b.jpg,,,healthy,adult,s,1,,x,train"])
def test_the_same_number_elsewhere_or_in_the_same_split_is_none_of_it(tmp_path, second):
    write_manifest(tmp_path, "a.jpg,,,healthy,adult,s,1,,x,train", second)
    assert len(read_manifest(tmp_path)) == 2


def test_an_unknown_label_is_refused(tmp_path):
    write_manifest(tmp_path, "a.jpg,,,tuberculosis,adult,s,1,,x,train")
    with pytest.raises(ValueError, match="'tuberculosis' is not one of healthy"):
        read_manifest(tmp_path)


def chest(rows: int, columns: int) -> np.ndarray:
    """Grey levels with dark lungs, a bright middle and noise, uint8."""
    down, across = np.indices((rows, columns)) / np.array([rows, columns]).reshape(2, 1, 1)
    body = 190 * np.exp(-(((across - 0.52) / 0.42) ** 4))
    lungs = sum(np.exp(-(((across - x) / 0.13) ** 2) - ((down - 0.45) / 0.28) ** 2) for x in (0.27, 0.75))
    noise = np.random.default_rng(rows).normal(0, 5, (rows, columns))
    return np.clip(30 + body - 140 * lungs + noise, 0, 255).astype(np.uint8)


def bordered(image: np.ndarray) -> np.ndarray:
    return np.pad(image, ((30, 10), (0, 40)))


@pytest.mark.parametrize(
    "image",
    [chest(500, 420), chest(180, 160), chest(224, 224), bordered(chest(600, 600)), 255 - chest(400, 300)],
    ids=["larger", "smaller", "of the size", "with borders", "negative"],
)
@pytest.mark.parametrize("colours", ["L", "RGB"])
def test_serving_and_training_prepare_a_picture_to_equal_arrays(tmp_path, image, colours):
    path = tmp_path / "image.png"
    Image.fromarray(image).convert(colours).save(path)
    served = read_any(path).radiograph
    trained = load_prepared(path)
    assert trained.dtype == served.network_image.dtype == np.uint8
    assert np.array_equal(trained, served.network_image)


@pytest.mark.data
def test_serving_and_training_prepare_real_radiographs_to_equal_arrays(data_folder):
    rows = read_manifest(data_folder, "test")[::60]
    assert len(rows) >= 30
    for row in rows:
        path = data_folder / row.image
        assert np.array_equal(load_prepared(path), read_any(path).radiograph.network_image), row.image


def test_what_import_prepared_is_taken_as_it_is(tmp_path):
    image = chest(224, 224)  # its greys are not spread: preparing it once more would change it
    cv2.imwrite(str(tmp_path / "a.network.png"), image)
    cv2.imwrite(str(tmp_path / "a.png"), image)
    assert np.array_equal(load_prepared(tmp_path / "a.network.png"), image)
    assert not np.array_equal(load_prepared(tmp_path / "a.png"), image)


def test_what_was_prepared_at_another_size_is_refused(tmp_path):
    cv2.imwrite(str(tmp_path / "a.network.png"), chest(256, 256))
    with pytest.raises(ValueError, match="import the set again"):
        load_prepared(tmp_path / "a.network.png")


def test_what_is_no_image_is_refused_by_both(tmp_path):
    (tmp_path / "a.png").write_text("nothing")
    with pytest.raises(ValueError, match="not an image"):
        load_prepared(tmp_path / "a.png")
    with pytest.raises(Rejected):
        read_any(tmp_path / "a.png")
