"""The receiver against peers that speak the protocol in unusual ways, badly, or stop in the middle."""

from __future__ import annotations

import socket
import struct
import subprocess
import sys
import time

import pytest

from cxr_node.receive.transport.messages import MAXIMUM_PDU_SIZE
from tests.raw_peer import COMMAND, CONTEXT, LAST, raw_peer, store_command
from tests.receiver import Receiver, associated, encoded, radiograph, send
from tests.waiting import PATIENCE_S, wait_until


@pytest.fixture
def receiver(tmp_path):
    with Receiver(tmp_path / "data") as running:
        yield running


def assert_alive(receiver):
    with associated(receiver) as assoc:
        assert assoc.send_c_echo().Status == 0x0000


def test_command_and_data_set_in_one_pdu(receiver):
    ds = radiograph()
    with raw_peer(receiver) as peer:
        peer.send_pdu((COMMAND | LAST, store_command(ds.SOPInstanceUID)), (LAST, encoded(ds)))
        response = peer.read_response()
    assert (response.Status, response.MessageIDBeingRespondedTo) == (0x0000, 77)
    assert response.AffectedSOPInstanceUID == ds.SOPInstanceUID


def test_command_and_data_set_in_the_smallest_fragments(receiver):
    ds = radiograph(PixelData=b"\x01\x02")
    with raw_peer(receiver) as peer:
        command, content = store_command(ds.SOPInstanceUID), encoded(ds)
        for at in range(len(command)):
            peer.send_pdu((COMMAND | (LAST if at == len(command) - 1 else 0), command[at : at + 1]))
        for at in range(len(content)):
            peer.send_pdu((0, content[at : at + 1]))
        peer.send_pdu((LAST, b""))
        assert peer.read_response().Status == 0x0000
    (path,) = receiver.files("instances")
    assert path.read_bytes().endswith(content)


def test_a_pdu_far_longer_than_was_negotiated(receiver):
    ds = radiograph(PixelData=bytes(range(256)) * 8000)
    with raw_peer(receiver) as peer:
        peer.send_pdu((COMMAND | LAST, store_command(ds.SOPInstanceUID)))
        assert len(encoded(ds)) > 10 * MAXIMUM_PDU_SIZE
        peer.send_pdu((LAST, encoded(ds)))
        assert peer.read_response().Status == 0x0000
    (path,) = receiver.files("instances")
    assert path.read_bytes().endswith(encoded(ds))


def test_the_response_keeps_to_the_peers_maximum_length(receiver):
    ds = radiograph()
    with raw_peer(receiver, maximum_length=64) as peer:
        peer.send_pdu((COMMAND | LAST, store_command(ds.SOPInstanceUID)), (LAST, encoded(ds)))
        lengths = []
        while True:
            _, body = peer.read_pdu()
            lengths.append(len(body))
            if body[5] & LAST:
                break
    assert len(lengths) > 1
    assert max(lengths) <= 64


def test_a_store_without_a_data_set_is_answered(receiver):
    with raw_peer(receiver) as peer:
        peer.send_pdu((COMMAND | LAST, store_command("1.2.3", has_data_set=False)))
        assert peer.read_response().Status == 0xC000
        ds = radiograph()
        peer.send_pdu((COMMAND | LAST, store_command(ds.SOPInstanceUID)), (LAST, encoded(ds)))
        assert peer.read_response().Status == 0x0000


def test_a_uid_that_is_too_long_is_refused_and_the_association_lives_on(receiver):
    with raw_peer(receiver) as peer:
        for wrong in ("1." * 40 + "1", "../" * 100, "1.2\x00/3"):
            peer.send_pdu((COMMAND | LAST, store_command(wrong)), (LAST, b"xx"))
            assert peer.read_response().Status == 0x0117
    assert receiver.files("incoming") == receiver.files("unparsed") == []


@pytest.mark.parametrize(
    "pdvs",
    [
        [(COMMAND | LAST, b"no command set")],
        [(COMMAND | LAST, store_command("1.2.3")), (COMMAND | LAST, store_command("1.2.3"))],
        [(COMMAND, b"\x00" * 60000), (COMMAND, b"\x00" * 60000)],
        [(LAST, b"a data set without a command")],
    ],
)
def test_nonsense_is_answered_with_an_abort_and_nothing_else_suffers(receiver, pdvs):
    with raw_peer(receiver) as peer:
        peer.send_pdu(*pdvs)
        assert peer.read_pdu()[0] == 0x07
    assert_alive(receiver)
    wait_until(lambda: receiver.files("incoming") == [], "the file of the data set removed")


@pytest.mark.parametrize(
    "pdu",
    [
        struct.pack(">BxLLBB", 0x04, 6, 100, CONTEXT, LAST),
        struct.pack(">BxLLBB", 0x04, 6, 1, CONTEXT, LAST),
        struct.pack(">BxL", 0x04, 3) + b"abc",
        struct.pack(">BxL", 0x42, 4) + b"abcd",
        struct.pack(">BxL", 0x05, 2**31),
    ],
)
def test_a_malformed_pdu_is_answered_with_an_abort(receiver, pdu):
    with raw_peer(receiver) as peer:
        peer.connection.sendall(pdu)
        assert peer.read_pdu()[0] == 0x07
    assert_alive(receiver)


def test_a_presentation_context_that_was_not_accepted_ends_the_association(receiver):
    with raw_peer(receiver) as peer:
        peer.send_pdu((COMMAND | LAST, store_command("1.2.3")), context=99)
        assert peer.read_pdu()[0] == 0x07
    assert_alive(receiver)


