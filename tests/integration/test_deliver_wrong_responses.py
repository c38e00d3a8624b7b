"""Destinations whose responses are not those to our requests: nothing counts as sent, and the reason says what came."""

from __future__ import annotations

import struct
import threading
import time

import pytest
from sqlalchemy import text
from structlog.testing import capture_logs

from cxr_node.records import ResultKind
from tests.delivery_queue import NEVER, Queue, delivery_worker, settings_for
from tests.raw_items import APPLICATION, USER, accept, item, raw_scp, request

TIMEOUT_S = 30.0
NAME = "DOE^JANE"


def answer(asked):
    items = item(0x10, APPLICATION) + accept(asked) + USER
    return request(items, pdu_type=0x02, called=asked[10:26], calling=asked[26:42])


def without(number):
    return lambda elements: {key: value for key, value in elements.items() if key != number}


def with_value(number, value):
    return lambda elements: elements | {number: value}


WRONG = {
    "of another request": (with_value(0x0120, b"\x99\x00"), "the message ID 153 instead of"),
    "of no request": (without(0x0120), "no message ID"),
    "of another service": (with_value(0x0100, struct.pack("<H", 0x8030)), "a message of type 0x8030"),
    "without status": (without(0x0900), "no status"),
    "with an empty status": (with_value(0x0900, b""), "no status"),
    "without its type": (without(0x0100), "a message that can't be read"),
    "of a type that there is none of": (with_value(0x0100, b"\x99\x99"), "a message that can't be read"),
    "with a UID that is none": (with_value(0x1000, b"no UID, " * 20), "a message that can't be read"),
    "of noise": (lambda _: b"\xffnoise" * 20, "a message that can't be read"),
}
ODD = {
    "without UIDs": lambda elements: without(0x1000)(without(0x0002)(elements)),
    "with a status of 4 bytes": with_value(0x0900, bytes(4)),
    "with elements of other services": lambda elements: elements | {0x0600: b"PACS", 0x5110: b"vendor"},
}


@pytest.fixture
def deliver(tmp_path, monkeypatch):
    """Delivers one object to a destination whose responses are changed so; gives its row, the audit log and the log."""
    uncaught = []
    monkeypatch.setattr(threading, "excepthook", lambda failed: uncaught.append(failed.exc_type))

    def run(change, status=0x0000):
        with raw_scp(answer, lambda _: status, change=change) as scp:
            queue = Queue(settings_for(tmp_path, scp.port, send=(ResultKind.OVERLAY,), timeout_s=TIMEOUT_S), tmp_path)
            queue.analyse_one()
            with delivery_worker(queue) as worker, capture_logs() as lines:
                worker.deliver_due(NEVER)
        with queue.engine.connect() as connection:
            events = connection.execute(text("SELECT event, detail FROM audit WHERE event LIKE 'result%' ORDER BY id")).all()
        (row,) = queue.rows()
        queue.engine.dispose()
        assert uncaught == []
        return row, events, lines

    return run


@pytest.mark.parametrize(("change", "words"), WRONG.values(), ids=WRONG.keys())
def test_a_response_that_is_none_to_the_request_counts_as_no_answer(deliver, change, words):
    started = time.monotonic()
    row, events, _ = deliver(change)
    assert time.monotonic() - started < TIMEOUT_S, "it does not wait for what will not come"
    assert row.state == "waiting"
    assert words in row.reason
    assert [event for event, _ in events] == ["result-delayed"]


def test_what_went_without_a_usable_answer_may_have_arrived(deliver, tmp_path):
    deliver(WRONG["of another request"][0])
    with raw_scp(answer, lambda _: 0x0111) as scp:
        queue = Queue(settings_for(tmp_path, scp.port, send=(ResultKind.OVERLAY,)), tmp_path)
        queue.let_waits_pass()
        with delivery_worker(queue) as worker:
            worker.deliver_due(NEVER)
        assert queue.states() == ["sent"]
        queue.engine.dispose()


@pytest.mark.parametrize("change", ODD.values(), ids=ODD.keys())
def test_an_odd_response_that_says_all_costs_nothing(deliver, change):
    row, _, _ = deliver(change)
    assert row.state == "sent"


def test_a_response_that_comes_twice_answers_no_other_request(tmp_path):
    """The second one lies there already when the next object is sent."""
    with raw_scp(answer, lambda count: 0xC001 if count == 2 else 0x0000, times=lambda count: 2 if count == 1 else 1) as scp:
        queue = Queue(settings_for(tmp_path, scp.port, timeout_s=TIMEOUT_S), tmp_path)
        queue.analyse_one()
        with delivery_worker(queue) as worker:
            worker.deliver_due(NEVER)
        states = {row.sop_instance_uid: (row.state, row.status) for row in queue.rows()}
        queue.engine.dispose()
    assert [states[uid] for uid in scp.stored] == [("sent", 0x0000), ("waiting", 0xC001)]


def test_a_destination_that_asks_for_the_release_in_place_of_a_response_is_not_waited_for(tmp_path):
    with raw_scp(answer, times=lambda _: 0) as scp:
        queue = Queue(settings_for(tmp_path, scp.port, send=(ResultKind.OVERLAY,), timeout_s=TIMEOUT_S), tmp_path)
        queue.analyse_one()
        started = time.monotonic()
        with delivery_worker(queue) as worker:
            worker.deliver_due(NEVER)
        (row,) = queue.rows()
        queue.engine.dispose()
    assert time.monotonic() - started < TIMEOUT_S / 2
    assert row.state == "waiting"
    assert "ended the association" in row.reason


def echo_request(asked):
    """A C-ECHO request in the context of Verification of an association request."""
    context = asked[asked.index(b"1.2.840.10008.1.1\x40") - 8]  # the item of a transfer syntax follows
    uid = b"1.2.840.10008.1.1\x00"
    elements = ((0x0002, uid), (0x0100, b"\x30\x00"), (0x0110, b"\x07\x00"), (0x0800, b"\x01\x01"))
    body = b"".join(struct.pack("<HHL", 0, number, len(value)) + value for number, value in elements)
    body = struct.pack("<HHLL", 0, 0, 4, len(body)) + body
    return struct.pack(">BBLLBB", 0x04, 0, len(body) + 6, len(body) + 2, context, 3) + body


def test_a_destination_that_asks_whether_we_are_there_before_it_answers_is_told(tmp_path):
    with raw_scp(answer, before=echo_request) as scp:
        queue = Queue(settings_for(tmp_path, scp.port, timeout_s=TIMEOUT_S), tmp_path)
        queue.analyse_one()
        with delivery_worker(queue) as worker:
            worker.deliver_due(NEVER)
        assert queue.states() == ["sent"] * 2
        queue.engine.dispose()
    assert [(one[0x0100], one[0x0120], one[0x0900]) for one in scp.answers] == [(b"\x30\x80", b"\x07\x00", b"\x00\x00")] * 2


@pytest.mark.parametrize(("status", "event"), [(0xB000, "result-warning"), (0xC001, "result-delayed")])
def test_the_words_of_a_destination_are_in_neither_log(deliver, status, event):
    row, events, lines = deliver(with_value(0x0902, f"no such patient {NAME}".encode()), status)
    assert NAME not in str(events)
    assert NAME not in str(lines)
    assert (event, True) in [(name, f"0x{status:04X}" in detail) for name, detail in events]
    assert (NAME in row.reason) is (status == 0xC001), "a person who asks for the queue reads them"
