"""Storage commitment: what destinations have confirmed, and what modalities have asked."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("deliveries", sa.Column("transaction_uid", sa.String(64), nullable=False, server_default=""))
    op.add_column("deliveries", sa.Column("asks", sa.Integer, nullable=False, server_default="0"))
    op.add_column("deliveries", sa.Column("committed_at", sa.Float))
    asked = sa.text("transaction_uid != ''")
    op.create_index(
        "ix_deliveries_transaction_uid", "deliveries", ["transaction_uid"], sqlite_where=asked, postgresql_where=asked
    )
    op.create_table(
        "commitment_reports",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("transaction_uid", sa.String(64), nullable=False),
        sa.Column("ae_title", sa.String(16), nullable=False),
        sa.Column("host", sa.String(255), nullable=False),
        sa.Column("committed", sa.Text, nullable=False),
        sa.Column("failed", sa.Text, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("not_before", sa.Float, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("sent_at", sa.Float),
    )
    op.create_index("ix_commitment_reports_state", "commitment_reports", ["state"])


def downgrade() -> None:
    op.drop_table("commitment_reports")
    op.drop_index("ix_deliveries_transaction_uid", "deliveries")
    for column in ("transaction_uid", "asks", "committed_at"):
        op.drop_column("deliveries", column)
