"""User namespaces: which ids of the host the container's ids are.

Three ways, by what the caller may do:
- privileged: a private range of 65,536 ids, which nobody else on the host has, from `IdRanges`;
- ranges in /etc/subuid and /etc/subgid: one id inside is the caller, the others are subordinate ids, written by newuidmap(1);
- else one id: any id inside is the caller outside.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Sequence
from typing import Final

from attrs import frozen

from sandbox._plan import IdMap
from sandbox._sys import procfs, subid
from sandbox._sys.constants import CLONE_NEWUSER
from sandbox._types import to_count
from sandbox.errors import UnsupportedError
from sandbox.ns._pieces import Host, Join, Pieces, join_pieces

__all__ = ["COUNT", "IdMaps", "IdRange", "IdRanges", "User", "id_ranges", "pieces", "private_maps", "single_maps", "subordinate_maps"]

COUNT: Final = 65536
# systemd's range for containers, https://systemd.io/UIDS-GIDS/: 524288 to 1879048191, of which each takes 65,536.
FIRST: Final = 524288
END: Final = 1879048192
_RANGES: Final = (END - FIRST) // COUNT
_MOST_LINES: Final = 20  # what the launcher hands to newuidmap; the kernel takes 340 (UID_GID_MAP_MAX_EXTENTS, since Linux 4.15)
_LARGEST_ID: Final = 0xFFFFFFFE

Span = tuple[int, int]  # first, count


@frozen
class IdMaps:
    """What is written into uid_map and gid_map. *helpers*: by newuidmap and newgidmap, because the kernel would not let us."""

    uid_map: tuple[IdMap, ...]
    gid_map: tuple[IdMap, ...]
    deny_setgroups: bool = False
    helpers: bool = False

    def has_uid(self, number: int) -> bool:
        """Whether this uid exists inside."""
        return any(item.inside <= number < item.inside + item.count for item in self.uid_map)

    def has_gid(self, number: int) -> bool:
        """Whether this gid exists inside."""
        return any(item.inside <= number < item.inside + item.count for item in self.gid_map)


@frozen
class User:
    """A user namespace of its own, with these maps; None: whoever makes the plan fills them in."""

    maps: IdMaps | None = None


def pieces(spec: User | Host | Join) -> Pieces:
    """Pieces of a plan for *spec*."""
    if isinstance(spec, Join):
        return join_pieces("user", spec)
    if isinstance(spec, Host):
        return Pieces()
    if spec.maps is None:
        return Pieces(clone_flags=CLONE_NEWUSER)
    maps = spec.maps
    return Pieces(clone_flags=CLONE_NEWUSER, uid_map=maps.uid_map, gid_map=maps.gid_map, deny_setgroups=maps.deny_setgroups, map_helpers=maps.helpers)


# --- maps


def private_maps(base: int, count: int = COUNT) -> IdMaps:
    """Ids 0 to *count* - 1 inside are those from *base* on outside."""
    line = (IdMap(0, to_count(base, what="base", least=1, most=_LARGEST_ID - count + 1), count),)
    return IdMaps(line, line)


def single_maps(*, uid: int, gid: int, euid: int | None = None, egid: int | None = None) -> IdMaps:
    """One id: *uid* and *gid* inside are *euid* and *egid* (None: ours) outside. The kernel demands that setgroups is denied for that."""
    to_count(uid, what="uid", least=0, most=_LARGEST_ID)
    to_count(gid, what="gid", least=0, most=_LARGEST_ID)
    outside = os.geteuid() if euid is None else euid, os.getegid() if egid is None else egid
    return IdMaps((IdMap(uid, outside[0], 1),), (IdMap(gid, outside[1], 1),), deny_setgroups=True)


def subordinate_maps(owned: subid.Owned, *, euid: int, egid: int, own: int = 0) -> IdMaps:
    """The id *own* inside is the caller; the others, from 0 on, are the subordinate ones, in the order of the files. Needs newuidmap(1).

    Raises: UnsupportedError when the caller has no ranges for users, or none for groups.
    """
    if not owned.uids or not owned.gids:
        missing = subid.SUBGID if owned.uids else subid.SUBUID
        raise UnsupportedError(
            f"uid {euid} has no range in {missing}",
            feature="subordinate ids",
            remedy="as root: usermod --add-subuids 100000-165535 --add-subgids 100000-165535 USER",
        )
    to_count(own, what="uid", least=0, most=_LARGEST_ID)
    return IdMaps(_lines(own, euid, owned.uids), _lines(own, egid, owned.gids), helpers=True)


def _lines(own: int, caller: int, spans: Sequence[Span]) -> tuple[IdMap, ...]:
    lines = [IdMap(own, caller, 1)]
    taken: list[Span] = [(caller, 1)]
    inside = 1 if own == 0 else 0
    for first, count in spans:
        span = first, min(count, COUNT)
        if _overlaps(span, taken):  # the kernel refuses a map in which an outside id occurs twice
            continue
        taken.append(span)
        used = 0
        while used < span[1] and inside < COUNT and len(lines) < _MOST_LINES:
            take = min(span[1] - used, (min(own, COUNT) if inside < own else COUNT) - inside)
            lines.append(IdMap(inside, first + used, take))
            used, inside = used + take, inside + take
            inside += inside == own
    return tuple(lines)


def _overlaps(span: Span, others: Iterable[Span]) -> bool:
    first, count = span
    return any(first < start + length and start < first + count for start, length in others)


# --- private ranges


@frozen(eq=False)
class IdRange:
    """One private range: ids from *base* on; give it back with `release` (a second time does nothing)."""

    number: int
    owner: IdRanges
    base: int

    @property
    def maps(self) -> IdMaps:
        return private_maps(self.base)

    def release(self) -> None:
        """Give it back. Only when nothing of the container is left, or a later one could reach it."""
        self.owner.give(self.number)


class IdRanges:
    """Hands out private ranges. Thread-safe; never the same range twice at once within a process.

    Where a process begins depends on its pid, so different processes rarely use the same range. If two do, that is no
    way from one container into the other: every namespace is still apart; only files and counts (RLIMIT_NPROC) are of the same ids.

    *visible*: the maps of our own user namespace (ids that are not in them cannot be handed on). *reserved*: spans of others.
    `are_any`: whether there is a range at all; root of an outer container mostly has none.
    """

    def __init__(self, *, start: int, visible: Sequence[Sequence[IdMap]] = (), reserved: Sequence[Span] = ()) -> None:
        self._next = start % _RANGES
        self._visible = tuple(tuple((item.inside, item.count) for item in maps) for maps in visible)
        self._reserved = tuple(reserved)
        self._used: set[int] = set()
        self._held: dict[int, int] = {}  # how many beside the first have a range
        self._lock = threading.Lock()
        self.are_any = any(self._usable((FIRST + number * COUNT, COUNT)) for number in range(_RANGES))

    def take(self) -> IdRange:
        """A range that is in nobody's hands.

        Raises: UnsupportedError when there is none, as in an outer container that has 65,536 ids itself.
        """
        with self._lock:
            for _ in range(_RANGES):
                number, self._next = self._next, (self._next + 1) % _RANGES
                base = FIRST + number * COUNT
                if number not in self._used and self._usable((base, COUNT)):
                    self._used.add(number)
                    return IdRange(number, self, base)
        raise UnsupportedError(
            f"no range of {COUNT} ids is free in this user namespace",
            feature="private id range",
            remedy=f"give the outer container ids from {FIRST} on, or run as an ordinary user",
        )

    def is_private(self, base: int) -> bool:
        """Whether one of these ranges begins at *base*."""
        return FIRST <= base < END and (base - FIRST) % COUNT == 0 and self._usable((base, COUNT))

    def hold(self, base: int) -> IdRange:
        """The range that begins at *base*, for one more, who is to have the same ids; it is given back when all have given it back."""
        number = (base - FIRST) // COUNT
        with self._lock:
            if number in self._used:
                self._held[number] = self._held.get(number, 0) + 1
            self._used.add(number)
        return IdRange(number, self, base)

    def give(self, number: int) -> None:
        """Take *number* back."""
        with self._lock:
            if self._held and number in self._held:
                self._held[number] -= 1
                if not self._held[number]:
                    del self._held[number]
            else:
                self._used.discard(number)

    def _usable(self, span: Span) -> bool:
        seen = all(any(first <= span[0] and sum(span) <= first + count for first, count in spans) for spans in self._visible)
        return seen and not _overlaps(span, self._reserved)


_ranges: tuple[int, IdRanges] | None = None


def id_ranges() -> IdRanges:
    """The ranges of this process. A forked child gets its own, and leaves the parent's to the parent."""
    global _ranges
    found, pid = _ranges, os.getpid()
    if found is None or found[0] != pid:
        with _lock:
            found = _ranges
            if found is None or found[0] != pid:
                # 61: pids that follow one another begin far enough apart for 61 live containers each.
                found = pid, IdRanges(start=pid * 61, visible=(procfs.read_id_map("uid"), procfs.read_id_map("gid")), reserved=_subordinate())
                _ranges = found
    return found[1]


_lock = threading.Lock()


def _subordinate() -> tuple[Span, ...]:
    """What /etc/subuid and /etc/subgid have given away: containers of ordinary users (Podman's) own files there."""
    return tuple({(line.first, line.count) for path in (subid.SUBUID, subid.SUBGID) for line in subid.read(path)})


def _after_fork() -> None:
    global _lock
    _lock = threading.Lock()  # another thread of the parent may have held it


os.register_at_fork(after_in_child=_after_fork)
