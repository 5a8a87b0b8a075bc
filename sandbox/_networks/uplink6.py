"""What leads from a network to the outside by IPv6: addresses on the pair that is there for IPv4, and a table of family ip6.

Theory of operation
-------------------
The pair has two addresses of fd00::/8 with 56 random bits (RFC 4193): nobody else's, so that no route of the host's has to be looked at. The
interfaces have no other ones, not of the link either; they listen to no router, and know each other's MAC.

Forwarding is one switch for all interfaces, ``conf/all/forwarding``, which makes a router of the host: it forgets the routes that it has from
router advertisements, and hears no more of them, unless accept_ra is 2. Even ``forwarding`` of our own interface would have it forget them
(rt6_purge_dflt_routers), so we do not touch it. Since Linux 6.17 an interface has a switch that does nothing but forward what comes in by it,
``force_forwarding`` ("ipv6: add `force_forwarding` sysctl to enable per-interface forwarding"): our own interface's is switched on. What answers
come in by is the host's affair, as for IPv4: where it does not forward, we refuse.
"""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from ipaddress import IPv4Address, IPv6Network
from typing import TYPE_CHECKING, Final

from sandbox._networks.uplink import Uplink, hold, make_walls, names_of, probe, refusal_to_set_up, write
from sandbox.errors import UnsupportedError
from sandbox.net.addresses import mac_of
from sandbox.net.neighbours import known
from sandbox.net.rtnetlink import NETLINK_ROUTE, UPLINK, Requests, WayOut, brought_up, default_route

if TYPE_CHECKING:
    from sandbox._networks.switch import Switch

CONF: Final = "/proc/sys/net/ipv6/conf"
FORCED: Final = "force_forwarding"
_PAIR: Final = 127  # RFC 6164
# Of our own interface, in this order: the last one begins IPv6 there.
_SETTINGS: Final = {
    "addr_gen_mode": "1", "accept_ra": "0", "autoconf": "0", "accept_dad": "0", "accept_redirects": "0", "accept_source_route": "-1",
    "disable_ipv6": "0",
}  # fmt: skip


def lead_out(four: Uplink, switch: Switch, requests: Requests, ways: list[WayOut], stack: ExitStack) -> Uplink:
    """Have *four*, which leads *switch* outside by IPv4, do so by IPv6; *stack* takes that back.

    Raises: UnsupportedError: the host drops what is forwarded, or lacks what this takes; SetupError.
    """
    host = hold(stack, "ip6")
    pair = IPv6Network((b"\xfd" + secrets.token_bytes(7) + bytes(8), 64))[2]
    net = IPv6Network((pair, _PAIR))
    found = Uplink(four.name, net[0], net[1], host)
    _set_up(four.name)
    switch.begin_ipv6("uplink")
    _give_addresses(four, net, requests)
    make_walls(switch, "ip6")
    switch.forward_ipv6()
    host.add(found)
    stack.callback(host.remove, found)
    stack.callback(found.undo.close)
    probe(switch, found, ways)
    return found


def _set_up(name: str) -> None:
    try:
        for setting, value in _SETTINGS.items():
            write(f"{CONF}/{name}/{setting}", value)
        if os.path.exists(f"{CONF}/{name}/{FORCED}"):
            write(f"{CONF}/{name}/{FORCED}", "1")
    except OSError as error:
        raise refusal_to_set_up(name, error) from error


def _give_addresses(four: Uplink, net: IPv6Network, requests: Requests) -> None:
    index, macs = socket.if_nametoindex(four.name), [mac_of(IPv4Address(str(end))) for end in (four.here, four.there)]
    here = Requests(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_ROUTE).detach())
    try:
        here.send([*brought_up(index, net[0], net), known(index, net[1], macs[1])], "give an interface that leads outside IPv6")
    finally:
        here.close()
    near = [*brought_up(UPLINK, net[1], net), known(UPLINK, net[0], macs[0]), default_route(net[0], UPLINK)]
    requests.send(near, "lead a switch outside by IPv6")


# ---- What may be in the way ----


def check_forwarding(ways: list[WayOut]) -> None:
    """Refuse a host that does not forward IPv6: answers would be dropped where they come in. Raises: UnsupportedError."""
    names = names_of(ways)
    closed = [name for name in names or ["all"] if not forwards(name)]
    if closed:
        raise UnsupportedError(
            "this host does not forward IPv6 (net.ipv6.conf.all.forwarding is 0), which networks with IPv6 that reach outside take; "
            f"{_why_not_we(names)}",
            feature="net.ipv6.conf.all.forwarding",
            remedy=f"{remedy(names)}, or give ipv6=False, or internal=True",
        )


def forwards(name: str) -> bool:
    """Whether what comes in by this interface (``all``: by any) is passed on."""
    return _read("all", "forwarding") not in ("0", "") or _read(name, FORCED) == "1"


def remedy(names: list[str]) -> str:
    """What has the host forward what comes in by these interfaces: the least that its kernel has."""
    return "; ".join(_remedies(names))


def _remedies(names: list[str]) -> Iterator[str]:
    if _read("all", FORCED):
        yield from (f"sysctl -w net.ipv6.conf.{name}.{FORCED}=1" for name in names or ["all"])
        return
    # Who has routes and addresses from router advertisements loses them by becoming a router.
    yield from (f"sysctl -w net.ipv6.conf.{name}.accept_ra=2" for name in names if _read(name, "accept_ra") == "1")
    yield "sysctl -w net.ipv6.conf.all.forwarding=1"


def _why_not_we(names: list[str]) -> str:
    if not _read("all", FORCED) and any(_read(name, "accept_ra") == "1" for name in names):
        return "it is not switched on for you, as the host would forget the routes that it has from router advertisements"
    return "it is not switched on for you, as others would reach through the host"


def _read(name: str, setting: str) -> str:
    try:
        with open(f"{CONF}/{name}/{setting}", encoding="ascii") as file:
            return file.read().strip()
    except OSError:  # this kernel has no such switch, or the interface has gone meanwhile
        return ""
