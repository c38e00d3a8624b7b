"""Figures that are asked for once, however many want them."""

from __future__ import annotations

import threading

import pytest

from cxr_node.web.timed_cache import TimedCache
from tests.waiting import PATIENCE_S, wait_until


def test_a_value_is_made_once_while_it_is_kept():
    now, made = [0.0], []
    kept = TimedCache(lambda: made.append(1) or len(made), 2.0, clock=lambda: now[0])
    assert [kept.get() for _ in range(3)] == [1, 1, 1]


def test_one_past_its_time_is_given_at_once_and_made_anew_behind():
    now, made, may_end = [0.0], [], threading.Event()

    def make():
        made.append(1)
        if len(made) > 1:
            assert may_end.wait(PATIENCE_S)
        return len(made)

    kept = TimedCache(make, 2.0, clock=lambda: now[0])
    assert kept.get() == 1
    now[0] = 3.0
    assert [kept.get() for _ in range(3)] == [1, 1, 1]
    may_end.set()
    wait_until(lambda: kept.get() == 2, "made anew")
    assert len(made) == 2


def test_one_that_took_long_is_kept_longer():
    now = [0.0]

    def make():
        now[0] += 1.0
        return now[0]

    kept = TimedCache(make, 2.0, clock=lambda: now[0])
    assert kept.get() == 1.0
    now[0] = 20.0
    assert kept.get() == 1.0
    assert now[0] == 20.0


def test_one_that_is_too_old_is_waited_for_and_its_error_is_raised():
    now, trouble = [0.0], [None]

    def make():
        if trouble[0]:
            raise trouble[0]
        return now[0]

    kept = TimedCache(make, 2.0, clock=lambda: now[0])
    assert kept.get() == 0.0
    now[0], trouble[0] = 100.0, OSError("away")
    with pytest.raises(OSError, match="away"):
        kept.get()
    trouble[0] = None
    assert kept.get() == 100.0
