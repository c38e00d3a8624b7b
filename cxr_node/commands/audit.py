"""`cxr-node audit`: who did what to which study, when."""

from __future__ import annotations

import csv
import json
import sys
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated

import typer

from cxr_node.commands.common import Config, moment, open_engine, operator, print_table
from cxr_node.records import AuditEvent
from cxr_node.store import audit

app = typer.Typer(help="The audit log.", no_args_is_help=True)


@app.callback()
def main() -> None:
    """The audit log."""


class TableFormat(StrEnum):
    """How a table is printed."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"


@app.command("search")
def audit_search(
    patient: Annotated[str, typer.Option(help="Patient ID; * is a wildcard, here and below.")] = "",
    study: Annotated[str, typer.Option(help="Study Instance UID.")] = "",
    event: Annotated[str, typer.Option(help="Event, for example instance-received or job-*.")] = "",
    since: Annotated[str, typer.Option(metavar="TIME", help="From this time on: UTC, unless it says +01:00 or the like.")] = "",
    until: Annotated[str, typer.Option(metavar="TIME", help="Before this time; as --since.")] = "",
    user: Annotated[str, typer.Option(help="AE title of the other side, or the operating system's user.")] = "",
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many, the newest.")] = None,
    table_format: Annotated[TableFormat, typer.Option("--format", help="How it is printed.")] = TableFormat.TABLE,
    config: Config = None,
) -> None:
    """Search the audit log, oldest first. Times are UTC, those given and those shown. The search itself is audited."""
    query = {"patient": patient, "study": study, "event": event, "since": since, "until": until, "user": user, "limit": limit}
    given = {name: value for name, value in query.items() if value}
    since_s, until_s = moment(since, "--since"), moment(until, "--until")
    with open_engine(config) as engine:
        rows = [
            {**row, "at": datetime.fromtimestamp(row["at"], UTC).isoformat(timespec="milliseconds")}
            for row in audit.search(
                engine,
                patient_id=patient,
                study_instance_uid=study,
                event=event,
                user=user,
                since=since_s,
                until=until_s,
                limit=limit,
            )
        ]
        searched = AuditEvent(
            "audit-searched",
            user=operator(),
            patient_id=patient[:64],
            study_instance_uid=study[:64],
            detail=json.dumps(given, ensure_ascii=False),
        )
        audit.record(engine, searched)
    if table_format == TableFormat.JSON:
        print(json.dumps(rows, indent=2))
    elif table_format == TableFormat.CSV:
        writer = csv.DictWriter(sys.stdout, audit.COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    else:
        print_table(rows)
