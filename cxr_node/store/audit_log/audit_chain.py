"""The hash chain of the audit log: each row's hash covers the row and the previous hash.

Roles add rows without a hash, so that reception never waits; a sealer chains them within seconds, in the order of their ids.
`audit.chain` signs and verifies.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from sqlalchemy import Connection, Engine, and_, delete, exists, func, insert, or_, select, text
from sqlalchemy.exc import IntegrityError

from cxr_node.store.database import write
from cxr_node.store.schema import audit, audit_chain, audit_exports

GENESIS = bytes(32)
"""What the first row is chained to."""

_BATCH = 1000
_LATE_IDS, _LATE_S = 10_000, 3600.0
"""On PostgreSQL ids are given before rows are committed: a row within these bounds may still appear. SQLite has
only one writer at a time."""


class Head(NamedTuple):
    """The newest link of the chain; before the first one seq and audit_id are 0."""

    seq: int
    audit_id: int
    hash: bytes


class Link(NamedTuple):
    """One link and the row that it chains; the row is None if it is gone."""

    seq: int
    audit_id: int
    hash: bytes
    row: dict[str, Any] | None


class Export(NamedTuple):
    """An archive that was written: of the links from first_seq to last_seq."""

    first_seq: int
    last_seq: int
    last_audit_id: int
    last_hash: bytes
    name: str
    sha256: str
    signature: str
    exported_at: float


def canonical(row: Mapping[str, Any]) -> bytes:
    """A row as the bytes that are hashed: JSON in UTF-8 with sorted keys, without what is empty.

    So a column that a later release adds changes no hash of a row that doesn't have it.
    """
    told = {name: value for name, value in row.items() if value != ""}
    return json.dumps(told, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "backslashreplace")


def link(previous: bytes, row: Mapping[str, Any]) -> bytes:
    """The hash of a row that follows the one whose hash is `previous` (SHA-256, 32 bytes)."""
    return hashlib.sha256(previous + canonical(row)).digest()


def head(engine: Engine) -> Head:
    """Where the chain ends: what the next row is chained to."""
    with engine.connect() as connection:
        return _head(connection)


def base(engine: Engine) -> Head:
    """What the links that have to be there follow: nothing, or the end of an archive whose rows were removed (or are being)."""
    with engine.connect() as connection:
        first = connection.execute(select(func.min(audit_chain.c.seq))).scalar()
        if first == 1:
            return Head(0, 0, GENESIS)
        query = select(audit_exports.c.last_seq, audit_exports.c.last_audit_id, audit_exports.c.last_hash)
        if first is None:
            query = query.order_by(audit_exports.c.last_seq.desc())
        else:
            query = query.where(audit_exports.c.last_seq >= first - 1).order_by(audit_exports.c.last_seq)
        row = connection.execute(query.limit(1)).first()
    return Head(0, 0, GENESIS) if row is None else Head(row[0], row[1], bytes(row[2]))


def seal(engine: Engine, limit: int = _BATCH) -> int:
    """Chain rows that are not yet chained; how many. Any process may, at any time: of two at once one does it."""
    with engine.connect() as connection:
        end = _head(connection)
        rows = [dict(row) for row in connection.execute(_unchained(connection, end).limit(limit)).mappings()]
    if not rows:
        return 0
    links, previous = [], end.hash
    for seq, row in enumerate(rows, end.seq + 1):
        previous = link(previous, row)
        links.append({"seq": seq, "audit_id": row["id"], "hash": previous})
    try:
        with write(engine) as connection:
            if _head(connection) != end:
                return 0
            connection.execute(insert(audit_chain), links)
            if connection.dialect.name == "sqlite":
                index = "INSERT INTO audit_text (rowid, detail) SELECT id, detail FROM audit WHERE id BETWEEN :first AND :last"
                connection.execute(text(index), {"first": rows[0]["id"], "last": rows[-1]["id"]})
    except IntegrityError:  # another process was quicker
        return 0
    return len(links)


def seal_all(engine: Engine) -> int:
    """Chain all that is there now; how many rows."""
    total = 0
    while count := seal(engine):
        total += count
    return total


def links(engine: Engine, after_seq: int = 0, until_seq: int | None = None) -> Iterator[Link]:
    """Links with their rows, in the order of the chain, a batch at a time; no transaction stays open between."""
    columns = [column.label(f"row_{column.name}") for column in audit.columns]
    query = select(audit_chain, *columns).join(audit, audit.c.id == audit_chain.c.audit_id, isouter=True)
    while True:
        with engine.connect() as connection:
            part = query.where(audit_chain.c.seq > after_seq).order_by(audit_chain.c.seq).limit(_BATCH)
            if until_seq is not None:
                part = part.where(audit_chain.c.seq <= until_seq)
            rows = connection.execute(part).all()
        for found in rows:
            values = tuple(found)
            row = None if values[3] is None else dict(zip(audit.columns.keys(), values[3:], strict=True))
            yield Link(values[0], values[1], bytes(values[2]), row)
        if len(rows) < _BATCH:
            return
        after_seq = rows[-1][0]


def inserted_rows(engine: Engine, limit: int = 1) -> list[int]:
    """Ids of rows that no sealer would have passed over: they lie below the end of the chain and have no link."""
    with engine.connect() as connection:
        end = _head(connection)
        query = select(audit.c.id).where(audit.c.id <= end.audit_id, ~_has_link())
        if connection.dialect.name == "postgresql":
            query = query.where(or_(audit.c.id <= end.audit_id - _LATE_IDS, audit.c.at < time.time() - _LATE_S))
        return list(connection.execute(query.order_by(audit.c.id).limit(limit)).scalars())


def waiting(engine: Engine) -> int:
    """How many rows are not chained yet, counted up to a thousand."""
    with engine.connect() as connection:
        rows = _unchained(connection, _head(connection)).with_only_columns(audit.c.id).limit(1000).subquery()
        return int(connection.execute(select(func.count()).select_from(rows)).scalar_one())


def last_before(engine: Engine, until: float) -> int:
    """The newest link such that it and all before it tell of times before `until`; 0 if there is none."""
    with engine.connect() as connection:
        later = select(func.min(audit_chain.c.seq)).join(audit, audit.c.id == audit_chain.c.audit_id).where(audit.c.at >= until)
        first_later = connection.execute(later).scalar()
        newest = connection.execute(select(func.max(audit_chain.c.seq))).scalar() or 0
    return newest if first_later is None else int(first_later) - 1


def note_export(engine: Engine, export: Export) -> None:
    """Remember an archive that is safe on disk: what it holds may be removed from then on."""
    with write(engine) as connection:
        connection.execute(insert(audit_exports).values(**export._asdict()))


def exports(engine: Engine) -> list[Export]:
    """The archives that were written, oldest first."""
    with engine.connect() as connection:
        rows = connection.execute(select(audit_exports).order_by(audit_exports.c.id)).all()
    return [Export(*tuple(row)[1:]) for row in rows]


def remove_exported(engine: Engine, last_seq: int) -> int:
    """Remove rows and links up to one that was exported, some at a time; how many rows. The triggers hold it to what was."""
    removed = 0
    while True:
        with write(engine) as connection:
            query = select(audit_chain.c.seq, audit_chain.c.audit_id).where(audit_chain.c.seq <= last_seq)
            batch: Sequence[Any] = connection.execute(query.order_by(audit_chain.c.seq).limit(_BATCH)).all()
            if not batch:
                return removed
            ids, seqs = [row.audit_id for row in batch], [row.seq for row in batch]
            if connection.dialect.name == "sqlite":
                forget = (
                    "INSERT INTO audit_text (audit_text, rowid, detail) SELECT 'delete', id, detail FROM audit WHERE id = :id"
                )
                connection.execute(text(forget), [{"id": one} for one in ids])
            removed += connection.execute(delete(audit).where(audit.c.id.in_(ids))).rowcount
            connection.execute(delete(audit_chain).where(audit_chain.c.seq.in_(seqs)))


def index_copied(connection: Connection) -> None:
    """After the log was copied into SQLite: index the text of what is chained, as `seal` would have."""
    connection.execute(
        text(
            "INSERT INTO audit_text (rowid, detail) "
            "SELECT id, detail FROM audit WHERE id IN (SELECT audit_id FROM audit_chain) ORDER BY id"
        )
    )


def _head(connection: Connection) -> Head:
    row = connection.execute(select(audit_chain).order_by(audit_chain.c.seq.desc()).limit(1)).first()
    if row is None:  # nothing yet, or all was purged
        columns = (audit_exports.c.last_seq, audit_exports.c.last_audit_id, audit_exports.c.last_hash)
        row = connection.execute(select(*columns).order_by(audit_exports.c.last_seq.desc()).limit(1)).first()
    if row is None:
        return Head(0, 0, GENESIS)
    highest = row[1]
    if connection.dialect.name == "postgresql":  # a row that came late is chained after others with higher ids
        newest = connection.execute(select(func.max(audit_chain.c.audit_id))).scalar()
        highest = max(highest, newest or 0)
    return Head(row[0], highest, bytes(row[2]))


def _unchained(connection: Connection, end: Head) -> Any:
    if connection.dialect.name == "postgresql" and end.seq:
        lately = and_(audit.c.id > end.audit_id - _LATE_IDS, audit.c.at > time.time() - _LATE_S, ~_has_link())
        return select(audit).where(or_(audit.c.id > end.audit_id, lately)).order_by(audit.c.id)
    return select(audit).where(audit.c.id > end.audit_id).order_by(audit.c.id)


def _has_link() -> Any:
    return exists().where(audit_chain.c.audit_id == audit.c.id)
