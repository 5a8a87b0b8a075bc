"""What `Container` offers of its networks. The work is imported when there is one."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from sandbox.errors import UsageError

if TYPE_CHECKING:
    import threading
    from collections.abc import Mapping

    from sandbox._networks.capture import Capture
    from sandbox._networks.live import Live
    from sandbox._networks.membership import Membership
    from sandbox._networks.places import Place
    from sandbox._networks.wishes import Join, Wishes
    from sandbox._spares import Attach
    from sandbox._spec import ContainerSpec
    from sandbox._started import Started
    from sandbox._types import Size, StrPath
    from sandbox.net.counters import NetStats
    from sandbox.net.ports import HostPort
    from sandbox.net.shape import Shape
    from sandbox.network import Endpoint, Network


class NetworkAccess:
    """A container and its networks."""

    _wishes: Wishes
    _membership: Membership | None = None
    _own_env: tuple[tuple[str, str], ...] | None = None  # before that of links was added to it

    if TYPE_CHECKING:
        spec: ContainerSpec
        _lock: threading.Lock

        def _live(self) -> Started: ...

    @property
    def network(self) -> Network | None:
        """The first `Network` that it was given, if any."""
        return self._wishes.joins[0].network if self._wishes.joins else None

    @property
    def endpoints(self) -> Mapping[str, Endpoint]:
        """Its place in each of its networks, by the network's name. Raises: ClosedError: it does not run."""
        self._live()
        return {} if self._membership is None else {network.name: place for network, place in self._membership.endpoints.items()}

    @property
    def address(self) -> str | None:
        """Its address in the first `Network` that it is in; None: it is in none. Raises: ClosedError: it does not run."""
        return next((place.address for place in self.endpoints.values()), None)

    @property
    def ports(self) -> Mapping[str, tuple[HostPort, ...]]:
        """Where the host leads to its ports now, by ``"80/tcp"``. Empty while it is in no network that reaches outside. Raises: ClosedError."""
        self._live()
        return {} if self._membership is None else self._membership.ports

    def connect(self, network: Network | Join | str, /) -> Endpoint:
        """Put the running container into one more network; gives its place there. Its own /etc/hosts is written anew.

        Raises: UsageError: it is in there already, shares its network with another container or the host, or what `Join` says cannot be had;
            ClosedError: container or network do not run; SetupError; BrokenError: the container has ended. Nothing is left behind then.
        """
        from sandbox._networks.wishes import to_join

        return self._networked("connect").connect(to_join(network))

    def disconnect(self, network: Network | str, /) -> None:
        """Take the running container out of a network: the interface is gone at once, and its connections with it.

        Raises: UsageError: it is not in there, or as `connect`; ClosedError: it does not run.
        """
        from sandbox._networks.wishes import to_join

        self._networked("disconnect").disconnect(to_join(network).network)

    # ---- What passes ----

    def shape(self, network: Network, shape: Shape | None, /) -> None:
        """Have its packets in *network* pass so from now on; None: as they come, whatever `Network` says. What waits in its queues is lost.

        Raises: UsageError: the container is not in there, a burst is smaller than a packet, its network is another container's or the host's;
            UnsupportedError: this kernel cannot delay or lose packets (it has no sch_netem, say); ClosedError: it does not run;
            SetupError: then it has no shape.
        """
        from sandbox._networks.measures import shape_place
        from sandbox.net.shape import to_shape

        wanted, place = to_shape(shape), self._place("shape", network)
        shape_place(*place, wanted)

    def net_stats(self) -> Mapping[str, NetStats]:
        """What it received and sent in each of its networks since it joined that, by the network's name; see `NetStats`.

        Raises: ClosedError: it does not run; UsageError: its network is another container's, or the host's.
        """
        from sandbox._networks.measures import stats_of_place

        found = {network.name: stats_of_place(*seat) for network, seat in self._places("net_stats").items()}
        return {name: stats for name, stats in found.items() if stats is not None}

    def _net_totals(self) -> NetStats | None:
        """All networks that it is in at this moment together, for `Monitor`; None: it is in none, or they cannot be asked."""
        if self._membership is None:
            return None
        from sandbox._networks.measures import stats_of_places

        return stats_of_places(self._membership.places().values())

    def capture(
        self,
        path: StrPath,
        network: Network | None = None,
        *,
        snaplen: int = 65535,
        max_bytes: Size = "256M",
        max_packets: int | None = None,
    ) -> Capture:
        """Write its traffic in *network* into a pcap file while the ``with`` block runs; see `Capture`.

        path: of the host; made anew, for its owner only. network: None: the only one that it is in. snaplen: bytes that are kept of each packet.
        max_bytes: of the file. max_packets: None: any number. Where one of them is reached, the capture ends.

        Raises: UsageError: a wrong value, or it is in no network, in several, or not in that one; ClosedError: it does not run; as `Capture.start`.
        """
        from sandbox._networks.capture import Capture
        from sandbox._networks.measures import packets_of

        live, place = self._place("capture", network)
        return Capture(partial(packets_of, live, place), path, snaplen=snaplen, max_bytes=max_bytes, max_packets=max_packets)

    def _places(self, what: str) -> dict[Network, tuple[Live, Place]]:
        self._live()
        self._check_own(what)
        return {} if self._membership is None else self._membership.places()

    def _place(self, what: str, network: Network | None) -> tuple[Live, Place]:
        places = self._places(what)
        if network is None and len(places) == 1:
            (network,) = places
        if network is None:
            names = ", ".join(repr(known.name) for known in places)
            hint = f"say which of its networks: {names}" if places else "it is in no network, and loopback alone cannot be looked at from outside"
            raise UsageError(f"{what}: {hint}")
        if network not in places:
            raise UsageError(f"{what}: {network!r} is no network that the container is in")
        return places[network]

    def _check_own(self, what: str) -> None:
        if self.spec.net is not None or self._wishes.net_of is not None:
            whose = "the host" if self._wishes.net_of is None else "another container"
            raise UsageError(f"{what}: the container shares the network of {whose}; {what} that one, or start it with net=None")

    def _networked(self, what: str) -> Membership:
        self._check_own(what)
        with self._lock:
            started = self._live()
            if self._membership is None:
                membership = self._new_membership()
                started.at_end(membership.attach(started.session))
                self._membership = membership
            return self._membership

    def _new_membership(self) -> Membership:
        from sandbox._networks.membership import Membership

        return Membership(self._wishes, self.spec)

    @property
    def name(self) -> str | None:
        """By which others of its networks find it, if it was given one."""
        return self._wishes.name

    def _networked_spec(self) -> ContainerSpec:
        """What it is to be, with what its networks add. Raises: UsageError: a link leads to nobody; ClosedError: a network is not created."""
        joins = self._wishes.joins
        if not joins:
            return self.spec
        from attrs import evolve

        from sandbox._networks.naming import resolver_for

        if self._wishes.links and self._own_env is None:
            variables = self._link_variables()
            self._own_env = self.spec.env
            self.spec = evolve(self.spec, env=(*variables, *self.spec.env))
        if self.spec.filesystem.scratch is not None:
            return self.spec
        # To a root that nobody can write to, its files come with the root; its addresses are not known then.
        known = resolver_for(self.spec, [joins[0].network.gateway], is_internal=all(join.network.is_internal for join in joins))
        return evolve(self.spec, resolver=known)

    def _link_variables(self) -> list[tuple[str, str]]:
        from sandbox._networks.naming import link_variables

        found: list[tuple[str, str]] = []
        for alias, other in self._wishes.links:
            if not other.is_running:
                raise UsageError(f"links: {alias!r}: that container does not run; start it first")
            membership, wishes, env = other._membership, other._wishes, other._own_env  # noqa: SLF001 - of this class
            places = {} if membership is None else membership.endpoints
            address = next((places[join.network].address for join in self._wishes.joins if join.network in places), None)
            if address is None:
                raise UsageError(f"links: {alias!r}: that container is in none of this one's networks; put both into one")
            ports = [*other.exposed_ports, *(f"{port.number}/{port.protocol}" for port in wishes.ports)]
            env = other.spec.env if env is None else env
            found += link_variables(alias, self.name or self.spec.hostname, address, ports, env)
        return found

    @property
    def _attach(self) -> Attach | None:
        """What connects it when it starts; what can be refused is refused now."""
        if not self._wishes.is_connected:
            return None
        membership = self._new_membership()
        membership.check()
        self._membership = membership
        return membership
