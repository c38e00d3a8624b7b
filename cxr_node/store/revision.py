"""Which schema this program knows. Apart from the tables, so that who only compares it loads no SQLAlchemy."""

from __future__ import annotations

SCHEMA_REVISION = "0008"
"""The newest migration that this program knows; the migrations' test holds the two together."""


def newer_schema(revision: str) -> str:
    """What to tell a person whose database is of a newer program."""
    return (
        f"The database was written by a newer version of cxr-node (schema {revision}, this program knows {SCHEMA_REVISION}). "
        "Start that version, or restore the backup made before the upgrade (`cxr-node restore`; PostgreSQL "
        "with its own tools)."
    )
