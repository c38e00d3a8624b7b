"""Attacks by storage commitment requests with the node's default settings."""

from __future__ import annotations

import gc
import struct
import threading
from dataclasses import replace
from unittest import mock

import psutil
import pytest
from pynetdicom import AE, evt

from cxr_node.commitment import reports
from cxr_node.commitment.datasets import PUSH_MODEL
from cxr_node.deliver import commitment as deliver_commitment
from cxr_node.deliver.commitment import commitment_reporter
from cxr_node.receive.transport.messages import Messages
from cxr_node.settings import NodeSettings, Settings
from cxr_node.store.database import open_database
from cxr_node.store.files.disk_space import DiskSpace
from tests.attack_helpers import DEFAULTS, HONEST, action_information, ask_to_commit, connect, defended, sends_all
from tests.commitment_peers import UNCOMPRESSED, Modality, owe_report
from tests.raw_items import APPLICATION, USER, item, proposed, request
from tests.raw_peer import COMMAND, LAST, RawPeer, pdu
from tests.receiver import associated
from tests.waiting import PATIENCE_S, wait_until

KNOWN = ({"ae_title": "MODALITY1", "hosts": [HONEST]},)
IMAGE = "1.2.840.10008.5.1.4.1.1.1.1"


@pytest.fixture
def receiver(tmp_path):
    with defended(tmp_path, senders=KNOWN) as running:
        yield running


def commitment_association(receiver, calling="MODALITY1"):
    return associated(receiver, PUSH_MODEL, calling=calling)


def n_action_command():
    def element(number, value):
        return struct.pack("<HHL", 0, number, len(value)) + value

    body = element(0x0003, PUSH_MODEL.encode()) + element(0x0100, b"\x30\x01") + element(0x0110, b"\x07\x00")
    body += element(0x0800, b"\x01\x00") + element(0x1001, b"1.2.840.10008.1.20.1.1") + element(0x1008, b"\x01\x00")
    return element(0x0000, struct.pack("<L", len(body))) + body


def commitment_request():
    context = proposed(1, b"1.2.840.10008.1.2.1", abstract=PUSH_MODEL.encode())
    return request(items=item(0x10, APPLICATION) + context + USER, calling=b"MODALITY1".ljust(16))


def test_a_stranger_is_not_listened_to(receiver):
    with commitment_association(receiver, calling="STRANGER") as assoc:
        assert ask_to_commit(assoc, action_information(10)) == 0x0124
    assert receiver.rows("commitment_reports") == []
    assert [row["event"] for row in receiver.rows("audit")] == ["commitment-refused"]


def test_a_known_sender_is(receiver):
    with commitment_association(receiver) as assoc:
        assert ask_to_commit(assoc, action_information(10)) == 0x0000
    assert len(receiver.rows("commitment_reports")) == 1


def test_megabytes_are_not_put_together(receiver):
    with commitment_association(receiver) as assoc:
        assert ask_to_commit(assoc, action_information(3) + bytes(15 * 2**20)) is None, "an abort"
    assert receiver.rows("commitment_reports") == []


def test_what_was_put_together_of_too_long_a_request_goes_with_its_association(tmp_path):
    with defended(tmp_path, senders=KNOWN, processes=1) as receiver:
        seen = []
        pass_on = Messages._pass_on

        def watch(messages, *arguments):
            try:
                pass_on(messages, *arguments)
            finally:
                if messages.message is not None and messages.message.data_set not in seen:
                    seen.append(messages.message.data_set)

        with mock.patch.object(Messages, "_pass_on", watch), commitment_association(receiver) as assoc:
            assert ask_to_commit(assoc, action_information(3) + bytes(15 * 2**20)) is None, "an abort"
        wait_until(lambda: seen and all(data_set.closed for data_set in seen), "the memory to be released")


@pytest.mark.parametrize("uid", [b"\xe9" * 64, b"\xe9" * 1000, b"../../etc/passwd"])
def test_what_is_no_uid_is_written_nowhere(receiver, uid):
    def ui(element, value):
        value += b"\0" * (len(value) % 2)
        return struct.pack("<HH2sH", 0x0008, element, b"UI", len(value)) + value

    class_uid = IMAGE.encode() + b"\0" * (len(IMAGE) % 2)
    reference = ui(0x1150, class_uid) + ui(0x1155, uid)
    items = (struct.pack("<HHL", 0xFFFE, 0xE000, len(reference)) + reference) * 100
    content = ui(0x1195, b"1.2.3") + struct.pack("<HH2sHL", 0x0008, 0x1199, b"SQ", 0, len(items)) + items
    with commitment_association(receiver) as assoc:
        assert ask_to_commit(assoc, content) == 0x0115
        assert ask_to_commit(assoc, ui(0x1195, uid)) == 0x0115
    assert receiver.rows("commitment_reports") == []


