"""The data folder to which a database with its own URL belongs; sizes beyond 2 GiB, the limit of an integer in PostgreSQL."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.create_table(
        "home",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("data_folder", sa.String(36), nullable=False),
    )
    _resize(sa.BigInteger)


def downgrade() -> None:
    _resize(sa.Integer)
    op.drop_table("home")


def _resize(kind: type[sa.Integer]) -> None:
    if op.get_bind().dialect.name == "postgresql":  # SQLite's integers are as long as they need to be
        for table in ("instances", "results"):
            op.alter_column(table, "size_bytes", type_=kind)
