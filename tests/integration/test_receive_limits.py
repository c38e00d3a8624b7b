"""Slow, greedy and endless peers against the real listener: each loses its connection, and nobody else notices."""

from __future__ import annotations

import socket
import struct
import threading
import time
from contextlib import ExitStack

import pytest

from cxr_node.receive.transport import pending_connections
from cxr_node.settings import TlsSettings
from tests.certificates import Authority
from tests.raw_peer import (
    COMMAND,
    CONTEXT,
    LAST,
    RawPeer,
    pdu,
    raw_connection,
    raw_peer,
    store_command,
)
from tests.receiver import Receiver, associated, encoded, radiograph, send
from tests.waiting import PATIENCE_S, wait_until

NODE_PATIENCE_S = 2.0
LONGEST_S = 50.0
"""After which a connection is closed that the node's patience closes; what trickles in here takes longer."""


@pytest.fixture
def hurried(tmp_path, monkeypatch):
    """A receiver that waits shortly for an association request, and long for all else."""
    monkeypatch.setattr(pending_connections, "ASSOCIATION_REQUEST_TIMEOUT_S", NODE_PATIENCE_S)
    with Receiver(tmp_path / "data", max_associations=2, max_associations_per_sender=2) as running:
        yield running


@pytest.fixture
def impatient(tmp_path):
    with Receiver(tmp_path / "data", network_timeout_s=NODE_PATIENCE_S) as running:
        yield running


def closed_after(connection, drop=b""):
    """Seconds until the node ends a connection on which a byte of `drop` comes three times a second."""
    started = time.monotonic()
    ended = threading.Event()

    def drip():
        for at in range(len(drop)):
            try:
                connection.sendall(drop[at : at + 1])
            except OSError:
                return
            if ended.wait(0.3):
                return

    thread = threading.Thread(target=drip)
    thread.start()
    try:
        connection.settimeout(PATIENCE_S)
        try:
            while connection.recv(4096):
                pass
        except ConnectionError:
            pass
        return time.monotonic() - started
    finally:
        ended.set()
        thread.join(PATIENCE_S)


