"""OpenVINO says what torch says: in fp32 nearly to the digit, in int8 nearly; and it keeps to itself."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest

from cxr_node.analyse.networks import load_networks
from cxr_node.analyse.pipeline import analyse, classifier_inputs, segment_batch
from cxr_node.errors import Rejected, SettingsError, WeightsError
from cxr_node.nets.weights import network_description, shipped_folder
from cxr_node.records import LABELS
from cxr_node.settings import InferenceSettings
from tests.small_training import blotches, write_evidence_weights
from training.data.dataset import load_images, read_manifest

pytestmark = pytest.mark.data


def networks(folder=None, **settings):
    return load_networks(InferenceSettings(device="cpu", weights_dir=folder, **settings))


@pytest.fixture(scope="module")
def images(data_folder):
    """Three radiographs of each class that training didn't see."""
    rows = read_manifest(data_folder, "test")
    chosen = [row for label in LABELS for row in [row for row in rows if row.label == label][:3]]
    return list(load_images(data_folder, chosen))


@pytest.fixture(scope="module")
def plain():
    return networks(precision="fp32")


@pytest.fixture(scope="module")
def crops(images, plain):
    lungs, _ = segment_batch(images, plain)
    return [crop.image for crop in classifier_inputs(images, lungs, plain)]


def test_in_fp32_it_says_what_torch_says(images, crops, plain):
    openvino = networks(precision="fp32", engine="openvino")
    lungs, bottlenecks = plain.segment(images)
    found, seen = openvino.segment(images)
    assert found.dtype == bool
    assert (found == lungs).mean() > 0.9999
    assert seen == pytest.approx(bottlenecks, abs=1e-2)
    probabilities, heat = plain.classify(crops)
    chances, relevance = openvino.classify(crops)
    assert chances == pytest.approx(probabilities, abs=1e-3)
    assert relevance == pytest.approx(heat, abs=1e-2)
    assert (chances.dtype, relevance.dtype, relevance.shape) == (probabilities.dtype, heat.dtype, heat.shape)


@pytest.fixture
def with_int8():
    if "int8" not in network_description(shipped_folder(), "cxrnet"):
        pytest.skip("the shipped weights know nothing of int8")


@pytest.mark.usefixtures("with_int8")
def test_in_int8_it_says_nearly_the_same(plain, crops):
    rounded = networks(engine="openvino")  # auto is int8 where the weights allow it
    probabilities, heat = plain.classify(crops)
    chances, relevance = rounded.classify(crops)
    assert (chances.argmax(axis=1) == probabilities.argmax(axis=1)).mean() >= 0.9
    assert 1e-5 < np.abs(chances - probabilities).mean() < 0.03, "nearly the same, but rounded"
    for one, other in zip(heat, relevance, strict=True):
        assert np.abs(one - other).mean() < 0.02
        if (one > 0.5).mean() > 0.05:  # where there is next to no heat, a few pixels are much of it
            assert np.corrcoef(one.ravel(), other.ravel())[0, 1] > 0.95


def test_an_analysis_runs_on_it(images):
    found = [one for one in analyse(images, networks(engine="openvino")) if not isinstance(one, Rejected)]
    assert len(found) >= len(images) - 1
    assert sum(findings.heatmap.max() > 0.05 for findings in found) > len(found) / 2, "of healthy lungs there may be none"
    for findings in found:
        assert not findings.heatmap[~findings.lungs].any()
        assert sum(findings.probabilities.values()) == pytest.approx(1)


@pytest.mark.usefixtures("with_int8")
def test_ranges_of_another_network_are_refused(tmp_path):
    shutil.copytree(shipped_folder(), tmp_path, dirs_exist_ok=True)
    description = json.loads((tmp_path / "cxrnet.json").read_text())
    description["int8"]["activations"][3]["shape"][0] += 1
    (tmp_path / "cxrnet.json").write_text(json.dumps(description))
    with pytest.raises(WeightsError, match="of another network"):
        networks(tmp_path, precision="int8", engine="openvino")
    networks(tmp_path, precision="fp32", engine="openvino")  # doesn't need them


