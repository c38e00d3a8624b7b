"""A data folder with its database, and the steps that tests take in it."""

from __future__ import annotations

import hashlib
import tempfile
from functools import cache
from pathlib import Path

from sqlalchemy import delete, select, update

from cxr_node.records import ComposedObject, DataFolder, InstanceHeader, ResultKind, Sender
from cxr_node.settings import DatabaseSettings, NodeSettings, Settings
from cxr_node.store.backup import database_file
from cxr_node.store.database import open_database, write
from cxr_node.store.files.blobs import LocalBlobs
from cxr_node.store.files.instances import keep_instance, make_folders, write_result
from cxr_node.store.queue import admissions, deliveries, jobs
from cxr_node.store.schema import deliveries as deliveries_table
from cxr_node.store.schema import home
from cxr_node.store.schema import instances as instances_table
from cxr_node.store.schema import jobs as jobs_table
from cxr_node.store.views import overview

BOTH = {"pacs": (ResultKind.OVERLAY, ResultKind.REPORT)}


def lay_database(settings: Settings) -> None:
    """Make the data folder with an SQLite database as the migrations leave it, which take a sixth of a second each time.

    A folder that has a database keeps it, and a database elsewhere is left to itself.
    """
    file = database_file(settings)
    if not settings.database.url and not file.exists():
        make_folders(DataFolder(settings.node.data_dir))
        file.touch(0o600)
        file.write_bytes(_migrated())


@cache
def _migrated() -> bytes:
    with tempfile.TemporaryDirectory(prefix="cxr-migrated-") as folder:
        settings = Settings(node=NodeSettings(data_dir=Path(folder)))
        open_database(settings).dispose()
        return database_file(settings).read_bytes()


def migrate(url: str) -> None:
    """Give a PostgreSQL database the program's schema, and no data folder to belong to."""
    with tempfile.TemporaryDirectory(prefix="cxr-migrated-") as folder:
        engine = open_database(Settings(node=NodeSettings(data_dir=Path(folder)), database=DatabaseSettings(url=url)))
        with write(engine) as connection:
            connection.execute(delete(home))
        engine.dispose()


class Store:
    """A data folder with its database, and the steps that tests take in it.

    Args:
        root: the data folder.
        database_url: as in the settings.
        migrating: an SQLite database that isn't there is made by the program's migrations, and isn't a copy of one.
    """

    def __init__(self, root, database_url="", *, migrating=False):
        self.settings = Settings(node=NodeSettings(data_dir=root), database=DatabaseSettings(url=database_url))
        if not migrating:
            lay_database(self.settings)
        self.engine = open_database(self.settings)
        self.folders = DataFolder(root)
        self.blobs = LocalBlobs(self.folders)

    def receive(
        self,
        uid="1.2.3",
        content=b"pixels",
        analyse=True,
        note="",
        sender="MODALITY",
        study="1.5",
        patient="PID",
        accession="ACC",
    ):
        temporary = self.folders.incoming / hashlib.sha256(content).hexdigest()
        temporary.write_bytes(content)
        header = InstanceHeader(uid, "1.2.840.10008.5.1.4.1.1.1.1", "1.2.840.10008.1.2.1", study, "1.6", patient, accession)
        stored = keep_instance(self.blobs, temporary, header, f"blake3:{hashlib.sha224(content).hexdigest()}")
        return admissions.admit(
            self.engine, self.blobs, stored, Sender(sender, "CXRNODE", "127.0.0.1"), analyse=analyse, note=note
        )

    def claim(self, owner="w", limit=8, lease_s=60.0, max_attempts=3, **options):
        return jobs.claim(self.engine, owner, limit, lease_s, max_attempts, **options)

    def finish(self, job, owner="w", model="1", destinations=BOTH, kinds=BOTH["pacs"], **findings):
        made = [
            write_result(
                self.blobs,
                job,
                ComposedObject(kind, f"2.25.{job.id}{n}{model.removeprefix('1')}", "1.2", "1.2.840.10008.1.2.1", b"result"),
            )
            for n, kind in enumerate(kinds, start=1)
        ]
        return jobs.finish(
            *(self.engine, owner, job),
            findings={"label": "healthy", **findings},
            model_version=model,
            made=made,
            destinations=destinations,
            blobs=self.blobs,
        )

    def send_all(self, destination="pacs"):
        """As a worker that meets no trouble; gives what it sent."""
        sent = deliveries.claim(self.engine, destination, "d", 100, 60)
        for delivery in sent:
            deliveries.mark_sent(self.engine, delivery, 0)
        return sent

    def lapse(self):
        with write(self.engine) as connection:
            connection.execute(update(jobs_table).values(lease_until=0, not_before=0))
            connection.execute(update(deliveries_table).values(lease_until=0, not_before=0))

    def revisions(self, uid="1.2.3"):
        with self.engine.connect() as connection:
            query = select(instances_table.c.revision).where(instances_table.c.sop_instance_uid == uid)
            return sorted(connection.execute(query).scalars())

    def state_of(self, job):
        found = overview.show_job(self.engine, job.id)
        assert found is not None
        return found["state"]
