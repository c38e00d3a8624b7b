"""A PACS in trouble of every kind: what happens to its deliveries, and that another destination doesn't notice.

tests/integration/test_deliver_loop.py tells each kind's details; here the whole role runs, and each kind ends rightly.
"""

from __future__ import annotations

import socket
import threading
from contextlib import contextmanager

import pytest
from pydicom.uid import SecondaryCaptureImageStorage

from tests.delivery_queue import Queue, running, settings_for, until
from tests.scps import STORAGE, closed_port, listener, storage_scp
from tests.waiting import PATIENCE_S


@contextmanager
def answers(status):
    with storage_scp(lambda _: status) as scp:
        yield scp.port


@contextmanager
def aborts():
    with storage_scp(lambda event: event.assoc.abort() or 0x0000) as scp:
        yield scp.port


@contextmanager
def hangs_up_in_the_middle():
    """Takes the association, and closes the connection at the first byte of an object."""

    def serve(connection: socket.socket) -> None:
        from pynetdicom.pdu import A_ASSOCIATE_AC, A_ASSOCIATE_RQ

        request = A_ASSOCIATE_RQ()
        header = connection.recv(6, socket.MSG_WAITALL)
        request.decode(header + connection.recv(int.from_bytes(header[2:6], "big"), socket.MSG_WAITALL))
        primitive = request.to_primitive()
        contexts = primitive.presentation_context_definition_list
        for context in contexts:
            context.result = 0
            context.transfer_syntax = context.transfer_syntax[:1]
        primitive.presentation_context_definition_results_list = contexts
        primitive.result = 0
        connection.sendall(A_ASSOCIATE_AC(primitive).encode())
        connection.recv(1)

    with listener(serve) as port:
        yield port


@contextmanager
def accepts_and_never_answers():
    released = threading.Event()

    def wait(_) -> int:
        released.wait(PATIENCE_S)
        return 0x0000

    with storage_scp(wait) as scp:
        try:
            yield scp.port
        finally:
            released.set()


@contextmanager
def takes_connections_and_says_nothing():
    released = threading.Event()
    with listener(lambda _: released.wait(PATIENCE_S)) as port:
        try:
            yield port
        finally:
            released.set()


@contextmanager
def rejects_every_context():
    with storage_scp(contexts=()) as scp:
        yield scp.port


@contextmanager
def rejects_the_report_s_context():
    with storage_scp(contexts=STORAGE[:1]) as scp:
        yield scp.port


@contextmanager
def knows_nobody():
    with storage_scp(callers=["SOMEONE"]) as scp:
        yield scp.port


@contextmanager
def is_down():
    yield closed_port()


DID_NOT_ANSWER = "didn't answer"
STORED = [(0xB000, "coercion"), (0xB006, "elements discarded"), (0xB007, "data set doesn't match")]


@pytest.mark.parametrize("status", [pytest.param(status, id=name) for status, name in STORED])
def test_a_warning_is_stored(tmp_path, status):
    with storage_scp(lambda _: status) as scp:
        queue = Queue(settings_for(tmp_path, scp.port), tmp_path)
        queue.analyse_one()
        with running(queue.settings):
            until(lambda: queue.states() == ["sent"] * 2)
    assert {row.status for row in queue.rows()} == {status}
    assert len(scp.uids) == 2
    queue.engine.dispose()


