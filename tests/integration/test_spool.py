"""The spool before a bucket: what is acknowledged is on this host's disk, then in the bucket, once, whatever comes in between.

Over 300 lines: every case needs two hosts over one bucket.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from io import BytesIO

import pytest
from sqlalchemy import select, text

from cxr_node.commitment import reports
from cxr_node.errors import SettingsError, StoreError
from cxr_node.node import supervisor, upload
from cxr_node.node.upload import Uploader
from cxr_node.records import DataFolder
from cxr_node.settings import DatabaseSettings, NodeSettings, Settings, load_settings
from cxr_node.store import lock
from cxr_node.store.database import open_database, write
from cxr_node.store.faults import UPLOAD_POINTS
from cxr_node.store.files import bucket, consistency, retention, spool
from cxr_node.store.files.digests import file_digest
from cxr_node.store.files.storage import blobs_of, bucket_of
from cxr_node.store.queue import fair_share, jobs, open_work
from cxr_node.store.schema import instances
from cxr_node.store.schema import jobs as jobs_table
from cxr_node.store.views.node_status import node_status
from tests.bucket import FAULTS, FaultyProxy, limit_s
from tests.faults.fault_injection import FaultPoints
from tests.receiver import Receiver, associated, radiograph, send
from tests.store import Store, lay_database


class Host(Store):
    """A host with a spool: its data folder, the database and the bucket."""

    def __init__(self, root, storage, database_url=""):
        settings = Settings(node=NodeSettings(data_dir=root), database=DatabaseSettings(url=database_url))
        self.settings = settings.model_copy(update={"storage": storage})
        lay_database(self.settings)
        self.engine = open_database(self.settings)
        self.folders = DataFolder(root)
        self.blobs = blobs_of(self.settings)

    def rows(self):
        with self.engine.connect() as connection:
            return connection.execute(select(instances).order_by(instances.c.id)).all()

    def in_spool(self):
        return sorted(blob.key for blob in self.blobs.local.list("instances"))

    def in_bucket(self):
        return sorted(blob.key for blob in bucket_of(self.settings).list("instances"))

    def upload(self):
        uploader = Uploader(self.settings, self.engine)
        try:
            return uploader.upload_some(), uploader.trouble
        finally:
            uploader.close()

    def tidy(self):
        uploader = Uploader(self.settings, self.engine)
        try:
            uploader.tidy()
        finally:
            uploader.close()

    def claim_near(self, spool_of):
        return [job.sop_instance_uid for job in jobs.claim(self.engine, "w", 8, 60, 3, spool_of)]


@pytest.fixture(autouse=True)
def _gives_up_soon(monkeypatch):
    monkeypatch.setattr(bucket, "_MOST_RETRIES", 2)


@pytest.fixture
def proxy(bucket_server):
    with FaultyProxy(bucket_server) as proxy:
        yield proxy


@pytest.fixture
def host(tmp_path, bucket_server, proxy, database_url, request):
    storage = bucket_server.settings(
        port=proxy.port, spool=True, timeout_s=limit_s(request.node.callspec.params.get("fault", ""))
    )
    found = Host(tmp_path / "var", storage, database_url)
    yield found
    found.engine.dispose()


@pytest.fixture
def another(tmp_path, host, database_url):
    """A second host over the same database and bucket; on SQLite a second folder beside the first one's database."""
    url = database_url or f"sqlite:///{tmp_path / 'var' / 'cxr-node.sqlite3'}"
    found = Host(tmp_path / "other", host.settings.storage, url)
    yield found
    found.engine.dispose()


