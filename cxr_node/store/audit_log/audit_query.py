"""Queries of the audit log whose first page is fast however large the log is.

Rows are read newest first along an index on (filter column, time) until the page is full. Three kinds of search need more:

- several conditions: the query uses the index of the most selective one and only compares the others. SQLite would guess which
  one that is, so the rows of each condition are counted first, up to a limit. The indices of events, outcomes and addresses hold
  other columns of few values too: the page is found in the index alone, however few rows meet all conditions.
- any of several events or outcomes: the query reads a page of each, and merges the newest.
- words: see `audit_words`.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Select, func, literal_column, or_, select, union, union_all

from cxr_node.store.audit_log import audit_words
from cxr_node.store.distinct import distinct
from cxr_node.store.schema import FOUND_BY_BEGINNING, audit, instances
from cxr_node.store.wildcards import as_regex, begins_with, is_beginning

NO_SUCCESS = "!success"
"""As `outcome` of a search: whatever isn't a success."""
PERSON, OBJECT = "person", "object"
"""As `about` of a search: what names a patient; what names a study or has a detail."""

_FAILURES = ("failure", "rejected")
_PARTLY_INDEXED = {"sop_instance_uid": "", "host": "", "outcome": "success"}
"""An index leaves out rows with this value; to be used, the query has to say that it doesn't want those."""
_COVERING = {name: {"event", "outcome", "user", "host"} for name in ("outcome", "event")} | {"host": {"user", "host"}}
"""Columns whose index holds other columns too."""
_FEW = 2000
"""Rows that are found and sorted at once."""
_NEWEST = 3000
"""Rows whose words are compared one by one."""
_MOST_BRANCHES = 24


@dataclass(frozen=True)
class AuditSearch:
    """What a search asks for: see `audit.search`, whose arguments these are; `exact` is by column, with * as a wildcard."""

    exact: Mapping[str, str] = field(default_factory=dict)
    accession_number: str = ""
    events: Collection[str] = ()
    about: str = ""
    words: str = ""
    since: float | None = None
    until: float | None = None
    after_id: int | None = None
    before_id: int | None = None
    row_id: int | None = None
    limit: int | None = None


def query_of(connection: Connection, wanted: AuditSearch) -> Select[Any]:
    """The statement, whose rows come oldest first; `connection` answers what has to be known for it."""
    on_sqlite = connection.dialect.name == "sqlite"
    by_number = wanted.after_id is not None or (bool(wanted.words) and on_sqlite)
    times = _times(wanted)
    filters = _Filters.of(connection, wanted)
    conditions = [*times, *_numbers(connection, wanted, by_number=by_number)]
    query = select(audit)
    if wanted.accession_number:
        conditions.append(_of_accession(connection, wanted.accession_number))
    if wanted.about:
        has = {PERSON: audit.c.patient_id != "", OBJECT: (audit.c.study_instance_uid != "") | (audit.c.detail != "")}
        conditions.append(has[wanted.about])
    if wanted.words:
        query = audit_words.with_words(connection, query, wanted.words, wanted.since, wanted.until, times)
    is_found_otherwise = bool(wanted.accession_number or wanted.words or wanted.row_id is not None or wanted.after_id is not None)
    first = "" if is_found_otherwise else filters.rarest(connection, times)
    in_index = first in filters.covering and not wanted.about and wanted.limit is not None
    if in_index:
        query = select(audit.c.id, audit.c.at)
    query = query.where(*conditions, *filters.conditions(first, are_covered=in_index))
    order: tuple[Any, ...] = (audit.c.id,) if by_number else (audit.c.at, audit.c.id)
    if wanted.words and not on_sqlite and not _are_common(connection, query, wanted):
        order = (audit.c.at + 0, audit.c.id)  # by the index of words, not in the order of time until they are found
    if wanted.words and on_sqlite:
        not_indexed = audit.c.id.in_(audit_words.not_indexed(connection, wanted.words))
        newer = select(audit).where(not_indexed, *conditions, *filters.conditions(first), *filters.any_of(first))
        return _together(query.where(*filters.any_of(first)), newer, wanted.limit)
    if wanted.limit is None:
        return query.where(*filters.any_of(first)).order_by(*order)
    newest = [one.desc() for one in order]
    branches = filters.branches() if first in filters.several else []
    if branches:
        pages = [select(query.where(*branch).order_by(*newest).limit(wanted.limit).subquery()) for branch in branches]
        together = union_all(*pages).subquery()
        page = select(together).order_by(together.c.at.desc(), together.c.id.desc()).limit(wanted.limit).subquery()
    else:
        if first in filters.several and not filters.are_few(connection, first, times):
            first = ""
        page = query.where(*filters.any_of(first)).order_by(*newest).limit(wanted.limit).subquery()
    if in_index:
        return select(audit).where(audit.c.id.in_(select(page.c.id))).order_by(audit.c.at, audit.c.id)
    return select(page).order_by(*((page.c.id,) if by_number else (page.c.at, page.c.id)))


