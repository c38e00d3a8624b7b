"""Compares heat with radiologists' marks: CXRNet's, Grad-CAM's, a saliency map's, and baselines without a network.

With marks (marks.csv): pixel ranking, location of the peak, share of the heat inside the marks, overlap. With severity scores
of six zones (zone_scores.csv): rank correlation. On healthy lungs: the share with heat. With the answer: deletion and insertion
(`perturbation`).
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata, spearmanr
from tqdm import tqdm

import training.encoders  # noqa: F401 - makes them known to CXRNet
from cxr_node.analyse.networks import Networks, load_networks
from cxr_node.analyse.pipeline import classifier_inputs, heatmap_of, segment_batch
from cxr_node.analyse.segment import right_and_left, zone_rows
from cxr_node.analyse.torch_engine import use_all_cores
from cxr_node.prepare.network_image import NETWORK_SIZE_PX
from cxr_node.records import LABELS, ZONES
from cxr_node.settings import InferenceSettings
from training.data.dataset import load_prepared
from training.data.evidence_set import KnownRadiograph, read_items, read_mark
from training.errors import TrainingError
from training.measure.explanations import explanations
from training.measure.perturbation import STEPS, area_under, by_rank, deleted, inserted
from training.measure.probabilities import probabilities

METHODS = ("cxrnet", "gradcam", "saliency", "brightness", "depth")
"""brightness: the image itself. depth: distance from the lungs' edge. Neither looks for disease: the others have to beat them."""

_BATCH = 8
_FEW_PX = 20
_WARM = 0.25

Heat = NDArray[np.float32]
Mask = NDArray[np.bool_]


def heat(data: Path, split: str, weights: Path | None, out: Path, limit: int = 10, healthy: int = 200) -> dict[str, Any]:
    """Measure, write OUT/heat.json, and return what it says.

    Args:
        data: folder of the manifests, marks.csv and zone_scores.csv.
        split: train, val or test.
        weights: folder of weight files; None: the shipped ones.
        out: folder, made if missing.
        limit: deletion and insertion are measured on at most so many images of each disease; they are dear.
        healthy: at most so many healthy images.

    Raises:
        TrainingError: no image of the split has marks.
    """
    use_all_cores()
    networks = load_networks(InferenceSettings(weights_dir=weights))
    items = read_items(data, split)
    marked = [item for item in items if item.mark]
    if not marked:
        raise TrainingError(f"{data / 'marks.csv'} marks no image of the split {split!r}")
    figures: dict[str, Any] = {"split": split, "model": {"name": networks.model.name, "version": networks.model.version}}
    by_kind = {kind: [item for item in marked if item.kind == kind] for kind in ("outline", "box")}
    figures["marks"] = {kind: _by_marks(data, chosen, networks) for kind, chosen in by_kind.items()}
    scores = read_zone_scores(data / "zone_scores.csv")
    figures["zones"] = _by_zones(data, [item for item in items if item.image in scores], scores, networks)
    figures["healthy"] = _on_healthy(data, _spread([item for item in items if item.label == "healthy"], healthy), networks)
    figures["curves"] = {
        label: _by_answer(data, _spread([item for item in items if item.label == label], limit), networks) for label in LABELS[1:]
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "heat.json").write_text(json.dumps(figures, indent=2) + "\n")
    return figures


def pixel_auroc(values: Heat, marked: Mask) -> float:
    """Chance that a marked pixel has more heat than an unmarked one, ties counting half.

    Args:
        values: float32 (K,), of the lungs' pixels.
        marked: bool (K,), of both kinds at least one.
    """
    count = int(marked.sum())
    ranks = rankdata(values)
    return float((ranks[marked].sum() - count * (count + 1) / 2) / (count * (marked.size - count)))


def of_mark(values: Heat, marked: Mask) -> dict[str, float]:
    """How well the heat of the lungs' pixels, float32 (K,) in 0..1, agrees with their mark, bool (K,).

    pointing: 1 where the hottest pixel is marked. lift: share of the heat in the mark over the mark's share of the lungs.
    iou: of the mark and the pixels from 0.5 on.
    """
    total = float(values.sum())
    hot = values >= 0.5
    either = int((hot | marked).sum())
    return {
        "auroc": pixel_auroc(values, marked),
        "pointing": float(marked[values.argmax()]),
        "lift": float(values[marked].sum()) / total / float(marked.mean()) if total > 0 else 0.0,
        "iou": int((hot & marked).sum()) / either if either else 0.0,
    }


