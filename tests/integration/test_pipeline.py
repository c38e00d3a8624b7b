"""The shipped networks on a drawn chest: the side of the heat, batches, and what is turned away."""

from __future__ import annotations

import dataclasses
import functools

import cv2
import numpy as np
import pytest
from pydicom.dataset import Dataset

from cxr_node.analyse.networks import choose_device, choose_engine, choose_precision, load_networks
from cxr_node.analyse.pipeline import analyse
from cxr_node.errors import Rejected, SettingsError
from cxr_node.prepare.geometry import to_source
from cxr_node.prepare.radiograph import prepare_dataset
from cxr_node.prepare.wrap_picture import radiograph_from_image
from cxr_node.records import LABELS, ZONES, Findings, Marker, Sides, SidesBy
from cxr_node.settings import InferenceSettings
from tests.images import chest_phantom


@pytest.fixture(scope="module")
def networks():
    return load_networks(InferenceSettings(device="cpu"))


@functools.cache
def drawn(finding):
    return chest_phantom(seed=1, finding=finding)


def chest(finding=None, mirrored=False, photometric="MONOCHROME2") -> Dataset:
    pixels = drawn(finding)
    if mirrored:
        pixels = np.ascontiguousarray(pixels[:, ::-1])
    ds = radiograph_from_image(pixels, photometric=photometric)
    if mirrored:
        ds.PatientOrientation = ["R", "F"]
    return ds


def found(ds: Dataset, networks) -> tuple[Findings, np.ndarray]:
    """Findings, and the heat on the source's own pixels."""
    radiograph = prepare_dataset(ds)
    (findings,) = analyse([radiograph.network_image], networks)
    assert isinstance(findings, Findings)
    return findings, to_source(findings.heatmap, radiograph.geometry)


