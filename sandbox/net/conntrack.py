"""The kernel's memory of flows (conntrack) of one network namespace: looked through, and single flows forgotten.

It decides once for a flow where its packets go, and keeps to it as long as any come: a client of UDP that goes on asking would be sent for ever
to where a port once led. So what leads to a port is forgotten when the port comes or goes.
"""

from __future__ import annotations

import errno
import socket
import struct
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final, Self

from attrs import frozen

from sandbox.errors import ProtocolError, SetupError, UnsupportedError
from sandbox.net import netlink
from sandbox.net.netlink import NESTED, attribute, attributes

NETLINK_NETFILTER: Final = 12
PROTOCOLS: Final = {"tcp": socket.IPPROTO_TCP, "udp": socket.IPPROTO_UDP}

_FAMILY: Final = struct.Struct(">BBH")  # nfgenmsg
_GET, _DELETE = 0x0101, 0x0102  # NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_*
_ASK: Final = netlink.REQUEST | netlink.DUMP
# linux/netfilter/nfnetlink_conntrack.h
_ORIGINAL, _REPLY, _ID, _ZONE, _FILTER = 1, 2, 12, 18, 25
_IP, _PROTO = 1, 2
_SOURCES, _DESTINATIONS = {4: 1, 6: 3}, {4: 2, 6: 4}
_NUMBER, _SOURCE_PORT, _DESTINATION_PORT = 1, 2, 3
_FILTERS: Final = {_ORIGINAL: 1, _REPLY: 2}  # CTA_FILTER_ORIG_FLAGS, _REPLY_FLAGS
# What of a direction is compared: nf_internals.h ("netfilter: ctnetlink: add kernel side filtering for dump", in v5.8)
_HAS_SOURCE, _HAS_DESTINATION, _HAS_NUMBER, _HAS_SOURCE_PORT, _HAS_DESTINATION_PORT = 1 << 0, 1 << 1, 1 << 3, 1 << 4, 1 << 5
_WAIT_S: Final = 10.0
_CHUNK: Final = 1 << 20


Address = IPv4Address | IPv6Address


@frozen
class Direction:
    """Packets one way. In what is looked for, None and 0 stand for any."""

    protocol: int
    source: Address | None = None
    destination: Address | None = None
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

    @property
    def version(self) -> int:
        """Of IP."""
        return self.original.destination.version if self.original.destination is not None else 4


class Flows:
    """Those of the namespace that a netlink socket is of; the socket is closed with this. One call at a time: the caller has a lock."""

    def __init__(self, fd: int | None = None) -> None:
        kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC
        self._sock = socket.socket(socket.AF_NETLINK, kind, NETLINK_NETFILTER, fileno=fd)
        self._sock.settimeout(_WAIT_S)

    def find(self, *, original: Direction | None = None, reply: Direction | None = None, version: int = 4) -> list[Flow]:
        """The flows of this version of IP of which both directions fit. Raises: UnsupportedError: the kernel does not tell; SetupError."""
        found: list[Flow] = []
        self._sock.send(_request(_GET, _ASK, _filter({_ORIGINAL: original, _REPLY: reply}), version))
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
        self._sock.send(_request(_DELETE, netlink.REQUEST | netlink.ACK, flow.name, flow.version))
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


def _request(kind: int, flags: int, what: bytes, version: int) -> bytes:
    head = _FAMILY.pack(socket.AF_INET if version == 4 else socket.AF_INET6, 0, 0)
    return netlink.message(kind, flags, head + what, sequence=1)


def _filter(wanted: dict[int, Direction | None]) -> bytes:
    tuples, flags = b"", b""
    for kind, direction in wanted.items():
        if direction is not None:
            tuples += attribute(kind | NESTED, _encoded(direction))
            flags += attribute(_FILTERS[kind], struct.pack("=I", _flags(direction)))
    return tuples + (attribute(_FILTER | NESTED, flags) if flags else b"")


def _flags(wanted: Direction) -> int:
    found = _HAS_NUMBER
    # Not by addresses of IPv6: there the kernel leaves out what is equal (ctnetlink_filter_match_tuple, seen on 6.18), and we look ourselves.
    found |= _HAS_SOURCE if isinstance(wanted.source, IPv4Address) else 0
    found |= _HAS_DESTINATION if isinstance(wanted.destination, IPv4Address) else 0
    found |= _HAS_SOURCE_PORT if wanted.source_port else 0
    return found | (_HAS_DESTINATION_PORT if wanted.destination_port else 0)


def _encoded(direction: Direction) -> bytes:
    ends = ((_SOURCES, direction.source), (_DESTINATIONS, direction.destination))
    addresses = b"".join(attribute(kinds[address.version], address.packed) for kinds, address in ends if address is not None)
    ports = ((_SOURCE_PORT, direction.source_port), (_DESTINATION_PORT, direction.destination_port))
    proto = attribute(_NUMBER, bytes([direction.protocol])) + b"".join(attribute(kind, port.to_bytes(2, "big")) for kind, port in ports if port)
    return (attribute(_IP | NESTED, addresses) if addresses else b"") + attribute(_PROTO | NESTED, proto)


def parse(message: bytes) -> Flow | None:
    """Read one flow as the kernel tells it; None: it has no ports or no addresses."""
    found = dict(attributes(message[_FAMILY.size :], strict=False))
    original, reply = (_direction(found.get(kind, b"")) for kind in (_ORIGINAL, _REPLY))
    if original is None or reply is None:
        return None
    name = attribute(_ORIGINAL | NESTED, found[_ORIGINAL])
    return Flow(original, reply, name + b"".join(attribute(kind, found[kind]) for kind in (_ID, _ZONE) if kind in found))


def _direction(data: bytes) -> Direction | None:
    parts = dict(attributes(data, strict=False))
    ip, proto = dict(attributes(parts.get(_IP, b""), strict=False)), dict(attributes(parts.get(_PROTO, b""), strict=False))
    version = next((version for version in (4, 6) if _SOURCES[version] in ip and _DESTINATIONS[version] in ip), None)
    if version is None or _SOURCE_PORT not in proto or _DESTINATION_PORT not in proto:
        return None
    source, destination = ip[_SOURCES[version]], ip[_DESTINATIONS[version]]
    if not len(source) == len(destination) == {4: 4, 6: 16}[version]:
        return None
    ports = (int.from_bytes(proto[kind], "big") for kind in (_SOURCE_PORT, _DESTINATION_PORT))
    return Direction(proto.get(_NUMBER, b"\0")[0], ip_address(source), ip_address(destination), *ports)
