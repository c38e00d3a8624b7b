"""Association requests as peers write them, against the listener: what carries no meaning costs nothing (PS3.8 9.3, D.2).

Over 300 lines: one table of odd requests after the other, to the same listener.
"""

from __future__ import annotations

import select
import socket
import struct
import time
from contextlib import ExitStack, contextmanager

import pytest
from pydicom import uid
from structlog.testing import capture_logs

from cxr_node.settings import SenderSettings, TlsSettings
from cxr_node.store.database import open_database
from cxr_node.store.views import refusals
from tests.certificates import Authority
from tests.raw_items import (
    APPLICATION,
    CONTEXT,
    DX,
    EXPLICIT,
    IMPLEMENTATION,
    LENGTH,
    UNKNOWN,
    USER,
    VERSION,
    contexts_of,
    item,
    proposed,
    request,
)
from tests.raw_peer import COMMAND, LAST, raw_connection, raw_peer, store_command
from tests.receiver import Receiver, associated, encoded, radiograph, send
from tests.waiting import PATIENCE_S, wait_until

NAMED = item(0x10, APPLICATION)


@pytest.fixture(scope="module")
def receiver(tmp_path_factory):
    with Receiver(tmp_path_factory.mktemp("data")) as running:
        yield running


@contextmanager
def association_requested(receiver, sent):
    """A connection over which an association was asked for; gives it, the answer's type and its body."""
    with raw_connection(receiver) as peer:
        peer.connection.sendall(sent)
        yield peer, *peer.read_pdu()


def user(*items):
    return NAMED + CONTEXT + item(0x50, b"".join(items))


ODD_ITEMS = {
    **{f"unknown sub-item 0x{kind:02X}": user(LENGTH, IMPLEMENTATION, item(kind, b"vendor")) for kind in UNKNOWN},
    "unknown sub-item in the middle": user(LENGTH, item(0x5F, b"x"), IMPLEMENTATION, VERSION),
    "unknown sub-item first and empty": user(item(0x5F, b""), LENGTH, IMPLEMENTATION),
    "unknown sub-item of 60000 bytes": user(LENGTH, IMPLEMENTATION, item(0xFE, bytes(60000))),
    **{f"unknown item 0x{kind:02X}": NAMED + item(kind, b"abc") + CONTEXT + USER for kind in (0x11, 0x33, 0x60, 0xFF)},
    "unknown item last": NAMED + CONTEXT + USER + item(0xFF, bytes(9)),
    "unknown sub-item of a presentation context": NAMED + proposed(1, EXPLICIT, more=item(0x41, b"x")) + USER,
    "no maximum length": user(IMPLEMENTATION, VERSION),
    "maximum length of no bytes": user(item(0x51, b""), IMPLEMENTATION),
    "maximum length of 2 bytes": user(item(0x51, b"\x40\x00"), IMPLEMENTATION),
    "maximum length that no fragment fits in": user(item(0x51, struct.pack(">L", 6)), IMPLEMENTATION),
    "maximum length 0": user(item(0x51, bytes(4)), IMPLEMENTATION),
    "maximum length twice": user(LENGTH, LENGTH, IMPLEMENTATION),
    "no implementation class UID": user(LENGTH),
    "implementation class UID that is none": user(LENGTH, item(0x52, b"ACME PACS")),
    "implementation class UID twice, with NUL": user(LENGTH, item(0x52, b"1.2.3\0\0"), IMPLEMENTATION),
    "empty user information": user(),
    "no user information": NAMED + CONTEXT,
    "user information twice": user(LENGTH, IMPLEMENTATION) + USER,
    "empty version name": user(LENGTH, IMPLEMENTATION, item(0x55, b"")),
    "version name of 17 bytes": user(LENGTH, IMPLEMENTATION, item(0x55, b"SUPERPACS 12.4.17")),
    "version name of 300 bytes": user(LENGTH, IMPLEMENTATION, item(0x55, b"x" * 300)),
    "version name with NUL": user(LENGTH, IMPLEMENTATION, item(0x55, b"PACS12\0\0")),
    "version name in Latin-1": user(LENGTH, IMPLEMENTATION, item(0x55, "Röntgen\\1".encode("latin-1"))),
    "version name twice": user(LENGTH, VERSION, IMPLEMENTATION, VERSION),
    "role selection of no SOP class": user(LENGTH, IMPLEMENTATION, item(0x54, b"\0\0\1\1")),
    "role selection that is cut off": user(LENGTH, IMPLEMENTATION, item(0x54, b"\0\x20" + DX)),
    "roles that are neither 0 nor 1": user(LENGTH, IMPLEMENTATION, item(0x54, struct.pack(">H", len(DX)) + DX + b"\5\xff")),
    "asynchronous operations of 1 byte": user(LENGTH, IMPLEMENTATION, item(0x53, b"\1")),
    "extended negotiation that is cut off": user(LENGTH, IMPLEMENTATION, item(0x56, b"\0\x20a"), item(0x57, b"\0")),
    "user identity of an unknown type": user(LENGTH, IMPLEMENTATION, item(0x58, b"\x09\0\0\1a\0\0")),
    "sub-item that goes beyond the user information": user(LENGTH, IMPLEMENTATION, b"\x55\0\0\xffabc"),
    "padding behind the last item": NAMED + CONTEXT + USER + b"\0",
    "no application context": CONTEXT + USER,
    "application context twice": NAMED + NAMED + CONTEXT + USER,
    "application context that is no UID": item(0x10, b"DICOM") + CONTEXT + USER,
    "items in another order": USER + CONTEXT + NAMED,
    "UIDs padded with NUL and spaces": item(0x10, APPLICATION + b"\0\0")
    + proposed(1, EXPLICIT + b" \0", abstract=DX + b"\0\0")
    + USER,
    "a presentation context twice": NAMED + CONTEXT + CONTEXT + USER,
}


