"""The programs by which packets of flows that are known go past a switch's own stack, and the layout of what they read. Pure; see
`_networks.shortcut` for the whole.

Three programs for each version of IP, which run where packets pass an interface (tc, direct action):

- `learner`, where packets leave by a container's port: of a flow that the rules of the switch have let through, and marked with the port of the
  uplink that it came to, it notes both directions in the map of flows, for `LIFE_NS`;
- `inward`, where packets come by the uplink, and `outward`, where they come from a container: of a flow that is noted, they put the other
  addresses into the packet and send it out at the other end.

What none of them knows to the last detail goes on as if they were not there. All of it is TCP: what begins or ends a connection (SYN, FIN, RST)
always takes the long way, so that conntrack sees it; so do fragments, options of IP, tagged frames, what is too large or has no hops left.

Maps: *slots*, an array written by the owner alone, says of a port of the uplink where it leads now. *flows* (a hash that forgets what was
not used longest) says of a direction until when it is known, in the upper 48 bits of a number whose lower 16 are that port. So a flow says
that a packet may pass, never whereto. Addresses and ports are as they are in packets.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address
from typing import Any, Final

from attrs import frozen

from sandbox.net.bpf import Assembler, Label, Reg

R0, R1, R2, R3, R4, R5, R6, R7, R8, R9, R10 = Reg

# After this, one packet of a flow takes the long way again. Not longer: by the sequence numbers of what it sees, conntrack must know those
# of a connection at 60 Gbit/s still to be ahead (half of 32 bits of bytes), and its times and counts go on.
LIFE_NS: Final = 250_000_000
SLOTS: Final = 1024
FLOWS: Final = 4096  # directions
KNOWN: Final = struct.Struct("=Q")

_LOOKUP, _UPDATE, _L4_SUM, _REDIRECT, _COARSE_NS = 1, 2, 11, 23, 160  # BPF_FUNC_*; the last since Linux 5.11
_PSEUDO_HEAD, _OF_IPV6 = 0x10, 0x80  # BPF_F_PSEUDO_HDR; BPF_F_IPV6, without which sums that an interface has made go wrong (Linux 6.16)
_NEXT, _DROP = -1, 2  # TC_ACT_UNSPEC: whoever is next may say, or it goes on; TC_ACT_SHOT
# struct __sk_buff
_LENGTH, _MARK, _TAGGED, _INTERFACE, _DATA, _END, _GSO_SIZE = 0, 8, 20, 40, 76, 80, 176
# Ethernet, and IPv4 without options
_RECEIVER, _TYPE, _VERSION, _FRAGMENT, _SUM = 0, 12, 14, 20, 24
_FRAGMENT_SWAPPED, _TCP = 0xFF3F, 6
_ETHERNET, _TCP_HEAD = 14, 20
_FIN_SYN_RST_ACK, _ACK = 0x17, 0x10
# The stack
_KEY, _INDEX, _VALUE = -24, -32, -40
# A slot
_INNER, _PORT_INDEX, _ADDRESS = 0, 4, 8


@frozen
class Family:
    """A version of IP: where things are in its packets, and in what is known of them.

    slot: the port, whose interface, address and port the container has, its MAC, the bridge's.
    flow: the client's address and port; the other port where the packet comes in, and by which interface.
    """

    kind: int  # of the frame, as packets have it
    first: tuple[int, int]  # of the first byte: what counts, and what it is
    protocol: int
    hops: int
    source: int
    target: int
    size: int  # of an address
    head: int  # of IP
    port: int  # in a slot
    macs: int
    slot: struct.Struct
    flow: struct.Struct

    @property
    def tcp(self) -> int:
        return _ETHERNET + self.head

    @property
    def source_port(self) -> int:
        return self.tcp

    @property
    def target_port(self) -> int:
        return self.tcp + 2

    @property
    def sum_of_tcp(self) -> int:
        return self.tcp + 16


FAMILIES: Final = {
    4: Family(0x0008, (0xFF, 0x45), 23, 22, 26, 30, 4, 20, 12, 16, struct.Struct("=HxxI4sH2x6s6s4x"), struct.Struct("=4sHHI")),
    6: Family(0xDD86, (0xF0, 0x60), 20, 21, 22, 38, 16, 40, 24, 32, struct.Struct("=HxxI16sH6x6s6s4x"), struct.Struct("=16sHHI")),
}


@frozen
class Ends:
    """What the programs of one network have in common. *there*: the uplink's address in the switch; MACs are bytes."""

    slots: int  # descriptors
    flows: int
    uplink: int
    there: IPv4Address | IPv6Address
    mtu: int
    bridge_mac: bytes
    uplink_mac: bytes
    host_mac: bytes


