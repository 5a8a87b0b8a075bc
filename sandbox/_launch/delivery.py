"""Descriptors that the launcher opens when nothing else is asked of it, so that nobody has to when they are needed."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Final

from sandbox._launch import wire
from sandbox._launch.driver import unpack_fds
from sandbox._sys.fds import close_all

_MOST_FDS: Final = 16  # of one delivery
_HEAD: Final = wire.HEAD.size
_RECEIVE: Final = _HEAD + 255  # a name's, at most


class Deliveries:
    """A socket to hand to the launcher with GROUPS, and what has come on it: OPENED, by name. Thread-safe."""

    def __init__(self) -> None:
        """Raises: OSError: descriptors are short."""
        import socket

        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._ours, self._theirs = ours, theirs
        self._flags = socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT
        self._room = socket.CMSG_SPACE(4 * _MOST_FDS)
        self._awaited: dict[bytes, int] = {}  # how many are to come
        self._come: dict[bytes, list[int]] = {}
        self._lock = threading.Lock()

    def fileno(self) -> int:
        """The end that is the launcher's."""
        return self._theirs.fileno()

    def expect(self, names: Iterable[bytes], count: int) -> None:
        """*count* descriptors will come under each of *names*; what comes under another is closed."""
        with self._lock:
            self._awaited.update(dict.fromkeys(names, count))

    def take(self, name: bytes) -> list[int] | None:
        """Give what has come under *name*, the caller's then; None: it has not, or not all of it.

        Who does not wait for it any more says `forget`.
        """
        with self._lock:
            if (found := self._come.pop(name, None)) is not None:
                return found
            awaited = self._awaited
            try:
                while name in awaited:
                    raw, ancillary, _, _ = self._ours.recvmsg(_RECEIVE, self._room, self._flags)
                    come, fds = raw[_HEAD:], unpack_fds(ancillary)
                    if len(fds) != awaited.pop(come, 0):  # nobody waits any more; or there was no room for some of them here
                        close_all(fds)
                    elif come == name:
                        return fds
                    else:
                        self._come[come] = fds
            except OSError:  # there is none; or it was closed
                return None
            return None

    def forget(self, names: Iterable[bytes]) -> None:
        """Nobody waits for *names* any more."""
        with self._lock:
            for name in names:
                self._awaited.pop(name, None)
                close_all(self._come.pop(name, ()))

    def close(self) -> None:
        """Close it, and what has come; twice is fine."""
        with self._lock:
            self.abandon()

    def abandon(self) -> None:
        """As `close`, in a forked child: without the lock, which may be taken for ever there."""
        come, self._come, self._awaited = self._come, {}, {}
        self._ours.close()
        self._theirs.close()
        for fds in come.values():
            close_all(fds)
