"""pynetdicom's acceptor without its polling: fragments of a data set go from the socket to the disk.

pynetdicom's own loops (3.0) read the socket 4,096 bytes at a time, copy each fragment five times between their layers,
and wake two threads of every association a thousand times a second. Here, once an association is established:

- its upper-layer thread sleeps in the kernel until the peer sends something;
- what has arrived is read at once, several PDUs of it; fragments of a C-STORE data set go on to an `IncomingDataSet`;
- a complete C-STORE or C-ECHO request is served in that same thread, so no response waits for another thread's turn.

A C-STORE of 2.1 MB then takes 5.1 ms of processor time, and 9.1 ms with stock pynetdicom (`benchmarks.receive --parts`).

pynetdicom still handles negotiation, release, abort, the state machine, and every other message. PDUs with harmless deviations,
over which it would end the association, are normalised first (`association_items`). Its notification events for incoming PDUs and
messages (EVT_PDU_RECV, EVT_DIMSE_RECV) don't fire for messages that are served here.

Over 300 lines: the two ends of pynetdicom's loop, the thread and the socket, belong together.
"""

from __future__ import annotations

import queue
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, cast

import structlog
from pynetdicom import evt
from pynetdicom.ae import ApplicationEntity
from pynetdicom.association import Association
from pynetdicom.dul import DULServiceProvider
from pynetdicom.pdu import A_ABORT_RQ
from pynetdicom.pdu import P_DATA_TF as P_DATA_TF_PDU
from pynetdicom.pdu_primitives import P_DATA
from pynetdicom.presentation import PresentationContext
from pynetdicom.transport import RequestHandler, ThreadedAssociationServer

from cxr_node.dicom import association_items
from cxr_node.dicom.association_items import BrokenRequest
from cxr_node.dicom.tls import Identity, Listener, tls_error_text, tls_identity_of
from cxr_node.logs import exception_text as explain_error
from cxr_node.peer_address import plain_address, site_of
from cxr_node.receive.intake.admission import TRANSFER_SYNTAXES
from cxr_node.receive.intake.c_store import Intake
from cxr_node.receive.transport.limiter import TransferDeadline
from cxr_node.receive.transport.messages import ABORTED, IDLE_S, LAST, Malformed, Messages, sender_of
from cxr_node.receive.transport.processes import AssociationLimiter
from cxr_node.receive.transport.reader import LONGEST_PORTION, P_DATA_TF, ExactReader, Reader
from cxr_node.receive.transport.response_watchdog import ResponseWatchdog
from cxr_node.records import Sender

log = structlog.get_logger()

_LONGEST_OTHER_BYTES = association_items.LONGEST_REQUEST_BYTES - 6
"""Release and abort PDUs have 4 bytes, association requests some thousand."""
_MOST_DISCARDED_BYTES = 16 * 1024 * 1024
"""What is read and discarded from a peer that continues to send after an invalid PDU; then its connection is closed."""
_PREFERENCE = {syntax.encode(): place for place, syntax in enumerate(TRANSFER_SYNTAXES)}
"""Of what a presentation context offers the first in this order is taken."""
_PDU_TYPES = range(0x01, 0x08)
_A_ASSOCIATE_RQ, _A_ABORT = 0x01, 0x07
_LONGEST_SILENCE_S = 60.0
_LEAST_IDLE_S = 2.0
"""The least idle time of an association that is ended for another; within it a storage commitment report follows the
request that came over the association."""
A_ABORT = struct.pack(">BBLBBBB", 0x07, 0, 4, 0, 0, 2, 0)
"""Of the service provider, no reason given (PS3.8 section 9.3.8)."""
_BEFORE_REQUEST = ("Sta1", "Sta2")
_PDU_NAMES = {1: "A-ASSOCIATE-RQ", 2: "A-ASSOCIATE-AC", 3: "A-ASSOCIATE-RJ", 4: "P-DATA-TF", 5: "A-RELEASE-RQ", 6: "A-RELEASE-RP"}
_BY_PROVIDER = 0x02
"""Source of an A-ABORT with which the state machine answers a PDU that it didn't expect (PS3.8 table 9-26)."""
_DATA_TRANSFER, _ENDED = "Sta6", "Sta13"
_CONNECTION_CLOSED, _INVALID_PDU = "Evt17", "Evt19"


