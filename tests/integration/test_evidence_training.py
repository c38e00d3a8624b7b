"""From radiographs with marks to weights that answer from evidence, and to their figures."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from cxr_node.analyse.answer import AnswerRule
from cxr_node.nets.encoders import ENCODERS
from cxr_node.nets.weights import load_cxrnet
from tests.small_training import blotches, everything_is_lung, write_set, write_weights
from training.data.evidence_set import read_items
from training.fit.evidence import train
from training.fit.export import export
from training.fit.recipe import RECIPES, EvidenceRecipe, keep_recipe, read_recipe
from training.measure.evaluate import evaluate
from training.measure.heat import heat
from training.measure.unseen import unseen

SMALL = ("encoder=resnet34", "input_size_px=64", "sizes_px=[[0.0, 64]]", "batch_size=4", "seconds=3", "checkpoint_seconds=1")
SHARES = ("marked", "healthy", "bacterial_pneumonia", "viral_pneumonia", "covid19_pneumonia")


def write_recipe(folder: Path) -> Path:
    """The recipe that comes with the program, small, for the sources of the data below."""
    recipe = json.loads(keep_recipe(RECIPES / "evidence.toml", EvidenceRecipe, SMALL, folder).read_text())
    recipe["shares"] = {f"{name} {source}": 1.0 for name in SHARES for source in ("here", "there")}
    recipe["shares"]["other_abnormal nih"] = recipe["shares"]["pneumonia_unspecified nih"] = 1.0
    path = folder / "small.json"
    path.write_text(json.dumps(recipe))
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Two of each class in each split, of two sources; an outline of COVID-19, further labels, and a box."""
    folder = write_set(tmp_path_factory.mktemp("data"), ("train", "val", "test"), 2, sources=("here", "there"))
    mark = np.zeros((224, 224), np.uint8)
    mark[60:140, 40:110] = 255
    cv2.imwrite(str(folder / "mark.png"), mark)
    marks = ["image,mask,kind,what,by,complete,split,licence"]
    nih = ["image,label,label_by,findings,population,age,sex,view,source,patient_id,licence,split"]
    (folder / "nih").mkdir()
    for number, split in enumerate(("train", "val", "test")):
        marks.append(f"{split}-covid19_pneumonia-0.png,mark.png,outline,opacity,someone,yes,{split},x")
        for label in ("other_abnormal", "pneumonia_unspecified"):
            name = f"{split}-{label}"
            cv2.imwrite(str(folder / "nih" / f"{name}.png"), blotches(90 + number))
            nih.append(f"{name}.png,{label},someone,x,adult,50,F,PA,nih,{name},x,{split}")
        marks.append(f"nih/{split}-pneumonia_unspecified.png,mark.png,box,opacity,someone,no: one place,{split},x")
    (folder / "marks.csv").write_text("\n".join(marks) + "\n")
    (folder / "nih" / "manifest.csv").write_text("\n".join(nih) + "\n")
    return folder


