"""A destination that takes no Comprehensive 3D SR gets the report as the richest class that it takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from io import BytesIO

import pydicom
import pytest
from pydicom import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filereader import read_dataset
from pydicom.uid import (
    BasicTextSRStorage,
    Comprehensive3DSRStorage,
    ComprehensiveSRStorage,
    EnhancedSRStorage,
    ImplicitVRLittleEndian,
    SecondaryCaptureImageStorage,
)
from sqlalchemy import text

from cxr_node.compose import compose_not_analysed, compose_results
from cxr_node.deliver.check import Severity, check_destinations
from cxr_node.deliver.report_class import instance_uid_as
from cxr_node.records import ComposedObject, ResultKind
from cxr_node.store.views import overview, peer_overview, status_figures
from tests.commitment_peers import CommittingPACS, everything
from tests.compose_inputs import MODEL, NOW, findings, radiograph, source
from tests.delivery_queue import NEVER, Queue, delivery_worker, settings_for, until
from tests.scps import UNCOMPRESSED, storage_scp

RICHEST_FIRST = (Comprehensive3DSRStorage, ComprehensiveSRStorage, EnhancedSRStorage, BasicTextSRStorage)
NAMES = dict(zip(RICHEST_FIRST, ("comprehensive_3d", "comprehensive", "enhanced", "basic_text"), strict=True))


def taking(*sop_classes, syntaxes=UNCOMPRESSED):
    return [(SecondaryCaptureImageStorage, UNCOMPRESSED), *((sop_class, syntaxes) for sop_class in sop_classes)]


def report(predecessor: Dataset | None = None, content: str = "") -> ComposedObject:
    made = compose_results(
        *(source(), radiograph(), findings()),
        kinds=(ResultKind.REPORT,),
        predecessor=predecessor,
        content_digest=content,
        now=NOW,
    )
    return made[0]


@pytest.fixture
def queue_for(tmp_path) -> Iterator[Callable[..., Queue]]:
    queues: list[Queue] = []

    def make(*ports: int, **destination) -> Queue:
        queues.append(Queue(settings_for(tmp_path, *ports, **destination), tmp_path))
        return queues[-1]

    yield make
    for queue in queues:
        queue.engine.dispose()


def the_report(queue: Queue) -> dict:
    [row] = [row for row in overview.list_deliveries(queue.engine, destination="pacs0") if row["kind"] == "report"]
    return row


def stored_at(scp) -> Dataset:
    """What came last, decoded; the report is the last of an image's results."""
    _, syntax, content = scp.received[-1]
    return read_dataset(DicomBytesIO(content), is_implicit_VR=syntax == ImplicitVRLittleEndian, is_little_endian=True)


@pytest.mark.parametrize("first", range(4))
def test_the_richest_class_that_is_taken(queue_for, first):
    with storage_scp(contexts=taking(*RICHEST_FIRST[first:])) as scp:
        queue = queue_for(scp.port)
        made = queue.analyse_one(report=report())
        with delivery_worker(queue) as worker:
            worker.deliver_due(NEVER)
        came = stored_at(scp)
    row = the_report(queue)
    own = made[ResultKind.REPORT]
    assert queue.states() == ["sent", "sent"]
    assert came.SOPClassUID == RICHEST_FIRST[first]
    if first == 0:
        assert (came.SOPInstanceUID, row["sent_sop_class_uid"], row["sent_sop_instance_uid"]) == (own, "", "")
    else:
        assert came.SOPInstanceUID == instance_uid_as(own, RICHEST_FIRST[first]) != own
        assert (row["sent_sop_class_uid"], row["sent_sop_instance_uid"]) == (came.SOPClassUID, came.SOPInstanceUID)
    assert scp.uids[-1] == came.SOPInstanceUID
    assert came.PatientID == "T-1"


@pytest.mark.parametrize("wanted", RICHEST_FIRST)
def test_a_class_that_is_named_is_sent_though_a_richer_one_is_taken(queue_for, wanted):
    with storage_scp(contexts=taking(*RICHEST_FIRST)) as scp:
        queue = queue_for(scp.port, report_as=NAMES[wanted])
        queue.analyse_one(report=report())
        with delivery_worker(queue) as worker:
            worker.deliver_due(NEVER)
            assert len(scp.associations) == 1
        assert stored_at(scp).SOPClassUID == wanted


def test_a_class_that_is_named_and_not_taken_is_not_replaced(queue_for):
    with storage_scp(contexts=taking(Comprehensive3DSRStorage, EnhancedSRStorage)) as scp:
        queue = queue_for(scp.port, report_as="basic_text")
        queue.analyse_one(report=report())
        with delivery_worker(queue) as worker:
            worker.deliver_due(NEVER)
    row = the_report(queue)
    assert (row["state"], len(scp.received)) == ("waiting", 1)
    assert "Basic Text SR" in row["reason"]


def test_a_destination_without_any_class_says_which_there_are(queue_for):
    with storage_scp(contexts=taking()) as scp:
        queue = queue_for(scp.port)
        queue.analyse_one(report=report())
        with delivery_worker(queue) as worker:
            worker.deliver_due(NEVER)
        [finding] = check_destinations(queue.settings)
    row = the_report(queue)
    assert row["state"] == "waiting"
    for uid in RICHEST_FIRST:
        assert uid in row["reason"]
        assert uid in finding.text
    assert finding.severity == Severity.WARNING


