"""What a container publishes: ports of the host that are held as long as it lives, and lead to its place in one of its networks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from types import MappingProxyType
from typing import TYPE_CHECKING

from sandbox._networks.published import publish
from sandbox._networks.reserved import Reserved, check, reserve
from sandbox.errors import UsageError

if TYPE_CHECKING:
    from sandbox._networks.live import Live
    from sandbox._networks.outlet import Outlet
    from sandbox._networks.places import Place
    from sandbox.net.ports import HostPort, Port
    from sandbox.network import Network


class Ports:
    """Of one container. Whoever calls has its membership's lock."""

    def __init__(self, wanted: Iterable[Port], hostname: str) -> None:
        self._wanted, self._owner = tuple(wanted), f"container {hostname!r} of this process"
        self._held: tuple[Reserved, ...] = ()
        self._let_go: Callable[[], None] | None = None
        self._place: Place | None = None  # where they lead, and what ends that
        self._withdraw: Callable[[], None] | None = None

    def check(self, networks: Iterable[Network]) -> None:
        """Refuse what cannot be had now, before anything is touched. Raises: UsageError, PortInUseError, UnsupportedError."""
        check(self._wanted)
        way = next((network for network in networks if not network.is_internal), None)
        if way is None:
            raise UsageError("ports: nothing leads into an internal network; give one with internal=False as well, or leave ports out")
        if not way.is_kept and (outlet := way.live.outlet) is not None:
            outlet.check_ports()
        reserve(self._wanted, self._owner)[1]()

    def hold(self) -> None:
        """Take the ports of the host. Raises: PortInUseError, SetupError."""
        self._held, self._let_go = reserve(self._wanted, self._owner)

    @property
    def table(self) -> Mapping[str, tuple[HostPort, ...]]:
        """What leads to it now, by its own ports."""
        found: dict[str, tuple[HostPort, ...]] = {}
        for one in self._held if self._place is not None else ():
            found[one.key] = (*found.get(one.key, ()), one.host)
        return MappingProxyType(found)

    def follow(self, way: tuple[Live, Place] | None) -> None:
        """Have them lead to that place from now on, and nowhere else; None: nowhere."""
        if self._withdraw is not None and (way is None or self._place is not way[1]):
            withdraw, self._withdraw, self._place = self._withdraw, None, None
            withdraw()
        if way is not None and self._withdraw is None and self._held:
            live, place = way
            self._withdraw = publish(self._held, live, place) if live.outlet is None else _forward(self._held, live, live.outlet, place)
            self._place = place

    def leave(self, place: Place) -> None:
        """The container is about to lose that place."""
        if self._place is place:
            self.follow(None)

    def close(self) -> None:
        """Let go of all of it."""
        with ExitStack() as stack:
            if self._let_go is not None:
                stack.callback(self._let_go)
            self._held, self._let_go = (), None
            self.follow(None)


def _forward(held: Iterable[Reserved], live: Live, outlet: Outlet, place: Place) -> Callable[[], None]:
    """Have the program that is a network's way out listen there, and pass on what comes. Raises: SetupError, BrokenError."""
    with ExitStack() as stack, live.lock:
        for one in held:
            stack.callback(one.take_back)
            one.lend()
            stack.callback(outlet.publish(one.port.protocol, (one.address, one.number), (place.address, one.port.number)))
        undo = stack.pop_all()

    def withdraw() -> None:
        with live.lock:
            undo.close()

    return withdraw
