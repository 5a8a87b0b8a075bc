"""What `Container` offers of its networks. The work is imported when there is one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sandbox.errors import UsageError

if TYPE_CHECKING:
    import threading
    from collections.abc import Mapping

    from sandbox._networks.membership import Membership
    from sandbox._networks.wishes import Join, Wishes
    from sandbox._session import Attach
    from sandbox._spec import ContainerSpec
    from sandbox._start import Started
    from sandbox.network import Endpoint, Network


class NetworkAccess:
    """A container and its networks."""

    _wishes: Wishes
    _membership: Membership | None = None

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

    def connect(self, network: Network | Join, /) -> Endpoint:
        """Put the running container into one more network; gives its place there. Its own /etc/hosts is written anew.

        Raises: UsageError: it is in there already, shares its network with another container or the host, or what `Join` says cannot be had;
            ClosedError: container or network do not run; SetupError; BrokenError: the container has ended. Nothing is left behind then.
        """
        from sandbox._networks.wishes import to_join

        return self._networked("connect").connect(to_join(network))

    def disconnect(self, network: Network, /) -> None:
        """Take the running container out of a network: the interface is gone at once, and its connections with it.

        Raises: UsageError: it is not in there, or as `connect`; ClosedError: it does not run.
        """
        from sandbox._networks.wishes import to_join

        self._networked("disconnect").disconnect(to_join(network).network)

    def _networked(self, what: str) -> Membership:
        if self.spec.net is not None or self._wishes.net_of is not None:
            whose = "the host" if self._wishes.net_of is None else "another container"
            raise UsageError(f"{what}: the container shares the network of {whose}; {what} that one, or start it with net=None")
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
    def _attach(self) -> Attach | None:
        """What connects it when it starts; what can be refused is refused now."""
        if not self._wishes.is_connected:
            return None
        membership = self._new_membership()
        membership.check()
        self._membership = membership
        return membership.attach
