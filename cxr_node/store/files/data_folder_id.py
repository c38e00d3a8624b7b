"""Ties a database with its own URL to a data folder: its rows name files, which another folder does not have.

SQLite in the data folder does not need this, because it moves with its folder.
"""

from __future__ import annotations

import os
import uuid
from pathlib import Path

from sqlalchemy import Engine, insert, select
from sqlalchemy.exc import IntegrityError

from cxr_node.errors import StoreError
from cxr_node.security.nofollow import open_file
from cxr_node.store.postgresql import in_print
from cxr_node.store.schema import home

_FILE = ".folder-id"


def belongs_to(engine: Engine, root: Path) -> bool:
    """Whether the database belongs to this data folder."""
    owner = _owner(engine)
    return owner is not None and owner == _name(root)


def settle(engine: Engine, root: Path) -> None:
    """Make this data folder the database's, if it has none; call it from one process at a time for a folder.

    Raises:
        StoreError: the database belongs to another folder, or the folder can't be written.
    """
    name = _name(root) or _give_name(root)
    try:
        with engine.begin() as connection:
            if connection.execute(select(home.c.data_folder)).first() is None:
                connection.execute(insert(home).values(id=1, data_folder=name))
    except IntegrityError:  # another folder was quicker
        pass
    check(engine, root)


def check(engine: Engine, root: Path) -> None:
    """See that the database doesn't tell of another data folder.

    Raises:
        StoreError: it does.
    """
    owner = _owner(engine)
    if owner is None or owner == _name(root):
        return
    file = root.absolute() / _FILE
    raise StoreError(
        f"The database {in_print(engine)} belongs to another data folder than {root.absolute()}, and names files there. "
        "Each data folder has its own database: create one and name it in database.url, or name that folder in "
        f"node.data_dir. If this folder has come in the place of that one, write {owner} into {file}, then `cxr-node doctor`."
    )


def _owner(engine: Engine) -> str | None:
    with engine.connect() as connection:
        owner: str | None = connection.execute(select(home.c.data_folder)).scalar()
    return owner


def _name(root: Path) -> str:
    """The data folder's name, or nothing if it has none yet."""
    try:
        return (root / _FILE).read_text().strip()
    except FileNotFoundError:
        return ""


def _give_name(root: Path) -> str:
    name = str(uuid.uuid4())
    temporary = root / f"{_FILE}.{os.urandom(8).hex()}.tmp"
    try:
        with os.fdopen(open_file(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "w") as file:
            file.write(name + "\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(root / _FILE)
    except OSError as error:
        raise StoreError(f"{root / _FILE} can't be written ({error.strerror}): change its owner, or free disk space.") from error
    return name
