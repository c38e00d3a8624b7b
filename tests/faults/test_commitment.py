"""Storage commitment, asked of a PACS and given to a modality.

Over 300 lines: both roles.
"""

from __future__ import annotations

import threading

import pytest
from pydicom import Dataset
from pydicom.uid import ComputedRadiographyImageStorage
from pynetdicom import AE, build_role
from sqlalchemy import text

from cxr_node.commitment import NO_SUCH_INSTANCE, PUSH_MODEL, PUSH_MODEL_INSTANCE, REQUEST_ACTION, build_request
from cxr_node.deliver.request import COMMITMENT, Peer
from cxr_node.deliver.scu import Association
from cxr_node.receive import scp
from cxr_node.settings import DestinationSettings, NodeSettings, ReceiveSettings, SenderSettings, Settings
from cxr_node.store import commitments, overview, reports
from cxr_node.store.database import open_database, write
from tests.committing import UNCOMPRESSED, Committing, Modality, everything
from tests.delivering import NEVER, Queue, courier_for, running, settings_for, until
from tests.orthanc import Orthanc, free_port, wait_until
from tests.receiving import Receiver, associated, radiograph, send
from tests.scps import storage_scp


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


class TestAskingADestination:
    def test_a_result_is_sent_only_when_it_is_committed(self, queue_for):
        asked, go_on = threading.Event(), threading.Event()

        def when_told(references):
            asked.set()
            assert go_on.wait(30)
            return references, {}

        pacs = Committing(when_told)
        with pacs.listening() as port:
            queue = queue_for(port)
            made = queue.analyse_one()
            with running(queue.settings):
                assert asked.wait(30)
                assert queue.states() == ["committing"] * 2
                go_on.set()
                until(lambda: queue.states() == ["sent"] * 2)
        assert sorted(uid for _, references in pacs.requests for _, uid in references) == sorted(made.values())
        assert pacs.answers == [0x0000]
        assert events(queue).count("result-committed") == 2

    def test_what_it_did_not_keep_is_sent_again(self, queue_for):
        """The first report says that one of the two objects is not there."""
        judged = []

        def loses_one(references):
            judged.append(references)
            return (references[1:], {references[0]: NO_SUCH_INSTANCE}) if len(judged) == 1 else (references, {})

        pacs = Committing(loses_one)
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

    def test_without_a_report_it_is_asked_again_under_a_new_transaction_and_not_sent_again(self, queue_for):
        pacs = Committing(lambda references: (references, {}) if len(pacs.requests) > 1 else None)
        with pacs.listening() as port:
            queue = queue_for(port, commitment_timeout_s=0.5)
            queue.analyse_one()
            with running(queue.settings):
                until(lambda: queue.states() == ["sent"] * 2, 40)
        assert len(pacs.received) == 2
        transactions = [uid for uid, _ in pacs.requests]
        assert len(set(transactions)) == len(transactions) >= 2

    def test_an_association_is_released_only_when_what_came_over_it_is_answered(self):
        pacs = Committing(everything)
        reported, go_on = threading.Event(), threading.Event()

        def on_report(_):
            reported.set()
            assert go_on.wait(30)
            return 0x0000

        with pacs.listening() as port:
            association = Association(Peer("127.0.0.1", port, "PACS", "NODE"), [COMMITMENT], on_event_report=on_report)
            request = build_request("2.25.1", [(ComputedRadiographyImageStorage, "1.2.3")])
            assert association.action(PUSH_MODEL, PUSH_MODEL_INSTANCE, REQUEST_ACTION, request) == 0x0000
            assert reported.wait(30)
            releasing = threading.Thread(target=association.release)
            releasing.start()
            releasing.join(0.5)
            assert releasing.is_alive()
            go_on.set()
            releasing.join(30)
            assert not releasing.is_alive()
            wait_until(lambda: pacs.answers, 20, "the answer at the PACS")
        assert pacs.answers == [0x0000]

    def test_one_that_never_reports_is_held_in_the_end_with_the_reason(self, queue_for):
        queue = queue_for(1)
        queue.analyse_one()
        with write(queue.engine) as connection:
            connection.execute(text("UPDATE deliveries SET state = 'committing', attempts = 1"))
        for _ in range(12):
            assert commitments.prepare_to_ask(queue.engine, "pacs0", 600) is not None
            assert commitments.prepare_to_ask(queue.engine, "pacs0", 600) is None
            let_time_pass(queue)
        assert commitments.prepare_to_ask(queue.engine, "pacs0", 600) is None
        assert queue.states() == ["held"] * 2
        assert "never reported" in queue.rows()[0].reason
        (row, _) = overview.list_deliveries(queue.engine)
        assert overview.retry_delivery(queue.engine, row["id"], "admin")
        assert queue.states() == ["waiting", "held"]
        commitments.ask_no_more(queue.engine, "pacs0")  # the other cure that the reason names: storage_commitment = false
        assert queue.states() == ["waiting", "sent"]

    def test_a_destination_that_does_not_take_storage_commitment_is_named(self, queue_for):
        with storage_scp() as pacs:
            queue = queue_for(pacs.port)
            queue.analyse_one()
            with running(queue.settings):
                until(lambda: all("doesn't take Storage Commitment" in row.reason for row in queue.rows()))
        assert queue.states() == ["committing"] * 2

    def test_a_refusal_is_told_and_it_is_asked_again_later(self, queue_for):
        pacs = Committing(everything, status=0x0110)
        with pacs.listening() as port:
            queue = queue_for(port)
            queue.analyse_one()
            with running(queue.settings):
                until(lambda: all("0x0110" in row.reason for row in queue.rows()))
                pacs.status = 0x0000
                until(lambda: let_time_pass(queue) or queue.states() == ["sent"] * 2)

    def test_while_it_is_down_asking_costs_nothing(self, queue_for):
        pacs = Committing(everything)
        with pacs.listening() as port:
            queue = queue_for(port)
            queue.analyse_one()
            with courier_for(queue) as courier:
                courier.deliver_due(NEVER)
        with courier_for(queue) as courier:  # nobody listens any more
            courier.deliver_due(NEVER)
        with queue.engine.connect() as connection:
            rows = connection.execute(text("SELECT state, asks, reason FROM deliveries")).all()
        assert {(row.state, row.asks) for row in rows} == {("committing", 0)}
        assert all("Nothing listens" in row.reason for row in rows)

    def test_switched_off_what_is_stored_is_sent(self, queue_for):
        queue = queue_for(1)
        queue.analyse_one()
        with write(queue.engine) as connection:
            connection.execute(text("UPDATE deliveries SET state = 'committing'"))
        commitments.ask_no_more(queue.engine, "pacs0")
        assert queue.states() == ["sent"] * 2

    def test_a_report_of_an_unknown_transaction_changes_nothing(self, queue_for):
        queue = queue_for(1)
        made = queue.analyse_one()
        with write(queue.engine) as connection:
            connection.execute(text("UPDATE deliveries SET state = 'committing', transaction_uid = '2.25.1'"))
        assert commitments.note_report(queue.engine, "2.25.2", list(made.values()), {}) == 0
        assert queue.states() == ["committing"] * 2

    def test_what_is_never_kept_is_held_in_the_end_with_the_reason(self, queue_for):
        queue = queue_for(1)
        made = queue.analyse_one()
        with write(queue.engine) as connection:
            connection.execute(text("UPDATE deliveries SET state = 'committing', transaction_uid = '2.25.1', attempts = 20"))
        commitments.note_report(queue.engine, "2.25.1", [], dict.fromkeys(made.values(), NO_SUCH_INSTANCE))
        assert queue.states() == ["held"] * 2
        assert "didn't keep it" in queue.rows()[0].reason

    def test_a_report_that_forgets_an_object_leaves_it_to_be_asked_for_again(self, queue_for):
        queue = queue_for(1)
        made = list(queue.analyse_one().values())
        with write(queue.engine) as connection:
            connection.execute(text("UPDATE deliveries SET state = 'committing', transaction_uid = '2.25.1'"))
        commitments.note_report(queue.engine, "2.25.1", made[:1], {})
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
            assert listening.wait(60)
            for _ in range(3):
                queue.analyse_one()
            with running(settings):
                until(lambda: queue.states() == ["sent"] * 6, 60)
        finally:
            stop.set()
            receiver.join(60)
        assert events(queue).count("result-committed") == 6
        queue.engine.dispose()


