"""Writers to SQLite share a fair lock: none starves, and a C-STORE is answered even when the database stays locked."""

from __future__ import annotations

import fcntl
import sqlite3
import subprocess
import sys
import threading
from contextlib import contextmanager

import pytest
from sqlalchemy.exc import SQLAlchemyError

from cxr_node.receive.transport import wire
from cxr_node.receive.transport.response_watchdog import ResponseWatchdog
from cxr_node.records import AuditEvent
from cxr_node.settings import NodeSettings, Settings
from cxr_node.store.audit_log import audit
from cxr_node.store.database import nothing_was_written, open_database, querying, write
from tests.receiver import Receiver, associated, encoded, radiograph, send, store
from tests.waiting import PATIENCE_S, wait_until

_WRITERS = """
import sys, threading, time
from pathlib import Path
from cxr_node.records import AuditEvent
from cxr_node.settings import NodeSettings, Settings
from cxr_node.store.audit_log import audit
from cxr_node.store.database import open_database, write

engine = open_database(Settings(node=NodeSettings(data_dir=Path(sys.argv[1]))))

def run():
    while True:
        with write(engine) as connection:
            audit.add(connection, AuditEvent("written"))
            time.sleep(0.1)  # as a disk that is slow to flush

for _ in range(20):
    threading.Thread(target=run, daemon=True).start()
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def settings(tmp_path):
    return Settings(node=NodeSettings(data_dir=tmp_path))


@pytest.fixture
def engine(settings):
    opened = open_database(settings, longest_wait_s=PATIENCE_S)
    yield opened
    opened.dispose()


@contextmanager
def twenty_writers(folder):
    """A process of which twenty threads write all the time, each for a tenth of a second."""
    command = [sys.executable, "-c", _WRITERS, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout.readline() == b"ready\n"
            yield process
        finally:
            process.kill()


@contextmanager
def locked_database(folder):
    """Another connection writes without the lock and doesn't end; yields what ends it."""
    connection = sqlite3.connect(folder / "cxr-node.sqlite3", check_same_thread=False, isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield lambda: connection.execute("ROLLBACK")
    finally:
        connection.close()


def last_row(engine, event="%"):
    """The number of the last row of the audit log, or of the last with an event."""
    with querying(engine) as query:
        return query("SELECT coalesce(max(id), 0) FROM audit WHERE event LIKE :event", event=event)[0][0]


def test_a_writer_beside_twenty_of_another_process_does_not_starve(settings, engine):
    """By SQLite's own way of waiting dozens go before the first, and hundreds before some."""
    with twenty_writers(settings.node.data_dir):
        others = []
        for _ in range(10):
            before = last_row(engine)
            with write(engine) as connection:
                audit.add(connection, AuditEvent("written here"))
            others.append(last_row(engine, "written here") - before - 1)
    assert max(others) < 20, f"so many went before: {others}"


def test_the_lock_of_a_process_that_died_is_released(settings, engine):
    with twenty_writers(settings.node.data_dir) as process:
        process.kill()
        process.wait()
        audit.record(engine, AuditEvent("written here"))  # or it would raise an error


@pytest.mark.parametrize("lock", ["next", "turn"])
def test_a_lock_that_times_out_is_an_error_of_the_database(settings, lock):
    engine = open_database(settings, longest_wait_s=0.3)
    with (settings.node.data_dir / f"cxr-node.sqlite3.{lock}").open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(SQLAlchemyError, match="database is locked") as raised:
            audit.record(engine, AuditEvent("written here"))
    assert nothing_was_written(raised.value)
    audit.record(engine, AuditEvent("written here"))
    engine.dispose()


def test_threads_of_one_process_wait_no_longer_either(settings):
    engine = open_database(settings, longest_wait_s=0.3)
    entered, end = threading.Event(), threading.Event()

    def hold():
        with write(engine):
            entered.set()
            end.wait(PATIENCE_S)

    thread = threading.Thread(target=hold)
    thread.start()
    assert entered.wait(PATIENCE_S)
    with pytest.raises(SQLAlchemyError, match="database is locked"):
        audit.record(engine, AuditEvent("written here"))
    end.set()
    thread.join()
    engine.dispose()


class Watchdog(ResponseWatchdog):
    """Its patience is short only for responses that begin after `be_short`."""

    def __init__(self):
        super().__init__(PATIENCE_S)
        self._then_s = PATIENCE_S

    def be_short(self, then_s):
        """The next response is late after half a second, and its association stuck `then_s` later."""
        self._timeout_s, self._then_s = 0.5, then_s

    def _expire(self, response):
        self._timeout_s = self._then_s
        super()._expire(response)


class TestReception:
    """A database that nobody gets to write to; a response is late after half a second instead of twenty."""

    @pytest.fixture
    def watchdog(self):
        return Watchdog()

    @pytest.fixture
    def receiver(self, tmp_path, monkeypatch, watchdog):
        monkeypatch.setattr(wire, "ResponseWatchdog", lambda: watchdog)
        with Receiver(tmp_path) as running:
            yield running

    def test_an_image_that_cannot_be_entered_in_time_is_answered_a700(self, receiver, watchdog, tmp_path):
        ds = radiograph()
        with associated(receiver) as assoc:
            with locked_database(tmp_path) as unlock:
                watchdog.be_short(then_s=PATIENCE_S)
                status = store(assoc, encoded(ds), ds.SOPInstanceUID)
                assert status.Status == 0xA700
                assert "too slow" in status.ErrorComment
                unlock()
            assert send(assoc, radiograph()) == 0x0000, "the association lives on, and its responses are those to its requests"
            assert send(assoc, ds) == 0x0000
        assert len(receiver.rows("instances")) == len(receiver.rows("jobs")) == 2
        wait_until(lambda: "A700" in str([row["detail"] for row in receiver.rows("audit")]), "the refusal in the audit log")

    def test_an_association_that_stays_stuck_is_aborted(self, receiver, watchdog, tmp_path):
        ds = radiograph()
        with associated(receiver) as assoc, locked_database(tmp_path) as unlock:
            watchdog.be_short(then_s=0.5)
            assert store(assoc, encoded(ds), ds.SOPInstanceUID).Status == 0xA700
            wait_until(lambda: assoc.is_aborted, "the abort")
            unlock()

    def test_an_image_that_was_not_entered_leaves_no_file(self, tmp_path, monkeypatch):
        from cxr_node.receive.transport import reception

        monkeypatch.setattr(reception, "_LONGEST_DATABASE_S", 0.3)
        ds = radiograph()
        with Receiver(tmp_path) as receiver, locked_database(tmp_path) as unlock:
            with associated(receiver) as assoc:
                assert send(assoc, ds) == 0xA700
            unlock()
            assert receiver.files("instances") == []
            assert receiver.rows("instances") == []
