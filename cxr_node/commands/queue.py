"""`cxr-node queue`: jobs and deliveries, listed, shown, retried, cancelled."""

from __future__ import annotations

import json
from enum import StrEnum
from typing import Annotated, Any

import typer

from cxr_node.commands.common import AsJson, Config, in_words, open_engine, operator, print_table
from cxr_node.errors import CxrNodeError
from cxr_node.records import DeliveryState, JobState, answer_of
from cxr_node.store import overview

app = typer.Typer(help="Jobs and deliveries: list, show, retry, cancel.", no_args_is_help=True)


class What(StrEnum):
    """The two queues."""

    JOBS = "jobs"
    DELIVERIES = "deliveries"


@app.command("list")
def queue_list(
    what: Annotated[What, typer.Argument(help="Which queue.")] = What.JOBS,
    state: Annotated[str, typer.Option(help="Only this state.")] = "",
    study: Annotated[str, typer.Option(help="Only this Study Instance UID.")] = "",
    sender: Annotated[str, typer.Option(help="Only from this calling AE title.")] = "",
    destination: Annotated[str, typer.Option(help="Deliveries: only to this destination.")] = "",
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many.")] = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """List jobs or deliveries, oldest first."""
    states: type[StrEnum] = JobState if what == What.JOBS and not destination else DeliveryState
    if state and state not in list(states):
        raise CxrNodeError(f"--state {state!r} is none of {', '.join(states)}.")
    filters: dict[str, Any] = {"state": state, "study": study, "sender": sender, "limit": limit}
    with open_engine(config) as engine:
        if states is JobState:
            rows = overview.list_jobs(engine, **filters)
        else:
            rows = overview.list_deliveries(engine, destination=destination, **filters)
    if as_json:
        print(json.dumps(rows, indent=2))
    elif states is JobState:
        print_table([_brief_job(row) for row in rows])
    else:
        keys = ("id", "job_id", "destination", "kind", "state", "attempts", "reason", "study_instance_uid")
        print_table([{key: row[key] for key in keys} for row in rows])


@app.command("show")
def queue_show(job: Annotated[int, typer.Argument(help="Job number.")], config: Config = None, as_json: AsJson = False) -> None:
    """Show one job with its results and deliveries."""
    with open_engine(config) as engine:
        found = overview.show_job(engine, job)
    if found is None:
        raise CxrNodeError(f"There is no job {job}; `cxr-node queue list` shows those there are.")
    if as_json:
        print(json.dumps(found, indent=2))
    else:
        print_table([{"what": key, "value": in_words(value)} for key, value in found.items()])


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
        deliveries = of_deliveries or bool(destination)
        noun = "delivery" if deliveries else "job"
        if not numbers and not all_held:
            raise CxrNodeError(f"Name the {noun} by its number, or all that are held with --held.")
        changes = {
            ("retry", False): overview.retry_job,
            ("retry", True): overview.retry_delivery,
            ("cancel", False): overview.cancel_job,
            ("cancel", True): overview.cancel_delivery,
        }
        change = changes[action, deliveries]
        with open_engine(config) as engine:
            chosen = list(numbers or [])
            if all_held and deliveries:
                chosen += [row["id"] for row in overview.list_deliveries(engine, state="held", destination=destination)]
            elif all_held:
                chosen += [row["id"] for row in overview.list_jobs(engine, state="held")]
            refused = [number for number in chosen if not change(engine, number, operator())]
        print(f"{action}: {len(chosen) - len(refused)} of {len(chosen)}")
        if refused:
            listed = ", ".join(map(str, refused))
            raise CxrNodeError(f"{noun} {listed}: not there, or in a state that can't be changed by {action}.")

    app.command(action, help=help_text)(command)


_change("retry", "Put held, rejected or cancelled jobs (or deliveries) back into the queue, due now.")
_change("cancel", "Take waiting or held jobs (or deliveries) out of the queue.")


def _brief_job(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": row["id"],
        "state": row["state"],
        **answer_of(row["findings"]),
        "attempts": row["attempts"],
        "sender": row["sender"],
        "study_instance_uid": row["study_instance_uid"],
        "reasons": " ".join([*row["reasons"], *row["findings"].get("warnings", [])]),
    }