@pytest.fixture(scope="module")
def unet(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("segment") / "best.pt"
    torch.save({"network": everything_is_lung().state_dict(), "widths": [8, 16], "patch": 2, "val_iou": 0.5}, path)
    return path


@pytest.fixture(scope="module")
def run(data, unet, tmp_path_factory) -> Iterator[Path]:
    """A folder with last.pt and weights; half a gigabyte, removed at once."""
    folder = tmp_path_factory.mktemp("runs") / "evidence"
    imagenet = folder.parent / "imagenet.safetensors"
    save_file(ENCODERS["resnet34"]().state_dict(), imagenet)
    recipe = write_recipe(folder)
    train(recipe, data, unet, None, folder, imagenet=imagenet)
    export(unet, folder / "last.pt", None, data, "small", folder / "weights")
    yield folder
    shutil.rmtree(folder.parent)


def test_marks_and_further_labels_are_read(data):
    items = {item.image: item for item in read_items(data, "train")}
    assert len(items) == 10
    outlined = items["train-covid19_pneumonia-0.png"]
    assert (outlined.group, outlined.kind, outlined.complete) == ("marked here", "outline", True)
    boxed = items["nih/train-pneumonia_unspecified.png"]
    assert (boxed.group, boxed.kind, boxed.complete) == ("marked nih", "box", False)
    assert items["nih/train-other_abnormal.png"].group == "other_abnormal nih"
    assert {item.source for item in read_items(data, "train", without="nih")} == {"here", "there"}


def test_weights_say_how_they_answer_and_what_is_usual(run):
    loaded = load_cxrnet(run / "weights")
    assert loaded.network.answer == loaded.description["architecture"]["answer"] == "evidence"
    assert set(loaded.description["answer"]) == set(AnswerRule.__annotations__)
    assert loaded.description["training"]["steps"] > 0
    assert float(loaded.network.feature_spread.max()) > 0
    assert loaded.network.feature_axes.abs().max() > 0


def test_what_stopped_goes_on(run, data, unet):
    left = torch.load(run / "checkpoint.pt", weights_only=True)
    assert left["step"] > 0
    before = torch.load(run / "last.pt", weights_only=True)
    train(run / "small.json", data, unet, None, run, imagenet=run.parent / "imagenet.safetensors")
    assert torch.load(run / "last.pt", weights_only=True)["steps"] >= left["step"]
    torch.save(before, run / "last.pt")


def test_nothing_to_begin_with_is_refused(run, data, unet, tmp_path):
    with pytest.raises(ValueError, match="begins with"):
        train(run / "small.json", data, unet, None, tmp_path)


def test_answers_to_every_label_are_counted(run, data, tmp_path):
    figures = evaluate(data, "test", run / "weights", tmp_path, hidden=False)
    assert figures["count"] == 8
    assert "lungs_hidden" not in figures
    groups = figures["answers"]["groups"]
    assert groups["other_abnormal nih adult"]["count"] == groups["pneumonia_unspecified nih adult"]["count"] == 1
    assert figures["answers"]["adults"]["healthy_count"] == 2
    lines = (tmp_path / "answers.csv").read_text().splitlines()
    assert len(lines) == 1 + 10
    assert figures["indeterminate"]["coverage"] <= 1


def test_heat_is_measured_beside_what_looks_for_no_disease(run, data, tmp_path, monkeypatch):
    monkeypatch.setattr("training.measure.heat.STEPS", (0.5, 1.0))  # of ten, each a pass for each map and image
    (data / "zone_scores.csv").unlink(missing_ok=True)
    figures = heat(data, "test", run / "weights", tmp_path, limit=1)
    assert json.loads((tmp_path / "heat.json").read_text()) == figures
    outlines = figures["marks"]["outline"]
    assert outlines["count"] == 1
    assert set(outlines["methods"]) == {"cxrnet", "gradcam", "saliency", "brightness", "depth"}
    assert all(0 <= one["auroc"] <= 1 for one in outlines["methods"].values())
    assert figures["healthy"]["count"] == 2
    assert set(figures["curves"]["covid19_pneumonia"]["deletion"]) == set(outlines["methods"])
    with pytest.raises(ValueError, match="marks no image"):
        heat(data, "nowhere", run / "weights", tmp_path)


def test_a_source_is_left_out_and_measured_and_what_is_there_is_kept(run, data, unet, tmp_path):
    given = (data, run / "small.json", tmp_path, unet, run.parent / "imagenet.safetensors")
    figures = unseen(*given, only=["there"])
    found = figures["there"]
    assert found["count"] == 12, "of every split"
    assert found["headline"]["healthy_count"] == 3
    assert figures["mean"]["healthy_called_ill"] == found["headline"]["healthy_called_ill"]
    state = torch.load(tmp_path / "without-there" / "last.pt", weights_only=True)
    assert state["without"] == "there"
    made = (tmp_path / "without-there" / "last.pt").stat().st_mtime_ns
    assert unseen(*given, only=["there"]) == figures
    assert (tmp_path / "without-there" / "last.pt").stat().st_mtime_ns == made
    with pytest.raises(ValueError, match="No source nowhere"):
        unseen(*given, only=["nowhere"])


def test_weights_of_another_form_are_gone_on_from(run, data, unet, tmp_path):
    """Weights that answer from images lack heads; they begin as nothing learnt."""
    from training.fit.evidence import first_network

    recipe = read_recipe(run / "small.json", EvidenceRecipe)
    begun = write_weights(tmp_path, 64)
    with pytest.raises(RuntimeError, match="size mismatch"):
        first_network(recipe, begun)  # a decoder of other widths
    network = first_network(recipe, run / "weights")
    assert torch.equal(network.feature_mean, load_cxrnet(run / "weights").network.feature_mean)
