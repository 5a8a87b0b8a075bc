"""A network that was made: its switch, its addresses, and who is in it."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Generator, Iterable
from contextlib import ExitStack, contextmanager, suppress
from ipaddress import IPv4Address, IPv4Network, IPv6Address
from typing import TYPE_CHECKING, ClassVar

from attrs import Factory, define, field

from sandbox import _host
from sandbox._networks.ahead import Ahead, Given, Lender, taken
from sandbox._networks.guard import Guard
from sandbox._networks.names import NetworkNames
from sandbox._networks.naming import begin as begin_names
from sandbox._networks.neighbours import Neighbours
from sandbox._networks.outlet import Outlet
from sandbox._networks.places import Endpoint, Place
from sandbox._networks.shaping import Shaping
from sandbox._networks.shortcut import Shortcut
from sandbox._networks.switch import Inside, Switch, namespace_of
from sandbox._networks.uplink import Uplink
from sandbox._spares import drop_of as drop_spares
from sandbox._undo import Undo
from sandbox.errors import ClosedError, SandboxError, SetupError, UsageError
from sandbox.net.addresses import mac_of
from sandbox.net.allow_rules import allowing
from sandbox.net.guard import closed, opened, without_up
from sandbox.net.neighbours import forgotten, given_up_soon, known
from sandbox.net.rtnetlink import BRIDGE, FIRST_PORT, INSIDE, Batch, Requests, Templates, bridge, bridge_address, default_route, removal, templates
from sandbox.net.spec import Addresses, NetworkSpec, Subnets

if TYPE_CHECKING:
    from sandbox._networks.wishes import Join
    from sandbox._session import Session

VERSIONS = (4, 6)


def uplink_of(spec: NetworkSpec) -> str:
    """How a network that is not internal reaches outside."""
    return spec.uplink or ("kernel" if _host.host().privileged else "slirp4netns")


@define(eq=False)
class Live:
    """A network from its making to its end. Thread-safe. *lock* is held for one request to the kernel at a time."""

    tells_all: ClassVar[bool] = True  # each member of all others: nobody has to ask for a neighbour

    spec: NetworkSpec
    switch: Switch
    requests: Requests  # to the switch
    addresses: Addresses[IPv4Address]
    addresses6: Addresses[IPv6Address] | None
    names: NetworkNames | None  # None: nobody answers for it
    outlet: Outlet | None = None  # by which it reaches outside without the host's forwarding
    uplink: Uplink | None = None  # or with it
    places: dict[Place, Callable[[], None]] = field(factory=dict[Place, Callable[[], None]])  # and what tells its owner that it is lost
    neighbours: Neighbours = field(factory=Neighbours)
    guard: Guard = field(default=Factory(lambda self: Guard(self.switch), takes_self=True))
    lock: threading.RLock = field(factory=threading.RLock)
    is_open: bool = True
    key: object = field(factory=object)  # which spares are this network's
    plain_key: object = field(factory=object)  # and which of them are for containers that say which addresses they want
    lender: Lender = field(factory=Lender)
    shaping: Shaping = field(default=Factory(lambda live: Shaping(live.switch, live.requests, live.spec.mtu), takes_self=True))
    shortcut: Shortcut = field(  # not of the network itself: that is to end when nobody has it any more
        default=Factory(Shortcut.of, takes_self=True)
    )
    _next_port: int = FIRST_PORT

    @classmethod
    def make(cls, spec: NetworkSpec, subnets: Subnets, stack: ExitStack, *, beside: Iterable[IPv4Network] = (), named: bool = True) -> Live:
        """Make it; *stack* takes it back. *beside*: subnets that are not to be chosen. *named*: its containers find one another by name.

        Raises: UsageError, UnsupportedError, SetupError.
        """
        subnet = subnets.take(spec.subnet, beside)
        stack.callback(subnets.release, subnet)
        addresses = Addresses(subnet, spec.gateway or subnet.network_address + 1)
        addresses6 = None
        if spec.ipv6:
            subnet6 = subnets.take6(spec.subnet6)
            stack.callback(subnets.release, subnet6)
            addresses6 = Addresses(subnet6, subnet6.network_address + 1)
        switch = Switch()
        stack.callback(switch.close)
        requests = Requests(switch.socket())
        stack.callback(requests.close)
        requests.send(bridge(mac_of(addresses.gateway), spec.mtu), "make a bridge")
        if addresses6 is not None:
            switch.begin_ipv6("bridge")
        families = [family for family in (addresses, addresses6) if family is not None]
        requests.send([bridge_address(family.gateway, family.subnet) for family in families], "give a bridge its addresses")
        if spec.allow is not None:  # before there is a way out
            with switch.filters() as kernel:
                kernel.commit(allowing(spec.allow, ipv6=spec.ipv6))
        names = begin_names(spec, switch, str(addresses.gateway), [str(family.subnet) for family in families]) if named else None
        if names is not None:
            stack.callback(names.close)
        outlet = uplink = None
        if not spec.internal and uplink_of(spec) == "kernel":
            uplink = Uplink.make(switch, requests, mtu=spec.mtu, avoid=subnet, stack=stack, ipv6=spec.ipv6)
        elif not spec.internal:
            outlet = Outlet(switch, requests, mtu=spec.mtu, ipv6=spec.ipv6, wanted=spec.uplink)
            stack.callback(outlet.close)
        live = cls(spec, switch, requests, addresses, addresses6, names, outlet, uplink)
        if spec.shape is not None:
            live.shaping.check(spec.shape)
        return live

    def check(self, join: Join) -> None:
        """Refuse what a container cannot have here now; nothing is touched. Raises: UsageError."""
        check_place(join, self.spec.name, self.addresses, self.addresses6)
        if join.mac is not None:
            self._check_mac(join.mac)
        if join.shape is not None:
            with self.lock:
                self.shaping.check(join.shape)

    def _check_mac(self, mac: str) -> None:
        with self.lock:
            check_mac(mac, self.spec.name, (mac_of(self.addresses.gateway), *(place.endpoint.mac for place in self.places)))

    # ---- Containers ----

    def admit(
        self,
        session: Session,
        join: Join,
        hostname: str,
        *,
        number: int,
        routed: tuple[int, ...],
        forger: bool,
        lost: Callable[[], None],
        ahead: Ahead | None,
        chosen: Callable[[Live, Place], None] | None,
    ) -> Place:
        """Connect a container by its *number*-th interface. *routed*: the versions of IP whose default route goes through here.

        *forger*: its programs may have rights over the interface, and are held to its addresses by the port.
        *lost* is called when the network is closed before `dismiss`. *ahead*: that interface, if it is there already.
        *chosen* is called once the addresses are, before anything is made.
        """
        with Undo() as undo:
            requests, given = taken(ahead), None
            if ahead is not None and requests is not None:
                undo.callback(requests.close)
                given = ahead.given
            place = self._reserve(session, join, hostname, number, port=None if ahead is None or requests is None else ahead.port, given=given)
            undo.callback(self._release, place)
            if chosen is not None:
                chosen(self, place)
            undo.callback(self._forget, place)
            self._connect(place, number, routed, requests, forger=forger, lost=lost, is_settled=given is not None)
            undo.forget()
        return place

    def _reserve(self, session: Session, join: Join, hostname: str, number: int, *, port: int | None, given: Given | None = None) -> Place:
        """What nobody else has from now on, until `_release`. *port*: that of an interface that is there already, with what is *given*."""
        with Undo() as undo:
            address, address6, mac = self._take_addresses(join, undo) if given is None else given
            if port is None:
                with self.lock:
                    port, self._next_port = self._next_port, self._next_port + 1
            endpoint = Endpoint(
                hostname, str(address), mac, session.pid, None if address6 is None else str(address6), join.aliases, f"eth{number}"
            )
            place = Place(endpoint, session, address, address6, port, INSIDE + number)
            undo.forget()
        return place

    def _release(self, place: Place) -> None:
        self.addresses.release(place.address)
        if self.addresses6 is not None and place.address6 is not None:
            self.addresses6.release(place.address6)

    def _take_addresses(self, join: Join, undo: Undo) -> Given:
        with self.lock:  # a spare that has one of them is taken before, or not at all
            address, address6 = self.addresses.take(None if join.address is None else IPv4Address(join.address)), None
            undo.callback(self.addresses.release, address)
            if self.addresses6 is not None or join.address6 is not None:
                family = _ipv6(self.spec.name, self.addresses6)
                address6 = family.take(None if join.address6 is None else IPv6Address(join.address6), rather=self.twin_of(address))
                undo.callback(family.release, address6)
            self.lender.recall(address, address6, mac=join.mac)
        return Given(address, address6, join.mac or mac_of(address))

    def twin_of(self, address: IPv4Address) -> IPv6Address | None:
        """The same number in both, where that is free: easier to read."""
        if self.addresses6 is None:
            return None
        return IPv6Address(int(self.addresses6.subnet.network_address) + int(address) - int(self.addresses.subnet.network_address))

    def _connect(
        self,
        place: Place,
        number: int,
        routed: tuple[int, ...],
        requests: Requests | None,
        *,
        forger: bool,
        lost: Callable[[], None],
        is_settled: bool,
    ) -> None:
        """Everything but the addresses' choice. *requests*: to the container, where the pair is there already, and *is_settled* if it has them;
        ours from now on.
        """
        mac, port = place.endpoint.mac, place.port
        with Undo() as undo:
            if requests is not None:
                undo.callback(requests.close)
            with self.lock:
                self._check_open()
                self._check_mac(mac)
                self.places[place] = lost
                made = [] if is_settled else self._link_of(number, port, mac)
                news = made[1:]
                if place.address6 is not None:  # the bridge has no address of the link, without which the kernel cannot ask for those it forwards to
                    news.append(known(BRIDGE, place.address6, mac))
                if requests is None:
                    requests = self._make_pair(place, [without_up(made[0]) if forger else made[0], *news])
                    undo.callback(requests.close)
                elif news:
                    self.requests.send(news, "make an interface known")
                self.guard.fence(place, forger=forger)  # its own end is not up yet, or is no program's yet
                if forger:  # one that was made ahead is open already, but has run nothing yet
                    self.requests.send(opened(port), "open a port")
            try:
                if not is_settled:
                    requests.send(self._own(number, Given(place.address, place.address6, mac), routed), "give a container its addresses")
            except SetupError:
                self._check_open()  # somebody has closed it, and that is why
                raise
            with self.lock:
                self._check_open()
                self.neighbours.welcome(place, requests)
            undo.forget()  # they are the neighbours' now

    def _link_of(self, number: int, port: int, mac: str) -> list[bytes]:
        """What makes a pair, and has the bridge know it."""
        made = self._templates(number)
        return [made.link_of(port=port, mac=mac), made.neighbour_of(port=port, mac=mac)]

    def _own(self, number: int, given: Given, routed: tuple[int, ...]) -> list[bytes]:
        """What gives a container's interface all that is its own. The MAC comes before neighbours, which the kernel forgets when that changes."""
        addresses, index = self._templates(number).addresses_of(*given), INSIDE + number
        news = [*addresses, *self._routes(index, routed), *(known(index, address, mac) for address, mac in self._gateways())]
        versions = (4,) if self.addresses6 is None else VERSIONS
        return [*news, *(given_up_soon(index, version) for version in versions)] if self.tells_all else news

    def _make_pair(self, place: Place, messages: list[bytes]) -> Requests:
        """Have a pair made; gives a socket in the container, the caller's to close. The caller has the lock."""
        ipv6 = self.addresses6 is not None
        with namespace_of(place.session) as inside:
            if not self.switch.is_ordinary:
                return Requests(self.switch.take_pair(self.switch.ask_for_pair(inside, Batch.of(messages), ipv6=ipv6)))
            requests = Requests(self.switch.socket(inside, ipv6=ipv6))
            try:
                self.requests.send(messages, "make an interface", named=inside.fileno())
            except BaseException:
                requests.close()
                raise
            return requests

    def prepare(self, session: Session, *, plain: bool) -> Ahead | None:
        """Have the first interface made of a container that runs and that nobody has asked for yet; None: not as an ordinary user. Does not wait.

        *plain*: without an address. Raises: ClosedError, BrokenError, SetupError.
        """
        if self.switch.is_ordinary:
            return None
        with namespace_of(session) as inside, self.lock:
            self._check_open()
            port, self._next_port = self._next_port, self._next_port + 1
            given = None if plain else self.lender.lend(self)
            if given is None:
                messages, own = self._link_of(0, port, _passing_mac(port))[:1], []
            else:
                messages = self._link_of(0, port, given.mac)
                own = self._own(0, given, tuple(version for version in VERSIONS if self.offers_route(version)))
            try:
                asked = self.switch.ask_for_pair(inside, Batch.of(messages), own=Batch.of(own), ipv6=self.addresses6 is not None)
            except BaseException:
                if given is not None:
                    self.lender.put_back(self, given)
                raise
            ahead = Ahead(self, port, asked, given)
            self.lender.hold(ahead)
            return ahead

    def _gateways(self) -> list[tuple[IPv4Address | IPv6Address, str]]:
        """The network's own addresses, and their MAC."""
        families = [family for family in (self.addresses, self.addresses6) if family is not None]
        return [(family.gateway, mac_of(self.addresses.gateway)) for family in families]

    def _check_open(self) -> None:
        if not self.is_open:
            raise ClosedError("the network was closed while a container joined it")

    def _templates(self, number: int) -> Templates:
        subnet6 = None if self.addresses6 is None else self.addresses6.subnet
        return templates(self.addresses.subnet, subnet6, mtu=self.spec.mtu, number=number)

    def _routes(self, index: int, versions: tuple[int, ...]) -> list[bytes]:
        ways = {4: self.addresses.gateway, 6: None if self.addresses6 is None else self.addresses6.gateway}
        return [default_route(way, index) for version in versions if (way := ways[version]) is not None]

    @contextmanager
    def _requests_in(self, inside: Inside) -> Generator[Requests]:
        theirs = Requests(self.switch.socket(inside, ipv6=self.addresses6 is not None))
        try:
            yield theirs
        finally:
            theirs.close()

    def offers_route(self, version: int) -> bool:
        """Whether what is for outside can be sent here."""
        # With a route that leads nowhere, programs would wait for answers where they now fail at once.
        return not self.spec.internal and (version == 4 or self.leads6)

    @property
    def leads6(self) -> bool:
        """Whether it reaches outside by IPv6."""
        return (self.uplink is not None and self.uplink.six is not None) or (self.outlet is not None and self.outlet.leads6)

    def route(self, place: Place, versions: tuple[int, ...]) -> None:
        """Have a container's default routes go through here from now on."""
        with namespace_of(place.session) as inside, self._requests_in(inside) as theirs:
            theirs.send(self._routes(place.index, versions), "give a container its default route")

    def dismiss(self, place: Place) -> None:
        """Take a container's interface, if it lives; and let others have its addresses. Once more is nothing."""
        with self.lock:
            if place not in self.places:
                return
            try:
                self._forget(place)
            finally:
                self._release(place)

    def _forget(self, place: Place) -> None:
        """The walls around its port go last: somebody else may hold its namespace (a container that shares it, a socket that was passed on)."""
        with self.lock:
            self.neighbours.dismiss(place)
            was_here = self.places.pop(place, None) is not None
            if not self.is_open:
                return
            self._forget_neighbour(place)
            if was_here:
                self._cut_off(place)
            self.guard.dismiss(place)

    def _cut_off(self, place: Place) -> None:
        """A container that has ended loses its interface with the last who holds its namespace; to close its port takes no 20 ms, as that does."""
        cut_off(self.requests, place.port, for_good=place.session.is_alive)

    def _forget_neighbour(self, place: Place) -> None:
        if place.address6 is not None:
            with suppress(SetupError):  # ENOENT: it has not come so far
                self.requests.send(forgotten(BRIDGE, place.address6), "forget an interface")

    def close(self, stack: ExitStack) -> None:
        """Remove it, and have those who are in it know; *stack* is what `make` was given."""
        drop_spares(self.key)
        drop_spares(self.plain_key)
        with self.lock:  # whoever connects a container just now goes first
            self.is_open = False
            owners = [*self.places.values()]
            if owners:
                with suppress(SandboxError):  # ENODEV, if all have ended; what else there is goes with the switch
                    self.requests.send(removal(None), "remove the interfaces")
            self.neighbours.close()
            self.guard.close()
            self.shaping.close()
            self.shortcut.close()
        with stack:
            for lost in reversed(owners):
                stack.callback(lost)

    def abandon(self) -> None:
        """In a forked child: let go of its copies, which would keep the namespace when the parent has ended."""
        self.is_open = False
        self.neighbours.close()
        if self.names is not None:
            self.names.abandon()
        if self.outlet is not None:
            self.outlet.close()
        self.guard.close()
        self.shaping.close()
        self.shortcut.abandon()
        self.requests.close()
        self.switch.abandon()


