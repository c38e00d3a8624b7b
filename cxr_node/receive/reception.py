"""Associations in this process: a Storage and Verification SCP for connections that others accept."""

from __future__ import annotations

import contextlib
import socket
import sys
import time
from collections.abc import Callable

import structlog
from pynetdicom import AE, AllStoragePresentationContexts, _config, build_context, evt
from pynetdicom.association import Association
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from cxr_node.receive import commitment
from cxr_node.receive.admission import RADIOGRAPHS, RESULTS, TRANSFER_SYNTAXES, entries_of, may_be_storage_class, refusal_of
from cxr_node.receive.identity import confirm, identity_of, refusal_of_user
from cxr_node.receive.intake import Intake
from cxr_node.receive.messages import MAXIMUM_PDU_SIZE, sender_of
from cxr_node.receive.refused import Counts, Refused
from cxr_node.receive.wire import Server, is_beyond_limit
from cxr_node.records import Sender
from cxr_node.settings import Settings
from cxr_node.store.database import open_database
from cxr_node.tls import Listener

log = structlog.get_logger()

_LONGEST_KNOCK_S = 30.0
"""How long a peer that has connected may take for the TLS handshake, and again until it asks for an association."""
_GRACE_S = 5.0
"""How long associations may go on after the stop."""
_BY_USER, _BY_ACSE, _BY_PRESENTATION = 0x01, 0x02, 0x03
_PERMANENT, _TRANSIENT = 0x01, 0x02
_NO_REASON, _LOCAL_LIMIT = 0x01, 0x02
"""Source, result and reason of A-ASSOCIATE-RJ (PS3.8 table 9-21)."""


class Reception:
    """Takes connections until `end`.

    Args:
        settings: the settings tree.
        address: where the node listens, host and port.
        ended: called with its address, once for each connection that was taken, when it is over; from any thread.

    Raises:
        StoreError: the database can't be used.
        SettingsError: a file that [tls] names is missing or unfit.
    """

    def __init__(self, settings: Settings, address: tuple[str, int], ended: Callable[[str], None]) -> None:
        self._ae = _application_entity(settings)
        tls = Listener(settings.tls) if settings.tls.listen else None
        self._engine = open_database(settings)
        self._counts = Counts(self._engine)
        refused = Refused(self._engine, self._counts)
        handlers: list[evt.EventHandlerType] = [
            (evt.EVT_REQUESTED, _on_requested, [settings, refused]),
            *commitment.Commitment(settings, self._engine).handlers(),
        ]
        self._server = Server(
            self._ae,
            address,
            handlers,
            intake=Intake(settings, self._engine),
            ended=ended,
            on_refused=refused.record,
            on_failure=lambda sender, reason: self._counts.add("image", sender, reason),
            tls=tls,
        )

    def take(self, connection: socket.socket, host: str, *, over_tls: bool, is_beyond_limit: bool) -> None:
        """Begin an association, or refuse it because there are too many.

        Args:
            connection: one that was accepted.
            host: the address that it comes from.
            over_tls: it came to where the node speaks TLS.
            is_beyond_limit: it is one too many.
        """
        self._server.take(connection, host, over_tls=over_tls, is_beyond_limit=is_beyond_limit)

    def end(self) -> None:
        """Let associations end by themselves for a while, then abort them, then cut the connections of those that don't."""
        self._wait_until_none(_GRACE_S)
        for assoc in self._ae.active_associations:
            log.warning("association aborted at the stop", host=str(assoc.requestor.address))
            if assoc.is_established:
                assoc.abort(block=False)
            else:  # the peer has connected and asked for nothing
                _cut(assoc)
        self._wait_until_none(1.0)
        for assoc in self._ae.active_associations:  # the peer is silent in the middle of a PDU, or goes on sending
            _cut(assoc)
        self._wait_until_none(30.0)
        self._counts.write()
        self._engine.dispose()

    def _wait_until_none(self, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while self._ae.active_associations and time.monotonic() < deadline:
            time.sleep(0.02)


def _application_entity(settings: Settings) -> AE:
    ae = AE(settings.node.ae_title)
    ae.maximum_pdu_size = MAXIMUM_PDU_SIZE
    ae.maximum_associations = sys.maxsize  # whoever accepts the connections counts them
    ae.network_timeout = settings.receive.network_timeout_s
    ae.acse_timeout = min(_LONGEST_KNOCK_S, settings.receive.network_timeout_s)
    ae.implementation_version_name = "CXR_NODE"
    ae.add_supported_context(Verification)
    commitment.support(ae)
    for sop_class in sorted(_storage_classes(settings)):
        ae.add_supported_context(sop_class, list(TRANSFER_SYNTAXES))
    _config.LOG_HANDLER_LEVEL = "none"  # its log lines are formatted before they are thrown away
    return ae


def _storage_classes(settings: Settings) -> set[str]:
    classes = {str(sop_class) for sop_class in RADIOGRAPHS | RESULTS}
    if settings.receive.other_storage_classes == "keep":
        classes |= {str(context.abstract_syntax) for context in AllStoragePresentationContexts}
    return classes


def _keep_others(assoc: Association) -> None:
    """Support those storage classes too that a sender proposes and no list has: retired, private, newer than pynetdicom."""
    supported = {context.abstract_syntax for context in assoc.acceptor.supported_contexts}
    proposed = {str(context.abstract_syntax) for context in assoc.requestor.requested_contexts}
    others = [uid for uid in sorted(proposed - supported) if may_be_storage_class(uid)]
    if others:
        more = [build_context(uid, list(TRANSFER_SYNTAXES)) for uid in others]
        assoc.acceptor.supported_contexts = [*assoc.acceptor.supported_contexts, *more]


def _on_requested(event: evt.Event, settings: Settings, refused: Refused) -> None:
    """Refuse an association whose sender isn't welcome, or that is one too many, before anything is negotiated."""
    assoc = event.assoc
    sender = sender_of(assoc)
    identity = identity_of(assoc)
    try:
        refusal = refusal_of(settings, sender)
        entries = entries_of(settings, sender)
        asks_for_user = bool(entries) and all(entry.user for entry in entries)
        wrong_user = refusal_of_user(entries, identity) if asks_for_user else ""
    except Exception as error:  # such as a host in the settings that is none: who can't be checked doesn't come in
        _refuse(assoc, refused, sender, f"the [[senders]] can't be checked: {error}", (_PERMANENT, _BY_USER, _NO_REASON))
        return
    if refusal is not None:
        _refuse(assoc, refused, sender, refusal.reason, (_PERMANENT, _BY_USER, refusal.diagnostic))
    elif wrong_user:
        _refuse(assoc, refused, sender, wrong_user, (_PERMANENT, _BY_ACSE, _NO_REASON))
    elif is_beyond_limit(assoc):
        _refuse(assoc, refused, sender, "too many associations at the same time", (_TRANSIENT, _BY_PRESENTATION, _LOCAL_LIMIT))
    else:
        if asks_for_user:
            confirm(assoc, identity)
        if settings.receive.other_storage_classes == "keep":
            _keep_others(assoc)


def _refuse(assoc: Association, refused: Refused, sender: Sender, reason: str, answer: tuple[int, int, int]) -> None:
    refused.record(sender, reason)
    assoc.acse.send_reject(*answer)
    assoc.is_rejected = True
    assoc.kill()


def _cut(assoc: Association) -> None:
    connection = assoc.dul.socket.socket if assoc.dul.socket else None
    if connection is not None:
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)