def slot_of(inner: int) -> int:
    """Where the slot of a port of the uplink is."""
    return inner % SLOTS


def swapped(port: int) -> int:
    """A port as packets have it."""
    return struct.unpack("=H", struct.pack(">H", port))[0]  # type: ignore[no-any-return]


def slot(inner: int, interface: int, address: IPv4Address | IPv6Address, port: int, *, mac: bytes, bridge_mac: bytes) -> bytes:
    """A slot; *inner* 0: it leads nowhere."""
    return FAMILIES[address.version].slot.pack(swapped(inner), interface, address.packed, swapped(port), mac, bridge_mac)


class _Program(Assembler):
    """r6 is the packet; *long*: the packet goes on as if nothing was."""

    def __init__(self, ends: Ends) -> None:
        super().__init__()
        self.ends = ends
        self.ip = FAMILIES[ends.there.version]
        self.long = Label()

    def finish(self) -> bytes:
        self.place(self.long)
        self.do(R0, "=", _NEXT)
        self.exit()
        return self.assemble()

    def begin(self) -> None:
        """Have r7 at a packet of TCP whose heads are plain, and which neither begins nor ends a connection."""
        self.do(R6, "=", R1)
        self.load(R1, R6, _TAGGED, 4)
        self.jump_if(R1, "!=", 0, self.long)
        self.at_packet(self.long)
        self.expect(R7, _TYPE, 2, self.ip.kind)
        counts, first = self.ip.first
        self.load(R1, R7, _VERSION, 1)
        self.do(R1, "&", counts)
        self.jump_if(R1, "!=", first, self.long)
        self.expect(R7, self.ip.protocol, 1, _TCP)
        if self.ends.there.version == 4:
            self.load(R1, R7, _FRAGMENT, 2)
            self.do(R1, "&", _FRAGMENT_SWAPPED)
            self.jump_if(R1, "!=", 0, self.long)
        self.load(R1, R7, self.ip.tcp + 13, 1)
        self.do(R1, "&", _FIN_SYN_RST_ACK)
        self.jump_if(R1, "!=", _ACK, self.long)

    def at_packet(self, otherwise: Label) -> None:
        """Have r7 at the packet, with its heads."""
        self.load(R7, R6, _DATA, 4)
        self.load(R2, R6, _END, 4)
        self.do(R1, "=", R7)
        self.do(R1, "+", self.ip.tcp + _TCP_HEAD)
        self.jump_if(R1, ">", R2, otherwise, narrow=False)

    def expect(self, at: Reg, offset: int, size: int, number: Reg | int) -> None:
        self.load(R1, at, offset, size)
        self.jump_if(R1, "!=", number, self.long)

    def words(self) -> range:
        """Of an address."""
        return range(0, self.ip.size, 4)

    def there(self, word: int) -> int:
        """One of the uplink's address."""
        return int.from_bytes(self.ends.there.packed[word : word + 4], "little")

    def expect_slots(self, address: int, port: int) -> None:
        """Of an address and a port in the packet."""
        for here, size, mine in (*((address + word, 4, _ADDRESS + word) for word in self.words()), (port, 2, self.ip.port)):
            self.load(R2, R7, here, size)
            self.expect(R8, mine, size, R2)

    def check_size(self) -> None:
        """What a router would not send on: without hops left, or larger than what all our interfaces take."""
        one = Label()
        self.load(R1, R7, self.ip.hops, 1)
        self.jump_if(R1, "<=", 1, self.long)
        self.load(R1, R6, _GSO_SIZE, 4)
        self.load(R2, R6, _LENGTH, 4)
        self.do(R2, "-", _ETHERNET)
        self.jump_if(R1, "==", 0, one)
        self.load(R2, R7, self.ip.tcp + 12, 1)  # several packets in one: each of them is of that size, and has heads
        self.do(R2, ">>", 4)
        self.do(R2, "<<", 2)
        self.do(R2, "+", self.ip.head)
        self.do(R2, "+", R1)
        self.place(one)
        self.jump_if(R2, ">", self.ends.mtu, self.long)

    def key(self, at: int, client: int, client_port: int, other_port: Reg, interface: Reg | int) -> None:
        """A key of *flows* on the stack; where the client's address and port are in the packet."""
        for word in self.words():
            self.load(R1, R7, client + word, 4)
            self.store(R10, at + word, R1, 4)
        at += self.ip.size
        self.load(R1, R7, client_port, 2)
        self.store(R10, at, R1, 2)
        self.store(R10, at + 2, other_port, 2)
        self.store(R10, at + 4, interface, 4)

    def find_slot(self) -> None:
        """Have r8 at the slot of the port in r9, if it is that one's."""
        self.do(R1, "=", R9)
        self.swap16(R1)
        self.do(R1, "&", SLOTS - 1)
        self.store(R10, _INDEX, R1, 4)
        self._find(self.ends.slots, _INDEX)
        self.do(R8, "=", R0)
        self.expect(R8, _INNER, 4, R9)

    def find_flow(self) -> None:
        """Have r9 be the port of the uplink that the flow belongs to, if it is known and its time has not run out."""
        self._find(self.ends.flows, _KEY)
        self.load(R9, R0, 0, 8)  # at one go: what is found may be made another's meanwhile
        self.call(_COARSE_NS)
        self.jump_if(R0, ">=", R9, self.long, narrow=False)
        self.do(R9, "&", 0xFFFF)

    def _find(self, fd: int, key: int) -> None:
        self.load_map(R1, fd)
        self.do(R2, "=", R10)
        self.do(R2, "+", key)
        self.call(_LOOKUP)
        self.jump_if(R0, "==", 0, self.long, narrow=False)

    def translate(self, address: int, port: int, old: tuple[Reg | None, Reg], new: tuple[Reg | None, Reg]) -> None:
        """Give the packet another address and port, where these are in it, and one hop less.

        *old*, *new*: the address is that of the slot, or (None) the uplink's; the port is in a register or, of r8, the slot's.
        """
        drop, done = Label(), Label()
        flags = 4 | _PSEUDO_HEAD | (_OF_IPV6 if self.ends.there.version == 6 else 0)
        otherwise = self.long  # of the first one: nothing is changed then
        for word in self.words():
            self._correct(flags, lambda into, value, word=word: self._word(into, value, word), (old[0], new[0]), otherwise)  # type: ignore[misc]
            otherwise = drop
        self._correct(2, self._port, (old[1], new[1]), drop)
        self.at_packet(drop)
        if self.ends.there.version == 4:
            self._word(R3, old[0], 0)
            self._word(R4, new[0], 0)
            self._sum_head()
        for word in self.words():
            self._word(R4, new[0], word)
            self.store(R7, address + word, R4, 4)
        self.load(R1, R7, self.ip.hops, 1)
        self.do(R1, "-", 1)
        self.store(R7, self.ip.hops, R1, 1)
        self._port(R4, new[1])
        self.store(R7, port, R4, 2)
        self.jump(done)
        self.place(drop)
        self.do(R0, "=", _DROP)
        self.exit()
        self.place(done)

    def _correct(self, flags: int, put: Callable[[Reg, Any], None], values: tuple[object, object], otherwise: Label) -> None:
        """The sum of TCP, for what is another value now. The kernel knows whether it is whole, or left to the interface."""
        self.do(R1, "=", R6)
        self.do(R2, "=", self.ip.sum_of_tcp)
        for into, value in zip((R3, R4), values, strict=True):
            put(into, value)
        self.do(R5, "=", flags)
        self.call(_L4_SUM)
        self.jump_if(R0, "!=", 0, otherwise, narrow=False)

    def _word(self, into: Reg, value: Reg | None, word: int) -> None:
        if value is None:
            self.do(into, "=", self.there(word), narrow=True)
        else:
            self.load(into, value, _ADDRESS + word, 4)

    def _port(self, into: Reg, value: Reg) -> None:
        if value is R8:
            self.load(into, R8, self.ip.port, 2)
        else:
            self.do(into, "=", value)

    def _sum_head(self) -> None:
        """RFC 1624, of r3 that becomes r4 and of one hop less: a sum of halves that does not mind their order of bytes."""
        self.load(R1, R7, _SUM, 2)
        self.do(R1, "^", 0xFFFF)
        self.do(R2, "=", R3)
        self.do(R2, "^", -1, narrow=True)
        self._add_halves(R2)
        self.do(R2, "=", R4)
        self._add_halves(R2)
        self.do(R1, "+", 0xFFFE)  # the hops' half, inverted, and that less one
        for _ in range(2):
            self.do(R2, "=", R1)
            self.do(R2, ">>", 16)
            self.do(R1, "&", 0xFFFF)
            self.do(R1, "+", R2)
        self.do(R1, "^", 0xFFFF)
        self.store(R7, _SUM, R1, 2)

    def _add_halves(self, source: Reg) -> None:
        self.do(R5, "=", source)
        self.do(R5, "&", 0xFFFF)
        self.do(R1, "+", R5)
        self.do(source, ">>", 16)
        self.do(R1, "+", source)

    def send(self, interface: int | None) -> None:
        """Out by that interface, or by the slot's."""
        if interface is None:
            self.load(R1, R8, _PORT_INDEX, 4)
        else:
            self.do(R1, "=", interface)
        self.do(R2, "=", 0)
        self.call(_REDIRECT)
        self.exit()


