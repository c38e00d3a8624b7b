"""The checks of `check-config` on the store: data folder, disk, database. They create, migrate and change nothing."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from sqlalchemy import Engine, func, inspect, select, text
from sqlalchemy.exc import SQLAlchemyError

from cxr_node.errors import StoreError
from cxr_node.settings import Settings
from cxr_node.store import database, postgresql
from cxr_node.store.backup import backup_folder, check_file, database_file
from cxr_node.store.files import data_folder_id
from cxr_node.store.files.storage import try_bucket
from cxr_node.store.revision import SCHEMA_REVISION, newer_schema
from cxr_node.store.schema import instances

PreflightFinding = tuple[str, str]
"""How grave ("ok", "warning", "error"), and the text."""

_WEEK_S = 7 * 86400.0


def try_folders(settings: Settings) -> Iterator[PreflightFinding]:
    """Whether the data folder and the backups' can be written, and have room."""
    data_dir, backups = settings.node.data_dir.absolute(), backup_folder(settings).absolute()
    yield _try_folder("node.data_dir", data_dir)
    if not settings.database.url and not backups.is_relative_to(data_dir):
        yield _try_folder("database.backup_dir", backups)
    place = _nearest(data_dir)
    if place is None:
        return
    usage = shutil.disk_usage(place)
    least = settings.receive.min_free_mb * 2**20
    if least >= usage.total:
        yield (
            "error",
            f"receive.min_free_mb is more than the disk of {data_dir} holds ({_gb(usage.total)}): no image would be accepted.",
        )
    elif least >= usage.free:
        yield (
            "error",
            f"{data_dir} has {_gb(usage.free)} free, less than receive.min_free_mb: images would be refused with A700. Make "
            "room, or lower it.",
        )


def try_storage(settings: Settings) -> Iterator[PreflightFinding]:
    """Whether the bucket can be written, read, listed and cleared."""
    if not settings.storage.url:
        return
    reason = try_bucket(settings)
    yield (
        ("error", reason)
        if reason
        else ("ok", f"storage.url: objects can be stored, read and deleted in {settings.storage.url}.")
    )
    if settings.storage.endpoint.startswith("http://"):
        yield "warning", "storage.endpoint: images travel to the object store unencrypted: use https://."
    if not settings.database.url:
        yield "warning", "storage.url without database.url: the database stays on this machine, so no other one can take part."


def try_database(settings: Settings) -> Iterator[PreflightFinding]:
    """Whether the database can be reached, and is one that this program uses or can make."""
    if not settings.database.url and not database_file(settings).is_file():
        yield "ok", f"There is no database in {settings.node.data_dir.absolute()} yet: the first start creates it."
        return
    try:
        if not settings.database.url:
            check_file(database_file(settings))
        engine = database._connect(settings)
        with database._store_errors(engine):
            yield from _try_schema(engine, settings)
        engine.dispose()
    except StoreError as error:
        yield "error", str(error)


def try_retention(settings: Settings) -> Iterator[PreflightFinding]:
    """Whether what is kept as long as the settings say fits on the disk, going by what came in the last week."""
    retention = settings.retention
    if retention.received_days == 0:
        yield (
            "warning",
            "retention.received_days is 0: an image goes within an hour of its analysis. It can't be analysed again then, nor "
            "committed to a modality that asks.",
        )
    if retention.results_days == 0:
        yield (
            "warning",
            "retention.results_days is 0: a result goes within an hour of its delivery, and can't be sent again then.",
        )
    per_day = _received_per_day(settings)
    place = _nearest(settings.node.data_dir.absolute())
    if not per_day or place is None:
        return
    if settings.storage.url:
        return
    needed = per_day * retention.received_days
    usable = shutil.disk_usage(place).total - settings.receive.min_free_mb * 2**20
    if needed > usable:
        yield (
            "warning",
            f"{_gb(per_day)} of images came in a day lately: kept for retention.received_days = {retention.received_days:g} they "
            f"take {_gb(needed)}, and the disk has {_gb(max(usable, 0))} for them. Older ones will go before their time; shorten "
            "it, or enlarge the disk.",
        )


def _try_folder(name: str, folder: Path) -> PreflightFinding:
    place = _nearest(folder)
    if place is None or not place.is_dir():
        return "error", f"{name}: {folder} can't be a folder: {place or folder.anchor} is none. Name another."
    if not os.access(place, os.W_OK | os.X_OK):
        missing = "" if place == folder else f" can't be made: {place}"
        return "error", f"{name}: {folder}{missing} is not writable for this user: change its owner, or name another folder."
    if place != folder:
        return "ok", f"{name}: {folder} does not exist yet and can be created."
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".check-config-") as file:
            file.write(b"tried")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return "error", f"{name}: {folder} can't be written ({error.strerror}): check its disk, its owner, and how it is mounted."
    return "ok", f"{name}: {folder} can be written."


def _nearest(folder: Path) -> Path | None:
    """The folder itself, or what is there of the way to it."""
    return next((path for path in (folder, *folder.parents) if path.exists()), None)


def _try_schema(engine: Engine, settings: Settings) -> Iterator[PreflightFinding]:
    current = database._revision_of(engine)
    where = "The database"
    if current is None:
        yield from _try_to_own(engine)
        return
    if current > SCHEMA_REVISION:
        yield "error", newer_schema(current)
        return
    if settings.database.url and not settings.storage.url:
        data_folder_id.check(engine, settings.node.data_dir)
    if reason := database.why_commits_may_be_lost(engine):
        yield "warning", reason
    older = current != SCHEMA_REVISION
    yield "ok", f"{where} answers" + (" and is of an older version: the next start upgrades it." if older else ".")


def _try_to_own(engine: Engine) -> Iterator[PreflightFinding]:
    """A database without the node's tables: whether they can be made there."""
    if tables := inspect(engine).get_table_names():
        yield (
            "warning",
            f"The database holds tables that are not the node's ({', '.join(sorted(tables)[:5])}): give it one of its own.",
        )
    if engine.dialect.name == "postgresql":
        with engine.connect() as connection:
            postgresql.check_encoding(engine)
            if not connection.execute(text("SELECT has_schema_privilege(current_schema(), 'CREATE')")).scalar():
                yield "error", "The user of database.url may not create tables there: make it the owner of the database."
                return
    yield "ok", "The database answers, and is empty: the first start creates its tables."


def _received_per_day(settings: Settings) -> float:
    """Bytes, of the last week; 0 where nothing is known."""
    try:
        engine = database.inspect_database(settings)
    except StoreError:
        return 0.0
    now = time.time()
    recent = instances.c.received_at >= now - _WEEK_S
    query = select(func.coalesce(func.sum(instances.c.size_bytes), 0), func.min(instances.c.received_at)).where(recent)
    try:
        with engine.connect() as connection:
            total, first = connection.execute(query).one()
    except SQLAlchemyError:
        return 0.0
    finally:
        engine.dispose()
    return 0.0 if first is None else float(total) / max(1.0, (now - first) / 86400)


def _gb(size_bytes: float) -> str:
    return f"{size_bytes / 1e9:.1f} GB"