@pytest.mark.parametrize("items", ODD_ITEMS.values(), ids=ODD_ITEMS.keys())
def test_an_odd_item_costs_nothing(receiver, items):
    ds = radiograph()
    with association_requested(receiver, request(items)) as (peer, kind, body):
        assert kind == 0x02
        assert contexts_of(body) == {1: (0, EXPLICIT)}
        peer.send_pdu((COMMAND | LAST, store_command(ds.SOPInstanceUID)), (LAST, encoded(ds)))
        assert peer.read_response().Status == 0x0000


TITLES = {
    "NUL": (b"NODE".ljust(16, b"\0"), b"EFILM".ljust(16, b"\0"), "EFILM"),
    "NUL, then what the memory held": (b"NODE\0junkjunkjun", b"EFILM\0\xff\xfe\\junkjun", "EFILM"),
    "spaces in front": (b"   NODE".ljust(16), b"  EFILM".ljust(16), "EFILM"),
    "Latin-1": (b"NODE".ljust(16), "RÖNTGEN1".encode("latin-1").ljust(16), "R?NTGEN1"),
    "UTF-8": (b"NODE".ljust(16), "RÖNTGEN1".encode().ljust(16), "R??NTGEN1"),
    "a backslash and a control character": (b"NODE".ljust(16), b"A\\B\x07".ljust(16), "A?B?"),
    "only spaces": (b"NODE".ljust(16), b" " * 16, "?"),
    "only NUL": (b"NODE".ljust(16), bytes(16), "?"),
    "16 characters": (b"NODE".ljust(16), b"ABCDEFGHIJKLMNOP", "ABCDEFGHIJKLMNOP"),
}


@pytest.mark.parametrize(("called", "calling", "name"), TITLES.values(), ids=TITLES.keys())
def test_a_title_that_is_padded_or_spelt_oddly_is_taken(receiver, called, calling, name):
    ds = radiograph()
    with association_requested(receiver, request(called=called, calling=calling)) as (peer, kind, _):
        assert kind == 0x02
        peer.send_pdu((COMMAND | LAST, store_command(ds.SOPInstanceUID)), (LAST, encoded(ds)))
        assert peer.read_response().Status == 0x0000
    (row,) = [row for row in receiver.rows("instances") if row["sop_instance_uid"] == ds.SOPInstanceUID]
    assert row["calling_ae_title"] == name


