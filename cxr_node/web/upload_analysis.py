"""Analyses an upload in a child process, `cxr-node analyze`, with time and memory limits: `web` runs no decoder or network."""

from __future__ import annotations

import asyncio
import atexit
import json
import os
import resource
import secrets
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cxr_node.errors import CxrNodeError
from cxr_node.settings import Settings

_AT_ONCE = asyncio.Semaphore(1)
"""One analysis at a time: it takes all of the processors that the worker leaves."""
_KEPT_S = 900.0
_MOST_FOLDERS, _MOST_OF_ONE = 60, 20


@dataclass(frozen=True)
class Progress:
    """Where an analysis is: `stage` is "waiting", "analysing", "done" or "failed"; `result` is there when it is done.

    result: the object that `cxr-node analyze` writes to results.json for this file; `files` maps kinds to paths below `folder`.
    reason: why it failed, as text.
    """

    stage: str
    result: dict[str, Any] = field(default_factory=dict)
    reason: str = ""


async def analyse_upload(file: Path, folder: Path, settings: Settings) -> AsyncIterator[Progress]:
    """Analyse a file; its results go to `folder`, which the caller makes and removes. Nothing is stored or sent.

    Args:
        file: DICOM, PNG, JPEG or TIFF.
        folder: for the results; it has to exist.
        settings: `inference` and `overlay` are used.

    Yields:
        each stage as it begins; the last is "done" or "failed".
    """
    yield Progress("waiting")
    async with _AT_ONCE:
        yield Progress("analysing")
        yield await _run(file, folder, settings)


async def _run(file: Path, folder: Path, settings: Settings) -> Progress:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CXR_NODE_")}
    environment["CXR_NODE__INFERENCE"] = settings.inference.model_dump_json()
    environment["CXR_NODE__OVERLAY"] = settings.overlay.model_dump_json()
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    command = (sys.executable, "-m", "cxr_node", "analyze", str(file), "--out", str(folder), "--objects", "all", "--json")
    quiet = asyncio.subprocess.DEVNULL
    process = await asyncio.create_subprocess_exec(
        *command, stdin=quiet, stdout=quiet, stderr=quiet, env=environment, start_new_session=True
    )
    limit = (settings.inference.job_memory_mb or 0) * 2**20
    if limit and hasattr(resource, "prlimit"):
        with suppress(OSError):
            resource.prlimit(process.pid, resource.RLIMIT_DATA, (limit + 2 * 2**30, limit + 2 * 2**30))
    try:
        async with asyncio.timeout(settings.inference.job_timeout_s + 60):  # the networks are loaded in that time too
            await process.wait()
    except TimeoutError:
        return Progress("failed", reason="The analysis took too long and was ended.")
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    try:
        (row,) = json.loads((folder / "results.json").read_text())
    except (OSError, ValueError):
        return Progress("failed", reason="The analysis ended without a result: the file may need more memory than is allowed.")
    return Progress("done", result=row)


class BusyError(CxrNodeError):
    """Too many uploads are here already."""


class Scratch:
    """Folders of uploads and their results, each for who made it and for a quarter of an hour."""

    def __init__(self) -> None:
        self._root: Path | None = None
        self._folders: dict[str, tuple[str, float]] = {}
        self._lock = threading.Lock()

    def new(self, owner: str) -> tuple[str, Path]:
        """A new folder, and the key to it.

        Raises:
            BusyError: there are too many.
        """
        with self._lock:
            self._sweep()
            mine = sum(1 for name, _ in self._folders.values() if name == owner)
            if len(self._folders) >= _MOST_FOLDERS or mine >= _MOST_OF_ONE:
                raise BusyError("Too many files were tried within a quarter of an hour: try again in a few minutes.")
            if self._root is None:
                self._root = Path(tempfile.mkdtemp(prefix="cxr-node-uploads-"))
                atexit.register(shutil.rmtree, self._root, ignore_errors=True)
            key = secrets.token_hex(16)
            (self._root / key).mkdir(mode=0o700)
            self._folders[key] = (owner, time.monotonic())
            return key, self._root / key

    def folder(self, key: str, owner: str) -> Path | None:
        """The folder of a key, if it is this owner's and still there."""
        with self._lock:
            self._sweep()
            known = self._folders.get(key)
            return self._root / key if known is not None and known[0] == owner and self._root is not None else None

    def forget(self, key: str) -> None:
        """Remove a folder with all that is in it."""
        with self._lock:
            self._remove(key)

    def _sweep(self) -> None:
        for key in [key for key, (_, made_at) in self._folders.items() if time.monotonic() - made_at > _KEPT_S]:
            self._remove(key)

    def _remove(self, key: str) -> None:
        if self._folders.pop(key, None) is not None and self._root is not None:
            shutil.rmtree(self._root / key, ignore_errors=True)


def upload_name(given: str | None) -> str:
    """The name under which a file is kept: of what the sender calls it, the ending of a picture alone."""
    suffix = Path(given or "").suffix.lower()
    return f"upload{suffix}" if suffix in (".png", ".jpg", ".jpeg", ".tif", ".tiff") else "upload"


def scratch_folder() -> Path:
    """A new folder for one upload whose results are shown at once; `forget` removes it."""
    return Path(tempfile.mkdtemp(prefix="cxr-node-upload-"))


def forget(folder: Path) -> None:
    """Remove it with all that is in it."""
    shutil.rmtree(folder, ignore_errors=True)
