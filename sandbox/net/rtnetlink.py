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
import sys
import time
from collections.abc import Iterator, Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import TYPE_CHECKING, Any, Final

from attrs import frozen

from sandbox.errors import ProtocolError, SandboxError, SetupError, UnsupportedError
from sandbox.net import netlink

if TYPE_CHECKING:
    from collections.abc import Mapping

NETLINK_ROUTE: Final = 0
BRIDGE: Final = 1000  # indices that we choose need not be asked for; the low ones may be taken by the kernel's fallback tunnels
INSIDE: Final = 1001  # of a container's first interface, in its own namespace; the next ones follow
FIRST_PORT: Final = 1002
UPLINK: Final = 999  # of the switch's end of the pair that leads outside
PORTS: Final = 1  # the group of all ports, by which they can be removed in one go

_ROUTE: Final = struct.Struct("=8BI")  # rtmsg: family, length of the destination, ... flags
_NEWLINK, _DELLINK, _NEWADDR, _NEWROUTE, _GETROUTE, _NEWNEIGH = 16, 17, 20, 24, 26, 28
_NEW: Final = netlink.REQUEST | netlink.EXCL | netlink.CREATE
_PUT: Final = netlink.REQUEST | netlink.REPLACE | netlink.CREATE
_CHANGE: Final = netlink.REQUEST
_RTA_DST, _RTA_OIF, _RTA_GATEWAY = 1, 4, 5
_IFF_UP: Final = 1
_IFA_F_NODAD: Final = 0x02
_NUD_NOARP: Final = 0x40
_NTF_MASTER, _NTF_STICKY = 0x04, 0x40
_AF_BRIDGE: Final = 7
_MAIN_TABLE, _BOOT, _UNICAST = 254, 3, 1  # RT_TABLE_MAIN, RTPROT_BOOT (as `ip route` says), RTN_UNICAST
_KERNEL: Final = (0, 0)  # said as the destination, it makes the kernel ask for the sender's rights alone; see _networks/switch.py
_WAIT_S: Final = 10.0
_CHUNK: Final = 1 << 16

# What stands in a template for what is filled in: nothing else of a message has these bytes.
_MARK_PORT, MARK_FD = 0x5A1B2C3D, 0x5A3D2C1B
_MARK_NAME: Final = "p~~~~~~~~~~"
_MARK_MAC: Final = "02:fe:5a:c3:96:69"
_MARK_ADDRESS: Final = IPv4Address("198.51.100.199")
_MARK_ADDRESS6: Final = IPv6Address("2001:db8:5ac3:9669:1b2c:3d5a:c396:695a")


@frozen
class Templates:
    """The messages that connect one container of a network by its *interface*, ``eth0`` say; *index* is that one's in its namespace."""

    interface: str
    index: int
    link: bytes
    neighbour: bytes
    address: bytes
    address6: bytes | None  # of a network with IPv6
    up: bytes  # for the container's namespace: veth's own end refuses to be up (ENOTCONN) before it has the other one

    def link_of(self, *, port: int, mac: str) -> bytes:
        """Make the pair: its one end a port of the bridge, up; the other in a namespace that whoever sends it names (`Batch.mark`)."""
        parts = {
            struct.pack("=I", _MARK_PORT): struct.pack("=I", port),
            _MARK_NAME.encode(): name_of_port(port).encode(),
            _octets(_MARK_MAC): _octets(mac),
        }
        return _filled(self.link, parts)

    def neighbour_of(self, *, port: int, mac: str) -> bytes:
        """Have the bridge know at once, and for good, behind which port *mac* is: another container had it before, perhaps, or claims to."""
        return _filled(self.neighbour, {struct.pack("=I", _MARK_PORT): struct.pack("=I", port), _octets(_MARK_MAC): _octets(mac)})

    def addresses_of(self, address: IPv4Address, address6: IPv6Address | None, mac: str) -> list[bytes]:
        """Give the interface its addresses, that of its link too, and bring it up."""
        found = [_filled(self.address, {_MARK_ADDRESS.packed: address.packed}), _filled(self.up, {_octets(_MARK_MAC): _octets(mac)})]
        if self.address6 is not None and address6 is not None:  # once it is up: IPv6 begins on it only then
            found.append(_filled(self.address6, {_MARK_ADDRESS6.packed: address6.packed}))
        return found


def name_of_port(port: int) -> str:
    """The name of a container's port in the switch."""
    return f"p{port:010d}"


