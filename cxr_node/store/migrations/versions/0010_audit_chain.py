"""The audit log as a chain: hashes, exports, positions of repositories, indices for searching, triggers that refuse changes."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"

_INDICES = (
    ("ix_audit_accession_number", ("accession_number",), "accession_number != ''"),
    ("ix_audit_sop_instance_uid", ("sop_instance_uid",), "sop_instance_uid != ''"),
    ("ix_audit_event", ("event", "id"), None),
    ("ix_audit_user", ("user", "id"), None),
    ("ix_audit_host", ("host", "id"), "host != ''"),
    ("ix_audit_trouble", ("outcome", "id"), "outcome != 'success'"),
)
_KEPT = ("audit", "audit_chain", "audit_exports")


def upgrade() -> None:
    op.add_column("audit", sa.Column("accession_number", sa.String(64), nullable=False, server_default=""))
    for name, columns, where in _INDICES:
        condition = None if where is None else sa.text(where)
        op.create_index(name, "audit", list(columns), sqlite_where=condition, postgresql_where=condition)
    op.create_table(
        "audit_chain",
        sa.Column("seq", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("audit_id", sa.Integer, nullable=False),
        sa.Column("hash", sa.LargeBinary(32), nullable=False),
        sa.UniqueConstraint("audit_id", name="uq_audit_chain_audit_id"),
    )
    op.create_table(
        "audit_exports",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("first_seq", sa.Integer, nullable=False),
        sa.Column("last_seq", sa.Integer, nullable=False),
        sa.Column("last_audit_id", sa.Integer, nullable=False),
        sa.Column("last_hash", sa.LargeBinary(32), nullable=False),
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("signature", sa.String(128), nullable=False),
        sa.Column("exported_at", sa.Float, nullable=False),
    )
    op.create_table(
        "audit_repositories",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("seq", sa.Integer, nullable=False),
        sa.Column("sent", sa.Integer, nullable=False),
        sa.Column("sent_at", sa.Float),
        sa.Column("error", sa.Text, nullable=False),
        sa.Column("error_at", sa.Float),
    )
    if op.get_bind().dialect.name == "postgresql":
        _guard_postgresql()
    else:
        _guard_sqlite()


def _guard_sqlite() -> None:
    op.execute("CREATE VIRTUAL TABLE audit_text USING fts5(detail, content='audit', content_rowid='id', detail=none)")
    for table in _KEPT:
        op.execute(
            f"CREATE TRIGGER {table}_no_update BEFORE UPDATE ON {table} "
            "BEGIN SELECT RAISE(ABORT, 'the audit log is only added to'); END"
        )
    exported = "coalesce((SELECT max(last_seq) FROM audit_exports), 0)"
    for table, seq in (
        ("audit", "coalesce((SELECT seq FROM audit_chain WHERE audit_id = OLD.id), 9223372036854775807)"),
        ("audit_chain", "OLD.seq"),
    ):
        op.execute(
            f"CREATE TRIGGER {table}_no_delete BEFORE DELETE ON {table} WHEN {seq} > {exported} "
            "BEGIN SELECT RAISE(ABORT, 'only what was exported is removed, by cxr-node audit purge'); END"
        )
    op.execute(
        "CREATE TRIGGER audit_exports_no_delete BEFORE DELETE ON audit_exports "
        "BEGIN SELECT RAISE(ABORT, 'the audit log is only added to'); END"
    )


def _guard_postgresql() -> None:
    op.execute(
        "CREATE INDEX ix_audit_text ON audit USING gin (to_tsvector('simple', regexp_replace(detail, '[^[:alnum:]]+', ' ', 'g')))"
    )
    op.execute(
        "CREATE FUNCTION cxr_node_audit_refuse() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION 'the audit log is only added to'; END $$"
    )
    op.execute(
        "CREATE FUNCTION cxr_node_audit_exported() RETURNS trigger LANGUAGE plpgsql AS $$ "
        "DECLARE at bigint; BEGIN "
        "IF TG_TABLE_NAME = 'audit' THEN SELECT seq INTO at FROM audit_chain WHERE audit_id = OLD.id; "
        "ELSE at := OLD.seq; END IF; "
        "IF at IS NULL OR at > coalesce((SELECT max(last_seq) FROM audit_exports), 0) THEN "
        "RAISE EXCEPTION 'only what was exported is removed, by cxr-node audit purge'; END IF; "
        "RETURN OLD; END $$"
    )
    for table in _KEPT:
        op.execute(
            f"CREATE TRIGGER {table}_no_update BEFORE UPDATE ON {table} FOR EACH ROW EXECUTE FUNCTION cxr_node_audit_refuse()"
        )
        op.execute(
            f"CREATE TRIGGER {table}_no_truncate BEFORE TRUNCATE ON {table} "
            "FOR EACH STATEMENT EXECUTE FUNCTION cxr_node_audit_refuse()"
        )
        what = "refuse" if table == "audit_exports" else "exported"
        op.execute(
            f"CREATE TRIGGER {table}_no_delete BEFORE DELETE ON {table} FOR EACH ROW EXECUTE FUNCTION cxr_node_audit_{what}()"
        )


def downgrade() -> None:
    on_postgresql = op.get_bind().dialect.name == "postgresql"
    for table in _KEPT:
        for what in ("no_update", "no_delete", "no_truncate") if on_postgresql else ("no_update", "no_delete"):
            op.execute(f"DROP TRIGGER {table}_{what}" + (f" ON {table}" if on_postgresql else ""))
    if on_postgresql:
        op.execute("DROP FUNCTION cxr_node_audit_refuse()")
        op.execute("DROP FUNCTION cxr_node_audit_exported()")
        op.execute("DROP INDEX ix_audit_text")
    else:
        op.execute("DROP TABLE audit_text")
    for table in ("audit_repositories", "audit_exports", "audit_chain"):
        op.drop_table(table)
    for name, _, _ in reversed(_INDICES):
        op.drop_index(name, table_name="audit")
    op.drop_column("audit", "accession_number")
