"""Entering a job writes two pages fewer: nothing asks for jobs by `ix_jobs_due` any more, and a new job has no end to enter."""

import sqlalchemy as sa
from alembic import op

revision = "0021"
down_revision = "0020"


def upgrade() -> None:
    op.drop_index("ix_jobs_due", table_name="jobs")
    _make_finished_at(sa.text("finished_at IS NOT NULL"))


def downgrade() -> None:
    _make_finished_at(None)
    due = sa.text("state = 'new'")
    op.create_index("ix_jobs_due", "jobs", [sa.text("priority DESC"), "id"], sqlite_where=due, postgresql_where=due)


def _make_finished_at(where: sa.TextClause | None) -> None:
    op.drop_index("ix_jobs_finished_at", table_name="jobs")
    op.create_index("ix_jobs_finished_at", "jobs", ["finished_at"], sqlite_where=where, postgresql_where=where)