@lru_cache(maxsize=256)
def templates(subnet: IPv4Network, subnet6: IPv6Network | None, *, mtu: int, number: int) -> Templates:
    """Have pyroute2 make the messages of a network, for containers of which it is the *number*-th."""
    interface, index = f"eth{number}", INSIDE + number
    peer = {
        "index": index,
        "attrs": [("IFLA_IFNAME", interface), ("IFLA_ADDRESS", _MARK_MAC), ("IFLA_MTU", mtu), ("IFLA_NET_NS_FD", MARK_FD)],
    }
    info = {"attrs": [("IFLA_INFO_KIND", "veth"), ("IFLA_INFO_DATA", {"attrs": [("VETH_INFO_PEER", peer)]})]}
    attributes = [("IFLA_IFNAME", _MARK_NAME), ("IFLA_MTU", mtu), ("IFLA_MASTER", BRIDGE), ("IFLA_GROUP", PORTS), ("IFLA_LINKINFO", info)]
    return Templates(
        interface,
        index,
        link=_link(_MARK_PORT, attributes),
        neighbour=_neighbour(),
        address=_address(index, _MARK_ADDRESS, subnet),
        address6=None if subnet6 is None else _address(index, _MARK_ADDRESS6, subnet6),
        up=_link(index, [("IFLA_ADDRESS", _MARK_MAC)], flags=_CHANGE),
    )


def bridge(mac: str, mtu: int) -> bytes:
    """Make the bridge, up."""
    # No state that what containers send would fill: no table of groups, no spanning tree.
    info = {"attrs": [("IFLA_INFO_KIND", "bridge"), ("IFLA_INFO_DATA", {"attrs": [("IFLA_BR_MCAST_SNOOPING", 0), ("IFLA_BR_STP_STATE", 0)]})]}
    attributes = [("IFLA_IFNAME", "bridge"), ("IFLA_ADDRESS", mac), ("IFLA_MTU", mtu), ("IFLA_LINKINFO", info)]
    return _link(BRIDGE, attributes)


def bridge_address(gateway: IPv4Address | IPv6Address, subnet: IPv4Network | IPv6Network) -> bytes:
    """Give the bridge the gateway's address."""
    return _address(BRIDGE, gateway, subnet)


def uplink(name: str, mtu: int, outside: int, *, macs: tuple[str, str]) -> bytes:
    """Make the pair that leads outside: ``uplink`` here, *name* in *outside*, a descriptor of a namespace. Neither is up yet.

    *macs*: of the outer one and of this one.
    """
    # This way round: veth heeds the index of a peer only where the first one's is given too, and what is free outside is not ours to know.
    peer = {"attrs": [("IFLA_IFNAME", name), ("IFLA_ADDRESS", macs[0]), ("IFLA_MTU", mtu), ("IFLA_NET_NS_FD", outside)]}
    info = {"attrs": [("IFLA_INFO_KIND", "veth"), ("IFLA_INFO_DATA", {"attrs": [("VETH_INFO_PEER", peer)]})]}
    attributes = [("IFLA_IFNAME", "uplink"), ("IFLA_ADDRESS", macs[1]), ("IFLA_MTU", mtu), ("IFLA_LINKINFO", info)]
    return _link(UPLINK, attributes, up=False)


def brought_up(index: int, address: IPv4Address | IPv6Address, subnet: IPv4Network | IPv6Network) -> list[bytes]:
    """Give an interface that is there its address, and bring it up."""
    return [_address(index, address, subnet), _link(index, [], flags=_CHANGE)]


def removal(port: int | None) -> bytes:
    """Remove a container's pair, by its port; None: those of all."""
    from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg  # pyright: ignore[reportMissingTypeStubs]

    which = {"attrs": [("IFLA_GROUP", PORTS)]} if port is None else {"index": port}
    return _message(ifinfmsg(), _DELLINK, which, _CHANGE)


@lru_cache(maxsize=256)
def default_route(gateway: IPv4Address | IPv6Address, index: int) -> bytes:
    """Send what is for nobody near to *gateway*, behind the interface *index*, instead of to whom it was sent before."""
    from pyroute2.netlink.rtnl.rtmsg import rtmsg  # pyright: ignore[reportMissingTypeStubs]

    fields = {"family": _family(gateway), "table": _MAIN_TABLE, "proto": _BOOT, "type": _UNICAST}
    return _message(rtmsg(), _NEWROUTE, {**fields, "attrs": [("RTA_GATEWAY", str(gateway)), ("RTA_OIF", index)]}, _PUT)