def test_a_second_request_before_the_response_ends_the_association(receiver):
    with connect(receiver.port, HONEST) as connection:
        connection.sendall(commitment_request())
        peer = RawPeer(connection)
        assert peer.read_pdu()[0] == 0x02
        content = action_information(9000)
        connection.sendall((pdu((COMMAND | LAST, n_action_command())) + pdu((LAST, content))) * 5)
        kinds = []
        while not kinds or kinds[-1] == 0x04:
            kinds.append(peer.read_pdu()[0])
        assert kinds[-1] == 0x07
    wait_until(lambda: len(receiver.rows("commitment_reports")) <= 2, "one report, or two")
    sends_all(receiver, 3)


def test_who_asks_and_hangs_up_again_and_again_takes_little_memory(tmp_path):
    with defended(tmp_path, senders=KNOWN, processes=1) as receiver:
        content = pdu((COMMAND | LAST, n_action_command())) + pdu((LAST, action_information(9000)))

        def ask_and_hang_up():
            with connect(receiver.port, HONEST) as connection:
                connection.sendall(commitment_request())
                if RawPeer(connection).read_pdu()[0] == 0x02:  # rejected while those before are being judged
                    connection.sendall(content)

        ask_and_hang_up()
        gc.collect()
        before = psutil.Process().memory_info().rss
        for _ in range(40):
            ask_and_hang_up()
        at_once = DEFAULTS["max_associations_per_sender"]  # on a slow machine that many are being judged when the last one comes
        assert psutil.Process().memory_info().rss - before < at_once * 10 * 2**20

        def is_welcome():
            with associated(receiver) as assoc:
                return assoc.is_established

        wait_until(is_welcome, "a place, once the work for those who hung up has ended")


def test_no_more_reports_are_owed_than_a_sender_may_have_open(receiver, monkeypatch):
    monkeypatch.setattr(reports, "_MOST_OPEN_OF_ONE", 5)
    with defended(receiver.folder.parent / "few", senders=KNOWN, processes=1) as few, commitment_association(few) as assoc:
        answers = [ask_to_commit(assoc, action_information(2, f"1.2.{number}")) for number in range(8)]
        assert answers == [0x0000] * 5 + [0x0213] * 3
    assert len(few.rows("commitment_reports")) == 5


def test_nothing_is_written_where_there_is_no_room(tmp_path, monkeypatch):
    monkeypatch.setattr(DiskSpace, "is_available", lambda _: False)
    with defended(tmp_path, senders=KNOWN, processes=1) as receiver, commitment_association(receiver) as assoc:
        assert [ask_to_commit(assoc, action_information(2)) for _ in range(5)] == [0x0213] * 5
    assert receiver.rows("commitment_reports") == []
    assert len(receiver.rows("audit")) == 1


def test_a_modality_that_answers_no_report_keeps_no_other_waiting(tmp_path, monkeypatch):
    """One that takes the association and never answers: its other reports wait with the first."""
    silent_ae = AE("SILENT")
    silent_ae.add_supported_context(PUSH_MODEL, UNCOMPRESSED, scu_role=True, scp_role=True)
    stop = threading.Event()
    tried = []

    def never_answer(_):
        tried.append(1)
        stop.wait(PATIENCE_S)
        return 0, None

    silent = silent_ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_N_EVENT_REPORT, never_answer)])
    peer_of = deliver_commitment.reporting_peer

    def impatient_with_the_silent_one(settings, sender, host):
        return replace(peer_of(settings, sender, host), timeout_s=2.0 if sender.ae_title == "SILENT" else PATIENCE_S)

    monkeypatch.setattr(deliver_commitment, "reporting_peer", impatient_with_the_silent_one)
    modality = Modality()
    try:
        with modality.listening() as port:
            senders = (
                {"ae_title": "SILENT", "port": silent.server_address[1], "hosts": [HONEST]},
                {"ae_title": "MODALITY1", "port": port, "hosts": [HONEST]},
            )
            settings = Settings(node=NodeSettings(data_dir=tmp_path, port=0), senders=senders)
            engine = open_database(settings)
            owed = [owe_report(engine, f"1.2.{n}", "SILENT", HONEST, [(IMAGE, "1.2.3")], {}) for n in range(5)]
            owe_report(engine, "1.3.1", "MODALITY1", HONEST, [(IMAGE, "1.2.3")], {})
            reporter = commitment_reporter(settings, engine)
            thread = threading.Thread(target=reporter.report_due, args=(threading.Event(),))
            thread.start()
            assert modality.reported.wait(PATIENCE_S), "the honest modality is told, once the silent one has had its time"
            assert len(tried) == 1, "the silent one's time is taken once, not five times"
            thread.join(PATIENCE_S)
            assert {report.id for report in reports.reports_due(engine)}.isdisjoint(one.id for one in owed)
            engine.dispose()
    finally:
        stop.set()
        silent.shutdown()