def zones_of(lungs: Mask) -> dict[tuple[str, str], Mask]:
    """The six zones, bool (H, W) each, as the node divides lungs."""
    zones = {}
    for side, lung in zip(("right", "left"), right_and_left(lungs), strict=True):
        bounds = (0, *zone_rows(lung), lung.shape[0])
        for zone, first, last in zip(ZONES, bounds[:-1], bounds[1:], strict=True):
            zones[side, zone] = np.zeros_like(lung)
            zones[side, zone][first:last] = lung[first:last]
    return zones


def read_zone_scores(path: Path) -> dict[str, dict[tuple[str, str], float]]:
    """Severity of each zone by image: the sum of both radiologists' 0 to 3; nothing where the table isn't there."""
    if not path.exists():
        return {}
    with path.open(newline="") as file:
        return {
            row["image"]: {
                (side, zone): float(row[f"{side}_{zone}_senior"]) + float(row[f"{side}_{zone}_junior"])
                for side in ("right", "left")
                for zone in ZONES
            }
            for row in csv.DictReader(file)
        }


def _by_marks(data: Path, items: list[KnownRadiograph], networks: Networks) -> dict[str, Any]:
    found: dict[str, list[dict[str, float]]] = {method: [] for method in METHODS}
    areas = []
    for item, lungs, maps in _maps(data, items, networks):
        marked = read_mark(data, item, lungs.shape)[lungs]
        if min(marked.sum(), (~marked).sum()) < _FEW_PX:
            continue
        areas.append(float(marked.mean()))
        for method in METHODS:
            found[method].append(of_mark(maps[method][lungs], marked))
    means = {
        method: {key: float(np.mean([row[key] for row in rows])) for key in rows[0]} for method, rows in found.items() if rows
    }
    return {"count": len(areas), "mark_area": float(np.mean(areas)) if areas else None, "methods": means}


def _by_zones(
    data: Path, items: list[KnownRadiograph], scores: dict[str, dict[tuple[str, str], float]], networks: Networks
) -> dict[str, Any]:
    given: list[float] = []
    seen: dict[str, list[float]] = {method: [] for method in METHODS}
    whole: dict[str, list[float]] = {method: [] for method in METHODS}
    for item, lungs, maps in _maps(data, items, networks):
        for place, zone in zones_of(lungs).items():
            if zone.any():
                given.append(scores[item.image][place])
                for method in METHODS:
                    seen[method].append(float(maps[method][zone].mean()))
        for method in METHODS:
            whole[method].append(float(maps[method][lungs].mean()))
    if len(items) < 3:
        return {"count": len(items)}
    sums = [sum(scores[item.image].values()) for item in items]
    return {
        "count": len(items),
        "zones": len(given),
        "correlation": {method: float(spearmanr(given, seen[method]).statistic) for method in METHODS},
        "whole_image": {method: float(spearmanr(sums, whole[method]).statistic) for method in METHODS},
    }


def _on_healthy(data: Path, items: list[KnownRadiograph], networks: Networks) -> dict[str, Any]:
    shares = [float((drawn[lungs] >= _WARM).mean()) for _, lungs, drawn in _own(data, items, networks)]
    return {"count": len(shares), "share_warm": float(np.mean(shares)) if shares else None}


def _by_answer(data: Path, items: list[KnownRadiograph], networks: Networks) -> dict[str, Any]:
    """Area under deletion and insertion curves of the true class's probability, by method."""
    curves: dict[str, dict[str, list[list[float]]]] = {method: {"deletion": [], "insertion": []} for method in METHODS}
    for item, crop, maps in _crops(data, items, networks):
        changed = [crop.image]
        for method in METHODS:
            ranks = by_rank(maps[method], crop.shown)
            changed += [deleted(crop.image, ranks, x) for x in STEPS]
            changed += [inserted(crop.image, ranks, x) for x in (0.0, *STEPS[:-1])]
        chances = probabilities(networks, changed, crop.mask)[:, LABELS.index(item.label)]
        untouched, following = float(chances[0]), chances[1:].reshape(len(METHODS), 2, len(STEPS)).tolist()
        for place, method in enumerate(METHODS):
            curves[method]["deletion"].append([untouched, *following[place][0]])
            curves[method]["insertion"].append([*following[place][1], untouched])
    if not items:
        return {"count": 0}
    areas = {
        kind: {method: area_under(np.array(curves[method][kind])) for method in METHODS} for kind in ("deletion", "insertion")
    }
    return {"count": len(items), **areas}


