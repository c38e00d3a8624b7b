"""How much of the node one peer may take, with a clock that the test sets."""

from __future__ import annotations

import pytest

from cxr_node.receive import guard
from cxr_node.receive.guard import SLOWEST_BYTES_PER_S, Pace, Place, Places, Rate, Seldom
from cxr_node.records import Sender
from cxr_node.settings import ReceiveSettings

ONE, OTHER = Sender("CT1", "NODE", "10.0.0.1"), Sender("CT2", "NODE", "10.0.0.2")


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def test_a_minutes_worth_may_come_at_once_and_then_one_as_each_falls_due(clock):
    rate = Rate(3, clock)
    assert [rate.allows(ONE) for _ in range(4)] == [True, True, True, False]
    assert rate.allows(OTHER)
    clock.now += 21
    assert [rate.allows(ONE) for _ in range(2)] == [True, False]
    clock.now += 600
    assert [rate.allows(ONE) for _ in range(4)] == [True, True, True, False]


def test_without_a_limit_anything_may_come(clock):
    assert all(Rate(0, clock).allows(ONE) for _ in range(1000))


def test_the_same_is_written_down_once_in_a_while(clock):
    seldom = Seldom(60, clock)
    assert [seldom.is_due("a"), seldom.is_due("a"), seldom.is_due("b")] == [True, False, True]
    clock.now += 61
    assert seldom.is_due("a")


def test_made_up_names_fill_no_memory(clock, monkeypatch):
    monkeypatch.setattr(guard, "_MOST_KEYS", 100)
    seldom, rate = Seldom(60, clock), Rate(1, clock)
    due = [seldom.is_due(number) for number in range(1000)]
    assert sum(due) == 100
    clock.now += 61
    assert seldom.is_due("new")
    for number in range(1000):
        clock.now += 61
        rate.allows(Sender(f"CT{number}", "NODE", "10.0.0.1"))
    assert len(rate._free_at) <= 101


def test_pace_gives_time_for_what_was_sent(clock, monkeypatch):
    monkeypatch.setattr(guard.time, "monotonic", clock)
    pace = Pace(10)
    pace.begin()
    assert pace.left_s() == 10
    clock.now += 9
    pace.has_sent(SLOWEST_BYTES_PER_S * 5)
    assert pace.left_s() == 6
    clock.now += 7
    with pytest.raises(TimeoutError):
        pace.left_s()
    pace.begin()
    assert pace.left_s() == 10


def test_places_in_all_and_from_one_address():
    places = Places(ReceiveSettings(max_associations=4, max_associations_per_sender=2))
    assert [places.enter("a") for _ in range(5)] == [Place.FREE] * 2 + [Place.TO_BE_REFUSED] * 2 + [Place.NONE]
    assert [places.enter("b") for _ in range(4)] == [Place.TO_BE_REFUSED] * 4
    assert places.enter("c") is Place.NONE
    for host in ("a", "a", "a", "b", "b", "b", "b"):
        places.leave(host)
    assert places.enter("c") is Place.FREE