@pytest.mark.parametrize(
    ("trouble", "reason"),
    [
        pytest.param(lambda: answers(0xA700), "out of resources", id="A700"),
        pytest.param(lambda: answers(0xC000), "can't understand", id="C000"),
        pytest.param(lambda: answers(0x0110), "processing failed", id="0110"),
        pytest.param(aborts, "ended the association", id="aborts in the middle"),
        pytest.param(hangs_up_in_the_middle, "ended the association", id="closes the connection in the middle"),
        pytest.param(accepts_and_never_answers, DID_NOT_ANSWER, id="accepts and never answers"),
        pytest.param(takes_connections_and_says_nothing, DID_NOT_ANSWER, id="takes connections and says nothing"),
        pytest.param(rejects_every_context, "doesn't accept", id="rejects every presentation context"),
        pytest.param(knows_nobody, "doesn't know", id="rejects the association"),
        pytest.param(is_down, "Nothing listens", id="is down"),
    ],
)
def test_waits_with_the_reason_is_held_after_the_last_attempt_and_holds_up_nobody_else(tmp_path, trouble, reason):
    with trouble() as port, storage_scp() as good:
        settings = settings_for(tmp_path, port, good.port, max_attempts=2)
        if reason == DID_NOT_ANSWER:  # the limit is what ends that, and for nobody else is it short
            bad, other = settings.destinations
            settings = settings.model_copy(update={"destinations": (bad.model_copy(update={"timeout_s": 1.0}), other)})
        queue = Queue(settings, tmp_path)
        made = [queue.analyse_one() for _ in range(3)]
        with running(queue.settings):
            until(lambda: queue.states("pacs1") == ["sent"] * 6)
            until(lambda: any(reason in row.reason for row in queue.rows("pacs0")))

            def all_held() -> bool:
                queue.let_waits_pass()
                return set(queue.states("pacs0")) == {"held"}

            # each attempt costs a destination in trouble a growing pause: what counts here is that attempts lead to an end
            until(lambda: all_held() or "held" in queue.states("pacs0"))
    assert sorted(good.uids) == sorted(uid for uids in made for uid in uids.values())
    held = [row for row in queue.rows("pacs0") if row.state == "held"]
    assert all(row.reason and row.attempts == 2 for row in held)
    assert not [row for row in queue.rows("pacs0") if row.state == "sending"]
    queue.engine.dispose()


def test_a_refused_presentation_context_holds_back_its_own_kind_alone(tmp_path):
    with rejects_the_report_s_context() as port:
        queue = Queue(settings_for(tmp_path, port), tmp_path)
        queue.analyse_one()
        with running(queue.settings):
            until(lambda: "sent" in queue.states() and any(row.reason for row in queue.rows()))
    assert {(row.kind, row.state) for row in queue.rows()} == {("overlay", "sent"), ("report", "waiting")}
    queue.engine.dispose()


def test_back_after_an_outage_everything_arrives_at_full_speed(tmp_path):
    """Deliveries that failed again and again, and would wait for up to an hour, are sent as soon as the PACS answers."""
    port = closed_port()
    queue = Queue(settings_for(tmp_path, port), tmp_path)
    made = [queue.analyse_one() for _ in range(10)]
    with running(queue.settings):
        until(lambda: any("Nothing listens" in row.reason for row in queue.rows()))
        with queue.engine.connect() as connection:  # as after a night
            connection.exec_driver_sql("UPDATE deliveries SET not_before = unixepoch() + 3000 WHERE state = 'waiting'")
        with storage_scp(port=port) as scp:
            until(lambda: queue.states() == ["sent"] * 20)
            assert len(scp.associations) <= 2
    assert sorted(scp.uids) == sorted(uid for uids in made for uid in uids.values())
    queue.engine.dispose()


def test_one_object_that_is_refused_neither_stops_the_rest_nor_is_tried_at_their_pace(tmp_path):
    refused: list[str] = []

    def refuse_the_first_overlay(event):
        uid = event.request.AffectedSOPInstanceUID
        if event.request.AffectedSOPClassUID == SecondaryCaptureImageStorage and refused in ([], [uid]):
            refused[:] = [uid]
            return 0xC000
        return 0x0000

    with storage_scp(refuse_the_first_overlay) as scp:
        queue = Queue(settings_for(tmp_path, scp.port), tmp_path)
        for _ in range(5):
            queue.analyse_one()
        with running(queue.settings):
            until(lambda: queue.states().count("sent") == 9)
    assert scp.uids.count(refused[0]) == 1
    queue.engine.dispose()
