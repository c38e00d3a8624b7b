"""Ties a database to a bucket prefix: two databases over one prefix would remove each other's objects as orphans.

The database contains a random name, and an object in the bucket contains the same. A host that has compared them once records
that in its data folder, so that it can start while the bucket is unavailable.
"""

from __future__ import annotations

import json
import uuid
from contextlib import suppress
from pathlib import Path

from sqlalchemy import Engine, insert, select
from sqlalchemy.exc import IntegrityError

from cxr_node.errors import StoreError
from cxr_node.security.nofollow import write_anew
from cxr_node.settings import Settings
from cxr_node.store.files.storage import bucket_of
from cxr_node.store.schema import home, instances

_OBJECT = "owner/id"
_FILE = ".bucket-id"


def is_known(engine: Engine, settings: Settings) -> bool:
    """Whether this host has verified before that the database belongs to this bucket."""
    return _remembered(settings) == _told(settings, _owner(engine) or "")


def settle(engine: Engine, settings: Settings) -> None:
    """Make this bucket the database's, if neither has another; call it from one process at a time for a data folder.

    Raises:
        StoreError: the bucket belongs to another database, or the database to another bucket or folder; or it can't be used.
    """
    bucket = bucket_of(settings)
    if _owner(engine) is None:
        # the row first: after a crash in between, the next start finishes what this one began
        with suppress(IntegrityError), engine.begin() as connection:  # IntegrityError: another host was quicker
            connection.execute(insert(home).values(id=1, data_folder=str(uuid.uuid4())))
    owner = _owner(engine) or ""
    found = (bucket.read_small(_OBJECT) or b"").decode("ascii", "replace").strip()
    cure = f"put {owner} into the object {_OBJECT} below storage.url, then `cxr-node doctor`"
    if not found:
        if _has_files(engine):
            raise StoreError(
                f"The database names files elsewhere, and {settings.storage.url} is empty. To move them, copy instances/ and "
                f"results/ there, and {cure}."
            )
        bucket.put_bytes(_OBJECT, owner.encode())
    elif found != owner:
        raise StoreError(
            f"{settings.storage.url} belongs to another database: give each database its own prefix. If that database is "
            f"lost and this one takes its place, {cure}."
        )
    with suppress(OSError):  # the next start compares again
        write_anew(_file(settings), _told(settings, owner).encode())


def _owner(engine: Engine) -> str | None:
    with engine.connect() as connection:
        owner: str | None = connection.execute(select(home.c.data_folder)).scalar()
    return owner


def _has_files(engine: Engine) -> bool:
    with engine.connect() as connection:
        return connection.execute(select(instances.c.id).where(instances.c.removed_at.is_(None)).limit(1)).first() is not None


def _file(settings: Settings) -> Path:
    return settings.node.data_dir.absolute() / _FILE


def _told(settings: Settings, owner: str) -> str:
    return json.dumps({"url": settings.storage.url, "endpoint": settings.storage.endpoint, "owner": owner})


def _remembered(settings: Settings) -> str:
    try:
        return _file(settings).read_text()
    except OSError:
        return ""
