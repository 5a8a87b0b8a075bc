"""What registries say in headers, read with bounds: no I/O. A header is a stranger's text: what is not as the RFCs say is left out, or refused."""

from __future__ import annotations

import ipaddress
import re
import time
from collections.abc import Iterable
from typing import Final
from urllib.parse import urljoin, urlsplit

from attrs import frozen

from sandbox.errors import RegistryError

MAX_HEADER: Final = 8192  # characters of one header that we look at
MAX_CHALLENGES: Final = 16
_MAX_URL: Final = 8192  # signed addresses of object stores have 1 to 3 kB

_WORD: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # RFC 9110, 5.6.2
_QUOTED: Final = r'"(?:[^"\\]|\\.)*"'
_SCHEME: Final = re.compile(rf"\s*({_WORD})(?:\s+|(?=,|$))", re.ASCII)
_PARAMETER: Final = re.compile(rf"({_WORD})\s*=\s*({_QUOTED}|{_WORD})\s*", re.ASCII)
_COMMA: Final = re.compile(r"\s*,[\s,]*")
_CONTENT_RANGE: Final = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)", re.ASCII)
_RANGE: Final = re.compile(r"(?:bytes[= ])?(\d{1,18})-(\d{1,18})", re.ASCII)
_LINK: Final = re.compile(r"\s*<([^<>]*)>\s*;(.*)", re.ASCII | re.DOTALL)
_PRINTABLE: Final = re.compile(r"[!-~]+", re.ASCII)
_SECONDS: Final = re.compile(r"\d{1,9}", re.ASCII)


@frozen
class Challenge:
    """What a server asks for: the scheme in lower case ("bearer", "basic") and its parameters, names in lower case."""

    scheme: str
    parameters: tuple[tuple[str, str], ...] = ()

    def get(self, name: str) -> str:
        """The value of the first parameter of this name, "" if there is none."""
        return next((value for each, value in self.parameters if each == name), "")


def parse_challenges(headers: Iterable[str]) -> list[Challenge]:
    """Read WWW-Authenticate (RFC 9110, 11.6.1), which may come several times, and may hold several challenges each.

    What stands behind the first thing that is malformed is left out, and so is what is too long.
    """
    found: list[Challenge] = []
    for header in headers:
        found += _challenges_of(header[:MAX_HEADER])
    return found[:MAX_CHALLENGES]


def _challenges_of(text: str) -> list[Challenge]:
    found: list[Challenge] = []
    at = 0
    while (scheme := _SCHEME.match(text, at)) and len(found) < MAX_CHALLENGES:
        parameters, at = _parameters(text, scheme.end())
        found.append(Challenge(scheme[1].lower(), tuple(parameters)))
        comma = _COMMA.match(text, at)
        if comma is None:
            break
        at = comma.end()
    return found


def _parameters(text: str, at: int) -> tuple[list[tuple[str, str]], int]:
    """The parameters from *at* on, and where they end: at the comma before the next scheme, or where it goes wrong."""
    found: list[tuple[str, str]] = []
    end = at
    while match := _PARAMETER.match(text, at):
        found.append((match[1].lower(), _unquote(match[2])))
        end = match.end()
        comma = _COMMA.match(text, end)
        if comma is None:
            break
        at = comma.end()
    return found, end


def _unquote(value: str) -> str:
    return re.sub(r"\\(.)", r"\1", value[1:-1]) if value.startswith('"') else value


def parse_retry_after(value: str | None, *, now: float | None = None) -> float | None:
    """Seconds to wait, by a number or by a date (RFC 9110, 10.2.3); None where it says nothing that makes sense."""
    if value is None or len(value) > 100:
        return None
    value = value.strip()
    if _SECONDS.fullmatch(value):
        return float(value)
    from email.utils import parsedate_to_datetime

    try:
        until = parsedate_to_datetime(value).timestamp()
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
    return max(0.0, until - (time.time() if now is None else now))


def parse_content_range(value: str | None) -> tuple[int, int, int | None] | None:
    """First byte, last byte and whole size of a partial answer; None where it is none."""
    match = _CONTENT_RANGE.fullmatch(value.strip()) if value is not None else None
    if match is None or int(match[1]) > int(match[2]):
        return None
    return int(match[1]), int(match[2]), None if match[3] == "*" else int(match[3])


def parse_uploaded(value: str | None) -> int:
    """How many bytes of an upload the registry has, by its ``Range: 0-N``: N is the number of the last one (distribution-spec)."""
    match = _RANGE.fullmatch(value.strip()) if value is not None else None
    if match is None or int(match[1]) != 0:
        return 0
    return int(match[2]) + 1 if int(match[2]) else 0  # "0-0" is said of nothing, too


def parse_next(headers: Iterable[str]) -> str | None:
    """The address of the next page of a list, by ``Link: <...>; rel="next"`` (RFC 8288); None if there is none."""
    for header in headers:
        match = _LINK.fullmatch(header[:MAX_HEADER])
        if match and re.search(r'(?:^|;)\s*rel\s*=\s*"?next"?\s*(?:;|,|$)', match[2], re.IGNORECASE):
            return match[1]
    return None


@frozen
class Origin:
    """Scheme, host and port: what a secret belongs to."""

    scheme: str
    host: str  # in lower case; an IPv6 address without brackets
    port: int

    @property
    def is_loopback(self) -> bool:
        """Whether it is this machine: ``localhost``, 127.0.0.0/8 or ::1, as written; no name is looked up."""
        return is_loopback(self.host)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = "" if self.port == (443 if self.scheme == "https" else 80) else f":{self.port}"
        return f"{self.scheme}://{host}{port}"


def is_loopback(host: str) -> bool:
    """Whether *host* (no port, no brackets) is this machine by its name alone."""
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    # ::ffff:127.0.0.1 and scoped addresses are left out: nobody writes them but to be taken for something.
    return address.is_loopback and "%" not in host and (address.version == 4 or address == ipaddress.IPv6Address("::1"))


def origin_of(url: str, *, what: str = "address") -> Origin:
    """The origin of an absolute http or https URL. Raises: RegistryError: it is none, or has a user or odd characters in it."""
    if len(url) > _MAX_URL or not _PRINTABLE.fullmatch(url) or "\\" in url:
        raise RegistryError(f"{what}: {url[:80]!r} is not an address that is followed")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise RegistryError(f"{what}: {url[:80]!r} is not an address") from None
    if parts.scheme not in ("http", "https") or not host or "@" in parts.netloc:
        raise RegistryError(f"{what}: {url[:80]!r} is not an http or https address of a host")
    return Origin(parts.scheme, host.lower().rstrip("."), port or (443 if parts.scheme == "https" else 80))


def resolve(base: str, location: str, *, what: str) -> str:
    """The absolute address of *location*, which a server at *base* has named. Raises: RegistryError."""
    if not location or len(location) > _MAX_URL or not _PRINTABLE.fullmatch(location):
        raise RegistryError(f"{what}: the server names {location[:80]!r}, which is not an address")
    try:
        url = urljoin(base, location)
    except ValueError:
        raise RegistryError(f"{what}: the server names {location[:80]!r}, which is not an address") from None
    origin_of(url, what=what)
    return url


def without_query(url: str) -> str:
    """*url* for a message: signatures of object stores are secrets."""
    return url.partition("?")[0][:200]
