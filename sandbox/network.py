"""`Network`: containers that reach one another, and nobody else."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from ipaddress import IPv4Address, IPv4Network, IPv6Network
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, ClassVar, Self

from attrs import evolve

from sandbox import _host
from sandbox._networks.directories import kept_subnets
from sandbox._networks.live import Live, uplink_of
from sandbox._networks.naming import link_variables
from sandbox._networks.outlet import check_subnet6, find_program
from sandbox._networks.places import Endpoint
from sandbox.errors import ClosedError, UnsupportedError, shortages
from sandbox.net.spec import NetworkSpec, Subnets, to_spec

if TYPE_CHECKING:
    from sandbox._networks.wishes import Join
    from sandbox.net.counters import NetStats
    from sandbox.net.shape import Shape

__all__ = ["Endpoint", "Network", "link_variables"]

_subnets = Subnets()


class Network:
    """A network of containers: each gets an interface ``eth0`` with an address in it, and reaches the others by theirs.

    Nothing happens before ``with`` or `create`; at the end of the block all of it is gone. It lives in a namespace of its own: the host
    sees no interface, address or rule of it, and reaches nothing in it. Containers of two networks do not reach each other.

    name: letters, digits, ``_-.``; None: one is made up. subnet: ``"10.1.2.0/24"``; None: one that is in the way of no route of the host
        and no other network of this process. gateway: the address that the network keeps for itself; None: the first.
    internal: True: its containers reach one another only. False: what the host reaches too, but not the host itself.
    uplink: how they do that. "kernel": the host forwards (of root), by IPv6 too with *ipv6*. What its other packet filters forbid stays forbidden:
        UnsupportedError in `create` says what to do. "slirp4netns": that program, if it is installed, makes connections of its own of theirs,
        with the caller's rights, by IPv6 too where the host has a default route of it; the host itself is reached then, but for its loopback.
        "pasta": the same for ordinary users, without published ports. None: the first as root; the second, or else the third, as an ordinary user.
    allow: whom they may reach there: "10.0.0.5:5432", "10.1.0.0/16", "1.1.1.1:53/udp", "[fd00::1]:80", "example.org:443", "*.example.org:443";
        []: nobody, None: everybody. What is not allowed is refused at once, and other names beyond the network are not answered. A name
        opens the addresses that the network's name server tells a container, while they count; none that is private, or the host's.
    mtu: of its interfaces, 1500 unless said. labels: strings of the caller's own, for looking at.
    ipv6: its containers have addresses of IPv6 too, of *subnet6*: ``"fd00:1::/64"``; None: one of fd00::/8 that is likely to be nobody else's.
    shape: how fast, how late and how reliably the packets of each container pass, unless `Join` says otherwise; see `Shape`. None: as they come.

    Raises: UsageError for a wrong value, before anything is touched.
    Needs: a kernel with bridge and veth; as an ordinary user, one that allows user namespaces.
    Thread-safe. A forked child must not use its parent's networks (ClosedError).
    """

    IS_JOINED: ClassVar[bool] = True  # what a container is given to be in one (see `to_wishes`)

    def __init__(
        self,
        name: str | None = None,
        *,
        subnet: str | IPv4Network | None = None,
        gateway: str | IPv4Address | None = None,
        internal: bool = False,
        mtu: int | None = None,
        labels: Mapping[str, str] | None = None,
        ipv6: bool = False,
        subnet6: str | IPv6Network | None = None,
        uplink: str | None = None,
        allow: Iterable[str] | None = None,
        shape: Shape | None = None,
    ) -> None:
        self._spec = to_spec(
            name, subnet=subnet, gateway=gateway, internal=internal, mtu=mtu, labels=labels, ipv6=ipv6, subnet6=subnet6, uplink=uplink, allow=allow
        )
        self._spec = evolve(self._spec, shape=shape)
        self._live: Live | None = None
        self._closed = False
        self._stack = ExitStack()
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        state = "closed" if self._closed else str(self._live.addresses.subnet) if self._live else "not created"
        return f"Network({self.name!r}, {state})"

    @property
    def name(self) -> str:
        return self._spec.name

    @property
    def is_open(self) -> bool:
        """Whether it was created and not closed."""
        return self._live is not None

    @property
    def is_kept(self) -> bool:
        """Whether it is of a `NetworkStore`, and outlives this process."""
        return False

    @property
    def labels(self) -> Mapping[str, str]:
        return MappingProxyType(dict(self._spec.labels))

    @property
    def is_internal(self) -> bool:
        """Whether its containers reach nothing but one another."""
        return self._spec.internal

    @property
    def subnet(self) -> str:
        """The subnet, as text. Raises: ClosedError: it is not created, or closed."""
        return str(self._made().addresses.subnet)

    @property
    def gateway(self) -> str:
        """The network's own address. Raises: as `subnet`."""
        return str(self._made().addresses.gateway)

    @property
    def subnet6(self) -> str | None:
        """The subnet of IPv6; None: it has none. Raises: as `subnet`."""
        family = self._made().addresses6
        return None if family is None else str(family.subnet)

    @property
    def gateway6(self) -> str | None:
        """The network's own address of IPv6; None: it has none. Raises: as `subnet`."""
        family = self._made().addresses6
        return None if family is None else str(family.gateway)

    @property
    def containers(self) -> tuple[Endpoint, ...]:
        """Who is in it now, in the order of joining. Raises: as `subnet`."""
        live = self._made()
        with live.lock:
            return tuple(place.endpoint for place in live.places)

    def stats(self) -> NetStats:
        """What the containers that are in it now have received and sent in it, together; see `NetStats`. Raises: as `subnet`."""
        from sandbox._networks.measures import stats_of_network

        return stats_of_network(self._made())

    # ---- Life ----

    def create(self) -> Network:
        """Make it. Raises: UnsupportedError, UsageError: the subnet is another network's; SetupError; ClosedError after `close`."""
        with self._lock, shortages("make a network"):
            if self._closed:
                raise ClosedError("the network was closed; make another one")
            if self._live is None:
                self._check()
                with ExitStack() as stack:
                    self._live = Live.make(self._spec, _subnets, stack, beside=() if self._spec.subnet else kept_subnets())
                    self._stack = stack.pop_all()
                _networks.add(self)
        return self

    def _check(self) -> None:
        check_possible(self._spec)

    def close(self) -> None:
        """Remove it. Containers that are in it still lose their interface. May be called twice, and before `create`."""
        with self._lock:
            self._closed = True
            live, self._live = self._live, None
            _networks.discard(self)
        if live is not None:
            live.close(self._stack)

    def __enter__(self) -> Self:
        self.create()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _made(self) -> Live:
        live = self._live
        if live is None:
            raise ClosedError("the network is closed" if self._closed else "the network is not created; use `with`, or create()")
        return live

    # ---- Containers ----

    def enter(self) -> Live:
        """What was made, for one `Live.admit`, which must follow. Raises: ClosedError. For `Membership`, as the rest."""
        return self._made()

    def check(self, join: Join) -> None:
        """Refuse what a container could not have here now; nothing is touched. Raises: UsageError; ClosedError. For `Membership`, as `live`."""
        self._made().check(join)

    @property
    def leads6(self) -> bool:
        """Whether it reaches outside by IPv6. Raises: ClosedError. For `Membership`, as `live`."""
        return self._made().leads6

    @property
    def has_outlet(self) -> bool:
        """Whether a program leads outside. Raises: ClosedError. For `Membership`, as `live`."""
        return self._made().outlet is not None

    def check_ports(self) -> None:
        """Refuse published ports where they cannot be had. Raises: UnsupportedError; ClosedError. For `Membership`, as `live`."""
        outlet = self._made().outlet
        if outlet is not None:
            outlet.check_ports()

    @property
    def live(self) -> Live:
        """What was made. Raises: ClosedError."""
        return self._made()

    def abandon(self) -> None:
        """In a forked child: let go of its copies, which would keep the namespace when the parent has ended."""
        self._closed = True
        live, self._live = self._live, None
        self._stack.pop_all()
        if live is not None:
            live.abandon()


