"""Command sets (PS3.7 section 6.3), read and written by hand: those of C-STORE, and responses that refuse a request.

pynetdicom converts both through pydicom data sets, which takes a third of the processor time of receiving a small image and holds
the interpreter lock.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from cxr_node.receive.intake.admission import StoreResponse

_STORE_RQ = 0x0001
_RESPONSE = 0x8000
_CANCEL = 0x0FFF
_NO_DATA_SET = 0x0101
_CLASS_UID, _FIELD, _MESSAGE_ID, _DATA_SET_TYPE, _INSTANCE_UID = 0x0002, 0x0100, 0x0110, 0x0800, 0x1000
_REQUESTED_CLASS_UID, _REQUESTED_INSTANCE_UID = 0x0003, 0x1001
_RESPONDED_TO, _STATUS, _COMMENT = 0x0120, 0x0900, 0x0902
_LONGEST_COMMENT = 64
_MOST_ELEMENTS = 64
"""Of a command set; the standard has no message with more than some ten (PS3.7 annex E)."""

INVALID_ARGUMENT, NO_SUCH_CLASS, UNRECOGNISED = 0x0115, 0x0118, 0x0211
"""Statuses of requests that are refused, other than C-STORE (PS3.7 annex C.5)."""
SERVICES = {
    _STORE_RQ: "C-STORE",
    0x0010: "C-GET",
    0x0020: "C-FIND",
    0x0021: "C-MOVE",
    0x0030: "C-ECHO",
    0x0100: "N-EVENT-REPORT",
    0x0110: "N-GET",
    0x0120: "N-SET",
    0x0130: "N-ACTION",
    0x0140: "N-CREATE",
    0x0150: "N-DELETE",
}
"""Command Field of each request (PS3.7 annex E); that of its response has one more bit."""


@dataclass(frozen=True)
class Command:
    """A command set: its elements of group 0000 by number, and what it is."""

    elements: dict[int, bytes]
    field: int

    @property
    def is_request(self) -> bool:
        """Whether it asks for a response."""
        return not self.field & _RESPONSE and self.field != _CANCEL

    @property
    def service(self) -> str:
        """Of a request, the name of what it asks for."""
        return SERVICES.get(self.field, "")

    @property
    def sop_class_uid(self) -> str:
        """The SOP class that it is about, affected or requested; empty where it names none."""
        return _uid(self.elements.get(_CLASS_UID) or self.elements.get(_REQUESTED_CLASS_UID, b""))

    @property
    def message_id(self) -> int:
        """The number that a response to it names.

        Raises:
            ValueError: it has none.
        """
        if len(self.elements.get(_MESSAGE_ID, b"")) != 2:
            raise ValueError(f"a {self.service} request without message ID")
        return int.from_bytes(self.elements[_MESSAGE_ID], "little")


@dataclass(frozen=True)
class StoreCommand:
    """A C-STORE-RQ command. The UIDs are what the peer wrote, in whatever form."""

    message_id: int
    sop_class_uid: str
    sop_instance_uid: str
    has_data_set: bool


def read_command(command: bytes) -> Command:
    """Read an encoded command set.

    Raises:
        ValueError: it is broken, or of no service of DICOM; the text says how.
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
    if len(elements.get(_FIELD, b"")) != 2:
        raise ValueError("a command set without Command Field")
    (field,) = struct.unpack("<H", elements[_FIELD])
    if field != _CANCEL and field & ~_RESPONSE not in SERVICES:
        raise ValueError(f"a command of the unknown type 0x{field:04X}")
    return Command(elements, field)


def read_store_request(command: bytes | Command) -> StoreCommand | None:
    """The request that a command set is; None if it is another message.

    Raises:
        ValueError: the command set is broken, or lacks the message ID that the response needs.
    """
    read = command if isinstance(command, Command) else read_command(command)
    if read.field != _STORE_RQ:
        return None
    elements = read.elements
    return StoreCommand(
        message_id=read.message_id,
        sop_class_uid=_uid(elements.get(_CLASS_UID, b"")),
        sop_instance_uid=_uid(elements.get(_INSTANCE_UID, b"")),
        has_data_set=elements.get(_DATA_SET_TYPE) != struct.pack("<H", _NO_DATA_SET),
    )


def write_store_response(request: StoreCommand, answer: StoreResponse) -> bytes:
    """The encoded command set of the C-STORE-RSP."""
    return _response(_STORE_RQ, request.message_id, answer, request.sop_class_uid, request.sop_instance_uid)


def write_refusal(request: Command, answer: StoreResponse) -> bytes:
    """The encoded command set of a response without a data set.

    Raises:
        ValueError: the request has no message ID.
    """
    instance_uid = _uid(request.elements.get(_INSTANCE_UID) or request.elements.get(_REQUESTED_INSTANCE_UID, b""))
    return _response(request.field, request.message_id, answer, request.sop_class_uid, instance_uid)


def _response(field: int, message_id: int, answer: StoreResponse, class_uid: str, instance_uid: str) -> bytes:
    elements = [_element(_CLASS_UID, _padded(class_uid, b"\x00"))]
    elements += [
        _element(_FIELD, struct.pack("<H", field | _RESPONSE)),
        _element(_RESPONDED_TO, struct.pack("<H", message_id)),
        _element(_DATA_SET_TYPE, struct.pack("<H", _NO_DATA_SET)),
        _element(_STATUS, struct.pack("<H", answer.status)),
    ]
    if answer.comment:
        elements.append(_element(_COMMENT, _padded(answer.comment[:_LONGEST_COMMENT], b" ")))
    elements.append(_element(_INSTANCE_UID, _padded(instance_uid, b"\x00")))
    body = b"".join(elements)
    return _element(0x0000, struct.pack("<L", len(body))) + body


def _uid(value: bytes) -> str:
    return value.decode("latin-1").rstrip(" \x00")


def _padded(text: str, padding: bytes) -> bytes:
    value = text.encode("latin-1", "replace")
    return value + padding * (len(value) % 2)


def _element(number: int, value: bytes) -> bytes:
    return struct.pack("<HHL", 0, number, len(value)) + value
