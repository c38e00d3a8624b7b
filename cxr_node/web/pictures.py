"""Pictures for the pages, from a child process (`render_process`), cached in the data folder.

A file's name is derived from the blob that it shows. `forget_older` removes pictures of removed blobs within a day.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from cxr_node.errors import BucketUnavailable, CxrNodeError
from cxr_node.settings import Settings
from cxr_node.store.files.storage import blobs_of

_IDLE_S, _REQUEST_S, _MEMORY_MB = 60, 90, 6144
_MOST_BYTES = 512 * 2**20
_KEPT_S = 24 * 3600.0


class NoPictureError(CxrNodeError):
    """There is no picture; the text says why."""


class _Child:
    """One `draw` process at a time, started when it is needed; it ends by itself when it is idle.

    A thread of its own talks to it, one request after the other: what somebody asked who has gone since is carried out all
    the same, so that its answer can't become another's.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1)
        self._process: subprocess.Popen[bytes] | None = None

    async def ask(self, request: dict[str, Any]) -> None:
        """Have a request carried out.

        Raises:
            NoPictureError: it can't be.
        """
        answer = await asyncio.get_running_loop().run_in_executor(self._thread, self._answer, request)
        if "error" in answer:
            raise NoPictureError(answer["error"])

    def close(self) -> None:
        """End the process, whatever it does."""
        if (process := self._process) is not None:
            process.kill()
        self._thread.shutdown(cancel_futures=True)
        self._end()

    def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        line = json.dumps(request).encode() + b"\n"
        for _ in range(2):  # one that was idle may be ending just now
            began = time.monotonic()
            if said := self._said(line):
                answer: dict[str, Any] = json.loads(said)
                return answer
            self._end()
            if time.monotonic() - began > 1:
                break
        return {"error": "The image takes too much time or memory to be shown here."}

    def _said(self, line: bytes) -> bytes:
        """The line with which the process answers one; nothing if it ended instead, or took too long."""
        process = self._running()
        assert process.stdin is not None
        assert process.stdout is not None
        deadline, said = time.monotonic() + _REQUEST_S + 10, b""
        try:
            process.stdin.write(line)
            while not said.endswith(b"\n"):
                if not select.select([process.stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
                    return b""
                if not (part := process.stdout.read(65536)):
                    return b""
                said += part
        except OSError:
            return b""
        return said

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is not None:
            self._end()
        if self._process is None:
            environment = {name: value for name, value in os.environ.items() if not name.startswith("CXR_NODE_")}
            environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
            self._process = subprocess.Popen(
                (sys.executable, "-m", "cxr_node.web.render_process", str(_IDLE_S), str(_REQUEST_S), str(_MEMORY_MB)),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                bufsize=0,
                env={**environment, "OMP_NUM_THREADS": environment.get("OMP_NUM_THREADS", "2")},
            )
        return self._process

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        for pipe in (process.stdin, process.stdout):
            with suppress(OSError):
                assert pipe is not None
                pipe.close()
        process.wait()


class PictureServer:
    """What the pages ask for. One child makes what a reader waits for, another one thumbnails."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._blobs = blobs_of(settings)
        self._folder = settings.node.data_dir.absolute() / "cache"
        self._children = {"layers": _Child(), "thumbnails": _Child()}

    def close(self) -> None:
        """End the children."""
        for child in self._children.values():
            child.close()

    async def layers(self, image: dict[str, Any]) -> Path:
        """The folder with radiograph.png, layers.json and perhaps heat.png of an image (`browse.image_of_job`).

        Raises:
            NoPictureError: as all of these.
        """
        kept = [image["path"], image["model_version"], image["finished_at"], image["state"]]
        folder = self._place("layers", *map(str, kept))
        if (folder / "layers.json").is_file():
            _touch(folder / "layers.json")
            return folder
        # of a job that was done again the newest
        keys = {row["kind"]: row["path"] for row in image["results"] if row["removed_at"] is None}
        folder.mkdir(parents=True, exist_ok=True)
        async with self._near(image["path"], *keys.values()) as (source, *results):
            request = {
                "do": "layers",
                "source": source,
                "out": str(folder),
                "results": dict(zip(keys, results, strict=True)),
                "state": image["state"],
                "findings": image["findings"],
                "model_version": image["model_version"],
                "inference": self._settings.inference.model_dump_json(),
            }
            await self._make("layers", request)
        return folder

    async def thumbnail(self, image: dict[str, Any]) -> Path:
        """A small JPEG of an image's overlay, or of the radiograph itself."""
        overlay = next(
            (row for row in reversed(image["results"]) if row["kind"] == "overlay" and row["removed_at"] is None), None
        )
        key = overlay["path"] if overlay else image["path"]
        file = self._place("thumbnails", key).with_suffix(".jpg")
        if not file.is_file():
            async with self._near(key) as (source,):
                await self._make("thumbnails", {"do": "thumbnail", "source": source, "overlay": bool(overlay), "out": str(file)})
        return file

    async def overlay_png(self, key: str) -> Path:
        """The overlay as PNG; `key` is that of its blob."""
        file = self._place("pictures", key).with_suffix(".png")
        if not file.is_file():
            async with self._near(key) as (source,):
                await self._make("layers", {"do": "picture", "source": source, "out": str(file)})
        return file

    async def report(self, key: str) -> dict[str, Any]:
        """The report as a tree (see `draw`); `key` is that of its blob."""
        file = self._place("reports", key).with_suffix(".json")
        if not file.is_file():
            async with self._near(key) as (source,):
                await self._make("layers", {"do": "report", "source": source, "out": str(file)})
        tree: dict[str, Any] = json.loads(file.read_text())
        return tree

    @asynccontextmanager
    async def _near(self, *keys: str) -> AsyncIterator[list[str]]:
        """The files of blobs, for as long as the block lasts."""
        with ExitStack() as held:
            try:
                paths = [await asyncio.to_thread(held.enter_context, self._blobs.fetch(key)) for key in keys]
            except FileNotFoundError as error:
                raise NoPictureError(
                    "The image isn't in the bucket: retention has removed it, or its host hasn't uploaded it yet (storage.spool)."
                ) from error
            except BucketUnavailable as error:
                raise NoPictureError(str(error)) from error
            yield [str(path) for path in paths]

    async def _make(self, child: str, request: dict[str, Any]) -> None:
        Path(request["out"]).parent.mkdir(parents=True, exist_ok=True)
        await self._children[child].ask(request)
        await asyncio.to_thread(self.forget_older)

    def _place(self, kind: str, *parts: str) -> Path:
        return self._folder / kind / hashlib.sha256("\n".join(parts).encode()).hexdigest()[:40]

    def forget_older(self) -> None:
        """Remove what is older than a day, and the oldest of what is more than the folder may hold."""
        files = []
        for path in self._folder.rglob("*"):
            with suppress(OSError):
                if path.is_file():
                    found = path.stat()
                    files.append((found.st_mtime, found.st_size, path))
        held = 0
        for changed, size, path in sorted(files, reverse=True):
            held += size
            if held > _MOST_BYTES or changed < time.time() - _KEPT_S:
                path.unlink(missing_ok=True)
                with suppress(OSError):
                    path.parent.rmdir()


def _touch(path: Path) -> None:
    with suppress(OSError):
        for one in path.parent.iterdir():
            os.utime(one)


def pictures_of(app: Any) -> PictureServer:
    """The application's own."""
    found: PictureServer = app.state.pictures
    return found
