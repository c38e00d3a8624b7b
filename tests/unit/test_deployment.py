"""What the files for systemd and Docker promise of the node's rights."""

from __future__ import annotations

import re
import shutil
import subprocess
from configparser import ConfigParser

import pytest

from tests.conftest import REPOSITORY

UNIT = REPOSITORY / "conf" / "cxr-node.service"


@pytest.fixture
def unit(tmp_path):
    """The unit with a program and a user that every machine has, for systemd's tools to look at."""
    text = UNIT.read_text().replace("/opt/cxr-node/.venv/bin/cxr-node", "/bin/true")
    path = tmp_path / "cxr-node.service"
    path.write_text(re.sub(r"(?m)^(User|Group)=.*$", r"\1=root", text))
    return path


def systemd_analyze(*arguments):
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("systemd-analyze is not installed (Debian package systemd)")
    return subprocess.run([program, *arguments], capture_output=True, text=True, timeout=600, check=False)


def test_systemd_understands_the_unit(unit):
    found = systemd_analyze("verify", str(unit))
    assert "Unknown" not in found.stderr, found.stderr
    assert "Failed to parse" not in found.stderr, found.stderr


def test_systemd_finds_the_unit_little_exposed(unit):
    found = systemd_analyze("security", "--offline=true", str(unit))
    if found.returncode and "Unknown" in found.stderr + found.stdout:
        pytest.skip("this systemd-analyze is too old to look at a file")
    level = re.search(r"Overall exposure level .*?: ([0-9.]+)", found.stdout)
    assert level, found.stdout + found.stderr
    assert float(level[1]) <= 3.0  # here as root; as its own user it is lower


def test_the_unit_runs_as_a_plain_user():
    text = UNIT.read_text()
    for line in ("User=cxr-node", "NoNewPrivileges=true", "ProtectSystem=strict", "CapabilityBoundingSet=", "UMask=0077"):
        assert re.search(rf"(?m)^{line}$", text), line


def test_memory_and_tasks_are_limited_and_no_core_is_dumped():
    unit, compose = UNIT.read_text(), (REPOSITORY / "compose.yaml").read_text()
    for line in ("MemoryMax=8G", "TasksMax=1024", "LimitCORE=0"):
        assert re.search(rf"(?m)^{line}$", unit), line
    for line in ("mem_limit: 8g", "pids_limit: 1024", "core: 0"):
        assert line in compose, line


def test_the_image_runs_as_a_plain_user():
    stages = (REPOSITORY / "Dockerfile").read_text().split("\nFROM ")
    users = re.findall(r"(?m)^USER (\S+)$", stages[-1])
    assert users == ["cxr-node"]
    assert "--uid 10001" in stages[-1]


def test_the_image_gets_all_that_it_is_built_from():
    """What the Dockerfile copies, and what setup.cfg names beside the package, passes .dockerignore."""
    let_through = [line[1:] for line in (REPOSITORY / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    copied = [
        source
        for words in re.findall(r"(?m)^COPY ([^-].*) \S+$", (REPOSITORY / "Dockerfile").read_text())
        for source in words.split()
    ]
    assert {"cxr_node", "constraints.txt", "setup.cfg"} <= set(copied)
    for path in let_through:
        assert (REPOSITORY / path).exists(), path
        assert path.split("/")[0] in copied, path
    settings = ConfigParser()
    settings.read(REPOSITORY / "setup.cfg")
    beside = [file for files in settings["options.data_files"].values() for file in files.split()]
    licences = settings["metadata"]["license_files"].split()
    assert set(beside + licences) <= set(let_through)
    assert {source for source in copied if source != "conf"} <= set(let_through)


def test_compose_takes_every_right_away():
    text = (REPOSITORY / "compose.yaml").read_text()
    node = text[text.index("  node:") : text.index("  orthanc:")]
    for line in ("read_only: true", "tmpfs: [/tmp]", "cap_drop: [ALL]", "no-new-privileges:true"):
        assert line in node, line
