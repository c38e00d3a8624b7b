"""Makes what peers send by its grammar, with rules broken here and there: association items, command sets, storage commitment."""

from __future__ import annotations

import struct
from random import Random

_UIDS = (
    *(b"1.2.840.10008.3.1.1.1", b"1.2.840.10008.5.1.4.1.1.1.1", b"1.2.840.10008.1.20.1", b"1.2.840.10008.1.1"),
    *(b"1.2.840.10008.1.2.1", b"1.2.840.10008.1.2", b"1.2.840.10008.1.2.4.80", b"0.0", b"", b"1.2.3\x00", b" 1.2.3 "),
    *(b"no UID", b"1" * 65, b"1." * 40, b"\xe9" * 64, b"../../etc/passwd", b"1.2\x00.3", b"1..2", b"."),
)
_ITEMS = (0x10, 0x20, 0x21, 0x30, 0x40, 0x50, 0x51, 0x52, 0x53, 0x54, 0x55, 0x56, 0x57, 0x58, 0x59, 0x00, 0xFF)
_COMMANDS = (0x0001, 0x8001, 0x0020, 0x0030, 0x8030, 0x0100, 0x8100, 0x0130, 0x8130, 0x0140, 0x0FFF, 0x0000, 0xFFFF)
_COMMAND_TAGS = (0x0000, 0x0002, 0x0003, 0x0100, 0x0110, 0x0120, 0x0600, 0x0700, 0x0800, 0x0900, 0x0902, 0x1000, 0x1001, 0x1002)
_COMMAND_TAGS += (0x1005, 0x1008, 0x1021, 0x1023, 0x1030, 0x1031)


def association(random: Random, pdu_type: int) -> bytes:
    """An A-ASSOCIATE-RQ (1) or -AC (2), header included."""
    body = struct.pack(">HH", random.choice((1, 1, 1, 0, 0xFFFF)), 0)
    body += _title(random) + _title(random) + random.choice((bytes(32), random.randbytes(32)))
    body += _item(random, 0x10, _uid(random))
    for _ in range(random.choice((0, 1, 1, 2, 5, 128, 200))):
        body += _context(random, 0x20 if pdu_type == 1 else 0x21)
    body += _user(random) * random.choice((0, 1, 1, 1, 2))
    for _ in range(random.choice((0, 0, 0, 1, 3))):
        body += _item(random, random.choice(_ITEMS), random.randbytes(random.randrange(40)))
    return struct.pack(">BBL", pdu_type, 0, len(body)) + body


def command_set(random: Random) -> bytes:
    """A command set, Implicit VR Little Endian."""
    chosen = [tag for tag in _COMMAND_TAGS if random.random() < 0.6]
    chosen += [random.choice(_COMMAND_TAGS) for _ in range(random.choice((0, 0, 0, 1, 100)))]
    if random.random() < 0.9:
        chosen.sort()
    body = b"".join(_command_element(random, tag) for tag in chosen)
    return body if random.random() < 0.9 else body[: random.randrange(len(body) + 1)]


def commitment(random: Random, *, explicit: bool) -> bytes:
    """The Action or Event Information of storage commitment, little endian."""
    content = b""
    if random.random() < 0.9:
        content += _element(random, 0x1195, b"UI", _uid(random), explicit)
    for sequence in (0x1199, 0x1198):
        if random.random() < 0.7:
            items = b"".join(_reference(random, explicit) for _ in range(random.choice((0, 1, 2, 20, 300))))
            content += _sequence(random, sequence, items, explicit)
    if random.random() < 0.1:
        content += _element(random, 0x1195, b"UI", _uid(random), explicit)
    return content if random.random() < 0.9 else content[: random.randrange(len(content) + 1)]


