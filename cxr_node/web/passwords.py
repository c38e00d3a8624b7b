"""Passwords: argon2id hashes, and the requirements for a password."""

from __future__ import annotations

import threading

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from cxr_node.errors import CxrNodeError

_HASHER = PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1)
"""OWASP's parameters for argon2id with the least memory: 19 MiB, so that log-ins at the same time don't fill it."""
_AT_ONCE = threading.BoundedSemaphore(2)
SHORTEST, LONGEST = 10, 128
_NOBODY = _HASHER.hash("no password of anybody")


def new_hash(password: str) -> str:
    """The argon2id hash of a new password.

    Raises:
        CxrNodeError: it is too short or too long.
    """
    if not SHORTEST <= len(password) <= LONGEST:
        raise CxrNodeError(f"A password has {SHORTEST} to {LONGEST} characters: a sentence of four or five words is a good one.")
    with _AT_ONCE:
        return _HASHER.hash(password)


def is_right(password: str, known: str | None) -> bool:
    """Whether a password is that of a hash; takes as long where there is none (None), so that names can't be guessed."""
    with _AT_ONCE:
        try:
            return _HASHER.verify(known or _NOBODY, password[: LONGEST + 1]) and known is not None
        except (VerificationError, InvalidHashError):
            return False


def is_outdated(known: str) -> bool:
    """Whether a hash was made with other parameters than today's."""
    return _HASHER.check_needs_rehash(known)
