"""What a switch does with what goes out by its outlet, and comes in by it: rules of nf_tables in the switch, where nobody else's are.

The gateway beyond the outlet is the host's 127.0.0.1 to slirp4netns. So nothing goes there but answers to what came from there, to a published
port: the host's own programs that use one. (Its option against that would take those answers too, where they are of UDP.) Of IPv6 the whole of
its side, `NET6`, is the host's ::1 to it, and no port is published: nothing goes there at all.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Network
from typing import Final

from sandbox.net.conntrack import PROTOCOLS
from sandbox.net.nft import (
    IPV4,
    PORT,
    PROTOCOL,
    Chain,
    Element,
    Nftables,
    Set,
    Statement,
    Table,
    Transaction,
    accept,
    ct_state,
    ct_status,
    dnat_to,
    icmpv6_type,
    iifname,
    ip6_daddr,
    ip_daddr,
    l4proto,
    masquerade,
    oifname,
    rule,
    th_dport,
)
from sandbox.net.nft import drop as drop_it

BRIDGE: Final = "bridge"
# Of its own side of the interface, in each switch the same: nobody beyond it sees them. Of the range for measuring networks (RFC 2544), which is
# nobody's address outside: 10.0.2.0/24, its default, is that of VirtualBox's guests and of many an office. Of IPv6 it has this one, and no other.
NET: Final = IPv4Network("198.18.255.0/25")
NET6: Final = IPv6Network("fd00::/64")
# To its sockets, what begins with 0 is this host (::, ::1) or its IPv4 (::ffff:127.0.0.1, which who has NET_RAW can send), and what is of a link,
# or a site, is the host's ::1, or any of its links'.
_NOT_OUTSIDE: Final = tuple(map(IPv6Network, ("::/16", "fe80::/9", "ff00::/8")))
_TABLE: Final = Table("ip", "outlet")
_IN = Chain(_TABLE, "in", hook="prerouting", type="nat", priority=-100)
_NEIGHBOURS: Final = (135, 136)  # solicitations and advertisements of neighbours, which are IPv6's own ARP
_PORTS = Set(_TABLE, "ports", (PROTOCOL, PORT), data=(IPV4, PORT))


def walls(interface: str, *, ipv6: bool) -> Transaction:
    """What passes between the bridge and *interface* (``"outlet*"``: each of several), and what does not: nothing to that one's own side."""
    work = Transaction()
    _walls(work, _TABLE, interface, [ip_daddr(NET)])
    if ipv6:
        _walls(work, Table("ip6", "outlet"), interface, *([ip6_daddr(net)] for net in (NET6, *_NOT_OUTSIDE)))
    return work


def _walls(work: Transaction, table: Table, interface: str, *beyond: list[Statement]) -> None:
    out = Chain(table, "out", hook="postrouting", type="nat", priority=100)
    through = Chain(table, "through", hook="forward", policy="drop")
    here, from_here = Chain(table, "here", hook="input"), Chain(table, "from-here", hook="output")
    for item in (table, out, through, here, from_here):
        work.add(item)
    rules = [
        rule(out, [oifname(interface), masquerade()]),
        rule(through, [iifname(BRIDGE), oifname(BRIDGE), accept]),  # with br_netfilter, between containers of the network
        *(rule(through, [*there, ct_state("established"), ct_status("dnat"), accept]) for there in beyond),
        *(rule(through, [*there, drop_it]) for there in beyond),
        rule(through, [ct_state("established", "related"), accept]),
        rule(through, [iifname(BRIDGE), oifname(interface), accept]),
        rule(through, [iifname(interface), oifname(BRIDGE), ct_status("dnat"), accept]),
    ]
    if table.family == "ip6":
        rules += [rule(chain, [icmpv6_type(kind), accept]) for chain in (here, from_here) for kind in _NEIGHBOURS]
    rules += [
        rule(here, [iifname(interface), drop_it]),  # the switch's own sockets, as those of a name server, are for containers
        rule(from_here, [oifname(interface), drop_it]),
    ]
    for one in rules:
        work.add(one)


class Passage:
    """The rules of one switch, which go with it. The caller has a lock."""

    def __init__(self, kernel: Nftables, *, interface: str, ipv6: bool) -> None:
        """Make them. *kernel*: the switch's, ours from now on. *ipv6*: of that, too.

        Raises: UnsupportedError; SetupError.
        """
        self._kernel, self._ports = kernel, _PORTS
        work = walls(interface, ipv6=ipv6).add(_PORTS).add(_IN).add(rule(_IN, [iifname(interface), dnat_to(_PORTS, l4proto, th_dport)]))
        self._begin(work)

    def _begin(self, work: Transaction) -> None:
        try:
            self._kernel.commit(work)
        except BaseException:
            self._kernel.close()
            raise

    def publish(self, protocol: str, inside: int, address: IPv4Address, number: int) -> None:
        """Have what comes to the port *inside* of the outlet go to *number* of a container. Raises: SetupError."""
        element = Element((PROTOCOLS[protocol], inside), (address, number))
        self._kernel.commit(Transaction().add_elements(self._ports, [element]))

    def withdraw(self, protocol: str, inside: int) -> None:
        """No more. Raises: SetupError."""
        self._kernel.commit(Transaction().delete_elements(self._ports, [Element((PROTOCOLS[protocol], inside))]))

    def close(self) -> None:
        """Close the socket; the rules go with the switch."""
        self._kernel.close()