def inward(ends: Ends) -> bytes:
    """At the uplink, what comes."""
    do = _Program(ends)
    do.begin()
    ip = do.ip
    for word in do.words():
        do.expect(R7, ip.target + word, 4, do.there(word))
    do.load(R9, R7, ip.target_port, 2)
    do.key(_KEY, ip.source, ip.source_port, R9, ends.uplink)
    do.check_size()
    do.find_slot()
    do.store(R10, _VALUE, R9, 8)
    do.find_flow()
    do.load(R1, R10, _VALUE, 8)
    do.jump_if(R1, "!=", R9, do.long)
    do.translate(ip.target, ip.target_port, (None, R9), (R8, R8))
    do.load(R1, R8, ip.macs, 8)
    do.store(R7, _RECEIVER, R1, 8)
    do.load(R1, R8, ip.macs + 8, 4)
    do.store(R7, _RECEIVER + 8, R1, 4)
    do.send(None)
    return do.finish()


def outward(ends: Ends) -> bytes:
    """At a container's port, what comes from the container."""
    do = _Program(ends)
    do.begin()
    do.expect(R7, _RECEIVER, 4, int.from_bytes(ends.bridge_mac[:4], "little"))
    do.expect(R7, _RECEIVER + 4, 2, int.from_bytes(ends.bridge_mac[4:], "little"))
    ip = do.ip
    do.load(R9, R7, ip.source_port, 2)
    do.load(R8, R6, _INTERFACE, 4)
    do.key(_KEY, ip.target, ip.target_port, R9, R8)
    do.check_size()
    do.find_flow()
    do.find_slot()
    do.load(R2, R6, _INTERFACE, 4)
    do.expect(R8, _PORT_INDEX, 4, R2)
    do.expect_slots(ip.source, ip.source_port)
    do.translate(ip.source, ip.source_port, (R8, R8), (None, R9))
    macs = ends.host_mac + ends.uplink_mac
    do.load_number(R1, int.from_bytes(macs[:8], "little"))
    do.store(R7, _RECEIVER, R1, 8)
    do.store(R7, _RECEIVER + 8, int.from_bytes(macs[8:], "little"), 4)
    do.send(ends.uplink)
    return do.finish()


