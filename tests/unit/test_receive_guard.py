"""How much of the node one peer may take, with a clock that the test sets."""

from __future__ import annotations

import pytest

from cxr_node.receive.transport import limiter
from cxr_node.receive.transport.limiter import (
    SLOWEST_BYTES_PER_S,
    AssociationSlots,
    KnownAddresses,
    TransferDeadline,
)
from cxr_node.security import event_budget
from cxr_node.security.event_budget import LogThrottle
from cxr_node.settings import ReceiveSettings, Settings
from tests.clock import Clock


@pytest.fixture
def clock():
    return Clock()


def test_the_same_is_written_down_once_in_a_while(clock):
    throttle = LogThrottle(60, clock)
    assert [throttle.is_due("a"), throttle.is_due("a"), throttle.is_due("b")] == [True, False, True]
    clock.now += 61
    assert throttle.is_due("a")


def test_made_up_names_fill_no_memory(clock, monkeypatch):
    monkeypatch.setattr(event_budget, "_MOST_KEYS", 100)
    throttle = LogThrottle(60, clock)
    assert all(throttle.is_due(number) for number in range(1000)), "nobody is silenced by another's names"
    assert len(throttle._due_at) == 100
    assert not throttle.is_due(999)


def test_pace_gives_time_for_what_was_sent(clock, monkeypatch):
    monkeypatch.setattr(limiter.time, "monotonic", clock)
    pace = TransferDeadline(10)
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
    places = AssociationSlots(ReceiveSettings(max_associations=4, max_associations_per_sender=2))
    assert [places.enter("a") for _ in range(3)] == [True, True, False]
    assert [places.enter("b") for _ in range(2)] == [True, True]
    assert not places.enter("c")
    places.leave("a")
    assert places.enter("c")
    assert places.enter("c", in_anothers_place=True), "an idle one is ending for it"


def test_strangers_leave_places_to_known_senders():
    settings = Settings(senders=({"ae_title": "CT", "hosts": ("10.0.0.0/8",)},))
    known = KnownAddresses(settings)
    places = AssociationSlots(ReceiveSettings(max_associations=8, max_associations_per_sender=8), known.__contains__)
    assert [places.enter("192.0.2.1") for _ in range(7)] == [True] * 6 + [False]
    assert [places.enter("::ffff:10.1.2.3") for _ in range(2)] == [True, True]


def test_an_address_is_known_from_which_a_sender_has_proven_itself():
    known = KnownAddresses(Settings(senders=({"ae_title": "CT", "hosts": ("10.0.0.0/8",)},)))
    assert "192.0.2.1" not in known
    known.prove("192.0.2.1")
    assert "192.0.2.1" in known
    assert "192.0.2.1" in KnownAddresses(Settings()), "where no sender has an address, all are alike"
