"""A whole node with a spool: the bucket is away, roles and the node are killed, and each image has its results once."""

from __future__ import annotations

from cxr_node.demo.modality import send_files
from cxr_node.demo.small_pacs import SmallPACS
from cxr_node.prepare.wrap_picture import radiograph_from_image
from cxr_node.settings import NodeSettings, Settings
from cxr_node.store.files.storage import bucket_of
from tests.bucket import FaultyProxy
from tests.images import chest_phantom
from tests.node import Node
from tests.waiting import PATIENCE_S, wait_until


def test_what_a_killed_node_had_in_its_spool_arrives_once(tmp_path, bucket_server, small_networks):
    files = []
    for seed in range(4):
        files.append(tmp_path / f"{seed}.dcm")
        radiograph_from_image(chest_phantom(seed=seed)).save_as(files[-1], enforce_file_format=True)
    with FaultyProxy(bucket_server) as proxy, SmallPACS(tmp_path / "pacs") as pacs:
        storage = bucket_server.settings(port=proxy.port, timeout_s=30.0, spool=True)
        node = Node(tmp_path / "node", [("pacs", pacs.ae_title, pacs.port)], weights=small_networks)
        extra = f'[storage]\nurl = "{storage.url}"\nendpoint = "{storage.endpoint}"\naccess_key_id = "test"\n'
        node.config.write_text(node.config.read_text() + extra + "timeout_s = 30.0\nspool = true\n")
        node.environment["CXR_NODE__STORAGE__SECRET_ACCESS_KEY"] = "hunter2"
        node.settings = Settings(node=NodeSettings(data_dir=node.settings.node.data_dir), storage=storage)
        folder = node.settings.node.data_dir / "instances"
        node.start()
        try:
            proxy.always = "503"
            statuses = [sent.status for sent in send_files(files[:2], "127.0.0.1", node.port, "CXRNODE", timeout_s=PATIENCE_S)]
            node.kill("upload")
            node.kill("serve")
            assert len(list(folder.rglob("*.dcm"))) == 2
            node.start()
            statuses += [sent.status for sent in send_files(files[2:], "127.0.0.1", node.port, "CXRNODE", timeout_s=PATIENCE_S)]
            node.kill("receive")
            proxy.always = ""
            node.kill("upload")
            jobs = node.wait_for_rest(4)
            wait_until(lambda: not list(folder.rglob("*.dcm")), "the spool is empty")
            objects = list(bucket_of(node.settings).list("instances"))
        finally:
            node.stop()
    assert [f"{status:04X}" for status in statuses] == ["0000"] * 4
    assert [job["state"] for job in jobs] == ["done"] * 4
    assert sorted(pacs.received) == sorted(result["sop_instance_uid"] for job in jobs for result in job["results"])
    assert len(pacs.received) == 8
    assert len(objects) == 4
    assert "hunter2" not in node.log.read_text()
