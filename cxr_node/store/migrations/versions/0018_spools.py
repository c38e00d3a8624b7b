"""The spools, and which instances are only in the spool of a host."""

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision = "0017"

_SPOOLED = sa.text("spool != ''")


def upgrade() -> None:
    op.add_column("instances", sa.Column("spool", sa.String(32), nullable=False, server_default=""))
    op.create_index("ix_instances_spool", "instances", ["spool", "id"], sqlite_where=_SPOOLED, postgresql_where=_SPOOLED)
    op.create_table(
        "spools",
        sa.Column("name", sa.String(32), nullable=False),
        sa.Column("host", sa.String(255), nullable=False),
        sa.Column("seen_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_spools"),
    )


def downgrade() -> None:
    op.drop_table("spools")
    op.drop_index("ix_instances_spool", "instances")
    op.drop_column("instances", "spool")
