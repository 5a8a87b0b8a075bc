"""A container's pair, made before anybody has asked for the container."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from sandbox.net.rtnetlink import Requests

if TYPE_CHECKING:
    from sandbox._networks.live import Live
    from sandbox._session import Asked


class Ahead:
    """Of a spare: its first interface, down and without an address, as the helper has been asked to make it; and a socket in there.

    Whoever has it calls one of `take`, `close` and `abandon`, once. The pair itself goes with the spare, or with the network.
    """

    def __init__(self, live: Live, port: int, asked: Asked) -> None:
        self.live, self.port, self._asked = live, port, asked

    @property
    def is_done(self) -> bool:
        """Whether `take` would not wait."""
        return self._asked.channel.has_event()

    def take(self) -> Requests:
        """The socket inside; the caller closes it. Raises: SetupError, BrokenError: there is no pair."""
        return Requests(self.live.switch.take_pair(self._asked))

    def close(self) -> None:
        """Do without it; waits for the helper's answer. Raises: as `take`."""
        os.close(self.live.switch.take_pair(self._asked))

    def abandon(self) -> None:
        """In a forked child: let go of its copies."""
        self._asked.channel.close()
