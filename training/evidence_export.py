"""Turn a checkpoint of the evidence stage into weight files.

What is usual of images is measured on `train`; how the network answers is chosen on `val`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from cxr_node.analyse.answer import AnswerRule, pooled, probabilities
from cxr_node.analyse.enhance import classifier_input
from cxr_node.nets import weights
from cxr_node.nets.cxrnet import DECODER_CHANNELS, USUAL_AXES, CXRNet
from cxr_node.nets.unet import UNet
from cxr_node.prepare.network_image import NETWORK_SIZE_PX
from cxr_node.records import LABELS
from training.evidence_set import OTHER, UNSPECIFIED, Examples, Item, load_examples
from training.metrics import fit_temperature, indeterminate_threshold
from training.place import take_place

PNEUMONIAS = LABELS[1:]

SUSPECTED_WRONGLY = 0.02
"""Share of `val` without other disease that may be suspected of it."""

FARTHEST = 0.995
"""Share of `val` that is no farther from the training images than what is answered."""

_USUAL = 600
"""Images of `train` that say what is usual."""

_BATCH = 16


class Seen(NamedTuple):
    """What the network says of examples: pooled evidence (N,), kinds' logits (N, 3), other disease's (N,), features (N, K)."""

    scores: NDArray[np.float64]
    which: NDArray[np.float32]
    other: NDArray[np.float32]
    features: NDArray[np.float32]


def export_evidence(state: dict[str, Any], unet: UNet, cache: Path, data: Path, version: str, out: Path, licence: str) -> None:
    """Write cxrnet to OUT.

    Args:
        state: last.pt of `evidence`.
        unet: finds the lungs.
        cache: folder of prepared examples.
        data: folder of the manifests.
        version: of the model.
        out: folder.
        licence: what the JSON says of it.
    """
    recipe, without = state["recipe"], state.get("without", "")
    network = CXRNet(recipe["encoder"], representation=recipe["representation"], answer="evidence")
    network.load_state_dict(state["network"])
    network.eval()
    train, val = (load_examples(data, split, unet, cache, without) for split in ("train", "val"))
    usual = np.random.default_rng(0).permutation(len(train.items))[:_USUAL]
    set_usual(network, look(network, train, recipe["input_size_px"], usual).features)
    seen = look(network, val, recipe["input_size_px"], np.arange(len(val.items)))
    with torch.inference_mode():
        distances = network.distance(torch.from_numpy(seen.features)).numpy()
    rule = choose_rule(val.items, seen, distances)
    chances = probabilities(seen.scores, seen.which, rule)
    known = np.array([item.label in LABELS for item in val.items])
    targets = np.array([LABELS.index(item.label) for item in val.items if item.label in LABELS])
    weights.save(
        out,
        "cxrnet",
        network,
        {
            "name": "CXRNet",
            "version": version,
            "architecture": {
                "encoder": recipe["encoder"],
                "representation": recipe["representation"],
                "decoder_channels": list(DECODER_CHANNELS),
                "answer": "evidence",
            },
            "classes": list(LABELS),
            "preprocessing": {
                "network_size_px": NETWORK_SIZE_PX,
                "input_size_px": recipe["input_size_px"],
                "segmented": recipe["segmented"],
            },
            "calibration": {"temperature": rule.temperature},
            "answer": {key: round(getattr(rule, key), 5) for key in rule.__annotations__},
            "indeterminate_below": indeterminate_threshold(targets, chances[known]),
            "training": {
                "manifest_sha256": state["data"],
                "without": without,
                "begun_with": state.get("begun_with", ""),
                "steps": state.get("steps", 0),
                "recipe": recipe,
            },
            "metrics": {"val_accuracy": float((chances[known].argmax(1) == targets).mean())},
            "licence": licence,
        },
    )


def look(network: CXRNet, examples: Examples, size_px: int, chosen: NDArray[np.int64]) -> Seen:
    """What the network says of chosen examples, prepared as serving does."""
    place = take_place()
    network.to(place.device)
    scores, parts = [], []
    with torch.inference_mode():
        for start in range(0, len(chosen), _BATCH):
            crops = [
                classifier_input(examples.images[k], examples.lungs[k], size_px, segmented=False)
                for k in chosen[start : start + _BATCH]
            ]
            image = place.put(torch.from_numpy(np.stack([crop.image for crop in crops])).float().div(255).unsqueeze(1))
            with place.autocast():
                features = network.encode(image)
                evidence = network.draw_logits(features, image)
                deepest = features[-1].mean((2, 3))
                which = network.which_pneumonia(deepest, network.second_look(image, evidence))
                other = network.other(deepest)[:, 0]
            scores.append(pooled(evidence[:, 0].float().cpu().numpy(), np.stack([crop.mask for crop in crops])))
            parts.append([part.float().cpu().numpy() for part in (which, other, deepest)])
    network.to("cpu")
    which, other, features = (np.concatenate(part) for part in zip(*parts, strict=True))
    return Seen(np.concatenate(scores), which, other, features)


@torch.no_grad()
def set_usual(network: CXRNet, features: NDArray[np.float32]) -> None:
    """Have the network know what features, float32 (N, K), the training images have; see `CXRNet.distance`."""
    mean = features.mean(axis=0)
    _, spread, axes = np.linalg.svd(features - mean, full_matrices=False)
    axes = axes[:USUAL_AXES].astype(np.float16).astype(np.float32)  # as they will be stored
    away = features - mean
    along = away @ axes.T
    beside = (away**2).sum(axis=1) - (along**2).sum(axis=1)
    network.usual_mean.copy_(torch.from_numpy(mean))
    network.usual_axes.zero_()
    network.usual_axes[: len(axes)].copy_(torch.from_numpy(axes))
    spreads = np.ones(USUAL_AXES + 1, np.float32)
    spreads[: len(axes)] = np.maximum(spread[: len(axes)] / np.sqrt(len(features)), 1e-6)
    spreads[-1] = np.sqrt(max(float(beside.mean()), 1e-12))
    network.usual_spread.copy_(torch.from_numpy(spreads))


def choose_rule(items: list[Item], seen: Seen, distances: NDArray[np.float32]) -> AnswerRule:
    """How answers follow from what the network sees, from `val`.

    Whether there is pneumonia is fitted with the same weight for every label of every source, so that no large source
    sets the limit for all.
    """
    labels = np.array([item.label for item in items])
    ill = np.isin(labels, [*PNEUMONIAS, UNSPECIFIED])
    told = ill | (labels == "healthy")
    groups = [f"{item.label} {item.source}" for item in items]
    sizes = {group: groups.count(group) for group in groups}
    balanced = np.array([sizes[group] ** -0.5 for group in groups])
    balanced[ill] /= balanced[ill].sum()
    balanced[labels == "healthy"] /= balanced[labels == "healthy"].sum()
    fit = LogisticRegression(C=1e4).fit(seen.scores[told, None], ill[told], sample_weight=balanced[told] * told.sum() / 2)
    named = np.isin(labels, PNEUMONIAS)
    kinds = np.array([PNEUMONIAS.index(label) for label in labels[named]])
    return AnswerRule(
        slope=float(fit.coef_[0, 0]),
        intercept=float(fit.intercept_[0]),
        temperature=fit_temperature(kinds, seen.which[named]),
        other_above=float(np.quantile(seen.other[labels != OTHER], 1 - SUSPECTED_WRONGLY)),
        unlike_above=float(np.quantile(distances, FARTHEST)),
    )