def test_images_are_taken_while_the_bucket_is_away_and_are_uploaded_later(tmp_path, bucket_server, proxy):
    images = [radiograph() for _ in range(3)]
    storage = bucket_server.settings(port=proxy.port, spool=True)
    open_database(Settings(node=NodeSettings(data_dir=tmp_path / "var"), storage=storage)).dispose()  # knows its bucket
    proxy.always = "503"
    with Receiver(tmp_path / "var", storage=storage) as receiver, associated(receiver) as assoc:
        assert [send(assoc, ds) for ds in (*images, images[0])] == [0, 0, 0, 0]
        assert proxy.met["503"] == 0, "nobody asks the bucket"
        engine = open_database(receiver.settings)
        (waiting,) = node_status(receiver.settings)["storage"]["spools"]
        assert (waiting["images"], waiting["is_here"]) == (3, True)
        uploader = Uploader(receiver.settings, engine)
        assert uploader.upload_some() == 0
        assert "SlowDown" in uploader.trouble
        proxy.always = ""
        assert uploader.upload_some() == 3
        uploader.close()
        engine.dispose()
        assert receiver.files("instances") == [], "each file went when the bucket had it"
        bucket = bucket_of(receiver.settings)
        for row in receiver.rows("instances"):
            with bucket.fetch(row["path"]) as path:
                assert (path.stat().st_size, file_digest(path), row["spool"]) == (row["size_bytes"], row["digest"], "")
        assert node_status(receiver.settings)["storage"]["spools"] == []
        proxy.always = "503"
        assert send(assoc, images[1]) == 0, "the same again asks the bucket nothing"
        assert receiver.files("instances") == []


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault != "cut"])
def test_an_upload_that_fails_loses_and_doubles_nothing(host, proxy, fault):
    for number in range(2):
        host.receive(uid=f"1.2.{number}", content=os.urandom(200_000))
    kept = host.in_spool()
    proxy.always, proxy.only = fault, "PUT"
    assert host.upload()[0] == 0
    proxy.always = ""
    assert proxy.met[fault] >= 2
    assert host.in_spool() == kept == sorted(row.path for row in host.rows())
    assert {row.spool for row in host.rows()} == {host.blobs.spool}
    assert host.upload() == (2, "")
    assert (host.in_spool(), host.in_bucket()) == ([], kept)
    assert {row.spool for row in host.rows()} == {""}


@pytest.mark.parametrize("point", UPLOAD_POINTS)
def test_an_upload_that_is_killed_anywhere_ends_with_one_object(tmp_path, host, point):
    host.receive(content=b"pixels" * 1000)
    (key,) = host.in_spool()
    fault_points = FaultPoints(tmp_path / "faults")
    fault_points.set(point, "kill")
    code = (
        "import sys; from pathlib import Path; from cxr_node.settings import *; from cxr_node.node.upload import Uploader; "
        "from cxr_node.store.database import open_database; settings = load_settings(Path(sys.argv[1])); "
        "Uploader(settings, open_database(settings)).upload_some()"
    )
    storage = host.settings.storage
    config = tmp_path / "node.toml"
    config.write_text(
        f'[node]\ndata_dir = "{host.settings.node.data_dir}"\n[database]\nurl = "{host.settings.database.url}"\n[storage]\n'
        f'url = "{storage.url}"\nendpoint = "{storage.endpoint}"\naccess_key_id = "test"\nsecret_access_key = "hunter2"\n'
        f'spool = true\n[audit]\nkey = "{tmp_path}/key.pem"\n'
    )
    environment = {**os.environ, "CXR_NODE_FAULTS": str(fault_points.folder), "PYTHONPATH": os.pathsep.join(sys.path)}
    killed = subprocess.run([sys.executable, "-c", code, str(config)], env=environment, check=False, timeout=600)
    assert killed.returncode == -9
    assert host.in_spool() == [key], "the file is the last to go"
    assert host.in_bucket() == [key]
    assert host.upload()[1] == ""
    host.tidy()
    assert (host.in_spool(), host.in_bucket()) == ([], [key])
    (row,) = host.rows()
    assert (row.spool, row.removed_at) == ("", None)


