"""Evaluates the explanations: AOPPC, deletion and insertion, heat in the lungs, similarity to the input.

`perturbation` explains how it interprets the paper's perturbation curve; the methods are in `explanations`.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

import training.encoders  # noqa: F401 - makes them known to CXRNet
from cxr_node.analyse.enhance import LungCrop
from cxr_node.analyse.networks import Networks, load_networks
from cxr_node.analyse.pipeline import classifier_inputs, segment_batch
from cxr_node.analyse.torch_engine import use_all_cores
from cxr_node.records import LABELS
from cxr_node.settings import InferenceSettings
from training.data.dataset import ManifestRow, load_images, load_masks, read_manifest
from training.errors import TrainingError
from training.measure.explain_pictures import draw_curves, draw_examples, draw_lungs
from training.measure.explanation_scores import ExplanationCache, ExplanationScores
from training.measure.explanations import METHODS, explanations
from training.measure.perturbation import STEPS, aoppc, area_under, by_rank, correlation, deleted, inserted, normalised, perturbed
from training.measure.probabilities import probabilities

__all__ = ["aoppc", "explain", "perturbed"]

_BATCH = 8
_COVID = LABELS.index("covid19_pneumonia")
_EXAMPLES, _SEGMENTED = 3, 6
CURVES = ("ppc", "deletion", "insertion")


def explain(data: Path, split: str, weights: Path | None, out: Path, limit: int = 0) -> dict[str, Any]:
    """Explain and write OUT/metrics.json (into what `evaluate` left there), curves.csv and pictures.

    What was measured is kept in OUT/explained.jsonl: interrupted, or asked for more images, it goes on from there. One
    image costs some 150 passes of the first encoder.

    As in the paper the perturbation curve is averaged over all images of COVID-19, called so or not, and shows the
    probability of COVID-19; the same is done for each other class with its own probability.

    Args:
        data: folder of the manifest.
        split: train, val or test.
        weights: folder of weight files; None: the shipped ones.
        out: folder, made if missing.
        limit: at most so many images of each class, drawn from all over the manifest; 0: all.
    """
    use_all_cores()
    networks = load_networks(InferenceSettings(weights_dir=weights))
    rows = _spread(read_manifest(data, split), limit)
    if not rows:
        raise TrainingError(f"{data / 'manifest.csv'} has no rows of the split {split!r}")
    stored = _stored(out / "metrics.json", split, networks)
    kept = ExplanationCache(out / "explained.jsonl", networks.model.digest)
    for start in tqdm(range(0, len(rows), _BATCH), desc="explain", mininterval=5):
        batch = [row for row in rows[start : start + _BATCH] if row.image not in kept.images]
        if not batch:
            continue
        for row, _, crop, heat in _heats(data, batch, networks):
            annotated = load_masks(data, [row])[0] if row.mask else None
            kept.add(row.image, _explained(row, crop, heat, annotated, networks))
    explained = [kept.images[row.image] for row in rows]
    figures = {**stored, **_figures(explained, split, limit, networks)}
    (out / "metrics.json").write_text(json.dumps(figures, indent=2) + "\n")
    _write_curves(explained, out / "curves.csv")
    _draw(data, rows, explained, networks, out)
    draw_curves(out / "curves.csv", figures["aoppc"], out)
    return figures


def _heats(
    data: Path, rows: list[ManifestRow], networks: Networks
) -> Iterator[tuple[ManifestRow, NDArray[np.uint8], LungCrop, dict[str, NDArray[np.float32]]]]:
    """For each row its prepared image, what the classifier gets of it, and its heat maps by METHODS."""
    images = list(load_images(data, rows))
    masks, _ = segment_batch(images, networks)
    crops = classifier_inputs(images, masks, networks)
    shown, lungs = [crop.image for crop in crops], [crop.mask for crop in crops]
    heats = explanations(networks, shown, [row.class_index for row in rows], lungs)
    for index, (row, crop) in enumerate(zip(rows, crops, strict=True)):
        yield row, images[index], crop, {method: heats[method][index] for method in METHODS}


def _draw(data: Path, rows: list[ManifestRow], explained: list[ExplanationScores], networks: Networks, out: Path) -> None:
    """Figures 8 and 12: the first radiographs with annotated lungs, and the first of COVID-19 that are called so."""
    annotated = [row for row in rows if row.mask][:_SEGMENTED]
    if annotated:
        images = load_images(data, annotated)
        found, _ = segment_batch(list(images), networks)
        by_people = load_masks(data, annotated)
        lungs = zip(images, found, by_people, strict=True)
        draw_lungs([{"image": image, "found": mask, "annotated": truth} for image, mask, truth in lungs], out / "figure-8.png")
    called = [
        row
        for row, one in zip(rows, explained, strict=True)
        if row.class_index == _COVID and one.curves["cxrnet"]["ppc"][0] > 0.5
    ][:_EXAMPLES]
    if called:
        examples: list[dict[str, NDArray[Any]]] = [
            {**{method: normalised(heat[method], crop.shown) for method in METHODS}, "crop": crop.image}
            for _, _, crop, heat in _heats(data, called, networks)
        ]
        draw_examples(examples, out / "figure-12.png")


def _spread(rows: list[ManifestRow], limit: int) -> list[ManifestRow]:
    """At most `limit` rows of each class, drawn from all over the manifest; all for 0. More are those of fewer and others."""
    chosen = []
    for label in LABELS:
        of_class = [row for row in rows if row.label == label]
        drawn = np.random.default_rng(0).permutation(len(of_class))
        chosen += [of_class[index] for index in sorted(drawn[: limit or len(of_class)])]
    return chosen


def _stored(path: Path, split: str, networks: Networks) -> dict[str, Any]:
    """What is in metrics.json already, if it is of the same split and weights.

    Raises:
        TrainingError: it isn't, and would be mixed up.
    """
    if not path.exists():
        return {}
    figures: dict[str, Any] = json.loads(path.read_text())
    model = {"name": networks.model.name, "version": networks.model.version}
    if figures.get("split") != split or figures.get("model") != model:
        raise TrainingError(
            f"{path} holds figures of the split {figures.get('split')!r} and of {figures.get('model')}: choose another --out"
        )
    return figures


def _explained(
    row: ManifestRow,
    crop: LungCrop,
    heat: dict[str, NDArray[np.float32]],
    annotated: NDArray[np.bool_] | None,
    networks: Networks,
) -> ExplanationScores:
    changed = [crop.image]
    for method in METHODS:
        importance = normalised(heat[method], crop.shown)
        ranks = by_rank(importance, crop.shown)
        changed += [perturbed(crop.image, importance, x) for x in STEPS]
        changed += [deleted(crop.image, ranks, x) for x in STEPS]
        changed += [inserted(crop.image, ranks, x) for x in (0.0, *STEPS[:-1])]
    chances = probabilities(networks, changed, crop.mask)[:, row.class_index]
    untouched, following = chances[:1].tolist(), chances[1:].reshape(len(METHODS), len(CURVES), len(STEPS)).tolist()
    curves = {
        method: {
            "ppc": [*untouched, *following[place][0]],
            "deletion": [*untouched, *following[place][1]],
            "insertion": [*following[place][2], *untouched],
        }
        for place, method in enumerate(METHODS)
    }
    whole = {method: crop.to_prepared(heat[method], annotated.shape) for method in METHODS} if annotated is not None else {}
    return ExplanationScores(
        row.class_index,
        curves,
        {method: _share(heat[method], crop.mask) for method in METHODS},
        {method: _share(whole[method], annotated) if annotated is not None else None for method in METHODS},
        {method: correlation(heat[method], crop.image, crop.shown) for method in METHODS},
    )


def _share(heat: NDArray[np.float32], inside: NDArray[np.bool_]) -> float:
    total = float(heat.sum())
    return float(heat[inside].sum()) / total if total > 0 else 1.0


def _figures(explained: list[ExplanationScores], split: str, limit: int, networks: Networks) -> dict[str, Any]:
    methods: dict[str, Any] = {}
    for method in METHODS:
        annotated = [share for one in explained if (share := one.heat_in_annotated_lungs[method]) is not None]
        methods[method] = {
            "aoppc": {label: _of_class(explained, method, "ppc", index, aoppc) for index, label in enumerate(LABELS)},
            **{
                f"{kind}_auc": {
                    label: _of_class(explained, method, kind, index, area_under) for index, label in enumerate(LABELS)
                }
                for kind in ("deletion", "insertion")
            },
            "heat_in_lungs": float(np.mean([one.heat_in_lungs[method] for one in explained])),
            "heat_in_annotated_lungs": float(np.mean(annotated)) if annotated else None,
            "input_correlation": float(np.mean([one.input_correlation[method] for one in explained])),
        }
    counts = {label: sum(one.label == index for one in explained) for index, label in enumerate(LABELS)}
    return {
        "split": split,
        "model": {"name": networks.model.name, "version": networks.model.version},
        "aoppc": {method: methods[method]["aoppc"][LABELS[_COVID]] for method in ("cxrnet", "gradcam", "saliency")},
        "heat_in_lungs": methods["cxrnet"]["heat_in_lungs"],
        "explanations": {
            "limit": limit,
            "images": counts,
            "annotated_images": sum(one.heat_in_annotated_lungs["cxrnet"] is not None for one in explained),
            "methods": methods,
        },
    }


def _of_class(explained: list[ExplanationScores], method: str, kind: str, label: int, figure: Any) -> float | None:
    curves = [one.curves[method][kind] for one in explained if one.label == label]
    return float(figure(np.array(curves))) if curves else None


def _write_curves(explained: list[ExplanationScores], path: Path) -> None:
    """Mean probability of the true class by label, method, curve and x, with the number of images."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["label", "method", "curve", "x", "probability", "images"])
        for index, label in enumerate(LABELS):
            of_class = [one for one in explained if one.label == index]
            for method in METHODS if of_class else ():
                for kind in CURVES:
                    means = np.mean([one.curves[method][kind] for one in of_class], axis=0)
                    for x, probability in zip((0.0, *STEPS), means, strict=True):
                        writer.writerow([label, method, kind, x, f"{probability:.6f}", len(of_class)])
