"""Captured packets: the blocks into which the kernel writes them, and the file that tcpdump and Wireshark read. Pure.

The file is a classic pcap with times in nanoseconds (draft-ietf-opsawg-pcap). The ring is TPACKET_V3 of packet(7), linux/if_packet.h: the
kernel fills a block with packets of any length one after another, and hands it over when it is full or some ms old.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final

from attrs import define, field

MAGIC_NS: Final = 0xA1B23C4D
ETHERNET: Final = 1  # LINKTYPE_ETHERNET
FILE_HEAD: Final = struct.Struct("=IHHiIII")  # magic, version, zone, accuracy, snaplen, link type
RECORD_HEAD: Final = struct.Struct("=IIII")  # s, ns, bytes here, bytes of the packet
VERSION: Final = (2, 4)
MOST_SNAPLEN: Final = 262_144  # tcpdump's

#: tpacket_block_desc and tpacket_hdr_v1: where its status is, how many packets it has; and status, packets, offset of the first, bytes in all
STATUS_AT, PACKETS_AT = 8, 12
BLOCK: Final = struct.Struct("=8xIIII")
PACKET: Final = struct.Struct("=IIIIIIHH4xIH2x")  # tpacket3_hdr: next, s, ns, bytes here, bytes, status, mac, net, rxhash, VLAN tag, its type
USER: Final = 1  # TP_STATUS_USER: the block is ours
VLAN, VLAN_TYPE = 1 << 4, 1 << 6  # TP_STATUS_VLAN_VALID, TP_STATUS_VLAN_TPID_VALID
_TAG: Final = struct.Struct("!HH")
_ADDRESSES: Final = 12  # bytes of an Ethernet head before a tag
_DOT1Q: Final = 0x8100

#: tpacket_req3: size and number of blocks, size and number of frames (here without a meaning of their own), ms until a block is handed over, 0, 0
REQUEST: Final = struct.Struct("=7I")
#: tpacket_stats_v3: packets, drops, queue freezes
STATISTICS: Final = struct.Struct("=3I")


def file_head(snaplen: int) -> bytes:
    """What a file begins with."""
    return FILE_HEAD.pack(MAGIC_NS, *VERSION, 0, 0, snaplen, ETHERNET)


@define
class Budget:
    """How much may still be written: *octets*, and *packets* in all (None: any number). *taken*: packets until now."""

    octets: int
    packets: int | None = None
    taken: int = field(default=0, init=False)
    is_spent: bool = field(default=False, init=False)

    def take(self, octets: int) -> bool:
        """Count one packet's record; False: it does not fit, and nothing after it shall."""
        if self.is_spent or octets > self.octets or self.packets == self.taken:
            self.is_spent = True
            return False
        self.octets -= octets
        self.taken += 1
        self.is_spent = self.packets == self.taken
        return True


def records(block: bytes, snaplen: int, budget: Budget) -> Sequence[bytes | memoryview]:
    """The parts of the file that a block makes, as far as *budget* goes.

    Raises: ValueError: what is there is no such block.
    """
    if len(block) < BLOCK.size:
        raise ValueError("a block without its head")
    view = memoryview(block)
    _, number, at, _ = BLOCK.unpack_from(block)
    parts: list[bytes | memoryview] = []
    for _ in range(number):
        if at + PACKET.size > len(block):
            raise ValueError("a packet's head lies beyond its block")
        step, seconds, ns, here, length, status, mac, _, tag, tag_type = PACKET.unpack_from(block, at)
        start = at + mac
        if start + here > len(block):
            raise ValueError("a packet lies beyond its block")
        if status & VLAN:
            head, start, here, length = _tagged(view, start, here, length, (tag_type if status & VLAN_TYPE else _DOT1Q, tag & 0xFFFF))
        else:
            head = b""
        head, kept = head[:snaplen], max(0, min(here, snaplen - len(head)))
        if not budget.take(RECORD_HEAD.size + len(head) + kept):
            break
        parts += (RECORD_HEAD.pack(seconds, ns, len(head) + kept, length) + head, view[start : start + kept])
        if not step:
            break
        at += step
    return parts


def _tagged(view: memoryview, start: int, here: int, length: int, tag: tuple[int, int]) -> tuple[bytes, int, int, int]:
    """A packet's head with the VLAN tag that the kernel has taken out of it; and where the rest begins, how much of it is here, and was there."""
    cut = min(here, _ADDRESSES)
    return bytes(view[start : start + cut]) + (_TAG.pack(*tag) if cut == _ADDRESSES else b""), start + cut, here - cut, length + _TAG.size
