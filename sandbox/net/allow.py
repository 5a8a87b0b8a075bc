"""Allow-lists: whom the containers of a network may reach outside, as plain values.

An entry is an address, a network or a name, and perhaps a port: ``10.0.0.5:5432``, ``example.org:443``, ``10.1.0.0/16``, ``1.1.1.1:53/udp``,
``[fd00::1]:80``, ``*.example.org:8000-8010``. Names are never looked up here: `sandbox.net.openings` tells what an answer about one opens.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from typing import Final, cast

from attrs import field, frozen

from sandbox.errors import UsageError

Destination = ipaddress.IPv4Network | ipaddress.IPv6Network

MOST_ENTRIES: Final = 1024  # each address is a rule, which the first packet of a connection is held against
LAST_PORT: Final = 65535
PROTOCOLS: Final = ("tcp", "udp")
_LIKE: Final = "write '10.0.0.5:5432', 'example.org:443', '*.example.org:443', '10.1.0.0/16', '1.1.1.1:53/udp' or '[fd00::1]:80'"
_PROTOCOL: Final = re.compile(r"(.*)/([A-Za-z]+)", re.DOTALL)
_BRACKETS: Final = re.compile(r"\[([^\[\]]*)\](?::(.*))?", re.DOTALL)
_PORTS: Final = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?", re.ASCII)
_LABEL: Final = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)", re.ASCII)
_NUMBER: Final = re.compile(r"[0-9]+|0x[0-9a-f]*", re.ASCII)  # as a last label: inet_aton(3) would take the whole for an address
_NUMERIC: Final = re.compile(r"[0-9./]+", re.ASCII)
_MOST_NAME: Final = 253  # RFC 1035, without the last dot


@frozen(order=False)
class Allowed:
    """One entry. *network* or *name*: one of them. *protocol*, *first*, *last*: None: any."""

    network: Destination | None = None
    name: str = ""  # in lower case; with *is_wild*: of those below it
    is_wild: bool = False
    protocol: str | None = field(default=None, kw_only=True)
    first: int | None = field(default=None, kw_only=True)
    last: int | None = field(default=None, kw_only=True)

    def __str__(self) -> str:
        ports = "" if self.first is None else f":{self.first}" if self.first == self.last else f":{self.first}-{self.last}"
        if self.network is None:
            shown = self.pattern
        else:
            single = self.network.prefixlen == self.network.max_prefixlen
            shown = str(self.network.network_address if single else self.network)
            shown = f"[{shown}]" if ports and self.network.version == 6 else shown
        is_plain = self.protocol is None or (self.protocol == "tcp" and ports)
        return f"{shown}{ports}" if is_plain else f"{shown}{ports}/{self.protocol}"

    @property
    def pattern(self) -> str:
        """The name, with ``*.`` before it if it is of those below it; "": an address."""
        return f"*.{self.name}" if self.is_wild else self.name


def to_allow(value: object) -> tuple[Allowed, ...] | None:
    """Read what a user allows; None: everything; an empty list: nothing.

    Raises: UsageError: it is no list, one entry is none of ours, or there are too many.
    """
    if value is None:
        return None
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        raise UsageError(f"allow: {value!r} is no list; give allow=[] for nothing, or {_LIKE}")
    found: dict[Allowed, None] = {}
    for item in cast("Iterable[object]", value):
        found[parse_allowed(item)] = None
        if len(found) > MOST_ENTRIES:
            raise UsageError(f"allow: more than {MOST_ENTRIES} entries; allow a network (10.1.0.0/16), or names by *.example.org")
    return tuple(found)


def parse_allowed(text: object) -> Allowed:
    """Read one entry. A port without a protocol is TCP's; no port at all: all of that host, every protocol. Raises: UsageError."""
    if isinstance(text, Allowed):
        return text
    if not isinstance(text, str):
        raise UsageError(f"allow: {text!r} is no string; {_LIKE}")
    rest, protocol = text, None
    if match := _PROTOCOL.fullmatch(text):
        rest, protocol = match[1], match[2]
        if protocol not in PROTOCOLS:
            raise UsageError(f"allow: {text!r}: the protocol {protocol!r} is not one of {', '.join(PROTOCOLS)}")
    host, ports = _split(rest, text)
    first, last = (None, None) if ports is None else _ports(ports, text)
    if first is not None and protocol is None:
        protocol = "tcp"
    network = _network(host, text)
    if network is not None:
        return Allowed(network, protocol=protocol, first=first, last=last)
    name, is_wild = _name(host, text)
    return Allowed(None, name, is_wild, protocol=protocol, first=first, last=last)


