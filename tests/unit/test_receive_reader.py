"""Bytes off a connection: PDUs as they are, and what is taken for one of a single PDV."""

from __future__ import annotations

import socket
import struct

import pytest

from cxr_node.receive.transport.limiter import TransferDeadline
from cxr_node.receive.transport.reader import LONGEST_PORTION, Reader
from tests.waiting import PATIENCE_S


@pytest.fixture
def connection():
    """A reader, and the peer's end of its connection."""
    ours, theirs = socket.socketpair()
    ours.settimeout(PATIENCE_S)
    pace = TransferDeadline(20)
    pace.begin()
    with ours, theirs:
        yield Reader(ours, pace), theirs


def pdu(*pdvs, pdu_type=0x04):
    items = b"".join(struct.pack(">LBB", 2 + len(fragment), context, control) + fragment for context, control, fragment in pdvs)
    return struct.pack(">BxL", pdu_type, len(items)) + items


def with_first_byte_read(connection, content):
    """As when what comes before has been read, and the peer has sent more meanwhile."""
    reader, peer = connection
    peer.sendall(b"x" + content)
    assert bytes(reader.read(1)) == b"x"
    return reader


def test_pdus_of_one_pdv_are_taken_one_by_one(connection):
    reader = with_first_byte_read(connection, pdu((1, 3, b"command")) + pdu((255, 2, b"")) + pdu((5, 0, bytes(range(256)))))
    taken = []
    while pdv := reader.read_one_pdv():
        taken.append((*pdv[:2], bytes(pdv[2])))
    assert taken == [(1, 3, b"command"), (255, 2, b""), (5, 0, bytes(range(256)))]


def test_a_fragment_that_is_still_to_come_is_waited_for(connection):
    whole = pdu((1, 0, b"fragment"))
    reader = with_first_byte_read(connection, whole[:-3])
    connection[1].sendall(whole[-3:])
    _, _, fragment = reader.read_one_pdv()
    assert bytes(fragment) == b"fragment"


@pytest.mark.parametrize(
    "content",
    [
        pdu((1, 3, b"command"), (1, 2, b"data set")),
        pdu((1, 3, b"command"), pdu_type=0x05),
        struct.pack(">BxLLBB", 0x04, 5, 1, 1, 3) + b"x",
        struct.pack(">BxLLBB", 0x04, LONGEST_PORTION + 5, LONGEST_PORTION + 1, 1, 2),
        struct.pack(">BxLLBB", 0x04, 2, 0xFFFFFFFE, 1, 2),
        b"\x05\x00\x00\x00\x00\x04\x00\x00\x00\x00",
    ],
    ids=["two PDVs", "another type", "an item without its head", "a long fragment", "lengths that don't fit", "ten bytes"],
)
def test_anything_else_is_left_as_it_is(connection, content):
    reader = with_first_byte_read(connection, content)
    assert reader.read_one_pdv() is None
    assert bytes(reader.read(len(content))) == content


def test_tells_once_of_what_has_come(connection):
    reader = with_first_byte_read(connection, b"yz")
    assert reader.has_received()
    assert not reader.has_received()
    reader.read(2)
    assert not reader.has_received(), "it was there already"
    connection[1].sendall(b"z")
    reader.read(1)
    assert reader.has_received()
