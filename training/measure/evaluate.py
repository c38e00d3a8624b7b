"""Evaluates weights on one split, through the serving pipeline; writes metrics.json and pictures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

import training.encoders  # noqa: F401 - makes them known to CXRNet
from cxr_node.analyse.gate import frontal_score
from cxr_node.analyse.networks import Networks, load_networks
from cxr_node.analyse.pipeline import classifier_inputs, classify_batch, segment_batch
from cxr_node.analyse.torch_engine import use_all_cores
from cxr_node.records import LABELS, Findings, Model
from cxr_node.settings import InferenceSettings
from training.data.dataset import ManifestRow, load_images, load_masks, read_manifest
from training.data.evidence_set import read_items
from training.errors import TrainingError
from training.fit.gate import read_not_frontal
from training.fit.segment import intersection_over_union
from training.measure import metrics
from training.measure.compare import beside
from training.measure.outcomes import by_group, by_source, headline, outcome, outcomes_of, written
from training.measure.probabilities import probabilities as probabilities_of
from training.times import announced

_BATCH = 16
_NO_HEAT = np.zeros((0, 0), np.float32)


def evaluate(
    data: Path,
    split: str,
    weights: Path | None,
    out: Path,
    source: str = "",
    engine: str = "torch",
    hidden: bool = True,
    other: Path | None = None,
) -> dict[str, Any]:
    """Evaluate and write OUT/metrics.json, OUT/probabilities.csv, OUT/confusion.png and OUT/roc.png.

    Every radiograph of the split counts, also one that the gate would turn away: the gate has figures of its own.

    Args:
        data: any folder with a manifest.csv of the known form.
        split: train, val, test or all.
        weights: folder of weight files; None: the shipped ones.
        out: folder, made if missing.
        source: only radiographs of this source; empty: of all.
        engine: `inference.engine`.
        hidden: measure what is answered without the lungs, too, which takes as long again.
        other: folder of other weights, to be compared on the same radiographs (`comparison` of the figures).

    Raises:
        TrainingError: there are no such radiographs.

    Over 60 lines: the figures in the order in which metrics.json has them.
    """
    use_all_cores()
    networks = load_networks(InferenceSettings.model_validate({"weights_dir": weights, "engine": engine}))
    rows = [row for row in read_manifest(data, None if split == "all" else split) if source in ("", row.source)]
    if not rows:
        of_source = f" and the source {source!r}" if source else ""
        raise TrainingError(f"{data / 'manifest.csv'} has no rows of the split {split!r}{of_source}")
    images = load_images(data, rows)
    findings, scores = _run(networks, images)
    classes = _classes(rows[0].classes, networks)
    probabilities = _table(findings, classes)
    lungs = np.stack([one.lungs for one in findings])
    targets = np.array([row.class_index for row in rows])
    adults = np.array([row.population == "adult" for row in rows])
    figures: dict[str, Any] = {
        "split": split,
        **({"source": source} if source else {}),
        "model": {"name": networks.model.name, "version": networks.model.version},
        **metrics.summary(targets, probabilities, classes),
        "by_population": _by([row.population for row in rows], targets, probabilities, classes),
        "by_source": _by([row.source for row in rows], targets, probabilities, classes),
        "adult_covid_vs_healthy": metrics.covid_against_healthy(targets[adults], probabilities[adults]),
        "segmentation": _segmentation(data, rows, lungs),
        "calibration": {
            "ece": metrics.expected_calibration_error(targets, probabilities),
            "temperature": networks.temperature,
        },
        "indeterminate": {
            "below": networks.indeterminate_below,
            **metrics.given(targets, [one.label if not one.indeterminate else "" for one in findings], classes),
        },
        "gate": _gate(data, networks, scores),
        "heat_in_lungs": float(np.mean([one.heat_in_lungs for one in findings])),
        **({"lungs_hidden": _lungs_hidden(networks, images, lungs, targets, adults)} if hidden else {}),
    }
    out.mkdir(parents=True, exist_ok=True)
    splits = ("train", "val", "test") if split == "all" else (split,)
    items = {item.image: item for name in splits for item in read_items(data, name) if source in ("", item.source)}
    outcomes = [outcome(items.pop(row.image), one, classes) for row, one in zip(rows, findings, strict=True)]
    outcomes += outcomes_of(data, list(items.values()), networks, classes)  # those with labels beyond LABELS
    figures["answers"] = {"adults": headline(outcomes), "groups": by_group(outcomes), "sources": by_source(outcomes)}
    (out / "answers.csv").write_text(written(outcomes, classes))
    if other is not None:
        figures["comparison"] = _beside(other, engine, images, targets, probabilities, classes, networks.model)
    (out / "metrics.json").write_text(json.dumps(figures, indent=2) + "\n")
    lines = [
        f"{row.image},{row.label},{','.join(f'{p:.6f}' for p in chances)}"
        for row, chances in zip(rows, probabilities, strict=True)
    ]
    (out / "probabilities.csv").write_text("\n".join([f"image,label,{','.join(classes)}", *lines]) + "\n")
    _draw(np.array(figures["confusion"]), targets, probabilities, classes, out)
    return figures


def _classes(of_data: Sequence[str], networks: Networks) -> tuple[str, ...]:
    """The classes of the data, and those that the weights know beside them."""
    return (*of_data, *(name for name in networks.model.classes if name not in of_data))


def _table(findings: Sequence[Findings], classes: Sequence[str]) -> NDArray[np.float64]:
    """Probabilities, float64 (N, C); 0 for a class that the weights don't know."""
    return np.array([[one.probabilities.get(label, 0.0) for label in classes] for one in findings])


