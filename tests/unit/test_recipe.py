"""Recipes from files and from settings on the command line."""

from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from tests.small_training import classify_recipe
from training.errors import TrainingError
from training.fit.recipe import (
    RECIPES,
    ClassifyRecipe,
    EvidenceRecipe,
    OfNetwork,
    SegmentRecipe,
    as_table,
    differences,
    keep_recipe,
    read_recipe,
    with_settings,
)

KINDS = {
    **{
        path.name: ClassifyRecipe
        for path in RECIPES.glob("*.toml")
        if "encoder_stage" in (text := path.read_text()) or "joint_" in text
    },
    "evidence.toml": EvidenceRecipe,
    "evidence-gpu.toml": EvidenceRecipe,
    "fine-tune-evidence.toml": EvidenceRecipe,
    "segment.toml": SegmentRecipe,
}
STAGE = {"images": 3000, "learning_rate": 1e-4, "final_learning_rate": 1e-6}
RECIPE = classify_recipe(encoder="resnet50", segmented=True, weight_decay=0.1, encoder_stage=STAGE)


def test_settings_change_what_they_name_and_nothing_else():
    found = with_settings(RECIPE, ["encoder=vgg16", "segmented=false", "weight_decay=0", "encoder_stage.images=12"])
    expected = classify_recipe(encoder="vgg16", segmented=False, weight_decay=0.0, encoder_stage={**STAGE, "images": 12})
    assert found == expected
    assert RECIPE.encoder_stage is not None
    assert RECIPE.encoder_stage.images == 3000


@pytest.mark.parametrize(
    "setting",
    [
        "encodre=vgg16",
        "encoder=vgg17",
        "encoder_stage.image=3",
        "joint_stage.images=3",
        "encoder_stage=3",
        "segmented=0",
        "encoder_stage.images=ten",
        "mirrored=1.5",
        "x",
    ],
)
def test_a_setting_that_fits_nothing_is_refused(setting):
    with pytest.raises(TrainingError, match=setting):
        with_settings(RECIPE, [setting])


def test_a_recipe_cannot_be_changed():
    with pytest.raises(ValidationError, match="frozen"):
        RECIPE.encoder = "vgg16"


def test_a_run_keeps_the_recipe_that_it_was_made_by(tmp_path):
    kept = keep_recipe(RECIPES / "experiments-cpu.toml", ClassifyRecipe, ["encoder=alexnet"], tmp_path / "run")
    shipped = read_recipe(RECIPES / "experiments-cpu.toml", ClassifyRecipe)
    assert read_recipe(kept, ClassifyRecipe) == shipped.model_copy(update={"encoder": "alexnet", "file": "experiments-cpu.toml"})


def test_a_folder_with_a_checkpoint_belongs_to_its_recipe(tmp_path):
    given = (RECIPES / "experiments-cpu.toml", ClassifyRecipe)
    keep_recipe(*given, [], tmp_path)
    (tmp_path / "checkpoint.pt").touch()
    keep_recipe(*given, [], tmp_path)
    with pytest.raises(TrainingError, match=r"encoder_stage.images 2400 → 12.*another --out"):
        keep_recipe(*given, ["encoder_stage.images=12"], tmp_path)
    assert json.loads((tmp_path / "recipe.json").read_text())["encoder_stage"]["images"] == 2400


@pytest.mark.parametrize("name", sorted(KINDS))
def test_every_recipe_that_comes_with_the_program_can_be_used(name):
    recipe = read_recipe(RECIPES / name, KINDS[name])
    if isinstance(recipe, ClassifyRecipe):
        assert recipe.encoder_stage or recipe.joint_stage
    assert not differences(as_table(recipe), as_table(recipe))


@pytest.mark.parametrize("text", ["encoder = ", 'encoder = "resnet50"', 'encodre = "resnet50"'])
def test_what_is_no_recipe_is_said_in_words(tmp_path, text):
    path = tmp_path / "own.toml"
    path.write_text(text)
    with pytest.raises(TrainingError, match=r"own\.toml"):
        read_recipe(path, ClassifyRecipe)


def test_a_checkpoint_s_recipe_may_have_keys_of_older_versions():
    old = {"encoder": "resnet50_v1", "representation": "mask", "input_size_px": 160, "segmented": False, "lungs_emptied": 0.1}
    assert OfNetwork.model_validate(old).answer == "image"


def test_a_run_of_an_earlier_version_goes_on(tmp_path):
    given = (RECIPES / "evidence.toml", EvidenceRecipe)
    kept = keep_recipe(*given, [], tmp_path)
    table = json.loads(kept.read_text())
    table["averaging"], table["borrowed"] = table.pop("ema_decay"), table.pop("sharpness_transferred")
    del table["loaders"]
    kept.write_text(json.dumps(table))
    (tmp_path / "checkpoint.pt").touch()
    keep_recipe(*given, [], tmp_path)


def test_the_paper_s_recipe_is_the_paper_s():
    recipe = read_recipe(RECIPES / "paper.toml", ClassifyRecipe)
    assert (recipe.input_size_px, recipe.batch_size, recipe.representation) == (224, 12, "image")
    assert recipe.joint_stage is not None
    assert (recipe.joint_stage.learning_rate, recipe.joint_stage.final_learning_rate) == (1e-4, 1e-6)
