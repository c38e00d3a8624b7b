"""One data set on its way to disk: written and hashed as its fragments arrive, never decoded, never held in memory."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import struct
from pathlib import Path

from pynetdicom import PYNETDICOM_IMPLEMENTATION_UID

from cxr_node.dicom.part10 import file_in
from cxr_node.receive.intake.admission import OUT_OF_RESOURCES, StoreResponse
from cxr_node.records import Sender
from cxr_node.store.files.digests import Digest
from cxr_node.store.files.disk_space import DiskSpace

_GATHERED_BYTES = 1024 * 1024
"""Fragments are hashed and written together, so many bytes at once: each call gives up the interpreter lock, and with
several associations it is long before it comes back. A multiple of _BLOCK_BYTES."""
_BEGINNING_BYTES = 64 * 1024
_BETWEEN_SPACE_CHECKS = 32 * 1024 * 1024
_BETWEEN_HINTS = 4 * 1024 * 1024
_SYNC_FILE_RANGE_WRITE = 2
_C = ctypes.CDLL(None)
_BLOCK_BYTES = 4096
"""What is written past the system's cache begins in memory and in the file at a multiple of this, and is as long as one."""
_DIRECT = getattr(os, "O_DIRECT", 0)
_spare_buffers: list[memoryview] = []
_DISK_FULL = StoreResponse(OUT_OF_RESOURCES, "Too little free disk space; send it again later")
_CANNOT_WRITE = StoreResponse(OUT_OF_RESOURCES, "The instance could not be written; send it again later")


