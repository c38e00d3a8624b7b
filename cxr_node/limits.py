"""What a process may take: time and memory for a worker's batch, file handles for a role.

What goes beyond can't always be stopped from Python (a decoder in C holds the interpreter), so the last resort is the end of
the process: the supervisor starts another, and the queue tries the batch's jobs one by one.
"""

from __future__ import annotations

import errno
import faulthandler
import resource
from contextlib import suppress
from pathlib import Path

from cxr_node.errors import StoreError

_NODE_S_TROUBLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE, errno.ENFILE)
_FILES_BESIDES = 128
"""Libraries, the database with its connections, logs."""


def is_trouble_here(error: BaseException) -> bool:
    """Whether an error tells of this machine (full disk, read-only folder, no file handles), not of the job that met it."""
    return isinstance(error, OSError) and error.errno in _NODE_S_TROUBLE


def end_after(limit_s: float) -> None:
    """End the process in so many seconds, having written where each thread is to standard error, unless called again.

    It needs no Python code to run: a thread that holds the interpreter lock for ever is ended too.
    """
    faulthandler.dump_traceback_later(limit_s, exit=True)


def end_no_more() -> None:
    """Call `end_after` off."""
    faulthandler.cancel_dump_traceback_later()


def limit_memory(more_mb: int) -> None:
    """Let the process have so much more memory than it has now: beyond, an allocation fails, as MemoryError in Python.

    And if the machine runs short, let the kernel end this process before one that receives or sends.
    """
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("500")
    if not more_mb:
        return
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    with suppress(OSError, ValueError, StopIteration):  # no Linux, or a lower limit is set already
        status = Path("/proc/self/status").read_text().splitlines()
        data_kb = next(int(line.split()[1]) for line in status if line.startswith("VmData"))
        resource.setrlimit(resource.RLIMIT_DATA, (data_kb * 1024 + more_mb * 2**20, hard))


def have_file_handles(needed: int) -> None:
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
