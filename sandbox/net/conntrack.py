"""The kernel's memory of flows (conntrack) of one network namespace: looked through, and single flows forgotten.

It decides once for a flow where its packets go, and keeps to it as long as any come: a client of UDP that goes on asking would be sent for ever
to where a port once led. So what leads to a port is forgotten when the port comes or goes.
"""

from __future__ import annotations

import errno
import socket
import struct
from ipaddress import IPv4Address
from typing import Final, Self

from attrs import frozen

from sandbox.errors import ProtocolError, SetupError, UnsupportedError
from sandbox.net import netlink
from sandbox.net.netlink import NESTED, attribute, attributes

NETLINK_NETFILTER: Final = 12
PROTOCOLS: Final = {"tcp": socket.IPPROTO_TCP, "udp": socket.IPPROTO_UDP}

_FAMILY: Final = struct.pack(">BBH", socket.AF_INET, 0, 0)  # nfgenmsg
_GET, _DELETE = 0x0101, 0x0102  # NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_*
_ASK: Final = netlink.REQUEST | netlink.DUMP
# linux/netfilter/nfnetlink_conntrack.h
_ORIGINAL, _REPLY, _ID, _ZONE, _FILTER = 1, 2, 12, 18, 25
_IP, _PROTO = 1, 2
_SOURCE, _DESTINATION = 1, 2
_NUMBER, _SOURCE_PORT, _DESTINATION_PORT = 1, 2, 3
_FILTERS: Final = {_ORIGINAL: 1, _REPLY: 2}  # CTA_FILTER_ORIG_FLAGS, _REPLY_FLAGS
# What of a direction is compared: nf_internals.h ("netfilter: ctnetlink: add kernel side filtering for dump", in v5.8)
_HAS_SOURCE, _HAS_DESTINATION, _HAS_NUMBER, _HAS_SOURCE_PORT, _HAS_DESTINATION_PORT = 1 << 0, 1 << 1, 1 << 3, 1 << 4, 1 << 5
_WAIT_S: Final = 10.0
_CHUNK: Final = 1 << 20


@frozen
class Direction:
    """Packets one way. In what is looked for, None and 0 stand for any."""

    protocol: int
    source: IPv4Address | None = None
    destination: IPv4Address | None = None
    source_port: int = 0
    destination_port: int = 0

    def fits(self, found: Direction) -> bool:
        """Whether *found* is one of those that this looks for."""
        pairs = zip((self.source, self.destination, self.source_port or None, self.destination_port or None),
                    (found.source, found.destination, found.source_port, found.destination_port), strict=True)  # fmt: skip
        return self.protocol == found.protocol and all(mine in (None, theirs) for mine, theirs in pairs)


@frozen
class Flow:
    """One flow. *name*: the attributes by which the kernel knows it."""

    original: Direction
    reply: Direction
    name: bytes


