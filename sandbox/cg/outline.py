"""What the leaves of a group consist of: worked out by mount points once, and put over a group's descriptors each time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Final

from attrs import frozen

from sandbox.cg.blueprint import Blueprint
from sandbox.cg.bundle import hierarchies_for, planned_writes
from sandbox.cg.hosts import Host
from sandbox.cg.leaf import Shape, told_by
from sandbox.cg.limits import Limits, Write
from sandbox.cg.limits import controllers as controllers_of
from sandbox.cg.tree import CPUSET

NO_LIMITS: Final = Limits()


@frozen
class Outline:
    """What a leaf consists of, by mount points."""

    v1: tuple[str, ...]  # where it has a group of its own
    shared: tuple[str, ...]  # where it joins the container's
    v2: str | None
    memory: tuple[int, str] | None  # version, mount point
    cpu: tuple[int, str] | None
    pids: tuple[int, str] | None
    scheduler: tuple[int, str] | None
    writes: tuple[tuple[str, Write], ...]


@lru_cache(maxsize=256)
def outline(host: Host, limits: Limits, wanted: frozenset[str], mounts: tuple[str, ...]) -> Outline:
    """Say what leaves with *limits* that account for *wanted* consist of, in a group that has a place below each of *mounts*."""
    v1 = [h for h in hierarchies_for(host, controllers_of(limits), wanted) if h.version == 1]
    own = {h.mount for h in v1}
    versions = {h.mount: h.version for h in host.hierarchies}
    inherit = [(h.mount, write) for h in v1 if "cpuset" in h.controllers for write in CPUSET]
    return Outline(
        v1=tuple(h.mount for h in v1),
        shared=tuple(mount for mount in mounts if versions[mount] == 1 and mount not in own),
        v2=host.unified.mount if host.unified is not None else None,
        memory=_told_by(host, "memory", wanted),
        cpu=_told_by(host, "cpuacct", wanted),
        pids=_told_by(host, "pids", wanted),
        scheduler=_told_by(host, "cpu", wanted),
        writes=(*inherit, *_leaf_writes(host, planned_writes(limits, host), wanted)),
    )


def _told_by(host: Host, controller: str, wanted: frozenset[str]) -> tuple[int, str] | None:
    hierarchy = host.find(controller)
    return (hierarchy.version, hierarchy.mount) if hierarchy is not None and controller in wanted else None


def _leaf_writes(host: Host, planned: Iterable[Write], wanted: frozenset[str]) -> list[tuple[str, Write]]:
    result = [(host.require(write.controller).mount, write) for write in planned]
    memory = host.find("memory")
    has_group_kill = any(write.file == "memory.oom.group" for _, write in result)
    if memory is not None and memory.version == 2 and "memory" in wanted and not has_group_kill:
        # the container's limit may be the one that is met: then too the program ends as a whole
        result.append((memory.mount, Write("memory", "memory.oom.group", "1", optional=True)))
    return result


def shape(found: Outline, fds: Mapping[str, int], tasks: Mapping[str, int]) -> Shape:
    """Give what leaves are where *fds* are the group's directories, and *tasks* its own `tasks` files, by mount points."""
    memory, pids = _account(found.memory, fds), _account(found.pids, fds)
    return Shape(
        v1=tuple([fds[mount] for mount in found.v1]),
        shared=tuple([tasks[mount] for mount in found.shared]),
        # one in payload itself would break "no internal processes": on v2 a program always has a leaf
        v2=None if found.v2 is None else fds.get(found.v2),
        memory=memory,
        cpu=_account(found.cpu, fds),
        pids=pids,
        scheduler=_account(found.scheduler, fds),
        writes=tuple([(fds[mount], write) for mount, write in found.writes]),
        told=told_by(memory, pids),
    )


@lru_cache(maxsize=64)
def template(host: Host, wanted: frozenset[str], blueprint: Blueprint) -> Shape:
    """Give what leaves without limits are in groups made of *blueprint*, with places in `Blueprint.opens` for descriptors (see `Shape.over`)."""
    mounts = tuple(hierarchy.mount for hierarchy in blueprint.hierarchies)
    places = {mount: at for at, mount in enumerate(mounts)}
    return shape(outline(host, NO_LIMITS, wanted, mounts), places, places)


def _account(told: tuple[int, str] | None, fds: Mapping[str, int]) -> tuple[int, int] | None:
    return (told[0], fds[told[1]]) if told is not None and told[1] in fds else None
