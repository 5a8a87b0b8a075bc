"""A running container's places in networks: made when it starts, or later; forgotten at its end."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING

from sandbox._networks.wishes import Join, Wishes
from sandbox.errors import UnsupportedError

if TYPE_CHECKING:
    from sandbox._session import Session
    from sandbox.network import Endpoint, Network


class Membership:
    """Of one container. Thread-safe."""

    def __init__(self, wishes: Wishes, hostname: str) -> None:
        self._wishes, self._hostname = wishes, hostname
        self._session: Session | None = None
        self._endpoints: dict[Network, Endpoint] = {}
        self._stack = ExitStack()
        self._lock = threading.Lock()

    @property
    def endpoints(self) -> dict[Network, Endpoint]:
        """Its places, in the order of joining."""
        return dict(self._endpoints)

    def attach(self, session: Session) -> Callable[[], None]:
        """Connect a container that has run no program yet. What is returned takes all of it back, when it has ended."""
        if len(self._wishes.joins) > 1 or not all(join.is_plain for join in self._wishes.joins):
            raise UnsupportedError("several networks, addresses, aliases: not offered yet", feature="networks", remedy="give one Network")
        if self._wishes.ports or self._wishes.links:
            raise UnsupportedError("ports and links: not offered yet", feature="networks", remedy="leave them out")
        self._session = session
        with ExitStack() as stack:
            stack.callback(self._endpoints.clear)
            for join in self._wishes.joins:
                stack.callback(self._connect(session, join))
            self._stack = stack.pop_all()
        return self._stack.close

    def _connect(self, session: Session, join: Join) -> Callable[[], None]:
        endpoint, leave = join.network.admit(session, self._hostname)
        self._endpoints[join.network] = endpoint
        return leave
