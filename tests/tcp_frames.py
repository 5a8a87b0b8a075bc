"""Frames of TCP, as tests make them up."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address

FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16


def summed(data: bytes) -> int:
    total = sum(struct.unpack(f">{(len(data) + 1) // 2}H", data + bytes(len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def packet(
    source: tuple[IPv4Address | IPv6Address, int],
    target: tuple[IPv4Address | IPv6Address, int],
    *,
    macs: bytes = bytes(12),
    kind: int = 0,
    head: int = 0x45,
    fragment: int = 0x4000,
    hops: int = 64,
    protocol: int = 6,
    flags: int = ACK,
    numbers: tuple[int, int] = (1, 1),
    data: bytes = b"data",
) -> bytes:
    """Whole, with its sums. *macs*: whose it is to be, and whose it is; *numbers*: of what is sent, and of what is acknowledged.

    kind: of the frame, if not what it is. head, fragment: of IPv4.
    """
    pseudo = source[0].packed + target[0].packed + struct.pack(">BBH", 0, protocol, 20 + len(data))  # of IPv6 other bytes, but the same sum
    tcp = struct.pack(">HHIIBBHHH", source[1], target[1], *numbers, 0x50, flags, 1000, 0, 0)
    tcp = tcp[:16] + struct.pack(">H", summed(pseudo + tcp + data)) + tcp[18:]
    if source[0].version == 6:
        ip = struct.pack(">IHBB", 0x6A5ABCDE, 20 + len(data), protocol, hops) + source[0].packed + target[0].packed
        return macs + struct.pack(">H", kind or 0x86DD) + ip + tcp + data
    options = bytes(4 * ((head & 15) - 5))
    ip = struct.pack(">BBHHHBBH", head, 0, 20 + len(options) + 20 + len(data), 1, fragment, hops, protocol, 0)
    ip += source[0].packed + target[0].packed + options
    ip = ip[:10] + struct.pack(">H", summed(ip)) + ip[12:]
    return macs + struct.pack(">H", kind or 0x0800) + ip + tcp + data
