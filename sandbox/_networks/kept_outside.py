"""What leads outside from a network that is kept.

Theory of operation
-------------------
The pair of interfaces is made with the network, and what the switch does with packets of it: both live in the switch, and go with it. The
host's rules are in the table that each process has for its own networks (`uplink`), once for each process that has containers there: they say
the same, so it does not matter how often they are said. A table that belonged to nobody would do no more. Without containers nothing comes
out; a process that is killed takes its own containers with it; and others cannot flush what is there, by mistake or not.
"""

from __future__ import annotations

import contextlib
import os
import socket
from contextlib import ExitStack
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING, Final

from sandbox._networks.uplink import Uplink, check_forwarding, hold
from sandbox.errors import SetupError, UnsupportedError
from sandbox.net.rtnetlink import NETLINK_ROUTE, Requests, removal, ways_out

_OF_IPV4: Final = 4  # of what is written down
_LOCALNET: Final = "/proc/sys/net/ipv4/conf/{}/route_localnet"

if TYPE_CHECKING:
    from sandbox.net.kept import NetworkInfo


def described(uplink: Uplink | None) -> tuple[str, ...]:
    """What is written down of it: the host's interface, its address, the switch's, where the host's is; and the two addresses of IPv6, if any."""
    if uplink is None:
        return ()
    six = () if uplink.six is None else (str(uplink.six.here), str(uplink.six.there))
    return (uplink.name, str(uplink.here), str(uplink.there), _here(), *six)


def leads6(info: NetworkInfo) -> bool:
    """Whether it reaches outside by IPv6."""
    return len(info.uplink) > _OF_IPV4


def lead_on(info: NetworkInfo, stack: ExitStack) -> Uplink | None:
    """Have the host let the packets of a network pass, until *stack* is closed; None: nothing leads out of it.

    Raises: UnsupportedError: the host does not forward, or has no such interface any more; SetupError.
    """
    if not info.uplink:
        return None
    name, here, there, where, *pair6 = info.uplink
    if where != _here() or not _is_there(name):
        raise UnsupportedError(
            f"network: {info.name!r} leads outside by the interface {name}, which is not there (any more)",
            feature="uplink",
            remedy="use it in the network namespace in which it was made; if somebody removed the interface, remove the network and make it again",
        )
    check_forwarding(ways_out())
    six = None
    if pair6:
        from sandbox._networks import uplink6

        uplink6.check_forwarding(ways_out(6))
        six = _let_pass(Uplink(name, IPv6Address(pair6[0]), IPv6Address(pair6[1]), hold(stack, "ip6")), stack)
    return _let_pass(Uplink(name, IPv4Address(here), IPv4Address(there), hold(stack), six), stack)


def _let_pass(found: Uplink, stack: ExitStack) -> Uplink:
    found.host.add(found)
    stack.callback(found.host.remove, found)
    stack.callback(found.undo.close)
    return found


def carry_loopback(name: str, *, on: bool) -> None:
    """Whether an uplink may carry the host's loopback addresses: while a port is published by it, and there is a guard of who has published it.

    Raises: SetupError.
    """
    try:
        with open(_LOCALNET.format(name), "r+b", buffering=0) as file:
            if file.read(1) != b"01"[on : on + 1]:
                file.seek(0)  # the kernel takes a number from there only
                file.write(b"%d\n" % on)
    except OSError as error:
        raise SetupError("let a network's uplink carry loopback addresses", error.errno or 0, step="network") from error


def take_away(info: NetworkInfo) -> None:
    """Remove the pair; it would go with the namespace too, some time later. Who is elsewhere leaves it to that."""
    if not info.uplink or info.uplink[3] != _here():
        return
    with contextlib.suppress(OSError):  # it is not there
        index = socket.if_nametoindex(info.uplink[0])
        requests = Requests(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_ROUTE).detach())
        try:
            with contextlib.suppress(SetupError):  # nor now
                requests.send(removal(index), "remove what leads outside")
        finally:
            requests.close()


def _here() -> str:
    status = os.stat("/proc/thread-self/ns/net")
    return f"{status.st_dev}:{status.st_ino}"


def _is_there(name: str) -> bool:
    try:
        socket.if_nametoindex(name)
    except OSError:
        return False
    return True
