"""Signed checkpoints of the audit log's hash chain, and the verification that names changed, removed and inserted rows.

A checkpoint is an ordinary row of the log, so it is chained, sent to repositories and exported with the rest. Its detail is a
JSON statement, signed with Ed25519 (RFC 8032): up to this link the chain has this hash. Each statement is also appended to a file
beside the database, which reveals a database that was truncated or restored to an earlier state.
"""

from __future__ import annotations

import html
import json
import os
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cxr_node.audit import signing
from cxr_node.audit.chain_verification import ChainDefect, ChainVerification
from cxr_node.errors import StoreError
from cxr_node.records import AuditEvent
from cxr_node.settings import Settings
from cxr_node.store.audit_log import audit, audit_chain
from cxr_node.store.audit_log.audit_chain import Head, Link

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from sqlalchemy import Engine

CHECKPOINT = "audit-checkpoint"
"""The event of a row that holds a checkpoint."""

PURGED = "audit-purged"
"""The event before exported rows are removed."""

_STATEMENT = re.compile(r"\{[^{}]*\"signature\"[^{}]*\}")
_MOST_FINDINGS = 20


def statements_file(settings: Settings) -> Path:
    """The statements of all checkpoints, one a line."""
    return signing.folder(settings) / "checkpoints.jsonl"


def checkpoint(engine: Engine, settings: Settings) -> int:
    """Chain what there is, and sign it if there is news since the last checkpoint; the link signed, 0 for none.

    Raises:
        StoreError: the key or the file of statements can't be used.
    """
    audit_chain.seal_all(engine)
    if not _has_news(engine):
        return 0
    end = audit_chain.head(engine)
    said = {"at": _now(), "seq": end.seq, "row": end.audit_id, "hash": end.hash.hex()}
    statement = signing.sign(signing.signing_key(settings), said)
    audit.record(engine, AuditEvent(CHECKPOINT, detail=statement))
    _append(settings, statement)
    audit_chain.seal_all(engine)
    return end.seq


def note_restored(engine: Engine, settings: Settings) -> str:
    """After a restore: excuse the statements about rows after the backup. Returns a description for the log."""
    audit_chain.seal_all(engine)
    end = audit_chain.head(engine)
    beyond = [one for one in read_statements(statements_file(settings)) if int(one.get("seq", 0)) > end.seq]
    if not beyond:
        return f"the audit log goes on from link {end.seq}"
    _append(settings, signing.sign(signing.signing_key(settings), {"at": _now(), "restored_to": end.seq}))
    lost = max(int(one["seq"]) for one in beyond)
    return f"the audit log goes on from link {end.seq}; links up to {lost} were signed and are gone"


def read_statements(file: Path) -> list[dict[str, Any]]:
    """The statements in a file, in their order: the node's own, or any text that quotes them, such as a repository's log."""
    try:
        told = html.unescape(file.read_text("utf-8", "replace"))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StoreError(f"{file} can't be read ({error.strerror}).") from error
    found = []
    for match in _STATEMENT.finditer(told):
        with suppress(ValueError):
            statement = json.loads(match.group())
            if isinstance(statement, dict):
                found.append(statement)
    return found


def verify(
    engine: Engine,
    key: Ed25519PublicKey,
    statements: Iterable[Mapping[str, Any]],
    *,
    is_whole: bool = True,
) -> ChainVerification:
    """Look through the log of a database.

    Args:
        engine: the database.
        key: whose signatures count.
        statements: of checkpoints, kept outside the database.
        is_whole: it has to reach as far as the statements do; False for a backup, which ends before.
    """
    base = audit_chain.base(engine)
    verification = ChainVerification()
    if base.seq:
        _check_base(engine, base, key, verification)
        _check_leftovers(engine, base, verification)
    inserted_rows = audit_chain.inserted_rows(engine, _MOST_FINDINGS)
    verify_rows(audit_chain.links(engine, base.seq), base, key, statements, verification, is_whole=is_whole)
    verification.findings += [
        ChainDefect("put in", f"Row {one} was inserted: it lies among chained rows, and is not chained.", audit_id=one)
        for one in inserted_rows
    ]
    return verification


