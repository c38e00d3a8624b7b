"""Attacks by whatever listens where a destination is thought to be: answers without end, in bounded memory and time."""

from __future__ import annotations

import socket
import struct
import threading
import time
import tracemalloc
from contextlib import contextmanager, suppress
from dataclasses import replace

import pytest
from pynetdicom import AE, evt
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from cxr_node.deliver.request import Peer
from cxr_node.deliver.scu import Association
from cxr_node.errors import AssociationLost, DeliveryError
from tests.waiting import PATIENCE_S

MIB = 1024 * 1024


@contextmanager
def listening(answer):
    """A listener of raw bytes that runs `answer(connection)` for each connection."""

    def serve():
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            with connection, suppress(OSError):
                connection.settimeout(PATIENCE_S)
                answer(connection)

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
    thread.join(PATIENCE_S)


def peer(port, timeout_s=PATIENCE_S):
    return Peer("127.0.0.1", port, "PACS", "CXRNODE", timeout_s)


def pdu(kind, length, content=b""):
    return struct.pack(">BBL", kind, 0, length) + content


def flood(connection, head, total=64 * MIB):
    """Send a head, and then bytes until so many are sent or the node has gone; how many it took."""
    connection.recv(65536)
    connection.sendall(head)
    sent, chunk = 0, bytes(MIB)
    while sent < total:
        connection.sendall(chunk)
        sent += len(chunk)


@pytest.mark.parametrize(
    "head",
    [pdu(2, 0xFFFFFFFF, bytes(68)), pdu(3, 0x7FFFFFFF), pdu(4, 0x40000000), pdu(0x48, 0x40000000)],
    ids=["A-ASSOCIATE-AC of 4 GiB", "A-ASSOCIATE-RJ of 2 GiB", "data before the association", "no DICOM"],
)
def test_an_answer_of_gigabytes_takes_no_memory_and_is_named(head):
    tracemalloc.start()
    try:
        with listening(lambda connection: flood(connection, head)) as port, pytest.raises(DeliveryError, match="in DICOM"):
            Association(peer(port))
        assert tracemalloc.get_traced_memory()[1] < 16 * MIB
    finally:
        tracemalloc.stop()


def test_an_answer_that_trickles_is_not_waited_for():
    def trickle(connection):
        connection.recv(65536)
        connection.sendall(pdu(2, 10_000))
        for _ in range(100):
            connection.sendall(b"\0")
            time.sleep(0.5)

    started = time.monotonic()
    with listening(trickle) as port, pytest.raises(DeliveryError):
        Association(peer(port, timeout_s=1.0))
    assert time.monotonic() - started < 40, "the whole answer takes longer"


@contextmanager
def scp(on_echo):
    """A peer that accepts the association as it should, and answers C-ECHO with raw bytes."""
    ae = AE("PACS")
    ae.add_supported_context(Verification)

    def answer(event):
        connection = event.assoc.dul.socket.socket
        with suppress(OSError):
            on_echo(connection, event.context.context_id)
        return 0x0000

    server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_ECHO, answer)])
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()


def pdv(context_id, control, content):
    return struct.pack(">LBB", len(content) + 2, context_id, control) + content


def in_pdus(connection, items, count):
    for _ in range(count):
        connection.sendall(pdu(4, len(items), items))


@pytest.mark.parametrize(
    "on_echo",
    [
        lambda connection, cx: in_pdus(connection, pdv(cx, 0x01, bytes(60_000)), 500),
        lambda connection, cx: in_pdus(connection, pdv(cx, 0x00, bytes(120_000)), 500),
        lambda connection, cx: in_pdus(connection, pdv(cx, 0x01, b"") * 1000, 5000),
        lambda connection, cx: connection.sendall(pdu(4, 0x7FFFFFFF) + bytes(8 * MIB)),
    ],
    ids=["an endless command", "an endless data set", "PDVs of length zero", "a PDU of 2 GiB"],
)
def test_a_message_without_end_ends_the_association(on_echo):
    tracemalloc.start()
    try:
        with scp(on_echo) as port:
            association = Association(peer(port))
            association.peer = replace(association.peer, timeout_s=2.0)  # when the response is given up
            with pytest.raises(AssociationLost):
                association.echo()
            assert not association.is_open
        assert tracemalloc.get_traced_memory()[1] < 24 * MIB
    finally:
        tracemalloc.stop()


def test_a_peer_that_answers_as_it_should_notices_nothing():
    with scp(lambda *_: None) as port:
        association = Association(peer(port))
        for _ in range(3):
            association.echo()
        association.release()
