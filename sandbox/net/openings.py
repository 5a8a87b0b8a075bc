"""What an answer about an allowed name opens, and what the container that asked is told. Bytes in, bytes out; no socket, no clock.

The answer comes from whoever owns the name, or from whoever can make a resolver believe so. It opens those addresses alone to which the name itself
leads, by aliases (CNAME) if need be; none that lies inside (DNS rebinding), and only so many. The container gets an answer that is made anew
of just those that were opened, under the name that it asked for, with a time to live that is no longer than they are open.

Nothing is imported here that the name server would have to wait for at its start.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from sandbox.net.roster import to_range

A, CNAME, AAAA, OPT = 1, 5, 28, 41
KNOCK_PORT: Final = 9  # RFC 863; of the switch's loopback, where nobody listens
# How long an address may be open, in seconds. Programs keep an answer of 0 s for as long as a connection takes; nobody's opens a way for days.
TIMES_S: Final = tuple(60 << number for number in range(7))
MOST_S: Final = TIMES_S[-1]
MOST_TTL_S: Final = 3600  # that a container is told; below MOST_S by more than what a program takes between answer and connection
MOST_ADDRESSES: Final = 32  # of an answer
# No name leads there, whatever its owner says: this host and network, private, shared, link-local (metadata services), for protocols (RFC 6890),
# for measuring (the gateway of slirp4netns), multicast, reserved. Of IPv6 only what is given out (2000::/3), but what has an IPv4 address inside.
INSIDE: Final = {
    4: (
        "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12",
        "192.0.0.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "224.0.0.0/3",
    ),
    6: ("::/3", "2001::/23", "2002::/16", "4000::/2", "8000::/1"),
}  # fmt: skip
_INSIDE: Final = tuple(map(to_range, (*INSIDE[4], *INSIDE[6])))
_HEAD: Final = 12
_MOST_RECORDS: Final = 256  # of an answer that are looked at
_MOST_ALIASES: Final = 16
_MOST_NAME: Final = 255
_MOST_POINTERS: Final = 32
_FAMILY: Final = {4: socket.AF_INET, 16: socket.AF_INET6}


class Found(NamedTuple):
    """An address, as packed, and for how many seconds it counts."""

    address: bytes
    ttl: int


def is_in(address: bytes, ranges: Iterable[tuple[int, int, int]]) -> bool:
    """Whether one of *ranges*, which `sandbox.net.roster.to_range` gives, has it."""
    family, number = _FAMILY[len(address)], int.from_bytes(address, "big")
    return any(kind == family and first <= number <= last for kind, first, last in ranges)


def is_inside(address: bytes) -> bool:
    """Whether no name may lead there."""
    return is_in(address, _INSIDE)


def class_of(time_s: float) -> int:
    """Which of `TIMES_S` is at least *time_s*; the last one, if none is."""
    return next((number for number, time in enumerate(TIMES_S) if time >= time_s), len(TIMES_S) - 1)


def knock(address: bytes, group: int, number: int) -> bytes:
    """The datagram that has *address* open for the ports of *group* (`sandbox.net.allow_rules`), for the time of the class *number*."""
    return bytes((4 if len(address) == 4 else 6, number)) + group.to_bytes(2, "big") + address


# ---- Reading answers ----


def addresses_of(answer: bytes, end: int, kind: int) -> list[Found]:
    """Where the name that *answer* is about (its question ends at *end*) leads, by records of *kind* (`A` or `AAAA`).

    Raises: ValueError: it is malformed.
    """
    records = _records(answer, end)
    name, _ = _name(answer, _HEAD)
    ttl = MOST_TTL_S
    for _ in range(_MOST_ALIASES):
        found = [record for record in records if record.owner == name and record.kind == kind and len(record.data) == (4 if kind == A else 16)]
        if found:
            return [Found(record.data, min(ttl, record.ttl)) for record in found[:MOST_ADDRESSES]]
        alias = next((record for record in records if record.owner == name and record.kind == CNAME), None)
        if alias is None:
            break
        name, ttl = _name(answer, alias.at)[0], min(ttl, alias.ttl)
    return []


class _Record(NamedTuple):
    owner: bytes
    kind: int
    ttl: int
    at: int  # where its data is
    data: bytes


def _records(answer: bytes, at: int) -> list[_Record]:
    """Those of its answer section."""
    found: list[_Record] = []
    for _ in range(min(int.from_bytes(answer[6:8], "big"), _MOST_RECORDS)):
        owner, at = _name(answer, at)
        if at + 10 > len(answer):
            raise ValueError("a record is cut off")
        kind, kin, ttl, length = (int.from_bytes(answer[at + low : at + high], "big") for low, high in ((0, 2), (2, 4), (4, 8), (8, 10)))
        at += 10
        if at + length > len(answer):
            raise ValueError("a record's data is cut off")
        if kin == 1:
            found.append(_Record(owner, kind, 0 if ttl >> 31 else ttl, at, answer[at : at + length]))  # RFC 2181, 8
        at += length
    return found


def _name(packet: bytes, at: int) -> tuple[bytes, int]:
    """A name in lower case, its labels with their lengths before them; and what is behind it. Pointers lead back only (RFC 1035, 4.1.4)."""
    found = bytearray()
    behind, least, pointers = 0, at, 0
    while True:
        length = packet[at] if at < len(packet) else -1
        if length >= 0xC0 and at + 1 < len(packet):
            behind, at = behind or at + 2, (length & 0x3F) << 8 | packet[at + 1]
            pointers += 1
            if at >= least or pointers > _MOST_POINTERS:
                raise ValueError("a name's pointer does not lead back")
            least = at
            continue
        if not 0 <= length < 64 or at + 1 + length > len(packet) or len(found) + 1 + length > _MOST_NAME:
            raise ValueError("a name that is none")
        found += packet[at : at + 1 + length]
        at += 1 + length
        if not length:
            return bytes(found).lower(), behind or at


# ---- Writing them ----


def question_alone(packet: bytes, end: int, *, edns: int) -> bytes:
    """The query *packet*, whose question ends at *end*, with nothing else in it. *edns*: how long an answer over UDP may be; 0: that is not said."""
    return packet[:2] + bytes((packet[2] & 1, 0)) + b"\0\1" + bytes(5) + bytes((edns > 0,)) + packet[_HEAD:end] + _opt(edns)


def answer_with(packet: bytes, end: int, kind: int, found: Sequence[Found], *, size: int, edns: int, truncated: bool) -> bytes:
    """An answer of at most *size* bytes to the query *packet*; of what does not fit it says that there is more."""
    room = (size - end - len(_opt(edns))) // (12 + (4 if kind == A else 16))
    given = found[: max(0, room)]
    flags = bytes((0x80 | packet[2] & 1 | (truncated or len(given) < len(found)) << 1, 0x80))
    counts = b"\0\1" + len(given).to_bytes(2, "big") + bytes((0, 0, 0, edns > 0))
    records = (
        b"\xc0\x0c" + kind.to_bytes(2, "big") + b"\0\1" + min(ttl, MOST_TTL_S).to_bytes(4, "big") + len(address).to_bytes(2, "big") + address
        for address, ttl in given
    )
    return packet[:2] + flags + counts + packet[_HEAD:end] + b"".join(records) + _opt(edns)


def _opt(edns: int) -> bytes:
    """EDNS without options (RFC 6891)."""
    return b"\0\0" + bytes((OPT,)) + edns.to_bytes(2, "big") + bytes(6) if edns else b""
