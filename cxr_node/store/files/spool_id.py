"""Whether this host has a spool, and its name: a random one in the data folder, which rows name. Loads next to nothing."""

from __future__ import annotations

import os
import re
import uuid
from contextlib import suppress
from pathlib import Path

from cxr_node.errors import StoreError
from cxr_node.security.nofollow import write_anew
from cxr_node.settings import Settings

_FILE = ".spool-id"
_NAME = re.compile(r"[0-9a-f]{32}")


def has_spool(settings: Settings) -> bool:
    """Whether instances lie in a spool here: by the settings, or by those of an earlier start, which may have left some."""
    return bool(settings.storage.url) and (settings.storage.spool or (settings.node.data_dir / _FILE).exists())


def spool_name(root: Path) -> str:
    """The name of a data folder's spool: random, made at its first use, and kept with it.

    Raises:
        StoreError: it can't be read or written.
    """
    path = root.absolute() / _FILE
    try:
        if not path.exists():
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
            fresh = path.with_name(f"{_FILE}.{uuid.uuid4().hex}.tmp")
            write_anew(fresh, f"{uuid.uuid4().hex}\n".encode())
            try:
                with suppress(FileExistsError):  # another process was quicker: its name is taken
                    os.link(fresh, path)
            finally:
                fresh.unlink()
        name = path.read_text("ascii").strip()
    except (OSError, ValueError) as error:
        raise StoreError(f"{path} can't be used ({getattr(error, 'strerror', None) or error}): see to its owner.") from error
    if not _NAME.fullmatch(name):
        raise StoreError(f"{path} holds no name of a spool: restore it, or the images in this folder's spool are not found.")
    return name
