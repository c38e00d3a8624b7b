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
from socketserver import BaseServer
from ssl import SSLSocket
from typing import Any, cast

import structlog
from pynetdicom import evt
from pynetdicom.ae import ApplicationEntity
from pynetdicom.association import Association
from pynetdicom.dul import DULServiceProvider
from pynetdicom.presentation import PresentationContext
from pynetdicom.transport import RequestHandler, ThreadedAssociationServer

from cxr_node.receive.intake import Intake
from cxr_node.receive.messages import IDLE_S, LAST, Malformed, Messages
from cxr_node.tls import Identity, Listener, explain, identity_of

log = structlog.get_logger()

_BUFFER_BYTES = 262144
_LONGEST_OTHER_BYTES = 65536
"""Release and abort PDUs have 4 bytes."""
_P_DATA_TF = 0x04
_DATA_TRANSFER, _CONNECTION_CLOSED, _INVALID_PDU = "Sta6", "Evt17", "Evt19"


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
        evt_handlers: list[evt.EventHandlerType],
        *,
        intake: Intake,
        tls: Listener | None = None,
    ) -> None:
        self.intake = intake
        self.tls = tls
        super().__init__(ae, address, ae_title, contexts, None, evt_handlers, request_handler=_Handler)

    def shutdown(self) -> None:
        """Accept no more connections. Associations that there are go on."""
        BaseServer.shutdown(self)  # pynetdicom's own expects a server that AE.start_server made
        self.server_close()


class _Handler(RequestHandler):
    def handle(self) -> None:
        """Begin an association; with TLS, after its handshake, which takes place here, in the connection's own thread."""
        tls = cast("Server", self.server).tls
        if tls is not None:
            try:
                self.request.settimeout(self.ae.acse_timeout)  # for the handshake as a whole
                self.request = tls.context.wrap_socket(self.request, server_side=True)
            except OSError as error:
                log.warning("TLS refused", host=self.client_address[0], reason=explain(error))
                self.server.shutdown_request(self.request)
                return
        super().handle()

    def _create_association(self) -> Association:
        connection = cast("socket.socket", self.request)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # a peer that stops in the middle of a PDU would hold its thread for ever
        connection.settimeout(self.ae.network_timeout)
        assoc = super()._create_association()
        loop = _UpperLayer(assoc)
        loop.socket = assoc.dul.socket
        loop.identity = identity_of(connection)
        loop.event_queue = assoc.dul.event_queue  # the transport connection's indication waits in it
        assoc.dul = loop
        assoc.dimse = Messages(assoc, cast("Server", self.server).intake)
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
        self.identity = Identity()
        self.to_user_queue = _ToUser(assoc)
        self._buffer = memoryview(bytearray(_BUFFER_BYTES))
        self._poll: select.poll | None = None

    def run_reactor(self) -> None:
        """Run until the association ends, and remove what it leaves unfinished."""
        try:
            super().run_reactor()
        finally:
            cast("Messages", self.assoc.dimse).discard()
            # the association's thread may still wait for a request, for a peer that only knocked: half a minute otherwise
            self.to_user_queue.put(None)

    def _is_transport_event(self) -> bool:
        connection = self.socket.socket if self.socket else None
        if self.state_machine.current_state != _DATA_TRANSFER or connection is None:
            return super()._is_transport_event()
        if self._poll is None:
            self._poll = select.poll()
            self._poll.register(connection, select.POLLIN)
        # what TLS has read and decrypted beyond what was asked for, the kernel knows nothing of
        is_pending = isinstance(connection, SSLSocket) and connection.pending() > 0
        if not is_pending and not self._poll.poll(IDLE_S * 1000):
            return False
        messages = cast("Messages", self.assoc.dimse)
        while True:  # to the end of a data set, since pynetdicom's loop sleeps after each turn
            self._read_pdu(connection, messages)
            self._idle_timer.restart()
            if not messages.is_receiving or not self.event_queue.empty() or not self.to_provider_queue.empty():
                break
        self._process_recv_primitive()  # the response, or our abort
        return True

    def _read_pdu(self, connection: socket.socket, messages: Messages) -> None:
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

    def _read_p_data(self, connection: socket.socket, messages: Messages, length: int) -> None:
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
                messages.receive(context_id, control & ~LAST, self._read(connection, len(self._buffer)))
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
