"""Evaluates a recipe on unseen hospitals: each source is left out in turn, in the shipped architecture.

The shipped weights have seen every source. Each of these networks therefore starts from ImageNet weights, is trained on evidence
without the source, calibrated on `val` without it, and evaluated on all of it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cxr_node.analyse.networks import load_networks
from cxr_node.analyse.torch_engine import use_all_cores
from cxr_node.settings import InferenceSettings
from training.data.evidence_set import read_items
from training.errors import TrainingError
from training.fit import evidence
from training.fit.export import export
from training.fit.recipe import EvidenceRecipe, keep_recipe
from training.measure.outcomes import by_group, by_source, headline, outcomes_of, written

SPLITS = ("train", "val", "test")


def unseen(
    data: Path,
    recipe: Path,
    runs: Path,
    segment: Path,
    imagenet: Path,
    only: Sequence[str] = (),
    settings: Sequence[str] = (),
    most: int = 0,
) -> dict[str, Any]:
    """Train without each source, measure on it, and write RUNS/unseen.json; what is there already is kept, what stopped goes on.

    Args:
        data: folder of the manifests.
        recipe: of the evidence stage.
        runs: folder; each source has RUNS/without-SOURCE.
        segment: the lung U-Net.
        imagenet: what the encoder begins with.
        only: sources; none: all.
        settings: other values of the recipe, such as seconds=600.
        most: at most so many radiographs of each label of the source are measured; 0: all.

    Returns:
        figures by source, and "mean", over the sources that have such radiographs.

    Raises:
        TrainingError: there is no such source.
    """
    sources = sorted({item.source for item in read_items(data, "train")})
    if unknown := set(only) - set(sources):
        raise TrainingError(f"No source {', '.join(sorted(unknown))}: there are {', '.join(sources)}.")
    for source in only or sources:
        run = runs / f"without-{source}"
        if not (run / "last.pt").exists():
            evidence.train(keep_recipe(recipe, EvidenceRecipe, settings, run), data, segment, None, run, source, imagenet)
        if not (run / "weights" / "cxrnet.json").exists():
            export(segment, run / "last.pt", None, data, f"without-{source}", run / "weights")
        if not (run / "outcomes.json").exists():
            _measure(data, source, run, most)
    found = {
        path.parent.name.removeprefix("without-"): json.loads(path.read_text())
        for path in sorted(runs.glob("without-*/outcomes.json"))
    }
    figures = {**found, "mean": _mean([one["headline"] for one in found.values()])}
    (runs / "unseen.json").write_text(json.dumps(figures, indent=2) + "\n")
    return figures


def _measure(data: Path, source: str, run: Path, most: int) -> None:
    use_all_cores()
    networks = load_networks(InferenceSettings(weights_dir=run / "weights"))
    items = [item for split in SPLITS for item in read_items(data, split) if item.source == source]
    if most:
        labels = sorted({item.label for item in items})
        items = [
            group[int(k)]
            for label in labels
            for group in [[item for item in items if item.label == label]]
            for k in np.linspace(0, len(group) - 1, min(most, len(group)))
        ]
    outcomes = outcomes_of(data, items, networks)
    (run / "answers.csv").write_text(written(outcomes))
    description = json.loads((run / "weights" / "cxrnet.json").read_text())
    figures = {
        "count": len(outcomes),
        "headline": headline(outcomes),
        "groups": by_group(outcomes),
        "within": by_source(outcomes)[source],
        "steps": description["training"]["steps"],
        "seconds": description["training"]["recipe"]["seconds"],
    }
    (run / "outcomes.json").write_text(json.dumps(figures, indent=2) + "\n")


def _mean(rows: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    """The mean of each share over the sources that have it, however large they are."""
    means: dict[str, float | None] = {}
    for name in rows[0] if rows else ():
        values = [row[name] for row in rows if row[name] is not None and not name.endswith("_count")]
        means[name] = float(np.mean(values)) if values else None
    return {name: value for name, value in means.items() if not name.endswith("_count")}
