"""Recipes from files and from settings on the command line."""

from __future__ import annotations

import pytest

from training.recipe import RECIPES, keep_recipe, with_settings
from training.run import read_recipe
from training.stages import STAGES

RECIPE = {"encoder": "resnet50", "segmented": True, "weight_decay": 0.1, "encoder_stage": {"images": 3000, "learning_rate": 1e-4}}


def test_settings_change_what_they_name_and_nothing_else():
    found = with_settings(RECIPE, ["encoder=vgg16", "segmented=false", "weight_decay=0", "encoder_stage.images=12"])
    assert found == {
        "encoder": "vgg16",
        "segmented": False,
        "weight_decay": 0.0,
        "encoder_stage": {"images": 12, "learning_rate": 1e-4},
    }
    assert RECIPE["encoder_stage"]["images"] == 3000


@pytest.mark.parametrize(
    "setting",
    [
        "encodre=vgg16",
        "encoder_stage.image=3",
        "joint_stage.images=3",
        "encoder_stage=3",
        "segmented=0",
        "encoder_stage.images=ten",
        "x",
    ],
)
def test_a_setting_that_fits_nothing_is_refused(setting):
    with pytest.raises(ValueError, match=setting):
        with_settings(RECIPE, [setting])


def test_a_run_keeps_the_recipe_that_it_was_made_by(tmp_path):
    kept = keep_recipe(RECIPES / "experiments-cpu.toml", ["encoder=alexnet"], tmp_path / "run")
    assert read_recipe(kept) == {
        **read_recipe(RECIPES / "experiments-cpu.toml"),
        "encoder": "alexnet",
        "file": "experiments-cpu.toml",
    }


@pytest.mark.parametrize(
    "name",
    [
        "classify.toml",
        "classify-further.toml",
        "classify-framed.toml",
        "classify-gpu.toml",
        "experiments-cpu.toml",
        "left-out.toml",
        "paper.toml",
    ],
)
def test_every_recipe_names_what_the_training_asks_of_it(name):
    recipe, shipped = read_recipe(RECIPES / name), read_recipe(RECIPES / "classify.toml")
    stages = [stage for stage in STAGES if stage in recipe]
    assert stages
    assert set(recipe) - set(STAGES) == set(shipped) - set(STAGES)
    for stage in stages:
        assert set(recipe[stage]) >= {"images", "learning_rate", "final_learning_rate"}
    if "decoder_stage" in recipe:
        assert set(recipe["decoder_stage"]) == set(shipped["decoder_stage"])


def test_the_paper_s_recipe_is_the_paper_s():
    recipe = read_recipe(RECIPES / "paper.toml")
    assert (recipe["input_size_px"], recipe["batch_size"]) == (224, 12)
    assert (recipe["joint_stage"]["learning_rate"], recipe["joint_stage"]["final_learning_rate"]) == (1e-4, 1e-6)
    assert recipe["representation"] == "image"
