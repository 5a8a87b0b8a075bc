"""An allow-list as rules of nf_tables for a network's switch: what its containers may begin with whom outside.

Addresses are rules. Names are groups (`sandbox.net.allow.groups_of`), and which addresses a group has at a time stands in sets, of which each element
ends by itself. The name server puts them there without any right over packet filters: by a *knock*, a datagram that it sends over the
switch's own loopback before it answers a container. A chain of the output hook reads it, and puts address and group into the set for
the time that it says; or lets the sender know, by EPERM, that it did not: the address is one that no name leads to, or the set is full.
What goes out over the loopback was sent by a socket of the switch's, which containers have none of.

What is in use stays open: each new connection to such an address puts it into a second set, where it has its time anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from ipaddress import IPv4Network, ip_network
from typing import Final

from attrs import frozen

from sandbox.net import openings
from sandbox.net.allow import Allowed, Destination, Ports, groups_of
from sandbox.net.nft import (
    IPV4,
    IPV6,
    PORT,
    Chain,
    Element,
    Field,
    Kind,
    Range,
    Set,
    Statement,
    Table,
    Transaction,
    accept,
    constant,
    ct_state,
    drop,
    goto,
    iifname,
    in_set,
    ip6_daddr,
    ip_daddr,
    is_ip6,
    l4proto,
    oifname,
    payload_field,
    reject,
    rule,
    th_dport,
    udp_dport,
    update,
)

TABLE: Final = Table("inet", "allow")
MOST_OPEN: Final = 1 << 14  # addresses and groups at a time, of each kind: some 2 MiB of the kernel's
_BRIDGE, _LOOPBACK = "bridge", "lo"
# Before all others of the hook, so that whoever is refused hears of it; what passes here has to pass there, too.
_FORWARD: Final = Chain(TABLE, "forward", hook="forward", priority=-10)
_KNOCK: Final = Chain(TABLE, "knock", hook="output")
_OPENING: Final = Chain(TABLE, "opening")
_KNOCKED: Final = Chain(TABLE, "knocked", hook="input")
_WHAT: Final = payload_field("what", PORT, 0)  # version and class, of a byte each
_GROUP: Final = payload_field("group", PORT, 2)


@frozen
class _Family:
    """Of the two versions of IP: where it stands in packets and knocks, and its sets."""

    version: int
    kind: Kind
    destination: Field

    @property
    def knocked(self) -> Field:
        return payload_field("address", self.kind, 4)

    @property
    def opened(self) -> Set:
        """By answers, each for its time."""
        return Set(TABLE, f"opened{self.version}", (self.kind, PORT), timeouts=True, dynamic=True, size=MOST_OPEN)

    @property
    def used(self) -> Set:
        """By containers, each for the longest time."""
        return Set(TABLE, f"used{self.version}", (self.kind, PORT), timeouts=True, dynamic=True, size=MOST_OPEN)

    @property
    def inside(self) -> Set:
        """What no name leads to."""
        return Set(TABLE, f"inside{self.version}", (self.kind,), intervals=True)


_FAMILIES: Final = (_Family(4, IPV4, ip_daddr), _Family(6, IPV6, ip6_daddr))


def allowing(allowed: Iterable[Allowed], *, ipv6: bool = False) -> Transaction:
    """The rules. What was begun from outside, at a published port, may be answered; everything else that is not allowed is refused in words.

    ipv6: of a network that has it, too: names lead to its addresses as well.
    """
    entries = tuple(allowed)
    groups = groups_of(entries)[1]
    families = _FAMILIES if ipv6 else _FAMILIES[:1]
    work = Transaction().add(TABLE).add(_FORWARD)
    rules: list[list[Statement]] = [
        [oifname(_BRIDGE), accept],
        [iifname.is_not(_BRIDGE), accept],
        [ct_state("established", "related"), accept],
        *([*_to(entry.network), *_at((entry.protocol, entry.first, entry.last)), accept] for entry in entries if entry.network is not None),
    ]
    if groups:
        _let_knock(work, families)
        rules += (found for number, group in enumerate(groups) for ports in group for family in families for found in _by_name(family, number, ports))
    if ipv6:
        rules.append([is_ip6, reject(tcp_reset=True)])  # TCP heeds an error of ICMPv6 with its second packet only
    rules.append([reject(code="admin-prohibited")])
    for statements in rules:
        work.add(rule(_FORWARD, statements))
    return work


def _to(network: Destination) -> Iterator[Statement]:
    field = ip_daddr if isinstance(network, IPv4Network) else ip6_daddr
    yield field(network.network_address if network.prefixlen == network.max_prefixlen else network)


def _at(ports: Ports) -> Iterator[Statement]:
    protocol, first, last = ports
    if protocol is not None:
        yield l4proto(protocol)
    if first is not None and last is not None:
        yield th_dport(first if first == last else Range(first, last))


def _by_name(family: _Family, number: int, ports: Ports) -> Iterator[list[Statement]]:
    """Of one group's ports. What is in use is noted by a rule of its own: where there is no room for that, it is open all the same."""
    key = family.destination, constant(PORT, number)
    opened, used = ([*_at(ports), in_set(which, *key)] for which in (family.opened, family.used))
    noted = update(family.used, *key, timeout_s=openings.MOST_S)
    yield [*opened, noted]
    yield [*opened, accept]
    yield [*used, noted, accept]


def _let_knock(work: Transaction, families: Iterable[_Family]) -> None:
    work.add(_KNOCK).add(_OPENING).add(_KNOCKED)
    rules: list[list[Statement]] = []
    for family in families:
        for which in (family.opened, family.used, family.inside):
            work.add(which)
        work.add_elements(family.inside, [Element(ip_network(net)) for net in openings.INSIDE[family.version]])
        for number, time_s in enumerate(openings.TIMES_S):
            what = _WHAT(family.version << 8 | number)
            outside = in_set(family.inside, family.knocked, negate=True)
            rules.append([what, outside, update(family.opened, family.knocked, _GROUP, timeout_s=time_s), accept])
    rules.append([drop])
    for statements in rules:
        work.add(rule(_OPENING, statements))
    work.add(rule(_KNOCK, [oifname(_LOOPBACK), udp_dport(openings.KNOCK_PORT), goto(_OPENING)]))
    work.add(rule(_KNOCKED, [iifname(_LOOPBACK), udp_dport(openings.KNOCK_PORT), drop]))
