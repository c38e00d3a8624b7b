"""Storage commitment, asked of a PACS and given to a modality.

Over 300 lines: both roles.
"""

from __future__ import annotations

import struct
import threading
import time
import tracemalloc

import pytest
from pydicom import Dataset
from pydicom.uid import ComputedRadiographyImageStorage
from pynetdicom import AE, build_role
from sqlalchemy import text
from structlog.testing import capture_logs

from cxr_node.commitment import reports, request_reports, requests
from cxr_node.commitment.datasets import (
    COMMITMENT,
    NO_SUCH_INSTANCE,
    PROCESSING_FAILURE,
    PUSH_MODEL,
    PUSH_MODEL_INSTANCE,
    REQUEST_ACTION,
    build_request,
    read_request,
)
from cxr_node.deliver.request import Peer
from cxr_node.deliver.scu import Association
from cxr_node.errors import Rejected
from cxr_node.receive import scp
from cxr_node.settings import DestinationSettings, NodeSettings, ReceiveSettings, SenderSettings, Settings
from cxr_node.store.database import open_database, write
from cxr_node.store.queue import deliveries
from cxr_node.store.views import overview
from tests.commitment_peers import UNCOMPRESSED, CommittingPACS, Modality, everything, owe_report, patient
from tests.delivery_queue import NEVER, Queue, delivery_worker, running, settings_for, until
from tests.orthanc import Orthanc, free_port
from tests.receiver import Receiver, associated, radiograph, send
from tests.scps import storage_scp
from tests.waiting import PATIENCE_S, wait_until


def events(queue):
    with queue.engine.connect() as connection:
        return list(connection.execute(text("SELECT event FROM audit ORDER BY id")).scalars())


@pytest.fixture
def queue_for(tmp_path, database_url):
    queues = []

    def make(port, **destination):
        queues.append(
            Queue(settings_for(tmp_path, port, database_url=database_url, storage_commitment=True, **destination), tmp_path)
        )
        return queues[-1]

    yield make
    for queue in queues:
        queue.engine.dispose()


def let_time_pass(queue):
    with write(queue.engine) as connection:
        connection.execute(text("UPDATE deliveries SET not_before = 0"))


def go_on_after_the_report(queue, pacs):
    """Let time pass, but not while a report is under way: it counts before the next request."""
    if len(pacs.answers) == len(pacs.requests):
        let_time_pass(queue)


def committing(queue, transaction_uid, attempts=1):
    """Have all deliveries wait for a report under this transaction."""
    with write(queue.engine) as connection:
        values = {"uid": transaction_uid, "attempts": attempts}
        connection.execute(
            text("UPDATE deliveries SET state = 'committing', transaction_uid = :uid, attempts = :attempts"), values
        )
        connection.execute(
            text("INSERT INTO commitment_asks (transaction_uid, delivery_id, asked_at) SELECT :uid, id, 0 FROM deliveries"),
            values,
        )


