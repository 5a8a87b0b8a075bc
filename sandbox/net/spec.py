"""What a network is to be, as a value; and who has which of its addresses."""

from __future__ import annotations

import itertools
import re
import secrets
import threading
from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any, Final, Generic, TypeVar, cast

from attrs import field, frozen

from sandbox.errors import UsageError
from sandbox.net.addresses import choose_address, choose_subnet, is_host_of, to_gateway, to_subnet
from sandbox.net.allow import Allowed, to_allow
from sandbox.net.rtnetlink import routes
from sandbox.net.shape import Shape, queues_of, to_shape

DEFAULT_MTU: Final = 1500
LEAST_MTU, MOST_MTU = 576, 65535  # RFC 791's least for hosts; veth's and the bridge's most
UPLINKS: Final = ("kernel", "slirp4netns", "pasta")
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}", re.ASCII)  # Docker's, bounded
_numbers: Final = itertools.count(1)
_LEAST_IPV6_MTU: Final = 1280  # RFC 8200, section 5
_GIVEN = TypeVar("_GIVEN", IPv4Address, IPv6Address)
_NET = TypeVar("_NET", IPv4Network, IPv6Network)


@frozen
class NetworkSpec:
    """One network, checked. *subnet*, *gateway*, *subnet6*: None: chosen when it is made."""

    name: str
    subnet: IPv4Network | None
    gateway: IPv4Address | None
    internal: bool
    mtu: int
    labels: Mapping[str, str]
    ipv6: bool = False
    subnet6: IPv6Network | None = None
    uplink: str | None = None
    allow: tuple[Allowed, ...] | None = None
    shape: Shape | None = field(default=None, converter=to_shape)

    def __attrs_post_init__(self) -> None:
        if self.shape is not None:
            queues_of(self.shape, mtu=self.mtu)


def to_spec(
    name: object, *, subnet: object, gateway: object, internal: object, mtu: object, labels: object, ipv6: object = False, subnet6: object = None,
    uplink: object = None, allow: object = None,
) -> NetworkSpec:  # fmt: skip
    """Check what a user says. Raises: UsageError."""
    for what, value in (("internal", internal), ("ipv6", ipv6)):
        if not isinstance(value, bool):
            raise UsageError(f"{what}: {value!r} is neither True nor False")
    net = None if subnet is None else to_subnet(subnet)
    if net is not None and not isinstance(net, IPv4Network):
        raise UsageError(f"subnet: {net} is of IPv6; give it as subnet6=, with ipv6=True, beside one of IPv4")
    if net is None and gateway is not None:
        raise UsageError("gateway: give subnet= too, of which it is an address")
    way = None if net is None else to_gateway(gateway, net)
    bytes_ = _to_mtu(mtu)
    if ipv6 and bytes_ < _LEAST_IPV6_MTU:
        raise UsageError(f"mtu: {bytes_} is too little for IPv6, which takes {_LEAST_IPV6_MTU}")
    return NetworkSpec(
        _to_name(name),
        net,
        way if isinstance(way, IPv4Address) else None,
        bool(internal),
        bytes_,
        _to_labels(labels),
        bool(ipv6),
        _to_subnet6(subnet6, ipv6=bool(ipv6)),
        _to_uplink(uplink, internal=bool(internal)),
        _to_allow(allow, internal=bool(internal)),
    )


def _to_allow(allow: object, *, internal: bool) -> tuple[Allowed, ...] | None:
    if internal and allow is not None:
        raise UsageError("allow: an internal network reaches nobody outside; leave one of the two out")
    return to_allow(allow)


def _to_uplink(uplink: object, *, internal: bool) -> str | None:
    if uplink is None:
        return None
    if uplink not in UPLINKS:
        raise UsageError(f"uplink: {uplink!r} is none of {', '.join(UPLINKS)}")
    if internal:
        raise UsageError("uplink: an internal network has none; give one of the two")
    return str(uplink)


def _to_subnet6(subnet6: object, *, ipv6: bool) -> IPv6Network | None:
    if subnet6 is None:
        return None
    if not ipv6:
        raise UsageError("subnet6: give ipv6=True too")
    net = to_subnet(subnet6)
    if not isinstance(net, IPv6Network):
        raise UsageError(f"subnet6: {net} is not of IPv6; write it as fd00:1::/64")
    return net


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


