"""Which subnet a network gets, and which addresses its containers: pure choices among what others have left."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterable, Iterator
from functools import lru_cache
from typing import Final

from sandbox.errors import UnsupportedError, UsageError

Subnet = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address

# Docker takes 172.17 to 172.31 and 192.168; we begin elsewhere in the private ranges (RFC 1918), so as to be in nobody's way where there is room.
POOLS: Final = tuple(map(ipaddress.IPv4Network, ("10.89.0.0/16", "10.200.0.0/14", "192.168.192.0/18")))
PREFIX: Final = 24  # of a chosen subnet: 253 containers
LEAST_PREFIX: Final = {4: 8, 6: 48}  # larger ones would take half of the world
MOST_PREFIX: Final = {4: 29, 6: 120}  # a gateway, and room for some containers
_LOCAL_MAC: Final = 0x02  # first octet: locally administered, unicast (IEEE 802)


def to_subnet(text: object) -> Subnet:
    """Read ``10.1.2.0/24``. Raises: UsageError: it is none, has bits set beside its prefix, or is not a network's."""
    try:
        found = ipaddress.ip_network(text)  # type: ignore[arg-type]  # what is neither text nor number is a ValueError too
    except (ValueError, TypeError) as error:
        raise UsageError(f"subnet: {error}; write it as 10.1.2.0/24 or fd00:1::/64") from None
    if isinstance(text, (int, bytes)) or "/" not in str(text):
        raise UsageError(f"subnet: {text!r} has no prefix; write it as 10.1.2.0/24")
    if not LEAST_PREFIX[found.version] <= found.prefixlen <= MOST_PREFIX[found.version]:
        least, most = LEAST_PREFIX[found.version], MOST_PREFIX[found.version]
        raise UsageError(f"subnet: {found}: the prefix is out of range; give /{least} to /{most}")
    if found.is_loopback or found.is_multicast or found.is_link_local or found.network_address.is_unspecified:
        raise UsageError(f"subnet: {found} is loopback, multicast, link-local or unspecified; take one of 10.0.0.0/8, say")
    return found


def to_gateway(text: object, subnet: Subnet) -> Address:
    """Read the address that containers send to what is not in *subnet*; None: its first. Raises: UsageError: it is no host's in there."""
    if text is None:
        return subnet.network_address + 1
    try:
        found = ipaddress.ip_address(text)  # type: ignore[arg-type]
    except (ValueError, TypeError) as error:
        raise UsageError(f"gateway: {error}") from None
    if not is_host_of(found, subnet):
        raise UsageError(f"gateway: {found} is not an address of a host in {subnet}")
    return found


def is_host_of(address: Address, subnet: Subnet) -> bool:
    """Whether a host of *subnet* may have it: neither the subnet's own nor its broadcast address."""
    if address.version != subnet.version or address not in subnet or address == subnet.network_address:
        return False
    return subnet.version == 6 or address != subnet.broadcast_address


def choose_subnet(taken: Iterable[Subnet], *, pools: Collection[ipaddress.IPv4Network] = POOLS, prefix: int = PREFIX) -> ipaddress.IPv4Network:
    """The first subnet of *pools* that overlaps with nothing *taken* (routes of the host, other networks).

    Raises: UnsupportedError: there is none; the remedy is a subnet of the caller's own choice.
    """
    # A default route overlaps with everything, and says nothing.
    used = sorted(net for net in taken if isinstance(net, ipaddress.IPv4Network) and net.prefixlen)
    for pool in pools:
        found = _first_free(pool, prefix, used)
        if found is not None:
            return found
    raise UnsupportedError(
        f"network: no /{prefix} is free in {', '.join(map(str, pools))}",
        feature="subnet",
        remedy="give subnet=, or remove networks that are not used",
    )


def _first_free(pool: ipaddress.IPv4Network, prefix: int, used: list[ipaddress.IPv4Network]) -> ipaddress.IPv4Network | None:
    """Steps over what is used, and does not try each candidate: a pool may have thousands."""
    size = 1 << (32 - prefix)
    at, end = int(pool.network_address), int(pool.broadcast_address)
    for net in used:
        low, high = int(net.network_address), int(net.broadcast_address)
        if high < at:
            continue
        if low >= at + size:
            break
        at = (high // size + 1) * size
    return ipaddress.IPv4Network((at, prefix)) if at + size - 1 <= end else None


def choose_address(subnet: Subnet, taken: Collection[Address], *, after: Address | None = None) -> Address:
    """A free address for a container: the first one behind *after*, the last that was given out, so that one that has just been freed rests a while.

    Raises: UsageError: all are taken.
    """
    for candidate in _round(subnet, after):
        if candidate not in taken:
            return candidate
    raise UsageError(f"network: all addresses of {subnet} are taken; give the network a larger subnet")


def _round(subnet: Subnet, after: Address | None) -> Iterator[Address]:
    first = 1
    last = subnet.num_addresses - (2 if subnet.version == 4 else 1)
    start = first if after is None or after not in subnet else int(after) - int(subnet.network_address) + 1
    base = subnet.network_address
    yield from (base + step for step in range(start, last + 1))
    yield from (base + step for step in range(first, min(start, last + 1)))


@lru_cache(maxsize=4096)
def mac_of(address: ipaddress.IPv4Address) -> str:
    """The MAC of the interface with *address*: made of it, so that it is unique wherever the address is, and a restarted container keeps its own."""
    octets = (_LOCAL_MAC, 0x42, *address.packed)
    return ":".join(f"{octet:02x}" for octet in octets)


def to_mac(text: object) -> str:
    """Read ``02:42:0a:59:00:02``. Raises: UsageError: it is none, or a group's."""
    parts = text.split(":") if isinstance(text, str) and text.isascii() else []
    try:
        octets = [int(part, 16) for part in parts if len(part) == 2]
    except ValueError:
        octets = []
    if len(parts) != 6 or len(octets) != 6 or any(sign in str(text) for sign in "+-_ "):
        raise UsageError(f"mac: {text!r} is not six octets such as 02:42:0a:59:00:02")
    if octets[0] & 1 or not any(octets):
        raise UsageError(f"mac: {text!r} is a group's address or no address; the first octet must be even")
    return ":".join(f"{octet:02x}" for octet in octets)