def _together(indexed: Select[Any], newer: Select[Any], limit: int | None) -> Select[Any]:
    """What either finds, each row once: a row may be indexed in between. By row numbers, oldest first."""
    if limit is not None:
        indexed = select(indexed.order_by(audit_words.row_number.desc()).limit(limit).subquery())
        newer = select(newer.order_by(audit.c.id.desc()).limit(limit).subquery())
    both = union(indexed, newer).subquery()
    if limit is None:
        return select(both).order_by(both.c.id)
    page = select(both).order_by(both.c.id.desc()).limit(limit).subquery()
    return select(page).order_by(page.c.id)


@dataclass(frozen=True)
class _Filters:
    """Conditions on single columns: equal to a value, one of several values, like a text with wildcards."""

    equal: Mapping[str, str]
    several: Mapping[str, Sequence[str]]
    like: Mapping[str, str]
    dialect: str

    @classmethod
    def of(cls, connection: Connection, wanted: AuditSearch) -> _Filters:
        given = {name: value for name, value in wanted.exact.items() if value}
        several: dict[str, Sequence[str]] = {"event": sorted(wanted.events)} if wanted.events else {}
        if given.get("outcome") == NO_SUCCESS:
            several["outcome"] = _FAILURES
            del given["outcome"]
        for name in ("event", "user"):  # of few values, those that match are found first
            value = given.get(name, "")
            known = distinct(connection, audit.c[name]) if "*" in value else None
            if known is not None:
                matched = [one for one in known if as_regex(value).fullmatch(one)]
                several[name] = sorted(set(matched) & set(several.get(name, matched)))
                del given[name]
        equal = {name: value for name, value in given.items() if "*" not in value}
        like = {name: value for name, value in given.items() if "*" in value}
        return cls(equal, several, like, connection.dialect.name)

    def rarest(self, connection: Connection, times: Sequence[Any]) -> str:
        """The column to look up: that whose condition fewest rows of the time meet."""
        names = [*self.equal, *self.several]
        names += [name for name, value in self.like.items() if _is_beginning(connection, name, value)]
        if len(names) == 1 and names[0] not in self.like:
            return names[0]
        counted = {name: _count(connection, [self._one(name), *times]) for name in names}
        if min(counted.values(), default=0) >= _FEW:
            names = self.covering or names
        found = min(names, key=lambda name: counted[name], default="")
        return "" if found in self.like and counted[found] >= _FEW else found

    @property
    def covering(self) -> list[str]:
        """The columns whose index holds all columns of the conditions, of which there are several."""
        names = {*self.equal, *self.several, *self.like}
        held = [name for name, columns in _COVERING.items() if len(names) > 1 and name in names and names <= columns]
        return [name for name in held if name not in self.like and self.equal.get(name) != "success"]

    def are_few(self, connection: Connection, name: str, times: Sequence[Any]) -> bool:
        """Whether all rows of the time that meet a condition can be sorted at once."""
        return _count(connection, [self._one(name), *times]) < _FEW

    def conditions(self, first: str, *, are_covered: bool = False) -> list[Any]:
        """All but those on one of several values; `first` is looked up in its index, the others are not.

        are_covered: the others are compared in that index: PostgreSQL does so only where it could look them up.
        """
        are_plain = are_covered and self.dialect == "postgresql"
        found = [
            audit.c[name] == value if are_plain and name != first else self._equal(name, value, by_index=name == first)
            for name, value in self.equal.items()
        ]
        return found + [
            begins_with(audit.c[name], value, self.dialect) if name == first else _like(audit.c[name] + "", value)
            for name, value in self.like.items()
        ]

    def any_of(self, first: str) -> list[Any]:
        """The conditions on one of several values."""
        return [self._in(name, values, by_index=name == first) for name, values in self.several.items()]

    def branches(self) -> list[list[Any]]:
        """The same taken apart, a list of conditions for each combination; empty: they are too many, or there is none."""
        combinations = list(itertools.product(*self.several.values()))
        if len(combinations) > _MOST_BRANCHES:
            return []
        names = list(self.several)
        return [
            [self._equal(name, value, by_index=name == names[0]) for name, value in zip(names, one, strict=True)]
            for one in combinations
        ]

    def _one(self, name: str) -> Any:
        if name in self.equal:
            return self._equal(name, self.equal[name], by_index=True)
        if name in self.several:
            return self._in(name, self.several[name], by_index=True)
        return begins_with(audit.c[name], self.like[name], self.dialect)

    def _equal(self, name: str, value: str, *, by_index: bool) -> Any:
        if not by_index:
            return self._compared(name) == value
        column, left_out = audit.c[name], _PARTLY_INDEXED.get(name)
        return column == value if left_out in (None, value) else (column == value) & (column != left_out)

    def _in(self, name: str, values: Sequence[str], *, by_index: bool) -> Any:
        if not by_index:
            return self._compared(name).in_(values)
        column, left_out = audit.c[name], _PARTLY_INDEXED.get(name)
        return column.in_(values) if left_out is None or left_out in values else column.in_(values) & (column != left_out)

    def _compared(self, name: str) -> Any:
        """A column in a form that no index has; of another collation, PostgreSQL still knows how frequent its values are."""
        return audit.c[name].collate("C") if self.dialect == "postgresql" else audit.c[name] + ""


