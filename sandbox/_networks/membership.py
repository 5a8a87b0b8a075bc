"""A running container's places in networks: made when it starts, or later; forgotten at its end.

Theory of operation
-------------------
A container takes its places one after the other, each with whatever belongs to it (`ON_ARRIVAL`), on a stack of that place's own. A place ends with
`disconnect`, with its network, or with the container; its stack is undone then, in the reverse order. What depends on all places at once, the default
routes and the container's own files, is brought in line behind every change.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final

from attrs import define, frozen

from sandbox import _plan as plan
from sandbox._networks import guard, naming
from sandbox._networks.ahead import Files
from sandbox._networks.hosts import hosts_text
from sandbox._networks.live import VERSIONS, Live
from sandbox._networks.measures import shape_arrival
from sandbox._networks.places import Endpoint, Place
from sandbox._undo import Undo
from sandbox.errors import BrokenError, ClosedError, SandboxError, SetupError, UsageError
from sandbox.fs import resolv_text

if TYPE_CHECKING:
    from sandbox._networks.ahead import Ahead, Given
    from sandbox._networks.ports import Ports
    from sandbox._networks.wishes import Join, Wishes
    from sandbox._session import Asked, Session
    from sandbox._spec import ContainerSpec
    from sandbox.net.ports import HostPort
    from sandbox.network import Network

_ROOT: Final = f"@{plan.ROLE_ROOT}"
_UNSEALED: Final = f"@{plan.ROLE_UNSEALED}"


@frozen(eq=False, slots=False)
class Arrival:
    """A container that has just got its place in a network, as those are told who have something to do about it.

    *join*: how it is to be in there; *wishes*: of the container; *servers*: whom it asks for names that nobody in its networks has;
    *is_first*: whether it is in no other network.
    """

    network: Network
    live: Live
    place: Place
    join: Join
    wishes: Wishes
    is_first: bool
    servers: tuple[str, ...] = ()


# Called in this order, before the container's first program if it starts in the network. What each gives takes back what it did, and is called when
# the container leaves, has ended, or the network is closed: `place.session.is_alive` and `live.is_open` tell. Whoever raises has taken
# everything back itself.
ON_ARRIVAL: tuple[Callable[[Arrival], Callable[[], object] | None], ...] = (shape_arrival, naming.arrive)


@define(eq=False)
class _Seat:
    """A place, and what is to be undone with it."""

    live: Live
    place: Place
    undo: Undo

    @property
    def number(self) -> int:
        return int(self.place.endpoint.interface.removeprefix("eth"))


class Membership:
    """Of one container. Thread-safe."""

    def __init__(self, wishes: Wishes, spec: ContainerSpec) -> None:
        self._wishes, self._spec = wishes, spec
        self._session: Session | None = None
        self._first: Live | None = None
        self._writing: Asked | None = None  # of its files, which init is about to write
        self._foretold: tuple[Given, object] | None = None  # what it was told to write, before anybody had asked for the container
        self._seats: dict[Network, _Seat] = {}  # in the order of joining
        self._routes: dict[int, _Seat] = {}  # through which the default route of a version of IP goes
        self._ports: Ports | None = None
        self._lock = threading.RLock()

    def check(self) -> None:
        """Refuse what cannot be had now, before anything is touched. Raises: UsageError, UnsupportedError, ClosedError."""
        if self._wishes.ports:
            from sandbox._networks.ports import Ports

            self._ports = Ports(self._wishes.ports, self._spec.hostname)
            self._ports.check(join.network for join in self._wishes.joins)
        for join in self._wishes.joins:
            join.network.check(join)
        # What is made ahead is made by one process: not in a network that others have containers in, too.
        first = self._wishes.joins[0].network if self._wishes.joins else None
        self._first = None if first is None or first.is_kept else first.live

    @property
    def endpoints(self) -> dict[Network, Endpoint]:
        """Its places, in the order of joining."""
        with self._lock:
            return {network: seat.place.endpoint for network, seat in self._seats.items()}

    def places(self) -> dict[Network, tuple[Live, Place]]:
        """The same for those who work on them."""
        with self._lock:
            return {network: (seat.live, seat.place) for network, seat in self._seats.items()}

    @property
    def ports(self) -> Mapping[str, tuple[HostPort, ...]]:
        """What leads to it from the host, by its own ports."""
        with self._lock:
            return {} if self._ports is None else self._ports.table

    # ---- Changes ----

    @property
    def key(self) -> object:
        """Of containers with the same, spares are made that have their first interface already."""
        if self._first is None:
            return None
        return self._first.plain_key if self._is_choosy else self._first.key

    @property
    def _is_choosy(self) -> bool:
        """Whether it is to have certain addresses in its first network."""
        join = self._wishes.joins[0]
        return (join.address, join.address6, join.mac) != (None, None, None)

    def prepare(self, session: Session) -> Ahead | None:
        """Have a spare's first interface made, and its files if they can be known. Raises: SandboxError."""
        live = self._first
        ahead = None if live is None else live.prepare(session, plain=self._is_choosy)
        if live is not None and ahead is not None and ahead.given is not None and len(self._wishes.joins) == 1:
            try:
                ahead.files = Files(session, session.ask(self._writes([live], _texts(ahead.given)), []), self._said)
            except BaseException:
                ahead.close()
                raise
        return ahead

    def attach(self, session: Session, ahead: Ahead | None = None) -> Callable[[], None]:
        """Connect a container that has run no program yet. What is returned takes all of it back, when it has ended. *ahead*: of `prepare`."""
        with self._lock, Undo() as undo:
            undo.callback(self.end)
            if ahead is not None:
                undo.callback(_do_without, ahead)  # nothing, once it was taken
            self._session = session
            if ahead is not None and ahead.files is not None:
                files, ahead.files = ahead.files, None
                self._writing = files.asked
                self._foretold = None if ahead.given is None else (ahead.given, files.said)
            if self._ports is not None:
                self._ports.hold()
            for join in self._wishes.joins:
                # The last address is all that its files wait for: init writes them while the interface is made.
                self._enter(join, ahead, chosen=self._begin_files if join is self._wishes.joins[-1] else None)
                ahead = None
            if self._seats:
                self._settle(is_fresh=True)
            undo.forget()
        return self.end

    def connect(self, join: Join) -> Endpoint:
        """Connect it while it runs. Raises: UsageError: it is in there already; as `Network.admit`."""
        with self._lock:
            self._running()
            if any(network.name == join.network.name for network in self._seats):
                raise UsageError(f"connect: the container is in {join.network.name!r} already")
            join.network.check(join)
            with Undo() as undo:
                undo.callback(self._leave, join.network)
                place = self._enter(join)
                self._settle()
                undo.forget()
            return place.endpoint

    def disconnect(self, network: Network) -> None:
        """Take its interface in there. Raises: UsageError: it has none."""
        with self._lock:
            self._running()
            if network not in self._seats:
                raise UsageError(f"disconnect: the container is not in {network.name!r}")
            try:
                self._leave(network)
            finally:
                self._settle()

    def end(self) -> None:
        """Forget all places: the container has ended, or is about to."""
        with self._lock:
            session, self._session = self._session, None
            writing, self._writing = self._writing, None
            if session is not None and writing is not None:
                with suppress(SandboxError):  # it failed behind that
                    session.answer(writing)
            with Undo() as undo:
                for network in self._seats:
                    undo.callback(self._leave, network)
                if self._ports is not None:
                    undo.callback(self._ports.close)

    def _running(self) -> Session:
        if self._session is None:
            raise ClosedError("the container was closed meanwhile")
        return self._session

    def _lost(self, network: Network) -> None:
        """A network is closed, and the container's interface has gone with it."""
        with self._lock:
            if network not in self._seats:
                return
            try:
                self._leave(network)
            finally:
                if self._session is not None:
                    self._settle()

    # ---- Steps ----

    def _enter(self, join: Join, ahead: Ahead | None = None, *, chosen: Callable[[Live, Place], None] | None = None) -> Place:
        session, network, live = self._running(), join.network, join.network.enter()
        number, routed, lost = self._free_number(), self._lacking(live), partial(self._lost, network)
        with Undo() as undo:
            place = live.admit(
                session, join, self._spec.hostname, number=number, routed=routed, forger=guard.is_forger(self._spec), lost=lost, ahead=ahead,
                chosen=chosen,
            )
            undo.callback(live.dismiss, place)
            arrival = Arrival(network, live, place, join, self._wishes, not self._seats, self._spec.resolver.nameservers)
            for hook in ON_ARRIVAL:
                taken_back = hook(arrival)
                if taken_back is not None:
                    undo.callback(taken_back)
            seat = self._seats[network] = _Seat(live, place, undo.keep())
            self._routes.update(dict.fromkeys(routed, seat))
        return place

    def _free_number(self) -> int:
        """The lowest that none of its interfaces has."""
        used = [seat.number for seat in self._seats.values()] if self._seats else ()
        number = 0
        while number in used:
            number += 1
        return number

    def _lacking(self, live: Live) -> tuple[int, ...]:
        """The versions of IP that it has no default route for, and that *live* has a way for."""
        if live.spec.internal:
            return ()
        return tuple([version for version in VERSIONS if version not in self._routes and live.offers_route(version)])

    def _leave(self, network: Network) -> None:
        seat = self._seats.pop(network, None)
        if seat is None:
            return
        for version in [version for version, way in self._routes.items() if way is seat]:
            del self._routes[version]  # the kernel removes it with the interface
        with seat.undo:
            if self._ports is not None:
                self._ports.leave(seat.place)

    def _settle(self, *, is_fresh: bool = False) -> None:
        """Bring in line what depends on all places; a container that ends just now has no need of it. *is_fresh*: it has run no program."""
        session = self._running()
        try:
            self._reroute()
            if self._ports is not None:  # the answers of who is asked by them take the default route
                self._ports.follow({version: (way.live, way.place) for version, way in self._routes.items()})
            self._write_files(session, is_fresh=is_fresh)
        except (BrokenError, ClosedError, SetupError):
            if session.is_alive:
                raise

    def _reroute(self) -> None:
        """The default routes go through the first network that has a way outside."""
        for seat in [*self._seats.values()]:
            versions = self._lacking(seat.live)
            if versions and seat.live.is_open:
                seat.live.route(seat.place, versions)
                self._routes.update(dict.fromkeys(versions, seat))

    def _write_files(self, session: Session, *, is_fresh: bool) -> None:
        """Where a program has put something else in their place they stay: that is its loss, and keeps nobody from leaving a network."""
        writing, self._writing = self._writing, None
        try:
            if writing is None:
                seats = self._seats.values()
                writing = session.ask(self._writes([seat.live for seat in seats], [text for seat in seats for text in _texts(seat.place)]), [])
            session.answer(writing)
        except SetupError:
            if is_fresh:
                raise

    def _begin_files(self, live: Live, place: Place) -> None:
        """As `_write_files`, which then waits for it, of a container that gets *place* beside those that it has."""
        foretold, self._foretold = self._foretold, None
        if self._writing is not None:
            is_same = foretold is not None and not self._seats and foretold[0][:2] == (place.address, place.address6) and foretold[1] == self._said
            if is_same:
                return
            self._write_files(self._running(), is_fresh=True)
        if not live.switch.is_ordinary:  # else its init is asked for more meanwhile
            places = [*(seat.place for seat in self._seats.values()), place]
            lives = [*(seat.live for seat in self._seats.values()), live]
            self._writing = self._running().ask(self._writes(lives, [text for place in places for text in _texts(place)]), [])

    @property
    def _said(self) -> object:
        """What its files depend on, beside its networks and addresses."""
        return self._spec.hostname, self._spec.resolver, self._is_mounted("hosts"), self._is_mounted("resolv.conf")

    def _writes(self, lives: list[Live], own: list[str]) -> list[plan.Op]:
        root = _UNSEALED if self._spec.filesystem.scratch is None else _ROOT
        return [plan.WriteFile(f"etc/{name}", text, root) for name, text in self._files(lives, own) if not self._is_mounted(name)]

    def _is_mounted(self, name: str) -> bool:
        """Whether the caller has mounted something of its own there, which is not ours to write to."""
        return any(mount.target in ("/etc", f"/etc/{name}") for mount in self._spec.filesystem.mounts)

    def _files(self, lives: list[Live], own: list[str]) -> Iterable[tuple[str, bytes]]:
        """The files in /etc that tell of networks, of a container with its *own* addresses in these."""
        gateways = [str(live.addresses.gateway) for live in lives if live.names is not None]
        known = naming.resolver_for(self._spec, gateways, is_internal=all(live.spec.internal for live in lives))
        return [
            ("hosts", hosts_text(self._spec.hostname, own, self._spec.resolver.hosts)),
            ("resolv.conf", resolv_text(known.nameservers, known.search, known.options)),
        ]


def _do_without(ahead: Ahead) -> None:
    with suppress(SandboxError):  # it was not made, or its container has ended
        ahead.close()


def _texts(place: Place | Given) -> list[str]:
    return [str(address) for address in (place.address, place.address6) if address is not None]
