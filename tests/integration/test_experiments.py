"""Each encoder from training to figures, and the experiments one after the other: resumed, skipped, refused."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from cxr_node.nets.weights import network_description, shipped_folder
from tests.small_training import everything_is_lung, write_set
from training.fit.classify import train
from training.fit.export import export
from training.fit.recipe import RECIPES, ClassifyRecipe, keep_recipe, read_recipe
from training.measure.evaluate import evaluate
from training.reporting import experiments
from training.reporting.experiments import Paths, Step, steps

SMALL = (
    "input_size_px=64",
    "batch_size=2",
    "threads=1",
    "encoder_stage.images=2",
    "decoder_stage.images=2",
)
ENCODERS = ("alexnet", "vgg16", "vgg19", "resnet34", "resnet50", "inception_v3")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_set(tmp_path_factory.mktemp("data"), ("train", "val", "test"), 2, sources=("here", "there"))


@pytest.fixture(scope="module")
def few(tmp_path_factory) -> Path:
    return write_set(tmp_path_factory.mktemp("few"), ("train", "val", "test"), 1)


@pytest.fixture(scope="module")
def unet(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("segment") / "best.pt"
    torch.save({"network": everything_is_lung().state_dict(), "widths": [8, 16], "patch": 2, "val_iou": 0.5}, path)
    return path


@pytest.mark.parametrize("encoder", ENCODERS)
def test_each_encoder_goes_from_training_to_figures(few, unet, tmp_path, encoder):
    out = tmp_path / "run"
    size = ("input_size_px=80",) if encoder == "inception_v3" else ()  # it takes nothing smaller than 75
    whole = encoder in ("alexnet", "vgg16", "inception_v3")  # each form with some of them
    settings = (
        f"encoder={encoder}",
        f"segmented={'false' if whole else 'true'}",
        f"representation={'image' if whole else 'mask'}",
    )
    recipe = keep_recipe(RECIPES / "experiments-cpu.toml", ClassifyRecipe, (*SMALL, *size, *settings), out)
    train(recipe, few, unet, None, out)
    export(unet, out / "last.pt", None, few, "small", out / "weights")
    described = json.loads((out / "weights" / "cxrnet.json").read_text())
    assert described["architecture"]["encoder"] == encoder
    assert described["preprocessing"]["segmented"] != whole
    assert 0 <= described["indeterminate_below"] <= 1
    figures = evaluate(few, "test", out / "weights", out / "test")
    assert figures["count"] == 4
    assert sum(map(sum, figures["confusion"])) == 4
    assert set(figures["indeterminate"]["below"].values()) == {described["indeterminate_below"]}
    assert json.loads((out / "test" / "metrics.json").read_text()) == figures
    assert len(figures["lungs_hidden"]["called_healthy"]) == 4
    if not whole:  # everything is lung, and nothing is left
        assert figures["lungs_hidden"]["adult_auroc"] in (None, 0.5)


def test_the_lungs_may_be_those_of_a_folder_of_weights(few, tmp_path):
    recipe = keep_recipe(
        RECIPES / "experiments-cpu.toml", ClassifyRecipe, (*SMALL, "encoder=resnet34", "decoder_stage.images=0"), tmp_path
    )
    train(recipe, few, shipped_folder(), None, tmp_path)
    export(shipped_folder(), tmp_path / "last.pt", None, few, "small", tmp_path / "weights")
    ours, theirs = network_description(tmp_path / "weights", "unet"), network_description(shipped_folder(), "unet")
    assert ours == theirs, "the same network with the same gate, of the same version"


def test_a_gate_of_another_unet_is_refused(few, unet, tmp_path):
    (tmp_path / "gate.json").write_text(json.dumps({"unet": "another", "threshold": 0.0}))
    with pytest.raises(ValueError, match="fitted over another U-Net"):
        export(unet, tmp_path / "last.pt", tmp_path / "gate.json", few, "small", tmp_path / "weights")


def test_a_source_left_out_is_measured_in_every_split(data, unet, tmp_path):
    recipe = keep_recipe(
        RECIPES / "experiments-cpu.toml", ClassifyRecipe, (*SMALL, "encoder=resnet34", "decoder_stage.images=0"), tmp_path
    )
    train(recipe, data, unet, None, tmp_path, "there")
    export(unet, tmp_path / "last.pt", None, data, "small", tmp_path / "weights")
    assert json.loads((tmp_path / "weights" / "cxrnet.json").read_text())["training"]["without"] == "there"
    figures = evaluate(data, "all", tmp_path / "weights", tmp_path / "unseen", "there")
    assert (figures["split"], figures["source"], figures["count"]) == ("all", "there", 12)
    assert set(figures["by_source"]) == {"there"}
    with pytest.raises(ValueError, match="nowhere"):
        evaluate(data, "all", tmp_path / "weights", tmp_path / "unseen", "nowhere")


@pytest.fixture
def paths(data, unet, tmp_path) -> Paths:
    recipes = (str(RECIPES / "experiments-cpu.toml"), str(RECIPES / "left-out.toml"))
    return Paths(str(data), str(tmp_path), *recipes, str(tmp_path / "none"), str(unet))


@pytest.fixture
def ran(monkeypatch) -> list[str]:
    """The commands that were run: each only writes the file that shows that it was."""
    commands: list[str] = []

    def touch(step: Step) -> int:
        commands.append(step.arguments[0])
        step.writes.parent.mkdir(parents=True, exist_ok=True)
        step.writes.write_text("{}")
        return 0

    monkeypatch.setattr(experiments, "_call", touch)
    return commands


def test_what_is_done_is_skipped_and_what_is_stale_is_made_again(paths, ran):
    assert experiments.run(paths, ["original-alexnet"]) == []
    assert ran == ["classify", "export", "evaluate"]
    assert experiments.run(paths, ["original-alexnet"]) == []
    assert len(ran) == 3
    later = Path(paths.runs, "original-alexnet", "last.pt").stat().st_mtime + 10
    os.utime(Path(paths.runs, "original-alexnet", "last.pt"), (later, later))  # trained on
    for name in ("weights/cxrnet.json", "test/metrics.json"):
        assert Path(paths.runs, "original-alexnet", name).stat().st_mtime < later
    assert experiments.run(paths, ["original-alexnet"]) == []
    assert ran[3] == "export"


def test_a_failure_is_told_and_does_not_keep_the_others_from_running(paths, ran, monkeypatch):
    works = experiments._call
    monkeypatch.setattr(experiments, "_call", lambda step: 3 if "encoder=vgg16" in step.arguments else works(step))
    (problem,) = experiments.run(paths, ["original-vgg16", "original-alexnet"])
    assert problem.startswith("original-vgg16: `python -m training classify")
    assert ran == ["classify", "export", "evaluate"]


@pytest.mark.parametrize(("name", "reason"), [("segmented-resnet50_v1", "ImageNet"), ("without-armiro", "no such source")])
def test_what_cannot_be_run_says_why(paths, ran, name, reason):
    assert any(each.startswith(f"{name}: ") and reason in each for each in experiments.run(paths))


def test_a_run_made_by_another_recipe_is_not_taken_for_this_one(paths, ran):
    keep_recipe(RECIPES / "paper.toml", ClassifyRecipe, ["encoder=alexnet"], Path(paths.runs, "original-alexnet"))
    (problem,) = experiments.run(paths, ["original-alexnet"])
    assert "is another recipe than" in problem
    assert ran == []


def test_an_unknown_experiment_is_refused(paths):
    with pytest.raises(ValueError, match="original-lenet: not among"):
        experiments.run(paths, ["original-lenet"])


@pytest.mark.parametrize("recipe", ["experiments-cpu.toml", "paper.toml", "classify.toml"])
def test_the_commands_are_such_as_the_program_knows(recipe, tmp_path):
    """Each setting of each experiment fits each recipe; the paper's form asks for the fusion loss alone."""
    for one in experiments.experiments()[1:]:
        paths = Paths(recipe=str(RECIPES / recipe), left_out=str(RECIPES / "left-out.toml"))
        words = steps(one, read_recipe(Path(paths.recipe_of(one)), ClassifyRecipe), paths)[0].arguments
        assert words[words.index("--recipe") + 1] == paths.recipe_of(one)
        settings = [words[index + 1] for index, word in enumerate(words) if word == "--set"]
        settled = read_recipe(keep_recipe(Path(paths.recipe_of(one)), ClassifyRecipe, settings, tmp_path), ClassifyRecipe)
        decoder = settled.decoder_stage
        if one.name == "representation-image" and decoder is not None:
            assert decoder.images > 0
            assert [decoder.removal, decoder.certainty, decoder.sparsity, decoder.outside, decoder.smoothness] == [0.0] * 5
        elif one.without:
            assert decoder is None
            assert settled.segmented is False
        elif decoder is not None:
            assert decoder.images == 0
