"""Instances a minute of one sender, counted across all receiver processes in a small shared file.

The file is a table of fixed size, with a row for each sender that has sent in the last minute. Processes lock it for some
microseconds at a time; the system releases the lock of a process that dies.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import struct
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path

from cxr_node.peer_address import site_of
from cxr_node.records import Sender
from cxr_node.security.nofollow import open_file

_GROUPS = 1024
"""A sender's row is one of those of its group, which its name tells."""
_ROW = struct.Struct("<16sd")
"""Digest of the sender's name and address; the time at which all that it sent would have been sent at an even pace."""
_GROUP = struct.Struct("<" + 16 * _ROW.format.removeprefix("<"))
_MINUTE_S = 60.0


class SenderRateLimit:
    """As many instances at once as a minute allows, then one as each falls due; of each sender, from each address.

    Invented names fill no memory: if a group is full, the sender in it that has sent least is replaced.

    Args:
        per_minute: 0 for no limit.
        path: the file that the processes share; it is made.
        clock: seconds that count on evenly, the same for all processes, and whose zero doesn't matter.
        peer_of: who an address counts as (`Settings.peer_of`).
    """

    def __init__(
        self,
        per_minute: int,
        path: Path,
        clock: Callable[[], float] = time.monotonic,
        peer_of: Callable[[str], str] = site_of,
    ) -> None:
        self._per_minute = per_minute
        self._clock, self._peer_of = clock, peer_of
        self._turn = threading.Lock()
        if per_minute:
            self._file = open_file(path, os.O_RDWR | os.O_CREAT)
            weakref.finalize(self, os.close, self._file)

    def allows(self, sender: Sender) -> bool:
        """Whether the sender may send one more now; if so, it counts.

        Raises:
            OSError: the file can't be read or written.
        """
        if not self._per_minute:
            return True
        name = f"{sender.calling_ae_title}\0{self._peer_of(sender.host)}".encode("utf-8", "surrogateescape")
        key = hashlib.blake2b(name, digest_size=16).digest()
        with self._turn:
            fcntl.flock(self._file, fcntl.LOCK_EX)
            try:
                return self._count(key)
            finally:
                fcntl.flock(self._file, fcntl.LOCK_UN)

    def _count(self, key: bytes) -> bool:
        now = self._clock()
        place = int.from_bytes(key[:4], "big") % _GROUPS * _GROUP.size
        rows = list(_ROW.iter_unpack(os.pread(self._file, _GROUP.size, place).ljust(_GROUP.size, b"\0")))
        # what lies further ahead than a minute is from before the machine was started
        due = [(even_at if now < even_at <= now + _MINUTE_S + 1 else now, number) for number, (_, even_at) in enumerate(rows)]
        known = next((number for number, (name, _) in enumerate(rows) if name == key), None)
        even_at, number = min(due) if known is None else due[known]
        if known is None:
            even_at = now
        even_at += _MINUTE_S / self._per_minute
        if even_at > now + _MINUTE_S + 1e-6:
            return False
        os.pwrite(self._file, _ROW.pack(key, even_at), place + number * _ROW.size)
        return True
