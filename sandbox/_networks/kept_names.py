"""Names in networks that are kept: each process answers its own containers, and all read one roster.

Theory of operation
-------------------
The roster is a file of the network's directory (`sandbox.net.shared_roster`), to which a line is appended when a container comes or goes.
Every process that has containers there has the name server that it has for its other networks, too, with sockets in the switch: it knows all
networks of its containers, which nobody else does. All ask the gateway's port 53; a rule of the process in the switch leads what its own
containers ask to its own server. The rule is in a table with an owner, so it goes with the process, and so do its server and its
containers: nobody depends on another's life.

Refused: one server for the network, of whoever came first. Somebody would have to take over from a process that is killed, what waits
in its sockets is lost, and of a container's other networks it knows nothing. SO_REUSEPORT, a socket of each process at port 53: the kernel deals
questions out among them by a hash, so that strangers are asked again.
"""

from __future__ import annotations

import itertools
import os
import socket
import threading
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from ipaddress import IPv4Address
from typing import TYPE_CHECKING, Final

from sandbox._networks.names import PORT, NetworkNames, listen
from sandbox.errors import NetworkNotFoundError
from sandbox.net.nft import (
    IPV4,
    Chain,
    Element,
    Nftables,
    Set,
    Table,
    Transaction,
    dnat,
    iifname,
    in_set,
    ip_daddr,
    ip_saddr,
    rule,
    tcp_dport,
    udp_dport,
)
from sandbox.net.rtnetlink import BRIDGE, NETLINK_ROUTE
from sandbox.net.shared_roster import GROUP_LINKS, Log, SharedWriter

if TYPE_CHECKING:
    from sandbox._networks.directories import Directory
    from sandbox._networks.switch import Switch
    from sandbox.net.kept import NetworkInfo
    from sandbox.net.roster import Member

NAMES: Final = "names"
_FILE: Final = os.O_NOFOLLOW | os.O_CLOEXEC
_DESTINATION: Final = -100  # nft's dstnat
_SOCKETS: Final = (
    (socket.AF_INET, socket.SOCK_DGRAM, 0),
    (socket.AF_INET, socket.SOCK_STREAM, 0),
    (socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_ROUTE),
)
_numbers: Final = itertools.count(1)


def make(directory: Directory, info: NetworkInfo) -> None:
    """Begin the roster of a network on its way."""
    writer = SharedWriter(os.open(NAMES, os.O_RDWR | os.O_CREAT | os.O_EXCL | _FILE, 0o600, dir_fd=directory.fd), list)
    try:
        # A question is a message to whoever answers for its name: with an allow-list, none goes out.
        only = None if info.allow is None else ()
        writer.begin(info.name, filter(None, (info.subnet, info.subnet6)), forwards=not info.internal, only=only)
    finally:
        writer.close()


def known(directory: Directory) -> dict[int, tuple[str, ...]]:
    """By which names those are found who have a port in the switch, or had one."""
    try:
        log = Log(os.open(NAMES, os.O_RDONLY | _FILE, dir_fd=directory.fd))
    except FileNotFoundError:  # it has just been removed
        return {}
    try:
        log.refresh()
        return {member.port: member.names for member in log.members.values()}
    finally:
        log.close()


class KeptNames(NetworkNames):
    """The names of a kept network, while this process has containers in it. Thread-safe. Raises: SetupError, UnsupportedError."""

    def __init__(self, info: NetworkInfo, directory: Directory, switch: Switch) -> None:
        self._directory = directory
        self._addresses: dict[str, IPv4Address] = {}  # of our own, by their keys
        with ExitStack() as stack:
            udp, tcp, links = (socket.socket(fileno=fd) for fd in switch.sockets(*_SOCKETS))
            for sock in (udp, tcp, links):
                stack.callback(sock.close)
            listen((udp, tcp), info.gateway, BRIDGE, 0)
            links.bind((0, GROUP_LINKS))
            self._reading = os.open(NAMES, os.O_RDONLY | _FILE, dir_fd=directory.fd)
            stack.callback(os.close, self._reading)
            roster = SharedWriter(os.open(NAMES, os.O_RDWR | _FILE, dir_fd=directory.fd), self._living)
            stack.callback(roster.close)
            self._rules = _Rules(switch.filters(), IPv4Address(info.gateway), udp.getsockname()[1], tcp.getsockname()[1])
            stack.callback(self._rules.close)
            stack.pop_all()
        self._begin([udp, tcp, links], roster)

    def _living(self, members: Iterable[Member]) -> list[Member]:
        """Those that are in there still; who asks has the directory's lock."""
        ports = {lease.port for lease in self._directory.state().leases}
        return [member for member in members if member.port in ports]

    @property
    def fds(self) -> list[int]:
        return [self._reading, *(sock.fileno() for sock in self._sockets)]

    def join(self, member: Member) -> None:
        self._addresses[member.key] = address = IPv4Address(member.addresses[0])
        self._rules.add(address)
        with self._directory.held():
            super().join(member)

    def leave(self, key: str) -> None:
        with suppress(NetworkNotFoundError), self._directory.held():  # it was removed by force
            super().leave(key)
        address = self._addresses.pop(key, None)
        if address is not None:
            self._rules.remove(address)

    def abandon(self) -> None:
        super().abandon()
        os.close(self._reading)
        self._rules.close()


class _Rules:
    """Those in the switch, which lead what the containers of this process ask to its server. *kernel*: ours from now on."""

    def __init__(self, kernel: Nftables, gateway: IPv4Address, udp: int, tcp: int) -> None:
        self._kernel, self._lock = kernel, threading.Lock()
        table = Table("ip", f"names-{os.getpid()}-{next(_numbers)}", owner=True)
        self._own = Set(table, "own", (IPV4,))
        chain = Chain(table, "questions", hook="prerouting", type="nat", priority=_DESTINATION)
        work = Transaction().add(table).add(self._own).add(chain)
        for to_port, port in ((udp_dport, udp), (tcp_dport, tcp)):
            asks = iifname("bridge"), ip_daddr(gateway), in_set(self._own, ip_saddr)
            work.add(rule(chain, [*asks, to_port(PORT), dnat(gateway, port)]))
        try:
            kernel.commit(work)
        except BaseException:
            kernel.close()
            raise

    def add(self, address: IPv4Address) -> None:
        with self._lock:
            self._kernel.commit(Transaction().add_elements(self._own, [Element(address)], exist_ok=True))

    def remove(self, address: IPv4Address) -> None:
        with self._lock:
            self._kernel.commit(Transaction().delete_elements(self._own, [Element(address)]))

    def close(self) -> None:
        """Let go of them, and so have them removed; in a forked child, of its copy."""
        self._kernel.close()
