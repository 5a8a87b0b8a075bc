"""The roster of a network that several processes have containers in: a log in a file, and the kernel's word for who is still there.

Theory of operation
-------------------
The lines are those of `sandbox.net.roster`. Whoever appends one has the lock of the network's directory; each process has a name server of its own,
which reads. A process that is killed takes nobody's name back. So each member's line tells the index of its port in the switch, which is never
given out twice; the kernel removes that port when the container has ended, in whatever way, and says so to a netlink socket in the switch, which a
reader looks at whenever it is asked for a name. Whose port is not there is not in the network.

A writer that is killed within a line leaves a piece of one. The next one ends that; a line that is no JSON counts for nothing.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import struct
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from sandbox._sys.calls import fallocate
from sandbox._sys.constants import FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE
from sandbox.errors import SetupError
from sandbox.net import netlink
from sandbox.net.roster import BEGIN, SLACK, Member, Roster, head_line, leave_line

_GETLINK, _NEWLINK, _DELLINK = 18, 16, 17  # RTM_*
GROUP_LINKS: Final = 1  # RTMGRP_LINK, which the socket of a `Presence` is bound to
_ANSWER: Final = 1 << 18
_NO_COUNTERS: Final = netlink.attribute(29, struct.pack("=I", 8))  # IFLA_EXT_MASK: RTEXT_FILTER_SKIP_STATS
_ASK: Final = netlink.message(_GETLINK, netlink.REQUEST | netlink.DUMP, struct.pack("=BxHiII", 0, 0, 0, 0, 0) + _NO_COUNTERS)


class Log(Roster):
    """The log as somebody reads it who minds no pieces of lines."""

    def read_line(self, line: bytes) -> list[Any] | None:
        try:
            return super().read_line(line)
        except json.JSONDecodeError:
            return None


class SharedWriter:
    """The log, as one of its writers has it; *fd* is its own. Whoever calls has the lock that all writers have.

    *is_alive*: whether the container at a port lives; asked when the log is written anew.
    """

    def __init__(self, fd: int, is_alive: Callable[[Iterable[Member]], list[Member]]) -> None:
        self.fd = fd
        self._is_alive = is_alive
        self._look_at = BEGIN + SLACK  # from where on it is worth to see how much of the log is of the past

    def begin(self, name: str, subnets: Iterable[str], *, forwards: bool, only: Mapping[str, int] | None = None) -> None:
        """Write the first line of an empty log; as `sandbox.net.roster.Writer` has it."""
        _write(self.fd, BEGIN.to_bytes(8, "little"), 0)
        _write(self.fd, head_line(name, subnets, forwards=forwards, only=only), BEGIN)

    def join(self, member: Member) -> None:
        """Somebody came, or is known by other names from now on."""
        self._append(member.line())

    def leave(self, key: str) -> None:
        """Somebody went; who was not there may go, too."""
        self._append(leave_line(key))

    def _append(self, line: bytes) -> None:
        end = os.fstat(self.fd).st_size
        torn = b"" if end <= BEGIN or os.pread(self.fd, 1, end - 1) == b"\n" else b"\n"
        end += _write(self.fd, torn + line, end)
        if end >= self._look_at:
            self._look_at = self._compact(end) + SLACK

    def _compact(self, end: int) -> int:
        """Have the log begin anew, without what is of the past, if that is most of it; gives where it ends."""
        known = Log(os.dup(self.fd))
        try:
            known.refresh()
            start = int.from_bytes(os.pread(self.fd, 8, 0), "little")
            lines = [member.line() for member in self._is_alive(known.members.values())]
            if end - start <= SLACK + 4 * sum(map(len, lines)):
                return end
            made = b"".join([known.head, *lines])
        finally:
            known.close()
        try:
            _write(self.fd, made, end)
        except SetupError as error:
            if error.errno != errno.ENOSPC:
                raise
            return os.fstat(self.fd).st_size  # it goes on as it is, with a piece of what it says already
        _write(self.fd, end.to_bytes(8, "little"), 0)
        with contextlib.suppress(OSError):  # a file system that cannot: what is of the past keeps its room
            fallocate(self.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, BEGIN, end - BEGIN)
        return end + len(made)

    def close(self) -> None:
        """Close the file."""
        os.close(self.fd)


def _write(fd: int, data: bytes, at: int) -> int:
    """Raises: SetupError: not all of it is written; the next line ends a piece of one. A file system that is full takes what it has room for."""
    try:
        done = os.pwrite(fd, data, at)
    except OSError as error:
        raise SetupError("write down who is in a network", error.errno or errno.EIO, step="network") from error
    if done != len(data):
        raise SetupError("write down who is in a network", errno.ENOSPC, step="network")
    return done


class Presence:
    """Which interfaces there are where a netlink socket was made; the socket is ours, and nobody else reads from it."""

    def __init__(self, fd: int) -> None:
        self._sock = socket.socket(fileno=fd)
        self._sock.setblocking(False)
        self._there: set[int] | None = None  # None: not known yet
        self._listed: set[int] = set()  # by an answer that is on its way
        self._is_partial = False
        self.changes = 0
        self._ask()

    def _ask(self) -> None:
        self._listed, self._is_partial = set(), False
        self._sock.sendto(_ASK, (0, 0))

    def refresh(self) -> None:
        """Take note of what the kernel has said since."""
        while True:
            try:
                data, sender = self._sock.recvfrom(_ANSWER)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self._ask()  # more has happened than the socket holds
                continue
            if sender[0] == 0:  # the kernel
                for message in netlink.messages(data):
                    self._take(message)

    def _take(self, message: netlink.Message) -> None:
        self.changes += 1
        if message.kind == netlink.ERROR:  # EBUSY: an answer to somebody before us, who has ended, is on its way, and we see the rest of it
            self._is_partial = True
        elif message.kind == netlink.DONE and self._is_partial:
            self._ask()
        elif message.kind == netlink.DONE:
            self._there = self._listed
        elif message.kind in (_NEWLINK, _DELLINK) and message.body[:1] == b"\0":  # of no family: else a bridge speaks of its ports
            (index,) = struct.unpack_from("=i", message.body, 4)
            for known in (self._listed, *(() if self._there is None else (self._there,))):
                (known.add if message.kind == _NEWLINK else known.discard)(index)

    def has(self, index: int) -> bool:
        """Whether that interface is there; while it is not known, it is."""
        return self._there is None or index in self._there

    def close(self) -> None:
        """Close the socket."""
        self._sock.close()


class SharedRoster(Log):
    """The log as a name server has it, without those whose ports have gone. *fd*, *links*: its own; *links*: as of `Presence`."""

    def __init__(self, fd: int, links: int) -> None:
        super().__init__(fd)
        self._presence = Presence(links)
        self._seen = (-1, -1)

    def refresh(self) -> None:
        super().refresh()
        self._presence.refresh()  # behind that: a line is written when the port is there
        now = self.at_byte, self._presence.changes
        if now != self._seen:
            self._seen = now
            for key in [key for key, member in self.members.items() if not self._presence.has(member.port)]:
                self.forget(key)

    def close(self) -> None:
        super().close()
        self._presence.close()
