"""Limits for one peer: connections and time. `rate_limit` counts instances a minute."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable

from cxr_node.peer_address import is_in, plain_address, site_of
from cxr_node.settings import ReceiveSettings, Settings

SLOWEST_BYTES_PER_S = 4096
"""A peer that sends no faster than this on the average of a message, after `network_timeout_s`, is cut off."""

_MOST_PROVEN = 1024
_KEPT_SHARE = 4
"""One slot in this many is reserved for known senders' addresses."""


class TransferDeadline:
    """How long a peer may still take for what it has begun: some time in any case, and more with all that it has sent."""

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self._ends_at = 0.0

    def begin(self) -> None:
        """A new message begins."""
        self._ends_at = time.monotonic() + self._patience_s

    def has_sent(self, size: int) -> None:
        """So many bytes have come."""
        self._ends_at += size / SLOWEST_BYTES_PER_S

    def left_s(self) -> float:
        """How long the next bytes may take.

        Raises:
            TimeoutError: the time is over.
        """
        left_s = self._ends_at - time.monotonic()
        if left_s <= 0:
            raise TimeoutError("the peer is too slow")
        return min(left_s, self._patience_s)


class AssociationSlots:
    """How many associations there may be at the same time, in all and from one address, and how many there are.

    Connections without an association take no place: see `pending_connections`. Some places are kept for addresses that known
    senders may call from, so that strangers, however many, do not keep them out.
    """

    def __init__(
        self,
        settings: ReceiveSettings,
        is_known: Callable[[str], bool] = lambda _: True,
        peer_of: Callable[[str], str] = site_of,
    ) -> None:
        """Begin with all places free.

        Args:
            settings: the limits.
            is_known: whether an address is a known sender's; where none is, nothing is kept for one.
            peer_of: who an address counts as (`Settings.peer_of`).
        """
        self._limit = settings.max_associations
        self._limit_of_one = settings.max_associations_per_sender
        self._limit_of_strangers = self._limit - self._limit // _KEPT_SHARE
        self._is_known, self._peer_of = is_known, peer_of
        self._taken: Counter[str] = Counter()
        self._lock = threading.Lock()

    def enter(self, host: str, *, in_anothers_place: bool = False) -> bool:
        """Count one more from an address, unless there is no place for it.

        Args:
            host: the address.
            in_anothers_place: one of the same address is just ending for it.
        """
        with self._lock:
            if not (in_anothers_place or self._has_place(host)):
                return False
            self._taken[host] += 1
            return True

    def leave(self, host: str) -> None:
        """Count one less."""
        with self._lock:
            self._taken[host] -= 1
            if self._taken[host] <= 0:
                del self._taken[host]

    def has_free_slot(self, host: str) -> bool:
        """Whether `enter` would count one more now."""
        with self._lock:
            return self._has_place(host)

    def _has_place(self, host: str) -> bool:
        if self._taken.total() >= self._limit:
            return False
        peer = self._peer_of(host)
        if sum(count for other, count in self._taken.items() if self._peer_of(other) == peer) >= self._limit_of_one:
            return False
        if self._is_known(host):
            return True
        strangers = sum(count for other, count in self._taken.items() if not self._is_known(other))
        return strangers < self._limit_of_strangers


class KnownAddresses:
    """Which addresses are known senders': those that [[senders]] name, and those that one proved itself from.

    Args:
        settings: the settings tree.
    """

    def __init__(self, settings: Settings) -> None:
        self._networks = tuple({host for sender in settings.senders for host in sender.hosts})
        self._proven: dict[str, None] = {}
        self._lock = threading.Lock()

    def prove(self, host: str) -> None:
        """A sender has shown the certificate or passcode that its [[senders]] entry asks for."""
        host = plain_address(host)
        with self._lock:
            self._proven.pop(host, None)
            if len(self._proven) >= _MOST_PROVEN:
                del self._proven[next(iter(self._proven))]
            self._proven[host] = None

    def __contains__(self, host: str) -> bool:
        if not (self._networks or self._proven):  # none is known: there is nothing to keep
            return True
        return plain_address(host) in self._proven or is_in(host, self._networks)