def verify_rows(
    links: Iterable[Link],
    base: Head,
    key: Ed25519PublicKey,
    statements: Iterable[Mapping[str, Any]],
    verification: ChainVerification,
    *,
    is_whole: bool = True,
) -> None:
    """Judge links in their order, and add what is found; stops when that is a lot."""
    wanted = _by_seq(statements, key, base, verification)
    recent = {base.seq: base.hash}
    previous, seq = base.hash, base.seq
    waiting: list[Link] = []
    verification.first_seq = base.seq + 1
    for one in links:
        if one.seq != seq + 1:
            there = f"Link {seq + 1} was" if one.seq == seq + 2 else f"Links {seq + 1} to {one.seq - 1} were"
            verification.findings.append(ChainDefect("removed", f"{there} removed, with their rows.", seq + 1))
        if one.row is None:
            text = f"Row {one.audit_id} was removed: link {one.seq} chains it, and the row is missing."
            verification.findings.append(ChainDefect("removed", text, one.seq, one.audit_id))
        elif one.seq == seq + 1 and audit_chain.link(previous, one.row) != one.hash:
            waiting.append(one)
            _check_changed(one, previous, waiting, verification)
        elif one.row["event"] == CHECKPOINT:
            _check_checkpoint(one, key, recent, verification)
        verification.rows += one.row is not None
        previous, seq = one.hash, one.seq
        recent[seq] = previous
        if (said := wanted.pop(seq, None)) is not None and said["hash"] != previous.hex():
            text = (
                f"The log was restored to an earlier state or rewritten: link {seq} is not the one that the checkpoint of "
                f"{said['at']} signed."
            )
            verification.findings.append(ChainDefect("rewritten", text, seq, one.audit_id))
        if len(verification.findings) >= _MOST_FINDINGS:
            break
    verification.last_seq = seq
    beyond = [said for number, said in sorted(wanted.items()) if number > seq]
    if beyond and is_whole and len(verification.findings) < _MOST_FINDINGS:
        said = beyond[-1]
        text = (
            f"The end was cut off, or the log restored to an earlier state: link {said['seq']} (row {said.get('row', '?')}) was "
            f"signed at {said['at']}, and the log ends at link {seq}."
        )
        verification.findings.append(ChainDefect("cut off", text, seq + 1))


def _check_base(engine: Engine, base: Head, key: Ed25519PublicKey, verification: ChainVerification) -> None:
    """What comes first follows an archive: its end has to be signed."""
    export = next(one for one in audit_chain.exports(engine) if one.last_seq == base.seq)
    said = {"first_seq": export.first_seq, "seq": base.seq, "hash": base.hash.hex(), "key": signing.fingerprint(key)}
    if not signing.is_signed(key, {**said, "signature": export.signature}):
        text = f"Links up to {base.seq} were removed, and no archive that this key signed holds them."
        verification.findings.append(ChainDefect("removed", text, export.first_seq))


def _check_leftovers(engine: Engine, base: Head, verification: ChainVerification) -> None:
    """Judge what an archive holds and a purge has yet to remove; of the first such link only the hash is known to be right."""
    before: Link | None = None
    for one in audit_chain.links(engine, 0, base.seq):
        if one.row is None or (before is not None and one.seq != before.seq + 1):
            text = f"Rows before link {base.seq} were removed, and not by `cxr-node audit purge`: see row {one.audit_id}."
            verification.findings.append(ChainDefect("removed", text, one.seq, one.audit_id))
        elif before is not None and audit_chain.link(before.hash, one.row) != one.hash:
            text = f"Row {one.audit_id} was changed: it differs from what link {one.seq} chained."
            verification.findings.append(ChainDefect("changed", text, one.seq, one.audit_id))
        before = one
        if len(verification.findings) >= _MOST_FINDINGS:
            return
    if next(audit.search(engine, event=PURGED, limit=1), None) is None:
        text = f"Rows up to link {base.seq} were removed, and not by `cxr-node audit purge`, which the log would tell of."
        verification.findings.append(ChainDefect("removed", text, base.seq))