class Addresses(Generic[_GIVEN]):
    """The addresses of one family of one network. Thread-safe."""

    def __init__(
        self, subnet: IPv4Network | IPv6Network, gateway: _GIVEN, *, taken: Iterable[_GIVEN] | tuple[()] = (), last: _GIVEN | None = None
    ) -> None:
        self.subnet = subnet
        self.gateway: _GIVEN = gateway
        self._taken: set[_GIVEN] = set(taken) | {gateway}  # with those that are lent
        self._lent: dict[_GIVEN, None] = {}  # in the order in which they were
        self._hosts = subnet.num_addresses - (2 if subnet.version == 4 else 1)
        self._last: _GIVEN | None = last
        self._lock = threading.Lock()

    def take(self, wanted: _GIVEN | None = None, *, rather: _GIVEN | None = None) -> _GIVEN:
        """The one that is *wanted*, or a free one (*rather* this): the caller's until `release`.

        Raises: UsageError: there is none, or as `check`.
        """
        with self._lock:
            if wanted is not None:
                self._check(wanted)
                found = wanted
            elif self._lent and len(self._taken) >= self._hosts:
                found = next(iter(self._lent))
            else:
                found = self._choose(rather)
            self._lent.pop(found, None)
            self._taken.add(found)
            return found

    def _choose(self, rather: _GIVEN | None) -> _GIVEN:
        if rather is not None and rather not in self._taken and is_host_of(rather, self.subnet):
            return rather
        found = self._last = cast("_GIVEN", choose_address(self.subnet, self._taken, after=self._last))
        return found

    def lend(self, *, rather: _GIVEN | None = None) -> _GIVEN | None:
        """A free one (*rather* this) for somebody who may have need of it, until `claim` makes it his, or `give_back`; `take` takes it away from him.

        None: hardly any are free.
        """
        with self._lock:
            if self._hosts - len(self._taken) <= len(self._lent):
                return None
            found = self._choose(rather)
            self._taken.add(found)
            self._lent[found] = None
            return found

    def claim(self, lent: _GIVEN) -> bool:
        """Whether it was still lent; it is the caller's then, until `release`."""
        with self._lock:
            return self._lent.pop(lent, lent) is None

    def give_back(self, lent: _GIVEN) -> None:
        """Do without it, if it is still lent."""
        with self._lock:
            if self._lent.pop(lent, lent) is None:
                self._taken.discard(lent)

    def check(self, wanted: _GIVEN) -> None:
        """Refuse an address that nobody could have now. Raises: UsageError: it is another subnet's, the gateway's, or somebody's."""
        with self._lock:
            self._check(wanted)

    def _check(self, wanted: _GIVEN) -> None:
        if not is_host_of(wanted, self.subnet):
            raise UsageError(f"address: {wanted} is not an address of a host in {self.subnet}")
        if wanted == self.gateway:
            raise UsageError(f"address: {wanted} is the network's own, its gateway; give another one of {self.subnet}")
        if wanted in self._taken and wanted not in self._lent:
            raise UsageError(f"address: {wanted} is taken by another container; give another one, or none")

    def release(self, address: _GIVEN) -> None:
        """Give it back."""
        with self._lock:
            self._taken.discard(address)


class Subnets:
    """Those of the networks of this process. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._used: list[IPv4Network | IPv6Network] = []

    def used(self) -> list[IPv4Network | IPv6Network]:
        """All of them."""
        with self._lock:
            return [*self._used]

    def take(self, wanted: IPv4Network | None, beside: Iterable[IPv4Network] = ()) -> IPv4Network:
        """The one that is wanted, or one that overlaps with no route of the host, no other network here, and none of *beside*.

        Raises: UsageError: another network of this process has it; UnsupportedError: none is free.
        """
        with self._lock:
            found = choose_subnet([*routes(), *self._used, *beside]) if wanted is None else self._free(wanted)
            self._used.append(found)
            return found

    def take6(self, wanted: IPv6Network | None) -> IPv6Network:
        """The one that is wanted, or one of fd00::/8 that nobody else has chosen, in all likelihood. Raises: UsageError: as `take`."""
        with self._lock:
            # RFC 4193: a random number makes it unique; 56 bits of it, as there are no sites here that have subnets.
            chosen = wanted or IPv6Network((b"\xfd" + secrets.token_bytes(7) + bytes(8), 64))
            self._used.append(self._free(chosen))
            return chosen

    def _free(self, wanted: _NET) -> _NET:
        clash = next((net for net in self._used if net.version == wanted.version and net.overlaps(wanted)), None)
        if clash is not None:
            raise UsageError(f"subnet: {wanted} overlaps with {clash} of another network; give another one, or none")
        return wanted

    def release(self, subnet: IPv4Network | IPv6Network) -> None:
        """Give it back."""
        with self._lock:
            self._used.remove(subnet)
