"""A whole node with its database on a PostgreSQL server: the main job, the server's absence, and who may share it."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from cxr_node.demo.modality import send_files
from cxr_node.demo.small_pacs import SmallPACS
from cxr_node.errors import CxrNodeError
from cxr_node.prepare.wrap_picture import radiograph_from_image
from tests.images import chest_phantom
from tests.node import Node
from tests.postgres import PASSWORD
from tests.waiting import PATIENCE_S, wait_until

pytestmark = [pytest.mark.peer]

ROLES = ("receive", "work", "deliver")


def phantoms(folder, count):
    files = []
    for seed in range(count):
        files.append(folder / f"{seed}.dcm")
        radiograph_from_image(chest_phantom(seed=seed)).save_as(files[-1], enforce_file_format=True)
    return files


@pytest.fixture
def node_on(small_networks):
    def make(url, folder, pacs):
        return Node(folder, [("pacs", pacs.ae_title, pacs.port)], f'[database]\nurl = "{url}"\n', weights=small_networks)

    return make


def status_of_sending(node, path):
    """The C-STORE status, None where the association failed."""
    try:
        (sent,) = send_files([path], "127.0.0.1", node.port, "CXRNODE", timeout_s=60)
    except CxrNodeError:
        return None
    return sent.status


def command(node, *arguments):
    return subprocess.run(
        [sys.executable, "-m", "cxr_node", *arguments, "--config", str(node.config)],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )


def test_radiographs_in_results_out_and_the_commands_answer(tmp_path, postgres_url, node_on):
    files = phantoms(tmp_path, 2)
    with SmallPACS(tmp_path / "pacs") as pacs, node_on(postgres_url, tmp_path / "node", pacs) as node:
        assert [status_of_sending(node, path) for path in files] == [0x0000, 0x0000]
        jobs = node.wait_for_rest(2)
        status = json.loads(command(node, "status", "--json").stdout)
        listed = json.loads(command(node, "queue", "list", "--json").stdout)
        doctor = command(node, "doctor")
        stranger = node_on(postgres_url, tmp_path / "stranger", pacs)
        refused = command(stranger, "serve")
    assert [job["state"] for job in jobs] == ["done", "done"]
    assert sorted(pacs.received) == sorted(result["sop_instance_uid"] for job in jobs for result in job["results"])
    assert len(pacs.received) == 4
    assert (status["jobs"]["done"], status["deliveries"]["sent"]) == (2, 4)
    assert [row["state"] for row in listed] == ["done", "done"]
    assert doctor.returncode == 0, doctor.stdout
    assert "Files and rows agree." in doctor.stdout
    assert refused.returncode == 2
    assert "belongs to another data folder" in refused.stderr
    assert not list((tmp_path / "node" / "var").glob("*.sqlite3"))
    assert PASSWORD not in node.log.read_text() + doctor.stdout + refused.stderr


def test_the_server_goes_and_comes_back_and_the_node_goes_on_by_itself(tmp_path, postgres, postgres_url, node_on):
    files = phantoms(tmp_path, 5)
    with SmallPACS(tmp_path / "pacs") as pacs, node_on(postgres_url, tmp_path / "node", pacs) as node:
        assert status_of_sending(node, files[0]) == 0x0000
        node.wait_for_rest(1)  # every role has started
        for path in files[1:3]:  # the server goes while they are analysed and delivered
            assert status_of_sending(node, path) == 0x0000
        pids = {role: node.role_process(role).pid for role in ROLES}
        postgres.stop()
        try:
            assert [status_of_sending(node, path) for path in files[3:]] == [0xA700, 0xA700]
            asked = command(node, "status", "--json")
        finally:
            postgres.start()
        for path in files[3:]:
            wait_until(lambda path=path: status_of_sending(node, path) == 0x0000, f"{path.name} acknowledged")
        jobs = node.wait_for_rest(5)
        assert {role: node.role_process(role).pid for role in ROLES} == pids
    assert asked.returncode == 2
    assert "Is the server running" in asked.stderr
    assert "Traceback" not in asked.stderr
    assert [job["state"] for job in jobs] == ["done"] * 5
    assert set(pacs.received) == {result["sop_instance_uid"] for job in jobs for result in job["results"]}
    assert len(set(pacs.received)) == 10
    log = node.log.read_text()
    assert "Traceback" not in log
    assert "is away: connection failed" in log
    assert PASSWORD not in log


def test_roles_of_their_own_share_a_data_folder_and_the_database(tmp_path, postgres_url, node_on):
    (file,) = phantoms(tmp_path, 1)
    with SmallPACS(tmp_path / "pacs") as pacs:
        node = node_on(postgres_url, tmp_path / "node", pacs)
        others = [
            subprocess.Popen(
                [sys.executable, "-m", "cxr_node", role, "--config", str(node.config)],
                stderr=subprocess.DEVNULL,
                env=os.environ | node.environment,
            )
            for role in ("work", "work", "deliver")
        ]
        try:
            node.start("receive")
            assert status_of_sending(node, file) == 0x0000
            (job,) = node.wait_for_rest(1)
            assert node.stop() == 0
        finally:
            for process in others:
                process.terminate()
            ends = [process.wait(PATIENCE_S) for process in others]
    assert job["state"] == "done"
    assert len(pacs.received) == 2
    assert ends == [0, 0, 0]
