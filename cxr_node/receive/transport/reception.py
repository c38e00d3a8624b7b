"""Associations of this process: a Storage and Verification SCP on connections that another process accepts."""

from __future__ import annotations

import contextlib
import socket
import sys
import time
from typing import TYPE_CHECKING

import structlog
from pynetdicom import AE, AllStoragePresentationContexts, _config, build_context, evt
from pynetdicom.association import Association
from pynetdicom.pdu_primitives import UserIdentityNegotiation
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from cxr_node.audit.refusal_events import RefusalEvents
from cxr_node.commitment.scp import CommitmentScp, support
from cxr_node.dicom.tls import Listener
from cxr_node.receive.intake.admission import RADIOGRAPHS, RESULTS, TRANSFER_SYNTAXES, may_be_storage_class
from cxr_node.receive.intake.c_store import Intake
from cxr_node.receive.intake.not_accepted import nothing_accepted
from cxr_node.receive.intake.refused import Counts, Refused
from cxr_node.receive.intake.reporters import Reporters
from cxr_node.receive.intake.sender_admission import entries_of, has_proven, refusal_of
from cxr_node.receive.intake.user_identity import NAME_AND_PASSCODE, confirm, refusal_of_user, user_identity_of
from cxr_node.receive.transport import internals
from cxr_node.receive.transport.association_gauge import AssociationGauge
from cxr_node.receive.transport.messages import MAXIMUM_PDU_SIZE, sender_of
from cxr_node.receive.transport.pending_connections import ASSOCIATION_REQUEST_TIMEOUT_S
from cxr_node.receive.transport.processes import AssociationLimiter
from cxr_node.receive.transport.wire import Server, has_free_slot
from cxr_node.records import Sender
from cxr_node.settings import SenderSettings, Settings
from cxr_node.store.accounts import lockout
from cxr_node.store.database import open_database
from cxr_node.store.files.disk_space import DiskSpace

if TYPE_CHECKING:
    from sqlalchemy import Engine

log = structlog.get_logger()

_LONGEST_DATABASE_S = 10.0
"""How long what comes in waits for others who write to SQLite; it has to be answered meanwhile (`watchdog`)."""
_GRACE_S = 5.0
"""How long associations may continue after the stop."""
_BY_USER, _BY_ACSE, _BY_PRESENTATION = 0x01, 0x02, 0x03
_PERMANENT, _TRANSIENT = 0x01, 0x02
_NO_REASON, _LOCAL_LIMIT = 0x01, 0x02
"""Source, result and reason of A-ASSOCIATE-RJ (PS3.8 table 9-21)."""


