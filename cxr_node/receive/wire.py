"""pynetdicom's acceptor without its polling: fragments of a data set go from the socket to the disk.

pynetdicom's own loops (3.0) read the socket 4,096 bytes at a time, copy each fragment five times between their layers,
and wake two threads of every association a thousand times a second. Here, once an association is established:

- its upper-layer thread sleeps in the kernel until the peer sends something;
- fragments of a C-STORE data set are read into one buffer and handed from there to an `IncomingDataSet`;
- a complete C-STORE or C-ECHO request is served in that same thread, so no response waits for another thread's turn.

Negotiation, release, abort, the state machine, and every other message stay pynetdicom's. Its notification events for
incoming PDUs and messages (EVT_PDU_RECV, EVT_DIMSE_RECV) don't fire for what is served here.
"""

from __future__ import annotations

import queue
import select
import socket
import struct
from io import BytesIO
from socketserver import BaseServer
from ssl import SSLContext
from typing import Any, cast

import structlog
from pynetdicom import evt
from pynetdicom.ae import ApplicationEntity
from pynetdicom.association import Association
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dimse_messages import DIMSEMessage
from pynetdicom.dimse_primitives import C_CANCEL, C_ECHO
from pynetdicom.dul import DULServiceProvider
from pynetdicom.pdu_primitives import A_ASSOCIATE, P_DATA
from pynetdicom.presentation import PresentationContext
from pynetdicom.service_class import VerificationServiceClass
from pynetdicom.transport import RequestHandler, ThreadedAssociationServer

from cxr_node.receive.command import StoreRequest, read_store_request, write_store_response
from cxr_node.receive.incoming import IncomingDataSet
from cxr_node.receive.intake import Intake
from cxr_node.records import Sender

log = structlog.get_logger()

MAXIMUM_PDU_SIZE = 131072
"""What senders are told; dcmtk sends no longer ones. Longer PDUs are read all the same."""

_BUFFER_BYTES = 262144
_LONGEST_OTHER_BYTES = 65536
"""Release and abort PDUs have 4 bytes."""
_LONGEST_COMMAND_BYTES = 65536
_LONGEST_MESSAGE_BYTES = 16 * 1024 * 1024
"""The data set of a message that is put together in memory (no C-STORE)."""
_IDLE_S = 0.1
"""How often a thread with nothing to do looks whether it should end."""
_P_DATA_TF = 0x04
_DATA_TRANSFER, _CONNECTION_CLOSED, _INVALID_PDU = "Sta6", "Evt17", "Evt19"
_COMMAND, _LAST = 0x01, 0x02
"""Bits of the message control header (PS3.8 section E.2)."""


class Malformed(Exception):  # noqa: N818 - becomes the state machine's "invalid PDU"
    """The peer broke the upper layer protocol or the message exchange; the association is aborted."""


class Server(ThreadedAssociationServer):
    """Listens, and gives every association the loops of this module."""

    request_queue_size = 128
    daemon_threads = True

    def __init__(
        self,
        ae: ApplicationEntity,
        address: tuple[str, int],
        ae_title: str,
        contexts: list[PresentationContext],
        ssl_context: SSLContext | None,
        evt_handlers: list[evt.EventHandlerType],
        *,
        intake: Intake,
    ) -> None:
        self.intake = intake
        super().__init__(ae, address, ae_title, contexts, ssl_context, evt_handlers, request_handler=_Handler)

    def shutdown(self) -> None:
        """Accept no more connections. Associations that there are go on."""
        BaseServer.shutdown(self)  # pynetdicom's own expects a server that AE.start_server made
        self.server_close()


class _Handler(RequestHandler):
    def _create_association(self) -> Association:
        connection = cast("socket.socket", self.request)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # a peer that stops in the middle of a PDU would hold its thread for ever
        connection.settimeout(self.ae.network_timeout)
        assoc = super()._create_association()
        loop = _UpperLayer(assoc)
        loop.socket = assoc.dul.socket
        loop.event_queue = assoc.dul.event_queue  # the transport connection's indication waits in it
        assoc.dul = loop
        assoc.dimse = _Messages(assoc, cast("Server", self.server).intake)
        assoc.acse_timeout = self.ae.acse_timeout  # these two set the timers of the new loop
        assoc.network_timeout = self.ae.network_timeout
        return assoc


