"""Who is in a network is told to everybody in it: nobody asks for MACs, nor believes an answer.

Theory of operation
-------------------
The kernel has one table of neighbours for all namespaces, of 1,024 entries unless the machine's owner says more (gc_thresh3). What it has
learned stays there for 5 s at least: 33 containers that all talk to one another fill it, and then the host itself finds no new neighbours
either. Permanent entries do not count (neigh_update_gc_list in net/core/neighbour.c), and are no matter of who answers first (ARP spoofing).

So a netlink socket in each container's namespace is kept for as long as it is in the network: whoever comes is told of all others, and all
others of it. A container's namespace lasts until its socket is closed, which its leaving does.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from attrs import define, field

from sandbox.errors import SandboxError, SetupError
from sandbox.net.neighbours import forgotten, known

if TYPE_CHECKING:
    from collections.abc import Callable
    from ipaddress import IPv4Address, IPv6Address

    from sandbox._networks.places import Place
    from sandbox.net.rtnetlink import Requests

_CHUNK: Final = 200  # messages at once: each that fails is an answer, which the socket's buffer has room for


@define(eq=False)
class Neighbours:
    """Of one network. The caller has the network's lock."""

    _sockets: dict[Place, Requests] = field(factory=dict["Place", "Requests"])

    def welcome(self, place: Place, requests: Requests) -> None:
        """Tell *place* of all others, and all others of it; *requests*, to its namespace, are ours from now on.

        What others refuse, who may be root inside, is their loss. Raises: SetupError: *place* refuses it; *requests* stay the caller's.
        """
        messages = [known(place.index, address, other.endpoint.mac) for other in self._sockets for address in _addresses(other)]
        for at in range(0, len(messages), _CHUNK):
            requests.send(messages[at : at + _CHUNK], "tell a container of its neighbours")
        self._tell_others(place, lambda other, address: known(other.index, address, place.endpoint.mac))
        self._sockets[place] = requests

    def dismiss(self, place: Place) -> None:
        """Have all others forget it. Once more is nothing."""
        requests = self._sockets.pop(place, None)
        if requests is not None:
            requests.close()
            self._tell_others(place, lambda other, address: forgotten(other.index, address))

    def _tell_others(self, place: Place, message: Callable[[Place, IPv4Address | IPv6Address], bytes]) -> None:
        for other, requests in [*self._sockets.items()]:
            try:
                requests.send([message(other, address) for address in _addresses(place)], "tell a container of a neighbour")
            except SetupError as error:
                if error.errno == errno.ETIMEDOUT:  # its init eats the answers: nobody waits for it twice
                    self._sockets.pop(other).close()
            except (SandboxError, OSError):
                self._sockets.pop(other).close()

    def close(self) -> None:
        """Let go of all: of the network itself, or of the copies of a forked child."""
        for requests in self._sockets.values():
            requests.close()
        self._sockets.clear()


def _addresses(place: Place) -> list[IPv4Address | IPv6Address]:
    return [address for address in (place.address, place.address6) if address is not None]
