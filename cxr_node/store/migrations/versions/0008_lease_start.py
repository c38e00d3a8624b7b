"""The start of the machine that a lease counts from: on SQLite, leases use the monotonic clock, which nobody can set."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    for table in ("jobs", "deliveries"):
        op.add_column(table, sa.Column("lease_start", sa.String(36), nullable=False, server_default=""))


def downgrade() -> None:
    for table in ("jobs", "deliveries"):
        op.drop_column(table, "lease_start")
