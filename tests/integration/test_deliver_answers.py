"""Destinations as they answer: odd items, several addresses, warnings, and 0x0111.

Over 300 lines: one table of odd answers after the other, to the same sender.
"""

from __future__ import annotations

import socket
import struct

import pytest
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage
from pynetdicom import evt
from sqlalchemy import text
from structlog.testing import capture_logs

from cxr_node.deliver import addresses
from cxr_node.deliver.check import Severity, check_destinations
from cxr_node.deliver.request import EXPECTED, Peer, StoreRequest, peer_of
from cxr_node.deliver.scu import Association
from cxr_node.errors import DeliveryError
from cxr_node.records import ResultKind
from cxr_node.settings import DestinationSettings, NodeSettings, SenderSettings, Settings
from cxr_node.store.database import write
from cxr_node.store.queue import deliveries
from tests.delivery_queue import NEVER, Queue, delivery_worker, settings_for, until
from tests.raw_items import APPLICATION, IMPLEMENTATION, LENGTH, UNKNOWN, USER, VERSION, accept, item, raw_scp, request
from tests.scps import closed_port, storage_scp, write_instance
from tests.waiting import PATIENCE_S

NAMED = item(0x10, APPLICATION)
OFFER = EXPECTED[ResultKind.OVERLAY]


def answer(asked, *, before=NAMED, user=USER, contexts=None, **options):
    """An A-ASSOCIATE-AC that accepts all, with these items around it."""
    items = before + (accept(asked) if contexts is None else contexts) + user
    return request(items, pdu_type=0x02, called=asked[10:26], calling=asked[26:42], **options)


def user(*items):
    return item(0x50, b"".join(items))


ODD_ANSWERS = {
    **{f"unknown sub-item 0x{kind:02X}": {"user": user(LENGTH, IMPLEMENTATION, item(kind, b"x"))} for kind in UNKNOWN},
    "unknown sub-item in the middle": {"user": user(LENGTH, item(0x5F, b"x"), IMPLEMENTATION, VERSION)},
    "unknown item": {"before": NAMED + item(0x99, b"vendor")},
    "unknown item last": {"user": USER + item(0x99, b"")},
    "no maximum length": {"user": user(IMPLEMENTATION)},
    "maximum length of no bytes": {"user": user(item(0x51, b""), IMPLEMENTATION)},
    "maximum length 6": {"user": user(item(0x51, b"\0\0\0\6"), IMPLEMENTATION)},
    "maximum length 0": {"user": user(item(0x51, bytes(4)), IMPLEMENTATION)},
    "no implementation class UID": {"user": user(LENGTH)},
    "empty user information": {"user": user()},
    "no user information": {"user": b""},
    "user information twice": {"user": user(LENGTH) + USER},
    "version name of 22 bytes": {"user": user(LENGTH, IMPLEMENTATION, item(0x55, b"SUPERPACS ARCHIVE 12.4"))},
    "version name with NUL": {"user": user(LENGTH, IMPLEMENTATION, item(0x55, b"PACS12\0\0"))},
    "version name in Latin-1": {"user": user(LENGTH, IMPLEMENTATION, item(0x55, "Röntgen".encode("latin-1")))},
    "empty version name": {"user": user(LENGTH, IMPLEMENTATION, item(0x55, b""))},
    "roles that nobody asked for": {"user": user(LENGTH, IMPLEMENTATION, item(0x54, b"\0\x051.2.3\7\0"))},
    "asynchronous operations, extended negotiation": {
        "user": user(LENGTH, IMPLEMENTATION, item(0x53, b"\0"), item(0x56, b"\0\1"))
    },
    "an answer to an identity that nobody gave": {"user": user(LENGTH, IMPLEMENTATION, item(0x59, b"\0\0"))},
    "no application context": {"before": b""},
    "application context that is no UID": {"before": item(0x10, b"DICOM")},
    "protocol version 0": {"version": 0},
    "protocol version 0xFFFF": {"version": 0xFFFF},
}


@pytest.fixture
def overlay(tmp_path):
    path = tmp_path / "overlay.dcm"
    ds = write_instance(path, size_bytes=40_000)
    return StoreRequest(path, ds.SOPClassUID, ds.file_meta.TransferSyntaxUID, ds.SOPInstanceUID)