class TestAskingADestination:
    def test_a_result_is_sent_only_when_it_is_committed(self, queue_for):
        asked, go_on = threading.Event(), threading.Event()

        def when_told(references):
            asked.set()
            assert go_on.wait(PATIENCE_S)
            return references, {}

        pacs = CommittingPACS(when_told)
        with pacs.listening() as port:
            queue = queue_for(port)
            made = queue.analyse_one()
            with running(queue.settings):
                assert asked.wait(PATIENCE_S)
                assert queue.states() == ["committing"] * 2
                go_on.set()
                until(lambda: queue.states() == ["sent"] * 2)
        assert sorted(uid for _, references in pacs.requests for _, uid in references) == sorted(made.values())
        assert pacs.answers == [0x0000]
        assert events(queue).count("result-committed") == 2

    def test_what_it_did_not_keep_is_sent_again(self, queue_for):
        """The first report says that one of the two objects could not be processed."""
        judged = []

        def loses_one(references):
            judged.append(references)
            return (references[1:], {references[0]: PROCESSING_FAILURE}) if len(judged) == 1 else (references, {})

        pacs = CommittingPACS(loses_one)
        with pacs.listening() as port:
            queue = queue_for(port)
            queue.analyse_one()
            with running(queue.settings):
                until(lambda: any("didn't keep it" in row.reason for row in queue.rows()))
                until(lambda: let_time_pass(queue) or queue.states() == ["sent"] * 2)
        lost = judged[0][0][1]
        assert pacs.received.count(lost) == 2
        assert len(pacs.received) == 3
        assert "result-not-kept" in events(queue)

    @pytest.mark.parametrize("denials", [1, 2])
    def test_what_it_does_not_have_is_asked_for_again_before_it_is_sent_again(self, queue_for, denials):
        """A PACS that has yet to file what it stored says 0112; only when it says so twice, the object is sent again."""
        judged = []

        def files_late(references):
            judged.append(references)
            denied = dict.fromkeys(references, NO_SUCH_INSTANCE)
            return ([], denied) if len(judged) <= denials else (references, {})

        pacs = CommittingPACS(files_late)
        with pacs.listening() as port:
            queue = queue_for(port)
            queue.analyse_one()
            with running(queue.settings):
                until(lambda: go_on_after_the_report(queue, pacs) or queue.states() == ["sent"] * 2)
        assert len(pacs.received) == (2 if denials == 1 else 4)
        assert "result-not-kept" in events(queue)

    def test_a_report_of_an_earlier_transaction_counts_however_late(self, queue_for):
        pacs = CommittingPACS(lambda _: None)
        with pacs.listening() as port:
            queue = queue_for(port, commitment_timeout_s=0.3)
            made = queue.analyse_one()
            with running(queue.settings):
                until(lambda: let_time_pass(queue) or len(pacs.requests) >= 3)
        first, uids = pacs.requests[0][0], list(made.values())
        assert request_reports.note_report(queue.engine, first, uids[:1], {}) >= 1
        assert sorted(queue.states()) == ["committing", "sent"]
        with write(queue.engine) as connection:  # given up meanwhile
            connection.execute(text("UPDATE deliveries SET asks = 12, not_before = 0 WHERE state = 'committing'"))
        assert requests.next_request(queue.engine, "pacs0", 600) is None
        assert sorted(queue.states()) == ["held", "sent"]
        reported = [uid for uid, _ in pacs.requests]
        assert sum(request_reports.note_report(queue.engine, uid, uids, {}) for uid in reported) == 1
        assert queue.states() == ["sent"] * 2
        assert len(pacs.received) == 2

    def test_a_late_denial_leaves_it_to_the_later_transaction(self, queue_for):
        queue = queue_for(1)
        made = list(queue.analyse_one().values())
        committing(queue, "2.25.1")
        committing(queue, "2.25.2")
        request_reports.note_report(queue.engine, "2.25.1", [], dict.fromkeys(made, NO_SUCH_INSTANCE))
        assert queue.states() == ["committing"] * 2
        request_reports.note_report(queue.engine, "2.25.2", made, {})
        assert queue.states() == ["sent"] * 2

    def test_two_denials_under_two_transactions_have_it_sent_again(self, queue_for):
        queue = queue_for(1)
        made = list(queue.analyse_one().values())
        committing(queue, "2.25.1")
        committing(queue, "2.25.2")
        for transaction_uid in ("2.25.1", "2.25.1", "2.25.2"):  # one of them comes twice, and counts once
            request_reports.note_report(queue.engine, transaction_uid, [], dict.fromkeys(made, NO_SUCH_INSTANCE))
        assert queue.states() == ["waiting"] * 2

    def test_once_it_is_sent_again_reports_of_before_change_nothing(self, queue_for):
        queue = queue_for(1)
        made = list(queue.analyse_one().values())
        committing(queue, "2.25.1")
        with write(queue.engine) as connection:
            connection.execute(text("UPDATE deliveries SET state = 'waiting', not_before = 0"))
        for delivery in deliveries.claim(queue.engine, "pacs0", "test", 10, 60):
            deliveries.mark_sent(queue.engine, delivery, 0, to_commit=True)
        assert request_reports.note_report(queue.engine, "2.25.1", [], dict.fromkeys(made, PROCESSING_FAILURE)) == 0
        assert queue.states() == ["committing"] * 2

    def test_it_may_be_asked_elsewhere_than_results_are_sent(self, queue_for):
        archive, router = CommittingPACS(everything), storage_scp()
        with archive.listening() as port, router as scp:
            queue = queue_for(scp.port, commitment_port=port, commitment_host="localhost", commitment_ae_title="ARCHIVE")
            queue.analyse_one()
            with running(queue.settings):
                until(lambda: queue.states() == ["sent"] * 2)
        assert (len(scp.uids), archive.received, len(archive.requests) >= 1) == (2, [], True)

    def test_without_a_report_it_is_asked_again_under_a_new_transaction_and_not_sent_again(self, queue_for):
        pacs = CommittingPACS(lambda references: (references, {}) if len(pacs.requests) > 1 else None)
        with pacs.listening() as port:
            queue = queue_for(port, commitment_timeout_s=0.5)
            queue.analyse_one()
            with running(queue.settings):
                until(lambda: queue.states() == ["sent"] * 2)
        assert len(pacs.received) == 2
        transactions = [uid for uid, _ in pacs.requests]
        assert len(set(transactions)) == len(transactions) >= 2

    def test_an_association_is_released_only_when_what_came_over_it_is_answered(self):
        pacs = CommittingPACS(everything)
        reported, go_on = threading.Event(), threading.Event()

        def on_report(_):
            reported.set()
            assert go_on.wait(PATIENCE_S)
            return 0x0000

        with pacs.listening() as port:
            association = Association(
                Peer("127.0.0.1", port, "PACS", "NODE", PATIENCE_S), [COMMITMENT], on_event_report=on_report
            )
            request = build_request("2.25.1", [(ComputedRadiographyImageStorage, "1.2.3")])
            assert association.action(PUSH_MODEL, PUSH_MODEL_INSTANCE, REQUEST_ACTION, request) == 0x0000
            assert reported.wait(PATIENCE_S)
            releasing = threading.Thread(target=association.release)
            releasing.start()
            releasing.join(0.5)
            assert releasing.is_alive()
            go_on.set()
            releasing.join(PATIENCE_S)
            assert not releasing.is_alive()
            wait_until(lambda: pacs.answers, "the answer at the PACS")
        assert pacs.answers == [0x0000]

    def test_one_that_never_reports_is_held_in_the_end_with_the_reason(self, queue_for):
        queue = queue_for(1)
        queue.analyse_one()
        with write(queue.engine) as connection:
            connection.execute(text("UPDATE deliveries SET state = 'committing', attempts = 1"))
        for _ in range(12):
            assert requests.next_request(queue.engine, "pacs0", 600) is not None
            assert requests.next_request(queue.engine, "pacs0", 600) is None
            let_time_pass(queue)
        assert requests.next_request(queue.engine, "pacs0", 600) is None
        assert queue.states() == ["held"] * 2
        assert "never reported" in queue.rows()[0].reason
        (row, _) = overview.list_deliveries(queue.engine)
        assert overview.retry_delivery(queue.engine, row["id"], "admin")
        assert queue.states() == ["waiting", "held"]
        requests.drop_requests(queue.engine, "pacs0")  # the other cure that the reason names: storage_commitment = false
        assert queue.states() == ["waiting", "sent"]

    def test_a_destination_that_does_not_take_storage_commitment_is_named(self, queue_for):
        with storage_scp() as pacs:
            queue = queue_for(pacs.port)
            queue.analyse_one()
            with running(queue.settings):
                until(lambda: all("doesn't accept Storage Commitment" in row.reason for row in queue.rows()))
        assert queue.states() == ["committing"] * 2

    def test_a_refusal_is_told_and_it_is_asked_again_later(self, queue_for):
        pacs = CommittingPACS(everything, status=0x0110)
        with pacs.listening() as port:
            queue = queue_for(port)
            queue.analyse_one()
            with running(queue.settings):
                until(lambda: all("0x0110" in row.reason for row in queue.rows()))
                pacs.status = 0x0000
                until(lambda: let_time_pass(queue) or queue.states() == ["sent"] * 2)

    def test_while_it_is_down_asking_costs_nothing(self, queue_for):
        pacs = CommittingPACS(everything)
        with pacs.listening() as port:
            queue = queue_for(port)
            queue.analyse_one()
            with delivery_worker(queue) as worker:
                worker.deliver_due(NEVER)
        with delivery_worker(queue) as worker:  # nobody listens any more
            worker.deliver_due(NEVER)
        with queue.engine.connect() as connection:
            rows = connection.execute(text("SELECT state, asks, reason FROM deliveries")).all()
        assert {(row.state, row.asks) for row in rows} == {("committing", 0)}
        assert all("Nothing listens" in row.reason for row in rows)

    def test_switched_off_what_is_stored_is_sent(self, queue_for):
        queue = queue_for(1)
        queue.analyse_one()
        with write(queue.engine) as connection:
            connection.execute(text("UPDATE deliveries SET state = 'committing'"))
        requests.drop_requests(queue.engine, "pacs0")
        assert queue.states() == ["sent"] * 2

    def test_a_report_of_an_unknown_transaction_changes_nothing(self, queue_for):
        queue = queue_for(1)
        made = queue.analyse_one()
        committing(queue, "2.25.1")
        assert request_reports.note_report(queue.engine, "2.25.2", list(made.values()), {}) == 0
        assert queue.states() == ["committing"] * 2

    def test_what_is_never_kept_is_held_in_the_end_with_the_reason(self, queue_for):
        queue = queue_for(1)
        made = queue.analyse_one()
        committing(queue, "2.25.1", attempts=20)
        request_reports.note_report(queue.engine, "2.25.1", [], dict.fromkeys(made.values(), PROCESSING_FAILURE))
        assert queue.states() == ["held"] * 2
        assert "didn't keep it" in queue.rows()[0].reason

    def test_a_report_that_forgets_an_object_leaves_it_to_be_asked_for_again(self, queue_for):
        queue = queue_for(1)
        made = list(queue.analyse_one().values())
        committing(queue, "2.25.1")
        request_reports.note_report(queue.engine, "2.25.1", made[:1], {})
        assert sorted(queue.states()) == ["committing", "sent"]


