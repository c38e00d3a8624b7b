"""Open transactions of storage commitment, attempts without an answer, and counts of what was refused."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.add_column("deliveries", sa.Column("unanswered", sa.Integer, nullable=False, server_default="0"))
    op.add_column("deliveries", sa.Column("missing", sa.Integer, nullable=False, server_default="0"))
    op.create_table(
        "commitment_asks",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("transaction_uid", sa.String(64), nullable=False),
        sa.Column(
            "delivery_id", sa.Integer, sa.ForeignKey("deliveries.id", name="fk_commitment_asks_delivery_id"), nullable=False
        ),
        sa.Column("asked_at", sa.Float, nullable=False),
    )
    op.create_index("ix_commitment_asks_transaction_uid", "commitment_asks", ["transaction_uid"])
    op.create_index("ix_commitment_asks_delivery_id", "commitment_asks", ["delivery_id"])
    op.execute(
        "INSERT INTO commitment_asks (transaction_uid, delivery_id, asked_at) "
        "SELECT transaction_uid, id, coalesce(sent_at, created_at) FROM deliveries WHERE transaction_uid != ''"
    )
    op.create_table(
        "refusals",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("day", sa.Integer, nullable=False),
        sa.Column("what", sa.String(16), nullable=False),
        sa.Column("sender", sa.String(16), nullable=False),
        sa.Column("host", sa.String(255), nullable=False),
        sa.Column("reason", sa.String(255), nullable=False),
        sa.Column("count", sa.Integer, nullable=False),
        sa.Column("first_at", sa.Float, nullable=False),
        sa.Column("last_at", sa.Float, nullable=False),
    )
    op.create_index("ix_refusals_day", "refusals", ["day"])


def downgrade() -> None:
    op.drop_table("refusals")
    op.drop_table("commitment_asks")
    for column in ("unanswered", "missing"):
        op.drop_column("deliveries", column)
