"""The service class user: C-ECHO and C-STORE over an association. The only module of the sending side that imports pynetdicom.

Files are sent as they are on disk, undecoded. Callers decide what to send and when to retry.

Over 300 lines: pynetdicom's quirks stay in one file.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path

from pydicom import dcmread
from pydicom.dataset import Dataset
from pynetdicom import AE, _config, evt
from pynetdicom.association import Association as PynetdicomAssociation
from pynetdicom.dimse_messages import C_ECHO_RQ, N_EVENT_REPORT_RQ
from pynetdicom.pdu_primitives import A_ABORT, A_ASSOCIATE, A_P_ABORT
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from cxr_node.deliver import reasons
from cxr_node.deliver.addresses import Address, addresses_of, has_answered
from cxr_node.deliver.contexts import LITTLE_ENDIAN, LOSSLESS, convertible, extended_negotiation, presentation_contexts
from cxr_node.deliver.reply_limits import BoundedReader, guard_messages, leave_responses
from cxr_node.deliver.request import Offer, Peer, StoreOutcome, StoreRequest, unusable
from cxr_node.dicom import association_items
from cxr_node.errors import AssociationLost, DeliveryError, SettingsError

_config.STORE_SEND_CHUNKED_DATASET = True  # a path given to send_c_store is sent as it lies on disk
_config.LOG_HANDLER_LEVEL = "none"  # its log lines fail over odd values, and are thrown away anyhow

_MAXIMUM_PDU = 131072
_LONGEST_CONNECT_S = 10.0
_LONGEST_RELEASE_S = 5.0
_STORE, _ECHO, _ACTION, _EVENT_REPORT = 0x0001, 0x0030, 0x0130, 0x0100
_RESPONSE = 0x8000
"""Command Field of requests, and the bit that a response has besides (PS3.7 annex E)."""
_LAST_MESSAGE_ID = 65535
_SLOWEST_LINK = 64 * 1024  # bytes/s: the time to send an object, in addition to the peer's response time


class Association:
    """An association to a peer, from the request that `__init__` makes until `release` or `abort`.

    Verification is always proposed beside what is offered. An uncompressed object is offered in both VR encodings.
    """

    def __init__(
        self,
        peer: Peer,
        offers: Iterable[Offer] = (),
        *,
        as_scp_of: Iterable[str] = (),
        on_event_report: Callable[[evt.Event], int] | None = None,
    ) -> None:
        """Associate, at the first of the peer's addresses where that succeeds.

        Args:
            peer: with whom; `self.peer` then is where it was found.
            offers: what will be sent.
            as_scp_of: SOP classes of which we are the provider, although we ask for the association (PS3.7 D.3.3.4).
            on_event_report: answers an N-EVENT-REPORT of the peer with a status, in another thread.

        Raises:
            DeliveryError: there is no association; the text says why and what to do about it.
        """
        self.peer = peer
        self._offers = frozenset(offers)
        self._socket: socket.socket | None = None
        self._assoc: PynetdicomAssociation
        self._connected = False
        self._abort: A_ABORT | A_P_ABORT | None = None
        self._excess = ""
        self._messages = 0
        self._response: Dataset | None = None
        self._owes_nothing = threading.Event()  # no report of the peer's waits for its response
        self._owes_nothing.set()
        self._response_is_next = False
        self._handlers: list[tuple[evt.EventType, Callable[[evt.Event], None]]] = [
            (evt.EVT_ACSE_SENT, self._on_acse_sent),
            (evt.EVT_ACSE_RECV, self._on_acse_received),
            (evt.EVT_CONN_OPEN, self._on_connected),
            (evt.EVT_DATA_SENT, self._on_data_sent),
            (evt.EVT_DIMSE_RECV, self._on_message),
        ]
        self._takes_reports = on_event_report is not None
        if on_event_report is not None:
            self._handlers.append((evt.EVT_N_EVENT_REPORT, partial(self._on_event_report, on_event_report)))  # type: ignore[arg-type]
        addresses, unknown = addresses_of(peer)
        failed = [reasons.not_connected(peer.at(host), error, 0) for host, error in unknown.items()]
        is_alone = len(addresses) + len(unknown) == 1
        for address in addresses:
            self.peer = peer if is_alone else peer.at(address.host)
            if why := self._associate(address, as_scp_of):
                failed.append(why if is_alone or address.ip == address.host else f"{why} ({address.ip})")
                continue
            has_answered(peer, address)
            return
        raise DeliveryError(failed[0] if is_alone else reasons.no_address_answers(peer, failed))

    def _associate(self, address: Address, as_scp_of: Iterable[str]) -> str:
        """Request the association at an address; return why it failed, empty if it is established."""
        peer = self.peer
        self._socket, self._connected, self._abort, self._excess = None, False, None, ""
        ae = AE(peer.calling_ae_title)
        ae.acse_timeout = ae.dimse_timeout = peer.timeout_s
        ae.connection_timeout = min(peer.timeout_s, _LONGEST_CONNECT_S)
        ae.network_timeout = None  # that would end idle associations; waits are bounded by the others
        try:
            tls_args = (peer.tls.context(), peer.tls.name or address.host) if peer.tls else None
            ext_neg = extended_negotiation(peer, as_scp_of)
        except SettingsError as error:
            raise DeliveryError(str(error)) from error
        started = time.monotonic()
        try:
            self._assoc = ae.associate(
                address.ip,
                peer.port,
                presentation_contexts(self._offers),
                ae_title=peer.called_ae_title,
                max_pdu=_MAXIMUM_PDU,
                ext_neg=ext_neg,  # type: ignore[arg-type]  # likewise
                evt_handlers=self._handlers,  # type: ignore[arg-type]  # narrower than pynetdicom's own alias
                tls_args=tls_args,
            )
        except OSError as error:
            return reasons.not_connected(peer, error, 0)
        if self._assoc.is_established:
            return ""
        self._close()
        return self._why_not_established(address, time.monotonic() - started)

    @property
    def is_open(self) -> bool:
        """Whether it is established, as far as known: a peer may have disappeared unnoticed."""
        return bool(self._assoc.is_established)

    def offered(self, offers: Iterable[Offer]) -> bool:
        """Whether all these were proposed when it was requested."""
        return self._offers.issuperset(offers)

    def accepts(self, offer: Offer) -> bool:
        """Whether the peer accepts such an object, as it is or in the other VR encoding."""
        return self._way_for(offer) is not None

    def refusal(self, offer: Offer) -> str:
        """Why such an object can't be sent."""
        classes = {context.abstract_syntax for context in self._assoc.accepted_contexts}
        return reasons.refused(self.peer, *offer, class_accepted=offer[0] in classes)

    def echo(self) -> None:
        """C-ECHO.

        Raises:
            DeliveryError: the peer doesn't take Verification, answers with a failure, or not at all.
        """
        if Verification not in [context.abstract_syntax for context in self._assoc.accepted_contexts]:
            raise DeliveryError(f"{self.peer} doesn't accept Verification (C-ECHO).")
        status = self._answer(_ECHO, self._assoc.send_c_echo, self.peer.timeout_s)
        if status.Status != 0:
            raise DeliveryError(f"{self.peer} responds to C-ECHO with status 0x{status.Status:04X}.")

    def store(self, request: StoreRequest) -> StoreOutcome:
        """C-STORE a file and wait for the response.

        Raises:
            AssociationLost: it ended before the response.
            DeliveryError: no response came in time; the association is aborted.
        """
        if request.instead is None and (error := unusable(request)):
            return StoreOutcome(None, error, unusable=True)
        as_transfer_syntax = self._way_for(request.offer)
        if as_transfer_syntax is None:
            return StoreOutcome(None, self.refusal(request.offer))
        instance: Path | Dataset = request.path if request.instead is None else request.instead
        if request.instead is None and as_transfer_syntax != request.transfer_syntax_uid:
            instance = dcmread(request.path)  # pynetdicom re-encodes it for the accepted context
            if request.transfer_syntax_uid in LOSSLESS:
                instance.decompress(generate_instance_uid=False)  # the same pixels, so the same instance
        timeout_s = self.peer.timeout_s + request.path.stat().st_size / _SLOWEST_LINK
        response = self._answer(_STORE, partial(self._assoc.send_c_store, instance), timeout_s)
        status = int(response.Status)
        comment = str(response.get("ErrorComment", ""))
        if StoreOutcome(status).warned:
            warning, for_log = (reasons.warned(self.peer, status, said) for said in (comment, ""))
            return StoreOutcome(status, warning=warning, for_log=for_log)
        if status == 0:
            return StoreOutcome(status)
        error, for_log = (reasons.not_stored(self.peer, status, said) for said in (comment, ""))
        return StoreOutcome(status, error, for_log=for_log)

    def action(self, sop_class_uid: str, sop_instance_uid: str, action_type: int, ds: Dataset) -> int:
        """N-ACTION; the status of the response.

        Raises:
            AssociationLost, DeliveryError: see `store`.
        """

        def send(message_id: int) -> Dataset:
            return self._assoc.send_n_action(ds, action_type, sop_class_uid, sop_instance_uid, message_id)[0]

        return int(self._answer(_ACTION, send, self.peer.timeout_s).Status)

    def event_report(self, sop_class_uid: str, sop_instance_uid: str, event_type: int, ds: Dataset) -> int:
        """N-EVENT-REPORT; the status of the response.

        Raises:
            AssociationLost, DeliveryError: see `store`.
        """

        def send(message_id: int) -> Dataset:
            return self._assoc.send_n_event_report(ds, event_type, sop_class_uid, sop_instance_uid, message_id)[0]

        return int(self._answer(_EVENT_REPORT, send, self.peer.timeout_s).Status)

    def release(self) -> None:
        """Release it after answering the peer's reports; abort it if the peer doesn't answer soon."""
        if self.is_open:  # pynetdicom itself doesn't wait: the response would come after the release, and end in an error
            self._owes_nothing.wait(_LONGEST_RELEASE_S)
        self._assoc.acse_timeout = min(self.peer.timeout_s, _LONGEST_RELEASE_S)
        self._assoc.release()
        self._close()

    def abort(self) -> None:
        """End it at once."""
        self._assoc.abort()
        self._close()

    def hang_up(self) -> None:
        """Cut the connection under a request of another thread, which then loses the association."""
        if self._socket is not None:
            with suppress(OSError):  # it is closed already
                self._socket.shutdown(socket.SHUT_RDWR)

    def _answer(self, request: int, send: Callable[[int], Dataset], timeout_s: float) -> Dataset:
        self._assoc.dimse_timeout = timeout_s
        self._messages = self._messages % _LAST_MESSAGE_ID + 1
        self._response = None  # only now: what still comes to the request before has an earlier message ID
        started = time.monotonic()
        try:
            response = send(self._messages)
        except RuntimeError as error:  # pynetdicom's word for "no longer established": nothing was sent
            raise AssociationLost(reasons.lost(self.peer)) from error
        except Exception:  # possibly in the middle of a message, so nothing else can be sent over it
            self.abort()
            raise
        wrong = self._what_is_wrong(request, response)
        if "Status" in response and not wrong:
            return response
        self.abort()
        if self._excess:
            raise AssociationLost(reasons.not_dicom(self.peer, self._excess), unanswered=True)
        if wrong:
            raise DeliveryError(reasons.wrong_response(self.peer, wrong), unanswered=True)
        waited_s = time.monotonic() - started
        if waited_s >= timeout_s:
            raise DeliveryError(reasons.unanswered(self.peer, waited_s), unanswered=True)
        raise AssociationLost(reasons.lost(self.peer), unanswered=True)

    def _what_is_wrong(self, request: int, response: Dataset) -> str:
        """Why what came last is no response to the last request; empty if it is one, or nothing came."""
        command = self._response
        if command is None:
            return "a message from before it" if "Status" in response else ""
        if command.get("CommandField") != request | _RESPONSE:
            return f"a message of type 0x{command.get('CommandField') or 0:04X}"
        answered = command.get("MessageIDBeingRespondedTo")
        if answered != self._messages:
            return "no message ID" if answered is None else f"the message ID {answered} instead of {self._messages}"
        return "" if "Status" in response else "no status"

    def _way_for(self, offer: Offer) -> str | None:
        """The transfer syntax in which such an object can be sent, its own if possible."""
        sop_class_uid, transfer_syntax_uid = offer
        accepted = {
            context.transfer_syntax[0]
            for context in self._assoc.accepted_contexts
            if context.abstract_syntax == sop_class_uid and context.transfer_syntax
        }
        if transfer_syntax_uid in accepted:
            return transfer_syntax_uid
        if convertible(transfer_syntax_uid):
            return next((syntax for syntax in LITTLE_ENDIAN if syntax in accepted), None)
        return None

    def _why_not_established(self, address: Address, waited_s: float) -> str:
        answer = self._assoc.acceptor.primitive or self._unread_rejection()
        if not self._connected:
            return reasons.not_connected(self.peer, _why_not_connected(self.peer, address, waited_s), waited_s)
        if self._excess:
            return reasons.not_dicom(self.peer, self._excess)
        if answer is not None and answer.result != 0:
            return reasons.rejected(self.peer, answer.result_source or 0, answer.diagnostic or 0)
        if answer is not None:
            return reasons.nothing_accepted(self.peer)
        if isinstance(self._abort, A_ABORT):
            return reasons.aborted(self.peer)
        if isinstance(self._abort, A_P_ABORT):
            return reasons.hung_up(self.peer)
        return reasons.silent(self.peer)

    def _unread_rejection(self) -> A_ASSOCIATE | None:
        """A rejection that pynetdicom didn't look at; an abort goes to `_on_acse_received`.

        On a busy machine the peer may have answered and closed the connection before pynetdicom checks that it is connected, and
        then takes it for one that never was.
        """
        rejection: A_ASSOCIATE | None = None
        while (unread := self._assoc.dul.receive_pdu()) is not None:
            if isinstance(unread, A_ASSOCIATE) and unread.result != 0:
                rejection = unread
        return rejection

    def _close(self) -> None:
        """Close the connection once pynetdicom's thread has ended: it does not close it if the peer did first."""
        self._assoc.dul.join(_LONGEST_RELEASE_S)
        if self._socket is not None:
            self._socket.close()

    def _on_acse_sent(self, event: evt.Event) -> None:
        if self._socket is None:  # the association request, before pynetdicom connects
            dul = event.assoc.dul
            decode = dul._decode_pdu
            reader = BoundedReader(event.assoc, self.peer.timeout_s, self._on_excess)
            dul._read_pdu_data = reader.read_pdu  # type: ignore[method-assign]
            guard_messages(event.assoc, self._on_excess)
            leave_responses(event.assoc, lambda message: self._is_repeated(getattr(message, "MessageIDBeingRespondedTo", None)))
            dul._decode_pdu = lambda bytestream: decode(bytearray(association_items.normalise(bytes(bytestream))))  # type: ignore[method-assign]
            connection: socket.socket = event.assoc.dul.socket.socket  # type: ignore[union-attr,assignment]
            # without it the last piece of an object waits some 40 ms for the acknowledgement of the piece before
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._socket = connection

    def _on_excess(self, what: str) -> None:
        self._excess = what

    def _on_acse_received(self, event: evt.Event) -> None:
        primitive = getattr(event, "primitive", None)
        if isinstance(primitive, A_ABORT | A_P_ABORT):
            self._abort = primitive

    def _on_connected(self, event: evt.Event) -> None:
        self._connected = True
        self._socket = event.assoc.dul.socket.socket  # type: ignore[union-attr]  # TLS has wrapped the one that there was
        if self._socket is not None:  # without it a peer that stops reading blocks pynetdicom's thread forever
            self._socket.settimeout(self.peer.timeout_s)

    def _on_message(self, event: evt.Event) -> None:
        if isinstance(event.message, C_ECHO_RQ):  # the peer asks whether we are there: see `leave_responses`
            return
        if not isinstance(event.message, N_EVENT_REPORT_RQ):
            command = event.message.command_set
            if self._response is None and not self._is_repeated(command.get("MessageIDBeingRespondedTo")):
                self._response = command
        elif self._takes_reports:
            self._owes_nothing.clear()

    def _is_repeated(self, message_id: int | None) -> bool:
        """Whether a message with this Message ID Being Responded To is one more response to an earlier request."""
        return message_id is not None and 0 < message_id < self._messages

    def _on_event_report(self, answer: Callable[[evt.Event], int], event: evt.Event) -> tuple[int, None]:
        try:
            return answer(event), None
        finally:
            self._response_is_next = True

    def _on_data_sent(self, _: evt.Event) -> None:
        """Note that a response is sent, and have the kernel acknowledge the first part of the peer's response at once.

        Programs based on dcmtk, such as Orthanc, write header and body of a response separately, and send the second only after
        the acknowledgement of the first, which the kernel delays by 40 ms. The kernel resets this option: set it after each send.
        """
        if self._response_is_next:
            self._response_is_next = False
            self._owes_nothing.set()
        if self._socket is not None and hasattr(socket, "TCP_QUICKACK"):  # Linux
            with suppress(OSError):  # the connection is closed already
                self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)


def echo(host: str, port: int, called_ae_title: str, calling_ae_title: str, timeout_s: float) -> None:
    """C-ECHO a peer.

    Raises:
        DeliveryError: it doesn't answer as it should; the text says why and what to do about it.
    """
    association = Association(Peer(host, port, called_ae_title, calling_ae_title, timeout_s))
    try:
        association.echo()
    finally:
        association.release()


def _why_not_connected(peer: Peer, address: Address, waited_s: float) -> OSError | None:
    """Connect without DICOM to get the system's error, which pynetdicom only logs; None: it would time out again."""
    timeout_s = min(peer.timeout_s, _LONGEST_CONNECT_S)
    if waited_s >= timeout_s:
        return None
    try:
        with socket.create_connection((address.ip, peer.port), timeout_s) as connection:
            if peer.tls is not None:
                with peer.tls.context().wrap_socket(connection, server_hostname=peer.tls.name or address.host):
                    pass
    except OSError as error:
        return error
    return OSError("it was refused a moment ago; now the port is open")
