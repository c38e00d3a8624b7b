"""Reads what runs left on disk. A run that isn't there, or lacks a figure, is None, never a number.

RUNS/NAME is what `segment` or `classify` wrote, RUNS/NAME/weights what `export` made of it, and RUNS/NAME/test what
`evaluate` and `explain` measured with it on the split `test`. RUNS/shipped/test is measured with the weights that come
with the program.
"""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SHIPPED = "shipped"
SEGMENTATION = "segment"
IMAGE_FORM = "representation-image"
LEFT_OUT_PREFIX = "without-"


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
        return self.folder / "test"

    def recipe(self) -> dict[str, Any] | None:
        """The recipe that the run's weights say they were trained by."""
        path = self.folder / "weights" / "cxrnet.json"
        if not path.exists():
            return None
        recipe = json.loads(path.read_text()).get("training", {}).get("recipe")
        return recipe if isinstance(recipe, dict) else None

    def curve(self, column: str) -> list[tuple[float, float]]:
        """Step and value of a column of the run's log; the first stage's where there are stages; empty without a log."""
        for path in (self.folder / "encoder_stage" / "log.csv", self.folder / "log.csv"):
            if not path.exists():
                continue
            with path.open(newline="") as file:
                rows = [row for row in csv.DictReader(file) if row.get(column)]
            if rows:
                return [(float(row["step"]), float(row[column])) for row in rows]
        return []


def read_run(runs: Path, name: str) -> Run:
    """A run by its name, whether it is there or not."""
    path = runs / name / "test" / "metrics.json"
    metrics = json.loads(path.read_text()) if path.exists() else None
    if metrics is not None and metrics.get("split") not in (None, "test"):
        raise ValueError(f"{path} is of the split {metrics['split']!r}, not of test")
    return Run(name, runs / name, metrics)


def left_out_sources(runs: Path) -> list[Run]:
    """Runs that were trained without one source, RUNS/without-SOURCE."""
    return [read_run(runs, path.name) for path in sorted(runs.glob(f"{LEFT_OUT_PREFIX}*")) if path.is_dir()]


def commands(name: str) -> str:
    """The commands that make a run and measure it."""
    if name == SHIPPED:
        lines = [f"python -m training {verb} --data DIR --split test --out runs/{name}/test" for verb in ("evaluate", "explain")]
    else:
        lines = [
            f"python -m training classify --recipe conf/{name}.toml --data DIR --out runs/{name}",
            f"python -m training export --data DIR --version {name} --classify runs/{name}/last.pt --out runs/{name}/weights",
            f"python -m training evaluate --data DIR --split test --weights runs/{name}/weights --out runs/{name}/test",
        ]
    if name == IMAGE_FORM:
        lines.append(lines[-1].replace("training evaluate", "training explain"))
    return "\n".join(lines)
