"""conf/compose/autoroute.lua in a real Orthanc: radiographs reach the node also when it was away."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pytest
from pydicom import Dataset
from pydicom.uid import MRImageStorage
from sqlalchemy import func, select

from cxr_node.prepare.wrap_picture import radiograph_from_image
from cxr_node.store import schema
from cxr_node.store.database import open_database
from tests.conftest import REPOSITORY
from tests.images import chest_phantom
from tests.node import Node
from tests.orthanc import Orthanc, free_port
from tests.receiver import radiograph
from tests.waiting import wait_until

pytestmark = [pytest.mark.peer]

SCRIPT = REPOSITORY / "conf" / "compose" / "autoroute.lua"


def file_of(ds: Dataset) -> bytes:
    buffer = BytesIO()
    ds.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


class Pair:
    """Orthanc with the script, and the node that it routes to, each started and stopped by the test."""

    def __init__(self, program: str, folder: Path) -> None:
        self._program, self._folder = program, folder
        self.dicom_port = free_port()
        self.node = Node(folder / "node", [("orthanc", "ORTHANC", self.dicom_port)])
        self.orthanc: Orthanc | None = None

    def start_orthanc(self) -> Orthanc:
        self.orthanc = Orthanc(
            *(self._program, self._folder / "orthanc", {"cxr-node": ("CXRNODE", self.node.port)}),
            dicom_port=self.dicom_port,
            scripts=[SCRIPT],
            ExecuteLuaEnabled=True,
        )
        return self.orthanc

    def stop_orthanc(self) -> None:
        if self.orthanc is not None:
            self.orthanc.close()
            self.orthanc = None

    @property
    def waiting(self) -> int:
        """How many radiographs the script's journal says have yet to arrive."""
        journal = self._folder / "orthanc" / "storage" / "cxr-node.queue"
        lines = journal.read_text().split() if journal.exists() else []
        return sum(1 if line.startswith("+") else -1 for line in lines)

    def failures(self) -> int:
        assert self.orthanc is not None
        return sum(job["State"] == "Failure" for job in self.orthanc.get("/jobs?expand"))

    def received(self) -> int:
        """How many instances the node has received, whether or not it knew them."""
        engine = open_database(self.node.settings)
        try:
            with engine.connect() as connection:
                query = select(func.count()).where(schema.audit.c.event.like("instance-%"))
                return int(connection.execute(query).scalar() or 0)
        finally:
            engine.dispose()


@pytest.fixture
def pair(peer, tmp_path) -> Iterator[Pair]:
    made = Pair(peer("Orthanc"), tmp_path)
    try:
        yield made
    finally:
        made.stop_orthanc()
        if made.node.is_running:
            made.node.stop()


def test_what_came_while_the_node_was_away_arrives_once_and_its_results_come_back(pair):
    orthanc = pair.start_orthanc()
    orthanc.store(file_of(radiograph_from_image(chest_phantom(seed=1))))
    wait_until(pair.failures, "a first attempt that fails")
    assert pair.waiting == 1
    pair.node.start()
    [job] = pair.node.wait_for_rest(1)
    assert job["state"] == "done"
    wait_until(lambda: orthanc.count() == 3, "the overlay and the report in Orthanc")
    wait_until(lambda: pair.waiting == 0, "an empty queue")
    threading.Event().wait(25)  # longer than the first waits: were anything sent again, or results routed back, it would show
    assert len(pair.node.jobs()) == 1
    assert pair.received() == 1
    assert orthanc.count() == 3


def test_a_queue_outlives_orthanc_and_goes_on_in_one_go(pair):
    orthanc = pair.start_orthanc()
    for seed in range(5):
        orthanc.store(file_of(radiograph(Modality="CR" if seed % 2 else "DX")))
    wait_until(pair.failures, "a first attempt that fails")
    pair.stop_orthanc()
    pair.start_orthanc()
    pair.node.start("receive")
    wait_until(lambda: pair.waiting == 0, "all five at the node")
    assert len(pair.node.jobs()) == 5
    assert pair.received() == 5


def test_one_that_the_node_refuses_holds_up_no_other(pair):
    """An MR image that calls itself DX: the node takes none of its class."""
    orthanc = pair.start_orthanc()
    pair.node.start("receive")
    orthanc.store(file_of(radiograph(SOPClassUID=MRImageStorage)))
    wait_until(pair.failures, "a refusal")
    orthanc.store(file_of(radiograph(Modality="CR")))
    wait_until(lambda: len(pair.node.jobs()) == 1, "the other one at the node")
    wait_until(lambda: pair.waiting == 1, "only the refused one in the queue")


def test_what_was_deleted_in_orthanc_is_forgotten(pair):
    orthanc = pair.start_orthanc()
    gone = orthanc.store(file_of(radiograph()))
    wait_until(pair.failures, "a first attempt that fails")
    orthanc.delete(gone)
    orthanc.store(file_of(radiograph()))
    pair.node.start("receive")
    wait_until(lambda: pair.waiting == 0, "the other one at the node")
    assert len(pair.node.jobs()) == 1


def test_the_heart_beat_of_a_newer_orthanc_drives_it(pair):
    """Debian's Orthanc has none: the test beats, and no shell does."""
    orthanc = pair.start_orthanc()
    orthanc.execute("OnHeartBeat()")
    orthanc.execute("os.execute = function() end")
    orthanc.store(file_of(radiograph()))
    wait_until(pair.failures, "a first attempt that fails")
    pair.node.start("receive")

    def beat() -> bool:
        orthanc.execute("OnHeartBeat()")
        return pair.waiting == 0

    wait_until(beat, "it at the node")
    assert pair.received() == 1
