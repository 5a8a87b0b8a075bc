"""The small files that differ from container to container: hostname, hosts, resolv.conf."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Final

from sandbox._plan import Op, Slot, WriteFile
from sandbox.errors import UsageError

ROOT: Final = "fs.root"
NAME_FILES: Final = ("hostname", "hosts", "resolv.conf")
_LABEL: Final = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_HOST_NAME: Final = re.compile(rf"{_LABEL}(?:\.{_LABEL})*", re.ASCII)
_HOSTS_HEAD: Final = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"


def to_host_name(value: str, *, what: str = "hostname", most: int = 64) -> str:
    """Check a host's name: labels of letters, digits, ``_`` and ``-``; 64 bytes at most, sethostname(2)'s limit.

    A name goes into /etc/hosts, so that a blank or a newline in it would be control data.
    """
    if not isinstance(value, str) or len(value) > most or _HOST_NAME.fullmatch(value) is None:
        raise UsageError(f"{what}: {value!r} is not a host name; use up to {most} letters, digits, '-', '_' and single dots")
    return value


def name_ops(
    hostname: str,
    *,
    hosts: Iterable[tuple[str, str]] = (),
    nameservers: Iterable[str] = (),
    search: Iterable[str] = (),
    options: Iterable[str] = (),
    etc: tuple[Slot, str] = (ROOT, "etc"),
) -> tuple[Op, ...]:
    """Return the operations that write hostname, hosts and resolv.conf into *etc*, a slot and a path below it; cached.

    *hosts* are (address, name) pairs beside localhost and, on 127.0.1.1, the host's own name.
    Raises: UsageError: a name or an address is none.
    """
    return _name_ops(hostname, tuple(hosts), resolv_text(nameservers, search, options), etc)


def resolv_text(nameservers: Iterable[str], search: Iterable[str], options: Iterable[str] = ()) -> bytes:
    """The content of resolv.conf(5). Raises: UsageError: an address or a name is none."""
    text = "".join(f"nameserver {to_address(address)}\n" for address in nameservers)
    for word, values in (("search", [to_host_name(domain, what="search", most=253) for domain in search]), ("options", [*options])):
        if values:
            text += f"{word} {' '.join(values)}\n"
    return text.encode("ascii")


@lru_cache(maxsize=256)
def _name_ops(
    hostname: str, hosts: tuple[tuple[str, str], ...], resolv: bytes, etc: tuple[Slot, str]
) -> tuple[Op, ...]:
    name = to_host_name(hostname)
    own = "" if any(entry == name for _, entry in hosts) else f"127.0.1.1\t{name}\n"
    lines = "".join(f"{to_address(address)}\t{to_host_name(entry, what='hosts', most=253)}\n" for address, entry in hosts)
    texts = (f"{name}\n".encode("ascii"), (_HOSTS_HEAD + own + lines).encode("ascii"), resolv)
    slot, directory = etc
    return tuple(WriteFile(f"{directory}/{name}", text, slot) for name, text in zip(NAME_FILES, texts, strict=True))


def to_address(value: str, *, what: str = "address") -> str:
    """Check an address of IPv4 or IPv6, without a zone. Raises: UsageError."""
    import socket

    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, value)
        except (OSError, TypeError, ValueError):
            continue
        return value
    raise UsageError(f"{what}: {value!r} is not an IPv4 or IPv6 address")
