"""The schema revision of this program, and what a person is told of a database that it cannot use, without SQLAlchemy."""

from __future__ import annotations

from cxr_node.settings import Settings

SCHEMA_REVISION = "0021"
"""The newest migration that this program knows; the migrations' test holds the two together."""


def newer_schema(revision: str) -> str:
    """What to tell a person whose database is of a newer program."""
    return (
        f"The database was written by a newer version of cxr-node (schema {revision}, this program knows {SCHEMA_REVISION}). "
        "Start that version, or restore the backup made before the upgrade (`cxr-node restore`; PostgreSQL "
        "with its own tools)."
    )


def no_node(settings: Settings) -> str:
    """What to tell a person who asks about a node that isn't there."""
    return (
        f"There is no node in {settings.node.data_dir.absolute()}: name its settings with --config, or start it with "
        "`cxr-node serve`."
    )


def cure_of(said: str) -> str:
    """What to do about what SQLite said."""
    if "malformed" in said or "not a database" in said:
        return " It is damaged: stop the node and `cxr-node restore` the newest backup."
    if "readonly" in said:
        return " It, or the data folder, is read-only for this user: change the owner, or the way it is mounted."
    return ""
