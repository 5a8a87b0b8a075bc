"""Whose rules of the host's drop what networks send outside, and what opens them: words for an error. Nothing is decided by it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from sandbox.errors import UnsupportedError

if TYPE_CHECKING:
    from sandbox.net.nft import ListedChain

_FORWARD: Final = 2  # NF_INET_FORWARD


def in_the_way(others: Iterable[ListedChain], family: str, prefix: str) -> UnsupportedError:
    """The error for a host that lets nothing through. *others*: its chains but for ours; *family*: ip or ip6; *prefix*: of our interfaces' names."""
    chains = [chain for chain in others if chain.family in (family, "inet")]
    closed = [f"{chain.family} {chain.table} {chain.name}" for chain in chains if chain.hook == _FORWARD and chain.policy == "drop"]
    seen = f" ({', '.join(closed)}: policy drop)" if closed else ""
    return UnsupportedError(
        f"the host's packet filters drop what containers send outside{seen}", feature="forward", remedy=_remedy(chains, closed, family, prefix)
    )


def _remedy(chains: list[ListedChain], closed: list[str], family: str, prefix: str) -> str:
    program = "iptables" if family == "ip" else "ip6tables"
    if any(chain.name == "DOCKER-USER" for chain in chains):
        return f"{program} -I DOCKER-USER -i {prefix}+ -j ACCEPT; {program} -I DOCKER-USER -o {prefix}+ -j ACCEPT"
    if any(chain.table == "firewalld" for chain in chains):
        return f"firewall-cmd --zone=trusted --add-interface={prefix}+"
    if closed:
        ways = (f"nft insert rule {closed[0]} {way} '\"{prefix}*\"' accept" for way in ("iifname", "oifname"))
        return "; ".join(ways)
    return f"{program} -I FORWARD -i {prefix}+ -j ACCEPT; {program} -I FORWARD -o {prefix}+ -j ACCEPT"
