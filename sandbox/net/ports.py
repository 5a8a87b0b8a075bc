"""Published ports: Docker's words for them, as values."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from typing import Final

from attrs import field, frozen

from sandbox.errors import UsageError

MOST: Final = 65535
MAX_PUBLISHED: Final = 4096  # of one container; each is a rule, and a listening socket for connections from the host itself
PROTOCOLS: Final = ("tcp", "udp")
_RANGE: Final = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?", re.ASCII)
_LIKE: Final = "write 80, '8080:80', '127.0.0.1:53:53/udp', '[::1]:80:80' or '8000-8010:8000-8010'"

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@frozen(order=True)
class Port:
    """One port of a container that others reach at the host.

    *number*: the container's. *first* to *last*: the host's; more than one: any of them that is free; both 0: any that the kernel
    has free. *address*: the host's address that it is bound to; None: all.
    """

    number: int
    protocol: str = "tcp"
    first: int = 0
    last: int = 0
    address: Address | None = field(default=None, order=str)

    @property
    def is_chosen_later(self) -> bool:
        """Whether the host's port is not said."""
        return self.first != self.last or self.first == 0

    def __str__(self) -> str:
        host = "" if not self.first else str(self.first) if self.first == self.last else f"{self.first}-{self.last}"
        bound = "" if self.address is None else f"[{self.address}]:" if self.address.version == 6 else f"{self.address}:"
        shown = f"{bound}{host}:{self.number}" if host or bound else str(self.number)
        return shown if self.protocol == "tcp" else f"{shown}/{self.protocol}"


@frozen(order=True)
class HostPort:
    """Where others reach a published port: an address of the host (``0.0.0.0``: all of them), and a port there."""

    address: str
    port: int

    def __str__(self) -> str:
        return f"[{self.address}]:{self.port}" if ":" in self.address else f"{self.address}:{self.port}"


def to_ports(value: Iterable[int | str | Port]) -> tuple[Port, ...]:
    """Read what a user publishes: a list of numbers, strings of Docker's form, and `Port`.

    Raises: UsageError: one is none of these, there are too many, or two want the same port of the host.
    """
    if isinstance(value, (str, int, Port)):
        raise UsageError(f"ports: give a list, [{value!r}]")
    found: list[Port] = []
    for item in value:
        found += [item] if isinstance(item, Port) else parse_port(item)
        if len(found) > MAX_PUBLISHED:
            raise UsageError(f"ports: more than {MAX_PUBLISHED} are published")
    _refuse_clashes(found)
    return tuple(found)


def parse_port(text: int | str) -> list[Port]:
    """Read one entry; a range on both sides is a port each. Raises: UsageError."""
    if isinstance(text, int) and not isinstance(text, bool):
        # A port of the container alone; 0 would name none.
        return [Port(_number(str(text), text))]
    if not isinstance(text, str):
        raise UsageError(f"ports: {text!r} is neither a number nor a string; {_LIKE}")
    rest, slash, protocol = text.partition("/")
    if slash and protocol not in PROTOCOLS:
        raise UsageError(f"ports: {text!r}: the protocol {protocol!r} is not one of {', '.join(PROTOCOLS)}")
    address, host, inside = _split(rest, text)
    first, last = _range(inside, text)
    if not host or host == "0":
        return [Port(number, protocol or "tcp", address=address) for number in range(first, last + 1)]
    lowest, highest = _range(host, text)
    if first == last:
        return [Port(first, protocol or "tcp", lowest, highest, address)]
    if highest - lowest != last - first:
        raise UsageError(f"ports: {text!r}: {highest - lowest + 1} ports of the host for {last - first + 1} of the container; give as many")
    return [Port(first + step, protocol or "tcp", lowest + step, lowest + step, address) for step in range(last - first + 1)]


def _split(rest: str, text: str) -> tuple[Address | None, str, str]:
    """The parts of ``[address:][host:]container``."""
    head, _, inside = rest.rpartition(":")
    if not head:
        if rest.startswith(":"):
            raise UsageError(f"ports: {text!r} begins with a colon; {_LIKE}")
        return None, "", inside
    address, colon, host = head.rpartition(":")
    if head.endswith("]"):  # [::1]:80, without a port of the host
        address, colon, host = head, ":", ""
    if not colon:
        return (None, "", inside) if not host else (None, host, inside)
    return _address(address, text), host, inside


def _address(text: str, whole: str) -> Address:
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    try:
        found = ipaddress.ip_address(bare)
    except ValueError:
        raise UsageError(f"ports: {whole!r}: {text!r} is not an address of this host; {_LIKE}") from None
    if (found.version == 6) != (bare != text):
        raise UsageError(f"ports: {whole!r}: an IPv6 address, and no other, stands in brackets: [::1]:80:80")
    if found.version == 6 and found.scope_id is not None:
        raise UsageError(f"ports: {whole!r}: an address with a zone ({found.scope_id!r}) is not taken")
    if found.is_multicast:
        raise UsageError(f"ports: {whole!r}: {found} is a multicast address, which nobody can listen on")
    return found


def _range(text: str, whole: int | str) -> tuple[int, int]:
    match = _RANGE.fullmatch(text)
    if match is None:
        raise UsageError(f"ports: {whole!r}: {text!r} is neither a port nor a range; {_LIKE}")
    first = _number(match[1], whole)
    last = first if match[2] is None else _number(match[2], whole)
    if last < first:
        raise UsageError(f"ports: {whole!r}: the range {text!r} ends before it begins")
    return first, last


def _number(text: str, whole: int | str) -> int:
    number = int(text)
    if not 1 <= number <= MOST:
        raise UsageError(f"ports: {whole!r}: {text} is no port; there are 1 to {MOST}")
    return number


def _refuse_clashes(ports: list[Port]) -> None:
    """Two that surely want the same port of the host. What is chosen later is found to be taken then."""
    seen: dict[tuple[str, int], list[Port]] = {}
    for port in ports:
        if port.is_chosen_later:
            continue
        others = seen.setdefault((port.protocol, port.first), [])
        for other in others:
            if overlap(port.address, other.address):
                raise UsageError(f"ports: {str(other)!r} and {str(port)!r} want the same port of the host; change one")
        others.append(port)


def overlap(left: Address | None, right: Address | None) -> bool:
    """Whether two sockets bound to these could not both listen: an unspecified address is every one of its family."""
    if left is None or right is None:
        return True
    return left.version == right.version and (left == right or left.is_unspecified or right.is_unspecified)


def with_exposed(ports: tuple[Port, ...], exposed: Iterable[str]) -> tuple[Port, ...]:
    """*ports*, and one for each port that an image exposes (``"80/tcp"``) and that is not among them. Raises: UsageError."""
    said = {(port.number, port.protocol) for port in ports}
    more = [port for text in exposed for port in parse_port(text) if (port.number, port.protocol) not in said]
    return to_ports((*ports, *dict.fromkeys(more)))
