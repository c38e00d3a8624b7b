"""What commands share: options, and how things are printed."""

from __future__ import annotations

import getpass
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cxr_node.errors import CxrNodeError
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


def moment(text: str, option: str) -> float | None:
    """A time that a person gave, as UTC seconds since the epoch; None for none. Without an offset it is UTC.

    Raises:
        CxrNodeError: it is no time.
    """
    if not text:
        return None
    try:
        found = datetime.fromisoformat(text.strip())
    except ValueError as error:
        raise CxrNodeError(
            f"{option} {text!r} is no time: write 2026-11-28, 2026-11-28T14:30 (both UTC), or 2026-11-28T15:30+01:00."
        ) from error
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()


def iso(seconds: float | None) -> str | None:
    """A time for programs: ISO 8601 in UTC."""
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def time_in_words(seconds: float | None) -> str:
    """A time for people, in UTC."""
    return "-" if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def age_in_words(seconds: float | None) -> str:
    """A length of time for people, in its two largest units."""
    if seconds is None:
        return "-"
    rest = max(0, round(seconds))
    parts: list[str] = []
    for name, length in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        count, rest = divmod(rest, length)
        if count or (parts and len(parts) < 2):
            parts.append(f"{count} {name}")
        if len(parts) == 2:
            break
    return " ".join(part for part in parts if not part.startswith("0 ")) or "0 s"


def ago_in_words(seconds: float | None) -> str:
    """A time for people, and how long ago that is."""
    if seconds is None:
        return "never"
    return f"{time_in_words(seconds)} ({age_in_words(time.time() - seconds)} ago)"


def size_in_words(size_bytes: float) -> str:
    """A size for people."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size_bytes < 1000:
            return f"{size_bytes:.0f} {unit}" if unit == "bytes" or size_bytes >= 10 else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:.1f} TB"


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
    from rich.text import Text

    table = Table(*rows[0], box=None, pad_edge=False)
    for row in rows:
        table.add_row(*(Text(str(value)) for value in row.values()))  # as it is: a [bracket] is no markup
    console = Console()
    Console(width=None if console.is_terminal else 250).print(table)
