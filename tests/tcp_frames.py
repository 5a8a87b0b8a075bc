"""Frames of TCP by IPv4, as tests make them up."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address

FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16


def summed(data: bytes) -> int:
    total = sum(struct.unpack(f">{(len(data) + 1) // 2}H", data + bytes(len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def packet(
    source: tuple[IPv4Address, int],
    target: tuple[IPv4Address, int],
    *,
    macs: bytes = bytes(12),
    kind: int = 0x0800,
    head: int = 0x45,
    fragment: int = 0x4000,
    hops: int = 64,
    protocol: int = 6,
    flags: int = ACK,
    numbers: tuple[int, int] = (1, 1),
    data: bytes = b"data",
) -> bytes:
    """Whole, with its sums. *macs*: whose it is to be, and whose it is; *numbers*: of what is sent, and of what is acknowledged."""
    options = bytes(4 * ((head & 15) - 5))
    pseudo = source[0].packed + target[0].packed + struct.pack(">BBH", 0, protocol, 20 + len(data))
    tcp = struct.pack(">HHIIBBHHH", source[1], target[1], *numbers, 0x50, flags, 1000, 0, 0)
    tcp = tcp[:16] + struct.pack(">H", summed(pseudo + tcp + data)) + tcp[18:]
    ip = struct.pack(">BBHHHBBH", head, 0, 20 + len(options) + 20 + len(data), 1, fragment, hops, protocol, 0)
    ip += source[0].packed + target[0].packed + options
    ip = ip[:10] + struct.pack(">H", summed(ip)) + ip[12:]
    return macs + struct.pack(">H", kind) + ip + tcp + data
