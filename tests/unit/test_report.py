"""RESULTS.md shows what runs stored and what the paper prints, and nothing else."""

from __future__ import annotations

import itertools
import json
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from cxr_node.nets.weights import network_description, shipped_folder
from cxr_node.records import LABELS
from training.measure import metrics
from training.measure.explain import CURVES
from training.measure.explanations import METHODS
from training.measure.perturbation import STEPS
from training.reporting import paper
from training.reporting.report import write_report
from training.reporting.report_text import number, table
from training.reporting.stored_runs import read_run


def store(runs: Path, name: str, **more: object) -> Path:
    """A run of four radiographs, one of each class, of which the viral one is taken for bacterial."""
    targets = np.arange(4)
    probabilities = np.eye(4)[[0, 1, 1, 3]] * 0.97 + 0.01
    source = name.removeprefix("without-") if name.startswith("without-") else ""
    figures = {
        "split": "all" if source else "test",
        **({"source": source} if source else {}),
        "model": {"name": "CXRNet", "version": "7"},
        **metrics.summary(targets, probabilities),
        "by_population": {"adult": metrics.summary(targets, probabilities)},
        "by_source": {"somewhere": metrics.summary(targets, probabilities)},
        "adult_covid_vs_healthy": metrics.covid_against_healthy(targets, probabilities),
        "segmentation": {"iou": 0.9512, "dice": 0.975, "count": 3},
        "calibration": {"ece": 0.0321, "temperature": 1.4},
        "indeterminate": {"below": 0.61, **metrics.given(targets, [LABELS[k] for k in probabilities.argmax(1)])},
        "lungs_hidden": {"called_healthy": dict.fromkeys(LABELS, 0.875), "adult_auroc": 0.625},
        "gate": {"frontal_accepted": 0.993, "not_frontal_rejected": 0.99},
        **more,
    }
    folder = runs / name / ("unseen" if source else "test")
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps(figures))
    return folder


