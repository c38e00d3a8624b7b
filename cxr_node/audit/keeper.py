"""Periodic maintenance of the audit log: sealing, signing, verification, archiving. Housekeeping schedules it."""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import structlog

from cxr_node.audit import archive, chain, signing
from cxr_node.audit.chain_verification import ChainDefect, ChainVerification
from cxr_node.audit.sender import RepositorySender
from cxr_node.errors import CxrNodeError, StoreError
from cxr_node.records import AuditEvent
from cxr_node.settings import Settings
from cxr_node.store.audit_log import audit, audit_chain
from cxr_node.store.database import DatabaseTrouble
from cxr_node.store.queue import leases
from cxr_node.store.queue.host_leases import AUDIT, HostLeases

if TYPE_CHECKING:
    from sqlalchemy import Engine

log = structlog.get_logger()

_NOT_TOLD = ("database.url", "storage.secret_access_key", "tls.key_passphrase")
"""Keys of the settings that may hold a secret: nothing derived from them is kept."""


class AuditMaintenance:
    """Keeps the audit log of one node; its methods are called by the scheduler's threads."""

    def __init__(self, settings: Settings, engine: Engine) -> None:
        self._settings, self._engine = settings, engine
        self.host_leases = HostLeases(engine, leases.owner_name(settings.node.data_dir))
        self._sender = RepositorySender(settings, engine, self.host_leases)

    def start(self) -> None:
        """Begin to send to the repositories."""
        self._sender.start()

    def stop(self) -> None:
        """Sign what there is, send it, and end."""
        try:
            self.sign()
        except (CxrNodeError, DatabaseTrouble) as error:
            log.error("audit log not signed", reason=str(error))
        self._sender.stop()
        try:
            self.host_leases.release_all()
        except DatabaseTrouble as error:  # they lapse
            log.warning("host leases not released", exc_info=error)

    def seal(self) -> None:
        """Chain what roles have added; of several hosts one does."""
        if self.host_leases.holds(AUDIT):
            audit_chain.seal_all(self._engine)

    def sign(self) -> None:
        """Sign what was chained since the last time, if there is any."""
        if self.host_leases.holds(AUDIT):
            chain.checkpoint(self._engine, self._settings)

    def check(self) -> ChainVerification | None:
        """If it is this host's turn, look through the whole log; what is found is an alert.

        In a thread that lets others go first: it may take minutes.
        """
        if not self.host_leases.holds(AUDIT):
            return None
        try:
            with ThreadPoolExecutor(1, initializer=_give_way) as thread:
                verification = thread.submit(self._judge).result()
        except StoreError as error:  # somebody took the key or the statements away, so that nothing is found
            verification = ChainVerification(findings=[ChainDefect("not verified", f"Not verified: {error}")])
        record_verification(self._engine, verification, "")
        return verification

    def _judge(self) -> ChainVerification:
        audit_chain.seal_all(self._engine)
        statements = chain.read_statements(chain.statements_file(self._settings))
        return chain.verify(self._engine, signing.own_public_key(self._settings), statements)

    def archive_old(self) -> None:
        """Export and remove what is older than the settings keep in the database."""
        days = self._settings.audit.keep_days
        if days and self.host_leases.holds(AUDIT):
            archive.archive_old(self._engine, self._settings, time.time() - days * 86400, "")


def _give_way() -> None:
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)  # of this thread alone, on Linux


def record_verification(engine: Engine, verification: ChainVerification, user: str, of: str = "") -> None:
    """Have the log tell that it was verified; a find is an alert, in the node's log too.

    `of`: the backup or archive that was verified. A sound copy says nothing about the database and does not end its alert.
    """
    detail = f"{of}: {verification.text}" if of else verification.text
    if verification.findings:
        log.error(
            "the audit log was tampered with", found=[finding.text for finding in verification.findings], of=of or "database"
        )
        audit.record(engine, AuditEvent("audit-tampered", "failure", user=user, detail=detail))
    else:
        audit.record(engine, AuditEvent("audit-copy-verified" if of else "audit-verified", user=user, detail=detail))


def note_settings(engine: Engine, settings: Settings, user: str) -> list[str]:
    """Have the log tell which keys of the settings are not as they were at the last start; gives their names."""
    now = {key: hashlib.sha256(repr(value).encode()).hexdigest() for key, value in _keys(settings)}
    path = signing.folder(settings) / "settings.json"
    try:
        before: dict[str, str] | None = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        before = None
    changed = [] if before is None else sorted(key for key in {*now, *before} if now.get(key) != before.get(key))
    if changed:
        audit.record(engine, AuditEvent("settings-changed", user=user, detail=f"changed: {', '.join(changed)}"))
    if before is None or changed:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}")
        temporary.write_text(json.dumps(now, indent=1), "utf-8")
        temporary.replace(path)
    return changed


def _keys(settings: Settings) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for section, value in settings.model_dump(mode="json").items():
        if isinstance(value, dict):
            found += [(f"{section}.{key}", one) for key, one in value.items()]
        else:
            found.append((section, value))
    return [(key, value) for key, value in found if key not in _NOT_TOLD]
