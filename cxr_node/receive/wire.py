"""pynetdicom's acceptor without its polling: fragments of a data set go from the socket to the disk.

pynetdicom's own loops (3.0) read the socket 4,096 bytes at a time, copy each fragment five times between their layers,
and wake two threads of every association a thousand times a second. Here, once an association is established:

- its upper-layer thread sleeps in the kernel until the peer sends something;
- what has arrived is read at once, several PDUs of it; fragments of a C-STORE data set go on to an `IncomingDataSet`;
- a complete C-STORE or C-ECHO request is served in that same thread, so no response waits for another thread's turn.

Negotiation, release, abort, the state machine, and every other message stay pynetdicom's; PDUs that it would end the
association over, though they say what they have to, are tidied before it sees them (`association_items`). Its notification
events for incoming PDUs and messages (EVT_PDU_RECV, EVT_DIMSE_RECV) don't fire for what is served here.

Over 300 lines: the two ends of pynetdicom's loop, the thread and the socket, belong together.
"""

from __future__ import annotations

import queue
import socket
import struct
import threading
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import structlog
from pynetdicom import evt
from pynetdicom.ae import ApplicationEntity
from pynetdicom.association import Association
from pynetdicom.dul import DULServiceProvider
from pynetdicom.presentation import PresentationContext
from pynetdicom.transport import RequestHandler, ThreadedAssociationServer

from cxr_node import association_items
from cxr_node.association_items import BrokenRequest
from cxr_node.logs import explain as explain_error
from cxr_node.receive.guard import Pace
from cxr_node.receive.intake import Intake
from cxr_node.receive.messages import IDLE_S, LAST, Malformed, Messages
from cxr_node.receive.reader import LONGEST_PORTION, P_DATA_TF, Exactly, Reader
from cxr_node.records import Sender
from cxr_node.tls import Identity, Listener, explain, identity_of

log = structlog.get_logger()

_LONGEST_OTHER_BYTES = 262144
"""Release and abort PDUs have 4 bytes, association requests some thousand."""
_MOST_DISCARDED_BYTES = 16 * 1024 * 1024
"""What is taken in from a peer that goes on sending after an invalid PDU; then its connection is closed."""
_PDU_TYPES = range(0x01, 0x08)
_A_ASSOCIATE_RQ = 0x01
_LONGEST_SILENCE_S = 60.0
_LEAST_IDLE_S = 2.0
"""An association that makes place for another has been idle so long; within it a report of storage commitment follows the
request that came over the association."""
_BEFORE_REQUEST = ("Sta1", "Sta2")
_DATA_TRANSFER = "Sta6"
_CONNECTION_CLOSED, _INVALID_PDU = "Evt17", "Evt19"


