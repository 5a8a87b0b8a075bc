"""What is known by name to a container of networks: whom its resolv.conf(5) asks, by which names others find it, and Docker's link variables."""

from __future__ import annotations

import itertools
import os
import re
import socket
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Final
from weakref import WeakKeyDictionary

from attrs import evolve

from sandbox._networks.names import NetworkNames
from sandbox.fs import Resolver, host_resolver
from sandbox.net.allow import groups_of
from sandbox.net.roster import BY_NAME, Member
from sandbox.net.rtnetlink import BRIDGE
from sandbox.ns.uts import DEFAULT_HOSTNAME

if TYPE_CHECKING:
    from sandbox._networks.membership import Arrival
    from sandbox._networks.switch import Switch
    from sandbox._session import Session
    from sandbox._spec import ContainerSpec
    from sandbox.net.spec import NetworkSpec

_KINDS: Final = (socket.SOCK_DGRAM, socket.SOCK_STREAM)
_OPTIONS: Final = ("ndots:0",)  # a name of one label is of the network first, and only then of a domain that is searched
_NOT_LINKED: Final = ("HOME", "PATH")  # the program's own
_PORT: Final = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?(?:/(tcp|udp|sctp))?", re.ASCII)
_MOST_PORTS: Final = 1024  # of a link; each is four variables


def begin(spec: NetworkSpec, switch: Switch, gateway: str, subnets: Iterable[str]) -> NetworkNames:
    """Answer the containers of a network that was just made. Raises: SetupError."""
    with ExitStack() as stack:
        # A question is a message to whoever answers for its name: with an allow-list, none goes out but about its names.
        only = None if spec.allow is None else groups_of(spec.allow)[0]
        kinds = (*_KINDS, socket.SOCK_DGRAM) if only else _KINDS
        sockets = [socket.socket(fileno=switch.socket(domain=socket.AF_INET, kind=kind, protocol=0)) for kind in kinds]
        for sock in sockets:
            stack.callback(sock.close)
        fds = [sock.detach() for sock in sockets]
        return NetworkNames(spec.name, subnets, fds, gateway, BRIDGE, forwards=not spec.internal, only=only)


_keys: Final[WeakKeyDictionary[Session, str]] = WeakKeyDictionary()
_numbers: Final = itertools.count(1)


def key_of(session: Session) -> str:
    """What a container is called among those that have no name in common, also of other processes: never again, unlike its pid."""
    return _keys.setdefault(session, f"{os.getpid()}-{next(_numbers)}")


def arrive(arrival: Arrival) -> Callable[[], object]:
    """A container has its place in a network: the others find it, and it them. What is returned takes that back."""
    endpoint, names = arrival.place.endpoint, arrival.live.names
    if names is None:
        return lambda: None
    links: dict[str, str] = {}
    for alias, other in arrival.wishes.links:
        if other.is_running:
            links[alias] = key_of(other._session())  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
    for alias, name in arrival.join.links:
        links[alias] = f"{BY_NAME}{name}"
    called = [*endpoint.aliases]
    if endpoint.hostname != DEFAULT_HOSTNAME:
        called.insert(0, endpoint.hostname)
    if arrival.wishes.name is not None:
        called.insert(0, arrival.wishes.name)
    addresses = (endpoint.address,) if endpoint.address6 is None else (endpoint.address, endpoint.address6)
    member = Member(key_of(arrival.place.session), addresses, called, links, arrival.servers, port=arrival.place.port)
    names.join(member)
    return partial(names.leave, member.key)


def resolver_for(spec: ContainerSpec, gateways: Sequence[str], *, is_internal: bool) -> Resolver:
    """What a container in networks has in its files: their server, which asks the container's own ones (``dns=``) in its turn.

    All its networks have one server, and it knows by whom it is asked: one address is enough.
    """
    known = spec.resolver
    if not gateways:
        return known
    search = known.search or (() if is_internal else host_resolver().search)
    return evolve(known, nameservers=(gateways[0],), search=search, options=_OPTIONS)


# ---- Links ----


def link_variables(
    alias: str, own_name: str, address: str, ports: Iterable[str], env: Iterable[tuple[str, str]]
) -> tuple[tuple[str, str], ...]:
    """Docker's variables of a link to a container at *address*, whose *ports* are ``"80/tcp"``, ``"8000-8010/udp"``, and which has *env*."""
    name = re.sub(r"[^A-Z0-9_]", "_", alias.upper())
    found = sorted({port for text in ports for port in _ports(text)})[:_MOST_PORTS]
    pairs = [(f"{name}_NAME", f"/{own_name}/{alias}")]
    if found:
        number, protocol = found[0]
        pairs.append((f"{name}_PORT", f"{protocol}://{address}:{number}"))
    for number, protocol in found:
        prefix = f"{name}_PORT_{number}_{protocol.upper()}"
        pairs += [(prefix, f"{protocol}://{address}:{number}"), (f"{prefix}_ADDR", address)]
        pairs += [(f"{prefix}_PORT", str(number)), (f"{prefix}_PROTO", protocol)]
    pairs += [(f"{name}_ENV_{key}", value) for key, value in env if key not in _NOT_LINKED]
    return tuple(pairs)


def _ports(text: str) -> list[tuple[int, str]]:
    match = _PORT.fullmatch(text)
    if match is None:  # an image may say anything
        return []
    first = int(match[1])
    return [(number, match[3] or "tcp") for number in range(first, min(int(match[2] or first), first + _MOST_PORTS) + 1)]
