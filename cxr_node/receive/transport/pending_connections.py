"""Connections without an association yet: a separate pool, in which the oldest is closed for the newest.

The accepting process keeps each connection here until its whole association request has arrived, without a thread and without
reading it (MSG_PEEK). It rejects here, within microseconds, a request that is too long, of another protocol, or from a sender
that is not admitted; the others go to a receiver process. Until that process has accepted the association, the connection may
still be dropped. So neither silent connections nor a flood occupies association slots.

A TLS connection is passed on after its first byte, because only the receiver process decrypts it.

Over 300 lines: the life of a connection before its association.
"""

from __future__ import annotations

import select
import selectors
import socket
import struct
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

import structlog

from cxr_node.dicom import association_items
from cxr_node.receive.intake.sender_admission import refusal_of
from cxr_node.receive.transport.limiter import AssociationSlots, KnownAddresses
from cxr_node.receive.transport.rejections import RejectionWriter
from cxr_node.records import Sender
from cxr_node.security.event_budget import Budget, LogThrottle
from cxr_node.settings import Settings

log = structlog.get_logger()

ASSOCIATION_REQUEST_TIMEOUT_S = 30.0
"""How long a peer that has connected may take until it asks for an association; over TLS for its handshake, and again."""
_CONNECTIONS_AN_ASSOCIATION = 2
"""How many connections may wait for each association that one address, and all, may have."""
_KEPT_SHARE = 4
"""Unknown senders leave one slot in this many to known senders' addresses."""
_HEAD_BYTES = 6
_LEAVING_S = 5.0
"""How long a peer that is refused has to hear that and close; closing at once could lose the answer."""
_MOST_DISCARDED_BYTES = 1024 * 1024
_BETWEEN_LINES_S = 60.0
_LINES_AT_ONCE, _LINES_A_MINUTE = 100, 60
"""Of connections of one address that end before a complete request."""
_A_ASSOCIATE_RQ = 0x01
_ABORT = struct.pack(">BBLBBBB", 0x07, 0, 4, 0, 0, 2, 6)
"""A-ABORT of the service provider, invalid parameter (PS3.8 section 9.3.8)."""
_PERMANENT, _BY_USER = 0x01, 0x01
_RDHUP = getattr(select, "POLLRDHUP", select.POLLHUP)


class ConnectionHandler(Protocol):
    """What takes a connection over: `Processes`, or a `Reception` in this process."""

    def take(self, number: int, connection: socket.socket, host: str, *, over_tls: bool, is_crowded: bool) -> None:
        """Take over a connection, which the caller closes: it is passed on or duplicated."""


@dataclass(eq=False)
class _Pending:
    number: int
    host: str
    peer: str
    """Who the address counts as."""
    connection: socket.socket
    over_tls: bool
    ends_at: float
    awaited: int = 0
    """How many bytes must have arrived before the next check."""
    is_handed_over: bool = False
    is_leaving: bool = False
    is_answered: bool = False
    discarded: int = 0

    @property
    def rank(self) -> int:
        """What is dropped first, of those of an address: who has had an answer, then who has said nothing."""
        return 0 if self.is_leaving else 2 if self.is_handed_over else 1


