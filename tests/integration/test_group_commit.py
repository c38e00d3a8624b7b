"""Group commit on a real SQLite file, and on a PostgreSQL server."""

from __future__ import annotations

import multiprocessing
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import event, func, select
from sqlalchemy.exc import OperationalError

from cxr_node.receive.intake import group_commit
from cxr_node.receive.intake.group_commit import GroupCommit
from cxr_node.records import DataFolder, InstanceHeader, Sender, StoredInstance
from cxr_node.settings import DatabaseSettings, NodeSettings, Settings
from cxr_node.store.database import open_database
from cxr_node.store.files.blobs import LocalBlobs
from cxr_node.store.queue.admissions import Admission, Arrival
from cxr_node.store.schema import instances
from tests.store import lay_database
from tests.waiting import PATIENCE_S, wait_until


@pytest.fixture
def settings(tmp_path, database_url):
    return Settings(node=NodeSettings(data_dir=tmp_path), database=DatabaseSettings(url=database_url))


@pytest.fixture
def engine(settings):
    lay_database(settings)
    opened = open_database(settings)
    yield opened
    opened.dispose()


def together_on(engine, settings):
    return GroupCommit(engine)


def arrival(number, digest=""):
    header = InstanceHeader(f"1.2.{number}", "1.2", "1.2.840.10008.1.2.1", "1.3", "1.4", "P", "A")
    stored = StoredInstance(header, f"instances/{number}", 1, digest or f"blake3:{number:056d}", 1e9)
    return Arrival(LocalBlobs(DataFolder(Path("nowhere"))), stored, Sender("A", "B", "127.0.0.1"), analyse=True)


def count(engine):
    with engine.connect() as connection:
        return connection.execute(select(func.count()).select_from(instances)).scalar_one()


def admit_at_once(together, engine, arrivals, before_first_commit):
    """Let the first arrival's transaction wait until all others have gathered behind it."""
    outcomes = {}
    entered, go = threading.Event(), threading.Event()

    @event.listens_for(engine, "commit")
    def on_commit(_connection):
        entered.set()
        go.wait(PATIENCE_S)

    def admit(number):
        try:
            outcomes[number] = together.admit(arrivals[number])
        except Exception as error:
            outcomes[number] = error

    threads = [threading.Thread(target=admit, args=(number,)) for number in range(len(arrivals))]
    threads[0].start()
    assert entered.wait(PATIENCE_S)
    for thread in threads[1:]:
        thread.start()
    before_first_commit(threads)
    go.set()
    for thread in threads:
        thread.join(PATIENCE_S)
    event.remove(engine, "commit", on_commit)
    return [outcomes[number] for number in range(len(arrivals))]


def gathered(together, expected):
    def wait(_threads):
        wait_until(lambda: len(together._waiting) == expected, f"{expected} waiting")

    return wait


def test_enters_one_alone_at_once(engine, settings):
    assert together_on(engine, settings).admit(arrival(1)) is Admission.QUEUED
    assert count(engine) == 1


def test_those_who_waited_are_entered_in_one_transaction(engine, settings):
    commits = []
    event.listen(engine, "commit", lambda _connection: commits.append(1))
    together = together_on(engine, settings)
    outcomes = admit_at_once(together, engine, [arrival(number) for number in range(8)], gathered(together, 7))
    assert outcomes == [Admission.QUEUED] * 8
    assert count(engine) == 8
    assert len(commits) == 2, "the first alone, then the seven that had gathered"


def test_the_same_instance_twice_in_one_transaction_is_one(engine, settings):
    together = together_on(engine, settings)
    outcomes = admit_at_once(together, engine, [arrival(1), arrival(2), arrival(2)], gathered(together, 2))
    assert sorted(outcomes) == [Admission.DUPLICATE, Admission.QUEUED, Admission.QUEUED]
    assert count(engine) == 2


def test_one_that_fails_fails_alone(engine, settings):
    together = together_on(engine, settings)
    broken = arrival(3)
    broken = replace(broken, stored=replace(broken.stored, path=object()))
    outcomes = admit_at_once(together, engine, [arrival(1), arrival(2), broken, arrival(4)], gathered(together, 3))
    assert [outcomes[0], outcomes[1], outcomes[3]] == [Admission.QUEUED] * 3
    assert isinstance(outcomes[2], Exception)
    assert count(engine) == 3


def _admit_many(settings, begin):
    """In a process of its own: enter instances of that process, one after the other."""
    opened = open_database(settings)
    together = together_on(opened, settings)
    for number in range(begin, begin + 20):
        together.admit(arrival(number))
    opened.dispose()


def test_processes_enter_one_after_the_other_and_nothing_is_lost(engine, settings):
    processes = [multiprocessing.get_context("spawn").Process(target=_admit_many, args=(settings, at)) for at in (100, 200)]
    for process in processes:
        process.start()
    together = together_on(engine, settings)
    for number in range(20):
        together.admit(arrival(number))
    for process in processes:
        process.join(PATIENCE_S)
    assert [process.exitcode for process in processes] == [0, 0]
    assert count(engine) == 60


def test_all_that_waited_fail_at_once_where_the_database_is_locked(engine, settings, monkeypatch):
    """Each alone would wait as long again for the same."""
    together, tried = together_on(engine, settings), []

    def admit_all(_engine, arrivals):
        tried.append(len(arrivals))
        if len(tried) == 1:
            wait_until(lambda: len(together._waiting) == 3, "3 waiting")
        raise OperationalError("BEGIN IMMEDIATE", {}, Exception("database is locked"))

    monkeypatch.setattr(group_commit, "admit_all", admit_all)
    with ThreadPoolExecutor(4) as pool:
        outcomes = [pool.submit(together.admit, arrival(number)) for number in range(4)]
        assert all(isinstance(outcome.exception(PATIENCE_S), OperationalError) for outcome in outcomes)
    assert tried == [1, 3]


def test_one_that_waits_too_long_gives_up_and_is_not_entered(engine):
    together = GroupCommit(engine, longest_wait_s=0.2)
    with together._committing, pytest.raises(TimeoutError):
        together.admit(arrival(1))
    assert together.admit(arrival(2)) is Admission.QUEUED
    assert count(engine) == 1