def message(random: Random, context: int, *, explicit: bool = True) -> bytes:
    """An N-ACTION or N-EVENT-REPORT request as P-DATA-TF PDUs, mostly right in form."""
    kind, class_tag, instance_tag, type_tag = random.choice(((0x0130, 3, 0x1001, 0x1008), (0x0100, 2, 0x1000, 0x1002)))
    elements = [
        (class_tag, b"1.2.840.10008.1.20.1"),
        (0x0100, struct.pack("<H", kind)),
        (0x0110, struct.pack("<H", random.randrange(65536))),
        (0x0800, random.choice((b"\x00\x00", b"\x01\x00", b"\x01\x01"))),
        (instance_tag, random.choice((b"1.2.840.10008.1.20.1.1", _uid(random)))),
        (type_tag, struct.pack("<H", random.choice((1, 1, 1, 2, 9)))),
    ]
    body = b"".join(struct.pack("<HHL", 0, tag, len(value)) + value for tag, value in elements if random.random() < 0.98)
    command = struct.pack("<HHLL", 0, 0, 4, len(body)) + body
    pieces = [(3, command)]
    content, size = commitment(random, explicit=explicit), random.choice((1, 100, 16000))
    starts = range(0, len(content), max(size, len(content) // 50 + 1)) or [0]
    step = starts.step if isinstance(starts, range) else 1
    pieces += [(2 if start == starts[-1] else 0, content[start : start + step]) for start in starts]
    pdus = [struct.pack(">LBB", len(data) + 2, context, control) + data for control, data in pieces]
    return b"".join(struct.pack(">BBL", 4, 0, len(one)) + one for one in pdus)


def _title(random: Random) -> bytes:
    return random.choice((b"NODE", b"RAW", b"", b"\x00" * 16, b"A\x00garbage", random.randbytes(16), b"X" * 16)).ljust(16)[:16]


def _uid(random: Random) -> bytes:
    return random.choice(_UIDS) if random.random() < 0.9 else random.randbytes(random.randrange(70))


def _item(random: Random, kind: int, value: bytes) -> bytes:
    length = len(value) if random.random() < 0.98 else random.choice((0, 1, len(value) + 1, 0xFFFF))
    return struct.pack(">BBH", kind, random.choice((0, 0, 0xFF)), length) + value


def _context(random: Random, kind: int) -> bytes:
    inner = _item(random, 0x30, _uid(random)) if random.random() < 0.9 else b""
    for _ in range(random.choice((0, 1, 1, 2, 16, 80))):
        inner += _item(random, 0x40, _uid(random))
    head = bytes((random.choice((1, 3, 5, 127, 255, 0, 2)), 0, random.choice((0, 0, 1, 3, 4, 99)), 0))
    return _item(random, kind, head + inner if random.random() < 0.97 else head[: random.randrange(5)])


def _user(random: Random) -> bytes:
    inner = b""
    for kind in random.sample(_ITEMS, random.randrange(len(_ITEMS))):
        uid = _uid(random)
        value = {
            0x51: struct.pack(">L", random.choice((0, 1, 8, 16384, 0xFFFFFFFF))),
            0x52: uid,
            0x54: struct.pack(">H", len(uid)) + uid + bytes((random.choice((0, 1, 2)), 1)),
            0x55: random.randbytes(random.randrange(20)),
            0x58: struct.pack(">BBH", random.choice((1, 2, 5, 9)), 1, 4) + b"user" + struct.pack(">H", 2) + b"pw",
        }.get(kind, random.randbytes(random.randrange(20)))
        inner += _item(random, kind, value) * random.choice((1, 1, 1, 2, 300))
    return _item(random, 0x50, inner[:65000])


def _command_element(random: Random, tag: int) -> bytes:
    if tag in (0x0100,):
        value = struct.pack("<H", random.choice(_COMMANDS))
    elif tag in (0x0002, 0x0003, 0x1000, 0x1001):
        value = _uid(random)
    elif tag == 0x0000:
        value = random.randbytes(4)
    else:
        value = random.choice((b"\x01\x00", b"\x01\x01", b"", random.randbytes(random.randrange(80))))
    length = len(value) if random.random() < 0.98 else random.choice((0, 1, len(value) + 1, 0xFFFFFFFF))
    group = 0 if random.random() < 0.99 else random.randrange(65536)
    return struct.pack("<HHL", group, tag, length) + value


def _element(random: Random, number: int, vr: bytes, value: bytes, explicit: bool) -> bytes:
    length = len(value) if random.random() < 0.98 else random.choice((0, 1, len(value) + 2, 0xFFFF))
    if explicit and random.random() < 0.98:
        return struct.pack("<HH2sH", 8, number, vr, length) + value
    return struct.pack("<HHL", 8, number, length) + value


def _sequence(random: Random, number: int, items: bytes, explicit: bool) -> bytes:
    is_open = random.random() < 0.5
    length = 0xFFFFFFFF if is_open else len(items) if random.random() < 0.97 else random.choice((0, 7, len(items) * 2))
    end = struct.pack("<HHL", 0xFFFE, 0xE0DD, 0) if is_open and random.random() < 0.95 else b""
    head = struct.pack("<HH2sHL", 8, number, b"SQ", 0, length) if explicit else struct.pack("<HHL", 8, number, length)
    return head + items + end


def _reference(random: Random, explicit: bool) -> bytes:
    inner = b""
    for number in (0x1150, 0x1155):
        if random.random() < 0.97:
            inner += _element(random, number, b"UI", _uid(random) if random.random() < 0.1 else b"1.2.3.4", explicit)
    if random.random() < 0.3:
        inner += _element(random, 0x1197, b"US", random.choice((b"\x10\x01", b"", b"\x01")), explicit)
    if random.random() < 0.05:
        inner += _sequence(random, 0x1199, _reference(random, explicit) if random.random() < 0.5 else b"", explicit)
    is_open = random.random() < 0.3
    end = struct.pack("<HHL", 0xFFFE, 0xE00D, 0) if is_open and random.random() < 0.97 else b""
    return struct.pack("<HHL", 0xFFFE, 0xE000, 0xFFFFFFFF if is_open else len(inner)) + inner + end
