"""The image: built from the Dockerfile as it is, and run as compose.yaml runs it, with dcmtk and Orthanc around it.

Its first build takes minutes; `make image-test` runs this file alone.
"""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path

import pytest

from cxr_node.prepare.wrap_picture import radiograph_from_image
from tests.conftest import REPOSITORY, absent
from tests.image import CONFIG_AT, Buildah, Container, build, may_run
from tests.images import chest_phantom
from tests.orthanc import Orthanc, free_port
from tests.waiting import wait_until

pytestmark = [pytest.mark.peer, pytest.mark.timeout(1800), pytest.mark.xdist_group("image")]


@pytest.fixture(scope="module")
def buildah(peer):
    program = peer("buildah")
    if not may_run():
        absent("only root may build and run the image here (buildah --isolation=chroot)")
    return Buildah(program)


@pytest.fixture(scope="module")
def image(buildah, peer):
    return build(buildah, peer("debootstrap"))


@pytest.fixture
def config(tmp_path):
    """The settings of compose.yaml, with the PACS on this machine."""
    text = (REPOSITORY / "conf" / "compose" / "cxr-node.toml").read_text()
    assert 'host = "orthanc"\nport = 4242\n' in text
    text = text.replace('host = "orthanc"\nport = 4242\n', f'host = "127.0.0.1"\nport = {free_port()}\n')
    path = tmp_path / "cxr-node.toml"
    text = text.replace("[node]\n", f"[node]\nport = {free_port()}\n")
    path.write_text(text.replace("[web]\n", f"[web]\nport = {free_port()}\n"))
    path.chmod(0o644)
    return path


@pytest.fixture
def container(buildah, image, tmp_path, config):
    with Container(buildah, image, tmp_path / "container", config) as made:
        yield made


def ports(config):
    """The node's and the PACS's."""
    return [int(line.partition("=")[2]) for line in config.read_text().splitlines() if line.startswith("port")][:2]


def test_receives_analyses_delivers_and_stops_with_no_right_and_nowhere_else_to_write(container, config, tmp_path, peer):
    node_port, pacs_port = ports(config)
    for number in (1, 2):
        radiograph_from_image(chest_phantom(seed=number)).save_as(tmp_path / f"{number}.dcm", enforce_file_format=True)
    with Orthanc(peer("Orthanc"), tmp_path / "orthanc", dicom_port=pacs_port) as orthanc:
        assert b"ready to receive: CXRNODE on 0.0.0.0" in container.start(), container.log.read_text()
        sending = [peer("storescu"), "-aet", "MODALITY1", "-aec", "CXRNODE", "127.0.0.1", str(node_port)]
        sent = subprocess.run(
            [*sending, tmp_path / "1.dcm", tmp_path / "2.dcm"], capture_output=True, text=True, timeout=600, check=False
        )
        assert sent.returncode == 0, sent.stdout + sent.stderr
        wait_until(lambda: orthanc.count() == 4, f"two overlays and two reports, see {container.log}", timeout_s=600)
        assert container.is_healthy()
        status = json.loads(container.execute("cxr-node", "status", "--config", CONFIG_AT, "--json").stdout)
        assert status["jobs"]["done"] == 2

        its_user = (container.root / "var/lib/cxr-node").stat().st_uid
        for process in [container.first, *container.first.children(recursive=True)]:
            status_lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
            rights = dict(line.split(":\t", 1) for line in status_lines if ":\t" in line)
            assert set(rights["Uid"].split()) == {str(its_user)}
            assert {int(rights[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {0}
            assert rights["NoNewPrivs"] == "1"
        assert its_user != 0
        for folder in ("/", "/opt/cxr-node/lib", "/etc", "/var", "/usr"):
            tried = container.execute("/usr/bin/touch", f"{folder}/mark", as_root=True)
            assert "Read-only file system" in tried.stderr

        roles = container.first.children(recursive=True)
        assert len(roles) >= 3
        assert container.stop() == 0, container.log.read_text()
        assert not [role for role in roles if role.is_running()]
    assert "Traceback" not in container.log.read_text()
    with closing(sqlite3.connect(container.volume / "cxr-node.sqlite3")) as database:
        assert database.execute("SELECT DISTINCT state FROM deliveries").fetchall() == [("sent",)]


def test_its_health_check_fails_where_no_node_is(container):
    kind, *command = container.settings["Healthcheck"]["Test"]
    assert kind == "CMD"
    found = container.run(*command)
    assert found.returncode not in (0, 127)
    assert "unhealthy: " in found.stderr


def test_a_database_that_it_does_not_know_stops_it_with_one_sentence(container):
    container.start()
    assert container.stop() == 0
    with closing(sqlite3.connect(container.volume / "cxr-node.sqlite3")) as database:
        database.execute("UPDATE alembic_version SET version_num = 'elsewhere'")
        database.commit()
    for file in container.volume.glob("cxr-node.sqlite3*"):  # made by root just now
        os.chown(file, container.volume.stat().st_uid, container.volume.stat().st_gid)
    before = container.log.read_text()
    assert container.start() == b""
    assert container.wait() == 2
    said = container.log.read_text().removeprefix(before).splitlines()
    assert len(said) == 1
    assert "has the schema 'elsewhere'" in said[0]


@pytest.mark.parametrize("module", ["pip", "schemathesis", "pytest", "training", "tests", "sklearn", "matplotlib"])
def test_holds_nothing_that_the_node_does_not_use(container, module):
    tried = container.run("python", "-c", f"import {module}")
    assert f"No module named '{module}'" in tried.stderr


def test_holds_every_key_of_the_settings_to_copy_from(container):
    assert (container.root / "opt/cxr-node/share/cxr-node/cxr-node.example.toml").read_bytes() == (
        REPOSITORY / "conf" / "cxr-node.example.toml"
    ).read_bytes()
