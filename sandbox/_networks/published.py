"""Ports of the host that lead into containers.

Theory of operation
-------------------
A packet for a published port is sent on twice: in the host to the switch's end of the network's uplink, at a port that stands for the
publication there (its *inner* port), and in the switch from that to the container. Each is one element of a map, put in and taken out by one
transaction. The host's maps are in the table of `uplink`, which goes with this process, however it ends; the switch's with its namespace.

- A client on another host, or one here that asks for an address of the host's own, is seen by the container with its own address.
- Loopback: what this host sends to 127.0.0.1 leaves it by the uplink, as from the host's end. The kernel takes that only from an interface that
  may carry loopback addresses (route_localnet); so the uplink may, and what comes out of it for 127.0.0.0/8 is dropped before anything else.
- Nobody but this host gets at 127.0.0.1: what comes in for that from elsewhere is not sent on. Nor at the switch's end: see `uplink`.
- A container that asks for the host's address, its own published port included, comes back into its network as from the host's end: otherwise
  the answer would not pass the host, and be nobody's.

Conntrack decides once where a flow goes, and keeps to it as long as packets come. So the switch looks at each packet from outside whether
its inner port still stands for something, and refuses it if not: one lookup, where looking through all flows of the machine takes some 8 ms. An
inner port is given out again when all others have been. That is enough for TCP, whose clients are told by a reset. A client of UDP may go
on asking from the same port for ever, and means whoever has the port now: its flow is forgotten when a port of UDP comes or goes.
"""

from __future__ import annotations

import os
import socket
import threading
import weakref
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from functools import cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import TYPE_CHECKING, Final

from attrs import define, frozen

from sandbox._networks.filters import SharedFilters
from sandbox._networks.kept import KeptLive
from sandbox._networks.kept_outside import carry_loopback
from sandbox._networks.kept_published import KeptGate
from sandbox._networks.reserved import ANY, ANY6, Reserved
from sandbox._networks.shortcut import marking
from sandbox._networks.uplink import open_in, walls_of
from sandbox.errors import ProtocolError, SandboxError, UsageError
from sandbox.net.conntrack import PROTOCOLS, Direction, Flow, Flows
from sandbox.net.nft import (
    IPV4,
    IPV6,
    PORT,
    PROTOCOL,
    Chain,
    Element,
    Set,
    Transaction,
    dnat_to,
    drop,
    fib_daddr,
    iif,
    iifname,
    in_set,
    ip6_daddr,
    ip_daddr,
    ip_saddr,
    l4proto,
    masquerade,
    oifname,
    return_,
    rule,
    th_dport,
)
from sandbox.net.rtnetlink import UPLINK

if TYPE_CHECKING:
    from sandbox._networks.live import Live
    from sandbox._networks.places import Place
    from sandbox._networks.uplink import HostTable, Uplink

_LOOPBACK, _LOOPBACK6 = IPv4Network("127.0.0.0/8"), IPv6Network("::1/128")
_OF_THE_LINK: Final = IPv6Network("fe80::/10")
_MOST: Final = 65535
# Others have theirs at -100 and 100 (nft's dstnat and srcnat): whose rule comes first decides, and these ports are ours.
_DESTINATION, _SOURCE = -101, 99
_RAW: Final = -300  # before conntrack, which at -200 gives answers the addresses of those who asked


@frozen
class Entry:
    """A published port, and the port of the uplink's far end that stands for it."""

    held: Reserved
    inner: int

    @property
    def protocol(self) -> int:
        return PROTOCOLS[self.held.port.protocol]


