"""What the audit log is told of: the node's own start and stop, and commitment that is given up."""

from __future__ import annotations

import threading

import pytest
from sqlalchemy import update
from sqlalchemy.exc import OperationalError

from cxr_node.commitment import reports, request_reports, requests
from cxr_node.errors import StoreError
from cxr_node.node import supervisor
from cxr_node.records import DeliveryState
from cxr_node.settings import NodeSettings, Settings
from cxr_node.store.audit_log import audit
from cxr_node.store.database import open_database, write
from cxr_node.store.queue import deliveries
from cxr_node.store.schema import deliveries as deliveries_table
from tests.commitment_peers import owe_report
from tests.node import Node
from tests.store import Store


@pytest.fixture
def store(tmp_path, database_url):
    opened = Store(tmp_path / "var", database_url)
    yield opened
    opened.engine.dispose()


@pytest.fixture
def stored(store):
    """Two results that the destination has stored and not committed yet."""
    store.receive()
    (job,) = store.claim()
    store.finish(job)
    for delivery in deliveries.claim(store.engine, "pacs", "d", 8, 60):
        deliveries.mark_sent(store.engine, delivery, 0x0000, to_commit=True)
    return store


def events(store, pattern):
    return [(row["event"], row["outcome"], row["user"], row["patient_id"]) for row in audit.search(store.engine, event=pattern)]


GIVEN_UP = ("commitment-given-up", "failure", "pacs", "PID")


def test_a_commitment_that_never_came_is_told_of_once_for_each_object(stored):
    with write(stored.engine) as connection:
        connection.execute(update(deliveries_table).values(asks=12, not_before=0))
    for _ in range(2):
        assert requests.next_request(stored.engine, "pacs", 600) is None
    assert events(stored, "commitment-*") == [GIVEN_UP] * 2
    uids = {row["sop_instance_uid"] for row in audit.search(stored.engine, event="commitment-given-up")}
    assert len(uids) == 2


def test_asking_again_is_no_giving_up(stored):
    assert requests.next_request(stored.engine, "pacs", 600) is not None
    assert events(stored, "commitment-*") == []


def test_an_object_that_is_never_kept_is_told_of(stored):
    request = requests.next_request(stored.engine, "pacs", 600)
    with write(stored.engine) as connection:
        connection.execute(update(deliveries_table).values(attempts=20))
    failed = {uid: 0x0110 for _, uid in request.references}
    request_reports.note_report(stored.engine, request.transaction_uid, [], failed)
    assert events(stored, "commitment-*") == [GIVEN_UP] * 2
    with stored.engine.connect() as connection:
        states = connection.execute(deliveries_table.select()).mappings().all()
    assert {row["state"] for row in states} == {DeliveryState.HELD}


def test_settings_that_no_longer_ask_for_it_are_told_of(stored):
    requests.drop_requests(stored.engine, "pacs")
    assert events(stored, "commitment-*") == [GIVEN_UP] * 2


def test_a_report_that_a_modality_never_took_is_told_of(store):
    report = owe_report(store.engine, "1.2.3", "MODALITY", "10.0.0.1", [("1.2", "1.2.1")], {})
    reports.report_failed(store.engine, report, "nobody answers")
    assert events(store, "commitment-given-up") == []
    reports.report_failed(store.engine, report, "nobody answers", hold=True)
    (row,) = audit.search(store.engine, event="commitment-given-up")
    assert (row["user"], row["host"], row["outcome"]) == ("MODALITY", "10.0.0.1", "failure")
    assert "1.2.3" in row["detail"]
    reports.report_failed(store.engine, report, "nobody answers", hold=True)  # it is held already
    assert len(list(audit.search(store.engine, event="commitment-given-up"))) == 1


def test_a_role_that_runs_alone_tells_of_its_start_and_its_stop(tmp_path):
    running = Node(tmp_path)
    running.start("receive")
    engine = open_database(running.settings)
    started = [row["event"] for row in audit.search(engine, event="node-*")]
    assert running.stop() == 0
    rows = list(audit.search(engine, event="node-*"))
    engine.dispose()
    assert started == ["node-started"]
    assert [(row["event"], row["outcome"]) for row in rows] == [("node-started", "success"), ("node-stopped", "success")]
    assert all("receive" in row["detail"] and row["user"] for row in rows)


def test_an_end_by_an_error_is_told_as_one(store):
    with pytest.raises(StoreError), supervisor._on_record(store.settings, "serve"):
        raise StoreError("no")
    assert [(row["event"], row["outcome"]) for row in audit.search(store.engine, event="node-*")] == [
        ("node-started", "success"),
        ("node-stopped", "failure"),
    ]


def test_a_database_that_takes_no_row_keeps_the_node_from_nothing(tmp_path, monkeypatch):
    settings = Settings(node=NodeSettings(data_dir=tmp_path / "var"))

    def full(*_):
        raise OperationalError("INSERT", {}, Exception("database or disk is full"))

    monkeypatch.setattr(supervisor, "open_database", full)
    done = threading.Event()
    with supervisor._on_record(settings, "serve"):
        done.set()
    assert done.is_set()