def test_an_image_in_the_spool_is_read_there_and_lasts_while_it_is_read(host, proxy):
    host.receive(content=b"pixels" * 100)
    (key,) = host.in_spool()
    proxy.always = "503"
    with host.blobs.fetch(key) as path, host.blobs.open(key) as file:
        proxy.always = ""
        assert host.upload() == (1, "")
        assert host.in_spool() == []
        assert path.read_bytes() == file.read() == b"pixels" * 100
        assert path != host.blobs.local.path(key)
    assert not path.exists()
    with host.blobs.fetch(key) as path:
        assert path.read_bytes() == b"pixels" * 100, "from the bucket"


def test_only_the_host_that_has_an_image_analyses_it_before_it_is_uploaded(host, another):
    host.receive(uid="1.2.1", content=b"one")
    host.receive(uid="1.2.2", content=b"two")
    assert host.blobs.spool != another.blobs.spool
    assert another.claim_near(another.blobs.spool) == []
    assert another.claim_near("") == [], "nor does a host without a spool"
    assert {row.state for row in _jobs(host)} == {"new"}, "it waits; nothing has failed"
    (waiting,) = node_status(another.settings)["storage"]["spools"] if another.engine.dialect.name == "postgresql" else [None]
    assert waiting is None or (waiting["images"], waiting["is_here"]) == (2, False)
    host.upload()
    assert sorted(another.claim_near(another.blobs.spool)) == ["1.2.1", "1.2.2"]


def test_the_host_that_has_an_image_may_analyse_it_at_once(host):
    host.receive(uid="1.2.1", content=b"one")
    assert host.claim_near(host.blobs.spool) == ["1.2.1"]


def test_a_correction_waits_for_the_image_before_it(host, another):
    """A worker may have to compare the two."""
    host.receive(uid="1.2.1", content=b"one")
    another.receive(uid="1.2.1", content=b"two")
    assert another.claim_near(another.blobs.spool) == []
    assert host.claim_near(host.blobs.spool) == []
    another.upload()
    assert host.claim_near(host.blobs.spool) != []


def test_a_lapsed_job_of_an_image_in_another_spool_waits_too(host, another):
    host.receive(uid="1.2.1", content=b"one")
    assert host.claim_near(host.blobs.spool) == ["1.2.1"]
    with write(host.engine) as connection:
        connection.execute(jobs_table.update().values(lease_until=0))
    assert another.claim_near(another.blobs.spool) == []
    assert host.claim_near(host.blobs.spool) == ["1.2.1"]


class TestTheSameImageAgain:
    def test_takes_the_place_of_what_is_gone_from_the_spool(self, host):
        host.receive(content=b"pixels")
        (before,) = host.in_spool()
        host.blobs.local.delete(before)
        assert host.receive(content=b"pixels") == "duplicate"
        (row,) = host.rows()
        assert host.in_spool() == [row.path] != [before]
        assert host.upload() == (1, "")

    def test_leaves_what_the_bucket_has_without_asking_it(self, host, proxy):
        host.receive(content=b"pixels")
        host.upload()
        proxy.always = "503"
        before = proxy.met["503"]
        assert host.receive(content=b"pixels") == "duplicate"
        assert proxy.met["503"] == before
        assert host.in_spool() == []

    def test_from_another_host_takes_its_place_and_the_first_goes(self, host, another):
        """As when the disk of the first was lost: whoever sends it again has it uploaded."""
        host.receive(content=b"pixels")
        assert another.receive(content=b"pixels") == "duplicate"
        (row,) = host.rows()
        assert (row.path, row.spool) == (another.in_spool()[0], another.blobs.spool)
        assert another.upload() == (1, "")
        assert host.upload() == (0, ""), "its row is another's"
        assert host.in_bucket() == [row.path]


def test_a_blob_that_is_given_up_while_it_is_uploaded_is_in_neither_place(host, monkeypatch):
    host.receive(content=b"pixels")
    (key,) = host.in_spool()
    put = type(host.blobs.bucket).upload

    def give_up(bucket, key, source):
        blob = put(bucket, key, source)
        with write(host.engine) as connection:
            connection.execute(instances.update().values(path="instances/00/another.dcm", spool="elsewhere"))
        return blob

    monkeypatch.setattr(type(host.blobs.bucket), "upload", give_up)
    host.upload()
    assert key not in host.in_bucket() + host.in_spool()


