"""`Blueprint`: what somebody else can do in place of `Group.create`; the same for all groups with equal limits, but for their names."""

from __future__ import annotations

import contextlib
import itertools
import os
from functools import lru_cache

from attrs import frozen

from sandbox.cg import files
from sandbox.cg.bundle import hierarchies_for, planned_writes
from sandbox.cg.hosts import Hierarchy, detect
from sandbox.cg.leaf import CPU_USAGE, MEMORY_EVENTS, MEMORY_PEAK, PIDS_PEAK, Opened
from sandbox.cg.limits import Limits, controllers
from sandbox.cg.tree import Owner, owner


@frozen(cache_hash=True)
class Blueprint:
    """Directories to be made, a group's and its first leaf's, what is to be written to their files, and which are to be opened then.

    Each path is in two pieces, before the group's name and after it.
    """

    hierarchies: tuple[Hierarchy, ...]
    above: tuple[bytes, ...]  # where the group's directory in each is, with a slash at the end
    above_text: tuple[str, ...]
    steps: tuple[tuple[bytes, bytes, bytes | None], ...]  # what to write to it, or None: make the directory
    opens: tuple[tuple[bytes, bytes, bool], ...]  # and whether it is to be written to; in the order of `Group.adopt`
    shared: tuple[str, ...]  # mount points: where the leaf joins the group itself
    leaf: bytes
    opened: Opened

    def groups(self, name: bytes) -> tuple[bytes, ...]:
        """Give the directories of group *name*."""
        return tuple([above + name for above in self.above])

    def remove(self, name: bytes) -> None:
        """Remove what has been made of it for group *name*, as far as it is empty."""
        for before, after, value in reversed(self.steps):
            if value is None:
                with contextlib.suppress(OSError):
                    os.rmdir(before + name + after)


def blueprint(limits: Limits, wished: frozenset[str], leaf: str) -> Blueprint | None:
    """Give what to do in place of `Group.create`, for a group with *limits* that has *wished* controllers, a first *leaf* included.

    None: v2 and cpusets want more.
    """
    return _blueprint(limits, wished, leaf.encode(), owner())


@lru_cache(maxsize=64)
def _blueprint(limits: Limits, wished: frozenset[str], leaf: bytes, mine: Owner) -> Blueprint | None:
    host = detect()
    found = hierarchies_for(host, controllers(limits), wished)
    if any(hierarchy.version == 2 or "cpuset" in hierarchy.controllers for hierarchy in found):
        return None
    above = {hierarchy: os.fsencode(mine.directory(hierarchy, wished)) + b"/" for hierarchy in found}
    own = hierarchies_for(host, frozenset[str](), wished)
    steps: list[tuple[bytes, bytes, bytes | None]] = [(path, b"", None) for path in above.values()]
    steps += [(above[hierarchy], b"/" + leaf, None) for hierarchy in own]
    for write in planned_writes(limits, host):
        path = above[host.require(write.controller)]
        there = files.existing(os.fsdecode(path), write)
        if there is not None:
            steps.append((path, f"/{there.file}".encode(), (there.value or "").encode()))
        elif not write.optional and write.instead is None:
            return None  # `create` will say what is missing
    shared = [hierarchy for hierarchy in found if hierarchy not in own]
    files_of = {"memory": (MEMORY_PEAK[1], MEMORY_EVENTS[1]), "pids": (PIDS_PEAK,)}
    told = [(above[h], file) for name, of in files_of.items() if name in wished and (h := host.find(name)) for file in of]
    is_there = [os.path.exists(path + file[1:]) for path, file in told]  # our own directory has what a leaf will have
    cpu = [(above[h], CPU_USAGE)] if "cpuacct" in wished and (h := host.find("cpuacct")) else []
    opens = [(path, b"", False) for path in above.values()]
    opens += [(above[hierarchy], b"/tasks", True) for hierarchy in shared]
    opens += [(above[hierarchy], b"/" + leaf + b"/tasks", True) for hierarchy in own]
    opens += [(path, b"/" + leaf + file, False) for path, file in (*itertools.compress(told, is_there), *cpu)]
    return Blueprint(
        hierarchies=found,
        above=tuple(above.values()),
        above_text=tuple(map(os.fsdecode, above.values())),
        steps=tuple(steps),
        opens=tuple(opens),
        shared=tuple(hierarchy.mount for hierarchy in shared),
        leaf=leaf,
        opened=Opened.of(len(own), is_there),
    )
