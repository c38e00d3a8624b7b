"""The receive role: a Storage and Verification SCP, from listening to an orderly end."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import structlog
from pynetdicom import AE, AllStoragePresentationContexts, _config, evt
from pynetdicom.association import Association
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from cxr_node.errors import SettingsError
from cxr_node.receive.admission import RADIOGRAPHS, RESULTS, TRANSFER_SYNTAXES, refusal_of
from cxr_node.receive.incoming import remove_leftovers
from cxr_node.receive.intake import Intake
from cxr_node.receive.messages import MAXIMUM_PDU_SIZE, sender_of
from cxr_node.receive.wire import Server
from cxr_node.records import AuditEvent, DataFolder, Sender
from cxr_node.settings import Settings
from cxr_node.store import audit
from cxr_node.store.database import open_database
from cxr_node.tls import Listener

if TYPE_CHECKING:
    from sqlalchemy import Engine

log = structlog.get_logger()

_GRACE_S = 5.0
"""How long associations may go on after the stop."""


def run(settings: Settings, stop: threading.Event, ready: Callable[[str, int], None]) -> None:
    """Receive until `stop` is set.

    1. open the database and remove what a receiver that died left half-received
    2. listen, and say so: `ready(host, port)`
    3. on stop: listen no more, let associations end for some seconds, abort those that don't

    A C-STORE that is being answered at the stop is stored and answered first; one that is still arriving is dropped
    without a response, so its sender keeps it.

    Raises:
        StoreError: the data folder or the database can't be used.
        SettingsError: the node can't listen where the settings say.
    """
    engine = open_database(settings)
    removed = remove_leftovers(DataFolder(settings.node.data_dir).incoming)
    if removed:
        log.warning("half-received files of an earlier run removed", count=removed)
    server = _listen(settings, engine)
    thread = threading.Thread(target=server.serve_forever, name="accept", daemon=True)
    thread.start()
    try:
        ready(settings.node.host, server.server_address[1])
        stop.wait()
    finally:
        server.shutdown()
        thread.join()
        _end_associations(server.ae)
        engine.dispose()


def _listen(settings: Settings, engine: Engine) -> Server:
    ae = AE(settings.node.ae_title)
    ae.maximum_pdu_size = MAXIMUM_PDU_SIZE
    ae.maximum_associations = settings.receive.max_associations
    ae.network_timeout = settings.receive.network_timeout_s
    ae.implementation_version_name = "CXR_NODE"
    ae.add_supported_context(Verification)
    for sop_class in sorted(_storage_classes(settings)):
        ae.add_supported_context(sop_class, list(TRANSFER_SYNTAXES))
    _config.LOG_HANDLER_LEVEL = "none"  # its log lines are formatted before they are thrown away
    try:
        # a name such as "localhost" is looked up; pynetdicom wants the address
        address = socket.getaddrinfo(settings.node.host, settings.node.port, type=socket.SOCK_STREAM)[0][4]
        return Server(
            ae,
            (str(address[0]), settings.node.port),
            ae.ae_title,
            ae.supported_contexts,
            [
                (evt.EVT_REQUESTED, _on_requested, [settings, engine]),
                (evt.EVT_REJECTED, _on_rejected, [engine]),
            ],
            intake=Intake(settings, engine),
            tls=Listener(settings.tls) if settings.tls.listen else None,
        )
    except OSError as error:
        raise SettingsError(
            f"node.host, node.port: can't listen on {settings.node.host}:{settings.node.port} ({error.strerror or error}). "
            "Is another program listening there? Ports below 1024 need a privilege (CAP_NET_BIND_SERVICE)."
        ) from error


def _storage_classes(settings: Settings) -> set[str]:
    classes = {str(sop_class) for sop_class in RADIOGRAPHS | RESULTS}
    if settings.receive.other_storage_classes == "keep":
        classes |= {str(context.abstract_syntax) for context in AllStoragePresentationContexts}
    return classes


def _on_requested(event: evt.Event, settings: Settings, engine: Engine) -> None:
    """Refuse an association whose sender isn't welcome, before anything is negotiated."""
    assoc = event.assoc
    sender = sender_of(assoc)
    try:
        refusal = refusal_of(settings, sender)
        if refusal is None:
            return
        diagnostic, reason = refusal.diagnostic, refusal.reason
    except Exception as error:  # such as a host in the settings that is none: who can't be checked doesn't come in
        diagnostic, reason = 0x01, f"the [[senders]] can't be checked: {error}"
    _record_refused(engine, sender, reason)
    assoc.acse.send_reject(0x01, 0x01, diagnostic)  # permanent, by the service user
    assoc.is_rejected = True
    assoc.kill()


def _on_rejected(event: evt.Event, engine: Engine) -> None:
    """What pynetdicom itself refuses: one association too many."""
    _record_refused(engine, sender_of(event.assoc), "too many associations at the same time")


def _record_refused(engine: Engine, sender: Sender, reason: str) -> None:
    log.warning("association refused", calling_ae_title=sender.calling_ae_title, host=sender.host, reason=reason)
    try:
        audit.record(
            engine,
            AuditEvent("association-refused", outcome="failure", user=sender.calling_ae_title, host=sender.host, detail=reason),
        )
    except Exception:
        log.exception("refusal not recorded")


def _end_associations(ae: AE) -> None:
    """Let associations end by themselves for a while, then abort them, then cut the connections of those that don't."""
    _wait_until_none(ae, _GRACE_S)
    for assoc in ae.active_associations:
        log.warning("association aborted at the stop", host=str(assoc.requestor.address))
        if assoc.is_established:
            assoc.abort(block=False)
        else:  # the peer has connected and asked for nothing
            _cut(assoc)
    _wait_until_none(ae, 1.0)
    for assoc in ae.active_associations:  # the peer is silent in the middle of a PDU, or goes on sending
        _cut(assoc)
    _wait_until_none(ae, 30.0)


def _cut(assoc: Association) -> None:
    connection = assoc.dul.socket.socket if assoc.dul.socket else None
    if connection is not None:
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)


def _wait_until_none(ae: AE, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while ae.active_associations and time.monotonic() < deadline:
        time.sleep(0.02)
