"""`explain` from a data folder to metrics.json, with small networks of fixed weights."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from cxr_node.analyse.networks import load_networks
from cxr_node.records import LABELS
from cxr_node.settings import InferenceSettings
from tests.small_training import HEADER, blotches, write_weights
from training.data.dataset import ManifestRow
from training.measure import explain as explaining
from training.measure.explain import aoppc, explain
from training.measure.explanation_scores import ExplanationCache
from training.measure.explanations import METHODS, explanations
from training.measure.probabilities import probabilities

SIZE = 32


@pytest.fixture(scope="module")
def weights_folder(tmp_path_factory) -> Path:
    return write_weights(tmp_path_factory.mktemp("weights"), SIZE)


@pytest.fixture(scope="module")
def networks(weights_folder):
    return load_networks(InferenceSettings(weights_dir=weights_folder, device="cpu", precision="fp32"))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    lines = [HEADER]
    left_half = np.zeros((224, 224), np.uint8)
    left_half[:, :112] = 255
    cv2.imwrite(str(folder / "mask.png"), left_half)
    for number in range(4):
        cv2.imwrite(str(folder / f"{number}.png"), blotches(number))
        label = LABELS[3] if number < 3 else LABELS[0]
        mask = "mask.png" if number == 0 else ""
        lines.append(f"{number}.png,{mask},,{label},adult,s,{number},,x,test")
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def crops() -> list[np.ndarray]:
    rng = np.random.default_rng(7)
    return [rng.integers(0, 255, (SIZE, SIZE)).astype(np.uint8) for _ in range(2)]


def test_the_saliency_map_is_the_gradient_s_size(networks, crops):
    found = explanations(networks, crops, [3, 0])["saliency"]
    image = networks.torch.to_device(crops).requires_grad_()
    logits = networks.torch.cxrnet.classify(networks.torch.cxrnet.encode(image)[-1])
    (logits[0, 3] + logits[1, 0]).backward()
    assert np.allclose(found, image.grad.abs().squeeze(1).numpy(), rtol=1e-3, atol=1e-7)


def test_grad_cam_weighs_the_deepest_features_by_their_mean_gradients(networks, crops):
    found = explanations(networks, crops, [3, 0])["gradcam"]
    features = networks.torch.cxrnet.encode(networks.torch.to_device(crops))[-1].detach().requires_grad_()
    logits = networks.torch.cxrnet.classify(features)
    (logits[0, 3] + logits[1, 0]).backward()
    coarse = torch.relu((features.grad.mean((2, 3), keepdim=True) * features).sum(1, keepdim=True)).detach()
    expected = torch.nn.functional.interpolate(coarse, (SIZE, SIZE), mode="bilinear").squeeze(1).numpy()
    assert expected.max() > 0
    assert np.allclose(found, expected, rtol=1e-3, atol=1e-6)


def test_cxrnet_s_own_explanation_is_what_the_node_draws(networks, crops):
    found = explanations(networks, crops, [3, 0])
    with networks.torch.running():
        output = networks.torch.cxrnet(networks.torch.to_device(crops))
    assert np.allclose(found["cxrnet"], output.relevance.squeeze(1).numpy(), atol=1e-5)
    assert np.allclose(found["representation"], output.representation.squeeze(1).numpy(), atol=1e-5)
    assert np.allclose(found["input"], np.stack(crops) / 255, atol=1e-6)


KEPT = {"split": "test", "model": {"name": "CXRNet", "version": "t"}, "accuracy": 0.5, "heat_in_lungs": 0.1}


@pytest.fixture(scope="module")
def run(data, weights_folder, tmp_path_factory) -> tuple[dict, Path]:
    """What `explain` returns, and its folder, in which `evaluate` had left KEPT."""
    out = tmp_path_factory.mktemp("run")
    (out / "metrics.json").write_text(json.dumps(KEPT))
    return explain(data, "test", weights_folder, out), out


def test_figures_of_evaluate_are_kept_and_those_of_explain_added(run):
    figures, out = run
    assert json.loads((out / "metrics.json").read_text()) == figures
    assert figures["accuracy"] == KEPT["accuracy"]
    assert set(figures["aoppc"]) == {"cxrnet", "gradcam", "saliency"}
    assert figures["heat_in_lungs"] == 1.0  # everything is lung
    assert figures["explanations"]["images"] == {LABELS[0]: 1, LABELS[1]: 0, LABELS[2]: 0, LABELS[3]: 3}
    methods = figures["explanations"]["methods"]
    assert set(methods) == set(METHODS)
    assert methods["cxrnet"]["aoppc"][LABELS[1]] is None
    assert methods["input"]["input_correlation"] == pytest.approx(1)
    assert figures["explanations"]["annotated_images"] == 1
    assert 0 < methods["cxrnet"]["heat_in_annotated_lungs"] < 1


def test_curves_start_at_the_image_and_hold_the_areas(run):
    figures, out = run
    curves: dict[tuple[str, ...], list[float]] = {}
    with (out / "curves.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            curves.setdefault((row["label"], row["method"], row["curve"]), []).append(float(row["probability"]))
            assert row["images"] == ("3" if row["label"] == LABELS[3] else "1")
    assert len(curves) == 2 * len(METHODS) * 3
    whole = {curves[LABELS[3], method, "ppc"][0] for method in METHODS}
    whole |= {curves[LABELS[3], method, "insertion"][-1] for method in METHODS}
    blank = {curves[LABELS[3], method, "ppc"][-1] for method in METHODS}
    blank |= {curves[LABELS[3], method, "deletion"][-1] for method in METHODS}
    assert len(whole) == len(blank) == 1  # the same for every method
    for method in ("cxrnet", "gradcam", "saliency"):
        assert figures["aoppc"][method] == pytest.approx(aoppc(np.array([curves[LABELS[3], method, "ppc"]])), abs=1e-5)


@pytest.mark.parametrize("name", ["figure-8.png", "figure-13.png", "deletion-insertion.png"])
def test_figures_are_drawn(run, name):
    assert cv2.imread(str(run[1] / name), cv2.IMREAD_GRAYSCALE).std() > 5


def test_equal_images_are_classified_once_and_each_gets_its_own_answer(networks, crops, monkeypatch):
    seen = []
    forward = networks.torch.cxrnet.encode
    monkeypatch.setattr(networks.torch.cxrnet, "encode", lambda image: seen.append(len(image)) or forward(image))
    one, other = crops
    found = probabilities(networks, [one, other, one, one])
    assert sum(seen) == 2
    assert (found[0] == found[2]).all()
    assert (found[0] == found[3]).all()
    assert not np.allclose(found[0], found[1], atol=1e-6)


def test_a_limit_counts_for_each_class(data, weights_folder, tmp_path):
    figures = explain(data, "test", weights_folder, tmp_path, limit=1)
    assert figures["explanations"]["images"] == {LABELS[0]: 1, LABELS[1]: 0, LABELS[2]: 0, LABELS[3]: 1}


@pytest.mark.parametrize("other", [{"split": "val"}, {"model": {"name": "CXRNet", "version": "older"}}])
def test_figures_of_another_split_or_model_are_not_mixed_in(data, weights_folder, tmp_path, other):
    stored = {"split": "test", "model": {"name": "CXRNet", "version": "t"}, **other}
    (tmp_path / "metrics.json").write_text(json.dumps(stored))
    with pytest.raises(ValueError, match="choose another --out"):
        explain(data, "test", weights_folder, tmp_path)
    assert json.loads((tmp_path / "metrics.json").read_text()) == stored


def test_an_interrupted_run_measures_only_what_is_left(run, data, weights_folder, tmp_path, monkeypatch):
    figures, out = run
    lines = (out / "explained.jsonl").read_text().splitlines(keepends=True)
    assert len(lines) == 1 + 4
    (tmp_path / "explained.jsonl").write_text("".join(lines[:-1]) + lines[-1][:40])  # cut while it wrote the last image
    measured = []
    explained = explaining._explained
    monkeypatch.setattr(explaining, "_explained", lambda row, *rest: measured.append(row.image) or explained(row, *rest))
    (tmp_path / "metrics.json").write_text(json.dumps(KEPT))
    resumed = explain(data, "test", weights_folder, tmp_path)
    assert measured == [json.loads(lines[-1])["image"]]
    assert resumed["aoppc"] == pytest.approx(figures["aoppc"], abs=1e-5)
    assert len((tmp_path / "explained.jsonl").read_text().splitlines()) == 1 + 4


def test_what_was_measured_of_other_weights_is_not_taken_up(run, tmp_path):
    (tmp_path / "explained.jsonl").write_text((run[1] / "explained.jsonl").read_text())
    assert ExplanationCache(tmp_path / "explained.jsonl", "another model").images == {}


def test_more_images_are_those_of_fewer_and_others():
    rows = [ManifestRow(f"{label}-{number}", "", label, "adult", "s", "", "test") for label in LABELS for number in range(50)]
    few, more, everything = (explaining._spread(rows, limit) for limit in (5, 20, 0))
    assert set(few) < set(more) < set(everything) == set(rows)
    assert [len(few), len(more)] == [20, 80]
    assert len({int(row.image.rpartition("-")[2]) // 10 for row in more}) == 5  # from all over the manifest
