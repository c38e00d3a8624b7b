"""`cxr-node audit`: search, histories, verification, archives."""

from __future__ import annotations

import csv
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cxr_node.cli.common import Config, open_engine, operator, print_table
from cxr_node.errors import CxrNodeError
from cxr_node.records import AuditEvent, quantity
from cxr_node.security.printable import cell
from cxr_node.settings import load_settings
from cxr_node.store import backup
from cxr_node.store.audit_log import audit, audit_chain
from cxr_node.store.times import iso_to_the_millisecond, parse_time

if TYPE_CHECKING:
    from sqlalchemy import Engine

app = typer.Typer(help="The audit log: search, study, patient, verify, export, purge.", no_args_is_help=True)

_FOLLOWS_EVERY_S = 1.0
_FIRST_FOLLOWED = 10


@app.callback()
def main() -> None:
    """Search the audit log."""


class TableFormat(StrEnum):
    """How a table is printed."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"


class EventOutcome(StrEnum):
    """How an event ended."""

    SUCCESS = "success"
    FAILURE = "failure"
    REJECTED = "rejected"


@app.command("search")
def audit_search(
    patient: Annotated[str, typer.Option(help="Patient ID. * is a wildcard, here and below.")] = "",
    study: Annotated[str, typer.Option(help="Study Instance UID.")] = "",
    accession: Annotated[str, typer.Option(help="Accession number; also finds the events of its studies.")] = "",
    instance: Annotated[str, typer.Option(help="SOP Instance UID.")] = "",
    event: Annotated[str, typer.Option(help="Event, for example instance-received or job-*.")] = "",
    since: Annotated[str, typer.Option(metavar="TIME", help="From this time on. UTC, or with an offset such as +01:00.")] = "",
    until: Annotated[str, typer.Option(metavar="TIME", help="Before this time, written as for --since.")] = "",
    user: Annotated[str, typer.Option(help="AE title of the peer, destination, or user of the operating system.")] = "",
    address: Annotated[str, typer.Option(help="Address of the origin.")] = "",
    outcome: Annotated[EventOutcome | None, typer.Option(help="Only events with this outcome.")] = None,
    words: Annotated[str, typer.Option("--text", help="Words in the detail; the start of a word with * after it.")] = "",
    limit: Annotated[int | None, typer.Option(min=1, help="Number of rows at most; the newest are shown.")] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Keep printing new events, one JSON object per line.")] = False,
    table_format: Annotated[TableFormat, typer.Option("--format", help="Output format.")] = TableFormat.TABLE,
    config: Config = None,
) -> None:
    """Search the audit log, oldest first. All times are UTC. The search is audited."""
    query = {
        **{"patient": patient, "study": study, "accession": accession, "instance": instance, "event": event, "user": user},
        **{"address": address, "outcome": outcome and outcome.value, "text": words, "since": since, "until": until},
        **{"limit": limit, "follow": follow},
    }
    asked: dict[str, Any] = {
        **{"patient_id": patient, "study_instance_uid": study, "accession_number": accession, "sop_instance_uid": instance},
        **{"event": event, "user": user, "host": address, "outcome": outcome.value if outcome else "", "words": words},
        **{"since": parse_time(since, "--since"), "until": parse_time(until, "--until")},
    }
    with open_engine(config) as engine:
        if words:
            audit_chain.seal_all(engine)  # which indexes the words
        if follow:
            _record_search(engine, query)
            _follow(engine, asked, limit)
            return
        rows = [_shown(row) for row in audit.search(engine, **asked, limit=limit)]
        _record_search(engine, query)
    if table_format == TableFormat.JSON:
        print(json.dumps(rows, indent=2))
    elif table_format == TableFormat.CSV:
        writer = csv.DictWriter(sys.stdout, audit.COLUMNS)
        writer.writeheader()
        writer.writerows({key: cell(str(value)) for key, value in row.items()} for row in rows)
    else:
        print_table(rows)


@app.command("study")
def audit_study(
    study_instance_uid: Annotated[str, typer.Argument(metavar="UID", help="Study Instance UID.")], config: Config = None
) -> None:
    """Show the history of a study in sentences. Times are UTC. The query is audited."""
    _tell(config, {"study": study_instance_uid}, study_instance_uid=study_instance_uid)


@app.command("patient")
def audit_patient(patient_id: Annotated[str, typer.Argument(metavar="ID", help="Patient ID.")], config: Config = None) -> None:
    """Show the history of a patient's images in sentences. Times are UTC. The query is audited."""
    _tell(config, {"patient": patient_id}, patient_id=patient_id)


