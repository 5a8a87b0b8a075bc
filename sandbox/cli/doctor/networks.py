"""What networks of containers can do here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sandbox import features
from sandbox.cli.doctor.finding import Finding, State, read, reason_of, remedy_of

if TYPE_CHECKING:
    from sandbox.net import Offer

_SECTION: Final = "networks"
_KINDS: Final = (
    (("bridge", "veth"), "bridges, veth", State.MISSING, "every Network", "as root: modprobe -a bridge veth"),
    (("nf_tables",), "nf_tables", State.MISSING, "reaching outside, ports, allow-lists", "as root: modprobe nf_tables"),
    (("owner",), "tables that go with their process", State.MISSING, "root's networks that reach outside", "boot Linux 5.12 or later"),
    (("tbf",), "tbf", State.NOTE, "a rate of what is sent", "as root: modprobe sch_tbf"),
    (("ifb",), "ifb", State.NOTE, "a rate of what is received", "as root: modprobe ifb"),
    (("netem",), "netem", State.NOTE, "delay, jitter, loss", "as root: modprobe sch_netem, or a kernel with CONFIG_NET_SCH_NETEM"),
)


def findings() -> list[Finding]:
    """All about networks."""
    offer = features.networks()
    if offer.obstacle is not None:
        what = "networks of containers"
        return [Finding(_SECTION, what, State.MISSING, reason_of(offer.obstacle), remedy_of(offer.obstacle)), _outlet(offer), *_forwarding(offer)]
    return [*(_kind(offer, *row) for row in _KINDS), _outlet(offer), *_forwarding(offer)]


def _kind(offer: Offer, names: tuple[str, ...], what: str, state: State, needed_for: str, remedy: str) -> Finding:  # noqa: PLR0917 - a row
    if offer.kinds.issuperset(names):
        return Finding(_SECTION, what, State.OK, "yes")
    return Finding(_SECTION, what, state, f"no; needed for {needed_for}", remedy)


def _outlet(offer: Offer) -> Finding:
    what = "slirp4netns"
    if offer.outlet is not None:
        return Finding(_SECTION, what, State.OK, offer.outlet)
    lacking = offer.outlet_obstacle
    if lacking is None:
        raise AssertionError("it is there, or something is lacking")
    # Root has the host's forwarding.
    state = State.NOTE if features.privileged() else State.MISSING
    return Finding(_SECTION, what, state, reason_of(lacking), lacking.remedy)


def _forwarding(offer: Offer) -> list[Finding]:
    number, what = read("/proc/sys/net/ipv4/ip_forward"), "the host forwards (ip_forward)"
    if number == "0":
        first = Finding(_SECTION, what, State.NOTE, "no; needed for root's networks that reach outside", "as root: sysctl -w net.ipv4.ip_forward=1")
    else:
        first = Finding(_SECTION, what, State.NOTE, "yes" if number is not None else "this host has no IPv4")
    return [first, _forwarding6(offer)]


def _forwarding6(offer: Offer) -> Finding:
    what = "the host forwards IPv6"
    if offer.closed6 is not None:
        words = "no; needed for root's networks with ipv6=True that reach outside"
        return Finding(_SECTION, what, State.NOTE, words, offer.closed6.remedy)
    has = read("/proc/sys/net/ipv6/conf/all/forwarding") is not None
    return Finding(_SECTION, what, State.NOTE, "yes" if has else "this host has no IPv6")
