"""Which ids of the host a container's ids are."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Final

from attrs import field, frozen

from sandbox._plan import IdMap

COUNT: Final = 65536
# systemd's range for containers (systemd/src/basic/uid-range.h): nothing else on a host uses it.
_FIRST: Final = 524288
_RANGES: Final = (1879048192 - _FIRST) // COUNT


@frozen
class Ids:
    """The id maps of one container; `release` gives a private range back."""

    uid_map: tuple[IdMap, ...]
    gid_map: tuple[IdMap, ...]
    init_uid: int
    init_gid: int
    root: int  # what uid init_uid is outside
    count: int  # how many ids there are inside, from 0 on
    only: int | None = None  # the one id beside them
    deny_setgroups: bool = False
    helpers: bool = False
    release: Callable[[], None] = field(default=lambda: None, eq=False)

    def has(self, number: int) -> bool:
        """Whether the container has this id."""
        return 0 <= number < self.count or number == self.only

    def describe(self) -> str:
        """Its ids in words."""
        return f"the ids 0 to {self.count - 1}" if self.count else f"the one id {self.only} (give it more by running as root, or by subuid ranges)"


class _Ranges:
    """Ranges of this process; where they begin depends on its pid, so that processes rarely share one. Sharing one is no
    way in: it only means that two containers' files and resource counts are those of the same host ids.
    """

    def __init__(self) -> None:
        self.pid = os.getpid()
        self._next = self.pid * 61 % _RANGES
        self._used: set[int] = set()
        self._lock = threading.Lock()

    def take(self) -> int:
        with self._lock:
            for _ in range(_RANGES):
                number = self._next
                self._next = (number + 1) % _RANGES
                if number not in self._used:
                    self._used.add(number)
                    return number
        raise AssertionError("more containers than ranges of ids: a process cannot hold so many descriptors")

    def give(self, number: int) -> None:
        with self._lock:
            self._used.discard(number)


_ranges: _Ranges | None = None


def ids(*, privileged: bool, uid: int) -> Ids:
    """A private range for a privileged caller; else the one id that everybody has: *uid* inside is the caller outside."""
    if not privileged:
        return Ids((IdMap(uid, os.geteuid(), 1),), (IdMap(uid, os.getegid(), 1),), uid, uid, os.geteuid(), 0, uid, deny_setgroups=True)
    global _ranges
    if _ranges is None or _ranges.pid != os.getpid():
        _ranges = _Ranges()
    ranges = _ranges
    number = ranges.take()
    base = _FIRST + number * COUNT
    maps = (IdMap(0, base, COUNT),)
    return Ids(maps, maps, 0, 0, base, COUNT, release=lambda: ranges.give(number))
