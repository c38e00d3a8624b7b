"""What is shipped: the wheel holds all that the program needs, a source distribution builds the same one, and it runs.

The main job and the kill tests run from the same wheel.
"""

from __future__ import annotations

import os
import pwd
import shlex
import shutil
import stat
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.installation import build_sdist, build_wheel, copy_clone, environment, install, unpack
from tests.node import Node


def contents(wheel):
    """Name to bytes."""
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist() if not name.endswith("/")}


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    return copy_clone(tmp_path_factory.mktemp("clone") / "clone")


@pytest.fixture(scope="module")
def sdist(clone, tmp_path_factory):
    return build_sdist(clone, tmp_path_factory.mktemp("sdist"))


def test_the_wheel_holds_every_file_of_the_package_and_no_other(wheel, clone):
    shipped = {name: content for name, content in contents(wheel).items() if ".dist-info/" not in name}
    examples = {name.rpartition("/")[2]: content for name, content in shipped.items() if ".data/data/share/cxr-node/" in name}
    package = {name: content for name, content in shipped.items() if ".data/" not in name}
    assert package == {
        str(path.relative_to(clone)): path.read_bytes() for path in (clone / "cxr_node").rglob("*") if path.is_file()
    }
    assert examples == {name: (clone / "conf" / name).read_bytes() for name in ("cxr-node.example.toml", "cxr-node.service")}


def test_the_wheel_has_its_licence_its_notice_and_its_command(wheel):
    shipped = {name.partition(".dist-info/")[2]: content for name, content in contents(wheel).items()}
    assert shipped["licenses/LICENSE"] == (REPOSITORY / "LICENSE").read_bytes()
    assert shipped["licenses/NOTICE"] == (REPOSITORY / "NOTICE").read_bytes()
    assert b"cxr-node = cxr_node.cli:main" in shipped["entry_points.txt"]


def test_a_source_distribution_builds_the_same_wheel(wheel, sdist, tmp_path):
    assert contents(build_wheel(sdist, tmp_path / "wheel")) == contents(wheel)


def test_a_source_distribution_holds_what_the_clone_holds(clone, sdist, tmp_path):
    """So that `make`, the tests and the image come out of it too."""
    folder = unpack(sdist, tmp_path / "unpacked")
    built = {"PKG-INFO", "cxr_node.egg-info"}

    def files(root):
        found = {path.relative_to(root) for path in root.rglob("*") if path.is_file()}
        return {str(path) for path in found if path.parts[0] not in built}

    assert files(folder) == files(clone)


def test_an_installation_reads_nothing_of_the_clone(installation, tmp_path):
    installation.check(tmp_path)
    assert installation.run(installation.program, "--help", cwd=tmp_path).returncode == 0
    with pytest.raises(AssertionError):  # in the clone Python would find the clone
        installation.check(REPOSITORY)


def test_demo_works_in_an_empty_folder_for_a_plain_user_on_a_read_only_installation(wheel):
    """For root: as the user nobody, with the installation mounted read-only. Else: with the right to write taken away."""
    folder = Path(tempfile.mkdtemp(prefix="cxr-node-demo-"))  # pytest's own folders are for its user alone
    try:
        folder.chmod(0o755)
        here, dependencies = folder / "here", folder / "dependencies"
        here.mkdir()
        if os.geteuid() == 0:
            made = install(wheel, folder / "venv", dependencies)
            nobody = pwd.getpwnam("nobody")
            os.chown(here, nobody.pw_uid, nobody.pw_gid)
            script = shlex_lines(*mounts(folder, made.folder, dependencies)) + '\nexec "$@"'
            as_nobody = ("setpriv", f"--reuid={nobody.pw_uid}", f"--regid={nobody.pw_gid}", "--clear-groups", "--no-new-privs")
            prefix = ["unshare", "--mount", "sh", "-c", script, "sh", *as_nobody]
        else:
            made = install(wheel, folder / "venv")
            for path in (made.folder, *made.folder.rglob("*")):
                if not path.is_symlink():
                    path.chmod(path.stat().st_mode & ~0o222)
            prefix = []
        touched = subprocess.run([*prefix, "touch", made.package / "mark"], capture_output=True, text=True, check=False)
        assert touched.returncode != 0, "the installation can be written"
        demo = subprocess.run(
            [*prefix, made.program, "demo"],
            cwd=here,
            env={**environment(), "HOME": str(here)},
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert demo.returncode == 0, demo.stdout + demo.stderr
        assert "Everything is stopped" in demo.stdout
        assert [path.name for path in here.iterdir()] == ["demo-output"]
        assert len(list((here / "demo-output" / "pictures").glob("*.png"))) == 6
        assert "Traceback" not in (here / "demo-output" / "node.log").read_text()
    finally:
        for path in folder.rglob("*"):
            if path.is_dir() and not path.is_symlink():
                path.chmod(0o755)
        shutil.rmtree(folder)


def mounts(folder, installation, dependencies):
    """Commands that make the installation, and what it needs, read-only and readable for everybody: the clone, and the Python
    that made its .venv, may lie where nobody else may look."""
    interpreter = Path(sys.base_prefix)
    yield "mount", "--make-rprivate", "/"
    for source, target in (
        (sysconfig.get_path("purelib"), dependencies),
        (interpreter, folder / "interpreter"),
        (installation, installation),
    ):
        target.mkdir(exist_ok=True)
        yield "mount", "--bind", source, target
        yield "mount", "-o", "remount,bind,ro", target
    closed = next((parent for parent in reversed(interpreter.parents) if not parent.stat().st_mode & stat.S_IXOTH), None)
    if closed is not None:
        yield "mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", closed
        yield "mkdir", "-p", interpreter
        yield "mount", "--bind", folder / "interpreter", interpreter


def shlex_lines(*commands):
    return "\n".join(("set -e", *(shlex.join(map(str, command)) for command in commands)))


@pytest.mark.parametrize("command", ["serve", "receive", "work", "deliver"])
def test_an_installation_without_migrations_stops_its_start_with_one_sentence(incomplete, tmp_path, command):
    node = Node(tmp_path / "node")
    told = incomplete.run(incomplete.program, command, "--config", node.config, cwd=tmp_path)
    assert told.returncode == 2
    assert told.stdout == ""
    (line,) = told.stderr.splitlines()
    assert "install it again, from a whole wheel or image" in line
    assert str(incomplete.package) in line


@pytest.fixture(scope="module")
def incomplete(wheel, tmp_path_factory):
    """An installation as a wheel without the migrations makes it."""
    made = install(wheel, tmp_path_factory.mktemp("incomplete") / "venv")
    shutil.rmtree(made.package / "store" / "migrations" / "versions")
    return made
