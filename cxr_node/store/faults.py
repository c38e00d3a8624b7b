"""Named fault points at which tests break the process; inactive unless CXR_NODE_FAULTS names a folder.

A file NAME in that folder, or NAME@UID for a single instance, contains the action: kill, segfault, loop, allocate, full. The
file is removed first, so the action happens once; with a second word, `always`, it stays. Tests can thus break a real node
between any two of its commits, and check that nothing is lost.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
from pathlib import Path

_FOLDER = os.environ.get("CXR_NODE_FAULTS")

POINTS = (
    "instance-received",  # the file is complete, and still under incoming/
    "instance-kept",  # the file has its final place; no row tells of it
    "instance-admitted",  # the row is committed; the sender hasn't been answered
    "jobs-claimed",  # taken, and nothing done yet
    "reading",
    "analysing",
    "composing",
    "result-kept",  # a result's file has its place; no row tells of it
    "instance-merged",  # it was an earlier one in another encoding: its blob has no owner, and is still there
    "job-ended",  # results and deliveries are committed; blobs that none of them owns are still there
    "job-finished",  # results and deliveries are committed
    "deliveries-claimed",
    "object-stored",  # the destination has said that it stored the object; no row tells of it
    "delivery-noted",  # and now one does
    "commitment-noted",  # a commitment is about to be asked for
    "commitment-asked",  # and has been
    "removal-noted",  # retention has written down that blobs go, and they are still there
)
"""In the order in which an image passes them."""

UPLOAD_POINTS = (
    "object-uploaded",  # the bucket has what the spool has, and no row tells of it
    "upload-noted",  # the row does; the file is still in the spool
)
"""Those of the role `upload`, which runs where there is a spool."""


def point(name: str, uid: str = "") -> None:
    """Break here, if a test said so.

    Args:
        name: one of POINTS or UPLOAD_POINTS.
        uid: SOP instance UID of what is under way, if it is one.
    """
    if _FOLDER is None:
        return
    for path in (Path(_FOLDER, name), Path(_FOLDER, f"{name}@{uid}")):
        try:
            action, *often = path.read_text("ascii").split()
            if not often:
                path.unlink()  # whoever takes it away does it
        except (FileNotFoundError, ValueError):  # ValueError: the test is still writing it
            continue
        _break(action)


def _break(action: str) -> None:
    match action:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "segfault":
            ctypes.string_at(0)
        case "loop":  # in C, holding the interpreter lock, as a decoder does that never comes back
            ctypes.PyDLL(None).pause()
        case "allocate":
            hoard = []
            while True:
                hoard.append(bytearray(os.urandom(1024)) * (64 * 1024))
        case "full":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