def _link(index: int, attributes: list[Any], *, flags: int = _NEW, up: bool = True) -> bytes:
    from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg  # pyright: ignore[reportMissingTypeStubs]

    state = _IFF_UP if up else 0
    return _message(ifinfmsg(), _NEWLINK, {"index": index, "flags": state, "change": state, "attrs": attributes}, flags)


def _address(index: int, address: IPv4Address | IPv6Address, subnet: IPv4Network | IPv6Network) -> bytes:
    from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg  # pyright: ignore[reportMissingTypeStubs]

    attributes = [("IFA_LOCAL", str(address)), ("IFA_ADDRESS", str(address))]
    if subnet.version == 4 and subnet.prefixlen < 31:  # a pair of two has none (RFC 3021)
        attributes.append(("IFA_BROADCAST", str(subnet.broadcast_address)))
    flags = 0 if subnet.version == 4 else _IFA_F_NODAD  # nobody else can have it, so nobody is asked for a second whether he has
    fields = {"family": _family(address), "prefixlen": subnet.prefixlen, "flags": flags, "index": index, "attrs": attributes}
    return _message(ifaddrmsg(), _NEWADDR, fields)


def _neighbour() -> bytes:
    from pyroute2.netlink.rtnl.ndmsg import ndmsg  # pyright: ignore[reportMissingTypeStubs]

    fields = {"family": _AF_BRIDGE, "ifindex": _MARK_PORT, "state": _NUD_NOARP, "flags": _NTF_MASTER | _NTF_STICKY}
    return _message(ndmsg(), _NEWNEIGH, {**fields, "attrs": [("NDA_LLADDR", _MARK_MAC)]}, _PUT)


def _family(address: IPv4Address | IPv6Address) -> int:
    return socket.AF_INET if address.version == 4 else socket.AF_INET6


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


@frozen
class Batch:
    """Messages for one system call, numbered from 0 to *last*. *mark*: where the number of a namespace's descriptor belongs, if anywhere."""

    data: bytes
    last: int
    mark: int | None

    @classmethod
    def of(cls, messages: bytes | Sequence[bytes]) -> Batch:
        """Put them together. The kernel tells of what fails, and of what is fine only where it is asked to: of the last one."""
        if isinstance(messages, bytes):
            messages = [messages]
        last = len(messages) - 1
        data = b"".join(_numbered(message, at, netlink.ACK if at == last else 0) for at, message in enumerate(messages))
        at = data.find(struct.pack("=I", MARK_FD))
        return cls(data, last, None if at < 0 else at)

    def naming(self, namespace: int) -> bytes:
        """The messages, with *namespace*, a descriptor of whoever sends them, in its place, if they have one."""
        if self.mark is None:
            return self.data
        return self.data[: self.mark] + struct.pack("=I", namespace) + self.data[self.mark + 4 :]


def refusal(what: str, code: int) -> SandboxError:
    """Words for what the kernel refused."""
    if code == errno.EOPNOTSUPP:
        return UnsupportedError(f"{what}: this kernel has no such links", feature="bridge, veth", remedy="modprobe -a bridge veth")
    return SetupError(what, code, step="network")


def no_socket() -> ProtocolError:
    """What is said when init has answered with something else than what it was asked to open."""
    return ProtocolError("a descriptor that is no socket of rtnetlink, where one was asked for")


