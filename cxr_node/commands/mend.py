"""`cxr-node doctor`, `backup` and `restore`: finds what is wrong in the data folder, and mends it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cxr_node.commands import moving
from cxr_node.commands.common import Config, open_engine, operator
from cxr_node.errors import CxrNodeError, StoreError
from cxr_node.records import AuditEvent, DataFolder
from cxr_node.settings import Settings, load_settings
from cxr_node.store import audit, backup, differences, lock
from cxr_node.store.database import open_database, why_commits_may_be_lost
from cxr_node.store.differences import CURES, Difference
from cxr_node.store.overview import held_by_reason

if TYPE_CHECKING:
    from sqlalchemy import Engine

_UNDER_WAY_S = 900.0
"""Files younger than this may be about to get their row."""
_SHOWN = 20


def doctor(
    mend: Annotated[bool, typer.Option("--mend", help="Mend it; without, nothing is changed.")] = False, config: Config = None
) -> None:
    """Look for damage, and for files and rows that don't agree; exit status 1 if any is left."""
    settings = load_settings(config)
    ill = False
    with open_engine(config) as engine:
        if settings.database.url:
            print("The database is not the node's own: whether it is whole, and its backups, are for its own tools to say.")
            if reason := why_commits_may_be_lost(engine):
                print(reason)
        else:
            try:
                backup.check_integrity(engine, thoroughly=True)
                print("The database is whole.")
            except StoreError as error:
                print(error)
                ill = True
            newest = backup.backups(settings)[:1]
            print(f"The newest backup is {newest[0]}." if newest else "There is no backup yet.")
        found = differences.find_differences(engine, DataFolder(settings.node.data_dir), _UNDER_WAY_S)
        _show(found)
        if mend and found:
            _mend(settings, engine, found)
            print(f"{len(found)} mended.")
        elif found:
            print("Nothing was changed; --mend does what stands behind the arrows.")
        for row in held_by_reason(engine):
            print(f"held: {row['count']} {row['what']}: {row['reason']}")
    if ill or (found and not mend):
        raise typer.Exit(1)


def back_up(config: Config = None) -> None:
    """Copy the database while the node runs (it does so every hour by itself); prints where to."""
    settings = load_settings(config)
    with open_engine(config):  # there is a node
        pass
    path = backup.back_up(settings)
    if path is None:
        raise CxrNodeError("database.url names a database that is not the node's own: back it up with its own tools (pg_dump).")
    print(path)


def restore(
    file: Annotated[Path | None, typer.Argument(help="Which backup; the newest if absent.", show_default=False)] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Ask nothing: make the folder, mark images without a file as gone.")] = False,
    config: Config = None,
) -> None:
    """Put a backup of the database back, and enter what was received since; the node must be stopped.

    On a new folder or machine it says what it needs, and asks before it marks images as gone.
    """
    settings = load_settings(config)
    if settings.database.url:
        raise CxrNodeError(backup.NOT_OURS)
    there_are = backup.backups(settings)
    chosen = file or next(iter(there_are), None)
    if chosen is None:
        raise CxrNodeError(f"There is no backup in {backup.backup_folder(settings)}: name the file.")
    backup.check_file(chosen)
    moving.make_folder_for(settings, yes=yes)
    with lock.nobody_using(settings.node.data_dir):
        aside = backup.restore(settings, chosen)
        print(f"Restored {chosen}." + (f" What was there is now {aside}." if aside else ""))
        engine = open_database(settings)
        try:
            found = differences.find_differences(engine, DataFolder(settings.node.data_dir), 0)
            _show(found)
            to_mend = moving.without_what_is_not_gone(settings, found, yes=yes)
            _mend(settings, engine, to_mend)
            audit.record(engine, AuditEvent("database-restored", user=operator(), detail=f"{chosen.name}, {len(to_mend)} mended"))
        finally:
            engine.dispose()
    if len(to_mend) < len(found):
        raise typer.Exit(1)


def _mend(settings: Settings, engine: Engine, found: list[Difference]) -> None:
    from cxr_node import repair  # it reads DICOM, which other commands have no need of

    repair.mend(settings, engine, found, operator())


def _show(found: list[Difference]) -> None:
    if not found:
        print("Files and rows agree.")
    for kind, count in Counter(item.kind for item in found).items():
        print(f"{count} x {kind} -> {CURES[kind]}")
        for item in [item for item in found if item.kind is kind][:_SHOWN]:
            print(f"    {item.path}")