def _check_changed(one: Link, previous: bytes, waiting: list[Link], verification: ChainVerification) -> None:
    """Name a row that isn't as it was chained; if it has the content of another such row, both were swapped."""
    assert one.row is not None
    for other in waiting[:-1]:
        if other.row is not None and audit_chain.link(previous, {**other.row, "id": one.audit_id}) == one.hash:
            index = next(n for n, found in enumerate(verification.findings) if found.seq == other.seq)
            text = f"Rows {other.audit_id} and {one.audit_id} were swapped: each has the content of the other."
            verification.findings[index] = ChainDefect("swapped", text, other.seq, other.audit_id)
            return
    text = f"Row {one.audit_id} was changed: it differs from what link {one.seq} chained."
    verification.findings.append(ChainDefect("changed", text, one.seq, one.audit_id))


def _check_checkpoint(one: Link, key: Ed25519PublicKey, recent: dict[int, bytes], verification: ChainVerification) -> None:
    assert one.row is not None
    try:
        said = json.loads(one.row["detail"])
        seq, signed_hash = int(said["seq"]), str(said["hash"])
    except (ValueError, KeyError, TypeError):
        said, seq, signed_hash = {}, 0, ""
    if not said or not signing.is_signed(key, said):
        text = f"The checkpoint in row {one.audit_id} is forged: key {signing.fingerprint(key)} did not sign it."
        verification.findings.append(ChainDefect("forged", text, one.seq, one.audit_id))
    elif seq >= one.seq:
        text = (
            f"Rows before row {one.audit_id} were removed: the checkpoint there signs link {seq}, and is itself link {one.seq}."
        )
        verification.findings.append(ChainDefect("rewritten", text, one.seq, one.audit_id))
    elif seq < verification.signed_to and (seq in verification.signed or (seq not in recent and seq > verification.first_seq)):
        text = f"The checkpoint in row {one.audit_id} was put in: it signs link {seq}, as an earlier one does."
        verification.findings.append(ChainDefect("put in", text, one.seq, one.audit_id))
    elif seq in recent and recent[seq].hex() != signed_hash:
        text = f"Rows before row {one.audit_id} were rewritten: link {seq} is not the one that the checkpoint there signed."
        verification.findings.append(ChainDefect("rewritten", text, seq, one.audit_id))
    else:
        for number in [number for number in recent if number < verification.signed_to]:
            del recent[number]  # two that were made at once may be chained the other way round
        verification.checkpoints += 1
        verification.signed.add(seq)
        verification.signed_to = max(seq, verification.signed_to)


def _by_seq(
    statements: Iterable[Mapping[str, Any]], key: Ed25519PublicKey, base: Head, verification: ChainVerification
) -> dict[int, Mapping[str, Any]]:
    """Statements of checkpoints that count, by link: not those that a restored backup excuses, nor of what was purged."""
    wanted: dict[int, Mapping[str, Any]] = {}
    for said in statements:
        if not signing.is_signed(key, said):
            when = said.get("at", "no time")
            text = f"A statement of {when} outside the database is not signed by key {signing.fingerprint(key)}."
            verification.findings.append(ChainDefect("forged", text))
            break
        if "restored_to" in said:
            wanted = {seq: one for seq, one in wanted.items() if seq <= int(said["restored_to"])}
        elif "hash" in said and int(said["seq"]) > base.seq:
            other = wanted.setdefault(int(said["seq"]), said)
            if other["hash"] != said["hash"]:
                text = (
                    f"The log was restored to an earlier state or rewritten: link {said['seq']} was signed at "
                    f"{other.get('at', 'no time')} and, with other content, at {said.get('at', 'no time')}."
                )
                verification.findings.append(ChainDefect("rewritten", text, int(said["seq"])))
    return wanted


def _has_news(engine: Engine) -> bool:
    """Whether anything but checkpoints was recorded since the last one."""
    last = next(audit.search(engine, event=CHECKPOINT, after_id=0, limit=1), None)
    newest = list(audit.search(engine, after_id=0 if last is None else last["id"], limit=1))
    return bool(newest)


def _append(settings: Settings, statement: str) -> None:
    path = statements_file(settings)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(statement.encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise StoreError(f"{path} can't be written ({error.strerror}): check its owner and the disk.") from error


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
