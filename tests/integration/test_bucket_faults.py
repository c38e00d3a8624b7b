"""Reception and a whole node on a bucket: what is acknowledged is there, and trouble on the way to it is answered A700."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from cxr_node.demo.modality import send_files
from cxr_node.demo.small_pacs import SmallPACS
from cxr_node.errors import BucketUnavailable
from cxr_node.prepare.wrap_picture import radiograph_from_image
from cxr_node.settings import NodeSettings, Settings, StorageSettings
from cxr_node.store.files import bucket
from cxr_node.store.files.digests import file_digest
from cxr_node.store.files.storage import blobs_of
from tests.bucket import FAULTS, FaultyProxy, limit_s
from tests.images import chest_phantom
from tests.node import Node
from tests.receiver import Receiver, associated, radiograph, send
from tests.waiting import PATIENCE_S, wait_until


@pytest.fixture
def meddler(bucket_server):
    with FaultyProxy(bucket_server) as proxy:
        yield proxy


def whole(receiver):
    """UIDs of the instances that have a row, after each was read back from the bucket and compared with its row."""
    blobs = blobs_of(receiver.settings)
    rows = receiver.rows("instances")
    for row in rows:
        with blobs.fetch(row["path"]) as path:
            assert (path.stat().st_size, file_digest(path)) == (row["size_bytes"], row["digest"])
    return {row["sop_instance_uid"] for row in rows}


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault != "cut"])
def test_what_the_bucket_does_not_take_is_refused_and_what_is_acknowledged_is_there(
    tmp_path, bucket_server, meddler, fault, monkeypatch
):
    monkeypatch.setattr(bucket, "_MOST_RETRIES", 2)
    images = [radiograph() for _ in range(3)]
    storage = bucket_server.settings(port=meddler.port, timeout_s=limit_s(fault))
    with Receiver(tmp_path / "var", storage=storage) as receiver, associated(receiver) as assoc:
        statuses = [send(assoc, images[0])]
        meddler.always, meddler.only = fault, "PUT"
        statuses.append(send(assoc, images[1]))
        meddler.always = ""
        statuses += [send(assoc, images[2]), send(assoc, images[1])]
        assert [f"{status:04X}" for status in statuses] == ["0000", "A700", "0000", "0000"]
        assert whole(receiver) == {ds.SOPInstanceUID for ds in images}
        refused = [row["detail"] for row in receiver.rows("audit") if row["event"] == "instance-refused"]
        assert refused == ["A700: The instance could not be stored; send it again later (BucketUnavailable)"]
        assert receiver.files("instances") == [], "nothing stays on this machine"
    assert meddler.met[fault] >= 1


def test_the_same_again_takes_the_place_of_what_is_gone(tmp_path, bucket_server):
    ds, storage = radiograph(), bucket_server.settings()
    with Receiver(tmp_path / "var", storage=storage) as receiver, associated(receiver) as assoc:
        assert send(assoc, ds) == 0
        (before,) = receiver.rows("instances")
        blobs_of(receiver.settings).delete(before["path"])
        assert send(assoc, ds) == 0
        (after,) = receiver.rows("instances")
        assert after["path"] != before["path"]
        assert whole(receiver) == {ds.SOPInstanceUID}
        assert send(assoc, ds) == 0
        assert len(list(blobs_of(receiver.settings).list("instances"))) == 1


def test_radiographs_in_results_out_while_the_bucket_comes_and_goes(tmp_path, bucket_server, meddler, small_networks):
    storage = bucket_server.settings(port=meddler.port, timeout_s=30.0)
    files = []
    for seed in range(4):
        files.append(tmp_path / f"{seed}.dcm")
        radiograph_from_image(chest_phantom(seed=seed)).save_as(files[-1], enforce_file_format=True)
    (tmp_path / "secret").write_text("hunter2")
    extra = f'[storage]\nurl = "{storage.url}"\nendpoint = "{storage.endpoint}"\naccess_key_id = "test"\ntimeout_s = 30.0\n'
    with SmallPACS(tmp_path / "pacs") as pacs:
        node = Node(tmp_path / "node", [("pacs", pacs.ae_title, pacs.port)], weights=small_networks)
        node.config.write_text(node.config.read_text() + extra)
        node.environment["CXR_NODE__STORAGE__SECRET_ACCESS_KEY_FILE"] = str(tmp_path / "secret")
        node.settings = Settings(
            node=NodeSettings(data_dir=node.settings.node.data_dir),
            storage=storage.model_copy(update={"timeout_s": 30.0}),
        )
        node.start()
        try:
            statuses = [sent.status for sent in send_files(files[:2], "127.0.0.1", node.port, "CXRNODE", timeout_s=PATIENCE_S)]
            node.wait_for_rest(2)
            meddler.always = "503"
            statuses += [sent.status for sent in send_files(files[2:3], "127.0.0.1", node.port, "CXRNODE", timeout_s=PATIENCE_S)]
            status = subprocess.run(
                [sys.executable, "-m", "cxr_node", "status", "--json", "--config", str(node.config)],
                capture_output=True,
                text=True,
                check=True,
                env={**os.environ, "CXR_NODE__STORAGE__SECRET_ACCESS_KEY": "hunter2"},
            )
            meddler.always, meddler.only = "503", "GET"  # it takes images, and the worker can't read them
            statuses += [sent.status for sent in send_files(files[2:], "127.0.0.1", node.port, "CXRNODE", timeout_s=PATIENCE_S)]
            wait_until(lambda: b"this job continues by itself" in node.log.read_bytes() or meddler.met["503"] > 20, "trouble")
            meddler.always = ""
            jobs = node.wait_for_rest(4)
        finally:
            node.stop()
    assert [f"{status:04X}" for status in statuses] == ["0000", "0000", "A700", "0000", "0000"]
    assert "SlowDown" in json.loads(status.stdout)["storage"]["trouble"]
    assert [job["state"] for job in jobs] == ["done"] * 4
    assert {job["attempts"] for job in jobs} == {1}, "trouble of the node is no attempt"
    assert sorted(pacs.received) == sorted(result["sop_instance_uid"] for job in jobs for result in job["results"])
    assert len(pacs.received) == 8
    log = node.log.read_text()
    assert "hunter2" not in log + status.stdout
    assert list((tmp_path / "node" / "var").rglob("*.dcm")) == [], "images and results lie in the bucket alone"


class _Boaster(BaseHTTPRequestHandler):
    """An object store that announces a petabyte."""

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", str(10**15))
        self.send_header("Last-Modified", "Sat, 28 Nov 2026 10:00:00 GMT")
        self.send_header("ETag", '"x"')
        self.end_headers()

    def log_message(self, *_):
        pass


class _Repeater(BaseHTTPRequestHandler):
    """An object store whose every page of a listing says that there is another."""

    def do_GET(self):
        keys = "".join(
            f"<Contents><Key>instances/{number:04}</Key><LastModified>2026-11-28T10:00:00.000Z</LastModified><Size>1</Size></Contents>"
            for number in range(1000)
        )
        more = "<IsTruncated>true</IsTruncated><NextContinuationToken>x</NextContinuationToken>"
        content = f"<?xml version='1.0'?><ListBucketResult>{more}{keys}</ListBucketResult>".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


@contextmanager
def store_that(handler, near):
    """The blobs of an object store that answers so."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    try:
        yield bucket.BucketBlobs(
            StorageSettings(url="s3://bucket", endpoint=endpoint, access_key_id="a", secret_access_key="b"), near
        )
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.parametrize("ask", ["read_small", "open"])
def test_what_an_object_store_announces_takes_no_memory_and_no_disk(tmp_path, ask):
    with store_that(_Boaster, tmp_path / "near") as blobs, pytest.raises(BucketUnavailable, match="1000000000000000 bytes"):
        getattr(blobs, ask)("key")


def test_a_listing_that_begins_again_and_again_ends(tmp_path):
    with store_that(_Repeater, tmp_path / "near") as blobs, pytest.raises(BucketUnavailable, match="again and again"):
        list(itertools.islice(blobs.list("instances"), 5000))
