"""What the training stages ask of CXRNet, and what a training input is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.optim.swa_utils import AveragedModel

from cxr_node.nets import weights
from cxr_node.nets.cxrnet import DECODER_CHANNELS, CXRNet
from cxr_node.records import LABELS
from tests.small_training import classify_recipe, write_weights
from training.data.dataset import ManifestRow
from training.data.split import Split
from training.fit import recipe
from training.fit.classify import first_network, running_average, train
from training.fit.inputs import bias_of_draws, blanked, size_at, training_input
from training.fit.stages import HEALTHY, DecoderStage, EncoderStage

SIDE = 64
DECODER = recipe.DecoderStageRecipe(images=1, learning_rate=1e-3, final_learning_rate=1e-4)
RECIPE = """
encoder = "alexnet"
representation = "mask"
input_size_px = 64
segmented = false
seed = 1
threads = 1
batch_size = 2
weight_decay = 1e-2
label_smoothing = 0.0
augmentation = [1.0, 0.5]
balance = 0.5
random_masking = 0.1
emptied = 0.1
ema_decay = 0.5
[joint_stage]
images = 8
learning_rate = 1e-4
final_learning_rate = 1e-6
"""


def small() -> CXRNet:
    torch.manual_seed(0)
    return CXRNet("alexnet")


def one_split(label: str = "covid19_pneumonia") -> Split:
    row = ManifestRow("a.png", "", label, "adult", "here", "p1", "train")
    image = np.random.default_rng(0).integers(1, 255, (1, 224, 224), np.uint8)
    return Split([row], image, np.ones((1, 224, 224), np.bool_))


def test_each_stage_trains_its_parts_alone() -> None:
    network = small()
    encoder = EncoderStage(network, 0.0)
    encoder.ready()
    assert network.encoder.training
    assert not network.decoder.training
    assert all(p.requires_grad for p in network.encoder.parameters())
    assert not any(p.requires_grad for p in network.decoder.parameters())
    decoder = DecoderStage(network, DECODER)
    decoder.ready()
    assert network.decoder.training
    assert not network.encoder.training
    assert not any(p.requires_grad for p in network.encoder.parameters())
    assert all(p.requires_grad for p in network.draw.parameters())


def test_what_is_left_out_shall_look_healthy() -> None:
    """The removal term is the cross-entropy of image × (1 - relevance) against healthy."""
    network = small()
    image, target = torch.rand(2, 1, SIDE, SIDE), torch.tensor([1, 3])
    stage = DecoderStage(network, DECODER.model_copy(update={"removal": 2.0}))
    network.eval()
    loss, figures = stage(image, torch.ones_like(image), target)
    with torch.no_grad():
        _, relevance = network.decode(network.encode(image), image)
        left = network.classify(network.encode(image * (1 - relevance))[-1])
    expected = -torch.log_softmax(left, 1)[:, HEALTHY].mean()
    assert figures["removal"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert loss.item() == pytest.approx(figures["fusion"].item() + 2 * expected.item(), rel=1e-5)


def test_training_may_go_on_from_weights(tmp_path: Path) -> None:
    of = classify_recipe()
    learnt = small()
    description = {
        "name": "cxrnet",
        "classes": list(LABELS),
        "architecture": {"encoder": "alexnet", "representation": "mask", "decoder_channels": DECODER_CHANNELS},
    }
    weights.save(tmp_path, "cxrnet", learnt, description)
    torch.manual_seed(1)
    network = first_network(of, None, tmp_path)
    for key, tensor in learnt.state_dict().items():
        assert torch.allclose(network.state_dict()[key].float(), tensor.float(), atol=1e-3), key
    with pytest.raises(ValueError, match="representation"):
        first_network(classify_recipe(representation="image"), None, tmp_path)


def test_blanking_takes_about_the_share_asked_for() -> None:
    crop = np.full((160, 160), 200, np.uint8)
    left = [blanked(crop, 0.3, np.random.default_rng(seed)).mean() / 200 for seed in range(200)]
    assert np.mean(left) == pytest.approx(0.7, abs=0.03)


def drawn(seed: int = 1, strength: float = 0.0, **shares: float) -> tuple[NDArray[np.uint8], NDArray[np.bool_], int]:
    """A training input of a radiograph whose lungs are a box in its middle."""
    split = one_split()
    split.lungs[:] = False
    split.lungs[0, 60:160, 40:180] = True
    return training_input(split, 0, classify_recipe(**shares), SIDE, strength, np.random.default_rng(seed))


def test_a_recipe_may_mirror_images() -> None:
    image, lungs, _ = drawn()
    assert not np.array_equal(image, image[:, ::-1]), "or nothing would be shown"
    mirrored, mirrored_lungs, _ = drawn(mirrored=1.0)
    assert np.array_equal(mirrored, image[:, ::-1])
    assert np.array_equal(mirrored_lungs, lungs[:, ::-1])


def test_emptied_images_count_as_healthy_and_masked_ones_keep_their_class() -> None:
    for seed in range(5):
        image, _, target = drawn(seed, 1.0, emptied=1.0)
        assert target == HEALTHY
        assert (image == 0).mean() > 0.5
    image, _, target = drawn(1, 1.0, random_masking=1.0)
    assert target == LABELS.index("covid19_pneumonia")
    assert image.any()


def test_without_its_lungs_an_image_counts_as_healthy_and_keeps_what_lies_around() -> None:
    whole, lungs, _ = drawn()
    image, _, target = drawn(lungs_blanked=1.0)
    assert target == HEALTHY
    assert (image[lungs] == 0).mean() > 0.8
    around = ~cv2.dilate(lungs.astype(np.uint8), np.ones((5, 5), np.uint8)).astype(bool)
    assert np.array_equal(image[around], whole[around])


def test_the_lungs_alone_keep_their_class() -> None:
    whole, lungs, _ = drawn()
    image, _, target = drawn(context_hidden=1.0)
    assert target == LABELS.index("covid19_pneumonia")
    assert np.array_equal(image[lungs], whole[lungs])
    far = ~cv2.dilate(lungs.astype(np.uint8), np.ones((15, 15), np.uint8)).astype(bool)
    assert far.any()
    assert not image[far].any()


def test_inputs_grow_to_their_size_over_seven_tenths_of_a_stage() -> None:
    assert [size_at(128, 224, share) for share in (0.0, 0.2, 0.3, 0.5, 0.71, 1.0)] == [128, 128, 160, 192, 224, 224]
    assert size_at(160, 160, 0.0) == 160


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """Two radiographs of noise of each class and split, from two sources."""
    lines = ["image,mask,fullres,label,population,source,patient_id,view,licence,split"]
    for split in ("train", "val"):
        for index, label in enumerate(LABELS):
            for source in ("here", "there"):
                name = f"{split}-{label}-{source}.png"
                grey = np.random.default_rng(index).integers(0, 255, (64, 64), np.uint8)
                cv2.imwrite(str(tmp_path / name), grey)
                lines.append(f"{name},,,{label},adult,{source},{name},PA,,{split}")
    (tmp_path / "manifest.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "recipe.toml").write_text(RECIPE)
    return tmp_path


def test_the_bias_undoes_the_balance_of_the_draws() -> None:
    """Three of class 1 and one of class 2, drawn alike, and a tenth emptied: by hand."""
    rows = [ManifestRow(f"{i}.png", "", LABELS[1 if i < 3 else 2], "adult", "here", str(i), "train") for i in range(4)]
    bias = bias_of_draws(rows, classify_recipe(balance=0.0, emptied=0.1))
    assert bias[1] == pytest.approx(np.log(0.75 / 0.45))
    assert bias[2] == pytest.approx(np.log(0.25 / 0.45))
    assert bias_of_draws(rows, classify_recipe())[1:3] == pytest.approx([0, 0])


def test_the_running_average_forgets_what_a_short_stage_began_with() -> None:
    """100 steps away from 0, all at 1: at 0.998 alone the average would still be 0.18; long after, it is that of 0.998."""
    layer = torch.nn.BatchNorm1d(1)
    average = AveragedModel(layer, multi_avg_fn=running_average(0.998), use_buffers=True)
    layer.weight.data.fill_(0.0)
    average.update_parameters(layer)
    layer.weight.data.fill_(1.0)
    layer.num_batches_tracked.fill_(7)
    for _ in range(100):
        average.update_parameters(layer)
    assert average.module.weight.item() > 0.99
    assert average.module.num_batches_tracked.item() == 7
    average.n_averaged.fill_(10**6)
    layer.weight.data.fill_(2.0)
    before = average.module.weight.item()
    average.update_parameters(layer)
    assert average.module.weight.item() == pytest.approx(before + 0.002 * (2 - before), rel=1e-5)


def test_the_end_may_be_in_part_what_it_began_with(manifest: Path) -> None:
    write_weights(manifest / "begun", SIDE)
    architecture = {"encoder": "alexnet", "representation": "mask", "decoder_channels": DECODER_CHANNELS}
    description = {"name": "CXRNet", "version": "t", "classes": list(LABELS), "architecture": architecture}
    weights.save(manifest / "begun", "cxrnet", small(), description)
    begun = weights.load_cxrnet(manifest / "begun").network
    ends = {}
    for share in (0.0, 0.25):
        path = manifest / f"{share}.toml"
        path.write_text(f"initial_weights_share = {share}\n{RECIPE}")
        train(path, manifest, None, None, manifest / str(share), begin_with=manifest / "begun")
        ends[share] = torch.load(manifest / str(share) / "last.pt", weights_only=True)["network"]
    for key, first in begun.state_dict().items():
        if first.is_floating_point():
            expected = 0.25 * first + 0.75 * ends[0.0][key]
            assert torch.allclose(ends[0.25][key], expected, atol=1e-6), key
    assert not torch.allclose(ends[0.0]["fc.weight"], begun.state_dict()["fc.weight"], atol=1e-5)


def test_a_share_of_nothing_cannot_be_kept(manifest: Path) -> None:
    path = manifest / "share.toml"
    path.write_text(f"initial_weights_share = 0.5\n{RECIPE}")
    with pytest.raises(ValueError, match="--begin-with"):
        train(path, manifest, None, None, manifest / "run")


def test_a_source_that_is_not_there_cannot_be_left_out(manifest: Path) -> None:
    with pytest.raises(ValueError, match="here, there"):
        train(manifest / "recipe.toml", manifest, None, None, manifest / "run", without="elsewhere")


def test_leaving_a_source_out_leaves_the_others() -> None:
    split = one_split()
    assert split.without("").rows == split.rows
    assert split.without("there").rows == split.rows
    assert split.without("here").rows == []


def test_two_processes_train_one_network(manifest: Path) -> None:
    """By torchrun: both take part in every step, and one of them writes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "training"]
    command += ["classify", "--recipe", str(manifest / "recipe.toml"), "--data", str(manifest), "--out", str(manifest / "run")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    state = torch.load(manifest / "run" / "last.pt", weights_only=True)
    assert state["recipe"]["encoder"] == "alexnet"
    log = (manifest / "run" / "joint_stage" / "log.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in log] == ["step", "2"]  # 8 images in batches of 2 by 2 processes
