"""Messages of rtnetlink by which an interface knows the MAC of a neighbour for good, and asks for no others for long."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address
from socket import AF_INET, AF_INET6
from typing import Final

from sandbox.net.netlink import CREATE, NESTED, REPLACE, REQUEST, attribute, message

_BODY: Final = struct.Struct("=BxxxiHBB")  # ndmsg: family, interface, state, flags, type
_NEWNEIGH, _DELNEIGH, _SETNEIGHTBL = 28, 29, 67
_PUT: Final = REQUEST | REPLACE | CREATE
_NUD_PERMANENT: Final = 0x80
_NDA_DST, _NDA_LLADDR = 1, 2
_NDTA_NAME, _NDTA_PARMS = 1, 6
_NDTPA_IFINDEX, _NDTPA_RETRANS_TIME, _NDTPA_MCAST_PROBES = 1, 5, 11
_SHORTEST_MS: Final = 10


def known(interface: int, address: IPv4Address | IPv6Address, mac: str) -> bytes:
    """Have the interface with this index send what is for *address* to *mac*, whatever anybody says."""
    return _message(_NEWNEIGH, _PUT, interface, address, attribute(_NDA_LLADDR, bytes.fromhex(mac.replace(":", ""))))


def forgotten(interface: int, address: IPv4Address | IPv6Address) -> bytes:
    """Have it ask again. The kernel says ENOENT where it knows none."""
    return _message(_DELNEIGH, REQUEST, interface, address, b"")


def given_up_soon(interface: int, version: int) -> bytes:
    """Have the interface ask once for a neighbour that it does not know, and give up after 10 ms, the shortest time that the kernel waits.

    Until then an entry takes its place in the kernel's one table for all namespaces; afterwards whoever needs the place has it.
    """
    parms = attribute(_NDTPA_IFINDEX, struct.pack("=I", interface))
    parms += attribute(_NDTPA_RETRANS_TIME, struct.pack("=Q", _SHORTEST_MS)) + attribute(_NDTPA_MCAST_PROBES, struct.pack("=I", 1))
    family, name = (AF_INET, b"arp_cache\0") if version == 4 else (AF_INET6, b"ndisc_cache\0")
    body = struct.pack("=Bxxx", family) + attribute(_NDTA_NAME, name) + attribute(_NDTA_PARMS | NESTED, parms)
    return message(_SETNEIGHTBL, REQUEST, body)


def _message(kind: int, flags: int, interface: int, address: IPv4Address | IPv6Address, more: bytes) -> bytes:
    family = AF_INET if address.version == 4 else AF_INET6
    body = _BODY.pack(family, interface, _NUD_PERMANENT if more else 0, 0, 0) + attribute(_NDA_DST, address.packed) + more
    return message(kind, flags, body)
