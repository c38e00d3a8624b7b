"""Passcodes of user identity negotiation (PS3.7 annex D.3.3.7): read from their files, compared, never logged."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterator
from pathlib import Path

from cxr_node.errors import SettingsError
from cxr_node.settings import Settings

_LONGEST_BYTES = 65535
"""The field that carries it says its length in 16 bits (PS3.7 table D.3-14)."""


def read_passcode(path: Path) -> bytes:
    """The passcode in a file, without surrounding white space. Read for each use: a change needs no restart.

    Raises:
        SettingsError: the file can't be read, or holds nothing that can be one.
    """
    try:
        with path.open("rb") as file:
            passcode = file.read(_LONGEST_BYTES + 1).strip()
    except OSError as error:
        raise SettingsError(f"passcode_file: {path} can't be read by this user ({error.strerror}).") from error
    if not passcode or len(passcode) > _LONGEST_BYTES:
        raise SettingsError(f"passcode_file: {path} must contain a passcode of 1 to {_LONGEST_BYTES} bytes and nothing else.")
    return passcode


def is_same(given: bytes, known: bytes) -> bool:
    """Compare in constant time, so that neither content nor length can be inferred."""
    return hmac.compare_digest(hashlib.sha256(given).digest(), hashlib.sha256(known).digest())


def check_senders(settings: Settings) -> None:
    """Read the passcodes of all senders once, as a check.

    Raises:
        SettingsError: a file is missing or unfit; says which.
    """
    for sender in settings.senders:
        if sender.passcode_file is not None:
            read_passcode(sender.passcode_file)


def problems(settings: Settings) -> list[tuple[str, str]]:
    """Findings of `check-config` about the passcodes: ("error" or "warning", the text)."""
    found = []
    for whose, path, is_secret_on_the_way in _files(settings):
        try:
            read_passcode(path)
        except SettingsError as error:
            found.append(("error", f"{whose}: {error}"))
            continue
        if path.stat().st_mode & 0o007:
            found.append(("warning", f"{whose}: every user of this machine may read {path}: chmod o= {path}"))
        if not is_secret_on_the_way:
            found.append(("warning", f"{whose}: without TLS the passcode can be read on the network"))
    return found


def _files(settings: Settings) -> Iterator[tuple[str, Path, bool]]:
    """The owner of each file, and whether TLS protects the passcode."""
    for sender in settings.senders:
        if sender.passcode_file is not None:
            yield f"senders: {sender.ae_title}", sender.passcode_file, settings.tls.listen and settings.tls.port is None
    for destination in settings.destinations:
        if destination.passcode_file is not None:
            yield f"destinations: {destination.name}", destination.passcode_file, destination.tls
