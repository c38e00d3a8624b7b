"""Metrics as pure functions of probabilities and labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from cxr_node.records import LABELS

Probabilities = NDArray[np.float64]
Targets = NDArray[np.int64]

ANSWERED_ACCURACY = 0.95
"""Share of right answers that is wanted among the radiographs that aren't called indeterminate."""


def confusion_matrix(targets: Targets, predicted: Targets, count: int = len(LABELS)) -> NDArray[np.int64]:
    """Counts int64 (C, C) of `count` classes: row the truth, column the prediction (CXRNet figure 11)."""
    matrix = np.zeros((count, count), np.int64)
    np.add.at(matrix, (targets, predicted), 1)
    return matrix


def per_class(
    confusion: NDArray[np.int64], targets: Targets, probabilities: Probabilities, classes: Sequence[str] = LABELS
) -> dict[str, dict[str, float | None]]:
    """Precision, recall, F1 (CXRNet eq. 8 to 10) and AUROC against all others; None where a class doesn't occur."""
    figures: dict[str, dict[str, float | None]] = {}
    for index, label in enumerate(classes):
        true_positive = int(confusion[index, index])
        found, there = int(confusion[:, index].sum()), int(confusion[index].sum())
        precision = true_positive / found if found else 0.0
        recall = true_positive / there if there else 0.0
        both = precision + recall
        figures[label] = {
            "precision": precision if there else None,
            "recall": recall if there else None,
            "f1": (2 * precision * recall / both if both else 0.0) if there else None,
            "auroc": auroc(targets == index, probabilities[:, index]),
        }
    return figures


def auroc(positive: NDArray[np.bool_], score: NDArray[np.float64]) -> float | None:
    """Area under the ROC curve; None unless both kinds occur."""
    return float(roc_auc_score(positive, score)) if 0 < positive.sum() < positive.size else None


def summary(targets: Targets, probabilities: Probabilities, classes: Sequence[str] = LABELS) -> dict[str, Any]:
    """Accuracy (CXRNet eq. 11), per-class figures and the confusion matrix of one group."""
    predicted = probabilities.argmax(axis=1)
    confusion = confusion_matrix(targets, predicted, len(classes))
    return {
        "count": int(targets.size),
        "accuracy": float((predicted == targets).mean()),
        "per_class": per_class(confusion, targets, probabilities, classes),
        "confusion": confusion.tolist(),
    }


def covid_against_healthy(targets: Targets, probabilities: Probabilities) -> dict[str, float | None]:
    """COVID-19 against healthy on rows of those two classes (others are ignored).

    sensitivity: COVID-19 cases called COVID-19; specificity: healthy ones not called COVID-19, by the likeliest class.
    """
    covid, healthy = LABELS.index("covid19_pneumonia"), LABELS.index("healthy")
    chosen = (targets == covid) | (targets == healthy)
    truth, chances = targets[chosen] == covid, probabilities[chosen]
    called = chances.argmax(axis=1) == covid
    score = chances[:, covid] / np.maximum(chances[:, covid] + chances[:, healthy], 1e-12)
    return {
        "auroc": auroc(truth, score),
        "sensitivity": float(called[truth].mean()) if truth.any() else None,
        "specificity": float((~called[~truth]).mean()) if (~truth).any() else None,
    }


def expected_calibration_error(targets: Targets, probabilities: Probabilities, bins: int = 15) -> float:
    """Mean gap between confidence and accuracy over equal-width bins, weighted by their counts (Guo et al. 2017)."""
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == targets
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = [
        (place == index).mean() * abs(right[place == index].mean() - confidence[place == index].mean())
        for index in range(bins)
        if (place == index).any()
    ]
    return float(np.sum(gaps))


def softmax(logits: NDArray[np.float32], temperature: float) -> Probabilities:
    """Calibrated probabilities, float64 (N, C), of logits float32 (N, C)."""
    scaled = logits.astype(np.float64) / temperature
    exponentials = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True), np.float64)


def fit_temperature(targets: Targets, logits: NDArray[np.float32]) -> float:
    """The temperature in 0.25..5 that minimises the negative log-likelihood (Guo et al. 2017)."""
    candidates = np.exp(np.linspace(np.log(0.25), np.log(5), 400))
    losses = []
    for temperature in candidates:
        chances = softmax(logits, temperature)[np.arange(len(targets)), targets]
        losses.append(-np.log(np.maximum(chances, 1e-300)).mean())
    return float(candidates[int(np.argmin(losses))])


def indeterminate_threshold(targets: Targets, probabilities: Probabilities, accuracy: float = ANSWERED_ACCURACY) -> float:
    """The lowest confidence from which on the answers given are right with `accuracy`; 1 where none is.

    It is chosen on `val`, on calibrated probabilities, and stored in the weights as `indeterminate_below`: a radiograph
    whose likeliest class is less probable than that is called indeterminate.

    Args:
        targets: int64 (N,).
        probabilities: float64 (N, C).
        accuracy: wanted share of right answers among those given, 0..1.
    """
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == targets
    candidates = np.unique(confidence)
    enough = [candidate for candidate in candidates if right[confidence >= candidate].mean() >= accuracy]
    # rounded down, so that the radiograph that it was taken from is answered
    return float(np.floor(min(enough) * 1e4) / 1e4) if enough else 1.0


def given(targets: Targets, answers: list[str], classes: Sequence[str] = LABELS) -> dict[str, float | int | None]:
    """What is gained and lost by calling radiographs indeterminate.

    count: of those without an answer, "" in `answers`. coverage: share that gets one. accuracy: share of right ones among the
    answers, None where none is given.
    """
    right = [answer == classes[target] for target, answer in zip(targets, answers, strict=True) if answer]
    return {
        "count": len(answers) - len(right),
        "coverage": len(right) / len(answers),
        "accuracy": float(np.mean(right)) if right else None,
    }