def test_an_abort_in_the_middle_of_a_data_set_leaves_nothing(receiver):
    ds = radiograph()
    with raw_peer(receiver) as peer:
        peer.send_pdu((COMMAND | LAST, store_command(ds.SOPInstanceUID)), (0, encoded(ds)[:1000]))
        wait_until(lambda: receiver.files("incoming"), "a file in incoming/")
        peer.connection.sendall(bytes.fromhex("070000000004 00000000"))
        wait_until(lambda: receiver.files("incoming") == [], "the file removed")
    assert receiver.rows("instances") == []


def test_a_connection_cut_in_the_middle_of_a_pdu_leaves_nothing(receiver):
    with raw_peer(receiver) as peer:
        peer.send_pdu((COMMAND | LAST, store_command("1.2.3")))
        peer.connection.sendall(struct.pack(">BxLLBB", 0x04, 1000, 996, CONTEXT, LAST) + b"half")
        wait_until(lambda: receiver.files("incoming"), "a file in incoming/")
    wait_until(lambda: receiver.files("incoming") == [], "the file removed")
    assert receiver.rows("instances") == []


def test_a_peer_that_falls_silent_is_cut_off(tmp_path):
    with Receiver(tmp_path, network_timeout_s=2.0) as receiver:
        with raw_peer(receiver) as idle, raw_peer(receiver) as stalled:
            stalled.connection.sendall(struct.pack(">BxL", 0x04, 1000))
            assert idle.read_pdu()[0] == 0x07
            with pytest.raises((EOFError, ConnectionError)):
                stalled.read_pdu()
        assert_alive(receiver)


def test_a_release_is_answered(receiver):
    with raw_peer(receiver) as peer:
        peer.connection.sendall(bytes.fromhex("050000000004 00000000"))
        assert peer.read_pdu()[0] == 0x06


def test_stop_stores_what_is_being_sent_and_refuses_what_comes_later(tmp_path):
    ds = radiograph()
    receiver = Receiver(tmp_path)
    with receiver, raw_peer(receiver) as peer:
        content = encoded(ds)
        peer.send_pdu((COMMAND | LAST, store_command(ds.SOPInstanceUID)), (0, content[:1000]))
        wait_until(lambda: receiver.files("incoming"), "a file in incoming/")
        receiver._stop.set()
        wait_until(lambda: not _listening(receiver.port), "the port closed")
        peer.send_pdu((LAST, content[1000:]))
        assert peer.read_response().Status == 0x0000
    assert [row["sop_instance_uid"] for row in receiver.rows("instances")] == [ds.SOPInstanceUID]


def test_a_connection_without_a_request_takes_nobodys_place(tmp_path):
    with Receiver(tmp_path, max_associations=1) as receiver:
        for _ in range(3):
            socket.create_connection(("127.0.0.1", receiver.port)).close()

        def is_welcome():
            with associated(receiver) as assoc:
                return assoc.is_established

        wait_until(is_welcome, "an association accepted")


def test_stop_cuts_off_a_peer_that_does_not_end(tmp_path):
    receiver = Receiver(tmp_path)
    with (
        receiver,
        socket.create_connection(("127.0.0.1", receiver.port)),
        raw_peer(receiver) as idle,
        raw_peer(receiver) as stalled,
    ):
        stalled.send_pdu((COMMAND | LAST, store_command("1.2.3")))
        stalled.connection.sendall(struct.pack(">BxL", 0x04, 1000))
        started = time.monotonic()
        receiver.stop()
        assert time.monotonic() - started < 30, "of what a stop may take at most"
        assert idle.read_pdu()[0] == 0x07
    assert receiver.files("incoming") == []


def test_an_instance_is_stored_after_each_kind_of_nonsense(receiver):
    with raw_peer(receiver) as peer:
        peer.send_pdu((COMMAND | LAST, b"no command set"))
    with associated(receiver) as assoc:
        assert send(assoc, radiograph()) == 0x0000


_CHILD = """
import sys, threading
from pathlib import Path
from cxr_node import logs
from cxr_node.receive import scp
from cxr_node.settings import NodeSettings, ReceiveSettings, Settings
logs.set_up("info", "receive")
node = NodeSettings(ae_title="NODE", port=0, data_dir=Path(sys.argv[1]))
settings = Settings(node=node, receive=ReceiveSettings(min_free_mb=0, processes=1))
scp.run(settings, threading.Event(), lambda host, port, tls_port: print(port, flush=True))
"""


def test_killed_in_the_middle_of_a_transfer_it_loses_nothing_that_it_acknowledged(tmp_path):
    first, second = radiograph(), radiograph()
    receiver = Receiver(tmp_path)
    child = subprocess.Popen([sys.executable, "-c", _CHILD, str(tmp_path)], stdout=subprocess.PIPE)
    try:
        receiver.port = int(child.stdout.readline())
        with raw_peer(receiver) as peer:
            peer.send_pdu((COMMAND | LAST, store_command(first.SOPInstanceUID)), (LAST, encoded(first)))
            assert peer.read_response().Status == 0x0000
            peer.send_pdu((COMMAND | LAST, store_command(second.SOPInstanceUID)), (0, encoded(second)[:2000]))
            wait_until(lambda: receiver.files("incoming"), "a file in incoming/")
            child.kill()
            child.wait(PATIENCE_S)
    finally:
        child.kill()
        child.wait(PATIENCE_S)
        child.stdout.close()
    assert len(receiver.files("incoming")) == 1
    with receiver:
        assert receiver.files("incoming") == []
        assert [row["sop_instance_uid"] for row in receiver.rows("instances")] == [first.SOPInstanceUID]
        assert (receiver.folder / receiver.rows("instances")[0]["path"]).read_bytes().endswith(encoded(first))
        with associated(receiver) as assoc:
            assert [send(assoc, first), send(assoc, second)] == [0x0000, 0x0000]
    assert len(receiver.rows("jobs")) == 2


def _listening(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
