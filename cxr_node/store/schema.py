"""The database tables that the roles share.

Times are UTC seconds since the epoch, from the wall clock, so that delays survive a restart; for `lease_until` see `leases`.

Over 300 lines: one table after another; a migration is compared with all of them.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)

_SIZE = BigInteger().with_variant(Integer, "sqlite")

instances = Table(
    "instances",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("sop_instance_uid", String(64), nullable=False),
    Column("revision", Integer, nullable=False),  # 0 for the first content seen under this UID
    Column("digest", String(64), nullable=False),  # of the data set as it came
    Column("content_digest", String(64), nullable=False, server_default=""),  # however it is encoded; empty: not yet known
    Column("size_bytes", _SIZE, nullable=False),
    Column("path", String(255), nullable=False),  # the key of its blob, which no other row has or will ever have
    Column("sop_class_uid", String(64), nullable=False),
    Column("transfer_syntax_uid", String(64), nullable=False),
    Column("study_instance_uid", String(64), nullable=False, index=True),
    Column("series_instance_uid", String(64), nullable=False),
    Column("patient_id", String(64), nullable=False),
    Column("accession_number", String(64), nullable=False),
    Column("calling_ae_title", String(16), nullable=False),
    Column("called_ae_title", String(16), nullable=False),
    Column("host", String(255), nullable=False),
    Column("received_at", Float, nullable=False, index=True),
    Column("note", Text, nullable=False),  # why it is not analysed, if it isn't
    Column("removed_at", Float),  # when it was decided that the blob goes, or seen that it is gone
    Column("keep_until", Float),  # promised by storage commitment: the blob stays so long
    Column("certificate_sha256", String(64), nullable=False, server_default=""),  # that its sender showed; empty: none
    Column("unconfirmed", Integer, nullable=False, server_default="0"),  # 1: of one who may not correct; see `confirmations`
    Column("spool", String(32), nullable=False, server_default=""),  # that alone has the blob; empty: the store itself has it
    UniqueConstraint("sop_instance_uid", "revision"),
)
Index("uq_instances_path", instances.c.path, unique=True)
Index("ix_instances_patient_id", instances.c.patient_id)
Index("ix_instances_accession_number", instances.c.accession_number)
Index("ix_instances_calling_ae_title", instances.c.calling_ae_title, instances.c.received_at)

Index(
    "ix_instances_spool",
    *(instances.c.spool, instances.c.id),
    sqlite_where=text("spool != ''"),
    postgresql_where=text("spool != ''"),
)

patient_names = Table(  # read by the worker, so that people can search by name; an image that waits has none yet
    "patient_names",
    metadata,
    Column("instance_id", ForeignKey("instances.id"), primary_key=True),
    Column("name", String(255), nullable=False),  # as the header has it, with its carets
    Column("words", String(255), nullable=False),  # the same for comparisons: capitals, no accents, blanks between words
)

jobs = Table(
    "jobs",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("instance_id", ForeignKey("instances.id"), nullable=False, index=True),
    Column("state", String(16), nullable=False, index=True),
    Column("priority", Integer, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("not_before", Float, nullable=False),
    Column("lease_owner", String(64), nullable=False),
    Column("lease_until", Float, nullable=False),
    Column("lease_start", String(36), nullable=False, server_default=""),  # of the machine, from which it counts; see `leases`
    Column("reasons", Text, nullable=False),  # JSON list of sentences
    Column("findings", Text, nullable=False),  # JSON object
    Column("model_version", String(64), nullable=False),
    Column("created_at", Float, nullable=False),
    Column("finished_at", Float),
    Column("superseded_by", Integer),  # the instance, a corrected one, whose arrival cancelled it
    Column("analysis_key", String(64), nullable=False, server_default=""),  # what the analysis depends on
    Column("analysed_at", Float),  # when that analysis was first begun: the date in its results
    Column("host", String(255), nullable=False, server_default=""),  # the address that its image came from
    Column("answer", String(32), nullable=False, server_default=""),  # of `findings`, for searches; empty before there is one
)
Index(
    "ix_jobs_never_tried",
    *(jobs.c.priority, jobs.c.host, jobs.c.id),
    sqlite_where=text("state = 'new' AND attempts = 0"),
    postgresql_where=text("state = 'new' AND attempts = 0"),
)
Index(
    "ix_jobs_tried",
    *(jobs.c.priority.desc(), jobs.c.id),
    sqlite_where=text("state = 'new' AND attempts > 0"),
    postgresql_where=text("state = 'new' AND attempts > 0"),
)
Index("ix_jobs_answer", jobs.c.answer, jobs.c.id, sqlite_where=text("answer != ''"), postgresql_where=text("answer != ''"))
Index(
    "ix_jobs_lease",
    jobs.c.lease_until,
    sqlite_where=text("state = 'running'"),
    postgresql_where=text("state = 'running'"),
)

results = Table(
    "results",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("job_id", ForeignKey("jobs.id"), nullable=False, index=True),
    Column("kind", String(16), nullable=False),
    Column("sop_instance_uid", String(64), nullable=False),
    Column("sop_class_uid", String(64), nullable=False),
    Column("transfer_syntax_uid", String(64), nullable=False),
    Column("path", String(255), nullable=False),  # the key of its blob
    Column("size_bytes", _SIZE, nullable=False),
    Column("created_at", Float, nullable=False, index=True),
    Column("removed_at", Float),
    UniqueConstraint("sop_instance_uid"),
)
Index("uq_results_path", results.c.path, unique=True)

deliveries = Table(
    "deliveries",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("result_id", ForeignKey("results.id"), nullable=False),
    Column("destination", String(64), nullable=False),
    Column("state", String(16), nullable=False, index=True),
    Column("attempts", Integer, nullable=False),
    Column("not_before", Float, nullable=False),
    Column("lease_owner", String(64), nullable=False),
    Column("lease_until", Float, nullable=False),
    Column("lease_start", String(36), nullable=False, server_default=""),  # of the machine, from which it counts; see `leases`
    Column("status", Integer),  # the last C-STORE status
    Column("reason", Text, nullable=False),  # why the last attempt failed
    Column("failed_at", Float),  # when one last did
    Column("created_at", Float, nullable=False),
    Column("sent_at", Float),
    Column("transaction_uid", String(64), nullable=False, server_default=""),  # under which commitment was asked for last
    Column("asks", Integer, nullable=False, server_default="0"),  # how often it was
    Column("committed_at", Float),
    Column("superseded_by", Integer),  # the instance, a corrected one, whose arrival ended it
    Column("unanswered", Integer, nullable=False, server_default="0"),  # attempts after which it may be there all the same
    Column("missing", Integer, nullable=False, server_default="0"),  # reports since it was sent that it isn't there
    Column("sent_sop_class_uid", String(64), nullable=False, server_default=""),  # as what it went last; empty: as it is
    Column("sent_sop_instance_uid", String(64), nullable=False, server_default=""),
    UniqueConstraint("result_id", "destination"),
)
Index(
    "ix_deliveries_transaction_uid",
    deliveries.c.transaction_uid,
    sqlite_where=text("transaction_uid != ''"),
    postgresql_where=text("transaction_uid != ''"),
)
Index(
    "ix_deliveries_due",
    deliveries.c.destination,
    deliveries.c.id,
    sqlite_where=text("state IN ('waiting', 'sending')"),
    postgresql_where=text("state IN ('waiting', 'sending')"),
)


readings = Table(  # what readers say of an answer
    "readings",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("job_id", ForeignKey("jobs.id"), nullable=False, index=True),
    Column("at", Float, nullable=False),
    Column("user", String(64), nullable=False),
    Column("verdict", String(16), nullable=False),  # "agree", "disagree", or "comment": neither
    Column("comment", Text, nullable=False),
    Column("answer", String(32), nullable=False),  # that was judged
    Column("model_version", String(64), nullable=False),  # that gave it
)

commitment_asks = Table(  # transactions under which a destination was asked to commit, open until it reports
    "commitment_asks",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("transaction_uid", String(64), nullable=False, index=True),
    Column("delivery_id", ForeignKey("deliveries.id"), nullable=False, index=True),
    Column("asked_at", Float, nullable=False),
)

commitment_reports = Table(  # what modalities asked the node to commit, and whether they have been told
    "commitment_reports",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("transaction_uid", String(64), nullable=False),
    Column("ae_title", String(16), nullable=False),
    Column("host", String(255), nullable=False),
    Column("committed", Text, nullable=False),  # JSON list of SOP class UID, SOP instance UID
    Column("failed", Text, nullable=False),  # JSON list of SOP class UID, SOP instance UID, failure reason
    Column("state", String(16), nullable=False, index=True),
    Column("attempts", Integer, nullable=False),
    Column("not_before", Float, nullable=False),
    Column("reason", Text, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("sent_at", Float),
)

refusals = Table(  # of images and associations, counted by day
    "refusals",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("day", Integer, nullable=False, index=True),  # days since the epoch
    Column("what", String(16), nullable=False),
    Column("sender", String(16), nullable=False),
    Column("host", String(255), nullable=False),
    Column("reason", String(255), nullable=False),
    Column("count", Integer, nullable=False),
    Column("first_at", Float, nullable=False),
    Column("last_at", Float, nullable=False),
)

audit = Table(
    "audit",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("at", Float, nullable=False, index=True),
    Column("event", String(32), nullable=False),
    Column("outcome", String(16), nullable=False),
    Column("user", String(64), nullable=False),
    Column("host", String(255), nullable=False),
    Column("patient_id", String(64), nullable=False),
    Column("study_instance_uid", String(64), nullable=False),
    Column("sop_instance_uid", String(64), nullable=False),
    Column("detail", Text, nullable=False),
    Column("accession_number", String(64), nullable=False, server_default=""),
)
FOUND_BY_BEGINNING = ("patient_id", "study_instance_uid", "sop_instance_uid", "accession_number", "host")
"""Columns of the audit log whose index PostgreSQL orders by bytes, so that it finds what begins with a text too."""
for _name, _columns, _where in (  # for searches: see `audit.search`
    ("patient_id", ("patient_id",), ""),
    ("study_instance_uid", ("study_instance_uid",), ""),
    ("accession_number", ("accession_number",), "accession_number != ''"),
    ("sop_instance_uid", ("sop_instance_uid",), "sop_instance_uid != ''"),
    ("event", ("event", "at", "id", "user", "outcome", "host"), ""),
    ("user", ("user", "at"), ""),
    ("host", ("host", "at", "id", "user"), "host != ''"),
    ("trouble", ("outcome", "at", "id", "event", "user", "host"), "outcome != 'success'"),
):
    Index(
        f"ix_audit_{_name}",
        *(audit.c[_column] for _column in _columns),
        postgresql_ops={_column: "varchar_pattern_ops" for _column in _columns[:1] if _column in FOUND_BY_BEGINNING},
        **({"sqlite_where": text(_where), "postgresql_where": text(_where)} if _where else {}),  # type: ignore[arg-type]
    )

audit_chain = Table(  # each row of `audit`, in the order in which it was chained to the one before
    "audit_chain",
    metadata,
    Column("seq", Integer, primary_key=True, autoincrement=False),
    Column("audit_id", Integer, nullable=False, unique=True),  # no foreign key: a row that is gone is told of, not refused
    Column("hash", LargeBinary(32), nullable=False),  # SHA-256 over the hash before and the row
)

audit_exports = Table(  # archives that were written, and so what may be removed
    "audit_exports",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("first_seq", Integer, nullable=False),
    Column("last_seq", Integer, nullable=False),
    Column("last_audit_id", Integer, nullable=False),
    Column("last_hash", LargeBinary(32), nullable=False),
    Column("name", String(255), nullable=False),  # of the file
    Column("sha256", String(64), nullable=False),
    Column("signature", String(128), nullable=False),
    Column("exported_at", Float, nullable=False),
)

audit_repositories = Table(  # how far each audit record repository has got
    "audit_repositories",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("seq", Integer, nullable=False),  # of the last row that it has
    Column("sent", Integer, nullable=False),
    Column("sent_at", Float),
    Column("error", Text, nullable=False),  # why the last attempt failed; empty: it didn't
    Column("error_at", Float),
)

home = Table(  # one row at most: see `home`
    "home",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("data_folder", String(36), nullable=False),
)

host_turns = Table(  # whose turn it is to do what one host at a time does for all: see `host_turns`
    "host_turns",
    metadata,
    Column("name", String(80), primary_key=True),
    Column("lease_owner", String(64), nullable=False),
    Column("lease_until", Float, nullable=False),
    Column("lease_start", String(36), nullable=False, server_default=""),
)

spools = Table(  # of hosts that keep instances on their disk until the bucket has them: see `spool`
    "spools",
    metadata,
    Column("name", String(32), primary_key=True),
    Column("host", String(255), nullable=False),  # at its last start
    Column("seen_at", Float, nullable=False),  # when its uploads ran last
)

users = Table(  # who may use the web page
    "users",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", String(64), nullable=False, unique=True),
    Column("role", String(16), nullable=False),
    Column("password_hash", String(255), nullable=False),  # argon2id, in its own notation
    Column("created_at", Float, nullable=False),
    Column("changed_at", Float, nullable=False),  # the password
    Column("disabled_at", Float),
)

web_sessions = Table(
    "web_sessions",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("token_hash", String(64), nullable=False, unique=True),  # SHA-256 of what the cookie holds
    Column("csrf", String(64), nullable=False),
    Column("name", String(64), nullable=False),
    Column("role", String(16), nullable=False),
    Column("how", String(16), nullable=False),  # password, oidc, link
    Column("created_at", Float, nullable=False),
    Column("seen_at", Float, nullable=False),
    Column("ends_at", Float, nullable=False),
)

api_tokens = Table(
    "api_tokens",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", String(64), nullable=False),
    Column("token_hash", String(64), nullable=False, unique=True),  # SHA-256
    Column("role", String(16), nullable=False),
    Column("created_by", String(64), nullable=False),
    Column("created_at", Float, nullable=False),
    Column("expires_at", Float, nullable=False),
    Column("revoked_at", Float),
    Column("used_at", Float),
)

failed_attempts = Table(  # to give a password or passcode; see `lockout`
    "failed_attempts",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("who", String(64), nullable=False, unique=True),  # SHA-256 of a name, an address or both
    Column("failed", Integer, nullable=False),
    Column("last_at", Float, nullable=False, index=True),
    Column("locked_until", Float, nullable=False),
)

metric_totals = Table(  # what counters for monitoring have reached, and up to where they have counted; see `tallies`
    "metric_totals",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", String(64), nullable=False),
    Column("labels", String(255), nullable=False),  # JSON list of their values
    Column("value", Float, nullable=False),
    UniqueConstraint("name", "labels"),
)

_FAILED_DELIVERIES = text("event IN ('result-delayed', 'result-held', 'result-not-kept')")
Index(  # for `parties`, which asks for the last of a destination
    "ix_audit_failures",
    *(audit.c.user, audit.c.at, audit.c.event),
    sqlite_where=_FAILED_DELIVERIES,
    postgresql_where=_FAILED_DELIVERIES,
)
_FINISHED = text("finished_at IS NOT NULL")
Index("ix_jobs_finished_at", jobs.c.finished_at, sqlite_where=_FINISHED, postgresql_where=_FINISHED)
Index("ix_deliveries_sent_at", deliveries.c.sent_at)