class _ToUser(queue.Queue):  # type: ignore[type-arg]
    """Primitives for the association's thread; it waits on its message queue, and is woken there."""

    def __init__(self, assoc: Association) -> None:
        super().__init__()
        self._assoc = assoc

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        super().put(item, block, timeout)
        self._assoc.dimse.msg_queue.put((None, None))


class _UpperLayer(DULServiceProvider):
    """The upper-layer thread: waits for the socket in the kernel, reads P-DATA-TF PDUs without copying them."""

    def __init__(self, assoc: Association) -> None:
        super().__init__(assoc)
        self.to_user_queue = _ToUser(assoc)
        self._buffer = memoryview(bytearray(_BUFFER_BYTES))
        self._poll: select.poll | None = None

    def run_reactor(self) -> None:
        """Run until the association ends, and remove what it leaves unfinished."""
        try:
            super().run_reactor()
        finally:
            cast("_Messages", self.assoc.dimse).discard()

    def _is_transport_event(self) -> bool:
        connection = self.socket.socket if self.socket else None
        if self.state_machine.current_state != _DATA_TRANSFER or connection is None:
            return super()._is_transport_event()
        if self._poll is None:
            self._poll = select.poll()
            self._poll.register(connection, select.POLLIN)
        if not self._poll.poll(_IDLE_S * 1000):
            return False
        messages = cast("_Messages", self.assoc.dimse)
        while True:  # to the end of a data set, since pynetdicom's loop sleeps after each turn
            self._read_pdu(connection, messages)
            self._idle_timer.restart()
            if not messages.is_receiving or not self.event_queue.empty() or not self.to_provider_queue.empty():
                break
        self._process_recv_primitive()  # the response, or our abort
        return True

    def _read_pdu(self, connection: socket.socket, messages: _Messages) -> None:
        """Read one PDU; what isn't P-DATA-TF becomes an event of the state machine (PS3.8 table 9-10)."""
        try:
            pdu_type, length = struct.unpack(">BxL", self._read(connection, 6))
            if pdu_type == _P_DATA_TF:
                self._read_p_data(connection, messages, length)
            elif length <= _LONGEST_OTHER_BYTES:
                self._read(connection, length, after=6)
                pdu, event = self._decode_pdu(bytearray(self._buffer[: 6 + length]))
                self.event_queue.put(event)
                self._recv_pdu.put(pdu)
            else:
                raise Malformed(f"PDU of type {pdu_type} with {length} bytes")
        except (OSError, EOFError) as error:
            log.info("connection lost", reason=str(error), host=self.assoc.requestor.address)
            self.event_queue.put(_CONNECTION_CLOSED)
        except Exception as error:
            log.warning("invalid PDU or message", reason=repr(error), host=self.assoc.requestor.address)
            self.event_queue.put(_INVALID_PDU)

    def _read_p_data(self, connection: socket.socket, messages: _Messages, length: int) -> None:
        """Hand on the PDVs of a P-DATA-TF PDU (PS3.8 section 9.3.5), in pieces of at most the buffer."""
        while length:
            if length < 6:
                raise Malformed("a PDV item that doesn't fit its PDU")
            item_length, context_id, control = struct.unpack(">LBB", self._read(connection, 6))
            length -= 4 + item_length
            remaining = item_length - 2
            if remaining < 0 or length < 0:
                raise Malformed("a PDV item that doesn't fit its PDU")
            while remaining > len(self._buffer):
                remaining -= len(self._buffer)
                messages.receive(context_id, control & ~_LAST, self._read(connection, len(self._buffer)))
            messages.receive(context_id, control, self._read(connection, remaining))

    def _read(self, connection: socket.socket, size: int, after: int = 0) -> memoryview:
        """The next `size` bytes, in the buffer from `after` on; valid until the next call."""
        view = self._buffer[after : after + size]
        filled = 0
        while filled < size:
            received = connection.recv_into(view[filled:])
            if not received:
                raise EOFError("closed by the peer")
            filled += received
        return view


