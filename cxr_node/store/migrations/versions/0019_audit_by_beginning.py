"""PostgreSQL finds audit rows by the beginning of a column too: indices ordered by bytes, not by the database's language."""

import sqlalchemy as sa
from alembic import op

revision = "0019"
down_revision = "0018"

_INDICES = (
    ("patient_id", ["patient_id"], None),
    ("study_instance_uid", ["study_instance_uid"], None),
    ("sop_instance_uid", ["sop_instance_uid"], "sop_instance_uid != ''"),
    ("accession_number", ["accession_number"], "accession_number != ''"),
    ("host", ["host", "at"], "host != ''"),
)


def upgrade() -> None:
    _make("varchar_pattern_ops")


def downgrade() -> None:
    _make("varchar_ops")


def _make(operators: str) -> None:
    if op.get_bind().dialect.name != "postgresql":
        return
    for column, columns, where in _INDICES:
        condition = None if where is None else sa.text(where)
        op.drop_index(f"ix_audit_{column}", table_name="audit")
        op.create_index(f"ix_audit_{column}", "audit", columns, postgresql_ops={column: operators}, postgresql_where=condition)
