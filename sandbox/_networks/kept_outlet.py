"""The way out of an ordinary user's kept network: each process that has containers there has a program of its own for them (`outlet`).

Theory of operation
-------------------
The switch is shared, the program is not: slirp4netns has a tap interface there, ``outlet1234``, named after a number that nobody else ever has in
this network. A table of nf_tables with an owner marks what containers of this process send, and one rule of routing has what is so marked
leave by that interface; the same table has what comes to a published port go to a container. What is the same for all (nothing passes but by
these ways, what leaves has the interface's address, nobody gets at what is beyond it) is made with the switch.

So nobody depends on another's life. Who is killed takes with him his containers, his program and its interface (with the route), and the table; his
rule of routing stays, leads nowhere, and is removed by the next one who comes. What others have connected goes on. Ports of an interface that stand
for published ones are given out for the whole network, round and round: what conntrack remembers of a dead process's leads to nobody.

Refused: one program for all, of whoever is the first. Somebody would have to notice its end, in processes which have no thread that waits, and start
the next one; until then nobody gets out, all connections are lost, and all ports have to be published again by those who know them.
"""

from __future__ import annotations

import errno
import os
from contextlib import ExitStack, suppress
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING, Final

from attrs import evolve

from sandbox._networks.outlet import INTERFACE, Outlet, find_program
from sandbox._networks.passage import BRIDGE, Passage, walls
from sandbox.errors import NetworkNotFoundError, SandboxError, SetupError
from sandbox.net.kept import Published
from sandbox.net.marked import led, not_led
from sandbox.net.nft import (
    IPV4,
    IPV6,
    PORT,
    PROTOCOL,
    Chain,
    Element,
    Nftables,
    Set,
    Table,
    Transaction,
    dnat_to,
    iifname,
    in_set,
    ip6_saddr,
    ip_saddr,
    l4proto,
    rule,
    set_mark,
    th_dport,
)

if TYPE_CHECKING:
    from sandbox._networks.directories import Directory
    from sandbox._networks.switch import Switch
    from sandbox.net.rtnetlink import Requests

_MARKING: Final = -150  # nft's mangle: before routing
_DESTINATION: Final = -100  # nft's dstnat
_VERSIONS: Final = (4, 6)


def wall_off(switch: Switch, *, ipv6: bool) -> None:
    """Have a new switch pass on nothing but what goes out and comes in by outlets. Raises: UnsupportedError, SetupError."""
    with switch.filters() as kernel:
        kernel.commit(walls(f"{INTERFACE}*", ipv6=ipv6))


def number_of(directory: Directory) -> int:
    """A number that no outlet of this network had so far; the caller has the directory's lock."""
    state = directory.written_state()
    directory.write_state(evolve(state, next_port=state.next_port + 1))
    return state.next_port


def forget(requests: Requests, number: int) -> None:
    """Remove the rules of routing of one, if they are there. Raises: SetupError."""
    for version in _VERSIONS:
        try:
            requests.send(not_led(number, version), "lead no packets outside")
        except SetupError as error:
            if error.errno not in (errno.ENOENT, errno.EAFNOSUPPORT):  # the latter: of IPv6, where the kernel has none
                raise