class _Messages(DIMSEServiceProvider):
    """Puts messages together from their fragments; serves C-STORE and C-ECHO in the upper-layer thread."""

    def __init__(self, assoc: Association, intake: Intake) -> None:
        super().__init__(assoc)
        self._intake = intake
        self._command = bytearray()
        self._request: StoreRequest | None = None
        self._incoming: IncomingDataSet | None = None

    @property
    def is_receiving(self) -> bool:
        """Whether fragments of a data set are still to come."""
        return self._incoming is not None

    def get_msg(self, block: bool = False) -> Any:
        """What the association's thread polls for: waits until there is something, or for a moment."""
        try:
            return self.msg_queue.get(timeout=_IDLE_S)
        except queue.Empty:
            return None, None

    def discard(self) -> None:
        """Forget the data set that was being received when the association ended."""
        if self._incoming is not None:
            log.warning("transfer broken off", sop_instance_uid=self._incoming.sop_instance_uid)
            self._incoming.discard()
            self._incoming = None

    def receive(self, context_id: int, control: int, piece: memoryview) -> None:
        """Take a piece of a message.

        Args:
            context_id: of the presentation context.
            control: the message control header; its bit for the last fragment is set with the last piece alone.
            piece: valid only until this returns.
        """
        if control & _COMMAND:
            if self._incoming is not None or self.message is not None:
                raise Malformed("a command before the end of the data set")
            self._command += piece
            if len(self._command) > _LONGEST_COMMAND_BYTES:
                raise Malformed("an endless command")
            if control & _LAST:
                command, self._command = bytes(self._command), bytearray()
                self._begin(context_id, command)
        elif self._incoming is not None:
            self._incoming.write(piece)
            if control & _LAST:
                self._end(context_id)
        else:
            self._pass_on(context_id, control, bytes(piece))

    def _begin(self, context_id: int, command: bytes) -> None:
        self._request = read_store_request(command)
        if self._request is None:
            self._pass_on(context_id, _COMMAND | _LAST, command)
            return
        transfer_syntax = str(self._context(context_id).transfer_syntax[0])
        self._incoming = self._intake.begin(sender_of(self.assoc), self._request, transfer_syntax)
        if not self._request.has_data_set:
            self._end(context_id)

    def _end(self, context_id: int) -> None:
        request, incoming = cast("StoreRequest", self._request), cast("IncomingDataSet", self._incoming)
        try:
            answer = self._intake.end(incoming)
        finally:
            self._incoming = None
            incoming.discard()
        if self.assoc.is_established:
            self._send(context_id, write_store_response(request, answer))

    def _send(self, context_id: int, command: bytes) -> None:
        longest = (self.maximum_pdu_size or MAXIMUM_PDU_SIZE) - 6
        for at in range(0, len(command), longest):
            is_last = at + longest >= len(command)
            fragment = bytes((_COMMAND | _LAST if is_last else _COMMAND,)) + command[at : at + longest]
            self.dul.send_pdu(_p_data(context_id, fragment))

    def _pass_on(self, context_id: int, control: int, fragment: bytes) -> None:
        """Let pynetdicom put together what is no C-STORE request."""
        if self.message is None:
            self.message = DIMSEMessage()
        message = self.message
        if message.decode_msg(_p_data(context_id, bytes((control,)) + fragment), self.assoc):
            self.message = None
            request = message.message_to_primitive()
            if isinstance(request, C_ECHO) and request.is_valid_request:
                VerificationServiceClass(self.assoc).SCP(request, self._context(context_id))
            elif not isinstance(request, C_CANCEL):  # nothing served here takes long enough to be cancelled
                self.msg_queue.put((context_id, request))
        elif cast("BytesIO", message.data_set).tell() > _LONGEST_MESSAGE_BYTES:
            raise Malformed("an endless message")

    def _context(self, context_id: int) -> PresentationContext:
        for context in self.assoc.accepted_contexts:
            if context.context_id == context_id:
                return context
        raise Malformed(f"presentation context {context_id} was not accepted")


def _p_data(context_id: int, fragment: bytes) -> P_DATA:
    primitive = P_DATA()
    primitive.presentation_data_value_list = [[context_id, fragment]]  # type: ignore[list-item]
    return primitive


def sender_of(assoc: Association) -> Sender:
    """Who requested an association."""
    request = cast("A_ASSOCIATE", assoc.requestor.primitive)
    return Sender(
        calling_ae_title=str(request.calling_ae_title).strip(),
        called_ae_title=str(request.called_ae_title).strip(),
        host=str(assoc.requestor.address),
    )
