"""What a peer sends and nobody here serves: a reason in words at both ends, in the log, in the audit log and in `status`."""

from __future__ import annotations

import struct
from contextlib import contextmanager

import pytest
from structlog.testing import capture_logs

from cxr_node.audit import refusal_events
from cxr_node.commitment.datasets import PUSH_MODEL, PUSH_MODEL_INSTANCE
from cxr_node.receive.transport import pending_connections
from cxr_node.settings import SenderSettings
from tests.attack_helpers import action_information, ask_to_commit
from tests.raw_items import APPLICATION, CONTEXT, EXPLICIT, USER, item, proposed, request
from tests.raw_peer import COMMAND, DX, LAST, raw_connection, raw_peer, store_command
from tests.receiver import Receiver, associated, encoded, radiograph

CT, MPEG2 = b"1.2.840.10008.5.1.4.1.1.2", b"1.2.840.10008.1.2.4.100"
DX_CLASS = DX.encode()
NO_DATA_SET = struct.pack("<H", 0x0101)


@pytest.fixture
def receiver(tmp_path):
    with Receiver(tmp_path / "data") as running:
        yield running


def element(number, value):
    return struct.pack("<HHL", 0, number, len(value)) + value


def command(field, *elements, message_id=7, sop_class=DX_CLASS):
    """An encoded command set without a data set, SOP class padded."""
    body = element(0x0002, sop_class + b"\0" * (len(sop_class) % 2)) if sop_class else b""
    body += element(0x0100, struct.pack("<H", field))
    body += b"" if message_id is None else element(0x0110, struct.pack("<H", message_id))
    body += element(0x0800, NO_DATA_SET) + b"".join(elements)
    return element(0x0000, struct.pack("<L", len(body))) + body


def said(receiver, what, word):
    """Whether the audit log and the counts of `status` have it, after the node has stopped."""
    receiver.stop()
    details = [row["detail"] for row in receiver.rows("audit") if row["event"] == "association-refused"]
    counted = [row["reason"] for row in receiver.rows("refusals")]
    return [detail for detail in details if what in detail and word in detail], [one for one in counted if word in one]


@contextmanager
def asked(receiver, items):
    with raw_connection(receiver) as peer:
        peer.connection.sendall(request(items))
        yield peer, peer.read_pdu()


@pytest.mark.parametrize(
    ("field", "service"),
    [(0x0010, "C-GET"), (0x0020, "C-FIND"), (0x0021, "C-MOVE"), (0x0110, "N-GET"), (0x0120, "N-SET"), (0x0140, "N-CREATE")],
)
def test_a_request_of_another_service_is_refused_and_the_association_lives_on(receiver, field, service):
    ds = radiograph()
    with capture_logs() as lines, raw_peer(receiver, calling="ARCHIVE") as peer:
        peer.send_pdu((COMMAND | LAST, command(field)))
        response = peer.read_response()
        peer.send_pdu((COMMAND | LAST, store_command(ds.SOPInstanceUID)), (LAST, encoded(ds)))
        assert peer.read_response().Status == 0x0000
    assert (response.Status, response.MessageIDBeingRespondedTo) == (0x0211, 7)
    assert response.ErrorComment == f"{service} is not supported here"
    (line,) = [line for line in lines if line["event"] == "request refused"]
    assert (line["calling_ae_title"], line["host"]) == ("ARCHIVE", "127.0.0.1")
    audited, counted = said(receiver, "request refused", service)
    assert len(audited) == len(counted) == 1


def test_the_data_set_of_a_refused_request_is_taken_off(receiver):
    find = command(0x0020).replace(element(0x0800, NO_DATA_SET), element(0x0800, bytes(2)))
    with raw_peer(receiver) as peer:
        peer.send_pdu((COMMAND | LAST, find), (LAST, encoded(radiograph())))
        assert peer.read_response().Status == 0x0211


def test_an_incomplete_request_is_answered(receiver):
    with raw_peer(receiver) as peer:
        peer.send_pdu((COMMAND | LAST, command(0x0100, sop_class=PUSH_MODEL.encode())))
        response = peer.read_response()
    assert (response.Status, response.ErrorComment) == (0x0115, "The N-EVENT-REPORT request is incomplete")