class Flows:
    """Those of the namespace that a netlink socket is of; the socket is closed with this. One call at a time: the caller has a lock."""

    def __init__(self, fd: int | None = None) -> None:
        kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC
        self._sock = socket.socket(socket.AF_NETLINK, kind, NETLINK_NETFILTER, fileno=fd)
        self._sock.settimeout(_WAIT_S)

    def find(self, *, original: Direction | None = None, reply: Direction | None = None) -> list[Flow]:
        """The flows of which both directions fit. Raises: UnsupportedError: the kernel does not tell; SetupError."""
        found: list[Flow] = []
        self._sock.send(_request(_GET, _ASK, _filter({_ORIGINAL: original, _REPLY: reply})))
        while True:
            for kind, _, _, body in netlink.messages(self._sock.recv(_CHUNK)):
                if kind == netlink.DONE:
                    return found
                if kind == netlink.ERROR:
                    _raise(body, "look through the flows")
                    continue
                flow = parse(body)
                # A kernel that does not know of filters tells all of them.
                if flow and (original is None or original.fits(flow.original)) and (reply is None or reply.fits(flow.reply)):
                    found.append(flow)

    def forget(self, flow: Flow) -> None:
        """Have the kernel decide anew with its next packet. One that has ended is none of our concern. Raises: SetupError."""
        self._sock.send(_request(_DELETE, netlink.REQUEST | netlink.ACK, flow.name))
        for kind, _, _, body in netlink.messages(self._sock.recv(_CHUNK)):
            if kind != netlink.ERROR:
                raise ProtocolError("forget a flow: the kernel's answer is no acknowledgement")
            _raise(body, "forget a flow", but=errno.ENOENT)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket."""
        self._sock.close()


def _raise(body: bytes, what: str, *, but: int = 0) -> None:
    code = netlink.code_of(body)
    if code == errno.EINVAL and body[8:10] == _GET.to_bytes(2, "little"):
        raise UnsupportedError(f"{what}: this kernel does not tell", feature="conntrack", remedy="modprobe nf_conntrack_netlink")
    if code not in (0, but):
        raise SetupError(what, code, step="network")


def _request(kind: int, flags: int, what: bytes) -> bytes:
    return netlink.message(kind, flags, _FAMILY + what, sequence=1)


def _filter(wanted: dict[int, Direction | None]) -> bytes:
    tuples, flags = b"", b""
    for kind, direction in wanted.items():
        if direction is not None:
            tuples += attribute(kind | NESTED, _encoded(direction))
            flags += attribute(_FILTERS[kind], struct.pack("=I", _flags(direction)))
    return tuples + (attribute(_FILTER | NESTED, flags) if flags else b"")


def _flags(wanted: Direction) -> int:
    found = _HAS_NUMBER
    found |= _HAS_SOURCE if wanted.source is not None else 0
    found |= _HAS_DESTINATION if wanted.destination is not None else 0
    found |= _HAS_SOURCE_PORT if wanted.source_port else 0
    return found | (_HAS_DESTINATION_PORT if wanted.destination_port else 0)


def _encoded(direction: Direction) -> bytes:
    ends = ((_SOURCE, direction.source), (_DESTINATION, direction.destination))
    addresses = b"".join(attribute(kind, address.packed) for kind, address in ends if address is not None)
    ports = ((_SOURCE_PORT, direction.source_port), (_DESTINATION_PORT, direction.destination_port))
    proto = attribute(_NUMBER, bytes([direction.protocol])) + b"".join(attribute(kind, port.to_bytes(2, "big")) for kind, port in ports if port)
    return (attribute(_IP | NESTED, addresses) if addresses else b"") + attribute(_PROTO | NESTED, proto)


def parse(message: bytes) -> Flow | None:
    """Read one flow as the kernel tells it; None: it has no ports or no IPv4."""
    found = dict(attributes(message[len(_FAMILY) :], strict=False))
    original, reply = (_direction(found.get(kind, b"")) for kind in (_ORIGINAL, _REPLY))
    if original is None or reply is None:
        return None
    name = attribute(_ORIGINAL | NESTED, found[_ORIGINAL])
    return Flow(original, reply, name + b"".join(attribute(kind, found[kind]) for kind in (_ID, _ZONE) if kind in found))


def _direction(data: bytes) -> Direction | None:
    parts = dict(attributes(data, strict=False))
    ip, proto = dict(attributes(parts.get(_IP, b""), strict=False)), dict(attributes(parts.get(_PROTO, b""), strict=False))
    if not (len(ip.get(_SOURCE, b"")) == len(ip.get(_DESTINATION, b"")) == 4 and _SOURCE_PORT in proto and _DESTINATION_PORT in proto):
        return None
    ports = (int.from_bytes(proto[kind], "big") for kind in (_SOURCE_PORT, _DESTINATION_PORT))
    return Direction(proto.get(_NUMBER, b"\0")[0], IPv4Address(ip[_SOURCE]), IPv4Address(ip[_DESTINATION]), *ports)
