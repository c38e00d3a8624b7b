"""The simulation of benchmarks/scale.py, by hand where a hand can do it."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.scale import SIZES, Measured, arrivals, bottleneck, check, fewest_workers, turnarounds


def measured(work_s=2.0, rest_s=0.1):
    """Every image alike, and a measurement that the simulation has to meet."""
    same = np.full(3, 1.0)
    return Measured(work_s * same, rest_s * same, work_s + rest_s, work_s + rest_s, 2 / work_s)


def test_a_queue_is_served_in_order_by_the_first_free_worker():
    at = np.array([0.0, 0.0, 0.0, 10.0])
    assert turnarounds(at, [2.0, 3.0, 4.0, 1.0], 1).tolist() == [2.0, 5.0, 9.0, 1.0]
    assert turnarounds(at, [2.0, 3.0, 4.0, 1.0], 2).tolist() == [2.0, 3.0, 6.0, 1.0]


def test_arrivals_are_as_many_as_asked_for_and_follow_the_day():
    at = arrivals(10_000, np.random.default_rng(2))
    assert len(at) == 10_000
    assert (np.diff(at) >= 0).all()
    hours = np.bincount((at // 3600).astype(int), minlength=24)
    assert hours[8:10].sum() == pytest.approx(10_000 * 20 / 116, rel=0.1)


def test_the_check_says_how_far_off_it_is():
    assert all(line.endswith("+0% |") for line in check(measured(), np.random.default_rng(3)))


def test_the_workers_found_are_enough_and_hardly_more():
    times, random = measured(work_s=20.0), np.random.default_rng(4)
    at = arrivals(SIZES["1 hospital"], random)
    workers, p99 = fewest_workers(at, times, random)
    assert p99 <= 60
    fewer = turnarounds(at, [20.0] * len(at), 2 * (workers - 1)) + 0.1
    assert np.quantile(fewer, 0.99) > 60


def test_what_breaks_first_is_named_with_its_share():
    assert bottleneck(0.3, 10_000).startswith("nothing; nearest: ")
    assert "numbers of the audit log (full after 54 days)" in bottleneck(240.0, 10_000_000)
