"""Tests destinations and the set-up in a child process, `cxr-node check-config`: the role opens no association."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from cxr_node.errors import StoreError

_AT_ONCE = asyncio.Semaphore(2)
_TIMEOUT_S = 180.0


async def try_set_up(config: Path | None, destination: str = "") -> list[dict[str, Any]]:
    """What `cxr-node check-config` finds: `severity` (ok, warning, error), `destination` (empty: the node) and `text`.

    Args:
        config: the settings file, which is read again.
        destination: only this one; empty: the node and all of them.

    Raises:
        StoreError: the trial didn't end, or said nothing.
    """
    command = [sys.executable, "-m", "cxr_node", "check-config", "--json"]
    command += ["--config", str(config)] if config is not None else []
    command += ["--destination", destination] if destination else []
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    pipe, nothing = asyncio.subprocess.PIPE, asyncio.subprocess.DEVNULL
    async with _AT_ONCE:
        process = await asyncio.create_subprocess_exec(
            *command, stdin=nothing, stdout=pipe, stderr=pipe, env=environment, start_new_session=True
        )
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                said, complaint = await process.communicate()
        except TimeoutError:
            raise StoreError(f"The trial took longer than {_TIMEOUT_S:g} s and was ended.") from None
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    try:
        found: list[dict[str, Any]] = json.loads(said)
    except ValueError:
        lines = complaint.decode(errors="replace").strip().splitlines()
        reason = lines[-1].removeprefix("cxr-node: ") if lines and lines[-1].startswith("cxr-node: ") else "the log says why"
        raise StoreError(f"The trial could not be made: {reason}") from None
    return found