def _times(wanted: AuditSearch, rows: Any = audit) -> list[Any]:
    since = [] if wanted.since is None else [rows.c.at >= wanted.since]
    return since if wanted.until is None else [*since, rows.c.at < wanted.until]


def _numbers(connection: Connection, wanted: AuditSearch, *, by_number: bool) -> list[Any]:
    """Conditions on the row's number; what comes before a row does so in the order of the search."""
    found: list[Any] = []
    if wanted.row_id is not None:
        found.append(audit.c.id == wanted.row_id)
    if wanted.after_id is not None:
        found.append(audit.c.id > wanted.after_id)
    if wanted.before_id is not None:
        at = None
        if not by_number:
            at = connection.execute(select(audit.c.at).where(audit.c.id == wanted.before_id)).scalar()
        if at is None:
            found.append(audit.c.id < wanted.before_id)
        else:
            found += [audit.c.at <= at, or_(audit.c.at < at, audit.c.id < wanted.before_id)]
    return found


def _count(connection: Connection, conditions: Sequence[Any]) -> int:
    """How many rows, up to _FEW."""
    some = select(literal_column("1")).select_from(audit).where(*conditions).limit(_FEW).subquery()
    return int(connection.execute(select(func.count()).select_from(some)).scalar() or 0)


def _like(column: Any, value: str) -> Any:
    pattern = value.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_").replace("*", "%")
    return column.ilike(pattern, escape="\\")


def _is_beginning(connection: Connection, name: str, value: str) -> bool:
    """Whether an index finds what begins so."""
    is_ordered = connection.dialect.name == "sqlite" or name in FOUND_BY_BEGINNING
    return is_ordered and is_beginning(value)


def _are_common(connection: Connection, query: Select[Any], wanted: AuditSearch) -> bool:
    """Whether a page of what it finds is among the newest rows of the time: PostgreSQL's own guess of rare words is far off."""
    limit, conditions, looked_at = wanted.limit, query.whereclause, audit.alias("looked_at")
    if limit is None or conditions is None:
        return True
    newest = select(looked_at.c.id).where(*_times(wanted, looked_at)).order_by(looked_at.c.at.desc()).limit(_NEWEST)
    some = select(audit.c.id).where(audit.c.id.in_(newest), conditions).limit(limit).subquery()
    return int(connection.execute(select(func.count()).select_from(some)).scalar() or 0) >= limit


def _of_accession(connection: Connection, value: str) -> Any:
    """What was recorded with the number, and of the studies that it was seen with."""
    if "*" in value:
        return _like(audit.c.accession_number, value)
    with_number = (audit.c.accession_number == value) & (audit.c.accession_number != "")
    told = select(audit.c.study_instance_uid).where(with_number)
    known = select(instances.c.study_instance_uid).where(instances.c.accession_number == value)
    studies = [study for study in connection.execute(union(told, known)).scalars() if study]
    return or_(with_number, audit.c.study_instance_uid.in_(studies))