def request():
    """An association request, as bytes."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(b"\x03" + bytes(5))
        with pytest.raises(AssertionError):
            RawPeer(theirs).request_association()
        return ours.recv(65536)


SLOW = {
    "says nothing": b"",
    "a byte now and then": request(),
    "an endless request": b"\x01\x00\x00\x03\xff\xff" + bytes(1000),
}


@pytest.mark.parametrize("kind", SLOW)
def test_a_peer_that_only_knocks_is_dropped(hurried, kind):
    with raw_connection(hurried) as peer:
        assert closed_after(peer.connection, SLOW[kind]) < LONGEST_S
    with associated(hurried) as assoc:
        assert assoc.send_c_echo().Status == 0x0000


def test_a_request_of_gigabytes_is_not_waited_for(tmp_path):
    with Receiver(tmp_path) as receiver, raw_connection(receiver) as peer:
        peer.connection.sendall(b"\x01\x00\xff\xff\xff\xf0" + bytes(100))
        assert peer.read_pdu()[0] == 0x07


def data_set_in_crumbs():
    return b"".join(pdu((0, b"x")) for _ in range(1000))


@pytest.mark.parametrize("crumbs", [pdu((0, bytes(30000))), data_set_in_crumbs()], ids=["in a PDU", "in many PDUs"])
def test_a_data_set_that_trickles_is_dropped(impatient, crumbs):
    with raw_peer(impatient) as peer:
        peer.send_pdu((COMMAND | LAST, store_command("1.2.3")))
        assert closed_after(peer.connection, crumbs) < LONGEST_S
    wait_until(lambda: impatient.files("incoming") == [], "the file removed")


def test_a_command_that_trickles_is_dropped(impatient):
    with raw_peer(impatient) as peer:
        assert closed_after(peer.connection, b"".join(pdu((COMMAND, b"\x00")) for _ in range(1000))) < LONGEST_S


def test_a_sender_that_is_slow_but_not_too_slow_is_served(tmp_path):
    content = encoded(ds := radiograph())
    with Receiver(tmp_path, network_timeout_s=10.0) as patient, raw_peer(patient) as peer:
        peer.send_pdu((COMMAND | LAST, store_command(ds.SOPInstanceUID)))
        for at in range(0, len(content), 1024):
            peer.send_pdu((0, content[at : at + 1024]))
            time.sleep(0.02)  # the pace is what is tested
        peer.send_pdu((LAST, b""))
        assert peer.read_response().Status == 0x0000


def test_a_peer_that_is_silent_in_the_tls_handshake_is_dropped(tmp_path):
    pair = Authority(tmp_path / "authority").issue("node.example")
    tls = TlsSettings(listen=True, certificate=pair.certificate, key=pair.key, require_client_certificate=False)
    with Receiver(tmp_path / "data", tls=tls, network_timeout_s=NODE_PATIENCE_S) as receiver, raw_connection(receiver) as peer:
        assert closed_after(peer.connection, b"\x16\x03\x01\x10\x00" + bytes(1000)) < LONGEST_S
        wait_until(lambda: receiver.rows("audit"), "the refusal in the audit log")
        assert "handshake in time" in receiver.rows("audit")[0]["detail"]


def rejection(peer):
    """Result, source and reason of the A-ASSOCIATE-RJ (PS3.8 section 9.3.4)."""
    with pytest.raises(AssertionError, match="not accepted"):
        peer.request_association()
    return peer.last[1:4]


def test_one_address_gets_its_share_and_others_theirs(tmp_path):
    with Receiver(tmp_path, max_associations=6, max_associations_per_sender=2) as receiver, ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(raw_peer(receiver))
        peer = stack.enter_context(raw_connection(receiver))
        assert rejection(peer) == b"\x02\x03\x02"
        with socket.create_connection(("127.0.0.1", receiver.port), source_address=("127.0.0.2", 0)) as other:
            RawPeer(other).request_association()
    events = [row["detail"] for row in receiver.rows("audit") if row["event"] == "association-refused"]
    assert events == ["too many associations at the same time"]


def is_let_in_and_gone(receiver, last_words):
    """Whether there was a place; it was left with this PDU. One of before may be on its way out."""
    with raw_connection(receiver) as peer:
        try:
            peer.request_association()
        except (AssertionError, EOFError, ConnectionError):
            return False
        peer.connection.sendall(bytes.fromhex(last_words))
        return not last_words.startswith("05") or peer.read_pdu()[0] == 0x06


def test_a_place_is_free_again_whatever_became_of_it(hurried):
    """Connected and gone, silent, aborted, released, refused: each gives back what it took, once."""
    with ExitStack() as knocking:
        silent = [knocking.enter_context(raw_connection(hurried)) for _ in range(3)]
        for _ in range(3):
            with raw_connection(hurried):
                pass
            wait_until(lambda: is_let_in_and_gone(hurried, "070000000004 00000000"), "a place for one that aborts")
            wait_until(lambda: is_let_in_and_gone(hurried, "050000000004 00000000"), "a place for one that releases")
        for one in silent:
            closed_after(one.connection)

    def both_places():
        with ExitStack() as stack:
            try:
                peers = [stack.enter_context(raw_peer(hurried)) for _ in range(2)]
            except (AssertionError, EOFError, ConnectionError):
                return False
            third = stack.enter_context(raw_connection(hurried))
            return len(peers) == 2 and rejection(third) == b"\x02\x03\x02"

    wait_until(both_places, "two places, and no third")


def test_of_who_floods_with_connections_the_oldest_is_closed(tmp_path):
    with Receiver(tmp_path, max_associations=8, max_associations_per_sender=2) as receiver, ExitStack() as stack:
        peers = [stack.enter_context(raw_connection(receiver)) for _ in range(8)]
        assert all(peer.connection.recv(1) == b"" for peer in peers[:4])
        peers[-1].request_association()
        with socket.create_connection(("127.0.0.1", receiver.port), source_address=("127.0.0.2", 0)) as other:
            RawPeer(other).request_association()


def test_too_many_in_a_minute_are_refused_before_their_data(tmp_path):
    with Receiver(tmp_path, max_instances_per_minute=2) as receiver:
        with associated(receiver) as assoc:
            assert [send(assoc, radiograph()) for _ in range(4)] == [0x0000, 0x0000, 0xA700, 0xA700]
        with associated(receiver, calling="MODALITY2") as assoc:
            assert send(assoc, radiograph()) == 0x0000
        refused = [row for row in receiver.rows("audit") if row["event"] == "instance-refused"]
    assert [row["detail"] for row in refused] == ["A700: Too many instances in a minute; send it again later"]


def test_a_data_set_that_is_too_large_is_refused_and_the_association_lives_on(tmp_path):
    with Receiver(tmp_path, max_instance_mb=1) as receiver:
        with associated(receiver) as assoc:
            assert send(assoc, radiograph(PixelData=bytes(3 * 2**19))) == 0xA700
            assert send(assoc, radiograph(PixelData=bytes(2**19))) == 0x0000
        assert len(receiver.files("instances")) == 1
        assert receiver.files("incoming") == receiver.files("unparsed") == []


def test_a_data_set_without_end_is_broken_off(tmp_path):
    with Receiver(tmp_path, max_instance_mb=1) as receiver, raw_peer(receiver) as peer:
        peer.send_pdu((COMMAND | LAST, store_command("1.2.3")))
        without_end = (struct.pack(">BxLLBB", 0x04, 100006, 100002, CONTEXT, 0) + bytes(100000)) * 1000
        with pytest.raises((ConnectionError, TimeoutError)):
            peer.connection.sendall(without_end)
        assert receiver.files("incoming") == []


def test_what_follows_an_invalid_pdu_is_not_taken_for_more_of_them(tmp_path, capfd):
    with Receiver(tmp_path) as receiver, raw_peer(receiver) as peer:
        peer.connection.sendall(bytes(2**20))
        assert peer.connection.recv(1) == b"\x07", "an A-ABORT"
        peer.connection.shutdown(socket.SHUT_WR)
        assert len(b"".join(iter(lambda: peer.connection.recv(4096), b""))) == 9, "one of them, and then the end"
    assert capfd.readouterr().out.count("association aborted") == 1