@pytest.mark.parametrize(
    ("options", "answer", "word"),
    [
        ({"calling": b" " * 16}, b"\1\1\3", "'?' is not among"),
        ({"calling": bytes(16)}, b"\1\1\3", "'?' is not among"),
        ({"calling": b"M\xd6DALITY1".ljust(16)}, b"\1\1\3", "'M?DALITY1' is not among"),
        ({"calling": b"MODALITY1".ljust(16), "called": bytes(16)}, b"\1\1\7", "'?' is not 'NODE'"),
        ({"version": 2}, b"\1\2\2", "protocol version"),
        ({"version": 0}, b"\1\2\2", "protocol version"),
    ],
)
def test_who_is_refused_reads_why_at_both_ends(tmp_path, options, answer, word):
    senders = (SenderSettings(ae_title="MODALITY1"),)
    with Receiver(tmp_path, senders, accept_unknown_senders=False) as receiver, capture_logs() as lines:
        with association_requested(receiver, request(**options)) as (_, kind, body):
            assert (kind, body[1:4]) == (0x03, answer)
        wait_until(lambda: receiver.rows("audit"), "the refusal in the audit log")
        (row,) = receiver.rows("audit")
        assert (row["event"], word in row["detail"]) == ("association-refused", True)
        assert [word in line["reason"] for line in lines if line["event"] == "association refused"] == [True]


@pytest.mark.parametrize("version", [1, 3, 0x8001, 0xFFFF])
def test_only_bit_0_of_the_protocol_version_is_tested(receiver, version):
    with association_requested(receiver, request(version=version)) as (_, kind, _body):
        assert kind == 0x02


@pytest.mark.parametrize(
    ("broken", "result"),
    [
        pytest.param(proposed(3), 4, id="no transfer syntax"),
        pytest.param(proposed(3, b""), 4, id="an empty transfer syntax"),
        pytest.param(proposed(3, b"ExplicitVR"), 4, id="a transfer syntax that is no UID"),
        pytest.param(item(0x20, b"\3\0\0\0" + item(0x40, EXPLICIT)), 3, id="no abstract syntax"),
        pytest.param(proposed(3, EXPLICIT, abstract=b""), 3, id="an empty abstract syntax"),
        pytest.param(proposed(3, EXPLICIT, abstract=b"1." * 40 + b"1"), 3, id="an abstract syntax that is too long"),
        pytest.param(item(0x20, b"\3\0\0\0\x30\0\xff\xff1.2"), 3, id="a sub-item that goes beyond it"),
        pytest.param(item(0x20, b"\3\0\0\0"), 3, id="nothing"),
    ],
)
def test_a_broken_context_costs_that_context_alone(receiver, broken, result):
    ds = radiograph()
    for contexts in (broken + CONTEXT, CONTEXT + broken):
        with association_requested(receiver, request(NAMED + contexts + USER)) as (peer, kind, body):
            assert kind == 0x02
            found = contexts_of(body)
            assert (found[1], found[3][0]) == ((0, EXPLICIT), result)
            peer.send_pdu((COMMAND | LAST, store_command(ds.SOPInstanceUID)), (LAST, encoded(ds)))
            assert peer.read_response().Status == 0x0000


@pytest.mark.parametrize(
    ("sent", "word"),
    [
        pytest.param(request(NAMED + CONTEXT + b"\x50\0\xff\xffabcd"), "beyond the end", id="an item that goes beyond it"),
        pytest.param(struct.pack(">BBL", 1, 0, 10) + bytes(10), "too short", id="too short"),
        pytest.param(struct.pack(">BBL", 0x42, 0, 4) + bytes(4), "PDU of type 66", id="another PDU"),
    ],
)
def test_a_request_that_cannot_be_read_is_aborted_and_told_in_log_and_audit_log(tmp_path, sent, word):
    with Receiver(tmp_path) as receiver, capture_logs() as lines:
        with association_requested(receiver, sent) as (_, kind, _body):
            assert kind == 0x07
        wait_until(lambda: receiver.rows("audit"), "the refusal in the audit log")
        assert word in receiver.rows("audit")[0]["detail"]
    assert any(word in line["reason"] for line in lines if line["event"] == "association refused")


@pytest.mark.parametrize("source", [0, 1, 2, 7, 255])
def test_an_abort_with_values_that_the_standard_reserves_is_an_abort(receiver, source):
    with raw_peer(receiver) as peer, capture_logs() as lines:
        peer.connection.sendall(b"\x07\0\0\0\0\4\0\0" + bytes((source, 3)))
        with pytest.raises((EOFError, ConnectionError)):
            peer.read_pdu()
    assert not [line for line in lines if line["event"] == "association out of step"]