def cut_off(requests: Requests, port: int, *, for_good: bool = True) -> None:
    """Remove a port, or close it, if it is there."""
    try:
        requests.send(removal(port) if for_good else closed(port), "remove an interface")
    except SetupError as error:
        if error.errno != errno.ENODEV:  # it was not made, or its container ends just now
            raise


def _passing_mac(port: int) -> str:
    """Until the container's own is known."""
    return ":".join(f"{octet:02x}" for octet in (0x02, 0x43, *port.to_bytes(4, "big")))


def check_place(join: Join, name: str, addresses: Addresses[IPv4Address], addresses6: Addresses[IPv6Address] | None) -> None:
    """Refuse addresses that a container could not have now in the network *name*. Raises: UsageError."""
    if join.address is not None:
        addresses.check(IPv4Address(join.address))
    if join.address6 is not None:
        _ipv6(name, addresses6).check(IPv6Address(join.address6))


def check_mac(mac: str, name: str, taken: Iterable[str]) -> None:
    """Refuse a MAC that somebody has in the network *name*. Raises: UsageError."""
    if mac in taken:
        raise UsageError(f"mac: {mac} is taken in {name!r}; give another one, or none")


def _ipv6(name: str, addresses6: Addresses[IPv6Address] | None) -> Addresses[IPv6Address]:
    if addresses6 is None:
        raise UsageError(f"address6: {name!r} has no IPv6; make it with ipv6=True")
    return addresses6