def rows(page: str, start: str) -> list[list[str]]:
    """Cells of the table rows whose first cell is `start`."""
    lines = [line for line in page.splitlines() if line.startswith(f"| {start} |")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def section(page: str, title: str) -> str:
    return re.split(r"^## ", page.split(f"## {title}", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]


def test_without_any_stored_run_no_page_is_written(tmp_path):
    with pytest.raises(FileNotFoundError, match="python -m training evaluate"):
        write_report(tmp_path / "runs", tmp_path / "RESULTS.md")
    assert not (tmp_path / "RESULTS.md").exists()


def test_goals_show_the_paper_s_number_beside_ours(tmp_path):
    store(tmp_path / "runs", "shipped")
    page = write_report(tmp_path / "runs", tmp_path / "RESULTS.md").read_text()
    assert rows(page, "IoU of the lungs") == [["IoU of the lungs", "0.925", "≥ 0.94", "0.951", "yes"]]
    assert rows(page, "accuracy")[0] == ["accuracy", "0.879", "≥ 0.915", "0.750", "no"]
    assert rows(page, "expected calibration error")[0] == ["expected calibration error", "—", "≤ 0.05", "0.032", "yes"]
    assert rows(page, "AOPPC of CXRNet's explanation, COVID-19")[0][3:] == ["—", "—"]


def test_what_was_not_run_is_a_dash_and_a_note(tmp_path):
    store(tmp_path / "runs", "shipped")
    page = write_report(tmp_path / "runs", tmp_path / "RESULTS.md").read_text()
    encoders = section(page, "Figure 9")
    for title, printed in paper.ENCODERS.values():
        assert rows(encoders, title) == [[title, number(printed), "—", "—", "—"]]
    assert "Not run: `original-alexnet`, `original-vgg16`" in encoders
    assert not (tmp_path / "results" / "figure-9.png").exists()
    assert "`explain` was not run: no figure 13." in page


def test_a_run_s_numbers_stand_beside_the_paper_s(tmp_path):
    store(tmp_path / "runs", "segmented-resnet50_v1")
    page = write_report(tmp_path / "runs", tmp_path / "RESULTS.md").read_text()
    table_1 = section(page, "Table I")
    original, segmented = rows(table_1, "viral")
    assert original[:-1] == ["viral", "original", "0.686 / —", "0.655 / —", "0.670 / —"]
    assert segmented[:-1] == ["viral", "lung-segmented", "0.748 / 0.000", "0.745 / 0.000", "0.747 / 0.000"]
    assert sorted((original[-1], segmented[-1])) == ["", "—"], "the shipped weights are of one form, and weren't measured"
    assert rows(table_1, "bacterial")[1][2] == "0.891 / 0.500"
    assert cv2.imread(str(tmp_path / "results" / "figure-11.png")) is not None


def test_the_shipped_weights_stand_beside_the_run_of_their_form(tmp_path):
    for name in ("shipped", "original-resnet50_v1", "segmented-resnet50_v1"):
        store(tmp_path / "runs", name)
    page = write_report(tmp_path / "runs", tmp_path / "RESULTS.md").read_text()
    whole = network_description(shipped_folder(), "cxrnet")["preprocessing"]["segmented"] is False
    original, segmented = rows(section(page, "Table I"), "bacterial")
    assert (original[-1], segmented[-1]) == (("0.667", "") if whole else ("", "0.667"))


def test_what_is_called_without_the_lungs_is_said(tmp_path):
    store(tmp_path / "runs", "shipped")
    page = write_report(tmp_path / "runs", tmp_path / "RESULTS.md").read_text()
    assert rows(page, "covid19 pneumonia called healthy") == [["covid19 pneumonia called healthy", "0.875"]]
    assert rows(page, "AUROC of COVID-19 against healthy, adults") == [["AUROC of COVID-19 against healthy, adults", "0.625"]]


def test_the_budget_is_what_the_run_s_own_weights_say(tmp_path):
    store(tmp_path / "runs", "original-resnet34")
    weights = tmp_path / "runs" / "original-resnet34" / "weights"
    weights.mkdir()
    recipe = {"input_size_px": 128, "encoder_stage": {"images": 9000}}
    (weights / "cxrnet.json").write_text(json.dumps({"training": {"recipe": recipe}}))
    page = write_report(tmp_path / "runs", tmp_path / "RESULTS.md").read_text()
    assert rows(section(page, "Figure 9"), "ResNet-34") == [["ResNet-34", "—", "0.750", "128", "9000"]]


def test_loss_curves_are_drawn_from_logs(tmp_path):
    store(tmp_path / "runs", "shipped")
    for name in ("original-resnet50", "segmented-resnet50"):
        folder = tmp_path / "runs" / name / "encoder_stage"
        folder.mkdir(parents=True)
        (folder / "log.csv").write_text("step,loss,accuracy\n50,1.2,0.5\n100,0.8,0.6\n")
    assert read_run(tmp_path / "runs", "original-resnet50").curve("loss") == [(50, 1.2), (100, 0.8)]
    write_report(tmp_path / "runs", tmp_path / "RESULTS.md")
    assert cv2.imread(str(tmp_path / "results" / "figure-10b.png")) is not None


def write_curves(path: Path) -> None:
    """curves.csv of one class, as `explain` writes it."""
    lines = ["label,method,curve,x,probability,images"]
    for method, curve in itertools.product(METHODS, CURVES):
        lines += [f"covid19_pneumonia,{method},{curve},{x},{1 - x / 2:.6f},20" for x in (0.0, *STEPS)]
    path.write_text("\n".join(lines) + "\n")


def test_explanations_and_their_figures_come_from_the_run(tmp_path):
    method = {
        **{key: dict.fromkeys(LABELS, 0.5) for key in ("aoppc", "deletion_auc", "insertion_auc")},
        "heat_in_lungs": 0.95,
        "heat_in_annotated_lungs": None,
        "input_correlation": 0.12,
    }
    folder = store(
        tmp_path / "runs",
        "shipped",
        aoppc={"cxrnet": 0.91, "gradcam": 0.87, "saliency": 0.6},
        heat_in_lungs=0.95,
        explanations={"limit": 20, "images": dict.fromkeys(LABELS, 20), "methods": {"cxrnet": method}},
    )
    write_curves(folder / "curves.csv")
    page = write_report(tmp_path / "runs", tmp_path / "RESULTS.md").read_text()
    assert rows(page, "CXRNet") == [["CXRNet", "0.903", "0.910"]]
    assert rows(page, "saliency map")[0] == ["saliency map", "0.629", "0.600"]
    assert rows(page, "CXRNet, relevance (shipped form)")[0][1:] == ["0.500", "0.500", "0.500", "0.950", "—", "0.120"]
    assert "at most 20 of a class" in page
    assert "![Probability perturbation curves](results/figure-13.png)" in page
    shutil.rmtree(tmp_path / "runs")  # and from what was kept of it
    for name in ("figure-13.png", "deletion-insertion.png"):
        (tmp_path / "results" / name).unlink()
    assert write_report(tmp_path / "runs", tmp_path / "RESULTS.md").read_text() == page
    assert cv2.imread(str(tmp_path / "results" / "figure-13.png")) is not None
    assert cv2.imread(str(tmp_path / "results" / "deletion-insertion.png")) is not None


def test_an_unseen_source_shows_how_its_radiographs_fared(tmp_path):
    store(tmp_path / "runs", "without-somewhere")
    page = write_report(tmp_path / "runs", tmp_path / "RESULTS.md").read_text()
    assert rows(section(page, "Beyond"), "somewhere") == [["somewhere", "4", "0.750", "1.000", "0.000", "1.000", "—", "—"]]
    assert rows(page, "armiro") == [["armiro", *["—"] * 7]]


def test_a_figure_whose_run_is_gone_goes_too(tmp_path):
    folder = store(tmp_path / "runs", "shipped")
    cv2.imwrite(str(folder / "figure-12.png"), np.zeros((8, 8), np.uint8))
    write_report(tmp_path / "runs", tmp_path / "RESULTS.md")
    (folder / "figure-12.png").unlink()
    page = write_report(tmp_path / "runs", tmp_path / "RESULTS.md").read_text()
    assert not (tmp_path / "results" / "figure-12.png").exists()
    assert "figure-12.png" not in page


def test_the_page_can_be_written_again_without_the_runs(tmp_path):
    store(tmp_path / "runs", "shipped")
    for name in ("original-resnet50", "segmented-resnet50"):
        folder = store(tmp_path / "runs", name).parent
        (folder / "encoder_stage").mkdir()
        (folder / "encoder_stage" / "log.csv").write_text("step,loss,accuracy\n50,1.2,0.5\n100,0.8,0.6\n")
        (folder / "last.pt").write_bytes(b"a network")
    store(tmp_path / "runs", "without-elsewhere")
    first = write_report(tmp_path / "runs", tmp_path / "RESULTS.md").read_text()
    shutil.rmtree(tmp_path / "runs")
    (tmp_path / "results" / "figure-10b.png").unlink()
    assert write_report(tmp_path / "runs", tmp_path / "RESULTS.md").read_text() == first
    assert (tmp_path / "results" / "figure-10b.png").exists()
    assert not list((tmp_path / "results" / "stored").rglob("*.pt"))


def test_every_figure_that_the_page_shows_is_there(tmp_path):
    for name in ("shipped", "original-resnet34", "original-resnet50", "segmented-resnet34", "segmented-resnet50"):
        store(tmp_path / "runs", name)
    page = write_report(tmp_path / "runs", tmp_path / "RESULTS.md").read_text()
    shown = re.findall(r"\]\(([^)]+\.png)\)", page)
    assert shown
    assert all((tmp_path / path).exists() for path in shown)


@pytest.mark.parametrize(
    ("name", "found", "match"),
    [
        ("shipped", {"split": "val"}, "not of the split 'test'"),
        ("original-vgg16", {"source": "armiro"}, "not of the split 'test'"),
        ("without-armiro", {"split": "test"}, "not of the split 'all' and the source 'armiro'"),
        ("without-armiro", {"source": "hannover"}, "not of the split 'all' and the source 'armiro'"),
    ],
)
def test_a_run_measured_on_other_radiographs_is_refused(tmp_path, name, found, match):
    store(tmp_path / "runs", name, **found)
    with pytest.raises(ValueError, match=match):
        write_report(tmp_path / "runs", tmp_path / "RESULTS.md")


def test_missing_runs_are_named_with_the_command_that_makes_them(tmp_path):
    store(tmp_path / "runs", "shipped")
    store(tmp_path / "runs", "original-vgg16")
    page = write_report(tmp_path / "runs", tmp_path / "RESULTS.md").read_text()
    lines = section(page, "Not run").splitlines()
    assert "- `python -m training experiments --data DIR --only original-alexnet`" in lines
    assert "- `python -m training experiments --data DIR --only without-radiography-db`" in lines
    assert not any("vgg16" in line or "shipped" in line for line in lines)


def test_every_run_s_commands_are_shown_with_the_recipe_that_it_kept(tmp_path):
    store(tmp_path / "runs", "original-vgg16")
    weights = tmp_path / "runs" / "original-vgg16" / "weights"
    weights.mkdir()
    (weights / "cxrnet.json").write_text(json.dumps({"training": {"recipe": {"file": "paper.toml"}}}))
    commands = section(write_report(tmp_path / "runs", tmp_path / "RESULTS.md").read_text(), "Commands")
    assert "classify --recipe conf/paper.toml --set encoder=vgg16 --set segmented=false --data DIR" in commands
    assert "classify --recipe conf/experiments-cpu.toml --set encoder=vgg19 --set segmented=false" in commands
    assert "evaluate --data DIR --split all --source armiro --weights runs/without-armiro/weights" in commands


def test_what_is_indeterminate_is_shown(tmp_path):
    store(tmp_path / "runs", "shipped")
    page = write_report(tmp_path / "runs", tmp_path / "RESULTS.md").read_text()
    assert rows(page, "below this confidence, chosen on `val`")[0][1] == "0.610"
    assert rows(page, "radiographs that get an answer")[0][1] == "1.000"


def test_a_limit_for_each_class_is_shown(tmp_path):
    below = {"healthy": 0.9, "covid19_pneumonia": 0.7}
    store(tmp_path / "runs", "shipped", indeterminate={"below": below, "count": 0, "coverage": 1.0, "accuracy": 1.0})
    page = write_report(tmp_path / "runs", tmp_path / "report").read_text()
    assert rows(page, "below this confidence (healthy), chosen on `val`")[0][1] == "0.900"
    assert rows(page, "below this confidence (covid19_pneumonia), chosen on `val`")[0][1] == "0.700"


def test_a_row_of_the_wrong_length_is_noticed():
    with pytest.raises(ValueError, match="2 cells for 1 columns"):
        table(["a"], [["1", "2"]])
