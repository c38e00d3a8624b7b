"""The size of `val` that calibration needs, and what applies when it is smaller."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cxr_node.nets import weights
from training.measure.metrics import fit_temperature, indeterminate_threshold, softmax

LEAST, LEAST_OF_A_CLASS = 100, 10
"""Radiographs of `val`, and of each class in it, from which on a temperature and a threshold are fitted."""


@dataclass(frozen=True)
class Calibration:
    """How logits become answers, and in words where that comes from."""

    temperature: float
    indeterminate_below: float | dict[str, float]
    origin: str

    @property
    def as_json(self) -> dict[str, Any]:
        """`calibration` of the weights' JSON."""
        return {"temperature": self.temperature, "from": self.origin}


def too_few(targets: NDArray[np.int64], classes: Sequence[str]) -> str:
    """Why `val` is too small to calibrate on, in words; empty: it is large enough."""
    counts = Counter(targets.tolist())
    rare = {classes[index]: counts[index] for index in range(len(classes)) if counts[index] < LEAST_OF_A_CLASS}
    if len(targets) >= LEAST and not rare:
        return ""
    told = ", ".join(f"{count} of {name}" for name, count in rare.items())
    return (
        f"val has {len(targets)} radiographs{f', {told}' if told else ''}; a calibration takes {LEAST}, "
        f"{LEAST_OF_A_CLASS} of each class"
    )


def calibrate(
    targets: NDArray[np.int64], logits: NDArray[np.float32], classes: Sequence[str], begun: dict[str, Any] | None
) -> Calibration:
    """Fit on `val`, or keep what the weights had that training began with, or the shipped ones' threshold; say which.

    Args:
        targets: class indices of `val`, int64 (N,).
        logits: float32 (N, C).
        classes: C names.
        begun: `of_weights` of those that training began with; None or empty: there were none.
    """
    reason = too_few(targets, classes)
    if not reason:
        temperature = fit_temperature(targets, logits)
        threshold = indeterminate_threshold(targets, softmax(logits, temperature))
        return Calibration(temperature, threshold, f"val, {len(targets)} radiographs")
    if begun and "temperature" in begun:
        limits = _for_classes(begun["indeterminate_below"], classes)
        kept = Calibration(begun["temperature"], limits, f"kept from {begun['model']}: {reason}")
    else:
        shipped = weights.indeterminate_below(weights.network_description(weights.shipped_folder(), "cxrnet"))
        kept = Calibration(1.0, max(shipped.values()), f"none, and the shipped threshold: {reason}")
    print(
        f"Warning: {reason}. Nothing is fitted: the temperature is {kept.temperature:.2f} and answers need "
        f"{_in_percent(kept.indeterminate_below)} ({kept.origin.partition(':')[0]}). Import more radiographs and export again."
    )
    return kept


def _for_classes(below: float | dict[str, float], classes: Sequence[str]) -> float | dict[str, float]:
    """Limits for these classes; one that the limits lack gets the highest of them."""
    if not isinstance(below, dict):
        return below
    return {name: below.get(name, max(below.values())) for name in classes}


def _in_percent(below: float | dict[str, float]) -> str:
    return ", ".join(f"{limit:.0%}" for limit in ([*below.values()] if isinstance(below, dict) else [below]))


def of_weights(description: dict[str, Any]) -> dict[str, Any]:
    """What a run keeps of the weights that it begins with, so that `export` has it: name, licence, calibration.

    The calibration of weights that answer from evidence says nothing of a head over the image, nor the other way round.
    """
    by_image = description["architecture"].get("answer", "image") == "image"
    calibration = {"temperature": float(description.get("calibration", {}).get("temperature", 1.0))}
    return {
        **(calibration if by_image else {"answer": description["answer"]}),
        "indeterminate_below": description.get("indeterminate_below", 0.0),
        "model": f"{description['name']} {description['version']}",
        "licence": str(description.get("licence", "not stated")),
    }