def peer_at(port, host="127.0.0.1", **options):
    return Peer(host, port, "PACS", "CXRNODE", PATIENCE_S, **options)


@pytest.mark.parametrize("odd", ODD_ANSWERS.values(), ids=ODD_ANSWERS.keys())
def test_an_odd_item_in_the_answer_costs_nothing(overlay, odd):
    with raw_scp(lambda asked: answer(asked, **odd)) as scp:
        association = Association(peer_at(scp.port), [OFFER])
        association.echo()
        assert association.store(overlay).stored
        association.release()
    assert scp.stored == [overlay.sop_instance_uid]


@pytest.mark.parametrize("titles", [bytes(32), b" " * 32, b"\xff" * 32, b"PACS\0junk" + bytes(23)])
def test_titles_in_the_answer_are_not_tested(overlay, titles):
    def odd(asked):
        whole = answer(asked)
        return whole[:10] + titles + whole[42:]

    with raw_scp(odd) as scp:
        association = Association(peer_at(scp.port), [OFFER])
        assert association.store(overlay).stored
        association.release()


REFUSED_CONTEXTS = {
    "accepted without a transfer syntax": lambda number: item(0x21, bytes((number, 0, 0, 0))),
    "accepted with an empty one": lambda number: item(0x21, bytes((number, 0, 0, 0)) + item(0x40, b"")),
    "accepted with one that is no UID": lambda number: item(0x21, bytes((number, 0, 0, 0)) + item(0x40, b"Explicit")),
    "a result that there is not": lambda number: item(0x21, bytes((number, 0, 9, 0)) + item(0x40, b"1.2")),
    "refused with an unknown sub-item": lambda number: item(0x21, bytes((number, 0, 3, 0)) + item(0x77, b"x")),
    "left out": lambda _: b"",
    "an even number besides": lambda _: item(0x21, bytes((2, 0, 0, 0)) + item(0x40, ExplicitVRLittleEndian.encode())),
}


@pytest.mark.parametrize("broken", REFUSED_CONTEXTS.values(), ids=REFUSED_CONTEXTS.keys())
def test_a_broken_answer_costs_that_context_alone(broken):
    """Context 1 is Verification's; the overlay has the next two, of which the first is broken."""

    def odd(asked):
        whole = accept(asked)
        first, second, third = (whole[at : at + 4 + length] for at, length in _items(whole))
        return answer(asked, contexts=first + broken(second[4]) + third)

    with raw_scp(odd) as scp:
        association = Association(peer_at(scp.port), [OFFER])
        association.echo()
        assert [context.context_id for context in association._assoc.accepted_contexts] == [1, 5]
        association.release()


def _items(content):
    at = 0
    while at < len(content):
        length = struct.unpack_from(">H", content, at + 2)[0]
        yield at, length
        at += 4 + length


ENDS = {
    "rejected with values that there are not": (b"\x03\0\0\0\0\4\0\7\x09\x63", "no reason"),
    "rejected, source 3 and reason 7": (b"\x03\0\0\0\0\4\0\1\3\7", "no reason"),
    "rejected for its title": (b"\x03\0\0\0\0\4\0\1\1\3", "doesn't know 'CXRNODE'"),
    "aborted with a source that there is not": (b"\x07\0\0\0\0\4\0\0\1\x63", "aborts the association"),
    "aborted by the provider with a reason that there is not": (b"\x07\0\0\0\0\4\0\0\2\x63", "doesn't answer in DICOM"),
    "an answer that is cut off": (
        struct.pack(">BBL", 2, 0, 80) + bytes(68) + b"\x50\0\xff\xff" + bytes(8),
        "doesn't answer in DICOM",
    ),
    "an answer that is too short": (struct.pack(">BBL", 2, 0, 4) + bytes(4), "doesn't answer in DICOM"),
    "something else": (b"HTTP/1.1 400 Bad Request\r\n\r\n", "doesn't answer in DICOM"),
}


