"""Reads bytes off a connection, plain or TLS, for no longer than its peer's pace allows."""

from __future__ import annotations

import select
import socket
from ssl import SSLSocket

from cxr_node.receive.guard import Pace

_BUFFER_BYTES = 1024 * 1024
LONGEST_PORTION = 262144
"""Bytes that are read at once; longer than any PDU that keeps to what was negotiated."""


class Exactly:
    """Reads a connection, and nothing beyond what is asked for: what comes next may be another's to read."""

    def __init__(self, connection: socket.socket, pace: Pace) -> None:
        self._connection = connection
        self._pace = pace

    def read(self, size: int) -> memoryview:
        """The next `size` bytes.

        Raises:
            EOFError, OSError: the connection has ended, or the peer is too slow.
        """
        content = memoryview(bytearray(size))
        filled = 0
        while filled < size:
            filled += self._receive(content[filled:])
        return content

    def _receive(self, into: memoryview) -> int:
        timeout_s, left_s = self._connection.gettimeout(), self._pace.left_s()
        is_short = timeout_s is None or left_s < timeout_s
        if is_short:  # seldom: setting it is a call of the system
            self._connection.settimeout(left_s)
        received = self._connection.recv_into(into)
        if is_short:
            self._connection.settimeout(timeout_s)
        if not received:
            raise EOFError("closed by the peer")
        self._pace.has_sent(received)
        return received


class Reader(Exactly):
    """Reads a connection through a buffer of several PDUs.

    Each call of the system gives up the interpreter lock, and with several associations it is long before it comes back:
    what has arrived is taken at once.
    """

    def __init__(self, connection: socket.socket, pace: Pace) -> None:
        super().__init__(connection, pace)
        self._buffer = memoryview(bytearray(_BUFFER_BYTES))
        self._begin = self._end = 0
        self._poll = select.poll()
        self._poll.register(connection, select.POLLIN)

    def is_ready(self, timeout_s: float) -> bool:
        """Whether there is something to read, or the connection has ended, within the time."""
        if self._begin < self._end:
            return True
        # what TLS has read and decrypted beyond what was asked for, the kernel knows nothing of
        if isinstance(self._connection, SSLSocket) and self._connection.pending() > 0:
            return True
        return bool(self._poll.poll(timeout_s * 1000))

    def read(self, size: int) -> memoryview:
        """The next `size` bytes, at most LONGEST_PORTION; valid until the next call.

        Raises:
            EOFError, OSError: the connection has ended, or the peer is too slow.
        """
        if self._begin + size > len(self._buffer):
            rest = self._end - self._begin
            self._buffer[:rest] = bytes(self._buffer[self._begin : self._end])
            self._begin, self._end = 0, rest
        while self._end - self._begin < size:
            self._end += self._receive(self._buffer[self._end :])
        portion = self._buffer[self._begin : self._begin + size]
        self._begin += size
        if self._begin == self._end:
            self._begin = self._end = 0
        return portion
