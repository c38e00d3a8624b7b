"""Indices of the audit log that end with the time: searches are ordered by time and can be bounded by it."""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"

_INDICES = (
    ("ix_audit_event", "event", None),
    ("ix_audit_user", "user", None),
    ("ix_audit_host", "host", "host != ''"),
    ("ix_audit_trouble", "outcome", "outcome != 'success'"),
)


def upgrade() -> None:
    _make("at")


def downgrade() -> None:
    _make("id")


def _make(second: str) -> None:
    for name, column, where in _INDICES:
        condition = None if where is None else sa.text(where)
        op.drop_index(name, table_name="audit")
        op.create_index(name, "audit", [column, second], sqlite_where=condition, postgresql_where=condition)
