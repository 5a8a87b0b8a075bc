"""What passes a container's port: counted, and shown to who captures it."""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING

from sandbox.errors import ClosedError, SetupError
from sandbox.net.counters import NetStats, stats_of, stats_request
from sandbox.net.rtnetlink import name_of_port

if TYPE_CHECKING:
    from sandbox._networks.live import Live
    from sandbox._networks.places import Place


def stats_of_place(live: Live, place: Place) -> NetStats | None:
    """What has passed a container's port; None: it has gone. Raises: SetupError."""
    with live.lock:
        if not live.is_open or place not in live.places:
            return None
        try:
            (answer,) = live.requests.ask(stats_request(place.port), "read what an interface has counted")
        except SetupError as error:
            if error.errno == errno.ENODEV:  # its container ends just now
                return None
            raise
        return stats_of(answer)


def stats_of_network(live: Live) -> NetStats:
    """What has passed the ports of all containers that are there now. Raises: SetupError."""
    with live.lock:
        places = [*live.places]
    return sum((found for place in places if (found := stats_of_place(live, place)) is not None), NetStats())


def packets_of(live: Live, place: Place) -> tuple[int, str]:
    """A packet socket where a container's port is, which is the caller's; and the port's name. Raises: SetupError, ClosedError."""
    with live.lock:
        if not live.is_open or place not in live.places:
            raise ClosedError("the container has left the network")
        return live.switch.socket(domain=socket.AF_PACKET), name_of_port(place.port)  # of no protocol: nothing comes to it before it is bound
