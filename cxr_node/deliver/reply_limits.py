"""Limits on the responses of a called peer: length, pace and number of its PDUs and messages.

pynetdicom reads a PDU of any length, for as long as that takes, and assembles any messages. A real destination responds with
short PDUs; a compromised one, or another service at its address, may send anything.
"""

from __future__ import annotations

import socket
import struct
import time
from typing import TYPE_CHECKING, Any

from pynetdicom.dimse_primitives import C_ECHO

from cxr_node.dicom.association_items import BrokenRequest

if TYPE_CHECKING:
    from collections.abc import Callable

    from pynetdicom.association import Association
    from pynetdicom.dul import DULServiceProvider
    from pynetdicom.pdu_primitives import P_DATA

LONGEST_PDU_BYTES = 262144
"""Twice what the node tells its peers is the longest that it takes (PS3.8 annex D.1)."""
LONGEST_COMMAND_BYTES, LONGEST_DATA_SET_BYTES = 65536, 1024 * 1024
"""Of a message that comes back: a response, or a report of storage commitment."""
MOST_UNREAD_MESSAGES = 64
SLOWEST_BYTES_PER_S = 4096
_PDV_OVERHEAD_BYTES = 6
"""Counted for each PDV, so that those without data come to an end too."""
_P_DATA_TF, _A_RELEASE_RQ, _PDU_TYPES = 0x04, 0x05, range(0x01, 0x08)
_COMMAND, _LAST = 0x01, 0x02
_CHUNK_BYTES = 65536
_MOST_DISCARDED_BYTES = 16 * 1024 * 1024
_ABORT_REQUESTED, _CONNECTION_CLOSED, _INVALID_PDU = "Evt15", "Evt17", "Evt19"
_ABORTED = "Sta13"
"""The peer has been sent an abort. There is nothing left to abort: the standard has no such event here (PS3.8 table 9-10)."""


class Excess(Exception):  # noqa: N818 - becomes the state machine's "invalid PDU"
    """The peer sends more than an answer needs."""


def guard_messages(assoc: Association, on_excess: Callable[[str], None]) -> None:
    """Have an association aborted at once by a message that pynetdicom can't decode.

    Otherwise its thread dies or ignores the message, and the request that waits for the response ends only with its timeout. That
    request then asks for an abort too, which pynetdicom's state machine does not expect after the first.

    Args:
        assoc: an association that is being requested.
        on_excess: called with a description of what the peer did.
    """
    dul, dimse = assoc.dul, assoc.dimse
    receive, state_machine = dimse.receive_primitive, dul.state_machine
    act = state_machine.do_action

    def guarded(primitive: P_DATA) -> None:
        try:
            receive(primitive)
        except Exception:  # whatever broken bytes lead it to
            dul.event_queue.put(_INVALID_PDU)
        if _INVALID_PDU in dul.event_queue.queue:
            on_excess("a message that can't be read")
            dimse.msg_queue.put((None, None))

    def do_action(event: str) -> None:
        if event == _ABORT_REQUESTED and state_machine.current_state == _ABORTED:
            dul.to_provider_queue.get(block=False)  # else it would be looked at for ever
        else:
            act(event)

    dimse.receive_primitive = guarded  # type: ignore[method-assign]
    state_machine.do_action = do_action  # type: ignore[method-assign]


def leave_responses(assoc: Association, is_repeated: Callable[[Any], bool] = lambda _: False) -> None:
    """Give a request the response that it waits for, and no other.

    pynetdicom pauses the association's own thread for the length of a request. But one that the machine lets rest between two
    steps says that it is paused, and then looks for messages once more: on a busy machine a response is lost in this way now and
    then, and the request ends with its timeout.

    A request of pynetdicom also takes whatever lies there for its response, such as the second of two that a peer sent to the
    request before: an object would count as sent that the peer goes on to refuse.

    And it takes a C-ECHO request of the peer for its response. Some peers ask whether we are still there before they answer; that
    is answered here.

    Args:
        assoc: an association that is being requested.
        is_repeated: whether a message responds to an earlier request, which had its response; such messages are skipped.
    """
    checkpoint, take = assoc._reactor_checkpoint, assoc.dimse.get_msg

    def get_msg(block: bool = False) -> tuple[Any, Any]:
        if not block:
            return take() if checkpoint.is_set() else (None, None)  # not set: a request has begun
        usual_s = assoc.dimse_timeout
        ends_at = None if usual_s is None else time.monotonic() + usual_s
        try:
            while True:
                context_id, message = take(block)
                if isinstance(message, C_ECHO) and message.is_valid_request and context_id is not None:
                    _answer_echo(assoc, message, context_id)
                elif message is None or not is_repeated(message):
                    return context_id, message
                if ends_at is not None:  # no longer than for a single message
                    assoc.dimse_timeout = max(0.0, ends_at - time.monotonic())
        finally:
            assoc.dimse_timeout = usual_s

    assoc.dimse.get_msg = get_msg  # type: ignore[method-assign]