def learner(ends: Ends) -> bytes:
    """At a container's port, what goes to the container."""
    do = _Program(ends)
    do.load(R9, R1, _MARK, 4)
    do.jump_if(R9, "==", 0, do.long)
    do.jump_if(R9, ">", 0xFFFF, do.long)
    do.begin()
    do.find_slot()
    do.load(R2, R6, _INTERFACE, 4)
    do.expect(R8, _PORT_INDEX, 4, R2)
    ip = do.ip
    do.expect_slots(ip.target, ip.target_port)
    do.call(_COARSE_NS)
    do.do(R0, "+", LIFE_NS)
    do.do(R0, ">>", 16)
    do.do(R0, "<<", 16)
    do.do(R0, "|", R9)
    do.store(R10, _VALUE, R0, 8)
    do.key(_KEY, ip.source, ip.source_port, R9, ends.uplink)
    _note(do)
    do.load(R9, R7, ip.target_port, 2)
    do.load(R8, R6, _INTERFACE, 4)
    do.key(_KEY, ip.source, ip.source_port, R9, R8)
    _note(do)
    return do.finish()


def _note(do: _Program) -> None:
    do.load_map(R1, do.ends.flows)
    for register, offset in ((R2, _KEY), (R3, _VALUE)):
        do.do(register, "=", R10)
        do.do(register, "+", offset)
    do.do(R4, "=", 0)
    do.call(_UPDATE)  # a map that is full forgets another flow; where that fails too, this one takes the long way
