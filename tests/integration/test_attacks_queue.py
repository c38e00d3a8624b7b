"""The queue of analyses when one sender floods it, or sends what ends workers: on SQLite and on PostgreSQL."""

from __future__ import annotations

import pytest
from sqlalchemy import insert, select, update

from cxr_node.records import JobState
from cxr_node.store.database import write
from cxr_node.store.queue import fair_share, jobs
from cxr_node.store.schema import instances
from cxr_node.store.schema import jobs as jobs_table
from tests.store import Store


@pytest.fixture
def store(tmp_path, database_url):
    opened = Store(tmp_path / "var", database_url)
    yield opened
    opened.engine.dispose()


def receive(store, uid, host):
    store.receive(uid=uid, content=uid.encode())
    with write(store.engine) as connection:
        connection.execute(update(instances).where(instances.c.sop_instance_uid == uid).values(host=host))
        theirs = select(instances.c.id).where(instances.c.sop_instance_uid == uid)
        connection.execute(update(jobs_table).where(jobs_table.c.instance_id.in_(theirs)).values(host=host))


def uids(claimed):
    return [job.sop_instance_uid for job in claimed]


def test_each_address_has_its_turn_however_much_another_has_sent(store):
    for number in range(50):
        receive(store, f"1.6.{number}", "10.0.0.66")
    for number in range(3):
        receive(store, f"1.1.{number}", "10.0.0.1")
    assert sorted(uids(store.claim(limit=4))) == ["1.1.0", "1.1.1", "1.6.0", "1.6.1"]
    assert sorted(uids(store.claim(limit=4))) == ["1.1.2", "1.6.2", "1.6.3", "1.6.4"]


def test_a_higher_priority_still_goes_first(store):
    for number in range(3):
        receive(store, f"1.1.{number}", "10.0.0.1")
    receive(store, "1.2.1", "10.0.0.2")
    with write(store.engine) as connection:
        first = jobs_table.c.id.in_([1, 2])
        connection.execute(update(jobs_table).where(first).values(priority=5))
    assert sorted(uids(store.claim(limit=2))) == ["1.1.0", "1.1.1"]


def test_what_ended_a_worker_comes_behind_all_that_never_did_and_alone(store, monkeypatch):
    monkeypatch.setattr(jobs, "_OLD_AMONG_NEW", 0.0)
    receive(store, "1.6.1", "10.0.0.66")
    (bomb,) = store.claim()
    store.lapse()
    for number in range(3):
        receive(store, f"1.1.{number}", "10.0.0.1")
    assert uids(store.claim(limit=2)) == ["1.1.0", "1.1.1"]
    assert uids(store.claim(limit=2)) == ["1.1.2"]
    assert uids(store.claim(limit=2)) == ["1.6.1"]
    store.lapse()
    jobs.claim(store.engine, "w", 1, 60.0, 2)
    assert store.state_of(bomb) == JobState.HELD, "after one more try"


def test_a_worker_with_other_jobs_takes_none_that_was_tried_before(store, monkeypatch):
    monkeypatch.setattr(jobs, "_OLD_AMONG_NEW", 0.0)
    receive(store, "1.6.1", "10.0.0.66")
    store.claim()
    store.lapse()
    assert store.claim(only_new=True) == []
    receive(store, "1.1.1", "10.0.0.1")
    assert uids(store.claim(only_new=True)) == ["1.1.1"]
    assert uids(store.claim()) == ["1.6.1"]


def test_where_there_is_always_something_new_a_worker_comes_to_have_no_other_jobs(store, monkeypatch):
    monkeypatch.setattr(jobs, "_OLD_AMONG_NEW", 1.0)
    receive(store, "1.6.1", "10.0.0.66")
    store.claim()
    store.lapse()
    receive(store, "1.1.1", "10.0.0.1")
    assert uids(store.claim(only_new=True)) == ["1.1.1"]
    receive(store, "1.1.2", "10.0.0.1")
    with write(store.engine) as connection:
        connection.execute(update(jobs_table).where(jobs_table.c.id == 1).values(created_at=jobs_table.c.created_at - 700))
    assert store.claim(only_new=True) == []
    assert uids(store.claim()) == ["1.6.1"]


def test_what_was_tried_before_is_not_put_off_for_ever(store, monkeypatch):
    monkeypatch.setattr(jobs, "_OLD_AMONG_NEW", 1.0)
    receive(store, "1.6.1", "10.0.0.66")
    store.claim()
    store.lapse()
    receive(store, "1.1.1", "10.0.0.1")
    with write(store.engine) as connection:
        connection.execute(update(jobs_table).where(jobs_table.c.id == 1).values(created_at=jobs_table.c.created_at - 700))
    assert uids(store.claim(limit=2)) == ["1.6.1"]


def test_each_address_has_its_turn_where_one_job_is_claimed_at_a_time(store):
    for flooding in (66, 67):
        for number in range(20):
            receive(store, f"1.{flooding}.{number}", f"10.0.0.{flooding}")
    for number in range(3):
        receive(store, f"1.1.{number}", "10.0.0.1")
    taken = [uid for _ in range(9) for uid in uids(store.claim(limit=1))]
    assert sorted(uid for uid in taken if uid.startswith("1.1.")) == ["1.1.0", "1.1.1", "1.1.2"]


@pytest.mark.parametrize("old_among_new", [0.0, 1.0], ids=["never tried", "one that was tried first"])
def test_a_claim_reads_no_more_of_a_long_queue_than_of_a_short_one(tmp_path, monkeypatch, old_among_new):
    """In SQLite's own steps: a claim holds the lock that reception waits for."""
    monkeypatch.setattr(jobs, "_OLD_AMONG_NEW", old_among_new)
    store, steps = Store(tmp_path / "var"), {}
    receive(store, "1.1.0", "10.0.0.1")
    with store.engine.connect() as connection:
        instance = dict(connection.execute(select(instances)).mappings().one())
        job = dict(connection.execute(select(jobs_table)).mappings().one())
    for waiting in (30, 6000):
        with write(store.engine) as connection:
            numbers = range(len(steps) * 100_000 + 2, len(steps) * 100_000 + 2 + waiting)
            connection.execute(
                insert(instances),
                [instance | {"id": n, "sop_instance_uid": f"1.2.{n}", "path": f"p{n}", "digest": f"d{n}"} for n in numbers],
            )
            connection.execute(
                insert(jobs_table), [job | {"id": n, "instance_id": n, "host": f"10.0.0.{n % 3}"} for n in numbers]
            )
        counted = []
        raw = store.engine.raw_connection()
        raw.driver_connection.set_progress_handler(lambda counted=counted: counted.append(1), 100)
        raw.close()  # back to the pool, from which the claim takes it
        assert len(store.claim(limit=8)) == 8
        steps[waiting] = len(counted)
    store.engine.dispose()
    assert steps[30] > 0
    assert steps[6000] < 2 * steps[30], steps


def test_of_too_many_addresses_the_oldest_job_is_next(store, monkeypatch):
    monkeypatch.setattr(fair_share, "_MOST_ADDRESSES", 2)
    receive(store, "1.9.1", "10.9.0.1")
    for number in range(4):
        receive(store, f"1.1.{number}", f"10.0.0.{number}")
    assert uids(store.claim(limit=2)) == ["1.9.1", "1.1.0"]
