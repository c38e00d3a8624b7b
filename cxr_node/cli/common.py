"""Options and output formats that commands share."""

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

from cxr_node.errors import StoreError
from cxr_node.records import AuditEvent
from cxr_node.security import owner
from cxr_node.security.printable import printable
from cxr_node.settings import Settings, load_settings

if TYPE_CHECKING:
    from sqlalchemy import Engine

Config = Annotated[
    Path | None, typer.Option("--config", envvar="CXR_NODE_CONFIG", help="Settings file (TOML).", show_default="none: defaults")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def operator() -> str:
    """The operating system's user, for the audit log; in a container it may have no name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"


def node_settings(config: Path | None) -> Settings:
    """The settings, for what works in the data folder.

    Raises:
        SettingsError: they are wrong.
        StoreError: the folder is another user's.
    """
    settings = load_settings(config)
    owner.check(settings)
    return settings


@contextmanager
def open_engine(config: Path | None) -> Iterator[Engine]:
    """The database of the node that the settings name; opened to read, never created or migrated."""
    from cxr_node.store.database import inspect_database

    engine = inspect_database(node_settings(config))
    try:
        yield engine
    finally:
        engine.dispose()


def record_in_audit_log(settings: Settings, event: AuditEvent) -> None:
    """Tell the audit log of the node that the settings name, if there is one: for commands that need none."""
    from cxr_node.store.audit_log import audit
    from cxr_node.store.database import inspect_database

    try:
        engine = inspect_database(settings)
    except StoreError:
        return
    try:
        audit.record(engine, event)
    finally:
        engine.dispose()


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


def value_text(value: Any) -> str:
    """A value of a status or a job as text."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {value_text(item)}" for key, item in value.items())
    if isinstance(value, list):
        return "\n".join(value_text(item) for item in value)
    return "-" if value is None else str(value)


def say(text: str) -> None:
    """Print a line that may quote a peer, a file or a database."""
    print(printable(text), flush=True)


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
        # as it is: a [bracket] is no markup
        table.add_row(*(Text(printable(str(value), keep="\n")) for value in row.values()))
    console = Console()
    Console(width=None if console.is_terminal else 250).print(table)
