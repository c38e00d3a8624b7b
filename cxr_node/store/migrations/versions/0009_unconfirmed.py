"""Whose certificate an instance came with, and whether it waits for a person: other content than its UID's first sender sent."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    op.add_column("instances", sa.Column("certificate_sha256", sa.String(64), nullable=False, server_default=""))
    op.add_column("instances", sa.Column("unconfirmed", sa.Integer, nullable=False, server_default="0"))


def downgrade() -> None:
    for column in ("certificate_sha256", "unconfirmed"):
        op.drop_column("instances", column)
