"""The address that a job's image came from, and indices that find the next jobs in a queue of any length."""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"

_NEVER_TRIED = sa.text("state = 'new' AND attempts = 0")
_TRIED = sa.text("state = 'new' AND attempts > 0")


def upgrade() -> None:
    op.add_column("jobs", sa.Column("host", sa.String(255), nullable=False, server_default=""))
    op.execute(sa.text("UPDATE jobs SET host = (SELECT host FROM instances WHERE instances.id = jobs.instance_id)"))
    op.create_index(
        "ix_jobs_never_tried", "jobs", ["priority", "host", "id"], sqlite_where=_NEVER_TRIED, postgresql_where=_NEVER_TRIED
    )
    op.create_index("ix_jobs_tried", "jobs", [sa.text("priority DESC"), "id"], sqlite_where=_TRIED, postgresql_where=_TRIED)


def downgrade() -> None:
    op.drop_index("ix_jobs_tried", "jobs")
    op.drop_index("ix_jobs_never_tried", "jobs")
    op.drop_column("jobs", "host")