class Server(ThreadedAssociationServer):
    """Creates an association with the loops of this module for each given connection; it does not listen itself.

    Args:
        ae: the application entity.
        address: where the node listens, as associations tell of it.
        evt_handlers: pynetdicom's events and what they call.
        intake: where data sets go.
        limiter: admits each association, and is notified when a connection that was taken ends.
        on_refused: called with the peer of a refused association and the reason.
        on_failure: called with the sender of a refused C-STORE and the reason.
        on_breach: called with a peer, what becomes of what it sends (its association is aborted, its request refused), and why.
        tls: for connections over TLS.
        peer_of: who an address counts as (`Settings.peer_of`).
    """

    daemon_threads = True

    def __init__(
        self,
        ae: ApplicationEntity,
        address: tuple[str, int],
        evt_handlers: list[evt.EventHandlerType],
        *,
        intake: Intake,
        limiter: AssociationLimiter,
        on_refused: Callable[[Sender, str], None],
        on_failure: Callable[[Sender, str], None] = lambda *_: None,
        on_breach: Callable[[Sender, str, str], None] = lambda *_: None,
        tls: Listener | None = None,
        peer_of: Callable[[str], str] = site_of,
    ) -> None:
        self.intake = intake
        self.peer_of = peer_of
        self.watchdog = ResponseWatchdog()
        self.on_refused = on_refused
        self.on_failure, self.on_breach = on_failure, on_breach
        self.loops: dict[object, _UpperLayer] = {}
        self.limiter = limiter
        self.numbers: dict[object, int] = {}
        self._there: dict[object, str] = {}
        self.tls = tls
        self.to_shake_hands: set[object] = set()
        self._choosing = threading.Lock()
        super().__init__(ae, address, ae.ae_title, _Shared(ae.supported_contexts), None, evt_handlers, request_handler=_Handler)
        cast("socket.socket", self.socket).close()  # TCPServer makes one for listening

    def take(self, number: int, connection: socket.socket, host: str, *, over_tls: bool = False) -> None:
        """Begin an association.

        Args:
            number: of the connection, for the limiter.
            connection: one that was accepted; it is closed when the association ends.
            host: the address that it comes from.
            over_tls: it begins with a TLS handshake.
        """
        try:
            address = connection.getpeername()
        except OSError:  # the peer has gone again
            self.shutdown_request(connection)
            self.limiter.ended(number)
            return
        address = (plain_address(str(address[0])), *address[1:])  # the association, and all that is said of it, has this one
        self._there[address], self.numbers[address] = host, number
        if over_tls:
            self.to_shake_hands.add(address)
        self.process_request(connection, address)

    def end_longest_idle(self, host: str) -> bool:
        """Of the associations of an address, end the one that has been idle for longest; False if none is idle."""
        with self._choosing:
            peer = self.peer_of(host)
            loops = [loop for address, loop in list(self.loops.items()) if self.peer_of(self._there.get(address, "")) == peer]
            longest = max(loops, key=_UpperLayer.idle_s, default=None)
            if longest is None or longest.idle_s() < _LEAST_IDLE_S:
                return False
            longest.end_idle()
            return True

    def server_bind(self) -> None:
        """Nothing: it doesn't listen."""

    server_activate = server_bind

    def is_over(self, address: object) -> None:
        """A connection is over; said twice, it counts once."""
        self.loops.pop(address, None)
        self._there.pop(address, None)
        number = self.numbers.pop(address, None)
        if number is not None:
            self.limiter.ended(number)

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
                server.on_refused(Sender("", "", self.client_address[0]), f"TLS: {tls_error_text(error)}")
                server.shutdown_request(self.request)
                server.is_over(self.client_address)
                return
        super().handle()

    def _create_association(self) -> Association:
        connection = cast("socket.socket", self.request)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # a peer that reads no response would block its thread forever
        connection.settimeout(self.ae.network_timeout)
        assoc = super()._create_association()
        server = cast("Server", self.server)
        ended = _WhenBothHave(partial(server.is_over, self.client_address))
        loop = _UpperLayer(assoc, ended)
        loop.socket = assoc.dul.socket
        loop.number = server.numbers.get(self.client_address, 0)
        loop.connection = connection
        loop.identity = tls_identity_of(connection)
        loop.event_queue = assoc.dul.event_queue  # the transport connection's indication waits in it
        assoc.dul = loop
        server.loops[self.client_address] = loop
        assoc.dimse = Messages(assoc, server.intake, server.watchdog, server.on_failure, server.on_breach)
        assoc.acse_timeout = self.ae.acse_timeout  # these two set the timers of the new loop
        assoc.network_timeout = self.ae.network_timeout
        assoc.run = partial(_run, assoc, ended)  # type: ignore[method-assign]
        return assoc


