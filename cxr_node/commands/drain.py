"""`cxr-node drain`: takes the node out of service without losing what it has."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cxr_node.commands.common import Config, open_engine, operator
from cxr_node.errors import StoreError
from cxr_node.records import AuditEvent, DataFolder
from cxr_node.settings import load_settings
from cxr_node.store import audit, draining, lock, under_way

if TYPE_CHECKING:
    from sqlalchemy import Engine

_LOOKS_EVERY_S = 2.0
_STEADY_LOOKS = 2
"""Reception sees the mark a second late: what it took in that second has to show first."""


def drain(
    end: Annotated[bool, typer.Option("--end", help="Take new images again.")] = False,
    wait: Annotated[bool, typer.Option(help="Wait until all that is there is analysed and delivered.")] = True,
    timeout: Annotated[float | None, typer.Option(min=0, help="Wait at most so many seconds.")] = None,
    config: Config = None,
) -> None:
    """Refuse new images with A700, finish and deliver what is there, and say when the node is empty.

    It holds across restarts until `--end`. Exit status 1: the node isn't empty yet.
    """
    settings = load_settings(config)
    root = settings.node.data_dir
    with open_engine(config) as engine:
        if end:
            ended = draining.end(root)
            if ended:
                audit.record(engine, AuditEvent("drain-ended", user=operator()))
            print("New images are taken again." if ended else "The node was not being drained: it takes new images.")
            return
        if draining.state(root) is None:
            draining.begin(root, operator())
            audit.record(engine, AuditEvent("drain-begun", user=operator()))
        print("New images are refused with A700 until `cxr-node drain --end`.", flush=True)
        if not wait:
            print(_under_way(under_way.left(engine, DataFolder(root))))
            return
        if _nobody_works(root):
            print("No cxr-node runs on this machine: start it, so that it finishes what is there.", flush=True)
        left = _wait_until_empty(engine, DataFolder(root), timeout)
        if not left.is_empty:
            raise typer.Exit(1)
        print(_empty(left))


def _wait_until_empty(engine: Engine, folders: DataFolder, timeout_s: float | None) -> under_way.Left:
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    shown, steady = "", 0
    while True:
        left = under_way.left(engine, folders)
        steady = steady + 1 if left.is_empty else 0
        if steady >= _STEADY_LOOKS or (deadline is not None and time.monotonic() >= deadline):
            return left
        if not left.is_empty and (line := _under_way(left)) != shown:
            shown = line
            print(line, flush=True)
        time.sleep(_LOOKS_EVERY_S)


def _under_way(left: under_way.Left) -> str:
    parts = {"being received": left.receiving, "jobs": left.jobs, "deliveries": left.deliveries}
    return "Under way: " + (", ".join(f"{count} {what}" for what, count in parts.items() if count) or "nothing") + "."


def _empty(left: under_way.Left) -> str:
    held = [f"{count} {what}" for what, count in (("jobs", left.held_jobs), ("deliveries", left.held_deliveries)) if count]
    rest = f" Held for a person: {' and '.join(held)}; `cxr-node status` says why." if held else ""
    return f"The node is empty: all that came in is analysed and delivered.{rest} It may be stopped."


def _nobody_works(root: Path) -> bool:
    try:
        with lock.nobody_using(root):
            return True
    except StoreError:
        return False
