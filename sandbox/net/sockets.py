"""Which sockets are bound to a port of this host, and whose they are: from /proc, for the words of an error. Nothing is decided by it."""

from __future__ import annotations

import os
import struct
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from attrs import frozen

from sandbox.net.ports import Address, overlap

_LISTEN, _TIME_WAIT = 0x0A, 0x06  # include/net/tcp_states.h
_UDP: Final = 0x07  # a socket of UDP that is bound and not connected
_MOST_BYTES: Final = 16 << 20  # of a table of sockets; what is beyond stays unknown


@frozen
class Bound:
    """A socket. *inode*: 0: it has no owner any more."""

    address: Address
    port: int
    inode: int
    state: int

    @property
    def is_taking(self) -> bool:
        """Whether it takes what comes from others: it listens, or is UDP's."""
        return self.state in (_LISTEN, _UDP)


@frozen
class Owner:
    """A process that has a socket."""

    pid: int
    program: str


def bound_to(protocol: str, port: int, address: Address | None) -> list[Bound]:
    """The sockets of this thread's network namespace that have *port* at *address* (None: any of IPv4), those that listen first."""
    found: list[Bound] = []
    as_seen = _itself if isinstance(address, IPv6Address) else _as_v4
    for name in (protocol, f"{protocol}6"):
        with suppress(OSError), open(f"/proc/thread-self/net/{name}", encoding="ascii", errors="replace") as table:
            found += parse_table(table.read(_MOST_BYTES).splitlines()[1:])
    return sorted((one for one in found if one.port == port and overlap(as_seen(one.address), address)), key=lambda one: not one.is_taking)


def parse_table(lines: Iterable[str]) -> Iterator[Bound]:
    """Read the lines of /proc/net/tcp, udp and their IPv6 fellows: proc(5)."""
    for line in lines:
        fields = line.split()
        if len(fields) < 10:
            continue
        with suppress(ValueError, struct.error):
            address, _, port = fields[1].partition(":")
            yield Bound(_address(address), struct.unpack(">H", bytes.fromhex(port))[0], int(fields[9]), int(fields[3], 16))


def _address(text: str) -> Address:
    """The kernel prints each 32 bits as a number of this machine's byte order."""
    raw = bytes.fromhex(text)
    words = struct.pack(f"={len(raw) // 4}I", *struct.unpack(f">{len(raw) // 4}I", raw))
    return IPv4Address(words) if len(words) == 4 else IPv6Address(words)


def _itself(address: Address) -> Address | None:
    return address


def _as_v4(address: Address) -> Address | None:
    """What it is to an IPv4 socket: one bound to ``::`` usually takes IPv4 as well."""
    if isinstance(address, IPv4Address):
        return address
    return address.ipv4_mapped or (None if address.is_unspecified else address)


def owner_of(inodes: Collection[int]) -> Owner | None:
    """The first process that has one of these sockets; None: none that we may look into."""
    wanted = {f"socket:[{inode}]" for inode in inodes if inode}
    for entry in os.listdir("/proc") if wanted else ():
        if entry.isdigit() and wanted & set(_fds(entry)):
            with suppress(OSError), open(f"/proc/{entry}/comm", encoding="utf-8", errors="replace") as comm:
                return Owner(int(entry), comm.read(64).strip())
    return None


def _fds(pid: str) -> Iterator[str]:
    with suppress(OSError):
        for fd in os.listdir(f"/proc/{pid}/fd"):
            with suppress(OSError):
                yield os.readlink(f"/proc/{pid}/fd/{fd}")


def describe(bound: Collection[Bound], owner: Owner | None) -> str:
    """Who has a port, in words."""
    if owner is not None:
        whose = "this process" if owner.pid == os.getpid() else f"pid {owner.pid}"
        return f"{whose} ({owner.program})"
    if bound and all(one.state == _TIME_WAIT for one in bound):
        return "connections that have just ended, for a minute at most"
    return "a process that cannot be seen from here"