def _split(rest: str, text: str) -> tuple[str, str | None]:
    """The host, and the ports if there is a colon for them."""
    if match := _BRACKETS.fullmatch(rest):
        if ":" not in match[1]:
            raise UsageError(f"allow: {text!r}: only IPv6 addresses stand in brackets; {_LIKE}")
        return match[1], match[2]
    if rest.count(":") > 1:
        return rest, None  # an IPv6 address without a port, or nothing
    host, colon, ports = rest.partition(":")
    return host, ports if colon else None


def _ports(ports: str, text: str) -> tuple[int, int]:
    match = _PORTS.fullmatch(ports)
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 1 <= first <= last <= LAST_PORT:
        raise UsageError(f"allow: {text!r}: {ports!r} is neither a port (1 to {LAST_PORT}) nor a range of them; {_LIKE}")
    return first, last


def _network(host: str, text: str) -> Destination | None:
    """None: it is a name."""
    if not (":" in host or _NUMERIC.fullmatch(host)):
        return None
    try:
        found = ipaddress.ip_network(host)
    except ValueError as error:
        raise UsageError(f"allow: {text!r}: {error}; {_LIKE}") from None
    if isinstance(found, ipaddress.IPv6Network) and (found.network_address.scope_id or found.network_address.ipv4_mapped):
        raise UsageError(f"allow: {text!r}: an address with a zone, or of IPv4 inside IPv6, is not taken; write the plain address")
    # All of a family is a prefix of length 0, which begins with the unspecified address.
    if found.prefixlen and (found.is_loopback or found.is_multicast or found.is_unspecified):
        raise UsageError(f"allow: {text!r}: nothing outside has a loopback, multicast or unspecified address")
    return found


def _name(host: str, text: str) -> tuple[str, bool]:
    wild = host.startswith("*.")
    name = host[2 * wild :].lower().removesuffix(".")
    labels = name.split(".")
    if len(name) > _MOST_NAME or not all(_LABEL.fullmatch(label) for label in labels) or _NUMBER.fullmatch(labels[-1]):
        hint = _LIKE if host.isascii() else "names beyond ASCII are given as xn--... (IDNA)"
        raise UsageError(f"allow: {text!r}: {host!r} is neither an address nor a host's name; {hint}")
    return name, wild


# ---- Names ----

Ports = tuple[str | None, int | None, int | None]  # protocol, first, last; None: any


def groups_of(allowed: Iterable[Allowed]) -> tuple[dict[str, int], list[tuple[Ports, ...]]]:
    """Names that open the same ports are a group. Gives each name's group (``*.`` before one for those below it), and the groups' ports."""
    ports: dict[str, dict[Ports, None]] = {}
    for entry in allowed:
        if entry.network is None:
            ports.setdefault(entry.pattern, {})[entry.protocol, entry.first, entry.last] = None
    numbers: dict[frozenset[Ports], int] = {}
    found: list[tuple[Ports, ...]] = []
    patterns: dict[str, int] = {}
    for pattern, opens in ports.items():
        number = patterns[pattern] = numbers.setdefault(frozenset(opens), len(found))
        if number == len(found):
            found.append(tuple(opens))
    return patterns, found