@pytest.mark.peer
def test_orthanc_reports_over_an_association_of_its_own(tmp_path, peer):
    node_port = free_port()
    with Orthanc(peer("Orthanc"), tmp_path / "orthanc", {"node": ("CXRNODE", node_port)}) as orthanc:
        settings = Settings(
            node=NodeSettings(port=node_port, data_dir=tmp_path / "var"),
            receive=ReceiveSettings(min_free_mb=0, processes=1),
            destinations=(
                DestinationSettings(
                    name="pacs0",
                    ae_title="ORTHANC",
                    host="127.0.0.1",
                    port=orthanc.dicom_port,
                    storage_commitment=True,
                    commitment_timeout_s=300,
                ),
            ),
        )
        queue = Queue(settings, tmp_path)
        stop, listening = threading.Event(), threading.Event()
        receiver = threading.Thread(target=scp.run, args=(settings, stop, lambda *_: listening.set()))
        receiver.start()
        try:
            assert listening.wait(PATIENCE_S)
            for _ in range(3):
                queue.analyse_one()
            with running(settings):
                until(lambda: queue.states() == ["sent"] * 6)
        finally:
            stop.set()
            receiver.join(PATIENCE_S)
        assert events(queue).count("result-committed") == 6
        queue.engine.dispose()


