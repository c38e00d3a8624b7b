"""`cxr-node copy-database`: from SQLite to a real PostgreSQL and back, every row the same."""

from __future__ import annotations

import pytest
from sqlalchemy import insert, select, update
from typer.testing import CliRunner

from cxr_node.cli import app
from cxr_node.errors import StoreError
from cxr_node.settings import DatabaseSettings
from cxr_node.store import copying, lock
from cxr_node.store.accounts import lockout, tokens, users
from cxr_node.store.audit_log import audit, audit_chain, audit_repositories
from cxr_node.store.database import open_database, write
from cxr_node.store.queue import jobs
from cxr_node.store.schema import commitment_asks, commitment_reports, instances, metadata, metric_totals
from cxr_node.store.views import names, readings, refusals
from cxr_node.store.views.refusals import CountedRefusal
from tests.store import Store


@pytest.fixture
def store(tmp_path):
    """A node on SQLite with something in each table."""
    opened = Store(tmp_path / "var")
    for number in range(5):
        opened.receive(uid=f"1.2.{number}", content=bytes([number]), patient=f"Pätient {number}")
    first, second, *_ = opened.claim()
    opened.finish(first)
    opened.send_all()
    users.add(opened.engine, "ann", "admin", "hash", "test")
    users.begin_session(opened.engine, "ann", "admin", "password", 60)
    tokens.create(opened.engine, "script", "viewer", 1, "test")
    lockout.begin(opened.engine, lockout.keys_of_login("ann", "10.0.0.1"))
    with write(opened.engine) as connection:
        connection.execute(insert(metric_totals).values(name="cursor", labels='["jobs"]', value=1795947326.395))
    names.keep(opened.engine, {1: "Müller^Jürgen"})
    readings.add(opened.engine, first.id, user="ann", host="10.0.0.1", verdict="agree", comment="as I see it")
    jobs.reject(opened.engine, "w", second, ["a lateral view"], blobs=opened.blobs)
    report = {"transaction_uid": "1.9", "ae_title": "CT", "host": "h", "committed": "[]", "failed": "[]", "state": "waiting"}
    with write(opened.engine) as connection:
        connection.execute(insert(commitment_reports).values(**report, attempts=0, not_before=0.1, reason="", created_at=2.5))
        connection.execute(insert(metadata.tables["host_turns"]).values(name="sweep", lease_owner="host", lease_until=1.5))
        connection.execute(insert(metadata.tables["spools"]).values(name="0" * 32, host="host", seen_at=1.5))
        connection.execute(insert(commitment_asks).values(delivery_id=1, transaction_uid="1.9.1", asked_at=1.5))
    refusals.add(opened.engine, {CountedRefusal("image", "CT", "h", "no room"): 2})
    audit_chain.seal_all(opened.engine)
    audit_repositories.position(opened.engine, "hospital")
    audit_chain.note_export(opened.engine, audit_chain.Export(1, 1, 1, bytes(range(32)), "archive", "00", "AA", 3.5))
    yield opened
    opened.engine.dispose()


@pytest.fixture
def run(tmp_path):
    def run(*arguments, url=""):
        config = tmp_path / "node.toml"
        config.write_text(f'[node]\ndata_dir = "{tmp_path / "var"}"\n[database]\nurl = "{url}"\n')
        return CliRunner().invoke(app, [*arguments, "--config", str(config)])

    return run


def rows(engine):
    with engine.connect() as connection:
        return {
            table.name: [tuple(row) for row in connection.execute(select(table).order_by(*table.primary_key.columns))]
            for table in copying.COPIED
        }


def opened(store, url):
    return open_database(store.settings.model_copy(update={"database": DatabaseSettings(url=url)}))