class _KeptPassage(Passage):
    """Of one process: which of the containers are its own, and where its ports lead; gone with the socket."""

    def __init__(self, kernel: Nftables, interface: str, number: int, *, ipv6: bool) -> None:
        table = Table("ip", interface, owner=True)
        self._kernel = kernel
        self._ports = Set(table, "ports", (PROTOCOL, PORT), data=(IPV4, PORT))
        self._own = {4: Set(table, "own", (IPV4,))}  # by the version of IP
        inward = Chain(table, "in", hook="prerouting", type="nat", priority=_DESTINATION)
        work = Transaction()
        for item in (table, self._ports, inward):
            work.add(item)
        work.add(rule(inward, [iifname(interface), dnat_to(self._ports, l4proto, th_dport)]))
        if ipv6:
            table6 = Table("ip6", interface, owner=True)
            work.add(table6)
            self._own[6] = Set(table6, "own", (IPV6,))
        for own, source in zip(self._own.values(), (ip_saddr, ip6_saddr), strict=False):
            outward = Chain(own.table, "mark", hook="prerouting", priority=_MARKING)
            work.add(own).add(outward).add(rule(outward, [iifname(BRIDGE), in_set(own, source), set_mark(number)]))
        self._begin(work)

    def lead(self, *addresses: IPv4Address | IPv6Address) -> None:
        work = Transaction()
        for address in addresses:
            if address.version in self._own:
                work.add_elements(self._own[address.version], [Element(address)], exist_ok=True)
        self._kernel.commit(work)

    def lead_no_more(self, *addresses: IPv4Address | IPv6Address) -> None:
        work = Transaction()
        for address in addresses:
            if address.version in self._own:
                work.delete_elements(self._own[address.version], [Element(address)])
        self._kernel.commit(work)


class KeptOutlet(Outlet):
    """Of this process, in one network. *number*: of `number_of`. Its program is another one after it has died: see `renew`. The caller has a lock."""

    def __init__(self, switch: Switch, requests: Requests, directory: Directory, *, number: int, mtu: int, ipv6: bool) -> None:
        """Start it. Raises: UnsupportedError; SetupError, with what the program said."""
        self._directory, self._number, self._interface, self._owner = directory, number, f"{INTERFACE}{number}", os.getpid()
        path = find_program()
        self._prepare(switch, requests, mtu=mtu, ipv6=ipv6)
        with ExitStack() as stack:
            self._passage = self._marks = _KeptPassage(switch.filters(), self._interface, number, ipv6=self.leads6)
            stack.callback(self._passage.close)
            stack.callback(forget, requests, number)
            for version in _VERSIONS if self.leads6 else _VERSIONS[:1]:
                requests.send(led(number, version), "lead packets outside")
            self._program = self._start(path, self._interface, mark=number)
            stack.pop_all()

    def renew(self) -> None:
        """Have another program where the one there was has died, which listens where that did. Raises: as making it; nothing is changed then."""
        if self._program.is_alive:
            return
        self._program.close()
        self._program = self._start(self._program.path, self._interface, mark=self._number)
        for (protocol, inside), (address, port, _) in [*self._listening.items()]:
            number = None
            with suppress(SandboxError):  # somebody else has taken the port meanwhile, from whom nobody could have kept it
                number = self._program.listen(protocol, address, port, inside)
            self._listening[protocol, inside] = address, port, number

    def lead(self, *addresses: IPv4Address | IPv6Address) -> None:
        """Have what the container at *addresses* sends leave by here. Raises: SetupError."""
        self._marks.lead(*addresses)

    def lead_no_more(self, *addresses: IPv4Address | IPv6Address) -> None:
        """Raises: SetupError."""
        self._marks.lead_no_more(*addresses)

    def _take(self, protocol: str, host: tuple[IPv4Address, int], to: tuple[IPv4Address, int]) -> int:
        """A port that nobody of this network has, or has had lately."""
        with self._directory.held():
            state, (inside,) = self._directory.written_state().with_inner(1)
            shown = Published(f"{to[1]}/{protocol}", f"{host[0]}:{host[1]}", inside)
            self._directory.write_state(state.publishing(str(to[0]), [shown]))
        return inside

    def _give_back(self, protocol: str, inside: int) -> None:  # noqa: ARG002 - of either protocol
        with suppress(NetworkNotFoundError), self._directory.held():  # it was removed by force
            self._directory.write_state(self._directory.written_state().withdrawing({inside}))

    def close(self) -> None:
        if self._owner == os.getpid():  # a forked child has copies of the sockets
            with suppress(SetupError):  # the switch is about to go, perhaps
                forget(self._requests, self._number)
        super().close()
