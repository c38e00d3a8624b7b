"""The SOP class and instance UID under which a destination has a report, if they differ from the report's own."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"

_COLUMNS = ("sent_sop_class_uid", "sent_sop_instance_uid")


def upgrade() -> None:
    for column in _COLUMNS:
        op.add_column("deliveries", sa.Column(column, sa.String(64), nullable=False, server_default=""))


def downgrade() -> None:
    for column in _COLUMNS:
        op.drop_column("deliveries", column)
