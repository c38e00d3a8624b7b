"""A request of storage commitment is answered at once; what it names is read after that, and by others if need be."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace

import pytest
from pydicom.uid import DigitalXRayImageStorageForPresentation
from sqlalchemy import text

from cxr_node.commitment import reports
from cxr_node.commitment.reporting import Reporter
from cxr_node.commitment.request_worker import RequestWorker
from cxr_node.settings import NodeSettings, Settings
from cxr_node.store.database import open_database, write
from tests.commitment_peers import Modality
from tests.receiver import Receiver, associated, radiograph, send
from tests.store import lay_database
from tests.waiting import PATIENCE_S, wait_until


@pytest.fixture
def slow_reading(monkeypatch):
    """Reading a stored instance takes until the event is set; gives it, and a list that grows with each."""
    go, begun, real = threading.Event(), [], reports.file_digest

    def read(path):
        begun.append(path)
        assert go.wait(PATIENCE_S)
        return real(path)

    monkeypatch.setattr(reports, "file_digest", read)
    yield go, begun
    go.set()


@pytest.fixture
def settings(tmp_path):
    return Settings(node=NodeSettings(data_dir=tmp_path))


@pytest.fixture
def engine(settings):
    lay_database(settings)
    opened = open_database(settings)
    yield opened
    opened.dispose()


def take(engine, count=1):
    references = [(DigitalXRayImageStorageForPresentation, f"1.2.3.{number}") for number in range(count)]
    return reports.take_request(engine, "2.25.1", "MODALITY1", "127.0.0.1", references)


def states(engine):
    with engine.connect() as connection:
        return list(connection.execute(text("SELECT state FROM commitment_reports ORDER BY id")).scalars())


def test_the_answer_waits_for_no_reading_and_the_report_follows(tmp_path, slow_reading):
    go, begun = slow_reading
    ds, first, second = radiograph(), Modality(), Modality()
    with Receiver(tmp_path, commitment_requests="anyone") as receiver:
        with associated(receiver) as assoc:
            assert send(assoc, ds) == 0
        asked = [(ds.SOPClassUID, ds.SOPInstanceUID)]
        assert first.ask(receiver.port, asked, stay=False)[0] == 0x0000
        wait_until(lambda: begun, "the reading")
        assert second.ask(receiver.port, asked, stay=False)[0] == 0x0000, "nor does another request wait for it"
        assert [row["state"] for row in receiver.rows("commitment_reports")] == ["asked", "asked"]
        go.set()
        third = Modality()
        assert third.ask(receiver.port, asked, stay=True)[0] == 0x0000
        assert third.reports[0][1:] == ([ds.SOPInstanceUID], {})
        details = [row["detail"] for row in receiver.rows("audit") if row["event"] == "commitment-requested"]
        assert details == ["1 instance committed, 0 not"] * 3


def test_what_a_process_leaves_undecided_the_reporter_decides(settings, engine):
    take(engine)
    reporter = Reporter(settings, engine, associate=None)
    reporter.decide_left(threading.Event())
    assert states(engine) == ["asked"], "it is left to the process that took it, for a while"
    with write(engine) as connection:
        connection.execute(text("UPDATE commitment_reports SET not_before = 0"))
    reporter.decide_left(threading.Event())
    assert states(engine) == ["waiting"]


def test_of_two_that_decide_one_does(tmp_path, database_url):
    settings = Settings(node=NodeSettings(data_dir=tmp_path), database={"url": database_url})
    engine = open_database(settings)
    asked = take(engine)
    workers = [RequestWorker(settings, engine, lambda: True) for _ in range(2)]
    found = [worker.decide(asked) for worker in workers]
    assert [report is not None for report in found] == [True, False]
    assert states(engine) == ["waiting"]
    engine.dispose()


def test_one_that_goes_on_for_long_keeps_the_request(engine, monkeypatch):
    clock = [time.time()]
    monkeypatch.setattr(reports, "time", SimpleNamespace(time=lambda: clock[0], monotonic=lambda: clock[0], sleep=time.sleep))
    asked = take(engine, 6)

    def between():
        clock[0] += 40  # six times, where a request is left to a process for a minute
        assert reports.undecided(engine) == []

    found = reports.decide(engine, None, asked, keep_s=1, has_room=lambda: True, wait_s=0, between=between)
    assert found is not None
    assert len(found.failed) == 6


def test_one_that_has_lost_the_request_records_nothing(engine):
    asked = take(engine)

    def lose():
        with write(engine) as connection:
            connection.execute(text("UPDATE commitment_reports SET not_before = 1 WHERE state = 'asked'"))

    assert reports.decide(engine, None, asked, keep_s=1, has_room=lambda: True, wait_s=0, between=lose) is None
    assert states(engine) == ["asked"]


def test_at_the_end_of_the_process_it_is_left_to_others(settings, engine, slow_reading):
    worker = RequestWorker(settings, engine, lambda: True)
    asked, told = take(engine, 3), []
    worker.end()
    assert worker.decide(asked) is None
    worker.put(asked, told.append)
    worker.end()
    assert states(engine) == ["asked"]
    assert told == []


def test_undecided_requests_count_among_those_that_are_open(engine, monkeypatch):
    monkeypatch.setattr(reports, "_MOST_OPEN_OF_ONE", 2)
    take(engine)
    take(engine)
    with pytest.raises(reports.TooManyOpen):
        take(engine)


def test_many_requests_of_one_address_keep_no_other_waiting(settings, engine, monkeypatch):
    hog = [take(engine) for _ in range(3)]
    other = reports.take_request(engine, "2.25.2", "MODALITY2", "10.0.0.2", [("1.2", "1.2.3")])
    worker, order, go, all_in = RequestWorker(settings, engine, lambda: True), [], threading.Event(), threading.Event()

    def decide(asked):
        assert go.wait(PATIENCE_S)
        order.append(asked.id)
        if len(order) == 4:
            all_in.set()

    monkeypatch.setattr(worker, "decide", decide)
    for asked in (*hog, other):
        worker.put(asked, lambda _: None)
    go.set()
    assert all_in.wait(PATIENCE_S)
    assert order.index(other.id) == 1