@app.command("verify")
def audit_verify(
    file: Annotated[
        Path | None, typer.Argument(help="An archive or a backup. Default: the node's database.", show_default=False)
    ] = None,
    key: Annotated[Path | None, typer.Option(help="Your copy of signing-key.pub.pem. Default: the node's own.")] = None,
    checkpoints: Annotated[
        Path | None,
        typer.Option(help="File with the checkpoints of a repository, such as its log. Default: the node's own."),
    ] = None,
    config: Config = None,
) -> None:
    """Verify that no row was changed, removed or inserted. Exit status 1: one was. The check is audited."""
    from cxr_node.audit import archive, chain, signing
    from cxr_node.audit.keeper import record_verification

    settings = load_settings(config)
    whose = signing.public_key(key) if key else signing.own_public_key(settings)
    statements = chain.read_statements(checkpoints or chain.statements_file(settings))
    if checkpoints is not None and not statements:
        raise CxrNodeError(f"{checkpoints} contains no checkpoint: name the log of a repository, or a copy of checkpoints.jsonl.")
    with open_engine(config) as engine:
        if file is None:
            audit_chain.seal_all(engine)
            verification = chain.verify(engine, whose, statements)
        elif archive.is_archive(file):
            verification = archive.verify_archive(file, whose)
        else:
            with backup.opened(file) as copy:
                verification = chain.verify(copy, whose, statements, is_whole=False)
        record_verification(engine, verification, operator(), file.name if file else "")
    for finding in verification.findings:
        print(finding.text)
    if verification.findings:
        raise typer.Exit(1)
    print(f"{verification.text} Key {signing.fingerprint(whose)}.")
    if file is None and not statements:
        print("There are no checkpoints outside the database: a truncated log would not be detected.")


@app.command("export")
def audit_export(
    until: Annotated[str, typer.Option(metavar="TIME", help="Events before this time: UTC, or with an offset such as +01:00.")],
    out: Annotated[Path | None, typer.Option(help="Output file. Default: a new file in the folder of archives.")] = None,
    config: Config = None,
) -> None:
    """Export the events before a time to an archive that can be verified on its own, and print its path."""
    from cxr_node.audit import archive

    until_s = parse_time(until, "--until")
    if until_s is None:
        raise CxrNodeError("--until is empty: name a time, such as 2026-01-01.")
    with open_engine(config) as engine:
        path = archive.write_archive(engine, load_settings(config), until_s, operator(), out)
    print(path if path else "nothing to export")


@app.command("purge")
def audit_purge(
    file: Annotated[Path, typer.Argument(help="The archive whose rows are removed.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    config: Config = None,
) -> None:
    """Delete the events that an archive holds, once all repositories have them. Keep the archive: it is then the only copy."""
    from cxr_node.audit import archive

    if not yes:
        typer.confirm(f"Remove the rows that {file} holds from the database?", abort=True)
    with open_engine(config) as engine:
        print(f"{quantity(archive.purge(engine, load_settings(config), file, operator()), 'row')} removed")


def _tell(config: Path | None, query: dict[str, Any], **asked: Any) -> None:
    from cxr_node.audit.sentences import sentences

    with open_engine(config) as engine:
        lines = list(sentences(audit.search(engine, **asked)))
        _record_search(engine, query)
    print("\n".join(lines) or "No events found.")


def _follow(engine: Engine, asked: dict[str, Any], limit: int | None) -> None:
    """Print what matches, and what is added, until Ctrl-C."""
    last_id: int | None = None
    words = asked.pop("words")
    if words:
        raise CxrNodeError("--follow and --text exclude each other: search the printed text instead.")
    with _until_interrupted():
        while True:
            for row in audit.search(
                engine, **asked, after_id=last_id, limit=limit or _FIRST_FOLLOWED if last_id is None else None
            ):
                last_id = max(row["id"], last_id or 0)
                print(json.dumps(_shown(row)), flush=True)
            if last_id is None:
                last_id = next((row["id"] for row in audit.search(engine, after_id=0, limit=1)), 0)
            time.sleep(_FOLLOWS_EVERY_S)


@contextmanager
def _until_interrupted() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        return


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "at": iso_to_the_millisecond(row["at"])}


def _record_search(engine: Engine, query: dict[str, Any]) -> None:
    given = {name: value for name, value in query.items() if value}
    searched = AuditEvent(
        "audit-searched",
        user=operator(),
        patient_id=str(given.get("patient", ""))[:64],
        study_instance_uid=str(given.get("study", ""))[:64],
        detail=json.dumps(given, ensure_ascii=False),
    )
    audit.record(engine, searched)
