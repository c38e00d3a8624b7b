"""The decision rule that `export` chooses on `val`."""

from __future__ import annotations

import numpy as np
import pytest

from cxr_node.records import LABELS
from training.data.evidence_set import KnownRadiograph
from training.fit.decision_rule import COVERAGE, HEALTHY_NAMED, choose_limits

HEALTHY, BACTERIAL, VIRAL, COVID = LABELS


def item(label: str, source: str = "here") -> KnownRadiograph:
    return KnownRadiograph("x.png", label, "", "adult", source, "", "", True)


def chances(likeliest: str, probability: float) -> list[float]:
    rest = (1 - probability) / (len(LABELS) - 1)
    return [probability if label == likeliest else rest for label in LABELS]


def answered(found: np.ndarray, limits: dict[str, float]) -> np.ndarray:
    first = found.argmax(axis=1)
    return found.max(axis=1) >= np.array([limits[LABELS[k]] for k in first])


def test_so_many_of_the_healthy_are_called_so_and_so_many_of_all_get_an_answer():
    rng = np.random.default_rng(0)
    items = [item(label) for label in LABELS for _ in range(100)]
    found = np.array([chances(one.label, rng.uniform(0.5, 1)) for one in items])
    found[::7] = np.roll(found[::7], 1, axis=1)  # a seventh is wrong: no limit gives answers that are right often enough
    limits = choose_limits(items, found)
    healthy = np.array([one.label == HEALTHY for one in items])
    assert (found[healthy, 0] >= limits[HEALTHY]).mean() == pytest.approx(HEALTHY_NAMED, abs=0.011)
    assert answered(found, limits).mean() == pytest.approx(COVERAGE, abs=0.011)
    assert limits[BACTERIAL] == limits[VIRAL] == limits[COVID] != limits[HEALTHY]


def test_answers_that_are_right_often_enough_need_no_more():
    items = [item(label) for label in LABELS for _ in range(10)]
    found = np.array([chances(one.label, 0.6) for one in items])
    assert answered(found, choose_limits(items, found)).all()


def test_a_small_source_counts_for_more_than_its_number():
    items = [item(HEALTHY, "large")] * 90 + [item(HEALTHY, "small")] * 10 + [item(COVID)] * 100
    found = np.array([chances(HEALTHY, 0.95)] * 90 + [chances(HEALTHY, 0.7)] * 10 + [chances(COVID, 0.9)] * 100)
    assert choose_limits(items, found)[HEALTHY] == pytest.approx(0.7, abs=1e-4)
    assert choose_limits([item(one.label) for one in items], found)[HEALTHY] == pytest.approx(0.95, abs=1e-4)
