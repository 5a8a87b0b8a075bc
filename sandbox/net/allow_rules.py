"""An allow-list as rules of nf_tables for a network's switch: what its containers may begin with whom outside."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from ipaddress import IPv4Network
from typing import Final

from sandbox.errors import UnsupportedError
from sandbox.net.allow import Allowed
from sandbox.net.nft import (
    Chain,
    Range,
    Statement,
    Table,
    Transaction,
    accept,
    ct_state,
    iifname,
    ip6_daddr,
    ip_daddr,
    is_ip6,
    l4proto,
    oifname,
    reject,
    rule,
    th_dport,
)

TABLE: Final = Table("inet", "allow")
_BRIDGE: Final = "bridge"
# Before all others of the hook, so that whoever is refused hears of it; what passes here has to pass there, too.
_FORWARD: Final = Chain(TABLE, "forward", hook="forward", priority=-10)


def check(allowed: Iterable[Allowed]) -> None:
    """Raises: UnsupportedError: one is a name."""
    name = next((entry for entry in allowed if entry.network is None), None)
    if name is not None:
        raise UnsupportedError(
            f"allow: {str(name)!r}: names are not followed yet", feature="allow by name", remedy="give the host's addresses, or its network"
        )


def allowing(allowed: Iterable[Allowed], *, ipv6: bool = False) -> Transaction:
    """The rules. What was begun from outside, at a published port, may be answered; everything else that is not allowed is refused in words.

    ipv6: of a network that has it, too.
    """
    work = Transaction().add(TABLE).add(_FORWARD)
    rules: list[list[Statement]] = [
        [oifname(_BRIDGE), accept],
        [iifname.is_not(_BRIDGE), accept],
        [ct_state("established", "related"), accept],
        *([*_matches(entry), accept] for entry in allowed),
        *([[is_ip6, reject(tcp_reset=True)]] if ipv6 else []),  # TCP heeds an error of ICMPv6 with its second packet only
        [reject(code="admin-prohibited")],
    ]
    for statements in rules:
        work.add(rule(_FORWARD, statements))
    return work


def _matches(entry: Allowed) -> Iterator[Statement]:
    network = entry.network
    if network is None:
        raise ValueError(f"{entry} is a name")
    field = ip_daddr if isinstance(network, IPv4Network) else ip6_daddr
    yield field(network.network_address if network.prefixlen == network.max_prefixlen else network)
    if entry.protocol is not None:
        yield l4proto(entry.protocol)
    if entry.first is not None and entry.last is not None:
        yield th_dport(entry.first if entry.first == entry.last else Range(entry.first, entry.last))
