"""The commands a person types. What they do is in `commands`, `node` and the rooms; imports wait until they are needed."""

from __future__ import annotations

import csv
import getpass
import json
import sys
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from cxr_node.errors import CxrNodeError
from cxr_node.records import DeliveryState, JobState
from cxr_node.settings import load_settings

app = typer.Typer(
    help="A DICOM node that analyses chest radiographs and returns overlays and structured reports.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
queue_app = typer.Typer(help="Jobs and deliveries: list, show, retry, cancel.", no_args_is_help=True)
audit_app = typer.Typer(help="The audit log.", no_args_is_help=True)
app.add_typer(queue_app, name="queue")
app.add_typer(audit_app, name="audit")

Config = Annotated[
    Path | None, typer.Option("--config", envvar="CXR_NODE_CONFIG", help="Settings file (TOML).", show_default="none: defaults")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


class TableFormat(StrEnum):
    """How a table is printed."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"


class What(StrEnum):
    """The two queues."""

    JOBS = "jobs"
    DELIVERIES = "deliveries"


def main() -> None:
    """Run the command line; errors that are meant for a person are one message and exit status 2."""
    try:
        app()
    except CxrNodeError as error:
        print(f"cxr-node: {error}", file=sys.stderr)
        sys.exit(2)


@app.command()
def serve(config: Config = None) -> None:
    """Run all roles; prints one line when ready to receive; SIGTERM stops in order."""
    from cxr_node import node

    node.serve(load_settings(config), config)


def _role(name: str) -> None:
    def command(config: Config = None) -> None:
        from cxr_node import node

        node.run_role(name, load_settings(config))

    app.command(name, help=f"Run the {name} role alone.")(command)


for _name in ("receive", "work", "deliver"):
    _role(_name)


@app.command()
def analyze(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="DICOM, PNG, JPEG or TIFF files, or folders.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for overlays, reports and results.json.")],
    as_json: AsJson = False,
    config: Config = None,
) -> None:
    """Analyse files without a network; exit status 1 if any was rejected or failed."""
    from cxr_node import logs
    from cxr_node.commands.analyze import analyze_files, collect

    settings = load_settings(config)
    logs.set_up("error")
    found = collect(files)
    if not found:
        raise CxrNodeError("No DICOM files or images were found there.")
    rows = analyze_files(found, out, settings)
    if as_json:
        print(json.dumps(rows, indent=2))
    else:
        _print_table(
            [
                {
                    "source": row["source"],
                    "status": row["status"],
                    "label": row["label"] or "",
                    "probability": f"{row['probabilities'][row['label']]:.3f}" if row["label"] else "",
                    "seconds": f"{row['seconds']['total']:.2f}" if row["seconds"] else "",
                    "reasons": " ".join(row["reasons"]),
                }
                for row in rows
            ]
        )
    if any(row["status"] != "done" for row in rows):
        raise typer.Exit(1)


@app.command()
def status(config: Config = None, as_json: AsJson = False) -> None:
    """Counts by state, oldest waiting age, last success, free disk, model version."""
    from cxr_node.commands.status import node_status

    found = node_status(load_settings(config))
    if as_json:
        print(json.dumps(found, indent=2))
    else:
        _print_table([{"what": key, "value": _in_words(value)} for key, value in found.items()])


@app.command("check-config")
def check_config(
    file: Annotated[Path | None, typer.Argument(metavar="F", help="Settings file.")] = None, config: Config = None
) -> None:
    """Validate the settings and C-ECHO every destination; exit status 1 if something is wrong."""
    from cxr_node.deliver.check import check_destinations

    settings = load_settings(file or config)
    print("The settings are valid.")
    findings = check_destinations(settings)
    for finding in findings:
        print(f"{finding.severity:<8} {finding.destination}: {finding.text}")
    if not settings.destinations:
        print("warning  no [[destinations]]: results will be kept on disk and sent nowhere")
    if any(finding.severity == "error" for finding in findings):
        raise typer.Exit(1)


@app.command()
def send(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="DICOM, PNG or JPEG files, or folders.")],
    to: Annotated[str, typer.Option("--to", metavar="HOST:PORT", help="Where to.")],
    called: Annotated[str, typer.Option("--called", metavar="AE", help="AE title of the receiver.")],
    calling: Annotated[str, typer.Option("--calling", metavar="AE", help="AE title to send under.")] = "CXRNODE-SEND",
) -> None:
    """Send files by C-STORE, for trying things out; exit status 1 if any was not stored."""
    from cxr_node.commands.analyze import collect
    from cxr_node.deliver.send import send_files

    host, _, port = to.rpartition(":")
    if not host or not port.isdigit():
        raise CxrNodeError(f"--to {to!r} is not HOST:PORT, for example 127.0.0.1:11112.")
    found = collect(files)
    outcomes = send_files(found, host, int(port), called, calling)
    for path, outcome in zip(found, outcomes, strict=True):
        text = "" if outcome.status is None else f"0x{outcome.status:04X} "
        print(f"{'stored' if outcome.stored else 'NOT STORED'} {text}{path} {outcome.error}".rstrip())
    if not all(outcome.stored for outcome in outcomes):
        raise typer.Exit(1)


@app.command()
def demo(
    files: Annotated[list[Path] | None, typer.Argument(metavar="[FILE]...", help="DICOM, PNG or JPEG; none: phantoms.")] = None,
    out: Annotated[Path, typer.Option("--out", help="Folder for all that the demonstration makes.")] = Path("demo-output"),
) -> None:
    """Show the whole path: an emulated modality, the node, a small PACS; stops everything it started."""
    from cxr_node import logs
    from cxr_node.commands.demo import run_demo

    logs.set_up("error")
    if not run_demo(files or [], out, Console(width=max(100, Console().width))):
        raise typer.Exit(1)


@queue_app.command("list")
def queue_list(
    what: Annotated[What, typer.Argument(help="Which queue.")] = What.JOBS,
    state: Annotated[str, typer.Option(help="Only this state.")] = "",
    study: Annotated[str, typer.Option(help="Only this Study Instance UID.")] = "",
    sender: Annotated[str, typer.Option(help="Only from this calling AE title.")] = "",
    destination: Annotated[str, typer.Option(help="Deliveries: only to this destination.")] = "",
    limit: Annotated[int | None, typer.Option(help="At most so many.")] = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """List jobs or deliveries, oldest first."""
    from cxr_node.store import overview

    states: type[StrEnum] = JobState if what == What.JOBS and not destination else DeliveryState
    if state and state not in list(states):
        raise CxrNodeError(f"--state {state!r} is none of {', '.join(states)}.")
    engine = _engine(config)
    if states is JobState:
        rows = overview.list_jobs(engine, state=state, study=study, sender=sender, limit=limit)
    else:
        rows = overview.list_deliveries(engine, state=state, study=study, sender=sender, destination=destination, limit=limit)
    if as_json:
        print(json.dumps(rows, indent=2))
    elif states is JobState:
        _print_table([_brief_job(row) for row in rows])
    else:
        keys = ("id", "job_id", "destination", "kind", "state", "attempts", "reason", "study_instance_uid")
        _print_table([{key: row[key] for key in keys} for row in rows])


@queue_app.command("show")
def queue_show(job: Annotated[int, typer.Argument(help="Job number.")], config: Config = None, as_json: AsJson = False) -> None:
    """Show one job with its results and deliveries."""
    from cxr_node.store import overview

    found = overview.show_job(_engine(config), job)
    if found is None:
        raise CxrNodeError(f"There is no job {job}; `cxr-node queue list` shows those there are.")
    if as_json:
        print(json.dumps(found, indent=2))
    else:
        _print_table([{"what": key, "value": _in_words(value)} for key, value in found.items()])


def _change(action: str, help_text: str) -> None:
    def command(
        numbers: Annotated[
            list[int] | None, typer.Argument(metavar="[NUMBER]...", help="Jobs, or with --deliveries deliveries.")
        ] = None,
        all_held: Annotated[bool, typer.Option("--held", help="All that are held.")] = False,
        of_deliveries: Annotated[bool, typer.Option("--deliveries", help="Deliveries, not jobs.")] = False,
        destination: Annotated[str, typer.Option(help="With --held: deliveries to this destination.")] = "",
        config: Config = None,
    ) -> None:
        from cxr_node.store import overview

        engine = _engine(config)
        deliveries = of_deliveries or bool(destination)
        chosen = list(numbers or [])
        if all_held and deliveries:
            chosen += [row["id"] for row in overview.list_deliveries(engine, state="held", destination=destination)]
        elif all_held:
            chosen += [row["id"] for row in overview.list_jobs(engine, state="held")]
        noun = "delivery" if deliveries else "job"
        if not chosen and not all_held:
            raise CxrNodeError(f"Name the {noun} by its number, or all that are held with --held.")
        changes = {
            ("retry", False): overview.retry_job,
            ("retry", True): overview.retry_delivery,
            ("cancel", False): overview.cancel_job,
            ("cancel", True): overview.cancel_delivery,
        }
        change = changes[action, deliveries]
        refused = [number for number in chosen if not change(engine, number, getpass.getuser())]
        print(f"{action}: {len(chosen) - len(refused)} of {len(chosen)}")
        if refused:
            listed = ", ".join(map(str, refused))
            raise CxrNodeError(f"{noun} {listed}: not there, or in a state that can't be changed by {action}.")

    queue_app.command(action, help=help_text)(command)


_change("retry", "Put held, rejected or cancelled jobs (or deliveries) back into the queue, due now.")
_change("cancel", "Take waiting or held jobs (or deliveries) out of the queue.")


@audit_app.command("search")
def audit_search(
    patient: Annotated[str, typer.Option(help="Patient ID; * is a wildcard, here and below.")] = "",
    study: Annotated[str, typer.Option(help="Study Instance UID.")] = "",
    event: Annotated[str, typer.Option(help="Event, for example instance-received or job-*.")] = "",
    since: Annotated[datetime | None, typer.Option(help="From this time on (local).")] = None,
    until: Annotated[datetime | None, typer.Option(help="Before this time (local).")] = None,
    user: Annotated[str, typer.Option(help="AE title of the other side, or the operating system's user.")] = "",
    limit: Annotated[int | None, typer.Option(help="At most so many, the newest.")] = None,
    table_format: Annotated[TableFormat, typer.Option("--format", help="How it is printed.")] = TableFormat.TABLE,
    config: Config = None,
) -> None:
    """Search the audit log, oldest first. The search itself is audited."""
    from cxr_node.records import AuditEvent
    from cxr_node.store import audit

    engine = _engine(config)
    rows = [
        {**row, "at": datetime.fromtimestamp(row["at"], UTC).isoformat(timespec="milliseconds")}
        for row in audit.search(
            engine,
            patient_id=patient,
            study_instance_uid=study,
            event=event,
            user=user,
            since=since.timestamp() if since else None,
            until=until.timestamp() if until else None,
            limit=limit,
        )
    ]
    audit.record(engine, AuditEvent("audit-searched", user=getpass.getuser(), patient_id=patient, study_instance_uid=study))
    if table_format == TableFormat.JSON:
        print(json.dumps(rows, indent=2))
    elif table_format == TableFormat.CSV:
        writer = csv.DictWriter(
            sys.stdout, rows[0] if rows else ["id", "at", "event", "outcome", "user", "host", "patient_id", "detail"]
        )
        writer.writeheader()
        writer.writerows(rows)
    else:
        _print_table(rows)


def _engine(config: Path | None) -> Any:
    from cxr_node.store.database import open_database

    return open_database(load_settings(config))


def _brief_job(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": row["id"],
        "state": row["state"],
        "label": row["findings"].get("label", ""),
        "attempts": row["attempts"],
        "sender": row["sender"],
        "study_instance_uid": row["study_instance_uid"],
        "reasons": " ".join(row["reasons"]),
    }


def _in_words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_in_words(item)}" for key, item in value.items())
    if isinstance(value, list):
        return "\n".join(_in_words(item) for item in value)
    return "-" if value is None else str(value)


def _print_table(rows: list[dict[str, Any]]) -> None:
    if not rows:
        print("nothing found")
        return
    table = Table(*rows[0], box=None, pad_edge=False)
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    console = Console()
    Console(width=None if console.is_terminal else 250).print(table)
