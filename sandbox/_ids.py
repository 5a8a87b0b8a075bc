"""Which ids of the host a container's ids are."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import lru_cache
from typing import Final

from attrs import field, frozen

from sandbox._sys import features
from sandbox.errors import UnsupportedError
from sandbox.ns import IdMaps, id_ranges
from sandbox.ns.user import COUNT, private_maps, single_maps, subordinate_maps

_INIT: Final = 0


@frozen
class Ids:
    """The id maps of one container; `release` gives a private range back."""

    maps: IdMaps
    init_uid: int
    init_gid: int
    root: int  # what uid init_uid is outside
    count: int  # how many ids there are inside, from 0 on
    only: int | None = None  # the one id beside them
    release: Callable[[], None] = field(default=lambda: None, eq=False)

    def has(self, number: int) -> bool:
        """Whether the container has this id."""
        return 0 <= number < self.count or number == self.only

    @property
    def deny_setgroups(self) -> bool:
        """Whether its programs cannot have supplementary groups."""
        return self.maps.deny_setgroups

    def describe(self) -> str:
        """Its ids in words."""
        return f"the ids 0 to {self.count - 1}" if self.count else f"the one id {self.only} (give it more by subids=True, or by running as root)"


def shape(*, privileged: bool, uid: int, subids: bool = False) -> Ids:
    """What a container's ids look like from inside; for a privileged caller `allot` then says which they are outside.

    Raises: UnsupportedError: *subids* were asked for, and the caller has none, or nothing to map them with.
    """
    return _subordinate(uid) if subids and not privileged else _common(privileged, uid, os.geteuid())


@lru_cache(maxsize=64)
def _common(privileged: bool, uid: int, outside: int) -> Ids:
    if privileged:
        return Ids(private_maps(COUNT), _INIT, _INIT, COUNT, COUNT)
    return Ids(single_maps(uid=uid, gid=uid), uid, uid, outside, 0, uid)


def _subordinate(uid: int) -> Ids:
    # Init has the caller's own id, as with one id: what the caller may read it may read, and groups of v2 that are his are its.
    if features.newuidmap() is None:
        raise UnsupportedError(
            "subordinate ids take newuidmap and newgidmap, which are not here",
            feature="newuidmap",
            remedy="install the package uidmap (Debian) or shadow-utils; or leave subids=True out: the container has one id then",
        )
    maps = subordinate_maps(features.subordinate_ids(), euid=os.geteuid(), egid=os.getegid(), own=uid)
    others = min(sum(line.count for line in lines[1:]) for lines in (maps.uid_map, maps.gid_map))
    return Ids(maps, uid, uid, os.geteuid(), others + 1 if uid <= others else others, uid)


def allot(ids: Ids) -> Ids:
    """Give *ids* a private range of the host's where they are many; the one id is the caller's own.

    Raises: UnsupportedError: no range is free in our user namespace.
    """
    if ids.only is not None:
        return ids
    taken = id_ranges().take()
    return Ids(taken.maps, ids.init_uid, ids.init_gid, taken.base, ids.count, None, taken.release)