def test_findings_are_whole(networks):
    findings, heat = found(chest(), networks)
    assert list(findings.probabilities) == list(LABELS)
    assert sum(findings.probabilities.values()) == pytest.approx(1)
    assert findings.label == max(findings.probabilities, key=findings.probabilities.__getitem__)
    assert findings.heatmap.shape == findings.lungs.shape == (224, 224)
    assert 0 <= findings.heatmap.min() <= findings.heatmap.max() <= 1
    assert (findings.heatmap[~findings.lungs] == 0).all()
    assert sum(findings.heat_by_lung.values()) == pytest.approx(1)
    assert sum(findings.heat_by_zone.values()) == pytest.approx(1)
    assert not (findings.right_lung & ~findings.lungs).any()
    for side, share in findings.heat_by_lung.items():
        assert share == pytest.approx(sum(findings.heat_by_zone[side, zone] for zone in ZONES))
        assert 0 < findings.zone_rows[side][0] < findings.zone_rows[side][1] < 224
    unsure = max(findings.probabilities.values()) < networks.indeterminate_below[findings.label]
    assert findings.indeterminate_below == networks.indeterminate_below[findings.label]
    assert findings.indeterminate == bool(unsure or findings.doubt)
    assert dataclasses.replace(findings, indeterminate_below=1.0).indeterminate
    assert heat.shape == drawn(None).shape


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("mirrored", [False, True], ids=["upright", "mirrored"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_an_opacity_draws_the_heat_to_its_own_side_of_the_source(networks, side, mirrored, photometric):
    _, clear = found(chest(mirrored=mirrored, photometric=photometric), networks)
    findings, marked = found(chest(side, mirrored=mirrored, photometric=photometric), networks)
    gained = np.maximum(marked - clear, 0)
    middle = gained.shape[1] // 2
    on_left_half = gained[:, :middle].sum() / gained.sum()
    # upright, the patient's right is on the picture's left; mirrored, the other way round
    expected_on_left_half = (side == "right") != mirrored
    assert (on_left_half > 0.6) == expected_on_left_half, on_left_half
    assert (1 - on_left_half > 0.6) != expected_on_left_half, on_left_half
    base, _ = found(chest(mirrored=mirrored, photometric=photometric), networks)
    assert findings.heat_by_lung[side] > base.heat_by_lung[side]


def test_a_batch_says_what_single_images_say(networks):
    images = [prepare_dataset(chest(finding)).network_image for finding in (None, "right", "left")]
    together = analyse(images, networks)
    for image, batched in zip(images, together, strict=True):
        (alone,) = analyse([image], networks)
        assert alone.probabilities == pytest.approx(batched.probabilities, abs=1e-3)
        assert np.abs(alone.heatmap - batched.heatmap).max() < 0.02


def test_one_bad_image_costs_the_others_nothing(networks):
    good = prepare_dataset(chest()).network_image
    noise = np.random.default_rng(0).integers(0, 255, (224, 224)).astype(np.uint8)
    outcomes = analyse([noise, good, np.rot90(good).copy()], networks)
    assert [type(outcome) for outcome in outcomes] == [Rejected, Findings, Rejected]
    assert all(outcome.reasons for outcome in outcomes if isinstance(outcome, Rejected))


def test_a_negative_is_analysed_the_right_way_round_and_says_so(networks):
    good = prepare_dataset(chest("right")).network_image
    upright, negative = analyse([good, 255 - good], networks)
    assert not upright.greys_inverted
    assert negative.greys_inverted
    assert negative.probabilities == pytest.approx(upright.probabilities, abs=1e-4)


def test_an_empty_batch_is_nothing(networks):
    assert analyse([], networks) == []


def test_a_gpu_that_is_not_there_is_named():
    with pytest.raises(SettingsError, match="GPU"):
        choose_device("cuda:63")


def test_precision_follows_the_setting():
    for precision in ("fp32", "bf16"):
        assert choose_precision(InferenceSettings(precision=precision), "cpu", "torch") == precision


def test_int8_is_for_openvino_and_for_weights_that_allow_it():
    cpu, int8 = "cpu", InferenceSettings(precision="int8")
    with pytest.raises(SettingsError, match="needs inference"):
        choose_precision(int8, cpu, "torch", can_int8=True)
    with pytest.raises(SettingsError, match="have no int8 ranges"):
        choose_precision(int8, cpu, "openvino")
    assert choose_precision(InferenceSettings(), cpu, "openvino", can_int8=True) == "int8"
    assert choose_precision(InferenceSettings(), cpu, "openvino") in ("bf16", "fp32")


def test_auto_is_openvino_where_networks_stay_loaded_on_a_cpu_and_it_is_installed(monkeypatch):
    cpu, auto = "cpu", InferenceSettings()
    assert choose_engine(auto, cpu, stays=True) == "openvino"
    assert choose_engine(auto, cpu) == "torch"
    assert choose_engine(InferenceSettings(precision="int8"), cpu) == "openvino"
    assert choose_engine(auto, "cuda", stays=True) == "torch"
    with pytest.raises(SettingsError, match="is for the CPU"):
        choose_engine(InferenceSettings(engine="openvino"), "cuda")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert choose_engine(auto, cpu, stays=True) == "torch"


def sides_of(ds: Dataset, networks) -> Sides:
    radiograph = prepare_dataset(ds)
    (findings,) = analyse([radiograph.network_image], networks, [radiograph.geometry.sides_said], [radiograph.letters])
    return findings.sides


def with_letter(letter: str, at_left: bool, symmetric: bool = False) -> np.ndarray:
    """The phantom with this letter in place of its own; `symmetric`: it is its own mirror image but for the letter."""
    pixels = drawn(None).copy()
    pixels[:130, -160:] = pixels[131, -161]
    if symmetric:
        pixels = ((pixels[:, ::-1].astype(np.uint32) + pixels) // 2).astype(np.uint16)
    written = np.zeros(pixels.shape, np.uint8)
    cv2.putText(written, letter, (60 if at_left else pixels.shape[1] - 130, 110), cv2.FONT_HERSHEY_SIMPLEX, 2.6, 255, 5)
    return np.maximum(pixels, written.astype(np.uint16) * 16)


@pytest.mark.parametrize(("letter", "at_left"), [("R", True), ("L", False)])
def test_a_marker_that_agrees_leaves_the_sides_to_the_header(networks, letter, at_left):
    sides = sides_of(radiograph_from_image(with_letter(letter, at_left)), networks)
    assert (sides.by, sides.marker) == (SidesBy.HEADER, Marker(letter, at_left))


@pytest.mark.parametrize(("letter", "at_left"), [("R", False), ("L", True)])
def test_a_marker_that_contradicts_the_header_leaves_the_sides_unsaid(networks, letter, at_left):
    sides = sides_of(radiograph_from_image(with_letter(letter, at_left)), networks)
    assert sides.by == SidesBy.CONTRADICTED
    assert "header" in sides.marker_against
    assert not sides.known


def test_a_mirrored_picture_whose_header_does_not_know_is_contradicted_by_its_marker(networks):
    mirrored = np.ascontiguousarray(with_letter("R", at_left=True)[:, ::-1])
    sides = sides_of(radiograph_from_image(mirrored), networks)
    assert sides.by == SidesBy.CONTRADICTED
    assert sides.marker == Marker("R", at_left=False, mirrored=True)
    ds = radiograph_from_image(mirrored)
    ds.PatientOrientation = ["R", "F"]
    assert sides_of(ds, networks).by == SidesBy.HEADER


@pytest.mark.parametrize(("letter", "at_left", "mirrored"), [("R", True, False), ("R", False, True)])
def test_a_marker_alone_says_the_sides_where_header_and_heart_do_not(networks, letter, at_left, mirrored):
    ds = radiograph_from_image(with_letter(letter, at_left, symmetric=True))
    ds.PatientOrientation = ""
    sides = sides_of(ds, networks)
    assert (sides.by, sides.mirrored, sides.marker) == (SidesBy.MARKER, mirrored, Marker(letter, at_left))
