"""`cxr-node doctor`, `backup` and `restore`: finds and repairs damage in the data folder."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cxr_node.audit import chain
from cxr_node.cli import restore_prompts
from cxr_node.cli.common import Config, node_settings, open_engine, operator, say
from cxr_node.errors import CxrNodeError, StoreError
from cxr_node.records import AuditEvent
from cxr_node.settings import Settings
from cxr_node.store import backup, lock
from cxr_node.store.audit_log import audit
from cxr_node.store.database import open_database, why_commits_may_be_lost
from cxr_node.store.files import consistency
from cxr_node.store.files.consistency import CURES, Difference
from cxr_node.store.files.storage import blobs_of
from cxr_node.store.queue import leases
from cxr_node.store.views.overview import held_by_reason

if TYPE_CHECKING:
    from sqlalchemy import Engine

_UNDER_WAY_S = 900.0
"""Younger files may not have their row yet."""
_SHOWN = 20


def doctor(
    mend: Annotated[bool, typer.Option("--mend", help="Repair them. Default: change nothing.")] = False,
    config: Config = None,
) -> None:
    """Check data folder and database for damage and inconsistencies. Exit status 1: some remain."""
    settings = node_settings(config)
    ill = False
    with open_engine(config) as engine:
        if settings.database.url:
            print("database.url names a database server: check and back it up with its own tools.")
            if reason := why_commits_may_be_lost(engine):
                print(reason)
        else:
            try:
                backup.check_integrity(engine, thoroughly=True)
                print("The database is intact.")
            except StoreError as error:
                print(error)
                ill = True
            newest = backup.backups(settings)[:1]
            print(f"The newest backup is {newest[0]}." if newest else "There is no backup yet.")
        found = consistency.find_differences(engine, blobs_of(settings), _UNDER_WAY_S)
        _show(found)
        audit.record(engine, AuditEvent("store-examined", user=operator(), detail=f"{len(found)} differences"))
        if mend and found:
            _mend(settings, engine, found)
            print(f"{len(found)} mended.")
        elif found:
            print("Nothing was changed; --mend does what the arrows show.")
        for row in held_by_reason(engine):
            say(f"held: {row['count']} {row['what']}: {row['reason']}")
    if ill or (found and not mend):
        raise typer.Exit(1)


def back_up(config: Config = None) -> None:
    """Copy the database while the node runs, and print where to. The node does so every hour by itself."""
    settings = node_settings(config)
    with open_engine(config) as engine:
        if settings.database.url:
            raise CxrNodeError("database.url names a database server: back it up with its own tools (pg_dump).")
        chain.checkpoint(engine, settings)
        path = backup.back_up(settings)
        audit.record(engine, AuditEvent("database-backed-up", user=operator(), detail=path.name if path else ""))
    print(path)


def restore(
    file: Annotated[Path | None, typer.Argument(help="The backup to restore; default: the newest.", show_default=False)] = None,
    yes: Annotated[
        bool, typer.Option("--yes", help="Do not ask: create the folder, mark images without a file as gone.")
    ] = False,
    config: Config = None,
) -> None:
    """Restore a backup of the database, and add what was received since. Stop the node first.

    On a new folder or machine, it says which files to copy, and asks before it marks images as gone.
    """
    settings = node_settings(config)
    if settings.database.url:
        raise CxrNodeError(backup.NOT_OURS)
    there_are = backup.backups(settings)
    chosen = file or next(iter(there_are), None)
    if chosen is None:
        raise CxrNodeError(f"There is no backup in {backup.backup_folder(settings)}: name the file.")
    backup.check_file(chosen)
    restore_prompts.make_folder_for(settings, yes=yes)
    with lock.exclusive_use(settings.node.data_dir):
        aside = backup.restore(settings, chosen)
        print(f"Restored {chosen}." + (f" The old database is now {aside}." if aside else ""))
        engine = open_database(settings)
        try:
            leases.end_all(engine)
            found = consistency.find_differences(engine, blobs_of(settings), 0)
            _show(found)
            to_mend = restore_prompts.confirmed_differences(settings, found, yes=yes)
            _mend(settings, engine, to_mend)
            told = f"{chosen.name}, {len(to_mend)} mended; {chain.note_restored(engine, settings)}"
            audit.record(engine, AuditEvent("database-restored", user=operator(), detail=told))
            chain.checkpoint(engine, settings)
        finally:
            engine.dispose()
    if len(to_mend) < len(found):
        raise typer.Exit(1)


def _mend(settings: Settings, engine: Engine, found: list[Difference]) -> None:
    from cxr_node.node import repair  # it reads DICOM, which other commands have no need of

    repair.mend(settings, engine, found, operator())


def _show(found: list[Difference]) -> None:
    if not found:
        print("Files and rows agree.")
    for kind, count in Counter(item.kind for item in found).items():
        print(f"{count} x {kind} -> {CURES[kind]}")
        for item in [item for item in found if item.kind is kind][:_SHOWN]:
            say(f"    {item.path}")