class _WhenBothHave:
    """Calls a function once both threads of an association have ended: its slot isn't free before."""

    def __init__(self, then: Callable[[], None]) -> None:
        self._then = then
        self._left = 2
        self._lock = threading.Lock()

    def __call__(self) -> None:
        """One of them has."""
        with self._lock:
            self._left -= 1
            is_over = self._left == 0
        if is_over:
            self._then()


def _run(assoc: Association, ended: _WhenBothHave) -> None:
    """The association's own thread: an error in pynetdicom ends the association, not only the thread."""
    try:
        assoc.run_reactor()
    except Exception as error:
        _server_of(assoc).on_refused(_stranger(assoc), f"its association request is not understood: {explain_error(error)}")
        assoc.abort()
    finally:
        if assoc.dul.ident is None:  # its other thread could not be started
            ended()
        ended()


def _server_of(assoc: Association) -> Server:
    return cast("Server", assoc._server)


def _stranger(assoc: Association) -> Sender:
    """A peer that has connected and has not given an AE title."""
    return Sender("", "", str(assoc.requestor.address))


def _peer_of(assoc: Association) -> Sender:
    """The peer, with its AE title if its request has been looked at."""
    return _stranger(assoc) if assoc.requestor.primitive is None else sender_of(assoc)


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
        self.number = 0
        self.to_user_queue = _ToUser(assoc)
        self._ended = ended
        self._pace = TransferDeadline(assoc.network_timeout or _LONGEST_SILENCE_S)
        self._reader: Reader | None = None
        self._is_out_of_step = False
        self._last_pdu = 0
        self._discarded_bytes = 0
        self._is_ending = False
        self._odd_ids: dict[int, int] = {}
        """Which odd presentation context ID stands here for an even one of the peer's; empty for most peers."""
        self._even_ids: dict[int, int] = {}

    @property
    def _host(self) -> str:
        return str(self.assoc.requestor.address)

    def _may_log(self, what: str) -> bool:
        return _server_of(self.assoc).intake.may_log(self._host, what)

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

    def end_idle(self) -> None:
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
            # the association's thread may still wait for a request, for a peer that only connected: half a minute otherwise
            cast("Any", self.to_user_queue).put(None)
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
            self._read_pdu(ExactReader(connection, self._pace), None)

    def _read_pdu(self, reader: ExactReader, messages: Messages | None) -> None:
        """Read one PDU; what isn't P-DATA-TF becomes an event of the state machine (PS3.8 table 9-10)."""
        try:
            if messages is not None and (pdv := reader.read_one_pdv()):
                context_id, control, fragment = pdv
                messages.receive(self._odd_id(context_id), control, fragment)
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
            # who only connects, as a health check does, leaves no line; nor who closes after the association has ended
            state = self.state_machine.current_state
            is_told = state != _ENDED and (state not in _BEFORE_REQUEST or reader.has_received())
            if is_told and self._may_log("connection lost"):
                log.info("connection lost", reason=str(error), host=self._host)
            self.event_queue.put(_CONNECTION_CLOSED)
        except Exception as error:
            reason = str(error) if isinstance(error, Malformed | BrokenRequest) else explain_error(error)
            if self.state_machine.current_state in _BEFORE_REQUEST:
                _server_of(self.assoc).on_refused(_stranger(self.assoc), f"it sends no association request: {reason}")
            else:
                _server_of(self.assoc).on_breach(_peer_of(self.assoc), ABORTED, reason)
            self._is_out_of_step = True
            self.event_queue.put(_INVALID_PDU)

    def _odd_id(self, context_id: int) -> int:
        """The presentation context ID by which a context of the peer's is known here."""
        if not self._odd_ids:
            return context_id
        if context_id in self._even_ids:
            raise Malformed(f"presentation context {context_id} was not proposed")
        return self._odd_ids.get(context_id, context_id)

    def send_from_another_thread(self, primitives: list[P_DATA]) -> None:
        """Send from another thread, while this one is stuck between two PDUs."""
        for primitive in primitives:
            self._send(P_DATA_TF_PDU(primitive))

    def cut_off(self) -> None:
        """From another thread: abort, and close the connection."""
        connection = self.connection
        if connection is not None:
            log.warning("association aborted: a response takes too long", calling_ae_title=self._title(), host=self._host)
            with suppress(OSError):
                connection.sendall(A_ABORT)
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _send(self, pdu: Any) -> None:
        is_abort = isinstance(pdu, A_ABORT_RQ) and pdu.source == _BY_PROVIDER
        if is_abort and not self._is_out_of_step:
            self._is_out_of_step = True  # the reason is said once
            _server_of(self.assoc).on_breach(
                _peer_of(self.assoc), ABORTED, f"{_PDU_NAMES.get(self._last_pdu, 'PDU')} out of turn"
            )
        if not self._even_ids or self.socket is None:
            super()._send(pdu)
        else:
            self.socket.send(association_items.with_ids(pdu.encode(), self._even_ids))

    def _take_pdu(self, content: bytes) -> None:
        """Have pynetdicom decode a PDU that isn't P-DATA-TF."""
        self._last_pdu = content[0]
        is_told = content[0] == _A_ABORT and self.assoc.requestor.primitive is not None
        if is_told and self._may_log("association aborted by the peer"):
            log.info("association aborted by the peer", calling_ae_title=self._title(), host=self._host)
        if content[0] == _A_ASSOCIATE_RQ:
            content, self._odd_ids = association_items.with_odd_ids(content)
            self._even_ids = {odd: even for even, odd in self._odd_ids.items()}
        tidied = association_items.normalise(content, _PREFERENCE)
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

    def _read_p_data(self, reader: ExactReader, messages: Messages, length: int) -> None:
        """Hand on the PDVs of a P-DATA-TF PDU (PS3.8 section 9.3.5), in portions."""
        if not length:
            messages.count_piece()
        while length:
            if length < 6:
                raise Malformed("a PDV item that doesn't fit its PDU")
            item_length, context_id, control = struct.unpack(">LBB", reader.read(6))
            context_id = self._odd_id(context_id)
            remaining, length = item_length - 2, length - 4 - item_length
            if remaining < 0 or length < 0:
                raise Malformed("a PDV item that doesn't fit its PDU")
            while remaining > LONGEST_PORTION:
                remaining -= LONGEST_PORTION
                messages.receive(context_id, control & ~LAST, reader.read(LONGEST_PORTION))
            messages.receive(context_id, control, reader.read(remaining))


def has_free_slot(assoc: Association, *, has_proven: bool) -> bool:
    """Whether a requested association gets a slot; an idle one of the same address may end for it.

    Args:
        assoc: the association.
        has_proven: its sender has shown a certificate or passcode.
    """
    server, number = _server_of(assoc), cast("_UpperLayer", assoc.dul).number
    if server.limiter.admit(number, has_proven=has_proven):
        return True
    return server.end_longest_idle(str(assoc.requestor.address)) and server.limiter.admit(number, in_anothers_place=True)
