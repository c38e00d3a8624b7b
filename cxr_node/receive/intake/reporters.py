"""Who may send storage commitment reports for a destination: the destination itself, by AE title, address and certificate.

A report with a valid transaction UID from anyone else would mark results as sent that the PACS does not have.
"""

from __future__ import annotations

import socket
import time
from contextlib import suppress

from cxr_node.peer_address import plain_address
from cxr_node.receive.intake.sender_admission import entries_of
from cxr_node.records import Sender
from cxr_node.settings import DestinationSettings, Settings

_REMEMBERED_S = 60.0


class Reporters:
    """Says whose reports an association brings; remembers for a minute which addresses the destinations' names have."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._addresses: dict[str, tuple[frozenset[str], float]] = {}

    def destinations_of(self, sender: Sender) -> list[str]:
        """The names of the destinations for which this sender may report; empty: for none."""
        return [one.name for one in self._settings.destinations if self._is(sender, one)]

    def _is(self, sender: Sender, destination: DestinationSettings) -> bool:
        if sender.calling_ae_title not in (destination.ae_title, destination.commitment_ae_title):
            return False
        # an entry of its own may say from where else, and with which certificate, it calls
        entries = entries_of(self._settings, sender)
        is_there = any(entry.hosts for entry in entries) or self._is_at(sender.host, destination)
        tied_to_certificate = any(entry.certificate_sha256 or entry.certificate_names for entry in entries)
        return is_there and (tied_to_certificate or self._shows_certificate(sender, destination))

    def _is_at(self, host: str, destination: DestinationSettings) -> bool:
        names = (*destination.all_hosts, *filter(None, (destination.commitment_host,)))
        return any(plain_address(host.partition("%")[0]) in self._addresses_of(name) for name in names)

    def _shows_certificate(self, sender: Sender, destination: DestinationSettings) -> bool:
        """Whether it shows the certificate that it is called by, where both ways are over TLS."""
        tls = self._settings.tls
        if not (destination.tls and tls.listen and tls.require_client_certificate):
            return True
        if not sender.certificate_sha256:
            return False
        names = {destination.tls_name} if destination.tls_name else {*destination.all_hosts, destination.commitment_host}
        return not destination.tls_check_name or not names.isdisjoint(sender.certificate_names)

    def _addresses_of(self, name: str) -> frozenset[str]:
        found, until = self._addresses.get(name, (frozenset(), 0.0))
        now = time.monotonic()
        if now < until:
            return found
        with suppress(OSError, UnicodeError):  # the name server is unavailable: the last known addresses stay valid
            entries = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
            found = frozenset(plain_address(str(entry[4][0]).partition("%")[0]) for entry in entries)
        self._addresses[name] = found, now + _REMEMBERED_S
        return found
