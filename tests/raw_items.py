"""Association PDUs written item by item, right or odd, and an SCP that answers with them."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian

from tests.waiting import PATIENCE_S

DX, EXPLICIT = DigitalXRayImageStorageForPresentation.encode(), ExplicitVRLittleEndian.encode()
APPLICATION = b"1.2.840.10008.3.1.1.1"
UNKNOWN = (0x00, 0x11, 0x5A, 0x5F, 0x7F, 0xFF)
"""Item types that nobody has defined."""


def item(kind: int, value: bytes) -> bytes:
    return struct.pack(">BBH", kind, 0, len(value)) + value


LENGTH, IMPLEMENTATION, VERSION = item(0x51, struct.pack(">L", 16384)), item(0x52, b"1.2.3"), item(0x55, b"RAW")
USER = item(0x50, LENGTH + IMPLEMENTATION + VERSION)


def proposed(number: int, *syntaxes: bytes, abstract: bytes = DX, more: bytes = b"") -> bytes:
    inner = item(0x30, abstract) + b"".join(item(0x40, syntax) for syntax in syntaxes) + more
    return item(0x20, bytes((number, 0, 0, 0)) + inner)


CONTEXT = proposed(1, EXPLICIT)


def request(
    items: bytes = item(0x10, APPLICATION) + CONTEXT + USER,
    *,
    called: bytes = b"NODE".ljust(16),
    calling: bytes = b"RAW".ljust(16),
    version: int = 1,
    pdu_type: int = 0x01,
) -> bytes:
    """An A-ASSOCIATE-RQ (or -AC), header included."""
    body = struct.pack(">HH", version, 0) + called + calling + bytes(32) + items
    return struct.pack(">BBL", pdu_type, 0, len(body)) + body


def contexts_of(body: bytes) -> dict[int, tuple[int, bytes]]:
    """From the body of an A-ASSOCIATE-AC: for each presentation context its result and transfer syntax."""
    found, at = {}, 68
    while at < len(body):
        kind, length = struct.unpack_from(">BxH", body, at)
        if kind == 0x21:
            found[body[at + 4]] = body[at + 6], body[at + 12 : at + 4 + length]
        at += 4 + length
    return found


@dataclass
class RawScp:
    """What an SCP of raw PDUs has been asked and answered, and the port that it listens on."""

    port: int = 0
    requests: list[bytes] = field(default_factory=list)
    stored: list[str] = field(default_factory=list)
    answers: list[dict[int, bytes]] = field(default_factory=list)


def accept(asked: bytes, *, result: int = 0, syntax: bytes | None = None) -> bytes:
    """Items of the presentation contexts of an A-ASSOCIATE-AC: each that was proposed, with its first transfer syntax."""
    found, at = b"", 74
    while at < len(asked):
        kind, length = struct.unpack_from(">BxH", asked, at)
        if kind == 0x20:
            inner, chosen = at + 8, b""
            while inner < at + 4 + length:
                sub, size = struct.unpack_from(">BxH", asked, inner)
                if sub == 0x40 and not chosen:
                    chosen = asked[inner + 4 : inner + 4 + size]
                inner += 4 + size
            found += item(0x21, bytes((asked[at + 4], 0, result, 0)) + item(0x40, chosen if syntax is None else syntax))
        at += 4 + length
    return found


@contextmanager
def raw_scp(
    answer: Callable[[bytes], bytes],
    status: Callable[[int], int | None] = lambda _: 0x0000,
    host: str = "127.0.0.1",
    port: int = 0,
    change: Callable[[dict[int, bytes]], dict[int, bytes] | bytes] = lambda elements: elements,
    times: Callable[[int], int] = lambda _: 1,
    before: Callable[[bytes], bytes] = lambda _: b"",
) -> Iterator[RawScp]:
    """Listens; answers an association request with what `answer` makes of it, and each DIMSE request with a status.

    Args:
        answer: the PDU for a request's PDU.
        status: of the response to a C-STORE, the first, the second …; None closes the connection without one.
        host: the address to listen on.
        port: 0 for any.
        change: makes the elements of the response to a C-STORE, by number, into others, or into bytes that are sent instead.
        times: how often the response to a C-STORE is sent, the first, the second …; 0 sends a request to release instead.
        before: what is sent before the response to a C-STORE, for the PDU of the association request.
    """
    scp = RawScp()
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    server = socket.create_server((host, port), family=family)
    scp.port = server.getsockname()[1]

    def serve(connection: socket.socket) -> None:
        with connection, suppress(OSError, EOFError, struct.error):
            _talk(connection, scp, answer, status, change, times, before)

    def run() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield scp
    finally:
        server.shutdown(socket.SHUT_RDWR)
        server.close()
        thread.join(PATIENCE_S)


def read_pdu(connection: socket.socket) -> tuple[int, bytes]:
    head = _read(connection, 6)
    kind, length = struct.unpack(">BxL", head)
    return kind, head + _read(connection, length)


def _talk(
    connection: socket.socket,
    scp: RawScp,
    answer: Callable[[bytes], bytes],
    status: Callable[[int], int | None],
    change: Callable[[dict[int, bytes]], dict[int, bytes] | bytes],
    times: Callable[[int], int],
    before: Callable[[bytes], bytes],
) -> None:
    connection.settimeout(PATIENCE_S)
    _, asked = read_pdu(connection)
    scp.requests.append(asked)
    connection.sendall(answer(asked))
    command: dict[int, bytes] = {}
    while True:
        kind, pdu = read_pdu(connection)
        if kind == 0x05:
            connection.sendall(struct.pack(">BBLL", 0x06, 0, 4, 0))
            return
        if kind != 0x04:
            return
        at = 6
        while at < len(pdu):
            length, context, control = struct.unpack_from(">LBB", pdu, at)
            piece = pdu[at + 6 : at + 4 + length]
            at += 4 + length
            if control & 1:
                command = _elements(piece)  # ours is never in fragments: the SCP's maximum length is larger
            if not control & 2 or (control & 1 and command[0x0800] != b"\x01\x01"):
                continue
            if command[0x0100][1] & 0x80:
                scp.answers.append(command)
                continue
            code, changed, count = 0x0000, lambda elements: elements, 1
            if command[0x0100] == b"\x01\x00":
                scp.stored.append(command[0x1000].decode().rstrip("\x00"))
                chosen = status(len(scp.stored))
                if chosen is None:
                    return
                code, changed, count = chosen, change, times(len(scp.stored))
                connection.sendall(before(asked))
            response = _response(command, code, context, changed)
            connection.sendall(response * count or struct.pack(">BBLL", 0x05, 0, 4, 0))


def _response(
    command: dict[int, bytes],
    status: int,
    context: int,
    change: Callable[[dict[int, bytes]], dict[int, bytes] | bytes],
) -> bytes:
    def element(number: int, value: bytes) -> bytes:
        return struct.pack("<HHL", 0, number, len(value)) + value

    kind = struct.unpack("<H", command[0x0100])[0] | 0x8000
    elements = {0x0002: command[0x0002], 0x0100: struct.pack("<H", kind), 0x0120: command[0x0110]}
    elements |= {0x0800: b"\x01\x01", 0x0900: struct.pack("<H", status)}
    if 0x1000 in command:
        elements[0x1000] = command[0x1000]
    changed = change(elements)
    body = changed if isinstance(changed, bytes) else b"".join(element(number, changed[number]) for number in sorted(changed))
    if not isinstance(changed, bytes):
        body = element(0x0000, struct.pack("<L", len(body))) + body
    return struct.pack(">BBLLBB", 0x04, 0, len(body) + 6, len(body) + 2, context, 3) + body


def _elements(command: bytes) -> dict[int, bytes]:
    found, at = {}, 0
    while at < len(command):
        _, number, length = struct.unpack_from("<HHL", command, at)
        found[number] = command[at + 8 : at + 8 + length]
        at += 8 + length
    return found


def _read(connection: socket.socket, size: int) -> bytes:
    content = b""
    while len(content) < size:
        more = connection.recv(size - len(content))
        if not more:
            raise EOFError
        content += more
    return content