class Server(ThreadedAssociationServer):
    """Gives every connection that it is handed an association with the loops of this module; others listen for it.

    Args:
        ae: the application entity.
        address: where the node listens, as associations tell of it.
        evt_handlers: pynetdicom's events and what they call.
        intake: where data sets go.
        ended: called with its address, once for each connection that was taken, when it is over; from any thread.
        on_refused: hears who came to no association, and why.
        on_failure: hears whose C-STORE was refused, and why.
        tls: for connections over TLS.
    """

    daemon_threads = True

    def __init__(
        self,
        ae: ApplicationEntity,
        address: tuple[str, int],
        evt_handlers: list[evt.EventHandlerType],
        *,
        intake: Intake,
        ended: Callable[[str], None],
        on_refused: Callable[[Sender, str], None],
        on_failure: Callable[[Sender, str], None] = lambda *_: None,
        tls: Listener | None = None,
    ) -> None:
        self.intake = intake
        self.on_refused = on_refused
        self.on_failure = on_failure
        self.loops: dict[object, _UpperLayer] = {}
        self._ended = ended
        self._there: dict[object, str] = {}
        self.tls = tls
        self.to_shake_hands: set[object] = set()
        self.beyond_limit: set[object] = set()
        self._choosing = threading.Lock()
        super().__init__(ae, address, ae.ae_title, _Shared(ae.supported_contexts), None, evt_handlers, request_handler=_Handler)
        cast("socket.socket", self.socket).close()  # TCPServer makes one for listening

    def take(self, connection: socket.socket, host: str, *, over_tls: bool = False, is_beyond_limit: bool = False) -> None:
        """Begin an association.

        Args:
            connection: one that was accepted; it is closed when the association ends.
            host: the address that it comes from.
            over_tls: it begins with a TLS handshake.
            is_beyond_limit: there are too many already; see `is_beyond_limit`.
        """
        try:
            address = connection.getpeername()
        except OSError:  # the peer has gone again
            self.shutdown_request(connection)
            self._ended(host)
            return
        self._there[address] = host
        if over_tls:
            self.to_shake_hands.add(address)
        if is_beyond_limit:
            self.beyond_limit.add(address)
        self.process_request(connection, address)

    def end_longest_idle(self, host: str) -> bool:
        """Of the associations of an address, end the one that has been idle for longest; False if none is idle."""
        with self._choosing:
            loops = [loop for address, loop in list(self.loops.items()) if self._there.get(address) == host]
            longest = max(loops, key=_UpperLayer.idle_s, default=None)
            if longest is None or longest.idle_s() < _LEAST_IDLE_S:
                return False
            longest.end_for_another()
            return True

    def server_bind(self) -> None:
        """Nothing: it doesn't listen."""

    server_activate = server_bind

    def is_over(self, address: object) -> None:
        """A connection is over; said twice, it counts once."""
        self.loops.pop(address, None)
        host = self._there.pop(address, None)
        if host is not None:
            self._ended(host)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """No association could be begun, such as for want of threads."""
        log.exception("connection dropped", host=client_address[0])
        self.is_over(client_address)


class _Shared(list[PresentationContext]):
    """Presentation contexts that associations share; pynetdicom copies them for each, which takes up to 35 ms."""

    def __deepcopy__(self, _memo: dict[int, Any]) -> _Shared:
        return self  # an acceptor only reads them


class _Handler(RequestHandler):
    def handle(self) -> None:
        """Begin an association; with TLS, after its handshake, which takes place here, in the connection's own thread."""
        server = cast("Server", self.server)
        if server.tls is not None and self.client_address in server.to_shake_hands:
            server.to_shake_hands.discard(self.client_address)
            try:
                self.request.settimeout(self.ae.acse_timeout)  # for the handshake as a whole
                if not self.request.recv(1, socket.MSG_PEEK):  # a health check: it has closed again, and nothing is wrong
                    server.shutdown_request(self.request)
                    server.is_over(self.client_address)
                    return
                self.request = server.tls.context.wrap_socket(self.request, server_side=True)
            except OSError as error:
                server.on_refused(Sender("", "", self.client_address[0]), f"TLS: {explain(error)}")
                server.shutdown_request(self.request)
                server.is_over(self.client_address)
                return
        super().handle()

    def _create_association(self) -> Association:
        connection = cast("socket.socket", self.request)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # a peer that reads no response would hold its thread for ever
        connection.settimeout(self.ae.network_timeout)
        assoc = super()._create_association()
        server = cast("Server", self.server)
        loop = _UpperLayer(assoc, partial(server.is_over, self.client_address))
        loop.socket = assoc.dul.socket
        loop.is_beyond_limit = self.client_address in server.beyond_limit
        server.beyond_limit.discard(self.client_address)
        loop.connection = connection
        loop.identity = identity_of(connection)
        loop.event_queue = assoc.dul.event_queue  # the transport connection's indication waits in it
        assoc.dul = loop
        server.loops[self.client_address] = loop
        assoc.dimse = Messages(assoc, server.intake, server.on_failure)
        assoc.acse_timeout = self.ae.acse_timeout  # these two set the timers of the new loop
        assoc.network_timeout = self.ae.network_timeout
        assoc.run = partial(_run, assoc)  # type: ignore[method-assign]
        return assoc


def _run(assoc: Association) -> None:
    """The association's own thread: what pynetdicom makes nothing of ends the association, not that thread alone."""
    try:
        assoc.run_reactor()
    except Exception as error:
        _server_of(assoc).on_refused(_stranger(assoc), f"its association request is not understood: {explain_error(error)}")
        assoc.abort()


