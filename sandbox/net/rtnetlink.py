"""Links, addresses and routes by rtnetlink, over sockets that were made inside the namespace they are about. The one module that takes pyroute2.

Theory of operation
-------------------
pyroute2 knows the messages' layout. It takes about 1 ms to put one together in Python, and 0.1 s to be imported, so a network has it
make each message of the hot path once, with marks in the place of what differs from container to container (`Template`); a container then
takes two `bytes.replace`. The kernel carries a request out before sendmsg(2) returns, so its answer is there already when we look.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network
from typing import TYPE_CHECKING, Any, Final

from attrs import frozen

from sandbox.errors import ProtocolError, SetupError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Mapping

NETLINK_ROUTE: Final = 0
BRIDGE: Final = 1000  # indices that we choose need not be asked for; the low ones may be taken by the kernel's fallback tunnels
INSIDE: Final = 1001  # of a container's interface, in its own namespace
FIRST_PORT: Final = 1002
INTERFACE: Final = "eth0"

_HEAD: Final = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port
_ROUTE: Final = struct.Struct("=8BI")  # rtmsg: family, length of the destination, ... flags
_ATTRIBUTE: Final = struct.Struct("=HH")
_NEWLINK, _NEWADDR, _GETROUTE = 16, 20, 26
_ERROR, _DONE = 2, 3
_NEW: Final = 0x0605  # NLM_F_REQUEST | NLM_F_ACK | NLM_F_EXCL | NLM_F_CREATE
_CHANGE: Final = 0x0005  # NLM_F_REQUEST | NLM_F_ACK
_DUMP: Final = 0x0301  # NLM_F_REQUEST | NLM_F_ROOT | NLM_F_MATCH
_RTA_DST: Final = 1
_IFF_UP: Final = 1
_WAIT_S: Final = 10.0
_CHUNK: Final = 1 << 16

# What stands in a template for what is filled in: nothing else of a message has these bytes.
_MARK_PORT, _MARK_FD = 0x5A1B2C3D, 0x5A3D2C1B
_MARK_NAME: Final = "p~~~~~~~~~~"
_MARK_MAC: Final = "02:fe:5a:c3:96:69"
_MARK_ADDRESS: Final = "198.51.100.199"


@frozen
class Templates:
    """The messages that connect one container of a network."""

    link: bytes
    address: bytes
    up: bytes  # for the container's namespace: veth's own end refuses to be up (ENOTCONN) before it has the other one

    def link_of(self, *, port: int, mac: str, namespace: int) -> bytes:
        """Make the pair: its one end a port of the bridge, up; the other in *namespace*, a descriptor of ours."""
        parts = {
            struct.pack("=I", _MARK_PORT): struct.pack("=I", port),
            _MARK_NAME.encode(): f"p{port:010d}".encode(),
            _octets(_MARK_MAC): _octets(mac),
            struct.pack("=I", _MARK_FD): struct.pack("=I", namespace),
        }
        return _filled(self.link, parts)

    def address_of(self, address: IPv4Address) -> bytes:
        return _filled(self.address, {IPv4Address(_MARK_ADDRESS).packed: address.packed})


@lru_cache(maxsize=64)
def templates(subnet: IPv4Network, *, mtu: int) -> Templates:
    """Have pyroute2 make the messages of a network."""
    peer = {
        "index": INSIDE,
        "attrs": [("IFLA_IFNAME", INTERFACE), ("IFLA_ADDRESS", _MARK_MAC), ("IFLA_MTU", mtu), ("IFLA_NET_NS_FD", _MARK_FD)],
    }
    info = {"attrs": [("IFLA_INFO_KIND", "veth"), ("IFLA_INFO_DATA", {"attrs": [("VETH_INFO_PEER", peer)]})]}
    attributes = [("IFLA_IFNAME", _MARK_NAME), ("IFLA_MTU", mtu), ("IFLA_MASTER", BRIDGE), ("IFLA_LINKINFO", info)]
    link = _link(_MARK_PORT, attributes)
    return Templates(link, _address(INSIDE, IPv4Address(_MARK_ADDRESS), subnet), _link(INSIDE, [], flags=_CHANGE))


def bridge(gateway: IPv4Address, subnet: IPv4Network, *, mac: str, mtu: int) -> tuple[bytes, bytes]:
    """Make the bridge, up, and give it the gateway's address."""
    attributes = [("IFLA_IFNAME", "bridge"), ("IFLA_ADDRESS", mac), ("IFLA_MTU", mtu), ("IFLA_LINKINFO", {"attrs": [("IFLA_INFO_KIND", "bridge")]})]
    return _link(BRIDGE, attributes), _address(BRIDGE, gateway, subnet)


