"""What commands share: options, and how things are printed."""

from __future__ import annotations

import getpass
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cxr_node.settings import load_settings

if TYPE_CHECKING:
    from sqlalchemy import Engine

Config = Annotated[
    Path | None, typer.Option("--config", envvar="CXR_NODE_CONFIG", help="Settings file (TOML).", show_default="none: defaults")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def operator() -> str:
    """Who types the command, for the audit log; in a container the user may have no name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"


@contextmanager
def open_engine(config: Path | None) -> Iterator[Engine]:
    """The database of the node that the settings name; it is looked into, and never made or migrated."""
    from cxr_node.store.database import look_into_database

    engine = look_into_database(load_settings(config))
    try:
        yield engine
    finally:
        engine.dispose()


def in_words(value: Any) -> str:
    """A value of a status or a job as text."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {in_words(item)}" for key, item in value.items())
    if isinstance(value, list):
        return "\n".join(in_words(item) for item in value)
    return "-" if value is None else str(value)


def print_table(rows: list[dict[str, Any]]) -> None:
    """Rows with the same keys as a table."""
    if not rows:
        print("nothing found")
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(*rows[0], box=None, pad_edge=False)
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    console = Console()
    Console(width=None if console.is_terminal else 250).print(table)
