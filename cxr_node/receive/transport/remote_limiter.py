"""The limiter's client in a receiver process: asks the accepting process whether an association has a free slot."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from cxr_node.receive.transport.processes import ASK, ASK_PROVEN, ENDED, REPLACE

_LONGEST_WAIT_S = 10.0
"""An answer takes some tenths of a millisecond; at a stop none comes any more."""


@dataclass(eq=False)
class _Query:
    is_answered: threading.Event = field(default_factory=threading.Event)
    is_yes: bool = False


class RemoteLimiter:
    """The other end of a `AssociationLimiter`: see `Processes`.

    Args:
        say: sends a message to the process that accepts; from any thread.
    """

    def __init__(self, say: Callable[[bytes], None]) -> None:
        self._say = say
        self._open: dict[int, _Query] = {}

    def admit(self, number: int, *, has_proven: bool = False, in_anothers_place: bool = False) -> bool:
        """Whether the association that a connection asks for has a place; waits for the answer."""
        query = self._open[number] = _Query()
        what = REPLACE if in_anothers_place else ASK_PROVEN if has_proven else ASK
        self._say(what + str(number).encode())
        query.is_answered.wait(_LONGEST_WAIT_S)
        self._open.pop(number, None)
        return query.is_yes

    def answer(self, number: int, *, is_yes: bool) -> None:
        """The answer has come; it may be too late."""
        query = self._open.pop(number, None)
        if query is not None:
            query.is_yes = is_yes
            query.is_answered.set()

    def ended(self, number: int) -> None:
        """Say that a connection is over."""
        self._say(ENDED + str(number).encode())