def _answer_echo(assoc: Association, request: C_ECHO, context_id: int) -> None:
    response = C_ECHO()
    response.MessageIDBeingRespondedTo = request.MessageID
    response.AffectedSOPClassUID = request.AffectedSOPClassUID
    response.Status = 0x0000
    assoc.dimse.send_msg(response, context_id)


class BoundedReader:
    """Reads PDUs in place of pynetdicom's upper layer.

    Args:
        assoc: an association that is being requested.
        timeout_s: how long a PDU may take, and more with all that has come of it.
        on_excess: called with a description of what the peer did.
    """

    def __init__(self, assoc: Association, timeout_s: float, on_excess: Callable[[str], None]) -> None:
        self._assoc = assoc
        self._dul: DULServiceProvider = assoc.dul
        self._timeout_s = timeout_s
        self._on_excess = on_excess
        self._command_bytes = self._data_set_bytes = 0
        self._discarded_bytes = 0
        self._is_out_of_step = False

    def read_pdu(self) -> None:
        """Read one PDU, and have it decoded; what can't be read is an event of the state machine (PS3.8 table 9-10)."""
        connection = self._dul.socket.socket if self._dul.socket else None
        if connection is None:
            self._dul.event_queue.put(_CONNECTION_CLOSED)
            return
        if self._is_out_of_step:
            self._discard(connection)
            return
        try:
            head = self._read(connection, 6)
            pdu_type, length = struct.unpack(">BxL", head)
            if pdu_type not in _PDU_TYPES:
                raise Excess(f"a PDU of the unknown type 0x{pdu_type:02X}")
            if length > LONGEST_PDU_BYTES:
                raise Excess(f"a PDU of {length} bytes")
            content = head + self._read(connection, length)
            if pdu_type == _P_DATA_TF:
                self._count(content)
            pdu, event = self._dul._decode_pdu(content)
            if pdu_type == _A_RELEASE_RQ:  # a request that waits for its response waits in vain
                self._assoc.dimse.msg_queue.put((None, None))
        except (OSError, EOFError):
            self._dul.event_queue.put(_CONNECTION_CLOSED)
        except Exception as error:  # pynetdicom's decoder raises whatever broken bytes lead it to
            self._on_excess(str(error) if isinstance(error, Excess | BrokenRequest) else "a PDU that can't be read")
            self._is_out_of_step = True
            self._dul.event_queue.put(_INVALID_PDU)
        else:
            self._dul.event_queue.put(event)
            self._dul._recv_pdu.put(pdu)

    def _read(self, connection: socket.socket, size: int) -> bytearray:
        """So many bytes, in time.

        Raises:
            EOFError, OSError: the connection has ended, or the peer is too slow.
        """
        ends_at = time.monotonic() + self._timeout_s
        usual_s = connection.gettimeout()
        content = bytearray()
        try:
            while len(content) < size:
                left_s = ends_at - time.monotonic() + len(content) / SLOWEST_BYTES_PER_S
                if left_s <= 0:
                    raise TimeoutError("the peer is too slow")
                connection.settimeout(min(left_s, self._timeout_s))
                received = connection.recv(min(_CHUNK_BYTES, size - len(content)))
                if not received:
                    raise EOFError("closed by the peer")
                content += received
        finally:
            connection.settimeout(usual_s)
        return content

    def _count(self, pdu: bytearray) -> None:
        """Add up what the message under way has come to.

        Raises:
            Excess: it is too much, or too many wait to be read.
        """
        at = 6
        while at + _PDV_OVERHEAD_BYTES <= len(pdu):
            length, _, control = struct.unpack_from(">LBB", pdu, at)
            at += 4 + length
            size = length + _PDV_OVERHEAD_BYTES
            if control & _COMMAND:
                self._command_bytes += size
            else:
                self._data_set_bytes += size
            if self._command_bytes > LONGEST_COMMAND_BYTES or self._data_set_bytes > LONGEST_DATA_SET_BYTES:
                raise Excess("a message longer than any response")
            if control & _LAST:
                self._command_bytes, self._data_set_bytes = (0, self._data_set_bytes) if control & _COMMAND else (0, 0)
        if self._assoc.dimse.msg_queue.qsize() > MOST_UNREAD_MESSAGES:
            raise Excess("unsolicited messages")

    def _discard(self, connection: socket.socket) -> None:
        """Take in what comes after an invalid PDU, so that the peer may read the abort that answers it; but no end of it."""
        try:
            discarded = len(connection.recv(_CHUNK_BYTES))
        except OSError:
            discarded = 0
        self._discarded_bytes += discarded
        if discarded == 0 or self._discarded_bytes > _MOST_DISCARDED_BYTES:
            self._dul.event_queue.put(_CONNECTION_CLOSED)
