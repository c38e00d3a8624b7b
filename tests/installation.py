"""cxr_node as its users get it: a wheel in a virtual environment of its own outside the clone, with nothing of it on its path."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import tarfile
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import REPOSITORY

_WHERE_FROM = """
import importlib.util, json, os, sys, cxr_node
print(json.dumps({
    "cxr_node": cxr_node.__file__,
    "path": [os.path.realpath(entry) for entry in sys.path],
    "editable": [name for name in sys.modules if name.startswith("__editable__")],
    "others": [name for name in ("tests", "training", "benchmarks") if importlib.util.find_spec(name)],
}))
"""


@dataclass(frozen=True)
class Installation:
    """A virtual environment with the wheel in it.

    Attributes:
        folder: the environment.
    """

    folder: Path

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.folder / "bin" / "python"

    @property
    def program(self) -> Path:
        """`cxr-node`."""
        return self.folder / "bin" / "cxr-node"

    @property
    def package(self) -> Path:
        """The folder of the package `cxr_node`."""
        (found,) = self.folder.glob("lib/python*/site-packages/cxr_node")
        return found

    def run(self, *command: str | Path, cwd: Path, timeout_s: float = 900) -> subprocess.CompletedProcess[str]:
        """Run a program in a folder, with nothing in its environment that leads to the clone."""
        return subprocess.run(
            [str(word) for word in command],
            cwd=cwd,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def check(self, cwd: Path) -> None:
        """See that what runs there is the wheel, and nothing of the clone."""
        found = json.loads(self.run(self.python, "-c", _WHERE_FROM, cwd=cwd).stdout)
        assert Path(found["cxr_node"]).parent == self.package, found
        assert not self.folder.resolve().is_relative_to(REPOSITORY), self.folder
        assert str(REPOSITORY) not in found["path"], found
        assert (found["editable"], found["others"]) == ([], []), found


def environment() -> dict[str, str]:
    """This process's environment without what leads Python to the clone, and without settings of a node."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "CXR_NODE__", "VIRTUAL_ENV"))}


def copy_clone(target: Path) -> Path:
    """A copy of what is in the clone, or will be once it is committed: no build results and nothing that git ignores."""
    target.mkdir(parents=True)
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=REPOSITORY, capture_output=True, check=True
    ).stdout
    for name in listed.decode().split("\0"):
        if name and (REPOSITORY / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (target / name).write_bytes((REPOSITORY / name).read_bytes())
    return target


def build_sdist(source: Path, out: Path) -> Path:
    """The source distribution of a folder, built by setuptools as pip and `build` have it do."""
    out.mkdir(parents=True, exist_ok=True)
    _run([sys.executable, "-c", f"from setuptools import build_meta; build_meta.build_sdist({str(out)!r})"], source)
    (found,) = out.glob("*.tar.gz")
    return found


def build_wheel(source: Path, out: Path) -> Path:
    """The wheel of a folder or of a source distribution. No network: setuptools is there, as PyTorch needs it."""
    out.mkdir(parents=True, exist_ok=True)
    options = ("--no-deps", "--no-index", "--no-build-isolation", "--no-cache-dir", "--quiet", "--wheel-dir", str(out))
    _run([sys.executable, "-m", "pip", "wheel", *options, str(source)], out)
    (found,) = out.glob("*.whl")
    return found


def unpack(sdist: Path, folder: Path) -> Path:
    """Unpack a source distribution; gives its only folder."""
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    (found,) = folder.iterdir()
    return found


def install(wheel: Path, folder: Path, dependencies: Path | None = None) -> Installation:
    """Make a virtual environment with a wheel in it.

    Args:
        wheel: what is installed.
        folder: of the environment.
        dependencies: the site-packages folder that holds what the wheel needs; by default the one these tests run on. Its own
            .pth files aren't read from there, so that an editable install in it stays without effect.
    """
    _run([sys.executable, "-m", "venv", "--without-pip", str(folder)], folder.parent)
    made = Installation(folder)
    options = ("--no-deps", "--no-index", "--no-compile", "--quiet", "--disable-pip-version-check")
    _run([sys.executable, "-m", "pip", "--python", str(made.python), "install", *options, str(wheel)], folder.parent)
    (made.package.parent / "dependencies.pth").write_text(f"{dependencies or sysconfig.get_path('purelib')}\n")
    return made


def _run(command: list[str], cwd: Path) -> None:
    done = subprocess.run(command, cwd=cwd, env=environment(), capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