def test_what_retention_gives_up_on_another_host_goes_from_the_spool(host, another):
    host.receive(content=b"pixels", analyse=False)
    removed = []
    retention.remove_expired(another.engine, -1, -1, lambda key: (another.blobs.delete(key), removed.append(key)))
    assert removed == host.in_spool()
    assert host.upload() == (0, ""), "nobody needs it in the bucket"
    host.tidy()
    assert (host.in_spool(), host.in_bucket()) == ([], [])


def test_a_file_without_a_row_goes_to_the_bucket_whose_sweep_enters_it(host):
    """A restored database knows nothing of what came since."""
    host.receive(content=b"pixels")
    (key,) = host.in_spool()
    with write(host.engine) as connection:
        connection.execute(jobs_table.delete())
        connection.execute(instances.delete())
    host.tidy()
    assert host.in_spool() == [key], "it may be about to get its row"
    old = time.time() - 7200
    os.utime(host.blobs.local.path(key), (old, old))
    host.tidy()
    assert (host.in_spool(), host.in_bucket()) == ([], [key])


def test_what_the_bucket_has_lost_is_given_back_from_the_spool(host):
    host.receive(content=b"pixels")
    (key,) = host.in_spool()
    with write(host.engine) as connection:
        connection.execute(instances.update().values(spool=""))
    host.tidy()
    assert (host.in_spool(), host.in_bucket()) == ([], [key])


def test_doctor_finds_what_is_gone_from_its_own_spool_and_says_nothing_of_another_host_s(host, another):
    host.receive(content=b"pixels")
    assert consistency.find_differences(host.engine, host.blobs, 0) == []
    assert consistency.find_differences(another.engine, another.blobs, 0) == []
    host.blobs.local.delete(host.in_spool()[0])
    (found,) = consistency.find_differences(host.engine, host.blobs, 0)
    assert found.kind == consistency.DifferenceKind.INSTANCE_WITHOUT_FILE
    assert consistency.find_differences(another.engine, another.blobs, 0) == []


def test_an_image_that_is_gone_from_the_spool_is_held_until_it_comes_again(host):
    host.receive(uid="1.2.1", content=b"pixels")
    host.blobs.local.delete(host.in_spool()[0])
    assert host.upload() == (0, "")
    (job,) = _jobs(host)
    assert job.state == "held"
    assert "send the image again" in job.reasons
    host.receive(uid="1.2.1", content=b"pixels")
    assert host.upload() == (1, "")
    assert [job.state for job in _jobs(host)] == ["new"]


def test_a_full_disk_is_answered_a700_and_nothing_goes_past_it(tmp_path, bucket_server):
    storage = bucket_server.settings(spool=True)
    with (
        Receiver(tmp_path / "var", storage=storage, min_free_mb=2**40) as receiver,
        associated(receiver) as assoc,
    ):
        assert send(assoc, radiograph()) == 0xA700
        assert (receiver.rows("instances"), receiver.files("instances")) == ([], [])
        assert list(bucket_of(receiver.settings).list("instances")) == []


def test_a_spool_that_was_turned_off_is_emptied_all_the_same(host):
    host.receive(uid="1.2.1", content=b"one")
    off = host.settings.storage.model_copy(update={"spool": False})
    later = Host(host.settings.node.data_dir, off, host.settings.database.url)
    later.receive(uid="1.2.2", content=b"two")
    assert [bool(row.spool) for row in later.rows()] == [True, False], "what comes now goes to the bucket"
    assert "upload" in supervisor.roles_to_run(later.settings)
    assert later.upload() == (1, "")
    assert len(later.in_bucket()) == 2
    later.engine.dispose()


def test_one_process_empties_a_spool(host):
    with lock.uploading(host.settings.node.data_dir), pytest.raises(StoreError, match="Another process uploads"):
        upload.run(host.settings, threading.Event(), lambda: None)


