"""What passes a container's port: counted, shaped, and shown to who captures it."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Collection
from functools import partial
from typing import TYPE_CHECKING

from attrs import evolve

from sandbox.errors import ClosedError, SetupError
from sandbox.net.counters import NetStats, stats_of, stats_request
from sandbox.net.rtnetlink import name_of_port

if TYPE_CHECKING:
    from sandbox._networks.live import Live
    from sandbox._networks.membership import Arrival
    from sandbox._networks.places import Place
    from sandbox.net.shape import Shape


def stats_of_place(live: Live, place: Place) -> NetStats | None:
    """What has passed a container's port; None: it has gone. Raises: SetupError."""
    with live.lock:
        if not live.is_open or place not in live.places:
            return None
        return stats_at(live, place.port)


def stats_at(live: Live, port: int) -> NetStats | None:
    """The same of a port, whoever's it is; the caller has the network's lock."""
    try:
        (answer,) = live.requests.ask(stats_request(port), "read what an interface has counted")
        received, sent = live.shaping.drops(port)
    except SetupError as error:
        if error.errno == errno.ENODEV:  # its container ends just now
            return None
        raise
    found = stats_of(answer)
    return evolve(found, received_dropped=found.received_dropped + received, sent_dropped=found.sent_dropped + sent)


def stats_of_places(seats: Collection[tuple[Live, Place]]) -> NetStats | None:
    """Of one container, together; None: there are none, or one of them cannot be asked."""
    try:
        found = [stats for seat in seats if (stats := stats_of_place(*seat)) is not None]
    except SetupError:
        return None
    return sum(found, NetStats()) if found else None


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


def shape_place(live: Live, place: Place, shape: Shape | None) -> None:
    """Have what passes a container's port be shaped so from now on. Raises: UsageError, UnsupportedError, SetupError, ClosedError."""
    with live.lock:
        if not live.is_open or place not in live.places:
            raise ClosedError("the container has left the network")
        live.shortcut.before_shape(place.port)
        try:
            live.shaping.apply(place.port, shape)
        finally:
            live.shortcut.after_shape(place.port)


def shape_arrival(arrival: Arrival) -> Callable[[], object]:
    """Give a container that has just come what it was said to have, or its network."""
    live, place = arrival.live, arrival.place
    shape = live.spec.shape if arrival.join.shape is None else arrival.join.shape
    if shape is not None:
        shape_place(live, place, shape)
    return partial(_unshape, live, place)


def _unshape(live: Live, place: Place) -> None:
    with live.lock:
        if live.is_open:
            live.shaping.forget(place.port)
