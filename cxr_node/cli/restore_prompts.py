"""Prompts of `restore` before it marks images as gone: on a new folder or machine they may not be copied yet."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence

import typer

from cxr_node.errors import CxrNodeError
from cxr_node.settings import Settings
from cxr_node.store.backup import backup_folder
from cxr_node.store.files.consistency import Difference, DifferenceKind

_GONE = (DifferenceKind.INSTANCE_WITHOUT_FILE, DifferenceKind.RESULT_WITHOUT_FILE)


def confirmed_differences(settings: Settings, found: Sequence[Difference], *, yes: bool) -> list[Difference]:
    """The differences to repair: rows without a file are marked as gone only if the operator agrees.

    Args:
        settings: the settings tree.
        found: what was found between the restored rows and the files.
        yes: it was said in advance.
    """
    here = {_name(item) for item in found if item.kind is DifferenceKind.INSTANCE_WITHOUT_ROW}
    lost = [item for item in found if item.kind in _GONE and _name(item) not in here]
    gone = Counter(item.kind for item in lost)
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
    return [item for item in found if item not in lost]


def _name(item: Difference) -> str:
    """The part of a file's name that its content gives. An image that is sent again gets a new file with the same one."""
    return item.path.rsplit("/", 1)[-1].partition("-")[0]


def make_folder_for(settings: Settings, *, yes: bool) -> None:
    """If there is no data folder, ask whether to make a new one.

    Raises:
        CxrNodeError: none is.
    """
    folder = settings.node.data_dir.absolute()
    if folder.is_dir():
        return
    print(
        f"There is no data folder {folder}. To move the node there, copy `instances/` and `results/` of the old folder with "
        "their owner and times (rsync -a), and a backup of the database: the newest in "
        f"`{backup_folder(settings).name}/` there, or one that `cxr-node backup` makes."
    )
    if not (yes or ask(f"Make {folder} and restore into it?")):
        raise CxrNodeError(f"There is no data folder {folder}: name the settings with --config, or pass --yes to create it.")
    folder.mkdir(mode=0o700, parents=True)


def ask(question: str) -> bool:
    """Ask the operator; without a terminal (a script) the answer is no, which does no harm."""
    if not sys.stdin.isatty():
        print(f"{question} There is no terminal, so the answer is no. In a script, pass --yes.")
        return False
    return typer.confirm(question, default=False)
