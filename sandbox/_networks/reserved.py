"""Ports of the host that are held for containers: found, bound, and given back.

Theory of operation
-------------------
Packets for a published port never reach a socket of the host: nftables sends them on (`published`). A socket is bound to it all the same: it
is how the kernel tells that the port is somebody's, chooses a free one, and keeps everybody else off; it ends with this process, however that
ends; and who looks (`ss -lntu`) sees it. It has a filter that drops everything: what comes before the rules are there is neither
accepted nor kept, and TCP sends it again.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import threading
from array import array
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from attrs import define

from sandbox.errors import PortInUseError, SetupError, UsageError
from sandbox.net.ports import Address, HostPort, Port, overlap
from sandbox.net.sockets import bound_to, describe, owner_of

ANY: Final = IPv4Address(0)  # all addresses of the host
ANY6: Final = IPv6Address(0)
_SO_ATTACH_FILTER: Final = 26  # asm-generic/socket.h
_CHOICES: Final = 64  # of the kernel's, until one is free for both versions of IP
_KINDS: Final = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}


@define(eq=False)
class Reserved:
    """A port of the host that is ours until its reservation ends, for *port* of a container."""

    port: Port
    address: Address
    number: int
    owner: str
    sock: socket.socket

    def lend(self) -> None:
        """Let go of it for somebody who is to listen there himself, for us."""
        self.sock.close()

    def take_back(self) -> None:
        """Hold it again. Raises: PortInUseError: somebody else was faster."""
        sock = _bound(self.port, self.address, self.number)
        if sock is None:
            raise _in_use(self.port, self.address, self.number)
        self.sock = sock

    @property
    def key(self) -> str:
        """The container's port, as in `Container.ports`."""
        return f"{self.port.number}/{self.port.protocol}"

    @property
    def host(self) -> HostPort:
        return HostPort(str(self.address), self.number)

    def __str__(self) -> str:
        return f"{self.host}/{self.port.protocol}"


def check(ports: Iterable[Port]) -> None:
    """Refuse addresses that nothing can be published at. Raises: UsageError."""
    for port in ports:
        if isinstance(port.address, IPv6Address) and port.address.is_link_local:
            raise UsageError(f"ports: {str(port)!r}: what comes from or to an address of the link (fe80::) is not sent on; give another one, or none")
        if isinstance(port.address, IPv6Address) and port.address.ipv4_mapped:
            raise UsageError(f"ports: {str(port)!r}: that is {port.address.ipv4_mapped}, of IPv4; write it so")


def reserve(ports: Iterable[Port], owner: str, *, ipv6: bool = False) -> tuple[tuple[Reserved, ...], Callable[[], None]]:
    """Hold a port of the host for each of *ports*, for *owner* (words); gives what was found, in their order, and what lets go of it.

    ipv6: where no address is said, hold the same number for IPv6 as well: two for one then.

    Raises: PortInUseError; UsageError: an address is not this host's; SetupError. Nothing is held then.
    """
    wanted = tuple(ports)
    check(wanted)
    found: dict[int, list[Reserved]] = {}
    with ExitStack() as stack, _lock:
        # What was said in numbers first, so that no choice among several takes it away.
        for at, port in sorted(enumerate(wanted), key=lambda pair: pair[1].last - pair[1].first if pair[1].first else 1 << 16):
            found[at] = _reserve(port, owner, ipv6=ipv6)
            for one in found[at]:
                stack.callback(_let_go, one)
                _held.add(one)
        held = stack.pop_all()
    return tuple(one for at in range(len(wanted)) for one in found[at]), held.close


def _reserve(port: Port, owner: str, *, ipv6: bool) -> list[Reserved]:
    addresses: list[Address] = [port.address] if port.address is not None else [ANY, ANY6] if ipv6 else [ANY]
    numbers = range(port.first, port.last + 1) if port.first else [0] * (_CHOICES if len(addresses) > 1 else 1)
    found: list[Reserved] = []
    for number in numbers:
        found = []
        with ExitStack() as stack:
            for address in addresses:  # what the kernel has chosen for one has to be free for the other
                sock = _bound(port, address, found[0].number if found else number)
                if sock is None:
                    break
                stack.callback(sock.close)
                found.append(Reserved(port, address, sock.getsockname()[1], owner, sock))
            else:
                stack.pop_all()
                return found
    raise _in_use(port, addresses[len(found)], port.first)


def _bound(port: Port, address: Address, number: int) -> socket.socket | None:
    """A socket that holds it; None: somebody else has it."""
    with ExitStack() as stack:
        family = socket.AF_INET if address.version == 4 else socket.AF_INET6
        sock = stack.enter_context(socket.socket(family, _KINDS[port.protocol] | socket.SOCK_CLOEXEC))
        _deafen(sock)
        if address.version == 6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        try:
            if port.protocol == "tcp":
                # Connections of an earlier server that have ended do not count. Listening keeps off others that say the same of theirs.
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((str(address), number))
            if port.protocol == "tcp":
                sock.listen(0)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return None
            _raise_failure(error, port, address, number)
        stack.pop_all()
        return sock


def _deafen(sock: socket.socket) -> None:
    """Attach a filter (bpf(4)) of one instruction: return 0, keep nothing."""
    program = array("B", struct.pack("=HBBI", 0x06, 0, 0, 0))  # BPF_RET | BPF_K
    at, _ = program.buffer_info()
    # Some kernels (6.18.44, where it was seen) ask for CAP_NET_ADMIN over the host. An ordinary user's socket holds the port for a moment only, until
    # it is lent: who connects just then is reset.
    with suppress(PermissionError):
        sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("@HP", 1, at))  # struct sock_fprog


def _raise_failure(error: OSError, port: Port, address: Address, number: int) -> None:
    if error.errno == errno.EADDRNOTAVAIL:
        raise UsageError(f"ports: {str(port)!r}: {address} is not an address of this host") from None
    hint = "ports below 1024 are root's; give another one" if error.errno == errno.EACCES else ""
    raise SetupError(f"hold port {number} of {address}", error.errno or 0, step="network", hint=hint) from error


def _in_use(port: Port, address: Address, number: int) -> PortInUseError:
    """The error that says who has *number*, the first of a range."""
    shown = f"{HostPort(str(address), number)}/{port.protocol}"
    ours = next((one for one in _held if (one.port.protocol, one.number) == (port.protocol, number) and overlap(one.address, address)), None)
    bound = bound_to(port.protocol, number, None if address == ANY else address)
    process = owner_of([one.inode for one in bound])
    owner = describe(bound, process) if ours is None else ours.owner
    what = f"port {shown} is taken by {owner}" if port.first == port.last else f"ports {port.first} to {port.last} are all taken, {shown} by {owner}"
    return PortInUseError(
        f"ports: {str(port)!r}: {what}; give another one, or {port.number} alone for one that is free",
        port=shown,
        owner=owner,
        pid=None if process is None else process.pid,
        program=None if process is None else process.program,
    )


def _let_go(one: Reserved) -> None:
    _held.discard(one)
    one.sock.close()


_held: set[Reserved] = set()
_lock: threading.Lock = threading.Lock()


def _after_fork_in_child() -> None:
    """Its copies would keep the ports taken after the parent has ended."""
    global _lock
    _lock = threading.Lock()
    for one in tuple(_held):
        _let_go(one)


os.register_at_fork(after_in_child=_after_fork_in_child)
