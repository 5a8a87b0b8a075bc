"""A container's place in a network: what is told of it, and what belongs to it."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING

from attrs import frozen

if TYPE_CHECKING:
    from sandbox._session import Session


@frozen(slots=False)  # made for each start: this makes it in half the time
class Endpoint:
    """A container's place in a network. *address6*: None in a network without IPv6. *aliases*: its names there, beside its hostname."""

    hostname: str
    address: str
    mac: str
    pid: int  # of the container's init, as this process sees it
    address6: str | None = None
    aliases: tuple[str, ...] = ()
    interface: str = "eth0"  # inside


@frozen(eq=False, slots=False)
class Place:
    """The same for those who work on it. *port*: the index of its port, in the switch; *index*: of its interface, in the container."""

    endpoint: Endpoint
    session: Session
    address: IPv4Address
    address6: IPv6Address | None
    port: int
    index: int

    @property
    def addresses(self) -> list[IPv4Address | IPv6Address]:
        """Of each version of IP that it has."""
        return [address for address in (self.address, self.address6) if address is not None]
