"""The addresses of a peer, in the order in which they are tried: each host, and each address of each host."""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass

from cxr_node.deliver.request import Peer

_MOST_ADDRESSES = 8
"""The limit of addresses tried for one peer: each that doesn't respond costs up to ten seconds."""
_REMEMBERED_S = 300.0
_answered: dict[tuple[tuple[str, ...], int], tuple[str, float]] = {}
"""Hosts and port of a peer: the address that answered last, and until when to try it first."""


@dataclass(frozen=True)
class Address:
    """An IP address to connect to, and the host it belongs to."""

    host: str
    ip: str


def addresses_of(peer: Peer) -> tuple[list[Address], dict[str, OSError]]:
    """The addresses to try, in order. One that answered in the last minutes comes first, so that a dead address costs no wait
    each time.

    Returns:
        the addresses, and the hosts that have none, each with the reason.
    """
    found: list[Address] = []
    unknown: dict[str, OSError] = {}
    for host in (peer.host, *peer.other_hosts):
        try:
            entries = socket.getaddrinfo(host, peer.port, type=socket.SOCK_STREAM)
        except OSError as error:
            unknown[host] = error
            continue
        except UnicodeError:  # a name with an empty or endless label
            unknown[host] = socket.gaierror(socket.EAI_NONAME, "no host name")
            continue
        for family, _, _, _, address in entries:
            if family in (socket.AF_INET, socket.AF_INET6):
                found.append(Address(host, str(address[0])))
    found = list(dict.fromkeys(found))[:_MOST_ADDRESSES]
    ip, until = _answered.get(_key(peer), ("", 0.0))
    if time.monotonic() < until:
        found.sort(key=lambda address: address.ip != ip)
    return found, unknown


def has_answered(peer: Peer, address: Address) -> None:
    """There is an association with the peer at this address; remembered for a while where there are others too."""
    key = _key(peer)
    known, until = _answered.get(key, ("", 0.0))
    if known != address.ip or time.monotonic() >= until:  # not renewed, so that the first address is tried again later
        _answered[key] = address.ip, time.monotonic() + _REMEMBERED_S


def _key(peer: Peer) -> tuple[tuple[str, ...], int]:
    return (peer.host, *peer.other_hosts), peer.port
