"""From network outputs to the answer, or to "indeterminate": plain arithmetic on arrays.

For networks that answer from evidence (`CXRNet.examine`). The strongest evidence in the lungs decides whether there is
pneumonia, the second pass decides which one; the weights contain the calibration of both.
"""

from __future__ import annotations

from dataclasses import MISSING, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cxr_node.errors import WeightsError
from cxr_node.nets.constants import STRONGEST_SHARE

UNLIKE = "unlike the training images"
OTHER = "other abnormality suspected"

_FAINT = 0.05
"""Heat below this says nothing of a place."""

_FEW_PX = 50
"""With lungs smaller than this the whole image counts."""

_MARGIN = 1e-6
"""Relevance is kept so far from 0 and 1, where its log-odds are infinite."""


@dataclass(frozen=True)
class AnswerRule:
    """The decision rule, chosen on `val`: `answer` in the weights' JSON.

    slope, intercept: the log-odds of pneumonia are slope x pooled evidence + intercept.
    temperature: logits of the kind of pneumonia are divided by it.
    other_above: log-odds of a disease that isn't opacity, above which it is suspected.
    unlike_above: distance from the training images' features, above which nothing is answered.
    heat_slope, heat_midpoint: the log-odds of heat are heat_slope x (evidence - heat_midpoint).
    """

    slope: float
    intercept: float
    temperature: float
    other_above: float
    unlike_above: float
    heat_slope: float = 1.0
    heat_midpoint: float = 0.0

    @classmethod
    def of(cls, description: dict[str, Any]) -> AnswerRule:
        """The rule in the JSON of weights.

        Raises:
            WeightsError: it is missing there, or lacks a number.
        """
        try:
            given = description["answer"]
            wanted = [one.name for one in fields(cls) if one.default is MISSING or one.name in given]
            return cls(**{key: float(given[key]) for key in wanted})
        except (KeyError, TypeError, ValueError) as error:
            raise WeightsError(
                f"{description['name']}'s JSON lacks a number for its answers ({error}): install the weights again."
            ) from error


def pooled(evidence: NDArray[np.float32], lungs: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The mean of the strongest part of the lungs' evidence, float64 (N,), as `nets.cxrnet.pooled_evidence` in training.

    Args:
        evidence: float32 (N, H, W), log-odds.
        lungs: bool (N, H, W); if they are nearly empty, the whole image counts.
    """
    scores = np.empty(len(evidence))
    for index, (one, lung) in enumerate(zip(evidence, lungs, strict=True)):
        inside = one[lung]
        inside = inside if inside.size >= _FEW_PX else one.ravel()
        count = max(20, int(STRONGEST_SHARE * inside.size))
        scores[index] = np.partition(inside, inside.size - count)[-count:].mean(dtype=np.float64)
    return scores


def probabilities(scores: NDArray[np.float64], which_logits: NDArray[np.float32], rule: AnswerRule) -> NDArray[np.float64]:
    """Probabilities of the classes, float64 (N, C).

    Args:
        scores: float64 (N,), from `pooled`.
        which_logits: float32 (N, C - 1), of the classes without healthy.
        rule: see above.
    """
    ill = 1 / (1 + np.exp(-np.clip(rule.slope * scores + rule.intercept, -30, 30)))
    logits = which_logits.astype(np.float64) / rule.temperature
    kinds = np.exp(logits - logits.max(axis=1, keepdims=True))
    kinds /= kinds.sum(axis=1, keepdims=True)
    return np.concatenate([1 - ill[:, None], ill[:, None] * kinds], axis=1)


def heat(relevance: NDArray[np.float32], rule: AnswerRule) -> NDArray[np.float32]:
    """The heat of relevance, the sigmoid of evidence: float32 of any shape in 0..1, like the result.

    Pixels keep their order; the rule says how steeply heat rises and where it is 0.5.
    """
    inside = np.clip(relevance.astype(np.float64), _MARGIN, 1 - _MARGIN)
    log_odds = rule.heat_slope * (np.log(inside / (1 - inside)) - rule.heat_midpoint)
    return (1 / (1 + np.exp(-log_odds))).astype(np.float32)


def clear(heat: NDArray[np.float32]) -> NDArray[np.float32]:
    """Heat without what is too faint to say anything of a place, of the same form."""
    return np.where(heat < _FAINT, np.float32(0), heat)


def doubt(other_logit: float, distance: float, rule: AnswerRule) -> str:
    """Why an image gets no class, whatever its probability; empty: no reason."""
    if distance > rule.unlike_above:
        return UNLIKE
    return OTHER if other_logit > rule.other_above else ""
