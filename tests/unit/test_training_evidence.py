"""The evidence stage: what it asks of the network, and what it shows it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cxr_node.nets.cxrnet import CXRNet
from tests.small_training import blotches
from training.data.evidence_labels import OTHER, UNSPECIFIED
from training.data.evidence_set import Examples, KnownRadiograph
from training.fit.evidence import (
    RestingBatchNorm,
    downscaled,
    location_loss,
    other_loss,
    prepare_to_train,
    size_at,
    type_loss,
)
from training.fit.evidence_inputs import Batch, Groups, batches, moved, pasted, removed
from training.fit.recipe import EvidenceRecipe, recipe_of

SIZE = 64
LUNGS = np.zeros((SIZE, SIZE), bool)
LUNGS[10:50, 5:28] = LUNGS[10:50, 36:59] = True
MARK = np.zeros((SIZE, SIZE), bool)
MARK[20:40, 8:26] = True


def item(label: str, source: str = "here", kind: str = "", complete: bool = True) -> KnownRadiograph:
    return KnownRadiograph("x.png", label, "", "adult", source, "m.png" if kind else "", kind, complete)


def loss(
    one: KnownRadiograph, evidence: np.ndarray, score: float = 0.0, mark: np.ndarray = MARK, cold: np.ndarray | None = None
) -> float:
    torch.manual_seed(0)
    masks = (torch.from_numpy(mask) for mask in (LUNGS, mark, np.zeros_like(LUNGS) if cold is None else cold))
    return float(location_loss(one, torch.from_numpy(evidence.astype(np.float32)), torch.tensor(score), *masks))


NONE = np.zeros_like(MARK)
HOT, COLD = np.full((SIZE, SIZE), 4.0), np.full((SIZE, SIZE), -4.0)
ON_MARK = np.where(MARK, 4.0, -4.0)


@pytest.mark.parametrize("label", ["healthy", OTHER])
def test_healthy_lungs_and_other_disease_are_to_be_cold(label):
    assert loss(item(label), COLD, -4.0, NONE) < 0.1 < 3 < loss(item(label), HOT, 4.0, NONE)


def test_an_outline_asks_for_evidence_inside_it_and_none_beside():
    one = item("covid19_pneumonia", kind="outline")
    assert loss(one, ON_MARK) < loss(one, COLD)
    assert loss(one, ON_MARK) < loss(one, HOT)


def test_what_lies_beside_an_incomplete_mark_is_not_known():
    in_lungs = np.where(LUNGS, 4.0, -4.0)
    whole, part = (item(UNSPECIFIED, kind="box", complete=complete) for complete in (True, False))
    assert loss(part, in_lungs) == pytest.approx(loss(part, ON_MARK), abs=1e-6)
    assert loss(whole, in_lungs) > loss(whole, ON_MARK) + 1


def test_a_box_asks_for_evidence_in_half_of_it():
    half = np.full((SIZE, SIZE), -4.0)
    half[20:30, 8:26] = 4.0
    box, outline = (item(UNSPECIFIED, kind=kind) for kind in ("box", "outline"))
    assert loss(box, half) == pytest.approx(loss(box, ON_MARK), abs=0.6)
    assert loss(outline, half) > loss(outline, ON_MARK) + 1.5


def test_a_class_without_a_mark_asks_for_evidence_somewhere_unless_the_lungs_were_taken_away():
    one = item("viral_pneumonia")
    assert loss(one, COLD, -4.0, NONE) > loss(one, COLD, 4.0, NONE) + 2
    assert loss(one, COLD, -4.0, NONE, cold=np.ones_like(LUNGS)) < 0.1


def test_no_germ_named_means_bacterial_or_viral():
    unsure = torch.tensor([[2.0, 2.0, -5.0]])
    shown = torch.zeros(1)
    assert float(type_loss([item(UNSPECIFIED)], unsure, shown)) < 0.01
    assert float(type_loss([item("bacterial_pneumonia")], unsure, shown)) == pytest.approx(np.log(2), abs=0.01)
    assert float(type_loss([item(UNSPECIFIED)], torch.tensor([[0.0, 0.0, 5.0]]), shown)) > 4
    assert float(type_loss([item("healthy")], unsure, shown)) == 0
    assert float(type_loss([item("bacterial_pneumonia")], unsure, torch.ones(1))) == 0, "nothing of it was shown"


def test_other_disease_is_learnt_firmly_where_a_source_has_both():
    logits = torch.tensor([5.0, 5.0])
    at_home = float(other_loss([item("healthy", "nih"), item(OTHER, "nih")], logits))
    elsewhere = float(other_loss([item("healthy", "kermany"), item(OTHER, "nih")], logits))
    assert elsewhere < at_home


def test_the_encoder_s_batch_normalisation_rests_and_says_the_same():
    network = CXRNet("resnet34", decoder_channels=(8, 8, 8, 8, 8), answer="evidence")
    image = torch.rand(2, 1, 64, 64)
    before = network.eval().encode(image)[-1]
    kept = {key: value.clone() for key, value in network.state_dict().items() if "running" in key and "encoder" in key}
    prepare_to_train(network, ["encoder.conv1"])
    assert torch.allclose(network.encode(image)[-1], before, atol=1e-4)
    assert all(torch.equal(network.state_dict()[key], value) for key, value in kept.items())
    assert isinstance(network.encoder.bn1, RestingBatchNorm)
    assert not network.encoder.conv1.weight.requires_grad
    assert network.encoder.layer4[0].conv1.weight.requires_grad


def test_sizes_grow_by_the_share_of_the_time():
    sizes = [[0.0, 128], [0.6, 160], [0.9, 224]]
    assert [size_at(sizes, share) for share in (0, 0.59, 0.6, 0.95, 1)] == [128, 128, 160, 224, 224]
    masks = torch.from_numpy(np.stack([LUNGS])), torch.from_numpy(np.stack([MARK])), torch.zeros(1, SIZE, SIZE, dtype=torch.bool)
    small = downscaled(Batch(torch.rand(1, 1, SIZE, SIZE), *masks, [item("healthy")]), 32)
    assert small.image.shape == (1, 1, 32, 32)
    assert float(small.lungs.float().mean()) == pytest.approx(LUNGS.mean(), abs=0.02)


def test_opacity_of_another_radiograph_comes_into_the_lungs_and_nowhere_else():
    image, other = np.full((SIZE, SIZE), 60, np.uint8), np.full((SIZE, SIZE), 60, np.uint8)
    other[MARK] = 200
    changed, mark = pasted(image, LUNGS, other, LUNGS, MARK)
    assert (mark == (MARK & LUNGS)).all()
    assert changed[30, 17] > 150
    assert (changed[:, 40:] == 60).all()


def test_image_and_masks_move_together():
    rng = np.random.default_rng(3)
    image = np.where(MARK, 255, 0).astype(np.uint8)
    turned, (mark,) = moved(image, [MARK], rng)
    assert mark.any()
    assert ((turned > 127) == mark).mean() > 0.97


def test_what_is_taken_away_is_gone():
    for seed in range(5):
        image = np.random.default_rng(seed).integers(1, 255, (SIZE, SIZE)).astype(np.uint8)
        changed, gone = removed(image, np.random.default_rng(seed))
        assert (changed[~gone] == image[~gone]).all()
        assert not gone.any() or changed[gone].std() < image[gone].std() / 2


@pytest.fixture
def groups() -> Groups:
    items = [item("healthy"), item("covid19_pneumonia", kind="outline"), item("viral_pneumonia", "there")]
    images = np.stack([blotches(seed) for seed in range(3)])
    whole = np.ones(images.shape, bool)
    marks = np.zeros(images.shape, bool)
    marks[1, 60:120, 40:90] = True
    return Groups(Examples(items, images, whole, marks), {"healthy here": 1, "marked here": 3, "viral_pneumonia nowhere": 9})


TABLE = {
    **{"encoder": "resnet34", "representation": "mask", "input_size_px": 64, "segmented": False, "sizes_px": [[0.0, 64]]},
    **{"seconds": 1.0, "encoder_learning_rate": 1e-4, "decoder_learning_rate": 1e-3, "weight_decay": 0.0, "ema_decay": 0.5},
    **{"checkpoint_seconds": 1.0, "shares": {}},
    "seed": 1,
    "batch_size": 4,
    "sharpness_transferred": 0.5,
    "framed": 0.5,
    "decorated": 0.5,
    "removed": 0.3,
    "pasted": 0.5,
    "pasted_healthy": 0.2,
}
RECIPE = recipe_of(TABLE, EvidenceRecipe, "the test's")


def test_groups_are_drawn_by_their_shares(groups):
    rng = np.random.default_rng(0)
    drawn = [groups.draw(rng) for _ in range(400)]
    assert set(drawn) == {0, 1}, "the third is of a group without a share"
    assert np.mean([one == 1 for one in drawn]) == pytest.approx(0.75, abs=0.07)


def test_a_share_may_be_of_every_source(groups):
    named = Groups(groups.examples, {"healthy here": 1, "healthy *": 5, "viral_pneumonia *": 2})
    assert dict(zip(named.names, named.chances, strict=True)) == pytest.approx(
        {"healthy here": 1 / 3, "viral_pneumonia there": 2 / 3}
    )
    with pytest.raises(ValueError, match="there are: healthy here, marked here, viral_pneumonia there"):
        Groups(groups.examples, {"healthy elsewhere": 1})


def test_a_step_is_the_same_however_often_it_is_drawn(groups):
    ahead, again = batches(groups, RECIPE, 0), batches(groups, RECIPE.model_copy(update={"loaders": 3}), 2)
    third = [next(ahead) for _ in range(3)][2]
    same = next(again)
    assert torch.equal(third.image, same.image)
    assert third.items == same.items
    assert third.image.shape == (4, 1, 224, 224)
    assert not (third.marks & third.cold).any()
    ahead.close()
    again.close()


def test_bacterial_against_viral_is_shifted_to_what_there_is_and_covid_is_not():
    from training.fit.evidence_export import Seen, set_bacterial_against_viral

    rng = np.random.default_rng(0)
    labels = ["bacterial_pneumonia"] * 200 + ["viral_pneumonia"] * 50 + ["covid19_pneumonia"] * 50
    network = CXRNet("resnet50_v1", answer="evidence").eval()
    features = rng.normal(0, 1, (len(labels), network.which.in_features)).astype(np.float32)
    with torch.no_grad():
        network.fc.weight.zero_()
        network.fc.bias.zero_()
        network.which.weight.zero_()
        network.which.bias.copy_(torch.tensor([0.0, 0.0, 0.5]))
        network.which.weight[0, 0] = 1.0
    features[:200, 0] += 1.0  # where bacterial pneumonia shows
    set_bacterial_against_viral(network, [item(label) for label in labels], Seen(np.zeros(len(labels)), features, features))
    bacterial, viral, covid = network.which.bias.tolist()
    assert bacterial > 0.2, "four times as many"
    assert viral == pytest.approx(-bacterial)
    assert covid == 0.5
