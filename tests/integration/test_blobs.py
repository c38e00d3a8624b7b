"""Blobs in the data folder and in a bucket: the same promises, and what becomes of them when the object store is in trouble."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time

import pytest

from cxr_node.errors import BucketUnavailable, SettingsError, StoreError
from cxr_node.records import DataFolder
from cxr_node.settings import DatabaseSettings, NodeSettings, Settings, load_settings
from cxr_node.store.database import open_database
from cxr_node.store.files import bucket
from cxr_node.store.files import storage as storage_module
from cxr_node.store.files.blobs import new_key
from cxr_node.store.files.instances import make_folders
from cxr_node.store.files.leftovers import remove_leftovers
from cxr_node.store.files.storage import blobs_of, try_bucket
from tests.bucket import FAULTS, FaultyProxy, limit_s


def settings_of(tmp_path, storage):
    settings = Settings(node=NodeSettings(data_dir=tmp_path / "var"), storage=storage)
    make_folders(DataFolder(settings.node.data_dir))
    return settings


@pytest.fixture
def blobs(tmp_path, storage):
    return blobs_of(settings_of(tmp_path, storage))


@pytest.fixture
def meddler(bucket_server):
    with FaultyProxy(bucket_server) as proxy:
        yield proxy


@pytest.fixture(autouse=True)
def _gives_up_soon(monkeypatch):
    monkeypatch.setattr(bucket, "_MOST_RETRIES", 2)


@pytest.fixture
def far(tmp_path, bucket_server, meddler, request):
    """Blobs in a bucket behind the proxy."""
    call = getattr(request.node, "callspec", None)
    fault = call.params.get("fault", "") if call else ""
    return blobs_of(settings_of(tmp_path, bucket_server.settings(port=meddler.port, timeout_s=limit_s(fault))))


def file_of(tmp_path, content):
    path = tmp_path / "var" / "incoming" / os.urandom(8).hex()
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("size_bytes", [0, 1, 300_000, 40 * 2**20], ids=["empty", "a byte", "small", "in parts"])
def test_gives_back_what_was_put(tmp_path, blobs, size_bytes):
    content = os.urandom(size_bytes)
    key, source = new_key("instances", "3f", "ab"), file_of(tmp_path, content)

    put = blobs.put(key, source)

    assert (put.key, put.size_bytes, abs(put.put_at - time.time()) < 60) == (key, size_bytes, True)
    assert not source.exists(), "the file is consumed"
    assert blobs.size(key) == size_bytes
    with blobs.fetch(key) as path:
        assert path.read_bytes() == content
    with blobs.open(key) as file:
        assert file.read() == content


def test_a_disk_that_fails_at_the_flush_keeps_nothing(tmp_path, monkeypatch):
    settings = settings_of(tmp_path, Settings().storage)
    blobs, key = blobs_of(settings), new_key("instances", "ab", "ab")
    source = file_of(tmp_path, b"whole")

    def full(_descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        blobs.put(key, source)
    monkeypatch.undo()
    assert blobs.size(key) is None
    assert list(blobs.list("instances")) == []


def test_lists_what_is_there_by_folder(tmp_path, blobs):
    keys = sorted(new_key("instances", f"{number:02x}", "ab") for number in range(3))
    for key in keys:
        blobs.put(key, file_of(tmp_path, b"pixels"))
    blobs.put_bytes(new_key("results", "00", "1.2"), b"result")

    found = sorted(blobs.list("instances"), key=lambda blob: blob.key)

    assert [(blob.key, blob.size_bytes) for blob in found] == [(key, 6) for key in keys]
    assert all(abs(blob.put_at - blobs.now()) < 5 for blob in found)
    assert [blob.size_bytes for blob in blobs.list("results")] == [6]


def test_forgets_what_is_deleted_and_may_delete_it_again(blobs):
    key = new_key("results", "00", "1.2")
    blobs.put_bytes(key, b"result")
    blobs.delete(key)
    blobs.delete(key)
    assert blobs.size(key) is None
    assert list(blobs.list("results")) == []
    with pytest.raises(FileNotFoundError), blobs.fetch(key) as path:
        path.read_bytes()
    with pytest.raises(FileNotFoundError):
        blobs.open(key)


def test_leaves_no_copy_of_what_was_fetched(tmp_path, bucket_server):
    settings = settings_of(tmp_path, bucket_server.settings())
    blobs = blobs_of(settings)
    blobs.put_bytes("results/00/a.dcm", b"result")
    near = storage_module.near_folder(settings)
    with blobs.fetch("results/00/a.dcm") as path, blobs.open("results/00/a.dcm"):
        assert list(near.iterdir()) == [path]
        assert remove_leftovers(near) == 0, "one that is used isn't left over"
    assert list(near.iterdir()) == []
    (near / "of-a-dead-one.dcm").write_bytes(b"result")
    assert remove_leftovers(near) == 1


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault not in ("hang", "unanswered", "half", "cut")])
def test_repeats_a_request_that_met_trouble_once(tmp_path, far, meddler, fault):
    meddler.faults = [fault]
    far.put("instances/00/a.dcm", file_of(tmp_path, b"pixels" * 1000))
    meddler.faults = [fault]
    with far.fetch("instances/00/a.dcm") as path:
        assert path.read_bytes() == b"pixels" * 1000
    assert meddler.met[fault] == 2


@pytest.mark.parametrize("fault", FAULTS)
def test_never_says_that_it_kept_what_it_did_not(tmp_path, far, meddler, fault):
    """Whatever comes in between: either the blob is whole, or there was an error and the file is still there."""
    content = os.urandom(500_000)
    meddler.always, meddler.only = fault, "PUT"
    source = file_of(tmp_path, content)
    trouble = ""
    try:
        far.put("instances/00/a.dcm", source)
    except BucketUnavailable as error:
        trouble = str(error)
    meddler.always = ""
    assert meddler.met[fault] >= 1
    if fault == "cut":  # a response without a body can't be cut
        assert trouble == ""
        assert far.size("instances/00/a.dcm") == len(content)
    else:
        assert trouble.startswith("s3://bucket-")
        assert "hunter2" not in trouble
        assert source.read_bytes() == content
        assert far.size("instances/00/a.dcm") in (None, len(content)), "half an upload is no object"


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault != "half"])
def test_never_gives_half_an_object(far, meddler, fault):
    far.put_bytes("results/00/a.dcm", b"result" * 10_000)
    meddler.always, meddler.only = fault, "GET"
    with pytest.raises(BucketUnavailable), far.fetch("results/00/a.dcm"):
        pytest.fail("it was given")
    meddler.always = ""
    with far.fetch("results/00/a.dcm") as path:
        assert path.read_bytes() == b"result" * 10_000


def test_says_what_is_wrong_with_a_bucket(tmp_path, bucket_server):
    missing = settings_of(tmp_path, bucket_server.settings("no-such-bucket"))
    assert "there is no such bucket" in try_bucket(missing)
    away = settings_of(tmp_path, bucket_server.settings("a-bucket", port=1))
    assert "can't be reached" in try_bucket(away)
    assert try_bucket(settings_of(tmp_path, bucket_server.settings())) == ""


def test_a_missing_object_is_not_a_missing_bucket(tmp_path, bucket_server):
    blobs = blobs_of(settings_of(tmp_path, bucket_server.settings("no-such-bucket")))
    with pytest.raises(BucketUnavailable, match="no such bucket"), blobs.fetch("instances/00/a.dcm"):
        pytest.fail("it was given")
    with pytest.raises(BucketUnavailable):
        list(blobs.list("instances"))


def test_a_bucket_has_one_database(tmp_path, bucket_server):
    storage = bucket_server.settings()
    first, second = settings_of(tmp_path / "first", storage), settings_of(tmp_path / "second", storage)
    open_database(first).dispose()
    with pytest.raises(StoreError, match="belongs to another database"):
        open_database(second)
    open_database(first).dispose()


def test_a_host_that_has_seen_the_bucket_starts_without_it(tmp_path, bucket_server, meddler):
    settings = settings_of(tmp_path, bucket_server.settings(port=meddler.port))
    meddler.always = "503"
    with pytest.raises(BucketUnavailable):
        open_database(settings)
    meddler.always = ""
    open_database(settings).dispose()
    meddler.always = "503"
    open_database(settings).dispose()


def test_hosts_share_the_bucket_of_their_database(tmp_path, bucket_server, postgres_url):
    storage = bucket_server.settings()
    for host in ("a", "b"):
        settings = settings_of(tmp_path / host, storage).model_copy(update={"database": DatabaseSettings(url=postgres_url)})
        open_database(settings).dispose()


def test_settings_of_a_bucket(tmp_path, monkeypatch):
    config = tmp_path / "cxr-node.toml"
    for content, told in (
        ('url = "bucket"', "s3://BUCKET"),
        ('url = "s3://b"', "s3://BUCKET"),
        ('url = "s3://bucket"\naccess_key_id = "k"', "go together"),
        ('url = "s3://bucket"\nendpoint = "minio:9000"', "https://HOST"),
    ):
        config.write_text(f"[storage]\n{content}\n")
        with pytest.raises(SettingsError, match=told):
            load_settings(config)
    config.write_text('[storage]\nurl = "s3://bucket/"\naccess_key_id = "k"\n')
    (tmp_path / "secret").write_text("hunter2\n")
    monkeypatch.setenv("CXR_NODE__STORAGE__SECRET_ACCESS_KEY_FILE", str(tmp_path / "secret"))
    settings = load_settings(config)
    assert settings.storage.url == "s3://bucket"
    assert settings.storage.secret_access_key.get_secret_value() == "hunter2"
    assert "hunter2" not in repr(settings)


def test_nothing_of_s3_is_loaded_for_a_data_folder(tmp_path):
    code = (
        "from cxr_node.settings import *; from cxr_node.store.files.storage import blobs_of; "
        "from pathlib import Path; import sys; "
        "import cxr_node.receive.transport.reception, cxr_node.deliver.loop, cxr_node.node.housekeeping; "
        f"blobs_of(Settings(node=NodeSettings(data_dir=Path({str(tmp_path)!r})))); print('obstore' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
