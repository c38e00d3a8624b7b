"""What `restore` asks before it believes that images are gone: on a new folder or machine they are only not there yet."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence

import typer

from cxr_node.errors import CxrNodeError
from cxr_node.settings import Settings
from cxr_node.store.backup import backup_folder
from cxr_node.store.differences import Difference, Kind

_GONE = (Kind.INSTANCE_WITHOUT_FILE, Kind.RESULT_WITHOUT_FILE)


def without_what_is_not_gone(settings: Settings, found: Sequence[Difference], *, yes: bool) -> list[Difference]:
    """Of differences those to be mended: what has no file is marked as gone only if a person says so.

    Args:
        settings: the settings tree.
        found: what was found between the restored rows and the files.
        yes: it was said in advance.
    """
    gone = Counter(item.kind for item in found if item.kind in _GONE)
    if not gone or yes:
        return list(found)
    counts = " and ".join(f"{gone[kind]} {what}" for kind, what in zip(_GONE, ("images", "results"), strict=True) if gone[kind])
    folder = settings.node.data_dir.absolute()
    print(
        f"{counts} of the backup have no file in {folder}. If this is a new folder or machine, they are in the old "
        "one: copy `instances/` and `results/` from there, with their owner and times (rsync -a), and restore again. If they are "
        "lost, they can be marked as gone: jobs that need them are then held until the images are sent again."
    )
    if ask(f"Mark {counts} as gone?"):
        return list(found)
    print(
        "Not marked. Copy the files, then `cxr-node doctor`; or `cxr-node doctor --mend`, which marks what is not there as gone."
    )
    return [item for item in found if item.kind not in _GONE]


def make_folder_for(settings: Settings, *, yes: bool) -> None:
    """Where there is no data folder, ask whether a new one is meant, and make it.

    Raises:
        CxrNodeError: none is.
    """
    folder = settings.node.data_dir.absolute()
    if folder.is_dir():
        return
    print(
        f"There is no data folder {folder}. If the node moves there, it needs of the old folder `instances/` and `results/`, "
        "copied with their owner and times (rsync -a), and a backup of the database, which lies in "
        f"`{backup_folder(settings).name}/` there, or which `cxr-node backup` makes."
    )
    if not (yes or ask(f"Make {folder} and restore into it?")):
        raise CxrNodeError(f"There is no data folder {folder}: name the settings with --config, or say --yes to make it.")
    folder.mkdir(mode=0o700, parents=True)


def ask(question: str) -> bool:
    """Ask a person, for whom no is the answer that does no harm; where nobody can be asked (a script), it is no."""
    if not sys.stdin.isatty():
        print(f"{question} Nobody is there to answer: no. In a script, say --yes.")
        return False
    return typer.confirm(question, default=False)
