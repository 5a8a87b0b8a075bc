"""What a switch does with what goes out by its outlet, and comes in by it: rules of nf_tables in the switch, where nobody else's are.

The gateway beyond the outlet is the host's 127.0.0.1 to slirp4netns. So nothing goes there but answers to what came from there, to a published
port: the host's own programs that use one. (Its option against that would take those answers too, where they are of UDP.)
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network
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
    Table,
    Transaction,
    accept,
    ct_state,
    ct_status,
    dnat_to,
    iifname,
    ip_daddr,
    l4proto,
    masquerade,
    oifname,
    rule,
    th_dport,
)
from sandbox.net.nft import drop as drop_it

BRIDGE: Final = "bridge"
_TABLE: Final = Table("ip", "outlet")
_IN = Chain(_TABLE, "in", hook="prerouting", type="nat", priority=-100)
_OUT = Chain(_TABLE, "out", hook="postrouting", type="nat", priority=100)
_THROUGH = Chain(_TABLE, "through", hook="forward", policy="drop")
_HERE = Chain(_TABLE, "here", hook="input")
_FROM_HERE = Chain(_TABLE, "from-here", hook="output")
_PORTS = Set(_TABLE, "ports", (PROTOCOL, PORT), data=(IPV4, PORT))


def walls(interface: str, beyond: IPv4Network) -> Transaction:
    """What passes between the bridge and *interface* (``"outlet*"``: each of several), and what does not. *beyond*: as of `Passage`."""
    work = Transaction().add(_TABLE)
    for chain in (_OUT, _THROUGH, _HERE, _FROM_HERE):
        work.add(chain)
    rules = [
        rule(_OUT, [oifname(interface), masquerade()]),
        rule(_THROUGH, [iifname(BRIDGE), oifname(BRIDGE), accept]),  # with br_netfilter, between containers of the network
        rule(_THROUGH, [ip_daddr(beyond), ct_state("established"), ct_status("dnat"), accept]),
        rule(_THROUGH, [ip_daddr(beyond), drop_it]),
        rule(_THROUGH, [ct_state("established", "related"), accept]),
        rule(_THROUGH, [iifname(BRIDGE), oifname(interface), accept]),
        rule(_THROUGH, [iifname(interface), oifname(BRIDGE), ct_status("dnat"), accept]),
        rule(_HERE, [iifname(interface), drop_it]),  # the switch's own sockets, as those of a name server, are for containers
        rule(_FROM_HERE, [oifname(interface), drop_it]),
    ]
    for one in rules:
        work.add(one)
    return work


class Passage:
    """The rules of one switch, which go with it. The caller has a lock."""

    def __init__(self, kernel: Nftables, *, interface: str, beyond: IPv4Network) -> None:
        """Make them. *kernel*: the switch's, ours from now on. *beyond*: addresses of *interface*'s own side, which nobody reaches.

        Raises: UnsupportedError; SetupError.
        """
        self._kernel, self._ports = kernel, _PORTS
        work = walls(interface, beyond).add(_PORTS).add(_IN).add(rule(_IN, [iifname(interface), dnat_to(_PORTS, l4proto, th_dport)]))
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
