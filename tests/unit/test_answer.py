"""From evidence to the answer, and why an image gets none."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from cxr_node.analyse.answer import OTHER, UNLIKE, AnswerRule, doubt, heat, pooled, probabilities
from cxr_node.analyse.enhance import classifier_input
from cxr_node.analyse.networks import Networks, load_networks
from cxr_node.analyse.pipeline import classify_batch
from cxr_node.errors import WeightsError
from cxr_node.nets import weights
from cxr_node.nets.cxrnet import CXRNet, pooled_evidence
from cxr_node.records import Model
from cxr_node.settings import InferenceSettings
from tests.compose_inputs import findings
from tests.small_training import blotches, write_evidence_weights

RULE = AnswerRule(slope=2.0, intercept=1.0, temperature=2.0, other_above=3.0, unlike_above=5.0)


def test_the_strongest_part_of_the_lungs_counts_and_nothing_outside():
    evidence = np.full((1, 40, 40), -4.0, np.float32)
    lungs = np.zeros((1, 40, 40), bool)
    lungs[0, :20, :20] = True  # 400 px, of which 60 count
    evidence[0, :3, :20] = 2.0  # exactly these 60
    evidence[0, 30:] = 50.0
    assert pooled(evidence, lungs) == pytest.approx([2.0])


def test_without_lungs_all_of_the_image_counts():
    evidence = np.full((1, 20, 20), -1.0, np.float32)
    evidence[0, 0] = 3.0  # 20 of the 60 px that count
    assert pooled(evidence, np.zeros((1, 20, 20), bool)) == pytest.approx([(20 * 3 - 40) / 60])


def test_serving_pools_as_training_does():
    rng = np.random.default_rng(1)
    evidence = rng.normal(size=(3, 32, 32)).astype(np.float32)
    lungs = rng.random((3, 32, 32)) < [[[0.5]], [[0.1]], [[0.0]]]
    of_training = pooled_evidence(torch.from_numpy(evidence)[:, None], torch.from_numpy(lungs)[:, None])
    assert pooled(evidence, lungs) == pytest.approx(of_training.numpy(), abs=1e-5)


def test_probabilities_are_those_of_pneumonia_and_of_its_kinds():
    (found,) = probabilities(np.array([0.5]), np.array([[0.0, 0.0, 2.0]], np.float32), RULE)
    ill = 1 / (1 + np.exp(-2.0))
    covid = np.e / (2 + np.e)
    assert found == pytest.approx([1 - ill, ill * (1 - covid) / 2, ill * (1 - covid) / 2, ill * covid])
    assert found.sum() == pytest.approx(1)


def test_evidence_without_end_is_no_overflow():
    found = probabilities(np.array([-1e6, 1e6]), np.zeros((2, 3), np.float32), RULE)
    assert np.isfinite(found).all()
    assert found[0, 0] == pytest.approx(1)
    assert found[1, 0] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    ("other", "distance", "reason"),
    [(0.0, 1.0, ""), (3.1, 1.0, OTHER), (0.0, 5.1, UNLIKE), (9.0, 9.0, UNLIKE), (3.0, 5.0, "")],
)
def test_says_why_nothing_is_answered(other, distance, reason):
    assert doubt(other, distance, RULE) == reason


def test_a_doubt_outweighs_a_sure_class():
    chances = {"healthy": 0.01, "bacterial_pneumonia": 0.01, "viral_pneumonia": 0.01, "covid19_pneumonia": 0.97}
    sure = findings(label="covid19_pneumonia", probabilities=chances)
    assert (sure.indeterminate, sure.indeterminate_reason) == (False, "")
    doubted = dataclasses.replace(sure, doubt=OTHER)
    assert (doubted.indeterminate, doubted.indeterminate_reason) == (True, OTHER)
    assert dataclasses.replace(sure, indeterminate_below=0.98).indeterminate_reason == "no class is probable enough"


@pytest.mark.parametrize(("second", "reason"), [(0.31, "two classes are close"), (0.29, "no class is probable enough")])
def test_a_class_below_its_limit_is_close_to_another_or_improbable_among_all(second, reason):
    chances = {"healthy": 0.6, "bacterial_pneumonia": second, "viral_pneumonia": 0.4 - second, "covid19_pneumonia": 0.0}
    found = findings(label="healthy", probabilities=chances, indeterminate_below=0.61)
    assert found.indeterminate_reason == reason
    assert dataclasses.replace(found, indeterminate_below=0.6).answer == "healthy"


def test_heat_keeps_the_order_of_the_evidence_and_rises_as_the_rule_says():
    evidence = np.array([-40.0, -3.0, -0.4, 0.6, 40.0], np.float32)
    relevance = 1 / (1 + np.exp(-evidence))
    steep = heat(relevance, dataclasses.replace(RULE, heat_slope=2.0, heat_midpoint=-0.4))
    assert steep[1:4] == pytest.approx(1 / (1 + np.exp([5.2, 0.0, -2.0])), abs=1e-5)
    assert (np.diff(steep) > 0).all()
    assert steep.dtype == np.float32
    assert 0 <= steep.min() < steep.max() <= 1
    assert heat(relevance, RULE) == pytest.approx(relevance, abs=1e-5)


def test_a_mask_that_leaves_a_little_everywhere_draws_no_heat_there():
    given = np.array([0.0, 0.04, 0.06, 1.0], np.float32)
    plain = Networks(None, Model("CXRNet", "t", ""), 224, True, 1.0, None)
    assert plain.heat_of(given).tolist() == pytest.approx([0, 0, 0.06, 1])
    assert (dataclasses.replace(plain, answer=RULE).heat_of(given) > 0).all()


@pytest.mark.parametrize("key", ["slope", "intercept", "temperature", "other_above", "unlike_above"])
def test_a_rule_that_lacks_a_number_is_refused(key):
    answer = dataclasses.asdict(RULE)
    assert AnswerRule.of({"name": "CXRNet", "answer": answer}) == RULE
    del answer[key]
    with pytest.raises(WeightsError, match=key):
        AnswerRule.of({"name": "CXRNet", "answer": answer})


@pytest.fixture
def networks(tmp_path):
    return load_networks(InferenceSettings(weights_dir=write_evidence_weights(tmp_path, 64), device="cpu", precision="fp32"))


def test_networks_answer_from_what_their_decoder_draws(networks):
    image, lungs = blotches(1), np.zeros((224, 224), bool)
    lungs[40:180, 30:100] = lungs[40:180, 124:194] = True
    crop = classifier_input(image, lungs, 64, segmented=False)
    examined = networks.examine([crop.image], [crop.mask])
    with torch.inference_mode():
        seen = networks.torch.cxrnet.examine(networks.torch.to_device([crop.image]))
    score = pooled(seen.evidence[:, 0].numpy(), crop.mask[None])
    assert examined.probabilities == pytest.approx(probabilities(score, seen.which_logits.numpy(), networks.answer))
    assert examined.heat == pytest.approx(torch.sigmoid(seen.evidence[:, 0]).numpy(), abs=1e-6)


def test_what_is_unlike_the_training_images_gets_no_class(networks):
    far = dataclasses.replace(networks, answer=dataclasses.replace(networks.answer, unlike_above=-1.0))
    lungs = np.ones((224, 224), bool)
    (found,) = classify_batch([blotches(1)], [lungs], far)
    assert (found.indeterminate, found.indeterminate_reason) == (True, UNLIKE)
    (found,) = classify_batch([blotches(1)], [lungs], networks)
    assert found.doubt == ""


def test_distance_is_one_on_the_mean_over_what_is_usual():
    from training.fit.evidence_export import set_feature_statistics

    network = CXRNet("resnet34", answer="evidence").eval()
    rng = np.random.default_rng(0)
    features = (rng.normal(size=(400, 512)) * np.linspace(3, 0.1, 512)).astype(np.float32)
    set_feature_statistics(network, features)
    distances = network.distance(torch.from_numpy(features))
    assert float(distances.mean()) == pytest.approx(1, abs=0.02)
    away = features[:1] + 200 * np.eye(512, dtype=np.float32)[-1]  # in a direction in which nothing differs
    assert float(network.distance(torch.from_numpy(away))) > 3 * float(distances.max())


def test_weights_without_evidence_still_load_and_know_no_doubts(tmp_path):
    from tests.small_training import write_weights

    folder = write_weights(tmp_path, 64)
    assert weights.load_cxrnet(folder).network.answer == "image"
    networks = load_networks(InferenceSettings(weights_dir=folder, device="cpu", precision="fp32"))
    assert networks.answer is None
    assert networks.examine([np.zeros((64, 64), np.uint8)]).doubts == [""]
