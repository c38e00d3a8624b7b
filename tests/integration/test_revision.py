"""A database that isn't as the program expects it, or migrations that aren't there: the start ends with one sentence."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import inspect, text
from typer.testing import CliRunner

from cxr_node.cli import app
from cxr_node.errors import StoreError
from cxr_node.store import schema_check
from cxr_node.store.backup import back_up, backups
from cxr_node.store.database import inspect_database, open_database, write
from cxr_node.store.revision import SCHEMA_REVISION
from cxr_node.store.views import overview
from tests.store import Store

STAMP = "UPDATE alembic_version SET version_num = "
FAULTS = {
    "a newer schema": (f"{STAMP}'9999'", "newer version of cxr-node"),
    "a schema that no version made": (f"{STAMP}'elsewhere'", "has the schema 'elsewhere'"),
    "a number that no version has": (f"{STAMP}'0000'", "has the schema '0000'"),
    "a schema that it has left behind": (f"{STAMP}'0002'", "can't be brought from the schema 0002"),
    "no schema": ("DELETE FROM alembic_version", "and no schema"),
    "no table for the schema": ("DROP TABLE alembic_version", "and no schema"),
    "two schemas": ("INSERT INTO alembic_version VALUES ('0001')", "more than one schema"),
    "a missing table": ("DROP TABLE audit", "lacks the table audit"),
    "a missing column": ("ALTER TABLE jobs DROP COLUMN findings", "lacks the column jobs.findings"),
    "a renamed column": ("ALTER TABLE results RENAME COLUMN kind TO sort", "lacks the column results.kind"),
}
"""What is done to the database of a node, and what a person is told."""


@pytest.fixture
def store(tmp_path, database_url):
    opened = Store(tmp_path / "var", database_url)
    opened.receive()
    yield opened
    opened.engine.dispose()


@pytest.fixture
def config(tmp_path, database_url):
    path = tmp_path / "node.toml"
    path.write_text(f'[node]\nport = 0\ndata_dir = "{tmp_path / "var"}"\n[database]\nurl = "{database_url}"\n')
    return path


def break_it(store, statement):
    with write(store.engine) as connection:
        connection.execute(text(statement))
    store.engine.dispose()


def told(opening, settings):
    with pytest.raises(StoreError) as error:
        opening(settings)
    words = str(error.value)
    assert "\n" not in words
    assert not re.search(r"sqlalche|SELECT|Traceback|hunter2", words), words
    return words


@pytest.mark.parametrize(("statement", "words"), FAULTS.values(), ids=FAULTS)
def test_a_schema_that_is_not_the_program_s_is_told_and_left_alone(store, statement, words):
    break_it(store, statement)

    def found():
        with store.engine.connect() as connection:
            inspector = inspect(connection)
            return {name: len(columns) for (_, name), columns in inspector.get_multi_columns().items()}

    before = found()
    assert words in told(open_database, store.settings)
    assert "restore" in told(open_database, store.settings)
    assert found() == before


@pytest.mark.parametrize(("statement", "words"), FAULTS.values(), ids=FAULTS)
def test_commands_that_look_are_told_too(store, statement, words):
    break_it(store, statement)
    said = told(inspect_database, store.settings)
    assert words in said or "an older version: start the node once" in said  # and its start then says more


@pytest.mark.parametrize("database_url", [""])
@pytest.mark.parametrize("statement", [statement for statement, _ in FAULTS.values()], ids=FAULTS)
def test_restore_cures_it_as_the_sentence_says(store, config, statement):
    back_up(store.settings)
    break_it(store, statement)
    told(open_database, store.settings)
    restored = CliRunner().invoke(app, ["restore", "--config", str(config)])
    assert restored.exit_code == 0, restored.output
    engine = open_database(store.settings)
    assert [job["state"] for job in overview.list_jobs(engine)] == ["new"]
    engine.dispose()


@pytest.mark.parametrize("database_url", [""])
def test_starts_that_fail_push_out_no_backup(store):
    good = back_up(store.settings)
    break_it(store, f"{STAMP}'0002'")
    for _ in range(9):
        told(open_database, store.settings)
    assert backups(store.settings) == [good]


def test_an_older_database_under_a_newer_name_is_found_out(store):
    settings = Config()
    settings.set_main_option("script_location", str(schema_check.migrations_folder()))
    with write(store.engine) as connection:
        settings.attributes["connection"] = connection
        command.downgrade(settings, "0003")
    break_it(store, f"{STAMP}'{SCHEMA_REVISION}'")
    assert "lacks the table" in told(open_database, store.settings)


@pytest.mark.parametrize("role", ["serve", "receive", "work", "deliver"])
def test_no_role_starts_on_it(store, config, role):
    break_it(store, "DROP TABLE audit")
    started = subprocess.run(
        [sys.executable, "-m", "cxr_node", role, "--config", str(config)],
        env={name: value for name, value in os.environ.items() if not name.startswith("CXR_NODE__")},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert started.returncode == 2
    assert started.stdout == ""
    (line,) = started.stderr.splitlines()
    assert line.startswith("cxr-node: The database ")
    assert "lacks the table audit" in line


class TestMigrationsThatAreMissing:
    @pytest.fixture
    def migrations(self, tmp_path, monkeypatch):
        """The program's migrations, to take some away."""
        folder = tmp_path / "100% migrations"
        shutil.copytree(schema_check.migrations_folder(), folder, ignore=shutil.ignore_patterns("__pycache__"))
        monkeypatch.setattr(schema_check, "migrations_folder", lambda: folder)
        return folder

    @pytest.mark.parametrize(
        "missing",
        ["", "env.py", "versions", "versions/0001_first.py", "versions/0003_digests.py", f"versions/{SCHEMA_REVISION}_*.py"],
    )
    @pytest.mark.filterwarnings("ignore:Revision .* is not present")  # Alembic's own words, before it fails
    def test_stop_the_first_start(self, migrations, tmp_path, empty_database_url, missing):
        for path in migrations.glob(missing) if missing else [migrations]:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        with pytest.raises(StoreError, match=r"migrations of the database are missing in .*: install it again") as error:
            Store(tmp_path / "var", empty_database_url, migrating=True)
        assert "\n" not in str(error.value)

    def test_stop_a_later_start_too(self, store, migrations):
        shutil.rmtree(migrations / "versions")
        assert "install it again" in told(open_database, store.settings)

    def test_are_found_wherever_they_lie(self, migrations, tmp_path, empty_database_url):
        opened = Store(tmp_path / "var", empty_database_url, migrating=True)
        opened.receive()
        assert len(opened.claim()) == 1
        opened.engine.dispose()

    def test_those_of_a_newer_program_are_not_run(self, migrations, tmp_path, empty_database_url):
        newest = next((migrations / "versions").glob(f"{SCHEMA_REVISION}_*.py"))
        down = f'revision = "9999"\ndown_revision = "{SCHEMA_REVISION}"\n\n\ndef upgrade():\n    raise AssertionError\n'
        newest.with_name("9999_newer.py").write_text(down)
        Store(tmp_path / "var", empty_database_url, migrating=True).engine.dispose()


def test_tables_of_another_program_are_no_node(tmp_path, postgres, postgres_url):
    from sqlalchemy import create_engine

    elsewhere = create_engine(postgres_url)
    with elsewhere.begin() as connection:
        connection.execute(text("CREATE TABLE jobs (id integer)"))
    elsewhere.dispose()
    with pytest.raises(StoreError, match="or begin with an empty one"):
        Store(tmp_path / "var", postgres_url)


def test_a_file_that_is_no_database_is_told_in_one_line(tmp_path):
    (tmp_path / "var").mkdir()
    (tmp_path / "var" / "cxr-node.sqlite3").write_bytes(b"no database at all" * 100)
    with pytest.raises(StoreError) as error:
        Store(tmp_path / "var")
    assert "file is not a database. It is damaged: stop the node and `cxr-node restore`" in str(error.value)
    assert "\n" not in str(error.value)
    assert "sqlalche" not in str(error.value)