def test_an_action_of_another_class_is_answered(tmp_path):
    known = (SenderSettings(ae_title="MODALITY1"),)
    with Receiver(tmp_path / "data", known) as receiver, associated(receiver, PUSH_MODEL) as assoc:
        number = assoc.accepted_contexts[0].context_id
        ds = radiograph()
        ds.TransactionUID = "1.2.3"
        assoc._accepted_cx[number].abstract_syntax = "1.2.840.10008.1.20.2"
        status, _ = assoc.send_n_action(ds, 1, "1.2.840.10008.1.20.2", PUSH_MODEL_INSTANCE)
        assert status.Status == 0x0118


def test_an_echo_without_its_sop_class_is_answered(receiver):
    with raw_peer(receiver) as peer:
        peer.send_pdu((COMMAND | LAST, command(0x0030, sop_class=b"")))
        assert peer.read_response().Status == 0x0000


@pytest.mark.parametrize(
    ("sent", "word"),
    [
        ((LAST, b"a data set"), "a data set without a command"),
        ((COMMAND | LAST, b""), "without Command Field"),
        ((COMMAND | LAST, b"no command set"), "beyond its command set"),
        ((COMMAND | LAST, command(0x9999)), "unknown type 0x9999"),
        ((COMMAND | LAST, command(0x0020, message_id=None)), "a C-FIND request without message ID"),
        ((COMMAND | LAST, command(0x0001, message_id=None)), "a C-STORE request without message ID"),
        ((COMMAND | LAST, command(0x0030, sop_class=b"x" * 99)), "can't be read"),
    ],
)
def test_a_breach_of_the_protocol_is_told_in_words(receiver, sent, word):
    with capture_logs() as lines, raw_peer(receiver, calling="ARCHIVE") as peer:
        peer.send_pdu(sent)
        assert peer.read_pdu()[0] == 0x07
    (line,) = [line for line in lines if line["event"] == "association aborted"]
    assert word in line["reason"]
    assert (line["calling_ae_title"], line["host"]) == ("ARCHIVE", "127.0.0.1")
    audited, counted = said(receiver, "association aborted", word)
    assert len(audited) == len(counted) == 1


@pytest.mark.parametrize(
    ("pdu", "word"),
    [
        (request(), "A-ASSOCIATE-RQ out of turn"),
        (struct.pack(">BBLL", 0x06, 0, 4, 0), "A-RELEASE-RP out of turn"),
        (struct.pack(">BBL", 0x42, 0, 4) + bytes(4), "PDU of type 66"),
    ],
)
def test_a_pdu_out_of_turn_is_told_once(receiver, pdu, word):
    with capture_logs() as lines, raw_peer(receiver) as peer:
        peer.connection.sendall(pdu)
        assert peer.read_pdu()[0] == 0x07
    (line,) = [line for line in lines if line["event"] == "association aborted"]
    assert word in line["reason"]
    audited, counted = said(receiver, "association aborted", word)
    assert len(audited) == len(counted) == 1


def test_an_abort_of_the_peer_and_what_it_breaks_off_name_it(receiver):
    with capture_logs() as lines:
        with raw_peer(receiver, calling="ARCHIVE") as peer:
            peer.send_pdu((COMMAND | LAST, store_command("1.2.3")), (0, b"x" * 100))
            peer.connection.sendall(struct.pack(">BBLBBBB", 0x07, 0, 4, 0, 0, 0, 0))
            assert peer.connection.recv(1) == b""
        receiver.stop()
    for event in ("association aborted by the peer", "transfer broken off"):
        (line,) = [line for line in lines if line["event"] == event]
        assert (line["calling_ae_title"], line["host"]) == ("ARCHIVE", "127.0.0.1")


@pytest.mark.parametrize(
    ("contexts", "words"),
    [
        (b"", "no presentation context"),
        (proposed(1, EXPLICIT, abstract=CT), "SOP class not accepted here: CT Image Storage"),
        (proposed(1, EXPLICIT, abstract=CT) + proposed(3, EXPLICIT, abstract=b"1.2.840.10008.1.1"), "CT Image Storage"),
        (proposed(1, MPEG2), "transfer syntax not accepted here: MPEG2 Main Profile / Main Level"),
        (proposed(1, MPEG2) + proposed(3, EXPLICIT, abstract=b"1.2.840.10008.5.1.4.1.1.7"), "MPEG2 Main Profile"),
        (b"".join(proposed(2 * n + 1, EXPLICIT, abstract=CT + b".%d" % n) for n in range(5)), "and 2 more"),
    ],
)
def test_an_association_over_which_nothing_can_come_is_told(receiver, contexts, words):
    with asked(receiver, item(0x10, APPLICATION) + contexts + USER) as (_, (kind, _)):
        assert kind == 0x02
    audited, counted = said(receiver, "", words)
    assert len(audited) == len(counted) == 1


