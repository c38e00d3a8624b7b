"""Reads stored runs. A run that does not exist, or lacks a figure, is None, never a number.

RUNS/NAME is the output of `segment` or `classify`, RUNS/NAME/weights that of `export`, and RUNS/NAME/test that of `evaluate` and
`explain` on the split `test`. RUNS/shipped/test is measured with the weights that come
with the program. RUNS/without-SOURCE/unseen is measured on all radiographs of the source that the training left out.

`report` keeps what it read of each run in results/stored beside its page, without networks and pictures: the page can be
written again where the runs themselves are gone.
"""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cxr_node.nets.weights import shipped_folder
from training.errors import TrainingError

SHIPPED = "shipped"
SEGMENTATION = "segment"
IMAGE_FORM = "representation-image"
LEFT_OUT_PREFIX = "without-"
PRETRAINED = "resnet50_v1"
"""The encoder whose ImageNet weights are at hand."""


def experiment(encoder: str, segmented: bool) -> str:
    """Name of the run of the paper's experiment with an encoder on original or lung-segmented images."""
    return f"{'segmented' if segmented else 'original'}-{encoder}"


@dataclass(frozen=True)
class Run:
    """One stored run; `metrics` is None where nothing was measured."""

    name: str
    folder: Path
    metrics: dict[str, Any] | None

    def figure(self, *keys: str) -> float | None:
        """A number of metrics.json by its keys; None where there is none."""
        found: Any = self.metrics
        for key in keys:
            if not isinstance(found, dict):
                return None
            found = found.get(key)
        return float(found) if isinstance(found, (int, float)) and not isinstance(found, bool) else None

    @property
    def measured(self) -> Path:
        """Folder of metrics.json and its pictures."""
        return self.folder / measured_folder(self.name)

    def recipe(self) -> dict[str, Any] | None:
        """The recipe that the run's weights say they were trained by."""
        path = (shipped_folder() if self.name == SHIPPED else self.folder / "weights") / "cxrnet.json"
        if not path.exists():
            return None
        recipe = json.loads(path.read_text()).get("training", {}).get("recipe")
        return recipe if isinstance(recipe, dict) else None

    def curve(self, column: str) -> list[tuple[float, float]]:
        """Step and value of a column of the run's log; the first stage's where there are stages; empty without a log."""
        for path in (*(self.folder / stage / "log.csv" for stage in ("encoder_stage", "joint_stage")), self.folder / "log.csv"):
            if not path.exists():
                continue
            with path.open(newline="") as file:
                rows = [row for row in csv.DictReader(file) if row.get(column)]
            if rows:
                return [(float(row["step"]), float(row[column])) for row in rows]
        return []


def measured_folder(name: str) -> str:
    """Where in a run's folder its figures are."""
    return "unseen" if name.startswith(LEFT_OUT_PREFIX) else "test"


def read_run(runs: Path, name: str, kept: Path | None = None) -> Run:
    """A run by its name, whether it is there or not; where RUNS doesn't have it, as it was kept.

    Raises:
        TrainingError: it was measured on other radiographs than its name says.
    """
    folder = runs / name
    if kept is not None and not folder.exists():
        folder = kept / name
    path = folder / measured_folder(name) / "metrics.json"
    metrics = json.loads(path.read_text()) if path.exists() else None
    source = name.removeprefix(LEFT_OUT_PREFIX) if name.startswith(LEFT_OUT_PREFIX) else ""
    meant = ("all" if source else "test", source)
    if metrics is not None and (metrics.get("split"), metrics.get("source", "")) != meant:
        found = f"of the split {metrics.get('split')!r} and the source {metrics.get('source', '')!r}"
        raise TrainingError(f"{path} is {found}, not of the split {meant[0]!r} and the source {meant[1]!r}")
    return Run(name, folder, metrics)


def keep_run(run: Run, kept: Path) -> None:
    """Copy what a report reads of a run to KEPT/NAME, but for pictures: they show radiographs."""
    target = kept / run.name
    if run.folder == target or not run.folder.exists():
        return
    shutil.rmtree(target, ignore_errors=True)
    for pattern in ("log.csv", "*_stage/log.csv", "weights/cxrnet.json", "*/metrics.json", "*/heat.json", "*/curves.csv"):
        for path in run.folder.glob(pattern):
            copy = target / path.relative_to(run.folder)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
