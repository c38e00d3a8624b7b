"""The rule from network outputs to answers: chosen on `val`, stored in the weights' JSON."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from cxr_node.analyse.answer import AnswerRule
from cxr_node.records import LABELS
from training.data.evidence_labels import OTHER, UNSPECIFIED
from training.data.evidence_set import KnownRadiograph
from training.measure.metrics import fit_temperature, indeterminate_threshold

PNEUMONIAS = LABELS[1:]

SUSPECTED_WRONGLY = 0.005
"""Share of `val` without other disease that may be suspected of it. At 0.02 nearly half of the healthy of a source that training
had not seen were suspected (RUNS.md): only one source has other disease to learn from."""

HEALTHY_NAMED = 0.8
"""Share of the healthy of `val` that is called healthy: "healthy" needs more certainty than any disease, since a disease
that is called healthy is the worse error, above all in a hospital that training has not seen."""

COVERAGE = 0.8
"""Share of `val` that at least is answered, even where fewer of the answers than wanted are right then."""

HEAT_SLOPE, HEAT_MIDPOINT = 2.0, -0.4
"""From evidence to heat. Chosen for CXRNet 0.5.2 on `val`: more overlap with marks and less warmth in healthy lungs than the
plain sigmoid of evidence (1 and 0)."""

FARTHEST = 0.995
"""Share of `val` that is no farther from the training images than what is answered."""


def choose_rule(
    items: list[KnownRadiograph],
    scores: NDArray[np.float64],
    which: NDArray[np.float32],
    other: NDArray[np.float32],
    distances: NDArray[np.float32],
) -> AnswerRule:
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
    fit = LogisticRegression(C=1e4).fit(scores[told, None], ill[told], sample_weight=balanced[told] * told.sum() / 2)
    named = np.isin(labels, PNEUMONIAS)
    kinds = np.array([PNEUMONIAS.index(label) for label in labels[named]])
    return AnswerRule(
        slope=float(fit.coef_[0, 0]),
        intercept=float(fit.intercept_[0]),
        temperature=fit_temperature(kinds, which[named]),
        other_above=float(np.quantile(other[labels != OTHER], 1 - SUSPECTED_WRONGLY)),
        unlike_above=float(np.quantile(distances, FARTHEST)),
        heat_slope=HEAT_SLOPE,
        heat_midpoint=HEAT_MIDPOINT,
    )


def choose_limits(items: list[KnownRadiograph], chances: NDArray[np.float64]) -> dict[str, float]:
    """What each class needs to be named where it is the likeliest, from `val`.

    The limit of healthy is what HEALTHY_NAMED of the healthy reach, sources weighed by the root of their number. The limit of
    the other classes is one: the lowest at which the answers are right often enough, but no higher than COVERAGE allows.

    Args:
        items: with labels of LABELS.
        chances: float64 (N, C), calibrated.
    """
    targets = np.array([LABELS.index(item.label) for item in items])
    first, confidence = chances.argmax(axis=1), chances.max(axis=1)
    healthy = np.flatnonzero(targets == 0)
    sources = [items[k].source for k in healthy]
    weight = np.array([sources.count(source) ** -0.5 for source in sources])
    order = np.argsort(chances[healthy, 0])
    below = np.cumsum(weight[order]) / weight.sum()
    least = float(chances[healthy, 0][order][np.searchsorted(below, 1 - HEALTHY_NAMED)])
    named = (first == 0) & (confidence >= least)
    ill = first > 0
    wanted = max(int(np.ceil(COVERAGE * len(items))) - int(named.sum()), 0)
    surest = np.sort(confidence[ill])[::-1]
    of_coverage = float(surest[min(wanted, len(surest)) - 1]) if wanted and len(surest) else 1.0
    limit = min(indeterminate_threshold(targets[ill], chances[ill]), of_coverage)
    return {name: _rounded_down(least if name == LABELS[0] else limit) for name in LABELS}


def _rounded_down(value: float) -> float:
    return float(np.floor(value * 1e4) / 1e4)
