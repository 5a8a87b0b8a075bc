"""Messages of rtnetlink by which an interface knows the MAC of a neighbour for good, and never asks for it."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address
from socket import AF_INET, AF_INET6
from typing import Final

_HEAD: Final = struct.Struct("=IHHII")  # nlmsghdr
_BODY: Final = struct.Struct("=BxxxiHBB")  # ndmsg: family, interface, state, flags, type
_ATTRIBUTE: Final = struct.Struct("=HH")
_NEWNEIGH, _DELNEIGH = 28, 29
_PUT: Final = 0x0501  # NLM_F_REQUEST | NLM_F_REPLACE | NLM_F_CREATE
_REQUEST: Final = 0x0001
_NUD_PERMANENT: Final = 0x80
_NDA_DST, _NDA_LLADDR = 1, 2


def known(interface: int, address: IPv4Address | IPv6Address, mac: str) -> bytes:
    """Have the interface with this index send what is for *address* to *mac*, whatever anybody says."""
    return _message(_NEWNEIGH, _PUT, interface, address, _attribute(_NDA_LLADDR, bytes.fromhex(mac.replace(":", ""))))


def forgotten(interface: int, address: IPv4Address | IPv6Address) -> bytes:
    """Have it ask again. The kernel says ENOENT where it knows none."""
    return _message(_DELNEIGH, _REQUEST, interface, address, b"")


def _message(kind: int, flags: int, interface: int, address: IPv4Address | IPv6Address, more: bytes) -> bytes:
    family = AF_INET if address.version == 4 else AF_INET6
    body = _BODY.pack(family, interface, _NUD_PERMANENT if more else 0, 0, 0) + _attribute(_NDA_DST, address.packed) + more
    return _HEAD.pack(_HEAD.size + len(body), kind, flags, 0, 0) + body


def _attribute(kind: int, value: bytes) -> bytes:
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value + bytes(-len(value) % 4)
