"""The command sets of C-STORE (PS3.7 section 9.3.1), read and written by hand.

pynetdicom converts both through pydicom data sets, which takes a third of the processor time of receiving a small image and holds
the interpreter lock.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from cxr_node.receive.intake.admission import StoreResponse

_STORE_RQ, _STORE_RSP = 0x0001, 0x8001
_NO_DATA_SET = 0x0101
_CLASS_UID, _FIELD, _MESSAGE_ID, _DATA_SET_TYPE, _INSTANCE_UID = 0x0002, 0x0100, 0x0110, 0x0800, 0x1000
_RESPONDED_TO, _STATUS, _COMMENT = 0x0120, 0x0900, 0x0902
_LONGEST_COMMENT = 64
_MOST_ELEMENTS = 64
"""Of a command set; the standard has no message with more than some ten (PS3.7 annex E)."""


@dataclass(frozen=True)
class StoreCommand:
    """A C-STORE-RQ command. The UIDs are what the peer wrote, in whatever form."""

    message_id: int
    sop_class_uid: str
    sop_instance_uid: str
    has_data_set: bool


def read_store_request(command: bytes) -> StoreCommand | None:
    """The request that an encoded command set is; None if it is another message.

    Raises:
        ValueError: the command set is broken, or lacks the message ID that the response needs.
    """
    elements: dict[int, bytes] = {}
    at = 0
    while at < len(command):
        if at + 8 > len(command):
            raise ValueError("a command element that is cut off")
        group, number, length = struct.unpack_from("<HHL", command, at)
        at += 8
        if group != 0 or at + length > len(command):
            raise ValueError("a command element that extends beyond its command set")
        elements[number] = command[at : at + length]
        at += length
        if len(elements) > _MOST_ELEMENTS:
            raise ValueError("a command set with too many elements")
    if elements.get(_FIELD) != struct.pack("<H", _STORE_RQ):
        return None
    if len(elements.get(_MESSAGE_ID, b"")) != 2:
        raise ValueError("a C-STORE request without message ID")
    return StoreCommand(
        message_id=struct.unpack("<H", elements[_MESSAGE_ID])[0],
        sop_class_uid=_uid(elements.get(_CLASS_UID, b"")),
        sop_instance_uid=_uid(elements.get(_INSTANCE_UID, b"")),
        has_data_set=elements.get(_DATA_SET_TYPE) != struct.pack("<H", _NO_DATA_SET),
    )


def write_store_response(request: StoreCommand, answer: StoreResponse) -> bytes:
    """The encoded command set of the C-STORE-RSP."""
    elements = [
        _element(_CLASS_UID, _padded(request.sop_class_uid, b"\x00")),
        _element(_FIELD, struct.pack("<H", _STORE_RSP)),
        _element(_RESPONDED_TO, struct.pack("<H", request.message_id)),
        _element(_DATA_SET_TYPE, struct.pack("<H", _NO_DATA_SET)),
        _element(_STATUS, struct.pack("<H", answer.status)),
    ]
    if answer.comment:
        elements.append(_element(_COMMENT, _padded(answer.comment[:_LONGEST_COMMENT], b" ")))
    elements.append(_element(_INSTANCE_UID, _padded(request.sop_instance_uid, b"\x00")))
    body = b"".join(elements)
    return _element(0x0000, struct.pack("<L", len(body))) + body


def _uid(value: bytes) -> str:
    return value.decode("latin-1").rstrip(" \x00")


def _padded(text: str, padding: bytes) -> bytes:
    value = text.encode("latin-1", "replace")
    return value + padding * (len(value) % 2)


def _element(number: int, value: bytes) -> bytes:
    return struct.pack("<HHL", 0, number, len(value)) + value