class _Host:
    """The host's part, of all networks of one table. The caller has the lock."""

    def __init__(self, host: HostTable) -> None:
        six = host.table.family == "ip6"
        kind, daddr, loopback = (IPV6, ip6_daddr, _LOOPBACK6) if six else (IPV4, ip_daddr, _LOOPBACK)
        self._one = Set(host.table, "published-one", (kind, PROTOCOL, PORT), data=(kind, PORT))  # at one address
        self._all = Set(host.table, "published-all", (PROTOCOL, PORT), data=(kind, PORT))  # at all of the host's own
        guard = Chain(host.table, "published-guard", hook="prerouting", priority=_RAW)
        others = Chain(host.table, "published-to-others", hook="prerouting", priority=_DESTINATION, type="nat")
        own = Chain(host.table, "published-to-own", hook="output", priority=_DESTINATION, type="nat")
        work = Transaction()
        for item in (self._one, self._all, guard, others, own):
            work.add(item)
        work.add(rule(guard, [daddr(loopback), in_set(host.links, iifname), drop]))  # in this order: what is rare, first
        work.add(rule(others, [daddr(loopback), return_]))
        for chain in (others, own):
            if six:
                work.add(rule(chain, [daddr(_OF_THE_LINK), return_]))  # nobody sends on what is from there
            work.add(rule(chain, [dnat_to(self._one, daddr, l4proto, th_dport)]))
            work.add(rule(chain, [fib_daddr("local"), dnat_to(self._all, l4proto, th_dport)]))
        if not six:  # else `loopback6`
            local = Chain(host.table, "published-from-loopback", hook="postrouting", priority=_SOURCE, type="nat")
            work.add(local).add(rule(local, [in_set(host.links, oifname), ip_saddr(_LOOPBACK), masquerade()]))
        host.commit(work)

    def add(self, entries: Iterable[Entry], uplink: Uplink) -> None:
        work = Transaction()
        for where, elements in self._elements(entries, uplink).items():
            work.add_elements(where, elements)
        uplink.host.commit(work)

    def remove(self, entries: Iterable[Entry], uplink: Uplink) -> None:
        work = Transaction()
        for where, elements in self._elements(entries, uplink).items():
            work.delete_elements(where, elements)
        uplink.host.commit(work)

    def _elements(self, entries: Iterable[Entry], uplink: Uplink) -> dict[Set, list[Element]]:
        found: dict[Set, list[Element]] = {self._all: [], self._one: []}
        for entry in entries:
            where, address = (self._all, ()) if entry.held.address in (ANY, ANY6) else (self._one, (entry.held.address,))
            found[where].append(Element((*address, entry.protocol, entry.held.number), (uplink.there, entry.inner)))
        return found


class _Gate(SharedFilters):
    """The switch's part, of one network. The caller has the lock. Its socket, which keeps the namespace, is open while something is published."""

    def __init__(self, live: Live, uplink: Uplink) -> None:
        six = uplink.there.version == 6
        super().__init__(live.switch)
        self._last = 0
        walls, kind, daddr = (walls_of("ip6"), IPV6, ip6_daddr) if six else (walls_of("ip"), IPV4, ip_daddr)
        self._walls, self._open = walls, open_in(walls)
        self._ports = Set(walls, "ports", (PROTOCOL, PORT), data=(kind, PORT))
        inward = Chain(walls, "inward", hook="prerouting", priority=_DESTINATION, type="nat")
        work = Transaction().add(self._ports).add(inward)
        work.add(rule(inward, [iif(UPLINK), daddr(uplink.there), dnat_to(self._ports, l4proto, th_dport)]))
        with live.switch.filters() as filters:
            filters.commit(work)

    def numbers(self, count: int) -> list[int]:
        """Inner ports, round and round."""
        taken = {entry.inner for one in _publications if one.gate is self for entry in one.entries}
        found: list[int] = []
        for _ in range(_MOST):
            self._last = self._last % _MOST + 1
            if self._last not in taken:
                found.append(self._last)
            if len(found) == count:
                return found
        raise UsageError(f"ports: more than {_MOST} are published in one network")

    def add(self, entries: Iterable[Entry], address: IPv4Address | IPv6Address) -> None:
        elements = [Element((entry.protocol, entry.inner), (address, entry.held.port.number)) for entry in entries]
        keys = [Element(element.key) for element in elements]
        self._commit(Transaction().add_elements(self._open, keys).add_elements(self._ports, elements))

    def mark(self) -> None:
        """Have the switch mark packets of flows that may take the short way."""
        self._commit(marking(self._walls))

    def remove(self, entries: Iterable[Entry]) -> None:
        keys = [Element((entry.protocol, entry.inner)) for entry in entries]
        self._commit(Transaction().delete_elements(self._ports, keys).delete_elements(self._open, keys))


@define(eq=False)
class _Publication:
    """Ports that lead to a container's place in a network, until `withdraw`."""

    live: Live
    uplink: Uplink
    gate: _Gate | KeptGate
    entries: tuple[Entry, ...]

    def withdraw(self) -> None:
        """Have them lead nowhere. Once more is nothing."""
        with _lock:
            if self not in _publications:
                return
            _publications.remove(self)
            with ExitStack() as stack:  # all of it, whatever fails
                stack.callback(self.gate.close)
                stack.callback(_forget, self.entries, lambda flow: flow.reply.source == self.uplink.there)
                if self.live.is_open:  # else the switch is about to go
                    stack.callback(self.gate.remove, self.entries)
                stack.callback(_host_of(self.uplink).remove, self.entries, self.uplink)
                stack.callback(self.live.shortcut.end, self.entries)


