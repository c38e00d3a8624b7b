"""`cxr-node copy-database`: from SQLite to PostgreSQL and back."""

from __future__ import annotations

from typing import Annotated

import typer

from cxr_node.cli.common import Config, node_settings, open_engine, operator
from cxr_node.errors import CxrNodeError
from cxr_node.records import AuditEvent, quantity


def copy_database(
    to: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="URL",
            envvar="CXR_NODE_COPY_TO",
            help="An empty database: postgresql+psycopg://USER:PASSWORD@HOST/NAME, or sqlite:///FILE. Give a password "
            "in the environment: other users can see a command line.",
        ),
    ],
    config: Config = None,
) -> None:
    """Copy rows, queue and audit log into an empty database, and compare every row; the node must be stopped."""
    from cxr_node.store import copying, lock
    from cxr_node.store.audit_log import audit
    from cxr_node.store.backup import database_file
    from cxr_node.store.postgresql import in_print

    settings = node_settings(config)
    if to == settings.database_url:
        raise CxrNodeError("--to names the database that the node already uses: name another one.")
    with open_engine(config) as source, lock.exclusive_use(settings.node.data_dir):
        target = copying.open_empty(settings, to)
        try:
            # before the rows are read: both have it then
            audit.record(source, AuditEvent("database-copied", user=operator(), detail=f"to {in_print(target)}"))
            counts = copying.copy_rows(
                source, target, lambda table, count: print(f"{table:<20} {quantity(count, 'row')}, identical")
            )
        finally:
            target.dispose()
        print(f"Copied {quantity(sum(counts.values()), 'row')} to {in_print(target)}, and compared each.")
        if target.dialect.name == "sqlite":
            print(f"To use it, remove database.url from the settings; the file must be {database_file(settings)}.")
        else:
            print(
                "To use it, write its URL into a file that only the node's user can read, name the file in "
                "CXR_NODE__DATABASE__URL_FILE, and start the node. The old database stays as it is; put it aside "
                "when the node runs."
            )
