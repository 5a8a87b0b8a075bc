"""What `Container` offers of its networks. The work is imported when there is one."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sandbox._networks.membership import Membership
    from sandbox._networks.wishes import Wishes
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
        """Its address in its first `Network`; None: it is in none, or that has been closed. Raises: ClosedError: it does not run."""
        self._live()
        found = () if self._membership is None else self._membership.endpoints.items()
        return next((place.address for network, place in found if network.is_open), None)

    @property
    def _attach(self) -> Attach | None:
        if not self._wishes.is_connected:
            return None
        from sandbox._networks.membership import Membership

        self._membership = Membership(self._wishes, self.spec.hostname)
        return self._membership.attach