class TestCommittingForAModality:
    def test_over_the_association_of_the_request(self, tmp_path, database_url):
        modality = Modality()
        with Receiver(tmp_path / "var", database_url=database_url, processes=1, commitment_requests="anyone") as receiver:
            here, elsewhere = radiograph(), radiograph()
            with associated(receiver) as assoc:
                assert send(assoc, here) == 0
            references = [(ds.SOPClassUID, ds.SOPInstanceUID) for ds in (here, elsewhere)]
            references.append((ComputedRadiographyImageStorage, here.SOPInstanceUID))
            status, transaction_uid = modality.ask(receiver.port, references[:2], stay=True)
            assert status == 0
            assert modality.reports == [(transaction_uid, [here.SOPInstanceUID], {elsewhere.SOPInstanceUID: NO_SUCH_INSTANCE})]
            wait_until(lambda: receiver.rows("commitment_reports")[0]["state"] == "sent", "the report noted")
            modality.reported.clear()
            modality.ask(receiver.port, references[2:], stay=True)
            assert modality.reports[1][2] == {here.SOPInstanceUID: 0x0119}
            with associated(receiver) as assoc:  # the receiver is as well as before
                assert send(assoc, elsewhere) == 0

    def test_what_retention_has_removed_is_not_committed(self, tmp_path):
        modality = Modality()
        with Receiver(tmp_path / "var", processes=1, commitment_requests="anyone") as receiver:
            ds = radiograph()
            with associated(receiver) as assoc:
                send(assoc, ds)
            for path in receiver.files("instances"):
                path.unlink()
            modality.ask(receiver.port, [(ds.SOPClassUID, ds.SOPInstanceUID)], stay=True)
        assert modality.reports[0][2] == {ds.SOPInstanceUID: NO_SUCH_INSTANCE}

    def test_over_an_association_of_ours_where_the_settings_say_it_listens(self, tmp_path):
        modality = Modality()
        with modality.listening() as port:
            senders = (SenderSettings(ae_title="MODALITY1", hosts=("127.0.0.1",), port=port),)
            with Receiver(tmp_path / "var", senders=senders, processes=1) as receiver:
                ds = radiograph()
                with associated(receiver) as assoc:
                    send(assoc, ds)
                _, transaction_uid = modality.ask(receiver.port, [(ds.SOPClassUID, ds.SOPInstanceUID)], stay=False)
                with running(receiver.settings):
                    assert modality.reported.wait(PATIENCE_S)
                    wait_until(lambda: receiver.rows("commitment_reports")[0]["state"] == "sent", "the report noted")
        assert modality.reports == [(transaction_uid, [ds.SOPInstanceUID], {})]

    def test_one_that_cannot_be_told_is_held_with_the_reason_and_told_once_the_settings_say_where(self, tmp_path, database_url):
        modality = Modality()
        with Receiver(tmp_path / "var", database_url=database_url, processes=1, commitment_requests="anyone") as receiver:
            modality.ask(receiver.port, [(ComputedRadiographyImageStorage, "1.2.3")], stay=False)
            engine = open_database(receiver.settings)
            wait_until(lambda: receiver.rows("commitment_reports")[0]["reason"], "the association found closed")
            with write(engine) as connection:
                connection.execute(text("UPDATE commitment_reports SET not_before = 0"))
            with running(receiver.settings):
                wait_until(lambda: receiver.rows("commitment_reports")[0]["state"] == "held", "held")
            (held,) = overview.held_by_reason(engine)
            assert held["what"] == "commitment reports to MODALITY1"
            assert "`port`" in held["reason"]
            engine.dispose()
            with modality.listening() as port:
                sender = SenderSettings(ae_title="MODALITY1", hosts=("127.0.0.1",), port=port)
                with running(receiver.settings.model_copy(update={"senders": (sender,)})):
                    assert modality.reported.wait(PATIENCE_S)

    def test_old_reports_are_forgotten(self, tmp_path, database_url):
        engine = open_database(settings_for(tmp_path, database_url=database_url))
        for _ in range(2):
            report = owe_report(engine, "2.25.1", "MODALITY1", "127.0.0.1", [], {})
        reports.report_sent(engine, report)
        assert reports.forget_old(engine, days=30) == 0
        assert reports.forget_old(engine, days=-1) == 1
        assert len(reports.reports_due(engine)) == 1
        engine.dispose()

    def test_a_request_that_makes_no_sense_is_refused(self, tmp_path):
        with Receiver(tmp_path / "var", processes=1, commitment_requests="anyone") as receiver:
            ae = patient(AE("MODALITY1"))
            ae.add_requested_context(PUSH_MODEL, UNCOMPRESSED)
            assoc = ae.associate("127.0.0.1", receiver.port, ae_title="NODE", ext_neg=[build_role(PUSH_MODEL, scu_role=True)])
            empty = Dataset()
            empty.PatientID = "NOBODY"
            assert assoc.send_n_action(empty, 1, PUSH_MODEL, PUSH_MODEL_INSTANCE)[0].Status == 0x0115
            assert assoc.send_n_action(empty, 9, PUSH_MODEL, PUSH_MODEL_INSTANCE)[0].Status == 0x0123
            assoc.release()
            assert receiver.rows("commitment_reports") == []

    @pytest.mark.parametrize("explicit", [True, False])
    @pytest.mark.parametrize("undefined", [True, False])
    def test_a_request_of_a_million_bytes_of_empty_items_is_refused_in_no_time(self, explicit, undefined):
        item = b"\xfe\xff\x00\xe0" + (b"\xff\xff\xff\xff\xfe\xff\x0d\xe0\0\0\0\0" if undefined else bytes(4))
        items = item * (900_000 // len(item))
        content = sequence(items, explicit=explicit)
        tracemalloc.start()
        started = time.process_time()
        with pytest.raises(Rejected):
            read_request(content, explicit=explicit)
        assert time.process_time() - started < 0.5
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
        tracemalloc.stop()

    def test_ten_thousand_references_are_the_most(self):
        for count, is_taken in ((10_000, True), (10_001, False)):
            content = sequence(reference("1.2", "1.2.3") * count, explicit=False)
            if is_taken:
                assert len(read_request(content, explicit=False)[1]) == count
            else:
                with pytest.raises(Rejected, match="more than 10000"):
                    read_request(content, explicit=False)

    def test_more_than_a_mebibyte_is_aborted_before_it_is_put_together(self, tmp_path):
        with Receiver(tmp_path / "var", processes=1, commitment_requests="anyone") as receiver, capture_logs() as lines:
            ae = patient(AE("MODALITY1"))
            ae.add_requested_context(PUSH_MODEL, UNCOMPRESSED)
            assoc = ae.associate("127.0.0.1", receiver.port, ae_title="NODE", ext_neg=[build_role(PUSH_MODEL, scu_role=True)])
            ds = build_request("2.25.1", [])
            ds.RequestAttributesSequence = []
            ds.TextValue = "x" * 3 * 2**20
            assoc.send_n_action(ds, 1, PUSH_MODEL, PUSH_MODEL_INSTANCE)
            wait_until(lambda: not assoc.is_established, "the abort")
        assert any("more than 1048576 bytes" in line.get("reason", "") for line in lines)

    def test_a_request_that_is_refused_is_in_the_audit_log(self, tmp_path):
        with Receiver(tmp_path / "var", processes=1, commitment_requests="anyone") as receiver:
            ae = patient(AE("MODALITY1"))
            ae.add_requested_context(PUSH_MODEL, UNCOMPRESSED)
            assoc = ae.associate("127.0.0.1", receiver.port, ae_title="NODE", ext_neg=[build_role(PUSH_MODEL, scu_role=True)])
            many = build_request("2.25.1", [(ComputedRadiographyImageStorage, "1.2")] * 10_001)
            assert assoc.send_n_action(many, 1, PUSH_MODEL, PUSH_MODEL_INSTANCE)[0].Status == 0x0115
            assoc.release()
            (row,) = receiver.rows("audit")
        assert (row["event"], row["user"]) == ("commitment-refused", "MODALITY1")
        assert "10000 objects" in row["detail"]


def sequence(items, *, explicit):
    """The data set of a request with these encoded items."""
    uid = b"2.25.1"
    if explicit:
        head = b"\x08\0\x95\x11UI" + struct.pack("<H", len(uid)) + uid
        return head + b"\x08\0\x99\x11SQ\0\0" + struct.pack("<L", len(items)) + items
    head = b"\x08\0\x95\x11" + struct.pack("<L", len(uid)) + uid
    return head + b"\x08\0\x99\x11" + struct.pack("<L", len(items)) + items


def reference(class_uid, instance_uid):
    """An encoded item, Implicit VR."""
    body = b""
    for number, uid in ((0x1150, class_uid), (0x1155, instance_uid)):
        value = uid.encode() + b"\0" * (len(uid) % 2)
        body += struct.pack("<HHL", 8, number, len(value)) + value
    return b"\xfe\xff\x00\xe0" + struct.pack("<L", len(body)) + body
