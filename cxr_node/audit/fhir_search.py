"""Searches of the audit log with FHIR parameters (IHE ITI-81, and those of AuditEvent in R4)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from cxr_node.audit.events import EVENTS
from cxr_node.audit.fhir import Page
from cxr_node.errors import CxrNodeError
from cxr_node.store.audit_log import audit

if TYPE_CHECKING:
    from sqlalchemy import Engine

_MOST_A_PAGE = 1000
_FIRST_PAGE = 50
_LARGEST = 2**31 - 1
"""Of a row's number, as databases count."""

PARAMETERS = {
    "_id": ("token", "The row's number"),
    "date": ("date", "When: a date or a time, with eq, ge, gt, sa, le, lt or eb before it; may be given twice"),
    "address": ("string", "The address of the origin, by its beginning"),
    "address:exact": ("string", "The whole address of the origin"),
    "agent": ("reference", "Identifier of the participant: an AE title or a user name"),
    "agent.identifier": ("token", "The same"),
    "agent-name": ("string", "The same, by its beginning"),
    "agent-name:exact": ("string", "The same, whole"),
    "patient": ("reference", "Patient ID"),
    "patient.identifier": ("token", "The same"),
    "entity": ("reference", "The subject of the event: Study Instance UID, as urn:oid: or bare, or Patient ID"),
    "entity.identifier": ("token", "The same"),
    "entity-type": ("token", "1: events with a patient; 2: events with a study or a detail"),
    "type": ("token", "Code of the message (DICOM CID 400), such as 110104; several with commas between them"),
    "subtype": ("token", "The node's own name of the event, such as job-done, or a code (DICOM CID 401); several with commas"),
    "action": ("token", "C, R, U, D or E; several with commas"),
    "outcome": ("token", "0: success, 4: failure"),
    "source": ("reference", "AuditSourceID of the node"),
    "source.identifier": ("token", "The same"),
    "_count": ("number", f"Number of entries in a page at most (up to {_MOST_A_PAGE})"),
    "_before": ("number", "The next page, from its link: rows before this one"),
}
"""Name: FHIR's type of parameter, and what it means. Others are refused by name: a search may not quietly find more."""


def search_fhir(engine: Engine, params: Iterable[tuple[str, str]], source_id: str = "CXRNODE") -> Page:
    """Search the log with FHIR's parameters: see PARAMETERS. A caller has the log tell of it (`audit-searched`).

    Args:
        engine: the database.
        params: names and values as in the query of the request; all have to be met.
        source_id: AuditSourceID of the node.

    Raises:
        CxrNodeError: a parameter isn't known, is given twice, or has a value that it can't have.
    """
    given = list(params)
    _check_names(given)
    asked: dict[str, Any] = {}
    events, count = set(EVENTS), _FIRST_PAGE
    nothing = False
    for name, value in given:
        bare = value.rpartition("|")[2]
        if name == "date":
            _add_date(asked, value)
        elif name in ("type", "subtype", "action"):
            events &= set().union(*(_events_with(name, one.rpartition("|")[2]) for one in value.split(",")))
        elif name == "entity-type":
            asked["about"] = _one_of(name, bare, {"1": audit.PERSON, "2": audit.OBJECT})
        elif name == "outcome":
            asked["outcome"] = _one_of(name, bare, {"0": "success", "4": audit.NO_SUCCESS, "8": "none", "12": "none"})
        elif name == "_count":
            count = min(_MOST_A_PAGE, max(1, _number(name, value)))
        elif name == "_before":
            asked["before_id"] = _number(name, value)
        elif name == "_id":
            asked["row_id"] = _number(name, value)
        elif name in ("source", "source.identifier"):
            nothing = nothing or bare != source_id
        else:
            asked |= _of_identifier(name, bare.removeprefix("Patient/"))
    if nothing or not events:
        return Page([], None)
    if events != set(EVENTS):
        asked["events"] = sorted(events)
    rows = list(audit.search(engine, **asked, limit=count + 1))[::-1]
    return Page(rows[:count], rows[count - 1]["id"] if len(rows) > count else None)


