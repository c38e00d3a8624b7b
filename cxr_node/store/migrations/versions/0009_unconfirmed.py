"""The certificate of an instance's sender, and whether the instance waits for an operator: other content under a known UID."""

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
