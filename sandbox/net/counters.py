"""What passed through an interface, as the kernel counts it. Pure."""

from __future__ import annotations

import struct
from typing import Final

from attrs import fields, frozen

from sandbox.net.netlink import ACK, REQUEST, attributes, message

_HEAD: Final = struct.Struct("=BxHII")  # if_stats_msg: family, index, which
_GETSTATS: Final = 94
_LINK_64: Final = 1  # IFLA_STATS_LINK_64
_FIGURES: Final = struct.Struct("=8Q")  # rtnl_link_stats64: packets, bytes, errors, dropped; each received, then sent


@frozen
class NetStats:
    """What a container received and sent since it joined a network, as the network's end of the pair counts it: nothing inside can change that.

    Bytes of Ethernet frames. A packet is what the kernel handles as one: TCP joins up to 64 KiB. *dropped*: by its `Shape`, or for want of room.
    """

    received_bytes: int = 0
    sent_bytes: int = 0
    received_packets: int = 0
    sent_packets: int = 0
    received_errors: int = 0
    sent_errors: int = 0
    received_dropped: int = 0
    sent_dropped: int = 0

    def __add__(self, other: NetStats) -> NetStats:
        return NetStats(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(NetStats)))


def stats_request(index: int) -> bytes:
    """Ask for an interface's figures."""
    return message(_GETSTATS, REQUEST | ACK, _HEAD.pack(0, 0, index, 1 << (_LINK_64 - 1)))


def stats_of(answer: bytes) -> NetStats:
    """Those of a port, of the body of the answer; seen from the other end: what the port has sent, the container has received.

    Raises: ValueError: they are not there.
    """
    for kind, value in attributes(answer[_HEAD.size :], strict=False):
        if kind == _LINK_64 and len(value) >= _FIGURES.size:
            figures = _FIGURES.unpack_from(value)
            sent, received = figures[::2], figures[1::2]
            in_turn = zip(received, sent, strict=True)
            order = [number for pair in in_turn for number in pair]
            packets, octets, errors, dropped = order[:2], order[2:4], order[4:6], order[6:]
            return NetStats(*octets, *packets, *errors, *dropped)
    raise ValueError("an answer without figures")
