"""Limits of a process: time and memory of a worker's batch, file handles of a role.

Python can't always stop what exceeds a limit (a decoder in C holds the interpreter), so the last resort is to end the process:
the supervisor starts another, and the queue tries the jobs of the batch one at a time.
"""

from __future__ import annotations

import errno
import faulthandler
import os
import resource
import sys
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from cxr_node.errors import BucketUnavailable, StoreError

_RESOURCE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE, errno.ENFILE)
_SAME_FOR_ALL_BYTES = 2 * 2**30
"""More than any role has when it is ready, the weights included."""
_BEFORE_OTHERS = 100
_FILES_BESIDES = 128
"""Libraries, the database with its connections, logs."""


def is_resource_error(error: BaseException) -> bool:
    """Whether an error is this node's (full disk, read-only folder, no file handles, no object store) and not the job's."""
    return isinstance(error, BucketUnavailable) or (isinstance(error, OSError) and error.errno in _RESOURCE_ERRORS)


def exit_after(limit_s: float) -> None:
    """End the process after this many seconds, with a traceback of each thread on standard error, unless called again.

    It needs no Python code to run: a thread that holds the interpreter lock forever is ended too.
    """
    faulthandler.dump_traceback_later(limit_s, exit=True)


def cancel_exit() -> None:
    """Cancel `exit_after`."""
    faulthandler.cancel_dump_traceback_later()


def end_now(status: int) -> NoReturn:
    """End a process in which everything has ended without Python's tidying up.

    That writes to all memory that is shared with a parent, and takes a second of processor time where torch is loaded.
    """
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # closed, or nobody reads it any more
            stream.flush()
    os._exit(status)


def limit_memory(more_mb: int) -> None:
    """Limit the process to so much more memory than it has now; a larger allocation fails, in Python as MemoryError."""
    if not more_mb:
        return
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    with suppress(OSError, ValueError, StopIteration):  # no Linux, or a lower limit is set already
        status = Path("/proc/self/status").read_text().splitlines()
        data_kb = next(int(line.split()[1]) for line in status if line.startswith("VmData"))
        resource.setrlimit(resource.RLIMIT_DATA, (data_kb * 1024 + more_mb * 2**20, hard))


def set_oom_priority() -> None:
    """Have the kernel's OOM killer prefer the role that grew; call it when a role is ready.

    The kernel ends what has most. A worker has more than a receiver from the start: so each role is given what it lacks to the
    same sum, and a little more than a process that is none of the node's. Nothing happens where there is no Linux.
    """
    with suppress(OSError, ValueError, StopIteration):
        status = Path("/proc/self/status").read_text().splitlines()
        has_bytes = next(int(line.split()[1]) for line in status if line.startswith("VmRSS")) * 1024
        share = max(0, _SAME_FOR_ALL_BYTES - has_bytes) / _memory_bytes()
        Path("/proc/self/oom_score_adj").write_text(str(min(1000, _BEFORE_OTHERS + round(1000 * share))))


def _memory_bytes() -> int:
    """What the kernel reckons with: the memory of the control group, or of the machine."""
    for limit in (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")):
        with suppress(OSError, ValueError):
            found = int(limit.read_text())
            if found < 2**60:
                return found
    meminfo = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) for line in meminfo if line.startswith("MemTotal")) * 1024


def disable_core_dumps() -> None:
    """Write no core dump, of this process and those that it starts: it would hold patients' images and keys."""
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def raise_file_limit(needed: int) -> None:
    """Raise this process's limit of open files as far as it may.

    Raises:
        StoreError: `needed`, and what any role has open besides, is more than that.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed += _FILES_BESIDES
    if soft != resource.RLIM_INFINITY and soft < needed:
        allowed = needed if hard == resource.RLIM_INFINITY else min(hard, needed)
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
        if allowed < needed:
            raise StoreError(
                f"This process may open {allowed} files, and needs {needed}: raise the limit (LimitNOFILE= in systemd, "
                "`ulimit -n` in a shell, --ulimit nofile= in Docker), or lower receive.max_associations."
            )
