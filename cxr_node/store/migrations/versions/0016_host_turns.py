"""Leases for work that one host at a time does for all hosts on the database."""

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"


def upgrade() -> None:
    op.create_table(
        "host_turns",
        sa.Column("name", sa.String(80), nullable=False),
        sa.Column("lease_owner", sa.String(64), nullable=False),
        sa.Column("lease_until", sa.Float(), nullable=False),
        sa.Column("lease_start", sa.String(36), nullable=False, server_default=""),
        sa.PrimaryKeyConstraint("name", name="pk_host_turns"),
    )


def downgrade() -> None:
    op.drop_table("host_turns")
