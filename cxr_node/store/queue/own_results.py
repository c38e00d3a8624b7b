"""Recognises the node's own results by their UIDs. Rows of results remain when their files are removed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import select

from cxr_node.store.schema import results

if TYPE_CHECKING:
    from sqlalchemy import Engine


def is_result(engine: Engine, sop_instance_uid: str) -> bool:
    """Whether this node has made an instance of this UID."""
    query = select(results.c.id).where(results.c.sop_instance_uid == sop_instance_uid).limit(1)
    with engine.connect() as connection:
        return connection.execute(query).first() is not None