def tls_of(folder):
    pair = Authority(folder / "authority").issue("node.example")
    return TlsSettings(listen=True, certificate=pair.certificate, key=pair.key, require_client_certificate=False)


@pytest.mark.parametrize("over_tls", [False, True])
def test_a_health_check_that_only_connects_leaves_no_line(tmp_path, over_tls):
    with Receiver(tmp_path / "data", tls=tls_of(tmp_path) if over_tls else None) as receiver, capture_logs() as lines:
        for linger in (None, struct.pack("ii", 1, 0)):  # a FIN, and an RST
            for _ in range(3):
                with socket.create_connection(("127.0.0.1", receiver.port)) as connection:
                    if linger:
                        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        if not over_tls:
            with associated(receiver) as assoc:
                assert assoc.send_c_echo().Status == 0x0000
        time.sleep(0.5)  # for lines that should not come
        assert receiver.rows("audit") == []
    assert [line for line in lines if line["log_level"] != "debug"] == []


def test_who_begins_a_request_and_goes_leaves_one(receiver):
    with capture_logs() as lines:
        with socket.create_connection(("127.0.0.1", receiver.port)) as connection:
            connection.sendall(request()[:20])
        wait_until(lambda: [line for line in lines if line["event"] == "connection lost"], "the line")


def test_an_idle_association_that_the_node_ends_leaves_a_line(tmp_path):
    with Receiver(tmp_path, network_timeout_s=2.0) as receiver, capture_logs() as lines:
        with raw_peer(receiver, calling="SLEEPER") as peer:
            assert peer.read_pdu()[0] == 0x07
        wait_until(lambda: lines, "the line")
    (line,) = [line for line in lines if line["event"] == "idle association ended"]
    assert (line["calling_ae_title"], line["host"]) == ("SLEEPER", "127.0.0.1")


@pytest.mark.parametrize("processes", [1, 2])
def test_the_longest_idle_association_of_a_peer_ends_for_a_new_one(tmp_path, processes):
    with Receiver(tmp_path, max_associations_per_sender=2, processes=processes) as receiver, ExitStack() as stack:
        first = stack.enter_context(raw_peer(receiver, calling="FIRST"))
        time.sleep(0.5)  # so that it is the longest
        second = stack.enter_context(raw_peer(receiver, calling="SECOND"))
        time.sleep(2.5)  # both are idle now
        with raw_connection(receiver):  # who only connects ends none
            time.sleep(0.3)
        with associated(receiver, calling="THIRD") as assoc:
            assert assoc.is_established
            assert send(assoc, radiograph()) == 0x0000
            may_end = [first] if processes == 1 else [first, second]
            ended, _, _ = select.select([peer.connection for peer in may_end], [], [], PATIENCE_S)
            kinds = [peer.read_pdu()[0] for peer in may_end if peer.connection in ended]
            assert kinds == [0x07], "an A-ABORT for one of them"


def test_an_association_that_has_a_data_set_under_way_ends_for_nobody(tmp_path):
    ds = radiograph()
    content = encoded(ds)
    with Receiver(tmp_path, max_associations_per_sender=1) as receiver, raw_peer(receiver) as busy:
        busy.send_pdu((COMMAND | LAST, store_command(ds.SOPInstanceUID)), (0, content[:1000]))
        time.sleep(2.5)  # longer than what counts as idle
        with raw_connection(receiver) as other:
            other.connection.sendall(request())
            kind, body = other.read_pdu()
            assert (kind, body[1:4]) == (0x03, b"\2\3\2")
        busy.send_pdu((LAST, content[1000:]))
        assert busy.read_response().Status == 0x0000


OTHERS = {
    "retired": "1.2.840.10008.5.1.4.1.1.12.77",
    "retired, as ultrasound once": "1.2.840.10008.5.1.4.1.1.6",
    "private": "1.3.12.2.1107.5.9.1",
    "newer than the dictionary": "1.2.840.10008.5.1.4.1.1.9999.1",
    "listed": uid.CTImageStorage,
}


