"""Which ids of the host a container's ids are."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import lru_cache
from typing import Final

from attrs import field, frozen

from sandbox.ns import IdMaps, id_ranges
from sandbox.ns.user import COUNT, private_maps, single_maps

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
        return f"the ids 0 to {self.count - 1}" if self.count else f"the one id {self.only} (give it more by running as root, or by subuid ranges)"


@lru_cache(maxsize=64)
def shape(*, privileged: bool, uid: int) -> Ids:
    """What a container's ids look like from inside; for a privileged caller `allot` then says which they are outside."""
    if privileged:
        return Ids(private_maps(COUNT), _INIT, _INIT, COUNT, COUNT)
    return Ids(single_maps(uid=uid, gid=uid), uid, uid, os.geteuid(), 0, uid)


def allot(ids: Ids) -> Ids:
    """Give *ids* a private range of the host's where they are many; the one id is the caller's own.

    Raises: UnsupportedError: no range is free in our user namespace.
    """
    if ids.only is not None:
        return ids
    taken = id_ranges().take()
    return Ids(taken.maps, ids.init_uid, ids.init_gid, taken.base, ids.count, None, taken.release)