def _maps(
    data: Path, items: list[KnownRadiograph], networks: Networks
) -> Iterator[tuple[KnownRadiograph, Mask, dict[str, Heat]]]:
    """For each item its lungs, bool (H, W), and its maps by METHODS, float32 (H, W) in 0..1; CXRNet's as results show it."""
    for item, crop, maps in _crops(data, items, networks):
        shape = (NETWORK_SIZE_PX, NETWORK_SIZE_PX)
        lungs = crop.to_prepared(crop.mask.astype(np.float32), shape) >= 0.5
        placed = {method: crop.to_prepared(one, shape) for method, one in maps.items()}
        yield item, lungs, {**placed, "cxrnet": heatmap_of(maps["cxrnet"], crop, lungs)}


def _own(data: Path, items: list[KnownRadiograph], networks: Networks) -> Iterator[tuple[KnownRadiograph, Mask, Heat]]:
    """For each item its lungs and CXRNet's heat alone, which is cheap."""
    for start in tqdm(range(0, len(items), _BATCH), desc="healthy", mininterval=10):
        batch = items[start : start + _BATCH]
        images = [load_prepared(data / item.image) for item in batch]
        crops = classifier_inputs(images, segment_batch(images, networks)[0], networks)
        examined = networks.examine([crop.image for crop in crops], [crop.mask for crop in crops])
        for item, crop, drawn in zip(batch, crops, examined.heat, strict=True):
            yield item, crop.mask, drawn


def _crops(
    data: Path, items: list[KnownRadiograph], networks: Networks
) -> Iterator[tuple[KnownRadiograph, Any, dict[str, Heat]]]:
    """For each item what the classifier gets of it, and its maps by METHODS in that frame, float32 (S, S) in 0..1."""
    for start in tqdm(range(0, len(items), _BATCH), desc="maps", mininterval=10):
        batch = items[start : start + _BATCH]
        images = [load_prepared(data / item.image) for item in batch]
        crops = classifier_inputs(images, segment_batch(images, networks)[0], networks)
        shown, lungs = [crop.image for crop in crops], [crop.mask for crop in crops]
        chances = networks.classify(shown, lungs)[0]
        classes = [  # where no germ is named, the pneumonia that the network thinks of
            LABELS.index(item.label) if item.label in LABELS else 1 + int(one[1:].argmax())
            for item, one in zip(batch, chances, strict=True)
        ]
        found = explanations(networks, shown, classes, lungs)
        for place, (item, crop) in enumerate(zip(batch, crops, strict=True)):
            depth = cv2.distanceTransform(crop.mask.astype(np.uint8), cv2.DIST_L2, 5).astype(np.float32)
            maps = {
                "cxrnet": found["cxrnet"][place],
                "gradcam": _to_one(found["gradcam"][place], crop.mask),
                "saliency": _to_one(cv2.GaussianBlur(found["saliency"][place], (0, 0), 2.0).astype(np.float32), crop.mask),
                "brightness": crop.image.astype(np.float32) / np.float32(255),
                "depth": _to_one(depth, crop.mask),
            }
            yield item, crop, maps


def _to_one(values: Heat, lungs: Mask) -> Heat:
    """Values brought to at most 1 within the lungs, float32 (H, W)."""
    top = float(values[lungs].max()) if lungs.any() else 0.0
    return np.clip(values / top, 0, 1).astype(np.float32) if top > 0 else np.zeros_like(values)


def _spread(items: list[KnownRadiograph], most: int) -> list[KnownRadiograph]:
    """At most so many items, from all over the list."""
    return items if len(items) <= most else [items[int(k)] for k in np.linspace(0, len(items) - 1, most)]
