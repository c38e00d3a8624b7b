"""When a delivery last failed: the audit log has only its first failure and its last."""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    op.add_column("deliveries", sa.Column("failed_at", sa.Float))


def downgrade() -> None:
    op.drop_column("deliveries", "failed_at")