class IncomingDataSet:
    """A data set while it arrives, in a locked file of its own; or its refusal, when nothing is kept of it.

    A refused data set is still taken off the association, fragment by fragment, so that the association lives on.

    Attributes:
        sender: who sends it.
        sop_class_uid, sop_instance_uid: as the C-STORE command has them; of no certain form unless `refusal` is None.
        transfer_syntax_uid: as negotiated.
        refusal: the response that it will get, if nothing is kept of it.
        path: the file, preamble and file meta information included.
        beginning: its first bytes, 64 KiB where it has them; after `finish`.
        offset: where in it the data set begins, in bytes.
        size_bytes: of the data set, so far.
        came_bytes: of it, so far, what is refused included.
        digest: of the data set, without preamble and file meta information; after `finish`.
    """

    def __init__(
        self,
        folder: Path,
        disk_space: DiskSpace,
        *,
        sender: Sender,
        sop_class_uid: str,
        sop_instance_uid: str,
        transfer_syntax_uid: str,
        most_bytes: int,
        refusal: StoreResponse | None = None,
    ) -> None:
        self.sender = sender
        self.sop_class_uid = sop_class_uid
        self.sop_instance_uid = sop_instance_uid
        self.transfer_syntax_uid = transfer_syntax_uid
        self.refusal = refusal
        self.path = folder / f"{os.urandom(16).hex()}.dcm"
        self.beginning = b""
        self.offset = 0
        self.size_bytes = 0
        self.digest = ""
        self._disk_space = disk_space
        self._most_bytes = most_bytes
        self.came_bytes = 0
        self._check_at = _BETWEEN_SPACE_CHECKS
        self._content = Digest()
        self._gathered = _take_buffer()
        self._filled = 0
        self._written = self._hinted = 0
        self._descriptor = -1
        self._is_direct = False
        if self.refusal is None and not disk_space.is_available():
            self.refusal = _DISK_FULL
        if self.refusal is None:
            meta = file_meta(sop_class_uid, sop_instance_uid, transfer_syntax_uid, sender.calling_ae_title)
            self.offset = self._filled = len(meta)
            self._gathered[: self.offset] = meta
            try:
                self._descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                self._write_direct(bool(_DIRECT))
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # `remove_leftovers` leaves it alone
            except OSError:
                self._refuse(_CANNOT_WRITE)

    @property
    def is_endless(self) -> bool:
        """Whether it is too large even to be waited for to its end: nobody would read its refusal."""
        return self.came_bytes > 4 * self._most_bytes

    def write(self, fragment: memoryview) -> None:
        """Take the next bytes of the data set."""
        size = len(fragment)
        self.came_bytes += size
        if self.came_bytes > self._most_bytes and self.refusal is None:
            self._refuse(StoreResponse(OUT_OF_RESOURCES, f"Larger than {self._most_bytes // 2**20} MiB, the limit of this node"))
        filled = self._filled + size
        if filled < _GATHERED_BYTES and self.refusal is None:
            self._gathered[self._filled : filled] = fragment
            self._filled = filled
            self.size_bytes += size
            return
        while fragment and self.refusal is None:
            taken = fragment[: _GATHERED_BYTES - self._filled]
            self._gathered[self._filled : self._filled + len(taken)] = taken
            self._filled += len(taken)
            self.size_bytes += len(taken)
            fragment = fragment[len(taken) :]
            if self._filled == _GATHERED_BYTES:
                self._flush()

    def finish(self) -> None:
        """Write the last bytes; `digest`, the file and `refusal` are final from here on."""
        if self.refusal is None:
            self._flush()
            self.digest = str(self._content)

    def discard(self) -> None:
        """Close, and remove the file unless it has been moved to where it is kept."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
            self.path.unlink(missing_ok=True)
        if self._gathered:
            _spare_buffers.append(self._gathered)
            self._gathered = memoryview(b"")

    def _flush(self) -> None:
        is_first = self._written == 0
        if is_first:
            self._unwrap()
        gathered, self._filled = self._gathered[: self._filled], 0
        if is_first:
            self.beginning = bytes(gathered[:_BEGINNING_BYTES])
        try:
            self._content.update(gathered[self.offset :] if is_first else gathered)
            self._write(gathered)
        except OSError:
            self._refuse(_CANNOT_WRITE)
            return
        if self._written - self._hinted >= _BETWEEN_HINTS and not self._is_direct:
            self._start_sync()
        if self.size_bytes >= self._check_at:  # no sender fills the disk with one endless data set
            self._check_at += _BETWEEN_SPACE_CHECKS
            if not self._disk_space.is_available():
                self._refuse(_DISK_FULL)

    def _unwrap(self) -> None:
        """Drop preamble and file meta information of a whole file that was sent as the data set.

        Some routers do so. A file of another transfer syntax than was negotiated is left as it is, and can't be parsed.
        """
        if bytes(self._gathered[self.offset + 128 : self.offset + 132]) != b"DICM":
            return
        found = file_in(bytes(self._gathered[self.offset : self._filled]), 0)
        if found is not None and found[1] in ("", self.transfer_syntax_uid):
            rest = bytes(self._gathered[self.offset + found[0] : self._filled])
            self._filled = self.offset + len(rest)
            self._gathered[self.offset : self._filled] = rest
            self.size_bytes -= found[0]

    def _start_sync(self) -> None:
        """Let the disk write what the cache has while the rest arrives: the fsync at the end then waits a quarter less.

        Small files gain nothing by it: the call itself may wait for the disk's queue. Linux alone has it; elsewhere, or if
        it fails, nothing is lost but time.
        """
        if hasattr(_C, "sync_file_range"):
            begin, length = ctypes.c_int64(self._hinted), ctypes.c_int64(0)  # 0: to the end of the file
            _C.sync_file_range(self._descriptor, begin, length, _SYNC_FILE_RANGE_WRITE)
        self._hinted = self._written

    def _write(self, content: memoryview) -> None:
        self._written += len(content)
        while content:
            portion = content[: len(content) // _BLOCK_BYTES * _BLOCK_BYTES] if self._is_direct else content
            try:
                written = os.write(self._descriptor, portion) if portion else 0
            except OSError as error:
                if error.errno != errno.EINVAL or not self._is_direct:
                    raise
                written = 0  # its blocks are larger, or other
            if written == 0:
                self._write_direct(False)
            content = content[written:]

    def _write_direct(self, is_direct: bool) -> None:
        """From here on write past the system's cache, or through it.

        The cache would take a copy and its pages for what nobody reads soon: 15.5 MB take 18 ms of processor time so, and 26
        ms through the cache (`benchmarks.receive --parts`). Where a filesystem will have none of it, and for the end of a file,
        which is no whole block, the cache is used.
        """
        try:
            fcntl.fcntl(self._descriptor, fcntl.F_SETFL, _DIRECT if is_direct else 0)
            self._is_direct = is_direct
        except OSError:
            self._is_direct = False

    def _refuse(self, answer: StoreResponse) -> None:
        self.refusal = answer
        self.discard()


def _take_buffer() -> memoryview:
    try:
        return _spare_buffers.pop()
    except IndexError:
        # of whole pages, as writing past the cache asks for
        return memoryview(mmap.mmap(-1, _GATHERED_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))


def file_meta(sop_class_uid: str, sop_instance_uid: str, transfer_syntax_uid: str, calling_ae_title: str) -> bytes:
    """Preamble, prefix and file meta information (PS3.10 section 7.1), Explicit VR Little Endian.

    Written by hand because pydicom takes half a millisecond of the interpreter lock for it, for each instance.
    """
    elements = b"".join(
        (
            struct.pack("<HH2sHL2s", 0x0002, 0x0001, b"OB", 0, 2, b"\x00\x01"),
            _element(0x0002, b"UI", sop_class_uid, b"\x00"),
            _element(0x0003, b"UI", sop_instance_uid, b"\x00"),
            _element(0x0010, b"UI", transfer_syntax_uid, b"\x00"),
            _element(0x0012, b"UI", PYNETDICOM_IMPLEMENTATION_UID, b"\x00"),
            _element(0x0016, b"AE", calling_ae_title, b" "),
        )
    )
    return b"\x00" * 128 + b"DICM" + struct.pack("<HH2sHL", 0x0002, 0x0000, b"UL", 4, len(elements)) + elements


def _element(number: int, vr: bytes, text: str, padding: bytes) -> bytes:
    value = text.encode("ascii", "replace")
    value += padding * (len(value) % 2)
    return struct.pack("<HH2sH", 0x0002, number, vr, len(value)) + value
