"""What a role leaves when it ends, also in the middle of something: no open connection, and no thread that would open one."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest
from pydicom.uid import ComputedRadiographyImageStorage
from sqlalchemy import event
from sqlalchemy.exc import OperationalError

from cxr_node.commitment import requests, scp
from cxr_node.deliver import loop, worker
from cxr_node.deliver.worker import DeliveryWorker
from cxr_node.errors import WeightsError
from cxr_node.node import supervisor, work
from cxr_node.node.housekeeping import Housekeeping
from cxr_node.receive.intake import refused
from cxr_node.receive.intake.refused import Counts
from cxr_node.records import Sender
from cxr_node.store.views import refusals
from tests.commitment_peers import Modality
from tests.delivery_queue import NEVER, settings_for
from tests.receiver import Receiver
from tests.waiting import PATIENCE_S, wait_until
from tests.web import Site

LONG_ENOUGH_S = 1.0
"""For what must not happen meanwhile, and would at once. A machine that is slow makes no test fail by it."""


@pytest.fixture
def engines(monkeypatch):
    """The engines that the roles open, each with whether it has been disposed of."""
    found = []

    def watching(settings, **options):
        engine = open_database(settings, **options)
        is_closed = threading.Event()
        event.listen(engine, "engine_disposed", lambda _: is_closed.set())
        found.append(SimpleNamespace(engine=engine, is_closed=is_closed))
        return engine

    open_database = supervisor.open_database
    for module in (loop, supervisor, work, worker):
        monkeypatch.setattr(module, "open_database", watching)
    yield found
    for one in found:
        one.engine.dispose()


def are_closed(engines):
    return [one.is_closed.is_set() for one in engines]


def fail(*_, **__):
    raise OperationalError("SELECT 1", {}, Exception("away"))


def test_housekeeping_ends_after_the_task_that_is_running(tmp_path, engines, monkeypatch):
    begun, seen = threading.Event(), []

    def make_room(_):
        begun.set()
        seen.append(engines[0].is_closed.wait(LONG_ENOUGH_S))

    monkeypatch.setattr(Housekeeping, "make_room", make_room)
    with supervisor._housekeeping(settings_for(tmp_path), alone=True):
        assert begun.wait(PATIENCE_S)
    assert seen == [False], "the database was closed while the task used it"
    assert are_closed(engines) == [True]


def test_a_supervisor_that_cannot_start_closes_its_database(tmp_path, engines, monkeypatch):
    monkeypatch.setattr(supervisor, "check_integrity", fail)
    with pytest.raises(OperationalError), supervisor._housekeeping(settings_for(tmp_path), alone=True):
        pass
    assert are_closed(engines) == [True]


def test_a_delivery_worker_that_cannot_start_closes_its_database(tmp_path, engines, monkeypatch):
    settings = settings_for(tmp_path, 11112)
    monkeypatch.setattr(requests, "drop_requests", fail)
    with pytest.raises(OperationalError):
        DeliveryWorker(settings, settings.destinations[0])
    assert are_closed(engines) == [True]


def test_a_deliver_role_that_cannot_start_closes_every_database(tmp_path, engines, monkeypatch):
    made = []

    def one_and_no_more(*_):
        if made:
            fail()
        made.append(1)

    monkeypatch.setattr(requests, "drop_requests", one_and_no_more)
    with pytest.raises(OperationalError):
        loop.run(settings_for(tmp_path, 11112, 11113), NEVER, lambda: None)
    assert are_closed(engines) == [True] * 3, "its own, and those of the workers of two destinations"


def test_a_work_role_that_cannot_start_closes_its_database(tmp_path, engines, monkeypatch):
    def no_weights(*_, **__):
        raise WeightsError("There are no weights.")

    monkeypatch.setattr(work, "load_networks", no_weights)
    with pytest.raises(WeightsError):
        work.run(settings_for(tmp_path), NEVER, lambda: None)
    assert are_closed(engines) == [True]


def test_a_receiver_that_ends_reports_no_more_over_an_association(tmp_path, monkeypatch):
    """The report's row stays, and the role that delivers continues."""
    monkeypatch.setattr(scp, "_STAY_S", 600.0)

    def timers():
        return [one for one in threading.enumerate() if isinstance(one, threading.Timer) and one.interval > 300]

    with Receiver(tmp_path / "var", processes=1, commitment_requests="anyone") as receiver:
        Modality().ask(receiver.port, [(ComputedRadiographyImageStorage, "1.2.3")], stay=False)
        wait_until(timers, "the wait for the report")
    assert timers() == []
    assert [row["state"] for row in receiver.rows("commitment_reports")] == ["waiting"]


def test_refusals_are_being_written_by_nobody_when_the_last_write_has_returned(tmp_path, monkeypatch):
    under_way, has_returned, seen = threading.Event(), threading.Event(), []

    def add(*_):
        under_way.set()
        seen.append(has_returned.wait(LONG_ENOUGH_S))

    monkeypatch.setattr(refusals, "add", add)
    monkeypatch.setattr(refused, "_BETWEEN_WRITES_S", 0.0)
    counts = Counts(None)
    counts.add("image", Sender("CT", "NODE", "127.0.0.1"), "no room")  # a timer writes it
    assert under_way.wait(PATIENCE_S)
    counts.write()
    has_returned.set()
    assert seen == [False]


def test_a_page_that_ends_refreshes_no_figures(tmp_path):
    site = Site(tmp_path / "var")
    begun, is_closed, seen, made = threading.Event(), threading.Event(), [], []
    figures = site.app.state.metrics

    def make():
        made.append(1)
        if len(made) > 1:
            begun.set()
            seen.append(is_closed.wait(LONG_ENOUGH_S))
        return b""

    now = [0.0]
    figures._make, figures._clock = make, lambda: now[0]
    figures.get()
    now[0] = figures._for_s + 1
    figures.get()
    assert begun.wait(PATIENCE_S)
    site.close()
    is_closed.set()
    assert seen == [False]
    now[0] += 2 * figures._for_s
    assert figures.get() == b""
    assert len(made) == 2, "and begins no more"
