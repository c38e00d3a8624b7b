"""Blobs with one owner each, what storage commitment promised, corrections that end what came before, dates of analyses."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.add_column("instances", sa.Column("content_digest", sa.String(64), nullable=False, server_default=""))
    op.add_column("instances", sa.Column("keep_until", sa.Float))
    op.add_column("jobs", sa.Column("superseded_by", sa.Integer))
    op.add_column("jobs", sa.Column("analysis_key", sa.String(64), nullable=False, server_default=""))
    op.add_column("jobs", sa.Column("analysed_at", sa.Float))
    op.add_column("deliveries", sa.Column("superseded_by", sa.Integer))
    op.create_index("uq_instances_path", "instances", ["path"], unique=True)
    op.create_index("uq_results_path", "results", ["path"], unique=True)


def downgrade() -> None:
    op.drop_index("uq_results_path", "results")
    op.drop_index("uq_instances_path", "instances")
    for table, column in (
        ("deliveries", "superseded_by"),
        ("jobs", "analysed_at"),
        ("jobs", "analysis_key"),
        ("jobs", "superseded_by"),
        ("instances", "keep_until"),
        ("instances", "content_digest"),
    ):
        op.drop_column(table, column)