class PendingConnections:
    """Holds connections until their association is accepted, refused or over.

    `add`, `on_readable` and `close_expired` are for the thread that accepts; `admit` and `ended` for any.
    """

    def __init__(self, settings: Settings, selector: selectors.BaseSelector, rejections: RejectionWriter) -> None:
        """Begin empty.

        Args:
            settings: the settings tree.
            selector: what the thread that accepts waits for; connections are registered with their number.
            rejections: writes refusals down, and then has them answered.
        """
        self.handler: ConnectionHandler | None = None
        self._settings = settings
        self._selector = selector
        self._rejections = rejections
        self._known = KnownAddresses(settings)
        self._slots = AssociationSlots(settings.receive, self._known.__contains__, settings.peer_of)
        self._most = _CONNECTIONS_AN_ASSOCIATION * settings.receive.max_associations
        self._most_of_one = min(self._most, _CONNECTIONS_AN_ASSOCIATION * settings.receive.max_associations_per_sender)
        self._patience_s = min(ASSOCIATION_REQUEST_TIMEOUT_S, settings.receive.network_timeout_s)
        self._pending: dict[int, _Pending] = {}
        self._associations: dict[int, str] = {}
        self._numbers = 0
        self._lock = threading.Lock()
        self._throttle = LogThrottle(_BETWEEN_LINES_S)
        self._lines = Budget(_LINES_AT_ONCE, _LINES_A_MINUTE, peer_of=settings.peer_of)
        self._sum_up_at = 0.0

    def add(self, connection: socket.socket, host: str, *, over_tls: bool) -> None:
        """Take in a connection that was just accepted; the oldest of the same address, or of the largest crowd, may go for it."""
        connection.setblocking(False)
        self._make_room(host)
        self._numbers += 1
        ends_at = time.monotonic() + self._patience_s
        pending = _Pending(self._numbers, host, self._settings.peer_of(host), connection, over_tls, ends_at)
        with self._lock:
            self._pending[pending.number] = pending
        self._selector.register(connection, selectors.EVENT_READ, pending.number)
        self._wait_for(pending, 1 if over_tls else _HEAD_BYTES)

    def on_readable(self, number: int) -> None:
        """Something has come over a connection."""
        pending = self._pending.get(number)
        if pending is None:
            return
        try:
            if pending.is_leaving:
                self._discard(pending)
            else:
                self._read_request(pending)
        except BlockingIOError:
            return
        except OSError:
            self._drop(pending)

    def close_expired(self) -> None:
        """Drop who has been here for too long."""
        now = time.monotonic()
        with self._lock:
            late = [one for one in self._pending.values() if one.ends_at <= now and not one.is_handed_over]
        for pending in late:
            if not pending.is_leaving and self._peeked(pending, 1):
                self._note_lost(pending, "the peer is too slow")
            self._drop(pending)
        if now >= self._sum_up_at:
            self._sum_up_at = now + _BETWEEN_LINES_S
            for host, kind, count in self._lines.due():
                log.info("more of the same, not logged individually", host=host, kind=kind, count=count)

    def admit(self, number: int, *, has_proven: bool = False, in_anothers_place: bool = False) -> bool:
        """Whether the association that a connection asks for has a place; if so, the connection is pending no longer.

        Args:
            number: of the connection.
            has_proven: its sender has shown a certificate or passcode: its address is known from now on.
            in_anothers_place: an idle association of the same address is ending for it.
        """
        with self._lock:
            pending = self._pending.get(number)
            if pending is None:  # it was dropped meanwhile
                return False
            if has_proven:
                self._known.prove(pending.host)
            if not self._slots.enter(pending.host, in_anothers_place=in_anothers_place):
                return False
            del self._pending[number]
            self._associations[number] = pending.host
        pending.connection.close()  # our end of it; the handler has its own
        return True

    def ended(self, number: int) -> None:
        """A connection that was handed over is over."""
        with self._lock:
            host = self._associations.pop(number, None)
            pending = self._pending.pop(number, None)
        if pending is not None:
            pending.connection.close()
        if host is not None:
            self._slots.leave(host)

    def close(self) -> None:
        """Drop all."""
        with self._lock:
            waiting = [one for one in self._pending.values() if not one.is_handed_over]
        for pending in waiting:
            self._drop(pending)

    def _note_lost(self, pending: _Pending, reason: str) -> None:
        if self._lines.takes(pending.host, "connection lost"):
            log.info("connection lost", reason=reason, host=pending.host)

    def _make_room(self, host: str) -> None:
        with self._lock:
            pending = list(self._pending.values())
        crowds, peer = Counter(one.peer for one in pending), self._settings.peer_of(host)
        crowded = ""
        if crowds[peer] >= self._most_of_one:
            crowded = peer
        elif len(pending) >= self._most:
            crowded = crowds.most_common(1)[0][0]
        elif host not in self._known:
            pending = [one for one in pending if one.host not in self._known]
            if len(pending) >= self._most - self._most // _KEPT_SHARE:
                crowded = Counter(one.peer for one in pending).most_common(1)[0][0]
        if crowded:
            oldest = min((one for one in pending if one.peer == crowded), key=lambda one: (one.rank, one.number))
            if not oldest.is_leaving and self._throttle.is_due(crowded):
                log.warning("oldest connection without an association closed: there are too many", host=crowded)
            self._drop(oldest)

    def _wait_for(self, pending: _Pending, size: int) -> None:
        """Wake only when this many bytes have arrived, or the connection has ended."""
        pending.awaited = size
        pending.connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, size)

    def _read_request(self, pending: _Pending) -> None:
        head = self._peeked(pending, pending.awaited)
        if len(head) < pending.awaited:
            if self._is_over(pending):
                if head:  # who only connects, as a health check does, leaves no line
                    self._note_lost(pending, "closed by the peer")
                self._drop(pending)
            return
        if pending.over_tls:
            self._hand_over(pending)
            return
        pdu_type, length = struct.unpack_from(">BxL", head)
        size = _HEAD_BYTES + length
        if pdu_type != _A_ASSOCIATE_RQ or size > association_items.LONGEST_REQUEST_BYTES:
            reason = f"it sends no association request: PDU of type {pdu_type} with {length} bytes"
            self._answer(pending, _ABORT, Sender("", "", pending.host), reason, "no association request")
        elif len(head) < size:
            self._wait_for(pending, size)
            self._read_request(pending)
        else:
            self._decide(pending, head)

    def _decide(self, pending: _Pending, request: bytes) -> None:
        """Answer a complete request whose sender may not call; hand on the others."""
        try:
            association_items.check_outline(request)
        except association_items.BrokenRequest as error:
            reason = f"it sends no association request: {error}"
            self._answer(pending, _ABORT, Sender("", "", pending.host), reason, "no association request")
            return
        called, calling = (association_items.ae_title(request[at : at + 16]).decode() for at in (10, 26))
        sender = Sender(calling, called, pending.host)
        try:
            refusal = refusal_of(self._settings, sender) if association_items.speaks_our_version(request) else None
        except Exception:  # such as an invalid host in the settings: the receiver reports it
            refusal = None
        if refusal is None:
            self._hand_over(pending)
            return
        answer = struct.pack(">BBLBBBB", 0x03, 0, 4, 0, _PERMANENT, _BY_USER, refusal.diagnostic)
        self._answer(pending, answer, sender, refusal.reason, f"diagnostic {refusal.diagnostic}")

    def _answer(self, pending: _Pending, answer: bytes, sender: Sender, reason: str, kind: str) -> None:
        """Have the refusal written down and then answered, and wait for the peer to close."""
        pending.is_leaving = True
        pending.ends_at = time.monotonic() + _LEAVING_S
        self._wait_for(pending, 1)
        self._rejections.put(sender, reason, kind, lambda: _send_answer(pending, answer))
        self._discard(pending)

    def _discard(self, pending: _Pending) -> None:
        try:
            while more := len(pending.connection.recv(65536)):
                pending.discarded += more
                if pending.discarded > _MOST_DISCARDED_BYTES:
                    break
            is_over = more == 0
        except BlockingIOError:
            return
        if is_over and not pending.is_answered:  # it says no more, and may still listen
            self._selector.unregister(pending.connection)
        else:
            self._drop(pending)

    def _hand_over(self, pending: _Pending) -> None:
        assert self.handler is not None
        self._selector.unregister(pending.connection)
        pending.connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
        pending.connection.setblocking(True)
        pending.is_handed_over = True
        is_crowded = not self._slots.has_free_slot(pending.host)
        self.handler.take(pending.number, pending.connection, pending.host, over_tls=pending.over_tls, is_crowded=is_crowded)

    def _drop(self, pending: _Pending) -> None:
        """Close a connection; if it was passed on, the receiver process sees its end."""
        with self._lock:
            if self._pending.pop(pending.number, None) is None:
                return
        if not pending.is_handed_over:
            with suppress(KeyError, ValueError):  # it is deaf, or never was registered
                self._selector.unregister(pending.connection)
        with suppress(OSError):
            pending.connection.shutdown(socket.SHUT_RDWR)
        pending.connection.close()

    @staticmethod
    def _peeked(pending: _Pending, size: int) -> bytes:
        try:
            return pending.connection.recv(size, socket.MSG_PEEK)
        except OSError:
            return b""

    @staticmethod
    def _is_over(pending: _Pending) -> bool:
        poll = select.poll()
        poll.register(pending.connection, _RDHUP)
        return bool(poll.poll(0))


def _send_answer(pending: _Pending, answer: bytes) -> None:
    with suppress(OSError):  # the peer has gone, or was dropped
        pending.connection.send(answer)
        pending.is_answered = True
        pending.connection.shutdown(socket.SHUT_WR)
