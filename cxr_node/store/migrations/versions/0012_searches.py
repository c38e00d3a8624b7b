"""Columns that the web pages search by (patients' names, answers), their indices, and readers' verdicts on answers."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"

_ANSWERED = sa.text("answer != ''")

_ANSWERS = {
    "sqlite": "UPDATE jobs SET answer = coalesce(json_extract(findings, '$.answer'), CASE WHEN "
    "json_extract(findings, '$.indeterminate') THEN 'indeterminate' END, json_extract(findings, '$.label'), '') "
    "WHERE findings LIKE '{\"%'",
    "postgresql": "UPDATE jobs SET answer = coalesce(findings::json ->> 'answer', CASE WHEN findings::json ->> 'indeterminate' "
    "= 'true' THEN 'indeterminate' END, findings::json ->> 'label', '') WHERE findings LIKE '{\"%'",
}
"""The answer that a job's findings give, as `records.answer_of` reads it; a version before kept none."""


def upgrade() -> None:
    op.add_column("jobs", sa.Column("answer", sa.String(32), nullable=False, server_default=""))
    op.execute(sa.text(_ANSWERS["postgresql" if op.get_bind().dialect.name == "postgresql" else "sqlite"]))
    op.create_index("ix_jobs_answer", "jobs", ["answer", "id"], sqlite_where=_ANSWERED, postgresql_where=_ANSWERED)
    op.create_index("ix_instances_patient_id", "instances", ["patient_id"])
    op.create_index("ix_instances_accession_number", "instances", ["accession_number"])
    op.create_index("ix_instances_calling_ae_title", "instances", ["calling_ae_title", "received_at"])
    op.create_table(
        "patient_names",
        sa.Column("instance_id", sa.Integer, sa.ForeignKey("instances.id"), primary_key=True),
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("words", sa.String(255), nullable=False),
    )
    op.create_table(
        "readings",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("job_id", sa.Integer, sa.ForeignKey("jobs.id"), nullable=False),
        sa.Column("at", sa.Float, nullable=False),
        sa.Column("user", sa.String(64), nullable=False),
        sa.Column("verdict", sa.String(16), nullable=False),
        sa.Column("comment", sa.Text, nullable=False),
        sa.Column("answer", sa.String(32), nullable=False),
        sa.Column("model_version", sa.String(64), nullable=False),
    )
    op.create_index("ix_readings_job_id", "readings", ["job_id"])


def downgrade() -> None:
    op.drop_table("readings")
    op.drop_table("patient_names")
    op.drop_index("ix_instances_calling_ae_title", "instances")
    op.drop_index("ix_instances_accession_number", "instances")
    op.drop_index("ix_instances_patient_id", "instances")
    op.drop_index("ix_jobs_answer", "jobs")
    op.drop_column("jobs", "answer")