@pytest.mark.parametrize(
    "end", ["rejected for its title", "rejected, source 3 and reason 7", "aborted with a source that there is not"]
)
def test_an_answer_is_told_that_came_before_pynetdicom_looked_at_the_connection(end, monkeypatch):
    """As on a busy machine: its own thread has read the answer and closed the connection by then."""
    sent, words = ENDS[end]
    trigger = evt.trigger

    def triggered(assoc, event, attrs=None):
        if event is evt.EVT_REQUESTED and assoc.is_requestor:
            assoc.dul.join(PATIENCE_S)
        return trigger(assoc, event, attrs)

    monkeypatch.setattr(evt, "trigger", triggered)
    with raw_scp(lambda _: sent) as scp, pytest.raises(DeliveryError, match=words):
        Association(peer_at(scp.port), [OFFER])


@pytest.mark.parametrize(("sent", "words"), ENDS.values(), ids=ENDS.keys())
def test_check_config_says_what_one_does_and_goes_on_with_the_others(sent, words):
    with raw_scp(lambda _: sent) as odd, raw_scp(answer) as good:
        found = check_destinations(
            Settings(
                node=NodeSettings(port=1),
                destinations=tuple(
                    DestinationSettings(name=name, ae_title="PACS", host="127.0.0.1", port=scp.port, timeout_s=PATIENCE_S)
                    for name, scp in (("odd", odd), ("good", good))
                ),
            )
        )
    assert [(one.destination, one.severity) for one in found] == [("odd", Severity.ERROR), ("good", Severity.OK)]
    assert words in found[0].text


def test_check_config_survives_what_nobody_has_foreseen(monkeypatch):
    real = Association.echo

    def echo(association):
        if association.peer.called_ae_title == "ODD":
            raise KeyError(95)
        real(association)

    monkeypatch.setattr(Association, "echo", echo)
    with raw_scp(answer) as scp:
        destinations = tuple(
            DestinationSettings(name=name, ae_title=name.upper(), host="127.0.0.1", port=scp.port, timeout_s=PATIENCE_S)
            for name in ("odd", "good")
        )
        found = check_destinations(Settings(node=NodeSettings(port=1), destinations=destinations))
    assert [(one.destination, one.severity) for one in found] == [("odd", Severity.ERROR), ("good", Severity.OK)]


