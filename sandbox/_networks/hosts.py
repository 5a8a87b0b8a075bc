"""What a container's own files say of its networks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

_LOOPBACK: Final = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"


def hosts_text(hostname: str, addresses: Iterable[str], others: Iterable[tuple[str, str]]) -> bytes:
    """/etc/hosts of a container with these *addresses*. *others*: (address, name) pairs; where its own name is among them, that holds."""
    pairs = [*others]
    # Without networks its name is found too, and is its own.
    own = [] if any(name == hostname for _, name in pairs) else [(address, hostname) for address in addresses] or [("127.0.1.1", hostname)]
    return (_LOOPBACK + "".join(f"{address}\t{name}\n" for address, name in (*own, *pairs))).encode("ascii")