class Requests:
    """A netlink socket, which is closed with this; *fd* is ours from now on. One request at a time: the caller has a lock.

    *is_known*: it is one, and may never be used: what Python makes of it is made when it is.
    """

    def __init__(self, fd: int, *, is_known: bool = False) -> None:
        self._fd = fd
        self._made: socket.socket | None = None
        if not is_known:
            self._sock  # noqa: B018  # pyright: ignore[reportUnusedExpression] - which refuses anything else

    @property
    def _sock(self) -> socket.socket:
        made = self._made
        if made is not None:
            return made
        fd, self._fd = self._fd, -1
        try:
            made = socket.socket(fileno=fd)  # whose kind is asked of the kernel: it may come from a container's init
        except OSError:
            os.close(fd)
            raise no_socket() from None
        if (made.family, made.type, made.proto) != (socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_ROUTE):
            made.close()
            raise no_socket()
        made.settimeout(_WAIT_S)
        self._made = made
        return made

    def send(self, messages: bytes | Sequence[bytes], what: str, *, named: int | None = None) -> None:
        """Have them carried out, one after the other, by one system call. The first that fails counts; the kernel goes on behind it.

        *named*: a namespace's descriptor, where they lack one.

        Raises: SetupError; UnsupportedError: the kernel knows no such links.
        """
        batch = Batch.of(messages)
        self._sock.sendto(batch.data if named is None else batch.naming(named), _KERNEL)
        failed, number, deadline = 0, -1, time.monotonic() + _WAIT_S
        while number < batch.last:
            before = number
            number, code = _acknowledged(self._receive(deadline, what), what)
            if number <= before:  # the kernel answers in turn
                raise ProtocolError(f"{what}: the kernel's answers are not in the order of what it was asked")
            failed = failed or code
        if failed:
            raise refusal(what, failed)

    def ask(self, message: bytes, what: str) -> list[bytes]:
        """Put a question, and give what is behind the heads of the answers. Raises: SetupError."""
        self._sock.send(_numbered(message, 0, netlink.ACK))
        found: list[bytes] = []
        deadline = time.monotonic() + _WAIT_S
        while True:
            for kind, _, _, body in netlink.messages(self._receive(deadline, what)):
                if kind not in (netlink.ERROR, netlink.DONE):
                    found.append(body)
                    continue
                if code := netlink.code_of(body):
                    raise SetupError(what, code, step="network")
                return found

    def _receive(self, deadline: float, what: str) -> bytes:
        """The next that the kernel says. An ordinary user's socket was opened by a container's init, which has a copy of it: so one time for all."""
        while (left := deadline - time.monotonic()) > 0:
            self._sock.settimeout(left)
            try:
                data, sender = self._sock.recvfrom(_CHUNK)
            except TimeoutError:
                break
            if sender[0] == 0:  # the kernel, and no other process
                return data
        raise SetupError(what, errno.ETIMEDOUT, step="network")

    def close(self) -> None:
        """Close the socket; twice is fine."""
        if self._made is not None:
            self._made.close()
        elif self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)


def _numbered(message: bytes, number: int, flag: int) -> bytes:
    length, kind, flags, *_ = netlink.HEAD.unpack_from(message)
    return netlink.HEAD.pack(length, kind, flags | flag, number, 0) + message[netlink.HEAD.size :] + bytes(-len(message) % 4)


def _acknowledged(answer: bytes, what: str) -> tuple[int, int]:
    """Which message the kernel answers, and with which errno."""
    first = next(netlink.messages(answer), None)
    if first is None or first.kind != netlink.ERROR:
        raise ProtocolError(f"{what}: the kernel's answer is no acknowledgement")
    return first.sequence, netlink.code_of(first.body)


@frozen
class WayOut:
    """A default route: the interface that it leads through, and the neighbour that it leads to, if it names one."""

    index: int
    gateway: IPv4Address | IPv6Address | None


def routes() -> list[IPv4Network]:
    """The destinations of all routes, in all tables, of the namespace that the calling thread is in. A default route has none."""
    found = [(route[1], _route_attributes(route).get(_RTA_DST)) for route in _routes(socket.AF_INET)]
    return [IPv4Network((destination, prefix), strict=False) for prefix, destination in found if destination is not None]


def ways_out(version: int = 4) -> list[WayOut]:
    """The default routes of the namespace that the calling thread is in; one through several interfaces is left out. *version*: of IP."""
    found: list[WayOut] = []
    for route in _routes(socket.AF_INET if version == 4 else socket.AF_INET6):
        attributes = _route_attributes(route)
        if route[1] == 0 and route[7] == _UNICAST and _RTA_OIF in attributes:
            gateway = attributes.get(_RTA_GATEWAY)
            found.append(WayOut(int.from_bytes(attributes[_RTA_OIF], sys.byteorder), None if gateway is None else ip_address(gateway)))
    return found


def _routes(family: int) -> Iterator[bytes]:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_ROUTE) as sock:
        sock.settimeout(_WAIT_S)
        body = _ROUTE.pack(family, *([0] * 7), 0)
        sock.send(netlink.message(_GETROUTE, netlink.REQUEST | netlink.DUMP, body, sequence=1))
        while True:
            for kind, _, _, data in netlink.messages(sock.recv(1 << 20)):
                if kind == netlink.DONE:
                    return
                if kind == netlink.ERROR:
                    code = netlink.code_of(data)
                    raise SetupError("read the host's routes", code or errno.EIO, hint=os.strerror(code))
                yield data


def _route_attributes(route: bytes) -> dict[int, bytes]:
    return dict(netlink.attributes(route[_ROUTE.size :]))