@pytest.fixture
def resolves(monkeypatch):
    """Names that resolve to several addresses."""
    names: dict[str, list[str]] = {}
    real = socket.getaddrinfo

    def getaddrinfo(host, *args, **options):
        if host in names:
            return [entry for address in names[host] for entry in real(address, *args, **options)]
        return real(host, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(addresses, "_answered", {})
    return names


class TestAddresses:
    @pytest.mark.parametrize("found", [["127.0.0.77", "127.0.0.1"], ["::1", "127.0.0.1"], ["127.0.0.77", "::1", "127.0.0.1"]])
    def test_each_address_of_a_name_is_tried(self, resolves, overlay, found):
        resolves["pacs.hospital.test"] = found
        with raw_scp(answer) as scp:
            for _ in range(2):
                association = Association(peer_at(scp.port, "pacs.hospital.test"), [OFFER])
                assert association.store(overlay).stored
                association.release()
        assert len(scp.requests) == 2

    def test_ipv6_alone(self, resolves, overlay):
        resolves["pacs.hospital.test"] = ["::1"]
        with raw_scp(answer, host="::1") as scp:
            for host in ("::1", "pacs.hospital.test"):
                association = Association(peer_at(scp.port, host), [OFFER])
                assert association.store(overlay).stored
                association.release()

    def test_what_answered_last_is_tried_first_for_a_while(self, resolves):
        resolves["pacs.hospital.test"] = ["127.0.0.77", "127.0.0.1"]
        with raw_scp(answer) as scp:
            peer = peer_at(scp.port, "pacs.hospital.test")
            Association(peer, [OFFER]).release()
            assert [address.ip for address in addresses.addresses_of(peer)[0]] == ["127.0.0.1", "127.0.0.77"]
            with raw_scp(answer, host="127.0.0.77", port=scp.port) as first:
                Association(peer, [OFFER]).release()
                addresses._answered.clear()  # as after five minutes
                Association(peer, [OFFER]).release()
        assert (len(scp.requests), len(first.requests)) == (2, 1)

    def test_one_of_a_pair_takes_over(self, resolves):
        with raw_scp(answer, host="127.0.0.2") as scp:
            destination = DestinationSettings(
                name="pacs", ae_title="PACS", hosts=("127.0.0.77", "127.0.0.2"), port=scp.port, timeout_s=PATIENCE_S
            )
            Association(peer_of(Settings(destinations=(destination,)), destination), [OFFER]).release()
        assert len(scp.requests) == 1

    def test_one_that_rejects_is_passed_over_too(self, resolves):
        rejects = b"\x03\0\0\0\0\4\0\2\3\2"
        with raw_scp(lambda _: rejects) as passive, raw_scp(answer, host="127.0.0.2", port=passive.port) as active:
            Association(peer_at(passive.port, other_hosts=("127.0.0.2",)), [OFFER]).release()
        assert (len(passive.requests), len(active.requests)) == (1, 1)

    def test_where_none_answers_the_reason_names_each(self, resolves):
        resolves["pacs.hospital.test"] = ["127.0.0.77", "127.0.0.1"]
        with pytest.raises(DeliveryError) as raised:
            Association(peer_at(closed_port(), "pacs.hospital.test", other_hosts=("nowhere.invalid",)), [OFFER])
        for words in ("(127.0.0.77)", "(127.0.0.1)", "Nothing listens", "nowhere.invalid"):
            assert words in str(raised.value)

    def test_hosts_without_a_host_will_do_and_none_will_not(self):
        values = {"name": "pacs", "ae_title": "PACS", "port": 104}
        assert DestinationSettings(**values, hosts=("a", "b")).all_hosts == ("a", "b")
        assert DestinationSettings(**values, host="a", hosts=("b", "a")).all_hosts == ("a", "b")
        with pytest.raises(ValueError, match="give a host name"):
            DestinationSettings(**values)


def test_a_destination_is_called_by_the_title_that_it_knows(tmp_path):
    with raw_scp(answer) as scp:
        settings = settings_for(tmp_path, scp.port, calling_ae_title="AI_NODE")
        Association(peer_of(settings, settings.destinations[0]), [OFFER]).release()
    assert scp.requests[0][26:42] == b"AI_NODE".ljust(16)


def test_the_priority_of_a_sender_is_that_of_its_entry():
    senders = (
        SenderSettings(ae_title="ER", hosts=("10.1.0.0/16",), priority=10),
        SenderSettings(ae_title="ER", priority=-5),
    )
    settings = Settings(senders=senders)
    assert [settings.priority_of(*who) for who in (("ER", "10.1.2.3"), ("ER", "10.2.0.1"), ("CT", "10.1.2.3"))] == [10, -5, 0]


@pytest.fixture
def queue_for(tmp_path, database_url):
    queues = []

    def make(port, **destination):
        settings = settings_for(tmp_path, port, database_url=database_url, send=(ResultKind.OVERLAY,), **destination)
        queues.append(Queue(settings, tmp_path))
        return queues[-1]

    yield make
    for queue in queues:
        queue.engine.dispose()


def audit_of(queue):
    with queue.engine.connect() as connection:
        return connection.execute(text("SELECT event, detail FROM audit WHERE event LIKE 'result%' ORDER BY id")).all()


@pytest.mark.parametrize("status", [0xB000, 0xB006, 0xB007, 0xB123, 0x0107])
def test_a_warning_is_stored_with_a_line_in_log_and_audit_log(queue_for, status):
    with storage_scp(lambda _: status) as scp:
        queue = queue_for(scp.port)
        queue.analyse_one()
        with delivery_worker(queue) as worker, capture_logs() as lines:
            worker.deliver_due(NEVER)
    assert [(row.state, row.status) for row in queue.rows()] == [("sent", status)]
    assert [event for event, _ in audit_of(queue)] == ["result-sent", "result-warning"]
    (line,) = [line for line in lines if line["log_level"] == "warning"]
    assert f"0x{status:04X}" in line["reason"]
    assert f"0x{status:04X}" in audit_of(queue)[1].detail


class TestDuplicates:
    """0x0111: the destination has an object of this UID. Whose it is depends on whether ours may have arrived."""

    def deliver(self, queue, statuses, times=2):
        left = list(statuses)
        with raw_scp(answer, lambda _: left.pop(0), port=queue.settings.destinations[0].port), delivery_worker(queue) as worker:
            for _ in range(times):
                queue.let_waits_pass()
                worker._out_of_reach = False
                worker.deliver_due(NEVER)
        return [(row.state, row.attempts) for row in queue.rows()]

    def test_after_an_attempt_without_an_answer_it_is_stored(self, queue_for):
        queue = queue_for(closed_port())
        queue.analyse_one()
        assert self.deliver(queue, [None, 0x0111]) == [("sent", 2)]
        assert audit_of(queue)[-1].event == "result-warning"
        assert "was lost" in audit_of(queue)[-1].detail

    def test_a_failure_in_between_changes_nothing_in_that(self, queue_for):
        queue = queue_for(closed_port())
        queue.analyse_one()
        assert self.deliver(queue, [None, 0xA700, 0x0111], times=3) == [("sent", 3)]

    @pytest.mark.parametrize("statuses", [[0x0111], [0xA700, 0x0111], [0xC000, 0x0111]])
    def test_otherwise_it_is_held_at_once_with_the_reason(self, queue_for, statuses):
        queue = queue_for(closed_port())
        queue.analyse_one()
        assert self.deliver(queue, statuses, times=len(statuses)) == [("held", len(statuses))]
        assert "holds an object with this SOP instance UID" in queue.rows()[0].reason

    def test_one_that_is_sent_again_is_held_and_the_reason_says_that_it_is_there(self, queue_for):
        queue = queue_for(closed_port())
        queue.analyse_one()
        assert self.deliver(queue, [0], times=1) == [("sent", 1)]
        with write(queue.engine) as connection:
            connection.execute(text("UPDATE deliveries SET state = 'waiting', attempts = 0"))  # as `queue retry` does
        assert self.deliver(queue, [0x0111], times=1) == [("held", 1)]
        assert "stored this object before and has it still" in queue.rows()[0].reason

    def test_an_attempt_that_did_not_reach_it_is_none_without_an_answer(self, queue_for):
        queue = queue_for(closed_port())
        queue.analyse_one()
        with delivery_worker(queue) as worker:
            worker.deliver_due(NEVER)
        assert self.deliver(queue, [0x0111], times=1) == [("held", 2)]

    def test_a_sender_that_died_while_it_sent_left_one(self, queue_for):
        queue = queue_for(closed_port())
        queue.analyse_one()
        assert len(deliveries.claim(queue.engine, "pacs0", "a sender that died", 10, 60)) == 1
        with queue.engine.begin() as connection:
            connection.execute(text("UPDATE deliveries SET lease_until = 0"))  # as who sees to the leases of the dead does
        assert self.deliver(queue, [0x0111], times=1) == [("sent", 2)]

    def test_over_an_association_that_was_kept_open(self, queue_for):
        """The response to the second object is lost; it is sent once more at once, over another association."""
        queue = queue_for(closed_port())
        left = [0, None, 0x0111]
        with raw_scp(answer, lambda _: left.pop(0), port=queue.settings.destinations[0].port), delivery_worker(queue) as worker:
            for _ in range(2):
                queue.analyse_one()
                worker.deliver_due(NEVER)
        assert [(row.state, row.attempts) for row in queue.rows()] == [("sent", 1)] * 2


def test_a_result_waits_as_long_as_its_destination_is_to_have_the_image_first(queue_for):
    with storage_scp() as scp:
        queue = queue_for(scp.port, delay_s=3600.0)
        queue.analyse_one()
        with delivery_worker(queue) as worker:
            worker.deliver_due(NEVER)
            assert queue.states() == ["waiting"]
            with write(queue.engine) as connection:
                connection.execute(text("UPDATE deliveries SET created_at = created_at - 3601"))
            worker.deliver_due(NEVER)
    until(lambda: queue.states() == ["sent"])
    assert len(scp.uids) == 1
    assert scp.received[0][1] == ExplicitVRLittleEndian
    assert SecondaryCaptureImageStorage == OFFER[0]
