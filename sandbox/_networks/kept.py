"""Networks that are kept, as this process has them: while a container of its own is in one, it has a helper in that one's switch.

What a network gives out (addresses, MACs, ports) is written down in its directory, under its lock, before the kernel is asked: see `store`. All
else is as in a network of one process (`live`), over a namespace that somebody else keeps.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import weakref
from collections.abc import Callable
from contextlib import ExitStack
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import TYPE_CHECKING, Any, ClassVar, Final

from attrs import Factory, define, field

from sandbox._networks.directories import Directory, is_alive, pid_namespace
from sandbox._networks.kept_by_users import check as check_users
from sandbox._networks.kept_by_users import enter as enter_by_user
from sandbox._networks.kept_names import KeptNames, sockets_for
from sandbox._networks.kept_outlet import KeptOutlet
from sandbox._networks.kept_outside import carry_loopback, lead_on, leads6
from sandbox._networks.kept_shaping import KeptShaping
from sandbox._networks.kept_shortcut import KeptShortcut
from sandbox._networks.live import Live, check_mac, check_place, cut_off
from sandbox._networks.measures import stats_at
from sandbox._networks.outlet import check_ports, find_program, reaches6
from sandbox._networks.places import Endpoint, Place
from sandbox._networks.switch import Switch
from sandbox._sys.procfs import read_start_time
from sandbox.errors import BrokenError, NetworkNotFoundError, UnsupportedError
from sandbox.net.addresses import mac_of
from sandbox.net.counters import NetStats
from sandbox.net.kept import Lease, NetworkInfo, State
from sandbox.net.rtnetlink import NETLINK_ROUTE, Requests
from sandbox.net.shape import queues_of
from sandbox.net.spec import Addresses, NetworkSpec
from sandbox.network import Network, register

if TYPE_CHECKING:
    from sandbox._networks.ahead import Given
    from sandbox._networks.shortcut import Shortcut
    from sandbox._networks.wishes import Join
    from sandbox._session import Session

_known: Final = weakref.WeakValueDictionary[str, "KeptNetwork"]()
_knowing = threading.Lock()


def addresses_of(info: NetworkInfo, state: State) -> tuple[Addresses[IPv4Address], Addresses[IPv6Address] | None]:
    """Who has what, as values."""
    taken = [IPv4Address(lease.address) for lease in state.leases]
    last = IPv4Address(state.last) if state.last else None
    addresses = Addresses(IPv4Network(info.subnet), IPv4Address(info.gateway), taken=taken, last=last)
    if not info.subnet6:
        return addresses, None
    taken6 = [IPv6Address(lease.address6) for lease in state.leases if lease.address6]
    last6 = IPv6Address(state.last6) if state.last6 else None
    return addresses, Addresses(IPv6Network(info.subnet6), IPv6Address(info.gateway6), taken=taken6, last=last6)


@define(eq=False)
class KeptLive(Live):
    """A kept network of which this process has containers. *on_admitted*, *on_leave*: called when one has come, or left."""

    tells_all: ClassVar[bool] = False  # those of other processes are asked for

    info: NetworkInfo = field(kw_only=True)
    directory: Directory = field(kw_only=True)
    number: int = field(kw_only=True)  # of an outlet that is its own (`kept_outlet`); 0: it has none
    on_admitted: Callable[[], None] = field(kw_only=True)
    on_leave: Callable[[], None] = field(kw_only=True)
    shortcut: Shortcut = field(default=Factory(KeptShortcut.of, takes_self=True), kw_only=True)

    @classmethod
    def open(cls, network: KeptNetwork, spec: NetworkSpec, stack: ExitStack) -> KeptLive:
        """Have a helper in the switch; *stack* takes it back. Raises: NetworkNotFoundError, UnsupportedError, SetupError."""
        info, directory = network.info, network.directory
        switch, number = enter_by_user(info, spec, directory, stack) if info.users else (_enter(directory, stack), 0)
        first, *others = switch.sockets((socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_ROUTE), *sockets_for(info))
        requests = Requests(first)
        stack.callback(requests.close)
        names = KeptNames(info, directory, others)
        stack.callback(names.close)
        uplink = lead_on(info, stack)
        if uplink is not None:
            with directory.held():
                if not directory.state().is_publishing:  # who was killed has left it so
                    carry_loopback(uplink.name, on=False)
        made = addresses_of(info, State(0))
        return cls(
            spec, switch, requests, *made, names, None, uplink,
            info=info, directory=directory, number=number, on_admitted=network.has_used, on_leave=network.tidy,
            shaping=KeptShaping(switch, requests, info.mtu, lambda: {lease.port for lease in directory.state().leases}),
        )  # fmt: skip

    def admit(self, *args: Any, **options: Any) -> Place:  # noqa: ANN401 - `Live`'s own
        try:
            if self.number:
                self._lead_outside()
            return super().admit(*args, **options)
        finally:
            self.on_admitted()

    def _lead_outside(self) -> None:
        """Have a program that leads outside, which is alive."""
        with self.lock:
            if not isinstance(self.outlet, KeptOutlet):
                self.outlet = KeptOutlet(self.switch, self.requests, self.directory, number=self.number, mtu=self.info.mtu, ipv6=self.spec.ipv6)
            self.outlet.renew()

    def prepare(self, session: Session, *, plain: bool) -> None:
        """Nothing is made ahead: others give ports out, too."""

    def _reserve(self, session: Session, join: Join, hostname: str, number: int, *, port: int | None, given: Given | None = None) -> Place:
        try:
            start = read_start_time(session.pid)
        except (FileNotFoundError, ProcessLookupError):
            raise BrokenError("the container ended while it joined a network; start another one") from None
        with self.lock, self.directory.held():
            state = self._swept()
            self.addresses, self.addresses6 = addresses_of(self.info, state)
            self._next_port = state.next_port
            place = super()._reserve(session, join, hostname, number, port=port, given=given)
            check_mac(place.endpoint.mac, self.info.name, [lease.mac for lease in state.leases])
            if isinstance(self.outlet, KeptOutlet):
                self.outlet.lead(*place.addresses)
            self.directory.write_state(state.added(_lease_of(place, start)))
            return place

    def _release(self, place: Place) -> None:
        with self.lock, contextlib.suppress(NetworkNotFoundError), self.directory.held():  # it was removed by force
            if isinstance(self.outlet, KeptOutlet):
                self.outlet.lead_no_more(*place.addresses)
            self.directory.write_state(self.directory.written_state().without(place.port))

    def _swept(self) -> State:
        """The state without those that have ended, whose ports nobody who may hold their namespaces can use from then on."""
        written = self.directory.written_state()
        living = written.swept(is_alive)
        ended = [lease.port for lease in written.leases if lease not in living.leases]
        for port in ended:
            cut_off(self.requests, port)
        if ended:
            self.guard.forget(ended)
        return living

    def dismiss(self, place: Place) -> None:
        try:
            super().dismiss(place)
        finally:
            self.on_leave()

    def close(self, stack: ExitStack) -> None:
        """Let go of it; the containers stay in it."""
        with self.lock:
            self.is_open = False
            self.neighbours.close()
            self.guard.close()
            self.shaping.close()
            self.shortcut.close()
        with stack:
            if self.outlet is not None:
                stack.callback(self.outlet.close)


def _enter(directory: Directory, stack: ExitStack) -> Switch:
    with directory.namespace() as namespace:
        switch = Switch(namespace)
    stack.callback(switch.close)
    return switch


def _lease_of(place: Place, start: int) -> Lease:
    found = place.endpoint
    return Lease(place.port, found.address, found.mac, found.hostname, found.pid, start, found.interface, found.address6 or "", found.aliases)


def endpoint_of(lease: Lease) -> Endpoint:
    """The same as others are told."""
    return Endpoint(lease.hostname, lease.address, lease.mac, lease.pid, lease.address6 or None, lease.aliases, lease.interface)


class KeptNetwork(Network):
    """A network of a `NetworkStore`, for ``Container(net=...)``: all of the name are one object, as long as there is any.

    `create`, or ``with``, has this process ready for containers that come and go (a helper, which takes some ms to start); without, it is so
    while there are some. `close` ends that, and nothing else: neither the network, nor containers that are in it.
    """

    def __init__(self, info: NetworkInfo, directory: Directory) -> None:
        super().__init__(
            info.name,
            subnet=info.subnet,
            gateway=info.gateway,
            internal=info.internal,
            mtu=info.mtu,
            labels=info.labels,
            ipv6=bool(info.subnet6),
            subnet6=info.subnet6 or None,
            allow=info.allow,
            shape=info.shape,
        )
        self.info, self.directory = info, directory
        self._users = 0  # who need the helper, whether there are containers or not
        self._is_held = False
        weakref.finalize(self, os.close, directory.fd)

    def __repr__(self) -> str:
        return f"Network({self.name!r}, {self.info.subnet}, kept)"

    @property
    def is_kept(self) -> bool:
        return True

    @property
    def is_open(self) -> bool:
        """Whether it was not removed."""
        return self.directory.is_there

    @property
    def subnet(self) -> str:
        return self.info.subnet

    @property
    def gateway(self) -> str:
        return self.info.gateway

    @property
    def subnet6(self) -> str | None:
        return self.info.subnet6 or None

    @property
    def gateway6(self) -> str | None:
        return self.info.gateway6 or None

    @property
    def containers(self) -> tuple[Endpoint, ...]:
        """Who is in it now, of whatever process, in the order of joining. Raises: NetworkNotFoundError: it was removed."""
        return tuple(map(endpoint_of, self.directory.state().leases))

    def stats(self) -> NetStats:
        """What its containers of all processes have received and sent in it, together, without what shapes of other processes' have dropped.

        Raises: NetworkNotFoundError, UnsupportedError, SetupError.
        """
        live = self._use()
        try:
            with live.lock:
                return sum((stats for lease in self.directory.state().leases if (stats := stats_at(live, lease.port)) is not None), NetStats())
        finally:
            self.has_used()

    def create(self) -> Network:
        """Have this process ready for it. Raises: NetworkNotFoundError, UnsupportedError, SetupError."""
        self._use()
        self._is_held = True
        self.has_used()
        return self

    def close(self) -> None:
        """Undo `create`. Neither the network ends by that, nor a container's place in it."""
        self._is_held = False
        self.tidy()

    def check(self, join: Join) -> None:
        """Refuse what a container could not have here now; nothing is touched. Raises: UsageError; NetworkNotFoundError."""
        if self.info.pids != pid_namespace():
            raise UnsupportedError(
                f"network: {self.name!r} was made in another pid namespace, where this process's containers have other pids",
                feature="pid namespace",
                remedy="make a network of its own there: NetworkStore(path).create(...)",
            )
        if join.shape is not None:
            queues_of(join.shape, mtu=self.info.mtu)
        self.directory.check()
        if self.info.users:
            check_users(self.info)
        else:
            self.directory.check_pinned()
        state = self.directory.state()
        addresses, addresses6 = addresses_of(self.info, state)
        check_place(join, self.name, addresses, addresses6)
        if join.mac is not None:
            check_mac(join.mac, self.name, [mac_of(addresses.gateway), *(lease.mac for lease in state.leases)])

    @property
    def leads6(self) -> bool:
        return leads6(self.info) or (self.has_outlet and bool(self.info.subnet6) and reaches6())

    @property
    def has_outlet(self) -> bool:
        return bool(self.info.users) and not self.info.internal

    def check_ports(self) -> None:
        if self.info.users:
            check_ports(find_program())

    def enter(self) -> Live:
        """A helper in its switch, at least until the `Live.admit` that must follow. Raises: NetworkNotFoundError, UnsupportedError, SetupError."""
        return self._use()

    def _use(self) -> Live:
        with self._lock:
            if self._live is None:
                with ExitStack() as stack:
                    self._live = KeptLive.open(self, self._spec, stack)
                    self._stack = stack.pop_all()
                register(self)
            self._users += 1
            return self._live

    def has_used(self) -> None:
        """What `enter` was for is done."""
        with self._lock:
            self._users -= 1
        self.tidy()

    def tidy(self) -> None:
        """Let go of the helper if nobody has need of it."""
        with self._lock:
            live = self._live
            if live is None or live.places or self._users or self._is_held:
                return
            self._live = None
            live.close(self._stack)

    def abandon(self) -> None:
        """In a forked child: it has no container in it, and may have some of its own."""
        live, self._live = self._live, None
        self._users, self._is_held, self._lock = 0, False, threading.Lock()
        self._stack.pop_all()
        if live is not None:
            live.abandon()


def known(info: NetworkInfo, directory: Directory) -> KeptNetwork:
    """The network of *info* as this process has it; *directory* is that one's from now on."""
    with _knowing:
        found = _known.get(info.id)
        if found is not None:
            directory.close()
            return found
        made = _known[info.id] = KeptNetwork(info, directory)
        return made


def _after_fork_in_child() -> None:
    global _knowing
    _knowing = threading.Lock()  # another thread of the parent may have held it


os.register_at_fork(after_in_child=_after_fork_in_child)
