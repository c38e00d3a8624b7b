"""`cxr-node drain`: takes the node out of service without losing images."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cxr_node.cli.common import Config, node_settings, open_engine, operator
from cxr_node.errors import StoreError
from cxr_node.records import AuditEvent, DataFolder, quantity
from cxr_node.store import lock
from cxr_node.store.audit_log import audit
from cxr_node.store.files.spool_id import has_spool, spool_name
from cxr_node.store.queue import draining, open_work

if TYPE_CHECKING:
    from sqlalchemy import Engine

_CHECK_INTERVAL_S = 2.0
_STEADY_LOOKS = 2
"""Reception sees the mark a second late: instances of that second must show first."""


def drain(
    end: Annotated[bool, typer.Option("--end", help="Accept new images again.")] = False,
    wait: Annotated[bool, typer.Option(help="Wait until everything is analysed and delivered.")] = True,
    timeout: Annotated[float | None, typer.Option(min=0, help="Longest wait, in seconds.")] = None,
    config: Config = None,
) -> None:
    """Refuse new images with A700, finish and deliver the others, and say when the node is empty.

    The drain survives restarts; `--end` ends it. Exit status 1: the node is not empty yet.
    """
    settings = node_settings(config)
    root = settings.node.data_dir
    spool = spool_name(root) if has_spool(settings) else ""
    with open_engine(config) as engine:
        if end:
            ended = draining.end(root)
            if ended:
                audit.record(engine, AuditEvent("drain-ended", user=operator()))
            print("New images are accepted again." if ended else "The node was not drained: it accepts new images.")
            return
        if draining.state(root) is None:
            draining.begin(root, operator())
            audit.record(engine, AuditEvent("drain-begun", user=operator()))
        print("New images are refused with A700 until `cxr-node drain --end`.", flush=True)
        if not wait:
            print(_under_way(open_work.count_open_work(engine, DataFolder(root), spool)))
            return
        if _nobody_works(root):
            print("No cxr-node runs on this machine: start it to finish its work.", flush=True)
        left = _wait_until_empty(engine, DataFolder(root), timeout, spool)
        if not left.is_empty:
            raise typer.Exit(1)
        print(_empty(left))


def _wait_until_empty(engine: Engine, folders: DataFolder, timeout_s: float | None, spool: str) -> open_work.OpenWork:
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    shown, steady = "", 0
    while True:
        left = open_work.count_open_work(engine, folders, spool)
        steady = steady + 1 if left.is_empty else 0
        if not left.is_empty and (line := _under_way(left)) != shown:
            shown = line
            print(line, flush=True)
        if steady >= _STEADY_LOOKS or (deadline is not None and time.monotonic() >= deadline):
            return left
        time.sleep(_CHECK_INTERVAL_S)


def _under_way(left: open_work.OpenWork) -> str:
    parts = [
        f"{left.receiving} being received" if left.receiving else "",
        f"{left.uploads} not uploaded yet" if left.uploads else "",
        *_in_words(left.jobs, left.deliveries),
    ]
    return "Under way: " + (", ".join(filter(None, parts)) or "nothing") + "."


def _empty(left: open_work.OpenWork) -> str:
    held = _in_words(left.held_jobs, left.held_deliveries)
    rest = f" Held for an operator: {' and '.join(held)}; `cxr-node status` says why." if held else ""
    return f"The node is empty: everything is analysed and delivered.{rest} You can stop it."


def _nobody_works(root: Path) -> bool:
    try:
        with lock.exclusive_use(root):
            return True
    except StoreError:
        return False


def _in_words(jobs: int, deliveries: int) -> list[str]:
    """How many jobs and deliveries there are, without those of which there are none."""
    numbers = ((jobs, "job", "jobs"), (deliveries, "delivery", "deliveries"))
    return [quantity(count, *nouns) for count, *nouns in numbers if count]
