"""`cxr-node queue`: jobs and deliveries, listed, shown, retried, cancelled."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from cxr_node.cli.common import AsJson, Config, node_settings, open_engine, operator, print_table, time_in_words, value_text
from cxr_node.errors import CxrNodeError
from cxr_node.records import INDETERMINATE, REPORT_CLASS_NAMES, AuditEvent, DeliveryState, JobState, quantity
from cxr_node.store.audit_log import audit
from cxr_node.store.queue import changes
from cxr_node.store.queue.selection import Selection
from cxr_node.store.times import iso, parse_time
from cxr_node.store.views import overview

if TYPE_CHECKING:
    from sqlalchemy import Engine

app = typer.Typer(help="Jobs and deliveries: list, show, retry, accept, cancel.", no_args_is_help=True)

_TIME = "UTC, unless it has an offset such as +01:00"
_SINCE = f"Jobs created, deliveries sent (or created) since then. {_TIME}."
_FILTERS: dict[str, Any] = {
    "state": Annotated[str, typer.Option(help="Only this state.")],
    "study": Annotated[str, typer.Option(help="Only this Study Instance UID.")],
    "patient": Annotated[str, typer.Option(help="Only this Patient ID.")],
    "accession": Annotated[str, typer.Option(help="Only this Accession Number.")],
    "sop": Annotated[str, typer.Option(help="Only this SOP Instance UID, of an image or of a result.")],
    "sender": Annotated[str, typer.Option(help="Only from this calling AE title.")],
    "kind": Annotated[str, typer.Option(help="Deliveries: only of this kind of result.")],
    "destination": Annotated[str, typer.Option(help="Deliveries: only to this destination.")],
    "since": Annotated[str, typer.Option(metavar="TIME", help=_SINCE)],
    "until": Annotated[str, typer.Option(metavar="TIME", help="And before this time, written as for --since.")],
}
"""The options of a selection, the same for every command that takes one."""
Deliveries = Annotated[bool, typer.Option("--deliveries", help="Deliveries, not jobs.")]
Held = Annotated[bool, typer.Option("--held", help="Everything that is held; the same as --state held.")]
Numbers = Annotated[list[int] | None, typer.Argument(metavar="[NUMBER]...", help="Jobs, or deliveries with --deliveries.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Count what would change, and change nothing.")]


def _with_filters(command: Callable[..., None]) -> Callable[..., None]:
    """The command with the options of _FILTERS, which it gets as one mapping, `filters`."""

    @functools.wraps(command)
    def with_filters(**options: Any) -> None:
        command(filters={name: options.pop(name) for name in _FILTERS}, **options)

    hints = get_type_hints(command, include_extras=True)
    own = [Parameter.replace(one, annotation=hints[one.name]) for one in signature(command).parameters.values()]
    filters = [Parameter(name, Parameter.KEYWORD_ONLY, default="", annotation=kind) for name, kind in _FILTERS.items()]
    place = [one.name for one in own].index("config")
    options = [one.replace(kind=Parameter.KEYWORD_ONLY) for one in (*own[1:place], *filters, *own[place:])]
    with_filters.__signature__ = Signature(options)  # type: ignore[attr-defined]
    with_filters.__annotations__ = {one.name: one.annotation for one in options}
    return with_filters


@app.command("list")
@_with_filters
def queue_list(
    filters: dict[str, str],
    words: Annotated[
        list[str] | None, typer.Argument(metavar="[jobs|deliveries] [NUMBER]...", help="Queue (jobs or deliveries), and numbers.")
    ] = None,
    of_deliveries: Deliveries = False,
    all_held: Held = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Number of rows at most.")] = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """List jobs or deliveries, oldest first. Times are UTC."""
    numbers, is_named = _numbers(words or [])
    chosen, deliveries = _selection(numbers, filters, is_held=all_held, deliveries=of_deliveries or is_named == "deliveries")
    with open_engine(config) as engine:
        listed = overview.list_deliveries if deliveries else overview.list_jobs
        rows = listed(engine, limit=limit, **vars(chosen))
        asked = {name: value for name, value in filters.items() if value}
        _tell_viewed(engine, f"{len(rows)} {'deliveries' if deliveries else 'jobs'}, {json.dumps(asked, ensure_ascii=False)}")
    if as_json:
        print(json.dumps(rows, indent=2))
    else:
        print_table([_brief_delivery(row) if deliveries else _brief_job(row) for row in rows])


def _tell_viewed(engine: Engine, detail: str, **whose: str) -> None:
    audit.record(engine, AuditEvent("queue-viewed", user=operator(), detail=detail, **whose))


def _kind(row: dict[str, Any]) -> str:
    """The kind of object, and for a report that was sent in a simpler class, that class."""
    sent_as = REPORT_CLASS_NAMES.get(row["sent_sop_class_uid"])
    return f"{row['kind']} as {sent_as}" if sent_as else str(row["kind"])


@app.command("show")
def queue_show(job: Annotated[int, typer.Argument(help="Job number.")], config: Config = None, as_json: AsJson = False) -> None:
    """Show one job with its results and deliveries. Times are UTC."""
    with open_engine(config) as engine:
        found = overview.show_job(engine, job)
        if found is not None:
            _tell_viewed(engine, f"job {job}", **{key: str(found.get(key) or "") for key in ("patient_id", "study_instance_uid")})
    if found is None:
        raise CxrNodeError(f"There is no job {job}; `cxr-node queue list` shows all jobs.")
    if as_json:
        print(json.dumps(found, indent=2))
    else:
        print_table([{"what": key, "value": value_text(_with_times(key, value))} for key, value in found.items()])


def _change(action: str, help_text: str) -> None:
    def command(
        filters: dict[str, str],
        numbers: Numbers = None,
        all_held: Held = False,
        of_deliveries: Deliveries = False,
        dry_run: DryRun = False,
        config: Config = None,
        as_json: AsJson = False,
    ) -> None:
        chosen, deliveries = _selection(numbers or [], filters, is_held=all_held, deliveries=of_deliveries)
        noun = "delivery" if deliveries else "job"
        if chosen.is_everything:
            raise CxrNodeError(
                f"Name the {noun} by its number, all that are held with --held, or choose with --study, --patient, --accession, "
                "--sop, --kind, --destination, --state, --since, --until."
            )
        outcome = _carry_out(action, chosen, config, deliveries=deliveries, dry_run=dry_run)
        _report(action, noun, outcome, as_json=as_json, dry_run=dry_run, is_named=bool(chosen.numbers))
        if chosen.numbers and len(outcome.changed) < outcome.chosen:
            raise CxrNodeError(_complaint(action, noun, outcome))

    app.command(action, help=help_text)(_with_filters(command))


_change(
    "retry",
    "Put jobs (or deliveries) back into the queue, due now, whatever their state. Done jobs are analysed and sent again; sent "
    "deliveries are sent again.",
)
_change(
    "accept",
    "Accept held images as corrections of the image with the same SOP instance UID, although their sender may not correct it.",
)
_change("cancel", "Cancel waiting or held jobs (or deliveries).")


def _selection(numbers: Sequence[int], filters: Mapping[str, str], *, is_held: bool, deliveries: bool) -> tuple[Selection, bool]:
    """The selection, and whether it means deliveries: a kind, a destination, or a state that only deliveries have."""
    given = dict(filters)
    since, until = (parse_time(given.pop(name), f"--{name}") for name in ("since", "until"))
    if is_held:
        if given["state"] not in ("", "held"):
            raise CxrNodeError(f"--held and --state {given['state']} exclude each other: pass one of them.")
        given["state"] = "held"
    is_of_deliveries = given["state"] in list(DeliveryState) and given["state"] not in list(JobState)
    deliveries = deliveries or bool(given["kind"] or given["destination"]) or is_of_deliveries
    chosen = Selection(tuple(dict.fromkeys(numbers)), since=since, until=until, **given)
    if problem := chosen.problem(deliveries=deliveries):
        raise CxrNodeError(f"--{problem}")
    return chosen, deliveries


def _numbers(words: Sequence[str]) -> tuple[list[int], str]:
    queue = words[0] if words and words[0] in ("jobs", "deliveries") else ""
    numbers = words[1:] if queue else words
    for word in numbers:
        if not word.isdecimal():
            raise CxrNodeError(f"{word!r} is neither a number nor one of jobs, deliveries.")
    return [int(word) for word in numbers], queue


def _carry_out(action: str, chosen: Selection, config: Path | None, *, deliveries: bool, dry_run: bool) -> changes.ChangeOutcome:
    if deliveries and action == "accept":
        raise CxrNodeError("Images are accepted, not deliveries: name jobs.")
    settings = node_settings(config)
    with open_engine(config) as engine:
        return changes.change(engine, action, chosen, operator(), settings, deliveries=deliveries, dry_run=dry_run)


def _report(action: str, noun: str, outcome: changes.ChangeOutcome, *, as_json: bool, dry_run: bool, is_named: bool) -> None:
    """Print what was done; numbers that failed are left to the error that follows."""
    if as_json:
        found = {
            "action": action,
            "what": "deliveries" if noun == "delivery" else "jobs",
            "dry_run": dry_run,
            "chosen": outcome.chosen,
            "changed": outcome.changed,
            "deliveries_added": outcome.added.deliveries,
            "jobs_done_again": outcome.added.jobs,
            "refused": dict(outcome.refused),
            "absent": outcome.absent,
        }
        print(json.dumps(found, indent=2))
        return
    plural = "deliveries" if noun == "delivery" else "jobs"
    print(f"{action}: {len(outcome.changed)} of {outcome.chosen}" + (f" {plural}; dry run, nothing changed" if dry_run else ""))
    if outcome.added.deliveries or outcome.added.jobs:
        print(
            f"added because they were missing: {quantity(outcome.added.deliveries, 'delivery', 'deliveries')}, "
            f"and the results of {quantity(outcome.added.jobs, 'job')}, analysed again"
        )
    for reason, numbers in outcome.refused.items() if not is_named else ():
        print(f"not {_listed(numbers)}: {reason}")


def _complaint(action: str, noun: str, outcome: changes.ChangeOutcome) -> str:
    parts = [f"{noun} {_listed(numbers)}: {reason}" for reason, numbers in outcome.refused.items()]
    if outcome.absent:
        parts.append(f"{noun} {_listed(outcome.absent)}: does not exist, or does not match the other options")
    return f"{action} cannot change all of them. " + "; ".join(parts) + "."


def _listed(numbers: Sequence[int]) -> str:
    shown = ", ".join(map(str, numbers[:20]))
    return shown if len(numbers) <= 20 else f"{shown} and {len(numbers) - 20} more"


def _brief_job(row: dict[str, Any]) -> dict[str, Any]:
    findings = row["findings"]
    reason = findings.get("indeterminate_reason") if row["answer"] == INDETERMINATE else ""
    doubt = [f"Indeterminate: {reason}."] if reason else []
    return {
        "id": row["id"],
        "state": row["state"],
        "received": time_in_words(row["received_at"]),
        "patient_id": row["patient_id"],
        "accession": row["accession_number"],
        "answer": row["answer"],
        "likeliest": row["likeliest"],
        "attempts": row["attempts"],
        "sender": row["sender"],
        "study_instance_uid": row["study_instance_uid"],
        "reasons": " ".join([*row["reasons"], *doubt, *findings.get("warnings", [])]),
    }


def _brief_delivery(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": row["id"],
        "job_id": row["job_id"],
        "destination": row["destination"],
        "kind": row["kind"],
        "state": row["state"],
        "made": time_in_words(row["created_at"]),
        "sent": time_in_words(row["sent_at"]),
        "patient_id": row["patient_id"],
        "accession": row["accession_number"],
        "answer": row["answer"],
        "attempts": row["attempts"],
        "reason": row["reason"],
        "study_instance_uid": row["study_instance_uid"],
    }


def _with_times(key: str, value: Any) -> Any:
    """Times of a row and of the rows in it in readable form; a due time of none becomes empty."""
    if isinstance(value, list):
        return [_with_times(key, item) for item in value]
    if isinstance(value, dict):
        return {name: _with_times(name, item) for name, item in value.items()}
    is_time = key.endswith("_at") or key == "not_before"
    return iso(value or None) if is_time and isinstance(value, int | float) else value
