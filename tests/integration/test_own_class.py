"""A hospital teaches the program a fifth class, tuberculosis: from its own radiographs to a coded report."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path

import cv2
import pydicom
import pytest
import torch

from cxr_node.analyse.networks import load_networks
from cxr_node.analyse.pipeline import classify_batch
from cxr_node.compose import compose_results
from cxr_node.nets import weights
from cxr_node.nets.cxrnet import CXRNet
from cxr_node.prepare.radiograph import prepare_dataset
from cxr_node.prepare.wrap_picture import radiograph_from_image
from cxr_node.records import LABELS, ResultKind
from cxr_node.settings import InferenceSettings
from tests.conftest import REPOSITORY
from tests.small_training import blotches, everything_is_lung

CLASSES = "label,title,code,scheme,meaning\ntuberculosis,Tuberculosis,56717001,SCT,Tuberculosis\n"
SMALL = ("encoder=resnet34", "input_size_px=64", "batch_size=2", "threads=1", "encoder_stage.images=4", "decoder_stage.images=2")


def training(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "training", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=REPOSITORY, check=False)


@pytest.fixture(scope="module")
def begun(tmp_path_factory) -> Path:
    """Weights of four classes to go on from."""
    folder = tmp_path_factory.mktemp("begun")
    torch.manual_seed(2)
    unet = {"name": "lung-unet", "version": "t", "architecture": {"widths": [8, 16], "patch": 2}}
    weights.save(folder, "unet", everything_is_lung(), unet)
    network = CXRNet("resnet34")
    architecture = {"encoder": "resnet34", "representation": "mask", "decoder_channels": [128, 64, 48, 32, 16]}
    weights.save(
        folder,
        "cxrnet",
        network,
        {
            "name": "Begun",
            "version": "1",
            "architecture": architecture,
            "classes": list(LABELS),
            "preprocessing": {"input_size_px": 64, "segmented": False},
            "calibration": {"temperature": 1.25},
            "indeterminate_below": 0.75,
            "licence": "Nobody's",
        },
    )
    return folder


@pytest.fixture(scope="module")
def made(begun, tmp_path_factory) -> Iterator[Path]:
    """A folder with the data folder `data`, the run `run`, its weights `weights`, and what the commands said."""
    folder = tmp_path_factory.mktemp("own")
    lines = ["file,label,patient_id,population,split"]
    for label in ("healthy", "bacterial_pneumonia", "tuberculosis"):
        for number, split in enumerate(("train", "train", "val", "test")):
            name = f"{label}-{number}.png"
            cv2.imwrite(str(folder / name), blotches(len(lines)))
            lines.append(f"{name},{label},{label}-{number},adult,{split}")
    (folder / "mine.csv").write_text("\n".join(lines) + "\n")
    (folder / "classes.csv").write_text(CLASSES)
    data, run, out = folder / "data", folder / "runs" / "mine", folder / "weights"
    settings = [word for setting in SMALL for word in ("--set", setting)]
    tuned = ("--recipe", "conf/fine-tune.toml")
    named = ("--name", "St. Elsewhere", "--licence", "For St. Elsewhere alone")
    steps = (
        ("import", "folder", folder / "mine.csv", "--out", data, "--classes", folder / "classes.csv", "--licence", "ours"),
        ("classify", *tuned, "--data", data, "--segment", begun, "--begin-with", begun, "--out", run, *settings),
        ("export", "--data", data, "--version", "1", "--segment", begun, "--classify", run / "last.pt", "--out", out, *named),
        ("evaluate", "--data", data, "--weights", out, "--beside", begun, "--no-hidden", "--out", folder / "test"),
    )
    for number, step in enumerate(steps):
        done = training(*step)
        assert done.returncode == 0, done.stdout + done.stderr[-3000:]
        (folder / f"said-{number}.txt").write_text(done.stdout)
    yield folder
    shutil.rmtree(folder)


def test_the_splits_are_those_that_the_csv_file_says(made):
    with (made / "data" / "manifest.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["split"] for row in rows if row["label"] == "tuberculosis"].count("train") == 2
    assert {row["licence"] for row in rows} == {"ours"}
    said = (made / "said-0.txt").read_text()
    assert "tuberculosis" in said
    assert "2 (patients: 2)" in said


def test_the_weights_have_the_hospital_s_name_class_and_terms_and_keep_their_calibration(made):
    described = json.loads((made / "weights" / "cxrnet.json").read_text())
    assert described["classes"] == [*LABELS, "tuberculosis"]
    assert described["own_classes"]["tuberculosis"]["code"] == {"value": "56717001", "scheme": "SCT", "meaning": "Tuberculosis"}
    assert (described["name"], described["licence"]) == ("St. Elsewhere", "For St. Elsewhere alone")
    assert described["calibration"]["temperature"] == 1.25
    assert described["indeterminate_below"] == 0.75
    assert "val has 3 radiographs" in (made / "said-2.txt").read_text()


def test_both_weights_are_compared_on_the_same_images(made):
    compared = json.loads((made / "test" / "metrics.json").read_text())["comparison"]
    assert compared["models"] == ["Begun 1", "St. Elsewhere 1"]
    assert compared["images"] == 3
    assert compared["by_class"]["tuberculosis"] == {
        "images": 1,
        "first": 0,  # it doesn't know the class
        "second": compared["by_class"]["tuberculosis"]["second"],
    }
    said = (made / "said-3.txt").read_text()
    assert "tuberculosis" in said
    assert "None" not in said
    assert "McNemar" in said


def test_the_report_names_the_class_by_its_code(made):
    networks = load_networks(InferenceSettings(weights_dir=made / "weights"))
    with torch.no_grad():
        networks.torch.cxrnet.fc.bias[LABELS.index("covid19_pneumonia") + 1] += 50  # so that the answer is the fifth class
    source = radiograph_from_image(blotches(99))
    radiograph = prepare_dataset(source)
    masks, _ = networks.segment([radiograph.network_image])
    (findings,) = classify_batch([radiograph.network_image], list(masks), networks)
    assert (findings.answer, list(findings.probabilities)) == ("tuberculosis", [*LABELS, "tuberculosis"])
    kinds = (ResultKind.OVERLAY, ResultKind.REPORT)
    composed = compose_results(source, radiograph, findings, kinds=kinds, now=datetime.now(UTC))
    (report,) = [pydicom.dcmread(BytesIO(one.content)) for one in composed if one.kind is ResultKind.REPORT]
    coded = {(item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning) for item in _codes(report)}
    assert ("56717001", "SCT", "Tuberculosis") in coded
    assert ("P-TUBERCULOSIS", "99CXRNODE", "P(tuberculosis)") in coded
    assert ("P-COVID19", "99CXRNODE", "P(COVID-19 pneumonia)") in coded


def _codes(ds: pydicom.Dataset) -> list[pydicom.Dataset]:
    found = []
    for element in ds:
        if element.VR == "SQ":
            for item in element.value:
                found += [item] if "CodeValue" in item else []
                found += _codes(item)
    return found


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("classify", "--data", "DATA", "--out", "OUT", "--segment", "nowhere/best.pt", "--set", "segmented=true"), "--segment"),
        (("classify", "--data", "DATA", "--out", "OUT", "--set", "encoder=resnet51"), "encoder=resnet51"),
        (("export", "--data", "DATA", "--version", "1", "--out", "OUT", "--classify", "RUN/last.pt"), "--name"),
        (("export", "--data", "DATA", "--version", "1", "--out", "OUT", "--classify", "nowhere.pt"), "--classify"),
        (("classify", "--recipe", "conf/fine-tune.toml", "--data", "DATA", "--out", "RUN", "--begin-with", "shipped"), "--out"),
        (("evaluate", "--data", "DATA", "--split", "nothing", "--out", "OUT"), "nothing"),
        (("import", "folder", "DATA/manifest.csv", "--out", "OUT"), "file"),
    ],
)
def test_a_mistake_is_answered_with_a_sentence(made, tmp_path, words, said):
    places = {"DATA": str(made / "data"), "OUT": str(tmp_path / "out"), "RUN": str(made / "runs" / "mine")}
    typed = "\n".join(words)
    for name, place in places.items():
        typed = typed.replace(name, place)
    done = training(*typed.split("\n"))
    assert done.returncode == 1
    assert done.stderr.count("\n") <= 3, done.stderr
    assert "Error: " in done.stderr
    assert said in done.stderr
