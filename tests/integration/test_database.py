"""The database itself: its schema and migrations, whose it is, and what people are told when it can't be used.

Over 300 lines: what both engines have in common stands beside what is PostgreSQL's own.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from psycopg.sql import SQL, Identifier
from sqlalchemy import select, text
from sqlalchemy.exc import SQLAlchemyError

from cxr_node.errors import StoreError
from cxr_node.logs import exception_text
from cxr_node.records import AuditEvent, InstanceHeader, Sender, StoredInstance
from cxr_node.settings import DatabaseSettings, NodeSettings, Settings
from cxr_node.store import database
from cxr_node.store.audit_log import audit
from cxr_node.store.database import DatabaseTrouble, inspect_database, is_full, open_database, write
from cxr_node.store.queue import admissions, deliveries, jobs
from cxr_node.store.schema import home
from cxr_node.store.schema import jobs as jobs_table
from cxr_node.store.views import overview
from tests.postgres import PASSWORD
from tests.scps import closed_port
from tests.store import Store
from tests.waiting import PATIENCE_S


@pytest.fixture
def store(tmp_path, database_url):
    opened = Store(tmp_path / "var", database_url)
    yield opened
    opened.engine.dispose()


@pytest.fixture
def on_postgres(tmp_path, postgres_url):
    opened = Store(tmp_path / "var", postgres_url)
    yield opened
    opened.engine.dispose()


def settings(folder, url):
    return Settings(node=NodeSettings(data_dir=folder), database=DatabaseSettings(url=url))


def name_of(url):
    return url.rpartition("/")[2]


def test_a_newer_schema_is_named_and_left_alone(store):
    with write(store.engine) as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(StoreError, match="newer version"):
        open_database(store.settings)
    with pytest.raises(StoreError, match="newer version"):
        inspect_database(store.settings)


@pytest.mark.parametrize("revision", ["0001", "0002", "0003"])
def test_an_older_database_is_brought_up_to_date_and_keeps_its_rows(store, revision):
    from alembic import command
    from alembic.config import Config

    store.receive()
    store.finish(store.claim()[0])
    before = overview.list_deliveries(store.engine)
    config = Config()
    config.set_main_option("script_location", "cxr_node/store/migrations")
    with write(store.engine) as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, revision)
    store.engine.dispose()
    with pytest.raises(StoreError, match="older version"):
        inspect_database(store.settings)
    engine = open_database(store.settings)
    assert overview.list_deliveries(engine) == before
    assert len(deliveries.claim(engine, "pacs", "d", 8, 60)) == 2
    engine.dispose()
    if not store.settings.database.url:
        assert len(list((store.folders.root / "backup").iterdir())) == 1  # as it was before


def test_the_schema_and_its_migrations_agree(store):
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    from cxr_node.store.revision import SCHEMA_REVISION
    from cxr_node.store.schema import metadata

    with store.engine.connect() as connection:
        # words of the audit log are indexed in each database's own way, which SQLAlchemy has no tables for
        context = MigrationContext.configure(
            connection, opts={"include_name": lambda name, *_: not str(name).startswith(("audit_text", "ix_audit_text"))}
        )
        assert context.get_current_revision() == SCHEMA_REVISION
        assert compare_metadata(context, metadata) == []


def test_sqlite_flushes_every_commit(tmp_path):
    store = Store(tmp_path / "var")
    with store.engine.connect() as connection:
        assert connection.execute(text("PRAGMA synchronous")).scalar() == 2
        assert connection.execute(text("PRAGMA journal_mode")).scalar() == "wal"
        assert connection.execute(select(jobs_table)).all() == []


@pytest.mark.parametrize("url", ["nonsense", "postgres://user:hunter2@host/name", "postgresql+nothing://user:hunter2@host/name"])
def test_a_database_url_that_can_not_be_used_is_explained_without_its_password(tmp_path, url):
    settings = Settings(node=NodeSettings(data_dir=tmp_path / "var"), database=DatabaseSettings(url=url))
    with pytest.raises(StoreError, match=r"database\.url") as told:
        open_database(settings)
    assert "hunter2" not in str(told.value)


def test_a_database_error_quotes_no_patient(store):
    with pytest.raises(SQLAlchemyError) as told, write(store.engine) as connection:
        audit.add(connection, AuditEvent("x", patient_id="ZEBRA", detail=object()))  # type: ignore[arg-type]
    assert "ZEBRA" not in str(told.value)


class TestPostgreSQL:
    def test_flushes_every_commit_whatever_its_default(self, on_postgres, postgres, postgres_url):
        name = Identifier(name_of(postgres_url))
        postgres.execute(SQL("ALTER DATABASE {} SET synchronous_commit = off").format(name), "postgres")
        postgres.execute(SQL("ALTER DATABASE {} SET default_transaction_isolation = 'serializable'").format(name), "postgres")
        on_postgres.engine.dispose()
        with on_postgres.engine.connect() as connection:
            assert connection.execute(text("SHOW synchronous_commit")).scalar() == "on"
            assert connection.execute(text("SHOW transaction_isolation")).scalar() == "read committed"
            assert connection.execute(text("SHOW lock_timeout")).scalar() == "30s"

    def test_a_stricter_default_is_left_alone(self, on_postgres, postgres, postgres_url):
        name = Identifier(name_of(postgres_url))
        postgres.execute(SQL("ALTER DATABASE {} SET synchronous_commit = remote_apply").format(name), "postgres")
        on_postgres.engine.dispose()
        with on_postgres.engine.connect() as connection:
            assert connection.execute(text("SHOW synchronous_commit")).scalar() == "remote_apply"

    def test_what_it_can_not_hold_is_left_out_of_texts(self, on_postgres):
        audit.record(on_postgres.engine, AuditEvent("x", patient_id="P\0ID", detail="half \ud800 a pair"))
        (row,) = audit.search(on_postgres.engine)
        assert (row["patient_id"], row["detail"]) == ("PID", "half ? a pair")
        assert list(audit.search(on_postgres.engine, patient_id="P\0ID")) == [row]

    def test_an_instance_may_be_larger_than_two_gibibytes(self, on_postgres):
        header = InstanceHeader("1.2.3", "1.2", "1.2.840.10008.1.2.1", "1.5", "1.6", "PID", "ACC")
        stored = StoredInstance(header, "instances/00/00.dcm", 3 * 2**30, "blake3:00", 1e9)
        for _ in range(2):
            admissions.admit(on_postgres.engine, on_postgres.blobs, stored, Sender("M", "N", "127.0.0.1"), analyse=True)
        assert overview.count_states(on_postgres.engine)["received"]["bytes"] == 3 * 2**30

    def test_a_full_disk_is_known_as_such(self, on_postgres):
        with pytest.raises(DatabaseTrouble) as told, write(on_postgres.engine) as connection:
            connection.execute(text("DO $$ BEGIN RAISE EXCEPTION 'could not extend file' USING ERRCODE = '53100'; END $$"))
        assert is_full(told.value)

    def test_goes_on_after_the_server_was_away(self, on_postgres, postgres):
        on_postgres.receive()
        postgres.stop()
        try:
            with pytest.raises(DatabaseTrouble) as told:
                on_postgres.claim()
        finally:
            postgres.start()
        assert "is away: connection failed" in exception_text(told.value)  # which the log says
        assert PASSWORD not in exception_text(told.value)
        assert len(on_postgres.claim()) == 1

    def test_a_transaction_that_the_server_s_end_cuts_off_leaves_nothing(self, on_postgres, postgres):
        with contextlib.suppress(DatabaseTrouble), write(on_postgres.engine) as connection:
            audit.add(connection, AuditEvent("half"))
            postgres.stop()
            postgres.start()
        assert list(audit.search(on_postgres.engine)) == []
        audit.record(on_postgres.engine, AuditEvent("whole"))
        assert [row["event"] for row in audit.search(on_postgres.engine)] == ["whole"]


class TestClaimsBesideAnotherTransaction:
    """What another worker has just locked is passed over, not waited for."""

    def locked(self, store, table, count):
        connection = store.engine.connect()
        rows = connection.execute(text(f"SELECT id FROM {table} ORDER BY id LIMIT {count} FOR UPDATE")).scalars().all()
        return connection, rows

    def test_takes_the_jobs_that_are_left(self, on_postgres):
        for number in range(5):
            on_postgres.receive(uid=f"1.2.{number}", content=bytes([number]))
        connection, locked = self.locked(on_postgres, "jobs", 2)
        with connection:
            assert [job.id for job in on_postgres.claim(limit=2)] == [locked[-1] + 1, locked[-1] + 2]
        assert [job.id for job in on_postgres.claim()][:2] == locked

    def test_takes_the_deliveries_that_are_left(self, on_postgres):
        on_postgres.receive()
        on_postgres.finish(on_postgres.claim()[0])
        connection, locked = self.locked(on_postgres, "deliveries", 1)
        with connection:
            assert [item.id for item in deliveries.claim(on_postgres.engine, "pacs", "d", 8, 60)] == [locked[0] + 1]
        assert [item.id for item in deliveries.claim(on_postgres.engine, "pacs", "d", 8, 60)] == locked


def _claim_all(of, owner, begin, taken):
    """In a process of its own: claim until nothing is left."""
    engine = open_database(of)
    begin.wait(PATIENCE_S)
    while claimed := jobs.claim(engine, owner, 3, 3600, 3):
        taken.put((owner, [job.id for job in claimed]))
    engine.dispose()


def test_several_processes_claim_each_job_once(store):
    for number in range(60):
        store.receive(uid=f"1.2.{number}", content=str(number).encode())
    spawn = multiprocessing.get_context("spawn")
    begin, taken = spawn.Barrier(3), spawn.Manager().Queue()
    processes = [spawn.Process(target=_claim_all, args=(store.settings, f"w{n}", begin, taken)) for n in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(PATIENCE_S)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    claimed = [taken.get() for _ in range(taken.qsize())]
    assert sorted(job for _, ids in claimed for job in ids) == list(range(1, 61))
    assert all(len(ids) <= 3 for _, ids in claimed)


class TestTheSameInstanceFromManyAtOnce:
    def admit(self, store, contents):
        header = InstanceHeader("1.2.3", "1.2", "1.2.840.10008.1.2.1", "1.5", "1.6", "PID", "ACC")
        together = threading.Barrier(len(contents))

        def admit(content):
            together.wait(PATIENCE_S)
            stored = StoredInstance(header, f"instances/00/{content}.dcm", 1, f"blake3:{content}", 1e9)
            return admissions.admit(store.engine, store.blobs, stored, Sender("M", "N", "127.0.0.1"), analyse=True)

        with ThreadPoolExecutor(len(contents)) as pool:
            return sorted(pool.map(admit, contents))

    def test_the_same_content_is_one_job(self, store):
        assert self.admit(store, ["a"] * 6) == ["duplicate"] * 5 + ["queued"]
        assert len(store.claim()) == 1

    def test_each_other_content_is_a_revision_of_its_own(self, store):
        assert self.admit(store, list("abcdef")) == ["queued"] + ["revision"] * 5
        assert [job.revision for job in store.claim()] == [5], "the newest alone is analysed"
        assert store.revisions() == [0, 1, 2, 3, 4, 5]


class TestWhoseItIs:
    def test_another_data_folder_is_refused_and_told_what_to_do(self, on_postgres, tmp_path, postgres_url):
        for open_it in (open_database, inspect_database):
            with pytest.raises(StoreError, match="belongs to another data folder") as told:
                open_it(settings(tmp_path / "other", postgres_url))
            assert PASSWORD not in str(told.value)
        assert on_postgres.receive() == "queued"

    def test_a_folder_that_came_in_its_place_is_taken_as_the_message_says(self, on_postgres, tmp_path, postgres_url):
        with pytest.raises(StoreError) as told:
            open_database(settings(tmp_path / "other", postgres_url))
        words = str(told.value).split()
        owner, file = words[words.index("write") + 1], words[words.index("into") + 1].rstrip(",")
        Path(file).write_text(owner)
        open_database(settings(tmp_path / "other", postgres_url)).dispose()

    def test_a_folder_that_moved_is_known_again(self, on_postgres, tmp_path, postgres_url):
        on_postgres.engine.dispose()
        on_postgres.folders.root.rename(tmp_path / "moved")
        open_database(settings(tmp_path / "moved", postgres_url)).dispose()

    def test_of_two_folders_that_come_at_once_one_gets_it(self, tmp_path, postgres_url):
        together = threading.Barrier(4)

        def come(number):
            together.wait(PATIENCE_S)
            try:
                open_database(settings(tmp_path / str(number % 2), postgres_url)).dispose()
            except StoreError as error:
                return str(error)
            return ""

        with ThreadPoolExecutor(4) as pool:
            told = list(pool.map(come, range(4)))
        assert told[0] == told[2]
        assert told[1] == told[3]
        assert sorted("belongs to another" in words for words in told[:2]) == [False, True]

    def test_sqlite_in_the_data_folder_moves_with_it(self, tmp_path):
        store = Store(tmp_path / "var")
        with store.engine.connect() as connection:
            assert connection.execute(select(home)).all() == []


def test_roles_that_start_together_on_several_machines_migrate_once(tmp_path, postgres_url, monkeypatch):
    monkeypatch.setattr(database, "_one_at_a_time", lambda _: contextlib.nullcontext())  # a lock of one machine
    monkeypatch.setattr(database.data_folder_id, "settle", lambda *_: None)
    together = threading.Barrier(4)

    def start(_):
        together.wait(PATIENCE_S)
        open_database(settings(tmp_path / "var", postgres_url)).dispose()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(start, range(4)))


class TestWhatPeopleAreTold:
    def told(self, folder, url):
        with pytest.raises(StoreError) as told:
            open_database(settings(folder, url))
        words = str(told.value)
        assert "hunter2" not in words
        assert "sqlalche" not in words  # a page for programmers
        return words

    def test_of_a_server_that_is_away(self, tmp_path):
        words = self.told(tmp_path / "var", f"postgresql://cxr:hunter2@127.0.0.1:{closed_port()}/cxr")
        assert "Connection refused" in words
        assert "Is the server running" in words

    def test_of_a_wrong_password(self, tmp_path, postgres):
        words = self.told(tmp_path / "var", postgres.url("postgres", "wrong-hunter2"))
        assert "password authentication failed" in words
        assert "does it know the user, the password" in words

    def test_of_a_password_that_stands_among_the_options(self, tmp_path, postgres):
        self.told(tmp_path / "var", f"postgresql://cxr@127.0.0.1:{postgres.port}/postgres?password=wrong-hunter2")

    def test_of_a_database_that_is_not_there(self, tmp_path, postgres):
        words = self.told(tmp_path / "var", postgres.url("nowhere"))
        assert 'database "nowhere" does not exist' in words

    @pytest.mark.parametrize("password", ["my@hunter2", "my@pass:hunter2"])
    def test_of_a_password_with_a_character_that_has_to_be_escaped(self, tmp_path, password):
        words = self.told(tmp_path / "var", f"postgresql://cxr:{password}@127.0.0.1/cxr")
        assert "%2F" in words

    def test_of_a_database_that_is_someone_else_s(self, tmp_path, postgres, postgres_url):
        name = Identifier(name_of(postgres_url))
        postgres.execute("DROP ROLE IF EXISTS guest", "postgres")
        postgres.execute("CREATE ROLE guest LOGIN PASSWORD 'hunter2'", "postgres")
        postgres.execute(SQL("GRANT CONNECT ON DATABASE {} TO guest").format(name), "postgres")
        postgres.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC", name_of(postgres_url))
        words = self.told(tmp_path / "var", postgres_url.replace("cxr:", "guest:"))
        assert "permission denied for schema public" in words
        assert "Make the user the owner" in words

    def test_of_an_encoding_that_does_not_hold_every_name(self, tmp_path, postgres):
        url = postgres.new_database("SQL_ASCII")
        try:
            assert "createdb --encoding UTF8" in self.told(tmp_path / "var", url)
        finally:
            postgres.drop_database(url)

    def test_of_a_standby(self, tmp_path, postgres, postgres_url):
        name = Identifier(name_of(postgres_url))
        postgres.execute(SQL("ALTER DATABASE {} SET default_transaction_read_only = on").format(name), "postgres")
        assert "name the primary" in self.told(tmp_path / "var", postgres_url)

    def test_of_psycopg_that_is_not_installed(self, tmp_path):
        code = (
            "import sys; sys.modules['psycopg'] = None\n"
            "from cxr_node.cli import main; sys.argv = ['cxr-node', 'status', '--config', sys.argv[1]]; main()"
        )
        config = tmp_path / "cxr-node.toml"
        config.write_text(f'[node]\ndata_dir = "{tmp_path}"\n[database]\nurl = "postgresql://cxr:hunter2@127.0.0.1/cxr"\n')
        done = subprocess.run([sys.executable, "-c", code, str(config)], capture_output=True, text=True, check=False)
        assert done.returncode != 0
        assert "the extra `scale`" in done.stderr
        assert "Traceback" not in done.stderr
        assert "hunter2" not in done.stdout + done.stderr

    def test_of_a_database_that_is_empty_by_commands_that_look(self, tmp_path, postgres_url):
        (tmp_path / "var").mkdir()
        with pytest.raises(StoreError, match="start it once"):
            inspect_database(settings(tmp_path / "var", postgres_url))