@pytest.mark.parametrize(
    "contexts",
    [
        CONTEXT,
        CONTEXT + proposed(3, EXPLICIT, abstract=CT),
        CONTEXT + proposed(3, MPEG2),
        proposed(1, EXPLICIT, abstract=b"1.2.840.10008.1.1"),
    ],
)
def test_an_association_over_which_something_can_come_leaves_no_line(receiver, contexts):
    with asked(receiver, item(0x10, APPLICATION) + contexts + USER) as (_, (kind, _)):
        assert kind == 0x02
    assert said(receiver, "", "") == ([], [])


@pytest.mark.parametrize(
    ("content", "word"),
    [
        pytest.param(action_information(0), "refers to no instance", id="nothing"),
        pytest.param(encoded(radiograph()), "without a transaction UID", id="an image"),
    ],
)
def test_a_request_that_refers_to_nothing_is_not_answered_with_all_is_kept(tmp_path, content, word):
    with Receiver(tmp_path / "data", (SenderSettings(ae_title="MODALITY1"),)) as receiver:
        with associated(receiver, PUSH_MODEL) as assoc:
            assert ask_to_commit(assoc, content) == 0x0115
        assert receiver.rows("commitment_reports") == []
        assert [word in row["detail"] for row in receiver.rows("audit") if row["event"] == "commitment-refused"] == [True]


def test_an_action_that_there_is_none_of_is_told(tmp_path):
    with Receiver(tmp_path / "data", (SenderSettings(ae_title="MODALITY1"),)) as receiver:
        with associated(receiver, PUSH_MODEL) as assoc:
            status, _ = assoc.send_n_action(radiograph(), 2, PUSH_MODEL, PUSH_MODEL_INSTANCE)
            assert status.Status == 0x0123
        assert ["type 2" in row["detail"] for row in receiver.rows("audit") if row["event"] == "commitment-refused"] == [True]


def test_an_element_that_comes_twice_with_the_same_value_costs_nothing(receiver):
    ds = radiograph()
    value = ds.SOPInstanceUID.encode() + b"\0" * (len(ds.SOPInstanceUID) % 2)
    twice = struct.pack("<HH2sH", 0x0008, 0x0018, b"UI", len(value)) + value + encoded(ds)
    with raw_peer(receiver) as peer:
        peer.send_pdu((COMMAND | LAST, store_command(ds.SOPInstanceUID)), (LAST, twice))
        assert peer.read_response().Status == 0x0000


@pytest.mark.parametrize("end", ["closed", "aborted", "in the middle of an image"])
def test_associations_that_end_again_and_again_fill_no_log(tmp_path, monkeypatch, end):
    monkeypatch.setattr(refusal_events, "_LINES_AT_ONCE", 3)
    monkeypatch.setattr(refusal_events, "_LINES_A_MINUTE", 0)
    with capture_logs() as lines, Receiver(tmp_path / "data") as receiver:
        for _ in range(10):
            with raw_peer(receiver) as peer:
                if end == "aborted":
                    peer.connection.sendall(struct.pack(">BBLBBBB", 0x07, 0, 4, 0, 0, 0, 0))
                    assert peer.connection.recv(1) == b""
                elif end != "closed":
                    peer.send_pdu((COMMAND | LAST, store_command("1.2.3")), (0, b"x" * 100))
    for event in ("connection lost", "association aborted by the peer", "transfer broken off"):
        assert len([line for line in lines if line["event"] == event]) <= 3
    assert 7 in [line["count"] for line in lines if line["event"] == "more of the same, not logged individually"]


def test_connections_that_end_before_a_request_again_and_again_fill_no_log(tmp_path, monkeypatch):
    monkeypatch.setattr(pending_connections, "_LINES_AT_ONCE", 3)
    monkeypatch.setattr(pending_connections, "_LINES_A_MINUTE", 0)
    with capture_logs() as lines, Receiver(tmp_path / "data") as receiver:
        for _ in range(20):
            with raw_connection(receiver) as peer:
                peer.connection.sendall(b"\x01\x00")
        with associated(receiver) as assoc:  # those before it have been seen to
            assert assoc.is_established
        assert len([line for line in lines if line["event"] == "connection lost"]) == 3
