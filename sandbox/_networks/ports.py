"""What a container publishes: ports of the host that are held as long as it lives, and lead to its place in one of its networks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from ipaddress import IPv4Address, IPv6Address
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from sandbox._networks.outlet import PROGRAM
from sandbox._networks.published import check_loopback, publish
from sandbox._networks.reserved import ANY6, Reserved, check, reserve
from sandbox.errors import UnsupportedError, UsageError

if TYPE_CHECKING:
    from sandbox._networks.live import Live
    from sandbox._networks.outlet import Outlet
    from sandbox._networks.places import Place
    from sandbox.net.ports import HostPort, Port
    from sandbox.network import Network


LOOPBACK6: Final = IPv6Address(1)
_VERSIONS: Final = (4, 6)


class Ports:
    """Of one container. Whoever calls has its membership's lock."""

    def __init__(self, wanted: Iterable[Port], hostname: str) -> None:
        self._wanted, self._owner = tuple(wanted), f"container {hostname!r} of this process"
        self._held: tuple[Reserved, ...] = ()
        self._let_go: Callable[[], None] | None = None
        self._ipv6 = False  # whether those without an address are of both versions of IP
        self._goals: dict[int, tuple[Place, Callable[[], None]]] = {}  # where those of a version of IP lead, and what ends that

    def check(self, networks: Iterable[Network]) -> None:
        """Refuse what cannot be had now, before anything is touched. Raises: UsageError, PortInUseError, UnsupportedError."""
        check(self._wanted)
        networks = tuple(network for network in networks if not network.is_internal)
        if not networks:
            raise UsageError("ports: nothing leads into an internal network; give one with internal=False as well, or leave ports out")
        networks[0].check_ports()
        self._check_ipv6(networks)
        reserve(self._wanted, self._owner, ipv6=self._ipv6)[1]()

    def _check_ipv6(self, networks: tuple[Network, ...]) -> None:
        way = next((network for network in networks if network.leads6), None)  # the first one, which has the route of what is answered
        if way is not None and way.has_outlet:
            way = None
        self._ipv6 = way is not None
        asked = next((port for port in self._wanted if port.address is not None and port.address.version == 6), None)
        if way is not None:
            # In one that is kept, where nothing of this process's may be yet, it is seen when the port is published.
            if not way.is_kept and any(port.address in (None, ANY6, LOOPBACK6) for port in self._wanted):
                check_loopback(way.live)
        elif asked is not None and any(network.has_outlet for network in networks):
            raise UnsupportedError(
                f"ports: {str(asked)!r}: {PROGRAM} publishes at addresses of IPv4 only",
                feature="ipv6",
                remedy="give an IPv4 address of this host, or none; or, as root, uplink='kernel'",
            )
        elif asked is not None:
            raise UsageError(f"ports: {str(asked)!r}: none of the container's networks reaches outside by IPv6; give net=Network(ipv6=True)")

    def hold(self) -> None:
        """Take the ports of the host. Raises: PortInUseError, SetupError."""
        self._held, self._let_go = reserve(self._wanted, self._owner, ipv6=self._ipv6)

    @property
    def table(self) -> Mapping[str, tuple[HostPort, ...]]:
        """What leads to it now, by its own ports."""
        found: dict[str, tuple[HostPort, ...]] = {}
        for one in (one for one in self._held if one.address.version in self._goals):
            found[one.key] = (*found.get(one.key, ()), one.host)
        return MappingProxyType(found)

    def follow(self, ways: Mapping[int, tuple[Live, Place]]) -> None:
        """Have those of each version of IP lead to that place from now on, and nowhere else; without one: nowhere."""
        for version in _VERSIONS:
            self._follow(version, ways.get(version))

    def _follow(self, version: int, way: tuple[Live, Place] | None) -> None:
        goal = self._goals.get(version)
        if goal is not None and (way is None or goal[0] is not way[1]):
            del self._goals[version]
            goal[1]()
            goal = None
        held = [one for one in self._held if one.address.version == version]
        if way is None or goal is not None or not held:
            return
        live, place = way
        if live.outlet is None:
            self._goals[version] = place, publish(held, live, place, version)
        elif version == 4:
            self._goals[version] = place, _forward(held, live, live.outlet, place)

    def leave(self, place: Place) -> None:
        """The container is about to lose that place."""
        for version in [version for version, goal in self._goals.items() if goal[0] is place]:
            self._follow(version, None)

    def close(self) -> None:
        """Let go of all of it."""
        with ExitStack() as stack:
            if self._let_go is not None:
                stack.callback(self._let_go)
            self._held, self._let_go = (), None
            for version in [*self._goals]:
                stack.callback(self._follow, version, None)


def _forward(held: Iterable[Reserved], live: Live, outlet: Outlet, place: Place) -> Callable[[], None]:
    """Have the program that is a network's way out listen there, and pass on what comes. Raises: SetupError, BrokenError."""
    with ExitStack() as stack, live.lock:
        for one in held:
            stack.callback(one.take_back)
            one.lend()
            stack.callback(outlet.publish(one.port.protocol, (IPv4Address(int(one.address)), one.number), (place.address, one.port.number)))
        undo = stack.pop_all()

    def withdraw() -> None:
        with live.lock:
            undo.close()

    return withdraw
