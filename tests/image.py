"""The image of the Dockerfile, built by buildah over a Debian of debootstrap's, and containers of it.

Python's own image lies in a registry of images, which not every machine reaches; Debian's packages do as well. Layers are kept
in .peers/image, so that a second build makes only what has changed. A container gets what `docker run --read-only --tmpfs /tmp
--cap-drop ALL --security-opt no-new-privileges --network host` gives, by the kernel's own means.
"""

from __future__ import annotations

import ast
import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from tests.conftest import REPOSITORY
from tests.waiting import PATIENCE_S, wait_until

STORAGE = REPOSITORY / ".peers" / "image"
SUITE = "bookworm"
"""The Debian that python:3.11-slim-bookworm, the Dockerfile's default, is made of."""
MIRROR = os.environ.get("DEBIAN_MIRROR", "http://deb.debian.org/debian")
BASE, BUILT, IMAGE = "localhost/cxr-node-base", "localhost/cxr-node-build", "localhost/cxr-node"

_SOURCES = ("index-url", "extra-index-url", "find-links", "no-index", "trusted-host", "cert", "client-cert", "proxy")
"""What of pip's configuration says where packages come from."""


class Buildah:
    """buildah with its own storage in a folder.

    Args:
        program: path of the executable.
        storage: folder for images, containers and layers.
    """

    def __init__(self, program: str, storage: Path = STORAGE) -> None:
        self._storage = storage.resolve()
        self._storage.mkdir(parents=True, exist_ok=True)
        self._command = [program, "--root", str(self._storage / "root"), "--runroot", str(self._storage / "run")]
        # overlay keeps a layer's own files alone; vfs, a copy of everything for each layer, works where that can't be mounted
        self.keeps_differences = _mounts_overlays()
        self._environment = {**os.environ, "STORAGE_DRIVER": "overlay" if self.keeps_differences else "vfs"}

    def __call__(self, *arguments: str, must: bool = True, timeout_s: float = 1200) -> str:
        """Run a command of buildah's, which must succeed or may; gives what it prints."""
        done = subprocess.run(
            [*self._command, *arguments],
            cwd=REPOSITORY,
            env={**self._environment, "BUILDAH_ISOLATION": "chroot"},
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        assert done.returncode == 0 or not must, f"buildah {' '.join(arguments)}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        return done.stdout.strip()

    def has(self, image: str) -> bool:
        """Whether there is an image of that name."""
        return bool(self("images", "--quiet", "--filter", f"reference={image}"))

    @contextmanager
    def alone(self) -> Iterator[None]:
        """One build at a time: the second finds the first's layers."""
        with (self._storage / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def build(buildah: Buildah, debootstrap: str) -> str:
    """Build the image as it is in this clone, and remove what earlier builds left and this one doesn't use; gives its ID."""
    with buildah.alone(), tempfile.TemporaryDirectory() as folder:
        if not buildah.has(f"{BASE}:{SUITE}"):
            _make_base(buildah, debootstrap, Path(folder) / "base")
        options = [
            f"--layers={str(buildah.keeps_differences).lower()}",  # by copies, a dozen layers take 20 GB of disk
            *("--format", "docker", "--pull-never", "--build-arg", f"PYTHON_IMAGE={BASE}:{SUITE}"),
            *_packages_as_here(Path(folder) / "pip.conf"),
        ]
        # tagged, so that its layers are kept
        built = buildah("build", "--quiet", *options, "--target", "build", "--tag", BUILT, ".").splitlines()[-1]
        # to see that nothing has changed, buildah would read all that the second stage copies
        digest = hashlib.sha256(built.encode() + (REPOSITORY / "Dockerfile").read_bytes()).hexdigest()
        if buildah.has(f"{IMAGE}:{digest}"):
            return buildah("images", "--quiet", "--no-trunc", f"{IMAGE}:{digest}").removeprefix("sha256:")
        image = buildah("build", "--quiet", *options, "--tag", f"{IMAGE}:{digest}", ".").splitlines()[-1]
        for name in buildah("images", "--format", "{{.Name}}:{{.Tag}}", "--filter", f"reference={IMAGE}").splitlines():
            if name != f"{IMAGE}:{digest}":
                buildah("rmi", name, must=False)  # one that a container is made of stays
        buildah("rmi", "--prune", must=False)
    return image


def _make_base(buildah: Buildah, debootstrap: str, root: Path) -> None:
    packages = "python3,python3-venv,ca-certificates"
    command = [debootstrap, "--variant=minbase", f"--include={packages}", SUITE, str(root), MIRROR]
    made = subprocess.run(command, capture_output=True, text=True, timeout=1800, check=False)
    assert made.returncode == 0, made.stdout[-2000:] + made.stderr[-2000:]
    (root / "usr" / "bin" / "python").symlink_to("python3")  # as in Python's own image
    for package in (root / "var" / "cache" / "apt" / "archives").glob("*.deb"):
        package.unlink()
    container = buildah("from", "scratch")
    try:
        buildah("add", "--quiet", container, str(root), "/")
        buildah("commit", "--quiet", container, f"{BASE}:{SUITE}")
    finally:
        buildah("rm", container)


def _packages_as_here(file: Path) -> list[str]:
    """Options for a build whose pip finds packages where this machine's does: its configuration, and the folders it names."""
    said = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True).stdout
    found: dict[str, str] = {}
    for line in said.splitlines():
        key, _, value = line.partition("=")
        section, _, name = key.rpartition(".")
        if name in _SOURCES and section in ("global", ":env:"):
            found[name] = ast.literal_eval(value)
    file.write_text("[global]\n" + "".join(f"{name} = {' '.join(value.split())}\n" for name, value in found.items()))
    options = ["--volume", f"{file}:/etc/pip.conf:ro"]
    folders = {_folder_of(word) for value in found.values() for word in value.split()}
    for folder in sorted(folder for folder in folders if folder):
        options += ["--volume", f"{folder}:{folder}:ro"]
    if "TORCH_INDEX" in os.environ or {"index-url", "extra-index-url", "find-links"} & set(found):
        options += ["--build-arg", f"TORCH_INDEX={os.environ.get('TORCH_INDEX', '')}"]
    return options


def _folder_of(word: str) -> str:
    """The file or folder that a word of pip's configuration names, with what an index there refers to; or nothing."""
    if word.startswith("file:///"):
        return str(Path(word.removeprefix("file://")).parent)
    return word if word.startswith("/") and Path(word).exists() else ""


def _mounts_overlays() -> bool:
    with tempfile.TemporaryDirectory(dir=REPOSITORY) as folder:
        for name in ("lower", "upper", "work", "merged"):
            (Path(folder) / name).mkdir()
        options = "lowerdir=lower,upperdir=upper,workdir=work"
        command = ["unshare", "--mount", "mount", "-t", "overlay", "overlay", "-o", options, "merged"]
        return subprocess.run(command, cwd=folder, capture_output=True, check=False).returncode == 0


_ENTER = """
set -eu
mount --make-rprivate /
mount --bind "$ROOT" "$ROOT"
mount -t proc proc "$ROOT/proc"
mount -t sysfs -o ro sysfs "$ROOT/sys"
mount -t tmpfs -o mode=1777 tmpfs "$ROOT/tmp"
mount -t tmpfs -o mode=755 tmpfs "$ROOT/dev"
for device in null zero full random urandom; do
    touch "$ROOT/dev/$device"
    mount --bind "/dev/$device" "$ROOT/dev/$device"
done
mkdir "$ROOT/dev/shm"
mount -t tmpfs -o mode=1777,size=64m tmpfs "$ROOT/dev/shm"
mount --bind "$VOLUME" "$ROOT$VOLUME_AT"
mount --bind "$CONFIG" "$ROOT$CONFIG_AT"
mount -o remount,bind,ro "$ROOT$CONFIG_AT"
mount -o remount,bind,ro "$ROOT"
exec chroot "$ROOT" "$@"
"""
CONFIG_AT = "/etc/cxr-node/cxr-node.toml"


class Container:
    """A container of an image: a read-only root, /tmp and one volume to write to, its user without any right.

    Args:
        buildah: where the image is.
        image: its name.
        folder: for the volume and the log.
        config: the settings file, mounted read-only.
    """

    def __init__(self, buildah: Buildah, image: str, folder: Path, config: Path) -> None:
        self._buildah, self._config = buildah, config
        # what `docker run` goes by
        self.settings: dict[str, Any] = json.loads(json.loads(buildah("inspect", "--type", "image", image))["Config"])["config"]
        self._name = buildah("from", "--pull-never", image)
        self.root = Path(buildah("mount", self._name))
        (self._volume_at,) = self.settings["Volumes"]
        self.volume, self.log = folder / "volume", folder / "container.log"
        inside = (self.root / self._volume_at.lstrip("/")).stat()  # a new volume takes after what is under it
        self.volume.mkdir(parents=True)
        self.volume.chmod(inside.st_mode & 0o7777)
        os.chown(self.volume, inside.st_uid, inside.st_gid)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> bytes:
        """Start what the image starts; gives the first line that it prints."""
        command = [*self.settings["Entrypoint"], *self.settings["Cmd"]]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(self._from_outside(command), env=self._places(), stdout=subprocess.PIPE, stderr=log)
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run another command in a container of its own on the same volume, as `docker run --rm` does."""
        return subprocess.run(
            self._from_outside(command), env=self._places(), capture_output=True, text=True, timeout=900, check=False
        )

    def execute(self, *command: str, as_root: bool = False) -> subprocess.CompletedProcess[str]:
        """Run a command beside what was started, as `docker exec` does; as root, it still has nowhere to write."""
        enter = ["nsenter", "--target", str(self.first.pid), "--mount", "--pid", "--uts", "--ipc", "--root", "--wd"]
        words = [*enter, *(command if as_root else self._as_its_user(command))]
        return subprocess.run(words, capture_output=True, text=True, timeout=900, check=False)

    def is_healthy(self) -> bool:
        """What the image's health check says."""
        kind, *command = self.settings["Healthcheck"]["Test"]
        assert kind == "CMD"
        return self.execute(*command).returncode == 0

    @property
    def first(self) -> psutil.Process:
        """The container's first process, whose number there is 1."""
        assert self._process is not None
        outside = psutil.Process(self._process.pid)
        return wait_until(lambda: outside.children()[:1], "the container's first process")[0]

    def stop(self, timeout_s: float = PATIENCE_S) -> int:
        """Send the image's stop signal to the first process, as `docker stop` does; gives its exit status."""
        assert self._process is not None
        self.first.send_signal(signal.Signals[self.settings.get("StopSignal", "SIGTERM")])
        return self.wait(timeout_s)

    def wait(self, timeout_s: float = PATIENCE_S) -> int:
        """Wait for the end of what was started; gives its exit status."""
        assert self._process is not None
        status = self._process.wait(timeout_s)
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._process = None
        return status

    def close(self) -> None:
        """Kill what runs, and remove the container; its volume stays."""
        if self._process is not None:
            self._process.kill()
            self.wait()
        self._buildah("umount", self._name)
        self._buildah("rm", self._name)

    def __enter__(self) -> Container:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _from_outside(self, command: Sequence[str]) -> list[str]:
        apart = ["unshare", "--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child"]
        return [*apart, "sh", "-c", _ENTER, "sh", *self._as_its_user(command)]

    def _as_its_user(self, command: Sequence[str]) -> list[str]:
        user = self.settings["User"]
        return [
            *("/usr/bin/env", "-i", f"--chdir={self.settings['WorkingDir']}", *self.settings["Env"]),
            *("/usr/bin/setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups"),
            *("--bounding-set=-all", "--inh-caps=-all", "--no-new-privs", "--", *command),
        ]

    def _places(self) -> Mapping[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "ROOT": str(self.root),
            "VOLUME": str(self.volume),
            "VOLUME_AT": self._volume_at,
            "CONFIG": str(self._config),
            "CONFIG_AT": CONFIG_AT,
        }


def may_run() -> bool:
    """Whether this user may make containers, and this system has what they are made by."""
    return os.geteuid() == 0 and all(map(shutil.which, ("unshare", "nsenter", "mount", "chroot")))
