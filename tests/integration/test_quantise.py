"""`python -m training quantise`: what it writes, and what it takes back."""

from __future__ import annotations

import json

import pytest

from cxr_node.analyse.networks import load_networks
from cxr_node.settings import InferenceSettings
from tests.small_training import write_set, write_weights
from training.fit import quantise

SIZE_PX = 64


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "weights").mkdir()
    write_weights(tmp_path / "weights", SIZE_PX)
    return tmp_path / "weights"


@pytest.fixture
def data(tmp_path):
    (tmp_path / "data").mkdir()
    return write_set(tmp_path / "data", ("train", "val"), 3)


def test_ranges_are_measured_on_train_and_judged_on_val(folder, data):
    before = json.loads((folder / "cxrnet.json").read_text())
    figures = quantise.quantise(data, folder, 5)
    described = json.loads((folder / "cxrnet.json").read_text())
    assert {key: described[key] for key in before} == before
    assert described["int8"]["val"] == figures
    assert described["int8"]["images"] == 5
    assert figures["equal_answers"] >= 0.9
    assert figures["heat_correlation"] > 0.9
    assert all(one["low"] <= one["high"] for one in described["int8"]["activations"])
    load_networks(InferenceSettings(weights_dir=folder, device="cpu", engine="openvino", precision="int8"))


def test_weights_that_lose_by_it_stay_without(folder, data, monkeypatch):
    before = json.loads((folder / "cxrnet.json").read_text())
    monkeypatch.setattr(quantise, "MOST_LOST", -2.0)  # even a gain is too little
    with pytest.raises(ValueError, match="loses too much"):
        quantise.quantise(data, folder, 2)
    assert json.loads((folder / "cxrnet.json").read_text()) == before
