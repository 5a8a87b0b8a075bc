"""Names in networks that are kept: each process answers its own containers, and all read one roster.

Theory of operation
-------------------
The roster is a file of the network's directory (`sandbox.net.shared_roster`), to which a line is appended when a container comes or goes.
Every process that has containers there has the name server that it has for its other networks, too, with sockets in the switch: it knows all
networks of its containers, which nobody else does. All ask the gateway's port 53; a map in the switch leads what each asks to its own process's
server, which ends when its containers do: nobody depends on another's life. What those who have left, or were killed, leave in the map is of
addresses that nobody has, and is replaced when somebody gets one.

Refused: one server for the network, of whoever came first. Somebody would have to take over from a process that is killed, what waits
in its sockets is lost, and of a container's other networks it knows nothing. SO_REUSEPORT, a socket of each process at port 53: the kernel deals
questions out among them by a hash, so that strangers are asked again. A table with an owner for each process, which goes with it: to remove a
table is to wait for the kernel (RCU), 14 ms whenever the last container of a process leaves (load 8).
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from ipaddress import IPv4Address
from typing import TYPE_CHECKING, Final

from sandbox._networks.names import PORT as ASKED
from sandbox._networks.names import NetworkNames, be_heard_knocking, listen
from sandbox.errors import NetworkNotFoundError, SetupError
from sandbox.net.allow import groups_of, to_allow
from sandbox.net.nft import (
    IPV4,
    NETLINK_NETFILTER,
    PORT,
    PROTOCOL,
    Chain,
    Element,
    Nftables,
    Set,
    Table,
    Transaction,
    accept,
    ct_status,
    dnat_to,
    iifname,
    ip_daddr,
    ip_saddr,
    l4proto,
    reject,
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
_FILTERS: Final = (socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER)
_KNOCKS: Final = (socket.AF_INET, socket.SOCK_DGRAM, 0)
_SOCKETS: Final = (
    _FILTERS,
    (socket.AF_INET, socket.SOCK_DGRAM, 0),
    (socket.AF_INET, socket.SOCK_STREAM, 0),
    (socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_ROUTE),
)
_TABLE: Final = Table("ip", "names")
_SERVERS: Final = Set(_TABLE, "servers", (IPV4, PROTOCOL), data=(IPV4, PORT))  # who asks, and how: who answers


def lead(info: NetworkInfo, switch: Switch) -> None:
    """Have a new switch lead questions. Raises: UnsupportedError (no nf_tables), SetupError."""
    chain = Chain(_TABLE, "questions", hook="prerouting", type="nat", priority=_DESTINATION)
    work = Transaction().add(_TABLE).add(_SERVERS).add(chain)
    for to_port in (udp_dport, tcp_dport):
        asks = iifname("bridge"), ip_daddr(IPv4Address(info.gateway)), to_port(ASKED)
        work.add(rule(chain, [*asks, dnat_to(_SERVERS, ip_saddr, l4proto)]))
    # Nobody gets at servers but by the map: those of other processes are not his to keep busy.
    inward = Chain(_TABLE, "inward", hook="input")
    work.add(inward).add(rule(inward, [iifname.is_not("bridge"), accept])).add(rule(inward, [ct_status("dnat"), accept]))
    for protocol in ("udp", "tcp"):
        work.add(rule(inward, [l4proto(protocol), reject(code="port-unreachable")]))
    with switch.filters() as kernel:
        kernel.commit(work)


def sockets_for(info: NetworkInfo) -> tuple[tuple[int, int, int], ...]:
    """Those of the switch that `KeptNames` takes, each as domain, kind and protocol."""
    return (*_SOCKETS, _KNOCKS) if _only(info) else _SOCKETS


def _only(info: NetworkInfo) -> dict[str, int] | None:
    """The names that alone are asked for outside, with what each opens; None: all are. A question is a message to whoever answers for its name."""
    return None if info.allow is None else groups_of(to_allow(info.allow) or ())[0]


def make(directory: Directory, info: NetworkInfo) -> None:
    """Begin the roster of a network on its way."""
    writer = SharedWriter(os.open(NAMES, os.O_RDWR | os.O_CREAT | os.O_EXCL | _FILE, 0o600, dir_fd=directory.fd), list)
    try:
        writer.begin(info.name, filter(None, (info.subnet, info.subnet6)), forwards=not info.internal, only=_only(info))
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
    """The names of a kept network, while this process has containers in it. Thread-safe.

    *fds*: of `sockets_for`, ours from now on. Raises: SetupError.
    """

    def __init__(self, info: NetworkInfo, directory: Directory, fds: Iterable[int]) -> None:
        self._directory, self._gateway = directory, IPv4Address(info.gateway)
        with ExitStack() as stack:
            filters, *others = fds
            self._kernel = Nftables(filters)
            stack.callback(self._kernel.close)
            udp, tcp, links, *knocks = (socket.socket(fileno=fd) for fd in others)
            for sock in (udp, tcp, links, *knocks):
                stack.callback(sock.close)
            for sock in knocks:
                be_heard_knocking(sock)
            listen((udp, tcp), info.gateway, BRIDGE, 0)
            links.bind((0, GROUP_LINKS))
            self._reading = os.open(NAMES, os.O_RDONLY | _FILE, dir_fd=directory.fd)
            stack.callback(os.close, self._reading)
            roster = SharedWriter(os.open(NAMES, os.O_RDWR | _FILE, dir_fd=directory.fd), self._living)
            stack.callback(roster.close)
            self.ports = {number: sock.getsockname()[1] for number, sock in ((socket.IPPROTO_UDP, udp), (socket.IPPROTO_TCP, tcp))}
            stack.pop_all()
        self._begin([udp, tcp, links, *knocks], roster)

    def _living(self, members: Iterable[Member]) -> list[Member]:
        """Those that are in there still; who asks has the directory's lock."""
        ports = {lease.port for lease in self._directory.state().leases}
        return [member for member in members if member.port in ports]

    @property
    def fds(self) -> list[int]:
        return [self._reading, *(sock.fileno() for sock in self._sockets)]

    def join(self, member: Member) -> None:
        with self._directory.held():
            self._lead(IPv4Address(member.addresses[0]))
            super().join(member)

    def _lead(self, address: IPv4Address) -> None:
        """Have what this one asks come to our server; the caller has the directory's lock."""
        elements = [Element((address, number), (self._gateway, port)) for number, port in self.ports.items()]
        try:
            self._kernel.commit(Transaction().add_elements(_SERVERS, elements, exist_ok=True))
        except SetupError as error:
            if error.errno not in (errno.EEXIST, errno.EBUSY):  # another server's is there
                raise
            # Of somebody who has left, and had that address. Whoever leaves does not take it out: a socket over which something was taken out waits
            # for the kernel (RCU) when it is closed, 6 ms whenever the last container of a process leaves (load 10).
            self._kernel.commit(Transaction().delete_elements(_SERVERS, elements).add_elements(_SERVERS, elements))

    def leave(self, key: str) -> None:
        with suppress(NetworkNotFoundError), self._directory.held():  # it was removed by force
            super().leave(key)

    def abandon(self) -> None:
        super().abandon()
        os.close(self._reading)
        self._kernel.close()