class Reception:
    """Takes connections until `end`.

    Args:
        settings: the settings tree.
        address: where the node listens, host and port.
        limiter: admits each association, and is notified when a connection that was taken ends; from any
            thread.

    Raises:
        StoreError: the database can't be used.
        SettingsError: a file that [tls] names is missing or unfit.
        CxrNodeError: pynetdicom is another version than the one that reception was made for.
    """

    def __init__(self, settings: Settings, address: tuple[str, int], limiter: AssociationLimiter) -> None:
        internals.check()
        self._ae = _application_entity(settings)
        tls = Listener(settings.tls) if settings.tls.listen else None
        self._engine = open_database(settings, longest_wait_s=_LONGEST_DATABASE_S)
        self._counts = Counts(self._engine, settings.peer_of)
        self._events = RefusalEvents(self._engine, settings.peer_of)
        refused = Refused(self._counts, self._events)
        self._commitment = _commitment(settings, self._engine, refused)
        handlers: list[evt.EventHandlerType] = [
            (evt.EVT_REQUESTED, _on_requested, [settings, refused, self._engine]),
            (evt.EVT_ACCEPTED, _on_accepted, [refused]),
            *self._commitment.handlers(),
        ]
        self._server = Server(
            self._ae,
            address,
            handlers,
            intake=Intake(settings, self._engine, self._events),
            limiter=limiter,
            on_refused=refused.record,
            on_breach=refused.record_breach,
            on_failure=lambda sender, reason: self._counts.add("image", sender, reason),
            tls=tls,
            peer_of=settings.peer_of,
        )
        self._gauge = AssociationGauge(self._ae, settings.node.data_dir)

    def take(self, number: int, connection: socket.socket, host: str, *, over_tls: bool, is_crowded: bool = False) -> None:
        """Begin an association.

        Args:
            number: of the connection, for the limiter.
            connection: one that was accepted. It is duplicated: the caller closes its own.
            host: the address that it comes from.
            over_tls: it came to where the node speaks TLS.
            is_crowded: of no use here; see `Processes.take`.
        """
        self._server.take(number, connection.dup(), host, over_tls=over_tls)

    def end(self) -> None:
        """Let associations end by themselves for a while, then abort them, then cut the connections of those that don't."""
        self._wait_until_none(_GRACE_S)
        for assoc in self._ae.active_associations:
            log.warning("association aborted at the stop", host=str(assoc.requestor.address))
            if assoc.is_established:
                assoc.abort(block=False)
            else:  # the peer has connected and requested nothing
                _cut(assoc)
        self._wait_until_none(1.0)
        for assoc in self._ae.active_associations:  # the peer is silent within a PDU, or continues to send
            _cut(assoc)
        self._wait_until_none(30.0)
        self._commitment.end()
        self._gauge.end()
        self._counts.write()
        self._events.write()
        self._engine.dispose()

    def _wait_until_none(self, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while self._ae.active_associations and time.monotonic() < deadline:
            time.sleep(0.02)


def _commitment(settings: Settings, engine: Engine, refused: Refused) -> CommitmentScp:
    return CommitmentScp(
        settings,
        engine,
        sender_of=sender_of,
        is_known=lambda sender: bool(entries_of(settings, sender)),
        destinations_of=Reporters(settings).destinations_of,
        has_free_space=DiskSpace(settings.node.data_dir, settings.receive.min_free_mb).is_available,
        on_refused=refused.record_commitment,
    )


def _application_entity(settings: Settings) -> AE:
    ae = AE(settings.node.ae_title)
    ae.maximum_pdu_size = MAXIMUM_PDU_SIZE
    ae.maximum_associations = sys.maxsize  # the accepting process counts them
    ae.network_timeout = settings.receive.network_timeout_s
    ae.acse_timeout = min(ASSOCIATION_REQUEST_TIMEOUT_S, settings.receive.network_timeout_s)
    ae.implementation_version_name = "CXR_NODE"
    ae.add_supported_context(Verification)
    support(ae)
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


def _on_requested(event: evt.Event, settings: Settings, refused: Refused, engine: Engine) -> None:
    """Refuse an association whose sender isn't welcome, or that is one too many, before anything is negotiated."""
    assoc = event.assoc
    sender = sender_of(assoc)
    identity = user_identity_of(assoc)
    try:
        refusal = refusal_of(settings, sender)
        entries = entries_of(settings, sender)
        keys = lockout.keys_of_sender(sender.calling_ae_title, settings.peer_of(sender.host))
        asks_for_user = bool(entries) and all(entry.user for entry in entries)
        wrong_user = _refusal_of_user(entries, identity, keys, engine) if asks_for_user and refusal is None else ""
    except Exception as error:  # such as a host in the settings that is none: who can't be checked doesn't come in
        _refuse(assoc, refused, sender, f"the [[senders]] can't be checked: {error}", (_PERMANENT, _BY_USER, _NO_REASON))
        return
    if refusal is not None:
        answer = (_PERMANENT, _BY_USER, refusal.diagnostic)
        _refuse(assoc, refused, sender, refusal.reason, answer, f"diagnostic {refusal.diagnostic}")
    elif wrong_user:
        _refuse(assoc, refused, sender, wrong_user, (_PERMANENT, _BY_ACSE, _NO_REASON), "user identity")
    elif not has_free_slot(assoc, has_proven=has_proven(sender, entries)):
        _refuse(assoc, refused, sender, "too many associations at the same time", (_TRANSIENT, _BY_PRESENTATION, _LOCAL_LIMIT))
    else:
        if asks_for_user:
            confirm(assoc, identity)
        if settings.receive.other_storage_classes == "keep":
            _keep_others(assoc)


def _on_accepted(event: evt.Event, refused: Refused) -> None:
    """Say so when nothing that a sender wants to store can come over its association, or none of its radiographs."""
    assoc = event.assoc
    taken = {str(context.abstract_syntax) for context in assoc.accepted_contexts}
    others = {str(one.abstract_syntax): str(one.transfer_syntax[0]) for one in assoc.rejected_contexts if one.transfer_syntax}
    lost = {sop_class: syntax for sop_class, syntax in others.items() if sop_class not in taken}
    if taken - {str(Verification)}:
        lost = {sop_class: syntax for sop_class, syntax in lost.items() if sop_class in RADIOGRAPHS}
    if lost:
        refused.record(sender_of(assoc), nothing_accepted(lost), "nothing accepted")
    elif not taken:
        refused.record(sender_of(assoc), "it proposes no presentation context", "nothing accepted")


def _refusal_of_user(
    entries: list[SenderSettings],
    identity: UserIdentityNegotiation | None,
    keys: tuple[lockout.AttemptKey, ...],
    engine: Engine,
) -> str:
    """Why the user is refused; empty if it is admitted. After several wrong passcodes each attempt has to wait."""
    wait_s = lockout.wait_s(engine, keys)  # None: nothing has failed
    if wait_s:
        return f"{entries[0].ae_title!r} gave wrong user names or passcodes and has to wait before it tries again"
    reason = refusal_of_user(entries, identity)
    if identity is not None and identity.user_identity_type == NAME_AND_PASSCODE:  # no other kind lets anyone guess
        if reason:
            lockout.begin(engine, keys)
        elif wait_s is not None:
            lockout.succeeded(engine, keys)
    return reason


def _refuse(
    assoc: Association, refused: Refused, sender: Sender, reason: str, answer: tuple[int, int, int], kind: str = "refused"
) -> None:
    refused.record(sender, reason, kind)
    assoc.acse.send_reject(*answer)
    assoc.is_rejected = True
    assoc.kill()


def _cut(assoc: Association) -> None:
    connection = assoc.dul.socket.socket if assoc.dul.socket else None
    if connection is not None:
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)