def test_every_row_goes_to_postgresql_and_back(store, run, postgres_url, tmp_path):
    result = run("copy-database", "--to", postgres_url)
    assert result.exit_code == 0, result.output
    assert "hunter2" not in result.output
    there = opened(store, postgres_url)
    assert rows(there) == rows(store.engine)
    assert all(rows(there).values())  # no table is empty
    back = tmp_path / "back.sqlite3"
    result = run("copy-database", "--to", f"sqlite:///{back}", url=postgres_url)
    assert result.exit_code == 0, result.output
    again = opened(store, f"sqlite:///{back}")
    assert rows(again) == rows(there)
    assert [row["event"] for row in audit.search(again)][-2:] == ["database-copied"] * 2
    for engine in (there, again):
        engine.dispose()


def test_the_node_goes_on_there_with_new_numbers(store, run, postgres_url, tmp_path):
    assert run("copy-database", "--to", postgres_url).exit_code == 0
    there = Store(tmp_path / "var", postgres_url)
    there.receive(uid="1.2.99", content=b"new")
    with there.engine.connect() as connection:
        assert max(connection.execute(select(instances.c.id)).scalars()) == 6
    assert len(there.claim()) == 1
    there.engine.dispose()
    assert run("status", url=postgres_url).exit_code == 0


def test_more_rows_than_go_at_once_are_all_copied(store, run, postgres_url, monkeypatch):
    monkeypatch.setattr(copying, "_BATCH", 3)
    assert run("copy-database", "--to", postgres_url).exit_code == 0
    there = opened(store, postgres_url)
    assert rows(there) == rows(store.engine)
    there.dispose()


def test_a_target_that_is_not_empty_is_refused(store, run, postgres_url):
    assert run("copy-database", "--to", postgres_url).exit_code == 0
    before = opened(store, postgres_url)
    result = run("copy-database", "--to", postgres_url)
    assert isinstance(result.exception, StoreError)
    assert "is not empty" in str(result.exception)
    assert len(rows(before)["audit"]) == len(rows(store.engine)["audit"])
    before.dispose()


def test_a_database_of_something_else_is_refused(store, run, postgres, postgres_url):
    postgres.execute("CREATE TABLE theirs (id int)", postgres_url.rpartition("/")[2])
    result = run("copy-database", "--to", postgres_url)
    assert "theirs" in str(result.exception)


def test_a_node_that_runs_is_refused(store, run, postgres_url):
    with lock.serving(store.settings.node.data_dir):
        result = run("copy-database", "--to", postgres_url)
    assert "stop it first" in str(result.exception)


@pytest.mark.parametrize(("value", "says"), [("A" * 70, "has 70 characters, 64 fit"), ("A\0B", "holds a NUL")])
def test_a_row_that_postgresql_can_not_keep_is_named_and_nothing_is_copied(store, run, postgres_url, value, says):
    with write(store.engine) as connection:
        connection.execute(update(instances).where(instances.c.id == 3).values(accession_number=value))
    result = run("copy-database", "--to", postgres_url)
    assert isinstance(result.exception, StoreError)
    assert "id 3" in str(result.exception)
    assert says in str(result.exception)
    assert "AAAA" not in str(result.exception)
    there = opened(store, postgres_url)
    assert not any(rows(there).values())
    there.dispose()


def test_a_row_that_is_not_the_same_afterwards_is_found(store, postgres_url, monkeypatch):
    def copy_badly(reading, writing, table, _copy=copying._copy):
        count = _copy(reading, writing, table)
        if table is instances:
            writing.execute(update(table).where(table.c.id == 2).values(note="another"))
        return count

    monkeypatch.setattr(copying, "_copy", copy_badly)
    target = copying.open_empty(store.settings, postgres_url)
    with pytest.raises(StoreError, match=r"instances, row id 2: note differs after copying"):
        copying.copy_rows(store.engine, target, lambda *_: None)
    assert not any(rows(target).values())
    target.dispose()


def test_a_url_that_can_not_be_used_is_said_without_its_password(store, run):
    result = run("copy-database", "--to", "postgresql+psycopg://cxr:hunter2@127.0.0.1:1/none")
    assert isinstance(result.exception, StoreError)
    assert "hunter2" not in str(result.exception)
