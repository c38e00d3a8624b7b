"""Archives of the audit log: files that can be verified on their own, after which their rows may leave the database.

An archive is a text file with one JSON object per line: a header, each row with its link in chain order, and a signed seal. The
public key is all that is needed to verify that nothing in it was changed, removed or inserted.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from cxr_node.audit import chain, signing
from cxr_node.audit.chain_verification import ChainDefect, ChainVerification
from cxr_node.errors import CxrNodeError, StoreError
from cxr_node.records import AuditEvent
from cxr_node.settings import Settings
from cxr_node.store.audit_log import audit, audit_chain, audit_repositories
from cxr_node.store.audit_log.audit_chain import Export, Head, Link

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from sqlalchemy import Engine

_FORMAT = "cxr-node audit archive 1"


def write_archive(engine: Engine, settings: Settings, until: float, user: str, out: Path | None = None) -> Path | None:
    """Export the chained rows before `until`, up to the first later row; None: nothing to export.

    Args:
        engine: the database.
        settings: for the key, and where archives lie.
        until: UTC seconds since the epoch.
        user: who has it done, for the log.
        out: the file; None: a name of its own in the folder of archives.

    Raises:
        StoreError: it can't be written, or what is to be exported isn't as it was chained.
    """
    chain.checkpoint(engine, settings)
    base = audit_chain.base(engine)
    last = audit_chain.last_before(engine, until)
    if last <= base.seq:
        return None
    path = out or _folder(settings) / f"audit-{base.seq + 1}-{last}.jsonl"
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if path.exists():
            raise StoreError(f"{path} exists already: name another file with --out.")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            end, signature = _write(file, engine, settings, base, last)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync(path.parent)
    except OSError as error:
        raise StoreError(
            f"No archive could be written to {path} ({error.strerror}): check the owner and the free space of the folder."
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    verification = verify_archive(path, signing.own_public_key(settings))
    if verification.findings:
        path.rename(path.with_suffix(".unsound"))
        raise StoreError(f"Nothing was exported: {verification.text} `cxr-node audit verify` checks the whole log.")
    export = Export(base.seq + 1, last, end.audit_id, end.hash, path.name, _digest(path), signature, time.time())
    audit_chain.note_export(engine, export)
    audit.record(engine, AuditEvent("audit-exported", user=user, detail=f"links {base.seq + 1} to {last} to {path.name}"))
    return path


def purge(engine: Engine, settings: Settings, file: Path, user: str) -> int:
    """Remove from the database what an archive holds; how many rows. The archive has to be there and whole.

    Raises:
        StoreError: it isn't, isn't the one that was exported, or a repository has not got so far yet.
    """
    export = next((one for one in audit_chain.exports(engine) if one.sha256 == _digest(file)), None)
    if export is None:
        raise StoreError(f"{file} is not an archive that this node exported, or was changed since: nothing was removed.")
    verification = verify_archive(file, signing.own_public_key(settings))
    if verification.findings:
        raise StoreError(f"{file} is incomplete or changed, and nothing was removed: {verification.text}")
    positions = audit_repositories.positions(engine)
    for repository in settings.audit.repositories:
        if positions.get(repository.name, 0) < export.last_seq:
            raise StoreError(
                f"The repository {repository.name} does not have all of {file} yet, and nothing was removed: see "
                "`cxr-node status`, and try again when it has."
            )
    told = f"{file.name}, links {export.first_seq} to {export.last_seq}"
    audit.record(engine, AuditEvent(chain.PURGED, user=user, detail=told))
    chain.checkpoint(engine, settings)  # the log goes on, signed, before anything is gone
    return audit_chain.remove_exported(engine, export.last_seq)


def archive_old(engine: Engine, settings: Settings, until: float, user: str) -> int:
    """Export what is before a time, and remove it; and what an earlier call exported and could not remove. How many rows."""
    write_archive(engine, settings, until, user)
    removed, first = 0, audit_chain.base(engine).seq + 1
    for export in audit_chain.exports(engine):
        path = _folder(settings) / export.name
        if export.last_seq >= first and path.exists():
            removed += purge(engine, settings, path, user)
    return removed


def verify_archive(file: Path, key: Ed25519PublicKey) -> ChainVerification:
    """Look through an archive.

    Raises:
        StoreError: it can't be read, or is none.
    """
    verification = ChainVerification()
    try:
        with file.open(encoding="utf-8", newline="\n") as lines:
            first_line = next(lines, "{}")
            heading = json.loads(first_line)
            if not isinstance(heading, dict) or heading.get("format") != _FORMAT:
                raise StoreError(f"{file} is not an audit log archive.")
            base = Head(int(heading["first_seq"]) - 1, 0, bytes.fromhex(heading["previous_hash"]))
            seal: dict[str, Any] = {}
            last = base.hash
            content = hashlib.sha256(first_line.encode())
            signed: list[Link] = []

            def links() -> Iterator[Link]:
                nonlocal last
                for line in lines:
                    found = json.loads(line)
                    if "signature" in found and "row" not in found:
                        seal.update(found)
                        return
                    content.update(line.encode())
                    one = Link(found["seq"], found["row"]["id"], bytes.fromhex(found["hash"]), found["row"])
                    last = one.hash
                    signed[:] = [one]
                    yield one

            chain.verify_rows(links(), base, key, (), verification)
            _check_seal(seal, key, base, verification, last, len(next(lines, "")) > 0)
            if not verification.findings and seal.get("content", content.hexdigest()) != content.hexdigest():
                text = "The archive was changed beside its rows: its heading, or the way in which a line is written."
                verification.findings.append(ChainDefect("changed", text))
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise StoreError(f"{file} can't be read as an archive ({error}): it is damaged, or not an archive.") from error
    return verification


def is_archive(file: Path) -> bool:
    """Whether a file begins as an archive does."""
    try:
        with file.open("rb") as content:
            return _FORMAT.encode() in content.read(200)
    except OSError as error:
        raise CxrNodeError(f"{file} can't be read ({error.strerror}).") from error


def _check_seal(
    seal: dict[str, Any], key: Ed25519PublicKey, base: Head, verification: ChainVerification, last: bytes, goes_on: bool
) -> None:
    found = ChainDefect
    if verification.findings and not seal:
        return
    if not seal:
        text = f"The archive was cut off: it ends at link {verification.last_seq}, without a seal."
        verification.findings.append(found("cut off", text, verification.last_seq + 1))
    elif not signing.is_signed(key, seal):
        verification.findings.append(found("forged", f"The archive's seal is not signed by key {signing.fingerprint(key)}."))
    elif (seal["first_seq"], seal["seq"], seal["hash"]) != (base.seq + 1, verification.last_seq, last.hex()):
        text = f"The archive differs from what was sealed: its seal covers links {seal['first_seq']} to {seal['seq']}."
        verification.findings.append(found("rewritten", text, verification.last_seq))
    elif goes_on:
        verification.findings.append(found("put in", "Lines were added after the archive's seal.", verification.last_seq + 1))
    else:
        verification.signed_to = verification.last_seq


def _write(file: IO[str], engine: Engine, settings: Settings, base: Head, last: int) -> tuple[Head, str]:
    """Heading, rows and seal; gives the last link, and a signature of it for the database."""
    key = signing.signing_key(settings)
    heading = {
        "format": _FORMAT,
        "node": settings.node.ae_title,
        "written_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "first_seq": base.seq + 1,
        "previous_hash": base.hash.hex(),
        "public_key": key.public_key().public_bytes_raw().hex(),
    }
    content = hashlib.sha256()

    def add(line: str) -> None:
        content.update(line.encode())
        file.write(line)

    add(json.dumps(heading) + "\n")
    end = base
    for one in audit_chain.links(engine, base.seq, last):
        if one.row is None:
            raise StoreError(f"Row {one.audit_id} is gone, and nothing was exported: see `cxr-node audit verify`.")
        add(json.dumps({"seq": one.seq, "hash": one.hash.hex(), "row": one.row}, ensure_ascii=False) + "\n")
        end = Head(one.seq, one.audit_id, one.hash)
    said = {"first_seq": base.seq + 1, "seq": end.seq, "hash": end.hash.hex()}
    file.write(signing.sign(key, {**said, "content": content.hexdigest()}) + "\n")
    return end, json.loads(signing.sign(key, said))["signature"]


def _folder(settings: Settings) -> Path:
    return settings.audit.archive_dir or signing.folder(settings) / "archive"


def _digest(file: Path) -> str:
    try:
        with file.open("rb") as content:
            return hashlib.file_digest(content, "sha256").hexdigest()
    except OSError as error:
        raise StoreError(f"{file} can't be read ({error.strerror}).") from error


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
