"""Weights trained on whole images get whole images, and weights trained on lungs get lungs, whoever runs them."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from cxr_node.analyse.networks import Networks, load_networks
from cxr_node.analyse.pipeline import classify_batch
from cxr_node.settings import InferenceSettings
from tests.small_training import blotches, write_set, write_weights
from training.measure.explain import explain

LUNGS = np.zeros((224, 224), bool)
LUNGS[40:190, 30:110] = LUNGS[40:190, 120:200] = True


@pytest.fixture(scope="module")
def networks(tmp_path_factory) -> dict[bool | None, Networks]:
    """By what their JSON says of `segmented`; None: nothing."""
    loaded = {}
    for segmented in (True, False, None):
        preprocessing = {} if segmented is None else {"segmented": segmented}
        folder = write_weights(tmp_path_factory.mktemp("weights"), 48, **preprocessing)
        loaded[segmented] = load_networks(InferenceSettings(weights_dir=folder, device="cpu", precision="fp32"))
    return loaded


def probabilities(image: np.ndarray, lungs: np.ndarray, networks: Networks) -> list[float]:
    (findings,) = classify_batch([image], [lungs], networks)
    return list(findings.probabilities.values())


@pytest.mark.parametrize("segmented", [True, False, None])
def test_only_a_classifier_of_whole_images_looks_outside_the_lungs(networks, segmented):
    image = blotches(1)
    near = cv2.dilate(LUNGS.astype(np.uint8), np.ones((21, 21))) > 0  # the outline is blurred when the crop is resized
    elsewhere = np.where(near, image, 255 - image).astype(np.uint8)
    one, other = (probabilities(each, LUNGS, networks[segmented]) for each in (image, elsewhere))
    assert (np.abs(np.subtract(one, other)).max() < 1e-6) == (segmented is not False)


@pytest.mark.parametrize("segmented", [True, False])
def test_only_a_classifier_of_lungs_depends_on_where_they_were_found(networks, segmented):
    image = blotches(1)
    one, other = (probabilities(image, lungs, networks[segmented]) for lungs in (LUNGS, np.roll(LUNGS, 20, axis=0)))
    assert (np.abs(np.subtract(one, other)).max() > 1e-6) == segmented


def test_a_classifier_of_whole_images_still_says_how_much_of_its_heat_is_in_the_lungs(networks):
    (findings,) = classify_batch([blotches(1)], [LUNGS], networks[False])
    assert 0 < findings.heat_in_lungs < 0.9
    assert (findings.heatmap[~LUNGS] == 0).all()


def test_explanations_of_whole_images_can_lose_all_of_the_image(tmp_path):
    """The last point of the perturbation curve is an empty image, not one without its lungs."""
    data = write_set(tmp_path, ("test",), 1, labels=("covid19_pneumonia",))
    folder = write_weights(tmp_path / "weights", 32, segmented=False)
    explain(data, "test", folder, tmp_path / "out")
    rows = [line.split(",") for line in (tmp_path / "out" / "curves.csv").read_text().splitlines()[1:]]
    ends = {row[4] for row in rows if (row[2], row[3]) in (("ppc", "1.0"), ("insertion", "0.0"))}
    assert len(ends) == 1
