"""The tables in which roles meet.

Times are UTC seconds since the epoch, from the wall clock, so that waits survive a restart; but `lease_until`, see `leases`.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
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
    UniqueConstraint("sop_instance_uid", "revision"),
)
Index("uq_instances_path", instances.c.path, unique=True)

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
)
Index(
    "ix_jobs_due", jobs.c.priority.desc(), jobs.c.id, sqlite_where=text("state = 'new'"), postgresql_where=text("state = 'new'")
)
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
    Column("created_at", Float, nullable=False),
    Column("sent_at", Float),
    Column("transaction_uid", String(64), nullable=False, server_default=""),  # under which commitment was asked for last
    Column("asks", Integer, nullable=False, server_default="0"),  # how often it was
    Column("committed_at", Float),
    Column("superseded_by", Integer),  # the instance, a corrected one, whose arrival ended it
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

audit = Table(
    "audit",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("at", Float, nullable=False, index=True),
    Column("event", String(32), nullable=False),
    Column("outcome", String(16), nullable=False),
    Column("user", String(64), nullable=False),
    Column("host", String(255), nullable=False),
    Column("patient_id", String(64), nullable=False, index=True),
    Column("study_instance_uid", String(64), nullable=False, index=True),
    Column("sop_instance_uid", String(64), nullable=False),
    Column("detail", Text, nullable=False),
)

home = Table(  # one row at most: see `home`
    "home",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("data_folder", String(36), nullable=False),
)
