"""Derived UIDs: the same input always gives the same UID. Imports little, so every role can load it."""

from __future__ import annotations

import hashlib

from cxr_node.records import MODEL_NAME


def derived_uid(*parts: str) -> str:
    """A UID that is always the same for the same texts (PS3.5 B.2: 2.25 and a UUID as a decimal number).

    The UUID is of version 8 (RFC 9562), from 122 bits of a SHA-256.
    """
    digest = hashlib.sha256("\0".join((MODEL_NAME, *parts)).encode()).digest()
    number = int.from_bytes(digest[:16], "big")
    number = number & ~(0xF << 76) | 0x8 << 76
    number = number & ~(0x3 << 62) | 0x2 << 62
    return f"2.25.{number}"
