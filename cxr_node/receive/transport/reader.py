"""Reads bytes from a connection, plain or TLS, within the time that the peer's limit allows."""

from __future__ import annotations

import select
import socket
import struct
from ssl import SSLSocket

from cxr_node.receive.transport.limiter import TransferDeadline

_BUFFER_BYTES = 1024 * 1024
LONGEST_PORTION = 262144
"""Bytes that are read at once; longer than any PDU that keeps to what was negotiated."""
P_DATA_TF = 0x04
"""The PDU type of data (PS3.8 section 9.3.5)."""
_ONE_PDV = struct.Struct(">BxLLBB")
"""PDU type and length, the length of its first item, presentation context, message control header (PS3.8 section 9.3.5)."""


class ExactReader:
    """Reads exactly the requested bytes of a connection, because another reader may continue."""

    def __init__(self, connection: socket.socket, pace: TransferDeadline) -> None:
        self._connection = connection
        self._pace = pace
        self._has_received = False

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

    def read_one_pdv(self) -> tuple[int, int, memoryview] | None:
        """None: there is no read-ahead; see `Reader`."""
        return None

    def has_received(self) -> bool:
        """Whether anything has come over the connection since this was asked last."""
        has_received, self._has_received = self._has_received, False
        return has_received

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
        self._has_received = True
        return received


class Reader(ExactReader):
    """Reads a connection through a buffer of several PDUs.

    Each call of the system gives up the interpreter lock, and with several associations it is long before it comes back:
    what has arrived is taken at once.
    """

    def __init__(self, connection: socket.socket, pace: TransferDeadline) -> None:
        super().__init__(connection, pace)
        self._buffer = memoryview(bytearray(_BUFFER_BYTES))
        self._begin = self._end = 0
        self._poll = select.poll()
        self._poll.register(connection, select.POLLIN)

    def is_ready(self, timeout_s: float) -> bool:
        """Whether there is something to read, or the connection has ended, within the time."""
        if self._begin < self._end:
            return True
        # the kernel does not know of data that TLS has read ahead and decrypted
        if isinstance(self._connection, SSLSocket) and self._connection.pending() > 0:
            return True
        return bool(self._poll.poll(timeout_s * 1000))

    def read_one_pdv(self) -> tuple[int, int, memoryview] | None:
        """The next PDU, if it is a P-DATA-TF PDU of a single PDV, and its beginning has been read already.

        Data sets come in such PDUs, nearly without exception. Otherwise nothing is taken from the buffer.

        Returns:
            the presentation context, the message control header, and the fragment, which is valid until the next call.

        Raises:
            EOFError, OSError: the connection has ended, or the peer is too slow.
        """
        if self._end - self._begin < _ONE_PDV.size:
            return None
        pdu_type, pdu_length, item_length, context_id, control = _ONE_PDV.unpack_from(self._buffer, self._begin)
        if pdu_type != P_DATA_TF or pdu_length != 4 + item_length or not 2 <= item_length <= LONGEST_PORTION:
            return None
        self._begin += _ONE_PDV.size
        return context_id, control, self.read(item_length - 2)

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
