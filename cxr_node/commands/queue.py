"""`cxr-node queue`: jobs and deliveries, listed, shown, retried, cancelled."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from cxr_node.commands.common import (
    AsJson,
    Config,
    in_words,
    iso,
    moment,
    open_engine,
    operator,
    print_table,
    time_in_words,
)
from cxr_node.errors import CxrNodeError
from cxr_node.records import REPORT_CLASS_NAMES, DeliveryState, JobState, ResultKind
from cxr_node.settings import load_settings
from cxr_node.store import changes, overview
from cxr_node.store.selection import Selection

app = typer.Typer(help="Jobs and deliveries: list, show, retry, cancel.", no_args_is_help=True)

_TIME = "UTC, unless it says +01:00 or the like"
State = Annotated[str, typer.Option(help="Only this state.")]
Study = Annotated[str, typer.Option(help="Only this Study Instance UID.")]
Patient = Annotated[str, typer.Option(help="Only this Patient ID.")]
Accession = Annotated[str, typer.Option(help="Only this Accession Number.")]
Sop = Annotated[str, typer.Option(help="Only this SOP Instance UID, of an image or of a result.")]
Origin = Annotated[str, typer.Option("--sender", help="Only from this calling AE title.")]
Kind = Annotated[str, typer.Option(help="Deliveries: only of this kind of result.")]
Destination = Annotated[str, typer.Option(help="Deliveries: only to this destination.")]
Since = Annotated[str, typer.Option(metavar="TIME", help=f"Jobs made, deliveries sent (or made) from this time on: {_TIME}.")]
Until = Annotated[str, typer.Option(metavar="TIME", help="And before this time; as --since.")]
Deliveries = Annotated[bool, typer.Option("--deliveries", help="Deliveries, not jobs.")]
Held = Annotated[bool, typer.Option("--held", help="All that are held; the same as --state held.")]
Numbers = Annotated[list[int] | None, typer.Argument(metavar="[NUMBER]...", help="Jobs, or with --deliveries deliveries.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Change nothing, and count what would change.")]


@app.command("list")
def queue_list(
    words: Annotated[
        list[str] | None, typer.Argument(metavar="[jobs|deliveries] [NUMBER]...", help="Which queue, and which of it.")
    ] = None,
    state: State = "",
    study: Study = "",
    patient: Patient = "",
    accession: Accession = "",
    sop: Sop = "",
    sender: Origin = "",
    kind: Kind = "",
    destination: Destination = "",
    since: Since = "",
    until: Until = "",
    of_deliveries: Deliveries = False,
    all_held: Held = False,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many.")] = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """List jobs or deliveries, oldest first. Times are UTC."""
    numbers, is_named = _numbers(words or [])
    given = {"study": study, "patient": patient, "accession": accession, "sop": sop, "sender": sender, "destination": destination}
    chosen, deliveries = _selection(
        numbers, state, kind, since, until, is_held=all_held, deliveries=of_deliveries or is_named == "deliveries", **given
    )
    with open_engine(config) as engine:
        listed = overview.list_deliveries if deliveries else overview.list_jobs
        rows = listed(engine, limit=limit, **vars(chosen))
    if as_json:
        print(json.dumps(rows, indent=2))
    else:
        print_table([_brief_delivery(row) if deliveries else _brief_job(row) for row in rows])


def _kind(row: dict[str, Any]) -> str:
    """The kind of object, and for a report that went as a plainer class, as which."""
    sent_as = REPORT_CLASS_NAMES.get(row["sent_sop_class_uid"])
    return f"{row['kind']} as {sent_as}" if sent_as else str(row["kind"])


@app.command("show")
def queue_show(job: Annotated[int, typer.Argument(help="Job number.")], config: Config = None, as_json: AsJson = False) -> None:
    """Show one job with its results and deliveries. Times are UTC."""
    with open_engine(config) as engine:
        found = overview.show_job(engine, job)
    if found is None:
        raise CxrNodeError(f"There is no job {job}; `cxr-node queue list` shows those there are.")
    if as_json:
        print(json.dumps(found, indent=2))
    else:
        print_table([{"what": key, "value": in_words(_with_times(key, value))} for key, value in found.items()])


def _change(action: str, help_text: str) -> None:
    def command(
        numbers: Numbers = None,
        all_held: Held = False,
        of_deliveries: Deliveries = False,
        state: State = "",
        study: Study = "",
        patient: Patient = "",
        accession: Accession = "",
        sop: Sop = "",
        sender: Origin = "",
        kind: Kind = "",
        destination: Destination = "",
        since: Since = "",
        until: Until = "",
        dry_run: DryRun = False,
        config: Config = None,
        as_json: AsJson = False,
    ) -> None:
        given = {
            **{"study": study, "patient": patient, "accession": accession, "sop": sop, "sender": sender},
            "destination": destination,
        }
        chosen, deliveries = _selection(
            numbers or [], state, kind, since, until, is_held=all_held, deliveries=of_deliveries, **given
        )
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

    app.command(action, help=help_text)(command)


_change(
    "retry",
    "Put jobs (or deliveries) back into the queue, due now, whatever they came to: those that were done are analysed and sent "
    "again, those that were sent are sent again.",
)
_change("cancel", "Take waiting or held jobs (or deliveries) out of the queue.")


def _selection(
    numbers: Sequence[int],
    state: str,
    kind: str,
    since: str,
    until: str,
    *,
    is_held: bool,
    deliveries: bool,
    **given: str,
) -> tuple[Selection, bool]:
    """What is chosen, and whether that is deliveries: so are those of a kind, to a destination, or in a state that no job has."""
    if is_held:
        if state not in ("", "held"):
            raise CxrNodeError(f"--held and --state {state} leave nothing to choose: give one of them.")
        state = "held"
    deliveries = (
        deliveries or bool(kind or given["destination"]) or (state in list(DeliveryState) and state not in list(JobState))
    )
    states: type[StrEnum] = DeliveryState if deliveries else JobState
    if state and state not in list(states):
        raise CxrNodeError(f"--state {state!r} is none of {', '.join(states)}.")
    if kind and kind not in list(ResultKind):
        raise CxrNodeError(f"--kind {kind!r} is none of {', '.join(ResultKind)}.")
    from_s, until_s = moment(since, "--since"), moment(until, "--until")
    chosen = Selection(tuple(dict.fromkeys(numbers)), state=state, kind=kind, **given)  # type: ignore[arg-type]
    return replace(chosen, since=from_s, until=until_s), deliveries


def _numbers(words: Sequence[str]) -> tuple[list[int], str]:
    queue = words[0] if words and words[0] in ("jobs", "deliveries") else ""
    numbers = words[1:] if queue else words
    for word in numbers:
        if not word.isdecimal():
            raise CxrNodeError(f"{word!r} is neither a number nor one of jobs, deliveries.")
    return [int(word) for word in numbers], queue


def _carry_out(action: str, chosen: Selection, config: Path | None, *, deliveries: bool, dry_run: bool) -> changes.Outcome:
    settings = load_settings(config)
    with open_engine(config) as engine:
        if action == "cancel":
            cancel = changes.cancel_deliveries if deliveries else changes.cancel_jobs
            return cancel(engine, chosen, operator(), dry_run=dry_run)
        if deliveries:
            return changes.retry_deliveries(engine, chosen, operator(), settings, dry_run=dry_run)
        return changes.retry_jobs(engine, chosen, operator(), dry_run=dry_run)


def _report(action: str, noun: str, outcome: changes.Outcome, *, as_json: bool, dry_run: bool, is_named: bool) -> None:
    """Say what was done; what was named by number and not done is left to the error that follows."""
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
            f"missing until now, and added: {outcome.added.deliveries} deliveries, "
            f"and what {outcome.added.jobs} jobs make when they are done again"
        )
    for reason, numbers in outcome.refused.items() if not is_named else ():
        print(f"not {_listed(numbers)}: {reason}")


def _complaint(action: str, noun: str, outcome: changes.Outcome) -> str:
    parts = [f"{noun} {_listed(numbers)}: {reason}" for reason, numbers in outcome.refused.items()]
    if outcome.absent:
        parts.append(f"{noun} {_listed(outcome.absent)}: there is none, or the other options leave it out")
    return f"Not all can be changed by {action}. " + "; ".join(parts) + "."


def _listed(numbers: Sequence[int]) -> str:
    shown = ", ".join(map(str, numbers[:20]))
    return shown if len(numbers) <= 20 else f"{shown} and {len(numbers) - 20} more"


def _brief_job(row: dict[str, Any]) -> dict[str, Any]:
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
        "reasons": " ".join([*row["reasons"], *row["findings"].get("warnings", [])]),
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
    """Times of a row, and of the rows in it, as a person reads them; a time to wait for that is none as nothing."""
    if isinstance(value, list):
        return [_with_times(key, item) for item in value]
    if isinstance(value, dict):
        return {name: _with_times(name, item) for name, item in value.items()}
    is_time = key.endswith("_at") or key == "not_before"
    return iso(value or None) if is_time and isinstance(value, int | float) else value
