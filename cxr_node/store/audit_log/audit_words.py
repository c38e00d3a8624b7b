"""Words in the details of the audit log, found by a full-text index.

PostgreSQL indexes them with the row. On SQLite the sealer (`audit_chain.seal`) fills the index; rows that it has not
reached yet are compared here, with the same definition of a word. SQLite's index has no times, so a search converts them to row
numbers first.
"""

from __future__ import annotations

import functools
import re
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from typing import Any

from sqlalchemy import Connection, Select, false, func, literal, literal_column, select, text

from cxr_node.store.schema import audit

MOST_NOT_INDEXED = 3000
"""Rows that are compared one by one, the newest: those of some seconds, or of commands while no node runs."""
row_number: Any = literal_column("audit_text.rowid")
"""Of what SQLite's index finds."""
_WORD = re.compile(r"([^\W_]+)(\*?)")
_OUT_OF_ORDER_S = 31 * 86400.0
"""Row numbers follow the times, except for clock steps of less than this."""


def with_words(
    connection: Connection, query: Select[Any], words: str, since: float | None, until: float | None, times: Sequence[Any]
) -> Select[Any]:
    """A query of the log, held to rows with the words, by the index of them; on SQLite `audit_text` has them, with its rowid.

    Args:
        connection: answers what has to be known for it.
        query: of `audit`.
        words: as `audit.search` has them.
        since: UTC seconds since the epoch, inclusive; None: no bound. Likewise `until`, exclusive.
        until: see since.
        times: both as conditions.
    """
    if connection.dialect.name == "sqlite":
        query = query.select_from(text("audit_text")).where(
            row_number == audit.c.id, text("audit_text MATCH :words").bindparams(words=_match(words))
        )
        if since is not None:
            near = audit.c.at < since + _OUT_OF_ORDER_S
            query = query.where(row_number >= _row_number(connection, func.min(audit.c.id), times, near))
        if until is not None:
            near = audit.c.at >= until - _OUT_OF_ORDER_S
            query = query.where(row_number <= _row_number(connection, func.max(audit.c.id), times, near))
        return query
    asked: list[Any] = [func.to_tsquery(literal_column("'simple'"), _as_query(word, star)) for word, star in _WORD.findall(words)]
    indexed = func.to_tsvector(literal_column("'simple'"), _letters(audit.c.detail, " "))
    if not asked:
        return query.where(false())
    return query.where(indexed.op("@@")(functools.reduce(lambda both, one: both.op("&&")(one), asked)))


def _letters(value: Any, between: str) -> Any:
    """A text without what PostgreSQL takes for no letter: in a database whose locale is C, whatever isn't ASCII."""
    return func.regexp_replace(value, literal_column("'[^[:alnum:]]+'"), literal_column(f"'{between}'"), literal_column("'g'"))


def _as_query(word: str, star: str) -> Any:
    """A word as PostgreSQL is asked for it: taken apart just as what was indexed."""
    parts = func.btrim(_letters(literal(word), " & "), literal_column("' &'"))
    return parts + ":*" if star else parts


def not_indexed(connection: Connection, words: str) -> list[int]:
    """Numbers of the rows with the words that SQLite's index doesn't have yet, of the newest MOST_NOT_INDEXED."""
    indexed = connection.execute(text("SELECT max(id) FROM audit_text_docsize")).scalar() or 0
    newest = select(audit.c.id, audit.c.detail).where(audit.c.id > indexed).order_by(audit.c.id.desc()).limit(MOST_NOT_INDEXED)
    rows = [tuple(row) for row in connection.execute(newest)]
    if not rows:
        return []
    with closing(sqlite3.connect(":memory:")) as memory:
        memory.execute("CREATE VIRTUAL TABLE audit_text USING fts5(detail, content='', detail=none)")
        memory.executemany("INSERT INTO audit_text (rowid, detail) VALUES (?, ?)", rows)
        return [row for (row,) in memory.execute("SELECT rowid FROM audit_text WHERE audit_text MATCH ?", (_match(words),))]


def _match(words: str) -> str:
    """The words as FTS5 is asked for them."""
    return " ".join(f'"{word}"{star}' for word, star in _WORD.findall(words)) or '""'


def _row_number(connection: Connection, edge: Any, times: Sequence[Any], near: Any) -> int:
    """The first or last row number of a time: looked up among the rows near its edge, or, without any, among all."""
    number = connection.execute(select(edge).where(*times, near)).scalar()
    if number is None:
        number = connection.execute(select(edge).where(*times)).scalar()
    return int(number or 0)