def test_the_role_says_why_it_can_not_run_without_a_spool(tmp_path):
    settings = Settings(node=NodeSettings(data_dir=tmp_path))
    with pytest.raises(StoreError, match=r"storage\.spool"):
        upload.run(settings, threading.Event(), lambda: None)
    assert "upload" not in supervisor.roles_to_run(settings)


def test_the_node_is_not_empty_while_its_spool_is_not(host):
    host.receive(content=b"pixels", analyse=False)
    folders, name = DataFolder(host.settings.node.data_dir), host.blobs.spool
    assert not open_work.count_open_work(host.engine, folders, name).is_empty
    host.upload()
    assert open_work.count_open_work(host.engine, folders, name).is_empty


def test_the_host_of_a_spool_is_named(host, monkeypatch):
    host.receive(content=b"pixels")
    monkeypatch.setattr("socket.gethostname", lambda: "ct-gateway." + 300 * "x")
    spool.note_seen(host.engine, host.blobs.spool)
    spool.note_seen(host.engine, host.blobs.spool)
    (waiting,) = node_status(host.settings)["storage"]["spools"]
    assert waiting["host"].startswith("ct-gateway.xxx")
    assert waiting["last_seen_at"] is not None
    assert waiting["bytes"] == 6


def test_a_spool_needs_a_bucket(tmp_path):
    (tmp_path / "c.toml").write_text("[storage]\nspool = true\n")
    with pytest.raises(SettingsError, match="give its url"):
        load_settings(tmp_path / "c.toml")


@pytest.mark.parametrize("database_url", [""])
def test_the_claim_finds_its_jobs_by_their_index_with_spools_too(host):
    """SQLite says what it would read."""
    values = {"priority": 0, "host": "h", "now": 0, "never": 1, "most": 1, "spool": "x"}
    with host.engine.connect() as connection:
        plan = connection.execute(text(f"EXPLAIN QUERY PLAN {fair_share._OF_ADDRESS[True].text}"), values).all()
    assert "ix_jobs_never_tried" in str(plan)
    assert "SCAN" not in str(plan)


def _jobs(host):
    with host.engine.connect() as connection:
        return connection.execute(select(jobs_table).order_by(jobs_table.c.id)).all()


CLASS_UID = "1.2.840.10008.5.1.4.1.1.1.1"


def received_whole(host, uid):
    """An instance whose row has the digest of its content, as reception writes it."""
    file = BytesIO()
    radiograph().save_as(file, enforce_file_format=True)
    host.receive(uid=uid, content=file.getvalue())
    (row,) = host.rows()
    with host.blobs.fetch(row.path) as path, write(host.engine) as connection:
        connection.execute(instances.update().values(digest=file_digest(path)))


def promised(host, uid, between=lambda: None):
    return reports.promise_to_keep(host.engine, host.blobs, [(CLASS_UID, uid)], 3600, lambda: True, between)


def test_commitment_waits_until_the_other_host_has_uploaded_the_image(host, another, monkeypatch):
    monkeypatch.setattr(reports, "_LOOKS_AGAIN_S", 0.01)
    received_whole(host, "1.2.1")
    looks = []

    def upload_after_the_second_look():
        looks.append(host.in_bucket())
        if len(looks) == 3:
            host.upload()

    assert promised(another, "1.2.1", upload_after_the_second_look) == ([(CLASS_UID, "1.2.1")], {})
    assert looks == [[], [], []]


def test_commitment_is_refused_when_the_other_host_uploads_nothing(host, another, monkeypatch):
    monkeypatch.setattr(reports, "_LONGEST_UPLOAD_S", 0)
    received_whole(host, "1.2.1")
    assert promised(another, "1.2.1") == ([], {(CLASS_UID, "1.2.1"): reports.PROCESSING_FAILURE})
    assert promised(host, "1.2.1") == ([(CLASS_UID, "1.2.1")], {}), "this host has it"