@pytest.mark.parametrize("sop_class", OTHERS.values(), ids=OTHERS.keys())
def test_other_storage_classes_are_kept_whatever_they_are(tmp_path, sop_class):
    ds = radiograph(SOPClassUID=sop_class)
    with Receiver(tmp_path, other_storage_classes="keep") as receiver:
        with associated(receiver, sop_class) as assoc:
            assert send(assoc, ds) == 0x0000
        (row,) = receiver.rows("instances")
        assert (row["sop_class_uid"], row["note"]) == (sop_class, "not a radiograph, not analysed")
        assert receiver.rows("jobs") == []


@pytest.mark.parametrize("other", ["1.2.840.10008.5.1.4.1.2.1.1", "1.2.840.10008.5.1.4.31", "1.2.840.10008.1.20.2"])
def test_services_that_are_not_storage_are_not_negotiated_by_keeping_others(tmp_path, other):
    with Receiver(tmp_path, other_storage_classes="keep") as receiver, associated(receiver, other) as assoc:
        assert [context.abstract_syntax for context in assoc.accepted_contexts] == ["1.2.840.10008.1.1"]


def test_a_private_class_is_refused_as_long_as_others_are(tmp_path):
    with Receiver(tmp_path) as receiver, associated(receiver, OTHERS["private"]) as assoc:
        assert [context.abstract_syntax for context in assoc.accepted_contexts] == ["1.2.840.10008.1.1"]


def test_what_is_refused_is_counted_by_sender_and_reason(tmp_path, database_url):
    senders = (SenderSettings(ae_title="MODALITY1"), SenderSettings(ae_title="MODALITY2"))
    options = {"database_url": database_url, "accept_unknown_senders": False, "max_instances_per_minute": 2}
    with Receiver(tmp_path, senders, **options) as receiver:
        for _ in range(3):
            with associated(receiver, calling="STRANGER") as assoc:
                assert assoc.is_rejected
        with associated(receiver) as assoc:
            assert [send(assoc, radiograph()) for _ in range(4)] == [0x0000, 0x0000, 0xA700, 0xA700]
            assert send(assoc, radiograph()) == 0xA700
        with associated(receiver, calling="MODALITY2") as assoc:
            ds = radiograph()
            assert send(assoc, ds) == 0x0000
    engine = open_database(receiver.settings)
    found = refusals.refusals(engine)
    engine.dispose()
    assert sorted((row["what"], row["sender"], row["host"], row["count"]) for row in found) == [
        ("association", "STRANGER", "127.0.0.1", 3),
        ("image", "MODALITY1", "127.0.0.1", 3),
    ]
    reasons = {row["what"]: row["reason"] for row in found}
    assert reasons["image"] == "A700: Too many instances in a minute; send it again later"
    assert "not among the [[senders]]" in reasons["association"]
    assert all(time.time() - 600 < row["first_at"] <= row["last_at"] for row in found)


@pytest.mark.parametrize("numbers", [(2,), (0,), (254,), (1, 2, 3, 4), (2, 2), (0, 1)], ids=str)
def test_presentation_contexts_with_even_ids_are_taken_and_answered_by_them(receiver, numbers):
    """As dcmtk's SCP does, although PS3.8 section 9.3.2.2 asks for odd ones."""
    contexts = b"".join(proposed(number, EXPLICIT) for number in numbers)
    with association_requested(receiver, request(NAMED + contexts + USER)) as (peer, kind, body):
        assert kind == 0x02
        assert contexts_of(body) == dict.fromkeys(numbers, (0, EXPLICIT))
        for number in numbers:
            ds = radiograph()
            peer.send_pdu((COMMAND | LAST, store_command(ds.SOPInstanceUID)), (LAST, encoded(ds)), context=number)
            assert peer.read_response().Status == 0x0000
            assert peer.last_context == number


def test_an_even_id_opens_no_other_context(receiver):
    with association_requested(receiver, request(NAMED + proposed(2, EXPLICIT) + USER)) as (peer, kind, _):
        assert kind == 0x02
        peer.send_pdu((COMMAND | LAST, store_command("1.2.3")), (LAST, b"x"), context=1)
        assert peer.read_pdu()[0] == 0x07


def test_even_ids_for_which_no_odd_one_is_left_are_not_accepted(receiver):
    contexts = b"".join(proposed(number, EXPLICIT) for number in (*range(1, 256, 2), 2))
    with association_requested(receiver, request(NAMED + contexts + USER)) as (_, kind, body):
        assert kind == 0x02
        assert sorted(contexts_of(body)) == list(range(1, 256, 2))