def _server_of(assoc: Association) -> Server:
    return cast("Server", assoc._server)


def _stranger(assoc: Association) -> Sender:
    """Who has connected and hasn't said his name."""
    return Sender("", "", str(assoc.requestor.address))


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

    def __init__(self, assoc: Association, ended: Callable[[], None]) -> None:
        super().__init__(assoc)
        self.connection: socket.socket | None = None
        self.identity = Identity()
        self.is_beyond_limit = False
        self.to_user_queue = _ToUser(assoc)
        self._ended = ended
        self._pace = Pace(assoc.network_timeout or _LONGEST_SILENCE_S)
        self._reader: Reader | None = None
        self._is_out_of_step = False
        self._discarded_bytes = 0
        self._is_ending = False

    @property
    def _host(self) -> str:
        return str(self.assoc.requestor.address)

    def idle_s(self) -> float:
        """How long nothing has come over the association; 0 if it has a message under way, or isn't established."""
        if self._is_ending or self.state_machine.current_state != _DATA_TRANSFER:
            return 0.0
        if not cast("Messages", self.assoc.dimse).is_idle:
            return 0.0
        return max(0.0, (self._idle_timer.timeout or 0.0) - self._idle_timer.remaining)

    def idle_timer_expired(self) -> bool:
        """Whether the peer has been silent for too long; pynetdicom then ends the association."""
        has_expired = super().idle_timer_expired()
        if has_expired and not self._is_ending:
            self._is_ending = True
            silent_s = round(self.assoc.network_timeout or 0)
            log.info("idle association ended", calling_ae_title=self._title(), host=self._host, silent_s=silent_s)
        return has_expired

    def end_for_another(self) -> None:
        """End the association, which is idle, because its peer asks for a new one and has no more of them."""
        idle_s = round(self.idle_s())
        self._is_ending = True
        log.info("idle association ended for a new one", calling_ae_title=self._title(), host=self._host, silent_s=idle_s)
        self.assoc.abort(block=False)

    def _title(self) -> str:
        request = self.assoc.requestor.primitive
        return str(request.calling_ae_title).strip() if request is not None else ""

    def run_reactor(self) -> None:
        """Run until the association ends, and remove what it leaves unfinished."""
        try:
            super().run_reactor()
        except Exception as error:  # pynetdicom's state machine, over a PDU with values that it doesn't know
            log.warning("association out of step", reason=explain_error(error), host=self._host)
            self.assoc.is_aborted, self.assoc.is_established, self.assoc._kill = True, False, True
        finally:
            cast("Messages", self.assoc.dimse).discard()
            # the association's thread may still wait for a request, for a peer that only knocked: half a minute otherwise
            self.to_user_queue.put(None)
            if self.connection is not None:  # pynetdicom leaves one open whose peer was the first to go
                self.connection.close()
            self._reader = None  # its buffer needn't wait for the garbage collector
            self._ended()

    def _is_transport_event(self) -> bool:
        connection = self.socket.socket if self.socket else None
        if self.state_machine.current_state != _DATA_TRANSFER or connection is None:
            return super()._is_transport_event()
        if self._reader is None:
            self._reader = Reader(connection, self._pace)
        if not self._reader.is_ready(IDLE_S):
            return False
        messages = cast("Messages", self.assoc.dimse)
        if messages.is_idle:
            self._pace.begin()
        while True:  # to the end of a data set, since pynetdicom's loop sleeps after each turn
            self._read_pdu(self._reader, messages)
            if self._reader.has_received():
                self._idle_timer.restart()
            if not messages.is_receiving or self.event_queue.queue or self.to_provider_queue.queue:
                break
        self._process_recv_primitive()  # the response, or our abort
        return True

    def _read_pdu_data(self) -> None:
        """Read a PDU outside of data transfer: pynetdicom's own takes any length, at any pace."""
        connection = self.socket.socket if self.socket else None
        if connection is not None and self._is_out_of_step:
            self._discard(connection)
        elif connection is not None:
            self._pace.begin()
            self._read_pdu(Exactly(connection, self._pace), None)

    def _read_pdu(self, reader: Exactly, messages: Messages | None) -> None:
        """Read one PDU; what isn't P-DATA-TF becomes an event of the state machine (PS3.8 table 9-10)."""
        try:
            if messages is not None and (pdv := reader.read_one_pdv()):
                messages.receive(*pdv)
                return
            head = bytes(reader.read(6))
            pdu_type, length = struct.unpack(">BxL", head)
            if pdu_type == P_DATA_TF and messages is not None:
                self._read_p_data(reader, messages, length)
            elif pdu_type in _PDU_TYPES and length <= _LONGEST_OTHER_BYTES:
                self._take_pdu(head + bytes(reader.read(length)))
            else:
                raise Malformed(f"PDU of type {pdu_type} with {length} bytes")
        except (OSError, EOFError) as error:
            # who only connects, as a health check does, leaves no line
            if self.state_machine.current_state not in _BEFORE_REQUEST or reader.has_received():
                log.info("connection lost", reason=str(error), host=self._host)
            self.event_queue.put(_CONNECTION_CLOSED)
        except Exception as error:
            reason = str(error) if isinstance(error, Malformed | BrokenRequest) else explain_error(error)
            if self.state_machine.current_state in _BEFORE_REQUEST:
                _server_of(self.assoc).on_refused(_stranger(self.assoc), f"it sends no association request: {reason}")
            else:
                log.warning("invalid PDU or message", reason=reason, host=self._host)
            self._is_out_of_step = True
            self.event_queue.put(_INVALID_PDU)

    def _take_pdu(self, content: bytes) -> None:
        """Have pynetdicom decode a PDU that isn't P-DATA-TF."""
        tidied = association_items.tidy(content)
        if content[0] == _A_ASSOCIATE_RQ and not association_items.speaks_our_version(content):
            called, calling = (tidied[at : at + 16].decode().strip() for at in (10, 26))
            version = int.from_bytes(content[6:8], "big")  # pynetdicom rejects it, as PS3.8 section 9.3.4 says
            reason = f"its protocol version is 0x{version:04X}: bit 0, for version 1, is not set"
            _server_of(self.assoc).on_refused(Sender(calling, called, self._host), reason)
        pdu, event = self._decode_pdu(bytearray(tidied))
        self.event_queue.put(event)
        self._recv_pdu.put(pdu)

    def _discard(self, connection: socket.socket) -> None:
        """Take in what comes after an invalid PDU: nobody knows any more where in it a PDU begins.

        It was answered with an abort, and the peer has the time of the ARTIM timer to close (PS3.8 section 9.2). Were it not
        taken in, closing would reset the connection, and the peer might never read the abort.
        """
        try:
            discarded = len(connection.recv(LONGEST_PORTION))
        except OSError:
            discarded = 0
        self._discarded_bytes += discarded
        if discarded == 0 or self._discarded_bytes > _MOST_DISCARDED_BYTES:
            self.event_queue.put(_CONNECTION_CLOSED)

    def _read_p_data(self, reader: Exactly, messages: Messages, length: int) -> None:
        """Hand on the PDVs of a P-DATA-TF PDU (PS3.8 section 9.3.5), in portions."""
        while length:
            if length < 6:
                raise Malformed("a PDV item that doesn't fit its PDU")
            item_length, context_id, control = struct.unpack(">LBB", reader.read(6))
            remaining, length = item_length - 2, length - 4 - item_length
            if remaining < 0 or length < 0:
                raise Malformed("a PDV item that doesn't fit its PDU")
            while remaining > LONGEST_PORTION:
                remaining -= LONGEST_PORTION
                messages.receive(context_id, control & ~LAST, reader.read(LONGEST_PORTION))
            messages.receive(context_id, control, reader.read(remaining))


def is_beyond_limit(assoc: Association) -> bool:
    """Whether an association that is asked for is one too many, and no idle one of the same address could end for it.

    Who only connects, as a health check does, ends none.
    """
    loop = cast("_UpperLayer", assoc.dul)
    return loop.is_beyond_limit and not _server_of(assoc).end_longest_idle(str(assoc.requestor.address))
