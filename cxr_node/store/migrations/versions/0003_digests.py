"""Digests of other kinds than SHA-256. Existing SHA-256 digests stay; they have no prefix."""

from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.execute("ALTER TABLE instances RENAME COLUMN sha256 TO digest")


def downgrade() -> None:
    op.execute("ALTER TABLE instances RENAME COLUMN digest TO sha256")
