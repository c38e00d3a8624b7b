"""The index of failed deliveries covers the query for the last one, so that the planner prefers it to the index of users."""

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"

_FAILED = sa.text("event IN ('result-delayed', 'result-held', 'result-not-kept')")


def upgrade() -> None:
    _make("user", "at", "event")


def downgrade() -> None:
    _make("user", "at")


def _make(*columns: str) -> None:
    op.drop_index("ix_audit_failures", table_name="audit")
    op.create_index("ix_audit_failures", "audit", list(columns), sqlite_where=_FAILED, postgresql_where=_FAILED)