def check_possible(spec: NetworkSpec) -> None:
    """Refuse what cannot be done, before anything is touched. Raises: UnsupportedError."""
    if not spec.internal:
        _check_outside(spec)
    if spec.ipv6 and not os.path.exists("/proc/sys/net/ipv6"):
        raise UnsupportedError("this host has no IPv6", feature="ipv6", remedy="boot without ipv6.disable=1, or leave ipv6 out")


def _check_outside(spec: NetworkSpec) -> None:
    if uplink_of(spec) != "kernel":
        check_subnet6(spec)
        find_program(spec.uplink)
    elif not _host.host().privileged:
        raise UnsupportedError(
            "networks that reach outside by the host's forwarding are made by root only",
            feature="CAP_NET_ADMIN",
            remedy="give uplink='slirp4netns', or internal=True, for containers that reach one another only",
        )


_networks: weakref.WeakSet[Network] = weakref.WeakSet()


def register(network: Network) -> None:
    """Have a forked child let go of what the network has."""
    _networks.add(network)


def used_subnets() -> list[IPv4Network | IPv6Network]:
    """Those of the networks of this process."""
    return _subnets.used()


def _after_fork_in_child() -> None:
    global _subnets
    mine, _subnets = list(_networks), Subnets()
    _networks.clear()
    for network in mine:
        network.abandon()


os.register_at_fork(after_in_child=_after_fork_in_child)