def test_implicit_vr_alone(queue_for):
    with storage_scp(contexts=taking(EnhancedSRStorage, syntaxes=(ImplicitVRLittleEndian,))) as scp:
        queue = queue_for(scp.port)
        queue.analyse_one(report=report())
        with delivery_worker(queue) as worker:
            worker.deliver_due(NEVER)
        assert queue.states() == ["sent", "sent"]
        assert stored_at(scp).SOPClassUID == EnhancedSRStorage


def test_sent_again_it_is_the_same_instance_with_the_same_content(queue_for):
    answers = iter([0x0000, 0xC000, 0x0000])
    with storage_scp(lambda _: next(answers), contexts=taking(BasicTextSRStorage)) as scp:
        queue = queue_for(scp.port)
        queue.analyse_one(report=report())
        with delivery_worker(queue) as worker:
            worker.deliver_due(NEVER)
            assert the_report(queue)["state"] == "waiting"
            queue.let_waits_pass()
            worker.deliver_due(NEVER)
    assert queue.states() == ["sent", "sent"]
    assert scp.received[1] == scp.received[2]


def test_a_report_that_is_damaged_on_disk_is_held_and_not_made_over(queue_for):
    with storage_scp(contexts=taking(BasicTextSRStorage)) as scp:
        queue = queue_for(scp.port)
        queue.analyse_one(report=report())
        (queue.folders.root / the_report(queue)["path"]).write_bytes(b"\0" * 1000)
        with delivery_worker(queue) as worker:
            worker.deliver_due(NEVER)
    assert the_report(queue)["state"] == "held"
    assert the_report(queue)["reason"].startswith("The file is damaged")
    assert len(scp.received) == 1


def test_a_notice_that_an_image_was_not_analysed_goes_the_same_way(queue_for):
    [notice] = compose_not_analysed(source(), ["It is a lateral view."], MODEL, now=NOW)
    with storage_scp(contexts=taking(BasicTextSRStorage)) as scp:
        queue = queue_for(scp.port)
        queue.analyse_one(report=notice)
        with delivery_worker(queue) as worker:
            worker.deliver_due(NEVER)
        assert b"It is a lateral view." in scp.received[-1][2]
    assert queue.states() == ["sent", "sent"]


def test_a_predecessor_is_named_as_the_destination_has_it(queue_for):
    earlier = report()
    later = report(pydicom.dcmread(BytesIO(earlier.content)), content="another")
    with storage_scp(contexts=taking(EnhancedSRStorage)) as scp:
        queue = queue_for(scp.port)
        with delivery_worker(queue) as worker:
            for one in (earlier, later):
                queue.analyse_one(report=one)
                worker.deliver_due(NEVER)
        came = stored_at(scp)
    [study] = came.PredecessorDocumentsSequence
    [named] = study.ReferencedSeriesSequence[0].ReferencedSOPSequence
    assert named.ReferencedSOPClassUID == EnhancedSRStorage
    assert named.ReferencedSOPInstanceUID == scp.uids[1] == instance_uid_as(earlier.sop_instance_uid, EnhancedSRStorage)


def test_commitment_is_asked_for_what_was_sent(queue_for):
    pacs = CommittingPACS(everything, contexts=taking(BasicTextSRStorage))
    with pacs.listening() as port:
        queue = queue_for(port, storage_commitment=True)
        made = queue.analyse_one(report=report())
        with delivery_worker(queue) as worker:

            def committed():
                worker.deliver_due(NEVER)
                return queue.states() == ["sent", "sent"]

            until(committed)
    uid = instance_uid_as(made[ResultKind.REPORT], BasicTextSRStorage)
    [(_, references)] = pacs.requests
    assert set(references) == {
        (BasicTextSRStorage, uid),
        (SecondaryCaptureImageStorage, made[ResultKind.OVERLAY]),
    }
    with queue.engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM deliveries WHERE committed_at IS NOT NULL")).scalar() == 2


def test_what_was_not_kept_is_known_by_the_uid_that_was_sent_and_goes_again(queue_for):
    def loses_the_report(references):
        kept = [one for one in references if one[0] != BasicTextSRStorage or len(pacs.requests) > 2]
        return kept, {one: 0x0112 for one in references if one not in kept}

    pacs = CommittingPACS(loses_the_report, contexts=taking(BasicTextSRStorage))
    with pacs.listening() as port:
        queue = queue_for(port, storage_commitment=True)
        made = queue.analyse_one(report=report())
        with delivery_worker(queue) as worker:

            def committed():
                worker.deliver_due(NEVER)
                queue.let_waits_pass()
                return queue.states() == ["sent", "sent"]

            until(committed)
    uid = instance_uid_as(made[ResultKind.REPORT], BasicTextSRStorage)
    assert pacs.received.count(uid) == 2


def test_status_and_the_check_say_as_what(queue_for):
    with storage_scp(contexts=taking(ComprehensiveSRStorage)) as plain, storage_scp() as rich:
        queue = queue_for(plain.port, rich.port)
        [at_the_plain_one, at_the_rich_one] = check_destinations(queue.settings)
        queue.analyse_one(report=report())
        with delivery_worker(queue) as worker:
            worker.deliver_due(NEVER)
        queue.settings = queue.settings.model_copy(update={"destinations": queue.settings.destinations[1:]})
        with delivery_worker(queue) as worker:
            worker.deliver_due(NEVER)
        with status_figures.open_read_only(queue.settings) as ask:
            sent = peer_overview.report_classes_sent(ask)
        assert sent == {"pacs0": {"Comprehensive SR": 1}, "pacs1": {"Comprehensive 3D SR": 1}}
    assert at_the_plain_one.severity == Severity.OK
    assert "report (as Comprehensive SR)" in at_the_plain_one.text
    assert at_the_rich_one.text.endswith("accepts: overlay and report.")
