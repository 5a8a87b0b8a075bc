"""What a network is to be, as a value; and who has which of its addresses."""

from __future__ import annotations

import itertools
import re
import threading
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv4Network
from typing import Any, Final, cast

from attrs import frozen

from sandbox.errors import UnsupportedError, UsageError
from sandbox.net.addresses import choose_address, choose_subnet, to_gateway, to_subnet
from sandbox.net.rtnetlink import routes

DEFAULT_MTU: Final = 1500
LEAST_MTU, MOST_MTU = 576, 65535  # RFC 791's least for hosts; veth's and the bridge's most
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}", re.ASCII)  # Docker's, bounded
_numbers: Final = itertools.count(1)


@frozen
class NetworkSpec:
    """One network, checked. *subnet*, *gateway*: None: chosen when it is made."""

    name: str
    subnet: IPv4Network | None
    gateway: IPv4Address | None
    internal: bool
    mtu: int
    labels: Mapping[str, str]


def to_spec(name: object, *, subnet: object, gateway: object, internal: object, mtu: object, labels: object) -> NetworkSpec:
    """Check what a user says. Raises: UsageError; UnsupportedError for IPv6, which networks do not have yet."""
    if not isinstance(internal, bool):
        raise UsageError(f"internal: {internal!r} is neither True nor False")
    net = None if subnet is None else to_subnet(subnet)
    if net is not None and not isinstance(net, IPv4Network):
        raise UnsupportedError(f"subnet: {net}: networks have IPv4 only", feature="ipv6", remedy="give an IPv4 subnet such as 10.1.2.0/24")
    if net is None and gateway is not None:
        raise UsageError("gateway: give subnet= too, of which it is an address")
    way = None if net is None else to_gateway(gateway, net)
    return NetworkSpec(
        _to_name(name), net, way if isinstance(way, IPv4Address) else None, internal, _to_mtu(mtu), _to_labels(labels)
    )


def _to_name(name: object) -> str:
    if name is None:
        return f"network{next(_numbers)}"
    if not isinstance(name, str) or _NAME.fullmatch(name) is None:
        raise UsageError(f"name: {name!r} is no network's name; use up to 63 letters, digits, '_', '-' and '.', first a letter or digit")
    return name


def _to_mtu(mtu: object) -> int:
    if mtu is None:
        return DEFAULT_MTU
    if isinstance(mtu, bool) or not isinstance(mtu, int) or not LEAST_MTU <= mtu <= MOST_MTU:
        raise UsageError(f"mtu: {mtu!r} is not a number of bytes from {LEAST_MTU} to {MOST_MTU}")
    return mtu


def _to_labels(labels: object) -> Mapping[str, str]:
    if labels is None:
        return {}
    given = cast("Mapping[Any, Any]", labels)
    if not isinstance(labels, Mapping) or not all(isinstance(word, str) for pair in given.items() for word in pair):
        raise UsageError(f"labels: {labels!r} is not a mapping of strings to strings")
    return dict(given)


class Addresses:
    """The addresses of one network. Thread-safe."""

    def __init__(self, subnet: IPv4Network, gateway: IPv4Address) -> None:
        self.subnet, self.gateway = subnet, gateway
        self._taken = {gateway}
        self._last: IPv4Address | None = None
        self._lock = threading.Lock()

    def take(self) -> IPv4Address:
        """A free one, which is the caller's until `release`. Raises: UsageError: there is none."""
        with self._lock:
            found = cast("IPv4Address", choose_address(self.subnet, self._taken, after=self._last))
            self._taken.add(found)
            self._last = found
            return found

    def release(self, address: IPv4Address) -> None:
        """Give it back."""
        with self._lock:
            self._taken.discard(address)


class Subnets:
    """Those of the networks of this process. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._used: list[IPv4Network] = []

    def take(self, wanted: IPv4Network | None) -> IPv4Network:
        """The one that is wanted, or one that overlaps with no route of the host and no other network here.

        Raises: UsageError: another network of this process has it; UnsupportedError: none is free.
        """
        with self._lock:
            clash = next((net for net in self._used if wanted is not None and net.overlaps(wanted)), None)
            if clash is not None:
                raise UsageError(f"subnet: {wanted} overlaps with {clash} of another network; give another one, or none")
            found = choose_subnet([*routes(), *self._used]) if wanted is None else wanted
            self._used.append(found)
            return found

    def release(self, subnet: IPv4Network) -> None:
        """Give it back."""
        with self._lock:
            self._used.remove(subnet)
