"""Broken PDUs over recorded associations, against a real listener in this process."""

from __future__ import annotations

import socket
import struct
import tempfile
import threading
from collections import Counter
from functools import partial
from pathlib import Path
from random import Random

import psutil
from pydicom import uid
from pynetdicom import build_context
from pynetdicom.pdu import A_ASSOCIATE_RQ

from cxr_node.commitment.datasets import PUSH_MODEL
from tests.fuzz import grammar
from tests.fuzz.mutations import mutated
from tests.raw_peer import COMMAND, LAST, association_request, pdu, store_command
from tests.receiver import Receiver, associated, encoded, radiograph, send
from tests.waiting import PATIENCE_S, wait_until

_RELEASE, _ABORT = bytes.fromhex("050000000004 00000000"), bytes.fromhex("070000000004 00000000")
_BETWEEN_CHECKS = 200
_BY_GRAMMAR = 0.3
"""So many associations are made by `grammar`, the others recorded and broken."""


def recordings() -> list[list[bytes]]:
    """What peers send in good associations, PDU by PDU."""
    ds = radiograph(PixelData=bytes(512), SOPInstanceUID="1.2.3.4", StudyInstanceUID="1.2.3", SeriesInstanceUID="1.2.3.1")
    content, command = encoded(ds), store_command(ds.SOPInstanceUID)
    many = [build_context(str(sop_class)) for sop_class in (uid.DigitalXRayImageStorageForPresentation, "1.2.840.10008.1.1")]
    for number, context in enumerate(many):
        context.context_id = 2 * number + 1
    return [
        [
            A_ASSOCIATE_RQ(association_request()).encode(),
            pdu((COMMAND | LAST, command)),
            pdu((0, content[:300])),
            pdu((LAST, content[300:])),
            _RELEASE,
        ],
        [A_ASSOCIATE_RQ(association_request()).encode(), pdu((COMMAND | LAST, command), (LAST, content)), _RELEASE],
        [
            A_ASSOCIATE_RQ(association_request(many)).encode(),
            pdu((COMMAND | LAST, _echo()), context=3),
            pdu((COMMAND | LAST, command)),
            pdu((0, content[:100])),
            _ABORT,
        ],
    ]


def run(count: int, seed: int) -> Counter[str]:
    """Send `count` PDUs, broken ones among them; how often each answer came.

    AssertionError if the listener hangs, dies, keeps threads or files, or grows.
    """
    random, outcomes, recorded = Random(seed), Counter[str](), recordings()
    every = [one for recording in recorded for one in recording]
    process = psutil.Process()
    sent = associations = 0
    memory_bytes = threads = 0
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, _receiver(folder) as receiver:
        while sent < count:
            is_made = random.random() < _BY_GRAMMAR
            pdus = _made(random) if is_made else _broken(random.choice(recorded), random, every)
            outcomes[_exchange(receiver.port, pdus, sent, seed)] += 1
            sent += len(pdus)
            associations += 1
            if associations % _BETWEEN_CHECKS == 0 or sent >= count:
                wait_until(partial(_is_well, receiver), f"it lives on after {sent} PDUs of seed {seed}")
                if memory_bytes == 0:
                    memory_bytes, threads = process.memory_info().rss, threading.active_count()
        wait_until(lambda: receiver.files("incoming") == [], "nothing left in incoming/")
        wait_until(lambda: threading.active_count() <= threads + 2, "the threads of the associations to end")
        grown = process.memory_info().rss - memory_bytes
        assert grown < 128 * 2**20, f"memory grew by {grown >> 20} MiB"
    outcomes["associations"] = associations
    outcomes["PDUs"] = sent
    return outcomes


def _receiver(folder: str) -> Receiver:
    return Receiver(Path(folder) / "data", commitment_requests="anyone", max_associations=64)


def _is_well(receiver: Receiver) -> bool:
    """Whether it echoes and stores; associations of before may still be on their way out, and take all places."""
    with associated(receiver) as assoc:
        if not assoc.is_established:
            return False
        return bool(assoc.send_c_echo().Status == 0x0000 and send(assoc, radiograph()) == 0x0000)


def _made(random: Random) -> list[bytes]:
    """An association by the grammar, or a good one of Storage Commitment with messages by the grammar."""
    if random.random() < 0.3:
        return [grammar.association(random, 1), _RELEASE]
    commitment = build_context(PUSH_MODEL, "1.2.840.10008.1.2.1")
    commitment.context_id = 1
    request = A_ASSOCIATE_RQ(association_request([commitment], calling="MODALITY1")).encode()
    messages = [grammar.message(random, random.choice((1, 1, 1, 1, 3))) for _ in range(random.choice((1, 1, 1, 2, 4)))]
    return [request, *messages, random.choice((_RELEASE, _ABORT))]


def _broken(recording: list[bytes], random: Random, every: list[bytes]) -> list[bytes]:
    """A recording in which a PDU is broken, missing, twice, misplaced, or another recording's."""
    pdus = list(recording)
    # what comes after the request is most of what there is to break
    at = random.choice((0, *range(1, len(pdus)), *range(1, len(pdus))))
    match random.randrange(8):
        case 0:
            del pdus[at]
        case 1:
            pdus[at:at] = [random.choice(every)] * random.choice((1, 2, 20))
        case 2:
            random.shuffle(pdus)
        case _:
            pdus[at] = mutated(pdus[at], random, every)
    return pdus


def _exchange(port: int, pdus: list[bytes], sent: int, seed: int) -> str:
    """Send all, say that nothing follows, and read to the end of the connection; the type of the last PDU that came."""
    answer = b""
    with socket.create_connection(("127.0.0.1", port), PATIENCE_S) as connection:
        try:
            if pdus[0][:1] == b"\x01" and len(pdus) > 1:  # what follows a request is taken seriously only after the answer
                connection.sendall(pdus[0])
                answer += connection.recv(65536) if len(pdus[0]) == 6 + int.from_bytes(pdus[0][2:6], "big") else b""
                pdus = pdus[1:]
            connection.sendall(b"".join(pdus))
            connection.shutdown(socket.SHUT_WR)
            while more := connection.recv(65536):
                answer += more
        except TimeoutError:
            raise AssertionError(f"the listener hangs after {sent} PDUs of seed {seed}") from None
        except OSError:  # reset, or closed before all was sent
            return "cut"
    kinds, at = [], 0
    while at + 6 <= len(answer):
        kinds.append(answer[at])
        at += 6 + int.from_bytes(answer[at + 2 : at + 6], "big")
    names = {2: "accepted", 3: "rejected", 4: "answered", 6: "released", 7: "aborted"}
    return names.get(kinds[-1], "?") if kinds else "closed"


def _echo() -> bytes:
    def element(number: int, value: bytes) -> bytes:
        return struct.pack("<HHL", 0, number, len(value)) + value

    body = element(0x0002, b"1.2.840.10008.1.1\x00") + element(0x0100, struct.pack("<H", 0x0030))
    body += element(0x0110, struct.pack("<H", 5)) + element(0x0800, struct.pack("<H", 0x0101))
    return element(0x0000, struct.pack("<L", len(body))) + body
