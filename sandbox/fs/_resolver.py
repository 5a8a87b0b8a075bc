"""How the host finds others by name: what a container that has the host's network needs as well.

Both files are the host's own words, but a hand may have made them: they are read bounded, and a line that says nothing we could write is left out.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from typing import Final

from attrs import frozen

from sandbox.errors import UsageError
from sandbox.fs._names import to_address, to_host_name

_MOST: Final = 1 << 16  # bytes of each file
MAX_SERVERS: Final = 3  # <resolv.h>, MAXNS: the C library asks no more
_MAX_SEARCH: Final = 32
_MAX_HOSTS: Final = 512  # names; they travel in one message
_LOCAL: Final = re.compile(r"localhost|ip6-.*|.*\.localdomain", re.ASCII)


@frozen(cache_hash=True)
class Resolver:
    """Addresses of name servers, domains to search, (address, name) pairs, and options of resolv.conf(5)."""

    nameservers: tuple[str, ...] = ()
    search: tuple[str, ...] = ()
    hosts: tuple[tuple[str, str], ...] = ()
    options: tuple[str, ...] = ()


def host_resolver(root: str = "/") -> Resolver:
    """Read the host's resolv.conf(5) and hosts(5)."""
    servers: list[str] = []
    search: list[str] = []
    for word, *rest in _lines(f"{root}/etc/resolv.conf", "#;"):
        if word == "nameserver" and rest and _passes(to_address, rest[0]):
            servers.append(rest[0])
        elif word in ("search", "domain"):  # the last one counts
            search = [name for name in rest if _passes(_to_name, name)]
    return Resolver(tuple(servers[:MAX_SERVERS]), tuple(search[:_MAX_SEARCH]), tuple(_hosts(f"{root}/etc/hosts"))[:_MAX_HOSTS])


def _hosts(path: str) -> Iterator[tuple[str, str]]:
    for address, *names in _lines(path, "#"):
        if _passes(to_address, address):
            yield from ((address, name) for name in names if _passes(_to_name, name) and not _LOCAL.fullmatch(name))


def _lines(path: str, comments: str) -> Iterator[list[str]]:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:  # there is none: then the host finds nobody by it either
        return
    try:
        text = os.read(fd, _MOST).decode("ascii", "replace")
    finally:
        os.close(fd)
    for line in text.split("\n"):
        words = re.split(f"[{comments}]", line, maxsplit=1)[0].split()
        if words:
            yield words


def _to_name(value: str) -> str:
    return to_host_name(value, what="host", most=253)


def _passes(check: Callable[[str], str], value: str) -> bool:
    try:
        check(value)
    except UsageError:
        return False
    return True