def check_loopback(live: Live) -> None:
    """See to it that the host's ``::1`` can lead into a network with IPv6. Raises: UnsupportedError: the kernel lacks what it takes; SetupError."""
    uplink = _uplink_of(live, 6)
    with _lock:
        _host_of(uplink)
        _carry_loopback6(uplink)


def publish(held: Iterable[Reserved], live: Live, place: Place, version: int = 4) -> Callable[[], None]:
    """Have ports of the host that are held, all of one version of IP, lead to a container; gives what ends that.

    Raises: SetupError, UnsupportedError: the kernel has no nf_tables. Nothing is published then.
    """
    uplink, address = _uplink_of(live, version), place.address if version == 4 else place.address6
    if address is None:
        raise ProtocolError("a port of IPv6 is published for a container that has none")
    ports = tuple(held)
    with _lock, ExitStack() as stack:
        host, gate = _host_of(uplink), _gate_of(live, uplink)
        if any(one.address in (ANY6, _LOOPBACK6.network_address) for one in ports):
            _carry_loopback6(uplink)
        gate.open()
        stack.callback(gate.close)
        entries = tuple(Entry(one, inner) for one, inner in zip(ports, gate.numbers(len(ports)), strict=True))
        gate.add(entries, address)
        stack.callback(_quietly, gate.remove, entries)
        host.add(entries, uplink)
        stack.callback(_quietly, host.remove, entries, uplink)
        # Datagrams that came before, and got nowhere, or to whoever had the port then.
        # In a kept network a process that was killed may have led them to the same uplink.
        mine = {entry.inner for entry in entries}
        _forget(entries, lambda flow: flow.reply.source != uplink.there or flow.reply.source_port not in mine)
        live.shortcut.lead(entries, place, gate.mark)
        found = _Publication(live, uplink, gate, entries)
        _publications.append(found)
        stack.pop_all()
        return found.withdraw
    raise AssertionError("unreachable")


def _carry_loopback6(uplink: Uplink) -> None:
    from sandbox._networks.loopback6 import carry

    carry(uplink)


def _uplink_of(live: Live, version: int) -> Uplink:
    found = live.uplink if version == 4 or live.uplink is None else live.uplink.six
    if found is None:
        raise ProtocolError("a port is published in a network that nothing leads out of")
    return found


def _host_of(uplink: Uplink) -> _Host:
    found = _hosts.get(uplink.host)
    if found is None:
        found = _hosts[uplink.host] = _Host(uplink.host)
    return found


def _gate_of(live: Live, uplink: Uplink) -> _Gate | KeptGate:
    found = _gates.get(uplink)
    if found is None:
        made = KeptGate(live, uplink) if isinstance(live, KeptLive) else _Gate(live, uplink)
        if uplink.there.version == 4 and isinstance(made, _Gate):  # only now that the host's guard is there
            carry_loopback(uplink.name, on=True)
        found = _gates[uplink] = made
    return found


def _quietly(undo: Callable[..., object], *args: object) -> None:
    """Take back a step of what failed; its failure would hide the first one."""
    with suppress(SandboxError, OSError):
        undo(*args)


# ---- Flows ----


def _forget(entries: Iterable[Entry], is_stale: Callable[[Flow], bool]) -> None:
    """Have the kernel decide anew about flows of UDP to these ports."""
    asked = [entry.held for entry in entries if entry.held.port.protocol == "udp"]
    if not asked:
        return
    number = asked[0].number if len(asked) == 1 else 0  # several: the kernel tells all, for it takes as long
    is_own = cache(_is_own)  # others' flows may pass by here on their way to such a port elsewhere
    with Flows() as flows:
        for flow in flows.find(original=Direction(socket.IPPROTO_UDP, destination_port=number), version=asked[0].address.version):
            goal = flow.original.destination
            mine = [one for one in asked if one.number == flow.original.destination_port and one.address in (ANY, ANY6, goal)]
            if mine and is_stale(flow) and goal is not None and is_own(goal):
                flows.forget(flow)


def _is_own(address: IPv4Address | IPv6Address) -> bool:
    """Whether it is one of this host's."""
    with socket.socket(socket.AF_INET if address.version == 4 else socket.AF_INET6, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        try:
            sock.bind((str(address), 0))
        except OSError:
            return False
        return True


_hosts: weakref.WeakKeyDictionary[HostTable, _Host] = weakref.WeakKeyDictionary()
_gates: weakref.WeakKeyDictionary[Uplink, _Gate | KeptGate] = weakref.WeakKeyDictionary()
_publications: list[_Publication] = []
_lock: threading.RLock = threading.RLock()


def _after_fork_in_child() -> None:
    """What is published is the parent's."""
    global _lock
    _lock = threading.RLock()
    for gate in _gates.values():
        gate.abandon()
    _gates.clear()
    _publications.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)
