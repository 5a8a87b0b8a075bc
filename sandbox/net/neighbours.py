"""Messages of rtnetlink by which an interface knows the MAC of a neighbour for good, and never asks for it."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address
from socket import AF_INET, AF_INET6
from typing import Final

from sandbox.net.netlink import CREATE, REPLACE, REQUEST, attribute, message

_BODY: Final = struct.Struct("=BxxxiHBB")  # ndmsg: family, interface, state, flags, type
_NEWNEIGH, _DELNEIGH = 28, 29
_PUT: Final = REQUEST | REPLACE | CREATE
_NUD_PERMANENT: Final = 0x80
_NDA_DST, _NDA_LLADDR = 1, 2


def known(interface: int, address: IPv4Address | IPv6Address, mac: str) -> bytes:
    """Have the interface with this index send what is for *address* to *mac*, whatever anybody says."""
    return _message(_NEWNEIGH, _PUT, interface, address, attribute(_NDA_LLADDR, bytes.fromhex(mac.replace(":", ""))))


def forgotten(interface: int, address: IPv4Address | IPv6Address) -> bytes:
    """Have it ask again. The kernel says ENOENT where it knows none."""
    return _message(_DELNEIGH, REQUEST, interface, address, b"")


def _message(kind: int, flags: int, interface: int, address: IPv4Address | IPv6Address, more: bytes) -> bytes:
    family = AF_INET if address.version == 4 else AF_INET6
    body = _BODY.pack(family, interface, _NUD_PERMANENT if more else 0, 0, 0) + attribute(_NDA_DST, address.packed) + more
    return message(kind, flags, body)
