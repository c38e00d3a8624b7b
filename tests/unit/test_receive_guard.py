"""How much of the node one peer may take, with a clock that the test sets."""

from __future__ import annotations

import pytest

from cxr_node.receive import guard
from cxr_node.receive.guard import SLOWEST_BYTES_PER_S, Pace, Place, Places, Seldom
from cxr_node.settings import ReceiveSettings
from tests.clock import Clock


@pytest.fixture
def clock():
    return Clock()


def test_the_same_is_written_down_once_in_a_while(clock):
    seldom = Seldom(60, clock)
    assert [seldom.is_due("a"), seldom.is_due("a"), seldom.is_due("b")] == [True, False, True]
    clock.now += 61
    assert seldom.is_due("a")


def test_made_up_names_fill_no_memory(clock, monkeypatch):
    monkeypatch.setattr(guard, "_MOST_KEYS", 100)
    seldom = Seldom(60, clock)
    due = [seldom.is_due(number) for number in range(1000)]
    assert sum(due) == 100
    clock.now += 61
    assert seldom.is_due("new")


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
