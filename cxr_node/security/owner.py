"""Commands run only as the owner of the data folder: the node could not open files that root, for example, leaves there.

In addition, links planted by the node's user would lead root to files that only root may write.
"""

from __future__ import annotations

import os
import pwd

from cxr_node.errors import StoreError
from cxr_node.settings import Settings


def check(settings: Settings) -> None:
    """See that this user owns the data folder, if it is there, or that it is one more that may write it, such as a group's.

    Raises:
        StoreError: it is another's; says whose, and how to run the command as that one.
    """
    if reason := why_not(settings):
        raise StoreError(reason)


def why_not(settings: Settings) -> str:
    """Why this user must not work in the data folder; empty if it may."""
    folder = settings.node.data_dir
    try:
        owner = folder.stat().st_uid
    except OSError:  # it does not exist yet, or can't be read: opening it reports that
        return ""
    user = os.geteuid()
    if user == owner or (user != 0 and os.access(folder, os.W_OK | os.X_OK)):
        return ""
    name = _name(owner)
    return (
        f"The data folder {folder.absolute()} belongs to {name}, and this is {_name(user)}: run it as {name} "
        f"(runuser -u {name} -- cxr-node …). The node could not open files that another user writes there."
    )


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:  # in a container the user may have no name
        return f"#{uid}"
