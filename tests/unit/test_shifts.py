"""Radiographs made to look otherwise: what the looks do, and what is measured."""

from __future__ import annotations

import json

import numpy as np
import pytest

from cxr_node.records import LABELS
from tests.small_training import blotches, write_set, write_weights
from training.measure.shifts import LOOKS, _figures, shifted


@pytest.mark.parametrize("name", [name for name in LOOKS if name != "as they are"])
def test_a_look_changes_the_picture_and_not_its_form(name):
    image = (blotches(1) // 2 + np.random.default_rng(0).integers(0, 60, (224, 224))).astype(np.uint8)
    seen = LOOKS[name](image)
    assert (seen.shape, seen.dtype) == (image.shape, np.uint8)
    assert np.abs(seen.astype(int) - image).mean() > 1
    assert np.array_equal(seen, LOOKS[name](image)), "each time the same"


def test_frames_keep_the_middle_in_its_place():
    image = np.zeros((224, 224), np.uint8)
    image[110:114, 110:114] = 200
    for name in ("cut to 85 %", "a black rim", "15 % wider", "15 % narrower"):
        rows, columns = np.nonzero(LOOKS[name](image) > 100)
        assert (rows.mean(), columns.mean()) == pytest.approx((111.5, 111.5), abs=0.6)


def test_figures_by_hand():
    healthy, covid = LABELS.index("healthy"), LABELS.index("covid19_pneumonia")
    targets = np.array([healthy, healthy, covid, covid])
    probabilities = np.zeros((4, len(LABELS)))
    probabilities[:, healthy], probabilities[:, covid] = [0.9, 0.4, 0.3, 0.55], [0.1, 0.6, 0.7, 0.45]
    assert _figures(targets, probabilities) == {"auroc": 0.75, "healthy_called_covid": 0.5, "covid_found": 0.5}


def test_each_look_is_measured_and_written_down(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "weights").mkdir()
    data = write_set(tmp_path / "data", ("val",), 2)
    write_weights(tmp_path / "weights", 64)
    figures = shifted(data, "val", tmp_path / "weights", tmp_path / "out")
    assert list(figures) == list(LOOKS)
    written = json.loads((tmp_path / "out" / "shifted.json").read_text())
    assert written["looks"] == figures
    assert written["count"] == 4
    with pytest.raises(ValueError, match="no healthy adults"):
        shifted(data, "test", tmp_path / "weights", tmp_path / "out")
