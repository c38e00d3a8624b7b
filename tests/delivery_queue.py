"""A queue of results as a worker leaves it, and the deliver role, whole or stepped by hand."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pydicom.uid import Comprehensive3DSRStorage, SecondaryCaptureImageStorage, generate_uid
from sqlalchemy import Engine, text

from cxr_node.deliver import loop
from cxr_node.deliver.worker import DeliveryWorker
from cxr_node.records import ComposedObject, DataFolder, InstanceHeader, ResultKind, Sender
from cxr_node.settings import DatabaseSettings, DestinationSettings, NodeSettings, Settings
from cxr_node.store.database import open_database
from cxr_node.store.files.blobs import LocalBlobs
from cxr_node.store.files.instances import keep_instance, write_result
from cxr_node.store.queue import admissions, jobs
from tests.scps import write_instance
from tests.store import lay_database
from tests.waiting import PATIENCE_S, wait_until

CLASSES = {ResultKind.REPORT: Comprehensive3DSRStorage, ResultKind.OVERLAY: SecondaryCaptureImageStorage}


def settings_for(folder, *ports: int, database_url: str = "", **destination) -> Settings:
    """Settings with a destination for each port, named pacs0, pacs1, …"""
    return Settings(
        node=NodeSettings(data_dir=folder / "var"),
        database=DatabaseSettings(url=database_url),
        destinations=tuple(
            DestinationSettings(
                name=f"pacs{n}", ae_title="PACS", host="127.0.0.1", port=port, **{"timeout_s": PATIENCE_S, **destination}
            )
            for n, port in enumerate(ports)
        ),
    )


class Queue:
    """Puts results into the queue as a worker does, and reads how they fare."""

    def __init__(self, settings: Settings, scratch) -> None:
        self.settings = settings
        lay_database(settings)
        self.engine: Engine = open_database(settings)
        self.folders = DataFolder(settings.node.data_dir)
        self.blobs = LocalBlobs(self.folders)
        self.scratch = scratch

    def analyse_one(self, size_bytes: int = 1000, report: ComposedObject | None = None) -> dict[ResultKind, str]:
        """An image comes in and its results go out; gives their SOP instance UIDs. The report is composed first.

        Objects of which a network looks at nothing but the name; `report`: a real one.
        """
        header = InstanceHeader(generate_uid(), "1.2.840.10008.5.1.4.1.1.1.1", "1.2.840.10008.1.2", generate_uid(), "1.2", "", "")
        temporary = self.folders.incoming / header.sop_instance_uid
        temporary.write_bytes(b"image")
        stored = keep_instance(self.blobs, temporary, header, f"blake3:{header.sop_instance_uid}"[:64])
        admissions.admit(self.engine, self.blobs, stored, Sender("MODALITY", "CXRNODE", "127.0.0.1"), analyse=True)
        [job] = jobs.claim(self.engine, "worker", 1, 3600, 3)
        made = []
        for kind, sop_class_uid in CLASSES.items():
            path = self.scratch / "composed.dcm"
            ds = write_instance(path, sop_class_uid, size_bytes=size_bytes, study_instance_uid=header.study_instance_uid)
            composed = ComposedObject(kind, ds.SOPInstanceUID, sop_class_uid, ds.file_meta.TransferSyntaxUID, path.read_bytes())
            if kind is ResultKind.REPORT and report is not None:
                composed = report
            made.append(write_result(self.blobs, job, composed))
        destinations = {destination.name: destination.send for destination in self.settings.destinations}
        assert jobs.finish(
            *(self.engine, "worker", job),
            findings={},
            model_version="1",
            made=made,
            destinations=destinations,
            blobs=self.blobs,
        )
        return {result.kind: result.sop_instance_uid for result in made}

    def rows(self, destination: str = "pacs0") -> list:
        with self.engine.connect() as connection:
            query = text(
                "SELECT d.state, d.attempts, d.status, d.reason, d.not_before, r.sop_instance_uid, r.kind, r.path "
                "FROM deliveries d JOIN results r ON r.id = d.result_id WHERE d.destination = :name ORDER BY d.id"
            )
            return list(connection.execute(query, {"name": destination}))

    def states(self, destination: str = "pacs0") -> list[str]:
        return [row.state for row in self.rows(destination)]

    def leases(self) -> list[float]:
        with self.engine.connect() as connection:
            return list(connection.execute(text("SELECT lease_until FROM deliveries ORDER BY id")).scalars())

    def let_waits_pass(self) -> None:
        with self.engine.connect() as connection:
            connection.execute(text("UPDATE deliveries SET not_before = 0"))
            connection.commit()


@contextmanager
def delivery_worker(queue: Queue, linger_s: float = 600.0) -> Iterator[DeliveryWorker]:
    worker = DeliveryWorker(queue.settings, queue.settings.destinations[0], linger_s)
    try:
        yield worker
    finally:
        worker.close()


@contextmanager
def running(settings: Settings) -> Iterator[None]:
    stop, ready = threading.Event(), threading.Event()
    thread = threading.Thread(target=loop.run, args=(settings, stop, ready.set))
    thread.start()
    try:
        assert ready.wait(PATIENCE_S)
        yield
    finally:
        stop.set()
        thread.join(PATIENCE_S)
        assert not thread.is_alive()


def until(condition: Callable[[], bool]) -> None:
    wait_until(condition, "it comes to that")


NEVER = threading.Event()
