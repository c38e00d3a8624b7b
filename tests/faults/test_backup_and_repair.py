"""Backup, restore and doctor: after each, files and rows agree, and nothing that was acknowledged is missing.

Over 300 lines: each kind of damage with its cure.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import subprocess
import threading
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from blake3 import blake3
from sqlalchemy import text
from typer.testing import CliRunner

from cxr_node.cli import app
from cxr_node.errors import CxrNodeError, StoreError
from cxr_node.node.housekeeping import Housekeeping
from cxr_node.receive.intake.header import read_header
from cxr_node.receive.transport.incoming import file_meta
from cxr_node.records import DeliveryState, JobState, Sender
from cxr_node.store import backup, lock
from cxr_node.store.audit_log import audit
from cxr_node.store.backup import database_file
from cxr_node.store.database import inspect_database, open_database
from cxr_node.store.files import consistency
from cxr_node.store.files.digests import Digest, earlier_digest_of, file_digest
from cxr_node.store.files.instances import keep_instance
from cxr_node.store.queue import admissions, deliveries, jobs
from cxr_node.store.queue.admissions import Admission
from cxr_node.store.views import overview
from tests.receiver import encoded, radiograph
from tests.store import Store

EXPLICIT = "1.2.840.10008.1.2.1"


class Node(Store):
    """A data folder whose instances are real ones, as `receive` writes them, and a settings file."""

    def __init__(self, root, database_url=""):
        super().__init__(root / "var", database_url)
        self.config = root / "cxr-node.toml"
        self.config.write_text(f'[node]\ndata_dir = "{root / "var"}"\n[database]\nurl = "{database_url}"\n')

    def keep(self, ds):
        """The file of an instance, and no row; what `admissions.admit` needs."""
        content = encoded(ds)
        meta = file_meta(ds.SOPClassUID, ds.SOPInstanceUID, EXPLICIT, "MODALITY7")
        temporary = self.folders.incoming / ds.SOPInstanceUID
        temporary.write_bytes(meta + content)
        header, _ = read_header(temporary, len(meta), EXPLICIT)
        return keep_instance(self.blobs, temporary, header, file_digest(temporary))

    def keep_as_before(self, ds):
        """Its file and its row, as releases before schema 0003 left them."""
        stored = self.keep(ds)
        path = self.folders.root / stored.path
        digest = earlier_digest_of(path)
        name = hashlib.sha256(f"{ds.SOPInstanceUID}/{EXPLICIT}/{digest}".encode()).hexdigest()
        earlier = path.parents[1] / name[:2] / f"{name}.dcm"
        earlier.parent.mkdir(exist_ok=True)
        path.replace(earlier)
        return replace(stored, path=str(earlier.relative_to(self.folders.root)), digest=digest)

    def receive_real(self, **attributes):
        ds = radiograph(**attributes)
        self.receive_again(ds)
        return ds

    def receive_again(self, ds):
        sender = Sender("MODALITY7", "CXRNODE", "127.0.0.1")
        return admissions.admit(self.engine, self.blobs, self.keep(ds), sender, analyse=True)

    def run(self, *arguments):
        return CliRunner().invoke(app, [*arguments, "--config", str(self.config)])

    def found(self, min_age_s=0.0):
        return [item.kind for item in consistency.find_differences(self.engine, self.blobs, min_age_s)]

    def job(self):
        (row,) = overview.list_jobs(self.engine)
        return overview.show_job(self.engine, row["id"])


@pytest.fixture
def node(tmp_path):
    return Node(tmp_path)


def make_old(node):
    """Nothing is about to get its row."""
    for path in node.folders.root.rglob("*.dcm"):
        os.utime(path, (1e9, 1e9))


class TestBackup:
    def test_is_whole_although_the_node_writes_meanwhile(self, node):
        stop = threading.Event()

        def write():
            number = 0
            while not stop.is_set():
                number += 1
                node.receive(uid=f"1.2.{number}", content=str(number).encode())

        thread = threading.Thread(target=write)
        thread.start()
        try:
            path = backup.back_up(node.settings)
        finally:
            stop.set()
            thread.join()
        assert path is not None
        backup.check_file(path)
        assert path.stat().st_mode & 0o077 == 0
        assert [name.name for name in path.parent.iterdir()] == [path.name]  # one file, nothing beside it

    def test_old_ones_are_thinned_out(self):
        hours = [
            Path(f"cxr-node-202611{day:02d}T{hour:02d}0000Z.sqlite3") for day in range(20, 0, -1) for hour in range(23, -1, -1)
        ]
        kept = [path.name[9:-9] for path in backup.worth_keeping(hours)]
        assert kept == [
            *(f"20261120T{hour}0000" for hour in (23, 22, 21, 20, 19, 18)),
            *(f"202611{day}T230000" for day in (19, 18, 17, 16, 15, 14)),
        ]

    def test_the_command_prints_where_it_is(self, node):
        result = node.run("backup")
        assert result.exit_code == 0
        backup.check_file(Path(result.stdout.strip()))


class TestRestore:
    def test_brings_back_what_was_and_enters_what_came_since(self, node):
        before = node.receive_real()
        node.run("backup")
        since = node.receive_real()
        node.engine.dispose()
        database = database_file(node.settings)
        database.write_bytes(b"\0" * database.stat().st_size)
        result = node.run("restore")
        assert result.exit_code == 0, result.output
        engine = open_database(node.settings)
        by_uid = {row["sop_instance_uid"]: row for row in overview.list_jobs(engine)}
        assert set(by_uid) == {before.SOPInstanceUID, since.SOPInstanceUID}
        assert {row["state"] for row in by_uid.values()} == {JobState.NEW}
        assert by_uid[since.SOPInstanceUID]["sender"] == "MODALITY7"  # so that the same route applies
        assert any(row["event"] == "database-restored" for row in audit.search(engine))
        assert len(list(node.folders.root.glob("cxr-node-replaced-*.sqlite3"))) == 1
        engine.dispose()

    def test_a_job_that_ran_when_the_backup_was_made_is_held_if_its_image_is_gone(self, node):
        node.receive_real()
        (claimed,) = jobs.claim(node.engine, "worker", 1, 120.0, 3)
        node.run("backup")
        (node.settings.node.data_dir / claimed.path).unlink()
        node.engine.dispose()
        assert node.run("restore", "--yes").exit_code == 0
        node.engine = open_database(node.settings)
        assert node.job()["state"] == JobState.HELD
        assert "send" in node.job()["reasons"][0]

    def test_a_job_that_ran_when_the_backup_was_made_runs_again(self, node):
        node.receive_real()
        jobs.claim(node.engine, "worker", 1, 120.0, 3)
        node.run("backup")
        node.engine.dispose()
        assert node.run("restore", "--yes").exit_code == 0
        node.engine = open_database(node.settings)
        assert len(jobs.claim(node.engine, "another", 1, 120.0, 3)) == 1

    def test_a_log_of_the_replaced_database_is_not_replayed_into_the_restored_one(self, node):
        node.run("backup")
        node.receive(uid="1.2.9")  # in the write-ahead log, which `node.engine` keeps open
        assert Path(f"{database_file(node.settings)}-wal").stat().st_size > 0
        for path in node.folders.instances.rglob("*.dcm"):
            path.unlink()
        assert node.run("restore").exit_code == 0
        engine = open_database(node.settings)
        backup.check_integrity(engine, thoroughly=True)
        assert overview.list_jobs(engine) == []
        engine.dispose()

    def test_waits_until_the_node_is_stopped(self, node):
        node.run("backup")
        with lock.using(node.folders.root):
            result = node.run("restore")
        assert isinstance(result.exception, StoreError)
        assert "stop it first" in str(result.exception)

    @pytest.mark.parametrize(
        ("damage", "words"),
        [
            (lambda path: path.write_bytes(b"nothing of the kind" * 100), "not a complete database"),
            (lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]), "damaged|not a complete database"),
        ],
    )
    def test_refuses_a_damaged_backup_and_leaves_the_database_alone(self, node, damage, words):
        node.receive_real()
        copy = Path(node.run("backup").stdout.strip())
        damage(copy)
        result = node.run("restore", str(copy))
        assert isinstance(result.exception, StoreError)
        with pytest.raises(StoreError, match=words):
            raise result.exception
        assert len(overview.list_jobs(node.engine)) == 1

    def test_refuses_a_backup_of_a_newer_version(self, node):
        copy = Path(node.run("backup").stdout.strip())
        with closing(sqlite3.connect(copy)) as connection, connection:
            connection.execute("UPDATE alembic_version SET version_num = '9999'")
        result = node.run("restore", str(copy))
        assert isinstance(result.exception, StoreError)
        assert "newer version" in str(result.exception)


class TestADamagedDatabase:
    def test_is_found_at_start_and_the_cure_is_named(self, node):
        for number in range(200):
            node.receive(uid=f"1.2.{number}", content=str(number).encode())
        with node.engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
        node.engine.dispose()
        path = database_file(node.settings)
        content = bytearray(path.read_bytes())
        content[len(content) // 2 : len(content) // 2 + 8192] = b"\xff" * 8192
        path.write_bytes(content)
        with pytest.raises(StoreError, match="cxr-node restore"):
            backup.check_integrity(open_database(node.settings))

    def test_that_is_no_database_at_all_is_told_so(self, node):
        node.engine.dispose()
        for suffix in ("-wal", "-shm"):
            Path(f"{database_file(node.settings)}{suffix}").unlink(missing_ok=True)
        database_file(node.settings).write_bytes(b"this is no database" * 1000)
        with pytest.raises(StoreError, match="cxr-node restore"):
            open_database(node.settings)

    def test_one_of_another_version_is_not_touched_by_commands_that_look(self, node):
        with node.engine.connect() as connection:
            connection.execute(text("UPDATE alembic_version SET version_num = '0000'"))
        with pytest.raises(StoreError, match="older version"):
            inspect_database(node.settings)
        with node.engine.connect() as connection:
            connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
        with pytest.raises(StoreError, match="newer version"):
            inspect_database(node.settings)


class TestPostgreSQL:
    """Whose backups are its own."""

    @pytest.fixture
    def node(self, tmp_path, postgres_url):
        opened = Node(tmp_path, postgres_url)
        yield opened
        opened.engine.dispose()

    @pytest.mark.parametrize(("command", "tool"), [("backup", "pg_dump"), ("restore", "pg_restore")])
    def test_is_backed_up_and_restored_with_its_own_tools(self, node, command, tool):
        result = node.run(command)
        assert isinstance(result.exception, CxrNodeError)
        assert tool in str(result.exception)
        assert not (node.folders.root / "backup").exists()

    def test_an_upgrade_and_an_hour_make_no_backup(self, node):
        Housekeeping(node.settings, node.engine).back_up()
        assert not (node.folders.root / "backup").exists()

    def test_doctor_says_who_knows_whether_it_is_whole_and_warns_of_a_server_without_fsync(self, node):
        result = node.run("doctor")
        assert result.exit_code == 0, result.output
        assert "its own tools" in result.output
        assert "fsync = off" in result.output
        assert "no backup" not in result.output

    def test_restored_from_a_dump_what_came_since_is_entered(self, node, postgres, postgres_url, peer, tmp_path):
        programs = Path(peer("initdb")).resolve().parent
        plain = postgres_url.replace("+psycopg", "")
        before = node.receive_real()
        dump = tmp_path / "dump"
        subprocess.run([programs / "pg_dump", "--format=custom", f"--file={dump}", plain], check=True)
        since = node.receive_real()
        make_old(node)
        node.engine.dispose()
        subprocess.run([programs / "pg_restore", "--clean", "--if-exists", f"--dbname={plain}", dump], check=True)
        assert node.run("doctor", "--mend").exit_code == 0
        listed = overview.list_jobs(node.engine)
        assert [row["sop_instance_uid"] for row in listed] == [before.SOPInstanceUID, since.SOPInstanceUID]
        assert {row["state"] for row in listed} == {JobState.NEW}


class TestDoctor:
    @pytest.fixture
    def node(self, tmp_path, database_url):
        opened = Node(tmp_path, database_url)
        yield opened
        opened.engine.dispose()

    def test_says_that_all_is_well(self, node):
        node.receive_real()
        result = node.run("doctor")
        assert result.exit_code == 0, result.output
        assert "Files and rows agree." in result.output
        assert ("The database is intact." in result.output) == (not node.settings.database.url)

    def test_without_mend_changes_nothing(self, node):
        node.keep(radiograph())
        make_old(node)
        result = node.run("doctor")
        assert result.exit_code == 1
        assert "Nothing was changed" in result.output
        assert node.found() == [consistency.DifferenceKind.INSTANCE_WITHOUT_ROW]
        assert overview.list_jobs(node.engine) == []

    def test_leaves_alone_what_may_be_about_to_get_its_row(self, node):
        node.keep(radiograph())
        assert node.found(min_age_s=900) == []

    def test_enters_an_instance_without_a_row(self, node):
        ds = radiograph()
        node.keep(ds)
        make_old(node)
        assert node.run("doctor", "--mend").exit_code == 0
        assert node.found() == []
        assert (node.job()["sop_instance_uid"], node.job()["state"]) == (ds.SOPInstanceUID, JobState.NEW)

    def test_puts_a_damaged_instance_aside(self, node):
        path = node.folders.root / node.keep(radiograph()).path
        path.write_bytes(path.read_bytes()[:-2] + b"??")
        make_old(node)
        assert node.run("doctor", "--mend").exit_code == 0
        assert node.found() == []
        assert len(list(node.folders.unparsed.iterdir())) == 1

    def test_holds_a_job_whose_image_is_gone_until_it_comes_again(self, node):
        ds = node.receive_real()
        (node.folders.root / node.job()["path"]).unlink()
        assert node.run("doctor", "--mend").exit_code == 0
        assert node.found() == []
        assert node.job()["state"] == JobState.HELD
        assert "send the image again" in node.job()["reasons"][0]
        admissions.admit(node.engine, node.blobs, node.keep(ds), Sender("MODALITY7", "CXRNODE", "127.0.0.1"), analyse=True)
        assert node.job()["state"] == JobState.NEW

    def test_treats_a_cut_off_instance_as_gone(self, node):
        node.receive_real()
        path = node.folders.root / node.job()["path"]
        path.write_bytes(path.read_bytes()[:1000])
        assert node.found() == [consistency.DifferenceKind.INSTANCE_CUT_OFF]
        node.run("doctor", "--mend")
        assert node.found() == []
        assert node.job()["state"] == JobState.HELD

    @pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"")], ids=["gone", "cut off"])
    def test_has_an_undelivered_result_made_again(self, node, damage):
        node.receive_real()
        node.finish(node.claim()[0])
        overlay = node.folders.root / node.job()["results"][0]["path"]
        damage(overlay)
        assert node.run("doctor", "--mend").exit_code == 0
        assert node.job()["state"] == JobState.NEW
        node.finish(node.claim()[0])
        assert (node.folders.root / node.job()["results"][0]["path"]).read_bytes() == b"result"
        assert not overlay.exists(), "a key is never used again"
        assert node.found() == []
        assert len(deliveries.claim(node.engine, "pacs", "d", 8, 60)) == 2

    def test_only_notes_that_a_delivered_result_is_gone(self, node):
        node.receive_real()
        node.finish(node.claim()[0])
        for delivery in deliveries.claim(node.engine, "pacs", "d", 8, 60):
            deliveries.mark_sent(node.engine, delivery, 0)
            (node.folders.root / delivery.path).unlink()
        assert node.run("doctor", "--mend").exit_code == 0
        assert node.job()["state"] == JobState.DONE
        assert node.found() == []

    def test_holds_deliveries_whose_result_and_image_are_gone_until_the_image_comes_again(self, node):
        ds = node.receive_real()
        node.finish(node.claim()[0])
        for path in [*node.folders.instances.rglob("*.dcm"), *node.folders.results.rglob("*.dcm")]:
            path.unlink()
        node.run("doctor", "--mend")
        assert {row["state"] for row in node.job()["deliveries"]} == {DeliveryState.HELD}
        assert "its image too: send the image again" in node.job()["deliveries"][0]["reason"]
        node.receive_again(ds)
        node.finish(node.claim()[0])
        assert {row["state"] for row in node.job()["deliveries"]} == {DeliveryState.WAITING}
        assert node.found() == []

    def test_removes_a_result_without_a_row(self, node):
        stray = node.folders.results / "00" / "1.2.3.dcm"
        stray.parent.mkdir()
        stray.write_bytes(b"half")
        make_old(node)
        node.run("doctor", "--mend")
        assert not stray.exists()


def test_a_digest_is_blake3_of_the_data_set_alone(node):
    ds = radiograph()
    whole = Digest()
    whole.update(encoded(ds))
    stored = node.keep(ds)
    assert stored.digest == file_digest(node.folders.root / stored.path) == str(whole)
    assert stored.digest == f"blake3:{blake3(encoded(ds)).hexdigest()[:56]}"


def test_an_image_received_by_an_earlier_release_is_known_again(node):
    ds = radiograph()
    sender = Sender("MODALITY7", "CXRNODE", "127.0.0.1")
    before = node.keep_as_before(ds)
    assert admissions.admit(node.engine, node.blobs, before, sender, analyse=True) is Admission.QUEUED
    again = node.keep(ds)
    assert not admissions.is_changed(node.engine, ds.SOPInstanceUID, EXPLICIT, again.digest, node.folders.root / again.path)
    assert admissions.admit(node.engine, node.blobs, again, sender, analyse=True) is Admission.DUPLICATE
    assert node.found() == [], "one file, and its row tells where it is"
    assert (node.folders.root / again.path).exists()
    changed = node.keep(radiograph(SOPInstanceUID=ds.SOPInstanceUID, PatientName="Corrected^Name"))
    assert admissions.is_changed(node.engine, ds.SOPInstanceUID, EXPLICIT, changed.digest, node.folders.root / changed.path)
    assert admissions.admit(node.engine, node.blobs, changed, sender, analyse=True) is Admission.REVISION


def test_a_file_of_an_earlier_release_without_a_row_is_entered(node):
    ds = radiograph()
    node.keep_as_before(ds)
    assert node.found() == [consistency.DifferenceKind.INSTANCE_WITHOUT_ROW]
    make_old(node)
    assert node.run("doctor", "--mend").exit_code == 0
    assert node.found() == []
    assert node.job()["sop_instance_uid"] == ds.SOPInstanceUID


def test_what_has_no_file_meta_information_has_no_digest(tmp_path):
    path = tmp_path / "other.dcm"
    path.write_bytes(bytes(200))
    with pytest.raises(ValueError, match="file meta information"):
        file_digest(path)