def read_fhir(engine: Engine, number: int) -> dict[str, Any] | None:
    """A row of the log by its number; None: there is none."""
    return next(iter(search_fhir(engine, [("_id", str(number))]).rows), None)


def _check_names(given: list[tuple[str, str]]) -> None:
    for name, count in Counter(name for name, _ in given).items():
        if name not in PARAMETERS:
            raise CxrNodeError(f"The search parameter {name!r} is unknown; supported are: {', '.join(PARAMETERS)}.")
        if count > 1 and name != "date":
            raise CxrNodeError(f"{name} is given {count} times: only date may be.")


def _of_identifier(name: str, value: str) -> dict[str, str]:
    """Exactly this, but strings by their beginning: an asterisk is part of a value here, and none of the node's has one."""
    if "*" in value:
        raise CxrNodeError(f"{name}={value!r}: FHIR searches have no wildcards.")
    if name in ("address", "agent-name"):
        value += "*"
    if name.startswith("entity"):
        value = value.removeprefix("urn:oid:")
        is_uid = "." in value and value.replace(".", "").isdigit()  # UIDs are told apart from identifiers by their form
        return {"study_instance_uid" if is_uid else "patient_id": value}
    column = {"address": "host", "agent": "user"}.get(re.split("[.:-]", name)[0], "patient_id")
    return {column: value}


def _events_with(name: str, value: str) -> set[str]:
    found = set()
    for event, form in EVENTS.items():
        codes = {"type": form.kind.value, "action": form.action, "subtype": event}
        if value == codes[name] or (name == "subtype" and form.type is not None and value == form.type.value):
            found.add(event)
    return found


def _add_date(asked: dict[str, Any], value: str) -> None:
    prefix, text = (value[:2], value[2:]) if value[:2].isalpha() else ("eq", value)
    if prefix not in ("eq", "ge", "gt", "sa", "le", "lt", "eb"):
        raise CxrNodeError(f"date={value!r}: the prefixes are eq, ge, gt, sa, le, lt and eb.")
    try:
        begin, end = (moment.timestamp() for moment in _span(text))
    except (ValueError, OverflowError) as error:
        raise CxrNodeError(f"date={value!r} is not a date: write 2026-11-28 or 2026-11-28T14:30:00Z.") from error
    if prefix in ("eq", "ge"):
        asked["since"] = max(asked.get("since", begin), begin)
    if prefix in ("gt", "sa"):
        asked["since"] = max(asked.get("since", end), end)
    if prefix in ("eq", "le"):
        asked["until"] = min(asked.get("until", end), end)
    if prefix in ("lt", "eb"):
        asked["until"] = min(asked.get("until", begin), begin)


def _span(text: str) -> tuple[datetime, datetime]:
    """The time that a FHIR date means, as long as it is exact: a year, a month, a day, a minute, a second, a fraction."""
    begin = datetime.fromisoformat({4: f"{text}-01-01", 7: f"{text}-01"}.get(len(text), text))
    begin = begin if begin.tzinfo else begin.replace(tzinfo=UTC)
    if len(text) == 4:
        return begin, begin.replace(year=begin.year + 1)
    if len(text) == 7:
        return begin, (begin + timedelta(days=32)).replace(day=1)
    if len(text) == 10:
        return begin, begin + timedelta(days=1)
    clock = text.partition("T")[2].partition("Z")[0].partition("+")[0].partition("-")[0]
    if "." in clock:
        return begin, begin + timedelta(milliseconds=1)
    return begin, begin + (timedelta(minutes=1) if len(clock) == 5 else timedelta(seconds=1))


def _one_of(name: str, value: str, known: dict[str, str]) -> str:
    if value not in known:
        raise CxrNodeError(f"{name}={value!r} is none of {', '.join(known)}.")
    return known[value]


def _number(name: str, value: str) -> int:
    if not value.isascii() or not value.isdecimal() or int(value) > _LARGEST:
        raise CxrNodeError(f"{name}={value!r} is not a whole number of at least 0.")
    return int(value)