def test_without_the_library_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(SettingsError, match=r"cxr_node\[openvino\]"):
        networks(engine="openvino")


def test_it_reports_to_nobody_that_it_is_used():
    """OpenVINO's Python package reports its import to its makers' statistics, unless that package isn't to be had."""
    probe = (
        "from cxr_node.analyse.openvino_engine import library; library();"
        "import openvino.tools.ovc as ovc; print(type(ovc.telemetry).__module__)"
    )
    said = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True, timeout=600).stdout
    assert said.strip().endswith("telemetry_stub")


def test_answers_from_evidence_are_the_same_in_openvino(tmp_path):
    folder = write_evidence_weights(tmp_path, 64)
    both = [networks(folder, precision="fp32", engine=engine) for engine in ("torch", "openvino")]
    crops = [cv2.resize(blotches(seed), (64, 64)) for seed in range(3)]
    lungs = [np.arange(64 * 64).reshape(64, 64) % 3 > 0] * 3
    one, other = (each.examine(crops, lungs) for each in both)
    assert other.probabilities == pytest.approx(one.probabilities, abs=1e-3)
    assert other.heat == pytest.approx(one.heat, abs=1e-3)
    assert other.doubts == one.doubts
    assert np.ptp(one.probabilities[:, 0]) > 0


_ANALYSE = """
import sys
from pathlib import Path
from cxr_node.analyse.networks import load_networks
from cxr_node.analyse.pipeline import analyse
from cxr_node.demo.phantom import chest_phantom
from cxr_node.prepare.radiograph import prepare_dataset
from cxr_node.prepare.wrap_picture import radiograph_from_image
from cxr_node.settings import InferenceSettings

networks = load_networks(InferenceSettings(device="cpu"), stay=True, all_cores=True, converted=Path(sys.argv[1]))
image = prepare_dataset(radiograph_from_image(chest_phantom(seed=1)))
(found,) = analyse([image.network_image], networks, [False], [image.letters])
letter = found.sides.marker.letter
print(networks.engine.name, found.probabilities["healthy"], found.sides.log_odds, letter, "torch" in sys.modules)
"""


def analysed_in_a_process(kept):
    run = subprocess.run([sys.executable, "-c", _ANALYSE, str(kept)], capture_output=True, text=True, check=True, timeout=600)
    engine, healthy, log_odds, letter, has_torch = run.stdout.split()
    assert (engine, letter, has_torch) == ("openvino", "L", "False"), "the worker needs no torch"
    return float(healthy), float(log_odds)


def test_what_was_converted_is_kept_and_made_anew_where_it_is_damaged(tmp_path):
    first = analysed_in_a_process(tmp_path / "kept")
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "kept").rglob("*.xml")}
    assert len(files) == 3
    with next(path for path in files if path.stem == "unet").open("ab") as file:
        file.write(b" ")
    assert analysed_in_a_process(tmp_path / "kept") == first
    assert all(path.stat().st_mtime_ns > before for path, before in files.items())


def test_weights_that_can_not_be_converted_are_told_of_in_words(tmp_path):
    weights = tmp_path / "weights"
    shutil.copytree(shipped_folder(), weights)
    for path in weights.glob("cxrnet*.safetensors"):
        path.write_bytes(b"no weights")
    with pytest.raises(WeightsError, match="install the weights again"):
        load_networks(InferenceSettings(weights_dir=weights, engine="openvino"), converted=tmp_path / "kept")


def test_the_conversion_ends_with_the_process_that_waits_for_it(tmp_path):
    command = [sys.executable, "-m", "cxr_node.analyse.openvino_convert", str(shipped_folder()), "fp32", str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as conversion:
        assert conversion.stdin is not None
        conversion.stdin.close()
        assert conversion.wait(240) == 1
    assert not (tmp_path / "cxrnet.bin").exists()
