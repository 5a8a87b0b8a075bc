"""Who is in a network, by name and address: a log of lines that one process writes, and its name server reads.

Theory of operation
-------------------
The log is a file without a name (memfd_create(2)). A container that comes or goes is a line, appended by one pwrite(2); the name server looks
for new lines whenever somebody asks. So the writer never waits for the server, there is nothing in between that could lag behind or be
lost, and a server that was killed finds everything where it was. A line has no zero bytes, and is taken once its end is there.

The first bytes are a number: where the lines that count begin. When most lines are of the past, all that holds is written once more, the
number set to that place, and what lies before it given back. A reader that was behind finds zeros there, and begins at that number.

Nothing is imported here that the server would have to wait for at its start.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Final

from sandbox._sys.calls import fallocate
from sandbox._sys.constants import FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE

BEGIN: Final = 4096  # of the lines: a page of its own for the number
SLACK: Final = 1 << 16  # bytes of the past that nobody minds
_CHUNK: Final = 1 << 18
BY_NAME: Final = "@"  # before what a link means by a name, which may be anybody's at a time; others mean a key


class Member:
    """A container in a network. *links*: names that only it knows others by, and those others' keys, or `BY_NAME` and a name.

    *servers*: whom to ask what nobody here is. *port*: the index of its interface in the switch.
    """

    __slots__ = ("addresses", "key", "links", "names", "port", "servers")

    def __init__(
        self,
        key: str,
        addresses: Iterable[str],
        names: Collection[str] = (),
        links: Mapping[str, str] | None = None,
        servers: Iterable[str] = (),
        *,
        port: int = 0,
    ) -> None:
        self.key, self.addresses = key, tuple(addresses)
        self.names = tuple(dict.fromkeys([name.lower() for name in names])) if names else ()
        self.links = {alias.lower(): other for alias, other in links.items()} if links else {}
        self.servers, self.port = tuple(servers), port

    def line(self) -> bytes:
        return _line(["join", self.key, self.addresses, self.names, self.links, self.servers, self.port])


_encode: Final = json.JSONEncoder(separators=(",", ":")).encode


def _line(words: list[Any]) -> bytes:
    return _encode(words).encode("ascii") + b"\n"


def head_line(name: str, subnets: Iterable[str], *, forwards: bool, servers: Iterable[str] = (), only: Mapping[str, int] | None = None) -> bytes:
    """What a log begins with; as `Writer` has it."""
    listed = None if only is None else {pattern.lower(): group for pattern, group in only.items()}
    return _line(["network", name.lower(), list(subnets), forwards, list(servers), listed])


def leave_line(key: str) -> bytes:
    """Somebody went."""
    return _line(["leave", key])


class Writer:
    """The log's one writer; *fd* is its own. The caller has a lock.

    name, subnets: the network's. servers: whom its server asks what nobody in it is, () the host's; *forwards* False: nobody is asked;
    *only*: these names alone are asked for, each with the number of what it opens (`sandbox.net.allow.groups_of`); None: any.
    """

    def __init__(
        self,
        name: str,
        subnets: Iterable[str],
        *,
        forwards: bool,
        servers: Iterable[str] = (),
        only: Mapping[str, int] | None = None,
    ) -> None:
        self.fd = os.memfd_create("sandbox-names", os.MFD_CLOEXEC)
        self._head = head_line(name, subnets, forwards=forwards, servers=servers, only=only)
        self._members: dict[str, Member] = {}
        self._live = 0  # bytes of their lines
        self._start = self._end = BEGIN
        os.pwrite(self.fd, BEGIN.to_bytes(8, "little"), 0)
        self._append(self._head)

    def join(self, member: Member) -> None:
        """Somebody came, or is known by other names from now on."""
        self.leave(member.key)
        line = member.line()
        self._members[member.key] = member
        self._live += len(line)
        self._append(line)

    def leave(self, key: str) -> None:
        """Somebody went; who was not there may go, too."""
        member = self._members.pop(key, None)
        if member is None:
            return
        self._live -= len(member.line())
        self._append(leave_line(key))
        if self._end - self._start > SLACK + 4 * self._live:
            self._compact()

    def _append(self, line: bytes) -> None:
        self._end += os.pwrite(self.fd, line, self._end)

    def _compact(self) -> None:
        start = self._end
        self._append(b"".join([self._head, *(member.line() for member in self._members.values())]))
        os.pwrite(self.fd, start.to_bytes(8, "little"), 0)
        fallocate(self.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, BEGIN, start - BEGIN)
        self._start = start

    def close(self) -> None:
        """Close the file."""
        os.close(self.fd)


class Roster:
    """The log as its reader has it; *fd* is its own."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.at_byte = 0
        self._rest = b""
        self.turn = 0  # of those who share a name
        self._reset()

    def _reset(self) -> None:
        self.name, self.head = "", b""
        self.subnets: tuple[tuple[int, int, int], ...] = ()
        self.forwards = False
        self.servers: tuple[str, ...] = ()
        self.only: dict[str, int] | None = None
        self.members: dict[str, Member] = {}
        self._by_address: dict[str, Member] = {}
        self._by_name: dict[str, list[Member]] = {}

    def refresh(self) -> None:
        """Take note of what was written since."""
        if not self.at_byte:
            self._begin()
        while data := os.pread(self.fd, _CHUNK, self.at_byte):
            if b"\0" in data:  # given back meanwhile
                self._begin()
                continue
            self.at_byte += len(data)
            *lines, self._rest = (self._rest + data).split(b"\n")
            for line in lines:
                words = self.read_line(line)
                if words is not None:
                    self._take(words)

    def read_line(self, line: bytes) -> list[Any] | None:
        """What a line says; None: nothing."""
        found: list[Any] = json.loads(line)
        return found

    def _begin(self) -> None:
        self._reset()
        self._rest = b""
        self.at_byte = int.from_bytes(os.pread(self.fd, 8, 0), "little")

    def _take(self, words: list[Any]) -> None:
        kind, *rest = words
        if kind == "network":  # again, when all is written once more: whose writer was killed within that has taken nobody away
            self.head = _line(words)
            self.name, subnets, self.forwards, servers, only = rest
            self.subnets, self.servers = tuple(map(to_range, subnets)), tuple(servers)
            self.only = only
            return
        self.forget(rest[0])
        if kind == "join":
            member = Member(*rest[:-1], port=rest[-1])
            self.members[member.key] = member
            self._by_address.update(dict.fromkeys(member.addresses, member))
            for name in member.names:
                self._by_name.setdefault(name, []).append(member)

    def forget(self, key: str) -> None:
        """Somebody went."""
        member = self.members.pop(key, None)
        if member is None:
            return
        for address in member.addresses:
            if self._by_address.get(address) is member:
                del self._by_address[address]
        for name in member.names:
            others = self._by_name[name]
            others.remove(member)
            if not others:
                del self._by_name[name]

    def at(self, address: str) -> Member | None:
        """Who has *address*."""
        return self._by_address.get(address)

    def named(self, name: str) -> list[Member]:
        """Who is known by *name*, in lower case; whoever is next in turn first."""
        found = self._by_name.get(name, [])
        if len(found) < 2:
            return list(found)
        self.turn += 1
        shift = self.turn % len(found)
        return found[shift:] + found[:shift]

    def opens(self, labels: Sequence[str]) -> tuple[int, ...] | None:
        """The groups that an answer about a name opens, () where nothing has to be opened; None: the name is not asked for outside."""
        if not self.forwards or self.only is None:
            return () if self.forwards else None
        patterns = [".".join(labels), *("*." + ".".join(labels[at:]) for at in range(1, len(labels)))]
        found = dict.fromkeys(self.only[pattern] for pattern in patterns if pattern in self.only)
        return tuple(found) or None

    def close(self) -> None:
        """Close the file."""
        os.close(self.fd)


def to_range(subnet: str) -> tuple[int, int, int]:
    """A subnet as family, first and last address, both as numbers."""
    text, _, prefix = subnet.partition("/")
    family, number = to_number(text)
    size = 1 << ((32 if family == socket.AF_INET else 128) - int(prefix))
    return family, number, number + size - 1


def to_number(address: str) -> tuple[int, int]:
    """An address as family and number. Raises: OSError: it is none."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return family, int.from_bytes(socket.inet_pton(family, address), "big")
