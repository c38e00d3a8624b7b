"""Addresses of peers: one spelling for each, and the key by which limits count it.

A socket that listens on "::" shows an IPv4 peer as ::ffff:10.0.0.5, and one machine can use 2^64 IPv6 addresses. Limits,
budgets and waits therefore never use the address of a socket directly: `plain_address` gives its spelling, `site_of` its key.
`Settings.peer_of` makes an exception of the addresses that [[senders]] name.
"""

from __future__ import annotations

from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

_SITE_BITS = 64
"""A machine that gets an IPv6 address by itself chooses the other 64 bits (RFC 4291 section 2.5.1)."""
_MAPPED_BITS = 96
"""IPv4 addresses are the last 32 bits of ::ffff:0:0/96 (RFC 4291 section 2.5.5.2)."""

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network


@lru_cache(maxsize=4096)
def address_of(host: str) -> Address | None:
    """The address that a text is, IPv4-mapped ones as IPv4; None: it is none, such as a name."""
    try:
        address = ip_address(host)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def plain_address(host: str) -> str:
    """An address in its one spelling, with its scope if it has one; anything else as it is."""
    address = address_of(host)
    return host if address is None else str(address)


@lru_cache(maxsize=4096)
def site_of(host: str) -> str:
    """Who an address counts as: itself, or of IPv6 its /64 network; a name as itself."""
    address = address_of(host)
    if not isinstance(address, IPv6Address) or address.is_loopback:
        return plain_address(host)
    bits = 128 - _SITE_BITS
    return f"{IPv6Address(int(address) >> bits << bits)}/{_SITE_BITS}"


@lru_cache(maxsize=1024)
def network_of(text: str) -> Network:
    """A network or single address of the settings; one of IPv4-mapped addresses as their IPv4 network.

    Raises:
        ValueError: it is neither.
    """
    network = ip_network(text, strict=False)
    first = network.network_address
    if isinstance(first, IPv6Address) and first.ipv4_mapped is not None and network.prefixlen >= _MAPPED_BITS:
        return IPv4Network((first.ipv4_mapped, network.prefixlen - _MAPPED_BITS))
    return network


def is_in(host: str, networks: tuple[str, ...]) -> bool:
    """Whether an address is one of these, or in one of these networks; a name is in none."""
    address = address_of(host)
    return address is not None and any(address in network_of(text) for text in networks)


def endpoint(host: str, port: int) -> str:
    """Host and port as one text, an IPv6 address in brackets (RFC 5952 section 6)."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_named_singly(host: str, networks: tuple[str, ...]) -> bool:
    """Whether an address is among these by itself, not only with its network."""
    address = address_of(host)
    if address is None:
        return False
    found = (network_of(text) for text in networks)
    return any(network.prefixlen == network.max_prefixlen and address in network for network in found)
