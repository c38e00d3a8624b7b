"""The node's answers by label and source, labels beyond LABELS included.

A confusion table of all labels, with the images that get no answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from cxr_node.analyse.networks import Networks
from cxr_node.analyse.pipeline import classify_batch, segment_batch
from cxr_node.records import LABELS, Findings
from training.data.dataset import load_prepared
from training.data.evidence_labels import OTHER, UNSPECIFIED
from training.data.evidence_set import KnownRadiograph
from training.measure import metrics

HEALTHY, COVID = "healthy", "covid19_pneumonia"
_BATCH = 16


@dataclass(frozen=True)
class ImageOutcome:
    """What was answered to one radiograph.

    answer: a class, or "" where the result is indeterminate for `reason`. likeliest: the most probable class all the
    same. probabilities: of the data's classes, in their order; 0 of those that the network doesn't know.
    """

    item: KnownRadiograph
    answer: str
    reason: str
    likeliest: str
    probabilities: tuple[float, ...]


def outcomes_of(
    data: Path, items: Sequence[KnownRadiograph], networks: Networks, classes: Sequence[str] = LABELS
) -> list[ImageOutcome]:
    """What the node answers, through the very functions that serve."""
    found = []
    for start in tqdm(range(0, len(items), _BATCH), desc="answers", mininterval=10):
        batch = items[start : start + _BATCH]
        images = [load_prepared(data / item.image) for item in batch]
        masks, _ = segment_batch(images, networks)
        for item, findings in zip(batch, classify_batch(images, masks, networks), strict=True):
            found.append(outcome(item, findings, classes))
    return found


def outcome(item: KnownRadiograph, findings: Findings, classes: Sequence[str] = LABELS) -> ImageOutcome:
    """What findings answer to an item."""
    answer = "" if findings.indeterminate else findings.label
    chances = tuple(findings.probabilities.get(label, 0.0) for label in classes)
    return ImageOutcome(item, answer, findings.indeterminate_reason, findings.label, chances)


def by_group(outcomes: Sequence[ImageOutcome]) -> dict[str, dict[str, Any]]:
    """Figures of each "label source population"."""
    groups: dict[str, list[ImageOutcome]] = {}
    for one in outcomes:
        groups.setdefault(f"{one.item.label} {one.item.source} {one.item.population}", []).append(one)
    return {name: answered(group) for name, group in sorted(groups.items())}


def answered(outcomes: Sequence[ImageOutcome]) -> dict[str, Any]:
    """Shares of all these radiographs, those without an answer included, and why those have none."""
    count = len(outcomes)
    answers = [one.answer for one in outcomes]
    reasons = [one.reason for one in outcomes if one.reason]
    return {
        "count": count,
        "coverage": sum(map(bool, answers)) / count,
        **{f"called_{label}": answers.count(label) / count for label in (*LABELS, *sorted({*answers} - {*LABELS, ""}))},
        "called_ill": sum(answer not in ("", HEALTHY) for answer in answers) / count,
        "likeliest_covid": sum(one.likeliest == COVID for one in outcomes) / count,
        "likeliest_healthy": sum(one.likeliest == HEALTHY for one in outcomes) / count,
        "reasons": {reason: reasons.count(reason) / count for reason in sorted(set(reasons))},
    }


def by_source(outcomes: Sequence[ImageOutcome]) -> dict[str, dict[str, Any]]:
    """Figures within each source: AUROC of opacity against healthy where it has both, and the calibration error."""
    figures = {}
    for source in sorted({one.item.source for one in outcomes}):
        chosen = [one for one in outcomes if one.item.source == source]
        told = [one for one in chosen if one.item.label != OTHER]
        ill = np.array([one.item.label != HEALTHY for one in told])
        score = np.array([1 - one.probabilities[0] for one in told])
        named = [one for one in chosen if one.item.label in LABELS]
        targets = np.array([LABELS.index(one.item.label) for one in named], np.int64)
        chances = np.array([one.probabilities for one in named])
        figures[source] = {
            "count": len(chosen),
            "disease_auroc": metrics.auroc(ill, score) if told else None,
            "ece": metrics.expected_calibration_error(targets, chances) if named else None,
        }
    return figures


def headline(outcomes: Sequence[ImageOutcome]) -> dict[str, float | int | None]:
    """The figures that a recipe is chosen by; None where no radiograph is of that kind.

    All are shares of all adults' radiographs of the kind, answered or not.
    """
    adults = [one for one in outcomes if one.item.population == "adult"]
    kinds = {
        "healthy": (HEALTHY,),
        "covid": (COVID,),
        "other_pneumonia": ("bacterial_pneumonia", "viral_pneumonia", UNSPECIFIED),
        "other_disease": (OTHER,),
    }
    wanted = {
        "healthy": (f"called_{COVID}", "called_ill", "called_healthy", "coverage"),
        "covid": ("called_ill", f"called_{COVID}", "called_healthy", "coverage"),
        "other_pneumonia": (f"called_{COVID}", "called_healthy", "called_ill", "coverage"),
        "other_disease": (f"called_{COVID}", "called_healthy", "coverage"),
    }
    figures: dict[str, float | int | None] = {}
    for kind, labels in kinds.items():
        chosen = [one for one in adults if one.item.label in labels]
        found = answered(chosen) if chosen else {}
        figures[f"{kind}_count"] = len(chosen)
        figures.update({f"{kind}_{name}": found.get(name) for name in wanted[kind]})
    return figures


def written(outcomes: Sequence[ImageOutcome], classes: Sequence[str] = LABELS) -> str:
    """A CSV with a line for each radiograph."""
    lines = [f"image,label,source,population,answer,reason,{','.join(classes)}"]
    for one in outcomes:
        chances = ",".join(f"{chance:.6f}" for chance in one.probabilities)
        item = one.item
        lines.append(f"{item.image},{item.label},{item.source},{item.population},{one.answer},{one.reason},{chances}")
    return "\n".join(lines) + "\n"