def _link(index: int, attributes: list[Any], flags: int = _NEW) -> bytes:
    from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg  # pyright: ignore[reportMissingTypeStubs]

    return _message(ifinfmsg(), _NEWLINK, {"index": index, "flags": _IFF_UP, "change": _IFF_UP, "attrs": attributes}, flags)


def _address(index: int, address: IPv4Address, subnet: IPv4Network) -> bytes:
    from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg  # pyright: ignore[reportMissingTypeStubs]

    attributes = [("IFA_LOCAL", str(address)), ("IFA_ADDRESS", str(address)), ("IFA_BROADCAST", str(subnet.broadcast_address))]
    return _message(ifaddrmsg(), _NEWADDR, {"family": socket.AF_INET, "prefixlen": subnet.prefixlen, "index": index, "attrs": attributes})


def _message(message: Any, kind: int, fields: Mapping[str, Any], flags: int = _NEW) -> bytes:  # noqa: ANN401 - pyroute2 has no types
    for name, value in fields.items():
        message[name] = value
    message["header"]["type"], message["header"]["flags"] = kind, flags
    message.encode()
    return bytes(message.data)


def _octets(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


def _filled(template: bytes, parts: Mapping[bytes, bytes]) -> bytes:
    for mark, value in parts.items():
        if mark not in template or len(mark) != len(value):
            raise ProtocolError(f"a message of rtnetlink without a place for {value.hex()}")
        template = template.replace(mark, value)
    return template


class Requests:
    """A netlink socket, which is closed with this; *fd* is ours from now on. One request at a time: the caller has a lock."""

    def __init__(self, fd: int) -> None:
        self._sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_ROUTE, fileno=fd)
        self._sock.settimeout(_WAIT_S)

    def send(self, message: bytes, what: str) -> None:
        """Have it carried out. Raises: SetupError; UnsupportedError: the kernel knows no such links."""
        self._sock.send(message)
        answer = self._sock.recv(_CHUNK)
        if len(answer) < _HEAD.size + 4 or _HEAD.unpack_from(answer)[1] != _ERROR:
            raise ProtocolError(f"{what}: the kernel's answer is no acknowledgement")
        code = -int.from_bytes(answer[_HEAD.size : _HEAD.size + 4], "little", signed=True)
        if code == errno.EOPNOTSUPP:
            raise UnsupportedError(f"{what}: this kernel has no such links", feature="bridge, veth", remedy="modprobe -a bridge veth")
        if code:
            raise SetupError(what, code, step="network")

    def close(self) -> None:
        """Close the socket."""
        self._sock.close()


def routes() -> list[IPv4Network]:
    """The destinations of all routes, in all tables, of the namespace that the calling thread is in."""
    found: list[IPv4Network] = []
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_ROUTE) as sock:
        sock.settimeout(_WAIT_S)
        body = _ROUTE.pack(socket.AF_INET, *([0] * 7), 0)
        sock.send(_HEAD.pack(_HEAD.size + len(body), _GETROUTE, _DUMP, 1, 0) + body)
        while True:
            for kind, data in _messages(sock.recv(1 << 20)):
                if kind == _DONE:
                    return found
                if kind == _ERROR:
                    code = -int.from_bytes(data[:4], "little", signed=True)
                    raise SetupError("read the host's routes", code or errno.EIO, hint=os.strerror(code))
                found += _destination(data)


def _messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + _HEAD.size <= len(data):
        length, kind, *_ = _HEAD.unpack_from(data, at)
        if length < _HEAD.size:
            return
        yield kind, data[at + _HEAD.size : at + length]
        at += (length + 3) & ~3


def _destination(route: bytes) -> list[IPv4Network]:
    """Of one route; a default route has none."""
    prefix, at = route[1], _ROUTE.size
    while at + _ATTRIBUTE.size <= len(route):
        length, kind = _ATTRIBUTE.unpack_from(route, at)
        if length < _ATTRIBUTE.size:
            break
        if kind == _RTA_DST:
            return [IPv4Network((route[at + 4 : at + 8], prefix), strict=False)]
        at += (length + 3) & ~3
    return []