class TestCommittingForAModality:
    def test_over_the_association_of_the_request(self, tmp_path, database_url):
        modality = Modality()
        with Receiver(tmp_path / "var", database_url=database_url, processes=1) as receiver:
            here, elsewhere = radiograph(), radiograph()
            with associated(receiver) as assoc:
                assert send(assoc, here) == 0
            references = [(ds.SOPClassUID, ds.SOPInstanceUID) for ds in (here, elsewhere)]
            references.append((ComputedRadiographyImageStorage, here.SOPInstanceUID))
            status, transaction_uid = modality.ask(receiver.port, references[:2], stay=True)
            assert status == 0
            assert modality.reports == [(transaction_uid, [here.SOPInstanceUID], {elsewhere.SOPInstanceUID: NO_SUCH_INSTANCE})]
            wait_until(lambda: receiver.rows("commitment_reports")[0]["state"] == "sent", 20, "the report noted")
            modality.reported.clear()
            modality.ask(receiver.port, references[2:], stay=True)
            assert modality.reports[1][2] == {here.SOPInstanceUID: 0x0119}
            with associated(receiver) as assoc:  # the receiver is as well as before
                assert send(assoc, elsewhere) == 0

    def test_what_retention_has_removed_is_not_committed(self, tmp_path):
        modality = Modality()
        with Receiver(tmp_path / "var", processes=1) as receiver:
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
            senders = (SenderSettings(ae_title="MODALITY1", port=port),)
            with Receiver(tmp_path / "var", senders=senders, processes=1) as receiver:
                ds = radiograph()
                with associated(receiver) as assoc:
                    send(assoc, ds)
                _, transaction_uid = modality.ask(receiver.port, [(ds.SOPClassUID, ds.SOPInstanceUID)], stay=False)
                with running(receiver.settings):
                    assert modality.reported.wait(20)
                    wait_until(lambda: receiver.rows("commitment_reports")[0]["state"] == "sent", 20, "the report noted")
        assert modality.reports == [(transaction_uid, [ds.SOPInstanceUID], {})]

    def test_one_that_cannot_be_told_is_held_with_the_reason_and_told_once_the_settings_say_where(self, tmp_path, database_url):
        modality = Modality()
        with Receiver(tmp_path / "var", database_url=database_url, processes=1) as receiver:
            modality.ask(receiver.port, [(ComputedRadiographyImageStorage, "1.2.3")], stay=False)
            engine = open_database(receiver.settings)
            wait_until(lambda: receiver.rows("commitment_reports")[0]["reason"], 20, "the association found closed")
            with write(engine) as connection:
                connection.execute(text("UPDATE commitment_reports SET not_before = 0"))
            with running(receiver.settings):
                wait_until(lambda: receiver.rows("commitment_reports")[0]["state"] == "held", 20, "held")
            (held,) = overview.held_by_reason(engine)
            assert held["what"] == "commitment reports to MODALITY1"
            assert "`port`" in held["reason"]
            engine.dispose()
            with modality.listening() as port:
                sender = SenderSettings(ae_title="MODALITY1", port=port)
                with running(receiver.settings.model_copy(update={"senders": (sender,)})):
                    assert modality.reported.wait(20)

    def test_old_reports_are_forgotten(self, tmp_path, database_url):
        engine = open_database(settings_for(tmp_path, database_url=database_url))
        for _ in range(2):
            report = reports.owe_report(engine, "2.25.1", "MODALITY1", "127.0.0.1", [], {}, wait_s=0)
        reports.report_sent(engine, report)
        assert reports.forget_old(engine, days=30) == 0
        assert reports.forget_old(engine, days=-1) == 1
        assert len(reports.reports_due(engine)) == 1
        engine.dispose()

    def test_a_request_that_makes_no_sense_is_refused(self, tmp_path):
        with Receiver(tmp_path / "var", processes=1) as receiver:
            ae = AE("MODALITY1")
            ae.add_requested_context(PUSH_MODEL, UNCOMPRESSED)
            assoc = ae.associate("127.0.0.1", receiver.port, ae_title="NODE", ext_neg=[build_role(PUSH_MODEL, scu_role=True)])
            empty = Dataset()
            empty.PatientID = "NOBODY"
            assert assoc.send_n_action(empty, 1, PUSH_MODEL, PUSH_MODEL_INSTANCE)[0].Status == 0x0115
            assert assoc.send_n_action(empty, 9, PUSH_MODEL, PUSH_MODEL_INSTANCE)[0].Status == 0x0123
            assoc.release()
            assert receiver.rows("commitment_reports") == []