def _beside(
    folder: Path,
    engine: str,
    images: NDArray[np.uint8],
    targets: NDArray[np.int64],
    probabilities: NDArray[np.float64],
    classes: Sequence[str],
    model: Model,
) -> dict[str, Any]:
    """Other weights on the same images, and how both compare."""
    networks = load_networks(InferenceSettings.model_validate({"weights_dir": folder, "engine": engine}))
    names = (f"{networks.model.name} {networks.model.version}", f"{model.name} {model.version}")
    return beside(targets, _table(_run(networks, images)[0], classes), probabilities, classes, names)


def _run(networks: Networks, images: NDArray[np.uint8]) -> tuple[list[Findings], NDArray[np.float64]]:
    """Findings of each image, without their heat, and gate scores (N,)."""
    found: list[Findings] = []
    scores: list[float] = []
    for start in announced(range(0, len(images), _BATCH), f"Answers to {len(images)} radiographs"):
        batch = list(images[start : start + _BATCH])
        masks, bottlenecks = segment_batch(batch, networks)
        found += [replace(one, heatmap=_NO_HEAT) for one in classify_batch(batch, masks, networks)]
        if networks.gate is not None:
            scores += [frontal_score(b, m, networks.gate) for b, m in zip(bottlenecks, masks, strict=True)]
    return found, np.array(scores)


def _lungs_hidden(
    networks: Networks, images: NDArray[np.uint8], lungs: NDArray[np.bool_], targets: NDArray[np.int64], adults: NDArray[np.bool_]
) -> dict[str, Any]:
    """What the answers are when the lungs are blanked: what lies around them should call nobody ill.

    called_healthy: of each class, the share whose answer is healthy then.
    adult_auroc: of COVID-19 against healthy among adults then; 0.5 where nothing around the lungs tells them apart.
    """
    chances = []
    for start in tqdm(range(0, len(images), _BATCH), desc="lungs hidden", mininterval=5):
        part = slice(start, start + _BATCH)
        crops = classifier_inputs(list(images[part]), list(lungs[part]), networks)
        hidden = [np.where(crop.mask, 0, crop.image).astype(np.uint8) for crop in crops]
        chances.append(probabilities_of(networks, hidden, np.stack([crop.mask for crop in crops])))
    found = np.concatenate(chances)
    healthy = found.argmax(axis=1) == LABELS.index("healthy")
    shares = {label: healthy[targets == place] for place, label in enumerate(LABELS)}
    return {
        "called_healthy": {label: float(share.mean()) if share.size else None for label, share in shares.items()},
        "adult_auroc": metrics.covid_against_healthy(targets[adults], found[adults])["auroc"],
    }


def _by(
    groups: list[str], targets: NDArray[np.int64], probabilities: NDArray[np.float64], classes: Sequence[str]
) -> dict[str, Any]:
    found = {}
    for group in sorted(set(groups)):
        chosen = np.array([name == group for name in groups])
        found[group] = metrics.summary(targets[chosen], probabilities[chosen], classes)
    return found


def _segmentation(data: Path, rows: list[ManifestRow], lungs: NDArray[np.bool_]) -> dict[str, float | None]:
    annotated = [index for index, row in enumerate(rows) if row.mask]
    if not annotated:
        return {"iou": None, "dice": None}
    truth = load_masks(data, [rows[index] for index in annotated])
    iou = intersection_over_union(lungs[annotated], truth)
    return {"iou": float(iou.mean()), "dice": float((2 * iou / (1 + iou)).mean()), "count": len(annotated)}


def _gate(data: Path, networks: Networks, scores: NDArray[np.float64]) -> dict[str, float | None]:
    if networks.gate is None:
        return {"frontal_accepted": None, "not_frontal_rejected": None}
    figures: dict[str, float | None] = {
        "frontal_accepted": float((scores >= networks.gate["threshold"]).mean()),
        "not_frontal_rejected": None,
        **{f"training_{name}": value for name, value in networks.gate.get("figures", {}).items()},
    }
    if (data / "not_frontal.csv").exists():
        other = _run(networks, read_not_frontal(data)[0])[1]
        figures["not_frontal_rejected"] = float((other < networks.gate["threshold"]).mean())
    return figures


def _draw(
    confusion: NDArray[np.int64],
    targets: NDArray[np.int64],
    probabilities: NDArray[np.float64],
    classes: Sequence[str],
    out: Path,
) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt
    from sklearn.metrics import RocCurveDisplay

    names = [label.replace("_", "\n") for label in classes]
    figure, axes = plt.subplots(figsize=(6, 5))
    axes.imshow(confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1), cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(confusion):
        axes.text(column, row, str(count), ha="center", va="center")
    axes.set(xticks=range(len(names)), yticks=range(len(names)), xlabel="predicted", ylabel="true")
    axes.set_xticklabels(names)
    axes.set_yticklabels(names)
    figure.tight_layout()
    figure.savefig(out / "confusion.png", dpi=120)
    plt.close(figure)
    figure, axes = plt.subplots(figsize=(6, 5))
    for index, label in enumerate(classes):
        if 0 < (targets == index).sum() < targets.size:
            RocCurveDisplay.from_predictions(targets == index, probabilities[:, index], name=label, ax=axes)
    figure.tight_layout()
    figure.savefig(out / "roc.png", dpi=120)
    plt.close(figure)
