"""Indices of the audit log also contain other columns with few values, so that rare combinations need no rows."""

import sqlalchemy as sa
from alembic import op

revision = "0020"
down_revision = "0019"

_INDICES = (
    ("event", ["event", "at"], ["id", "user", "outcome", "host"], None),
    ("trouble", ["outcome", "at"], ["id", "event", "user", "host"], "outcome != 'success'"),
    ("host", ["host", "at"], ["id", "user"], "host != ''"),
)


def upgrade() -> None:
    for name, columns, more, where in _INDICES:
        _make(name, columns + more, where)


def downgrade() -> None:
    for name, columns, _, where in _INDICES:
        _make(name, columns, where)


def _make(name: str, columns: list[str], where: str | None) -> None:
    operators = {"host": "varchar_pattern_ops"} if name == "host" else {}
    condition = None if where is None else sa.text(where)
    op.drop_index(f"ix_audit_{name}", table_name="audit")
    op.create_index(
        f"ix_audit_{name}", "audit", columns, postgresql_ops=operators, sqlite_where=condition, postgresql_where=condition
    )
