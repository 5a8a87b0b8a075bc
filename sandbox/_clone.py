"""The request for a container's clone: ids, namespaces, operations, and the control groups that the launcher makes for it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from sandbox._compile import Compiled
from sandbox._ids import Ids
from sandbox._launch import codec, wire
from sandbox._session import Session
from sandbox.cg import Blueprint, Group


class Made(NamedTuple):
    """Control groups that the launcher makes, and removes after init's end."""

    groups: tuple[bytes, ...]
    steps: bytes
    opened: int  # how many descriptors come with CLONED


def groups_of(blueprint: Blueprint, name: str) -> Made:
    """The groups of *blueprint*, for the container *name*. Names are of one length, so that the rest is encoded once."""
    raw = name.encode()
    return Made(blueprint.groups(raw), raw.join(_pieces(blueprint, len(raw))), len(blueprint.opens))


@lru_cache(maxsize=64)
def _pieces(blueprint: Blueprint, size: int) -> list[bytes]:
    steps = [(wire.GroupStep.MAKE, before, after, b"") for before, after, value in blueprint.steps if value is None]
    steps += [(wire.GroupStep.WRITE, before, after, value) for before, after, value in blueprint.steps if value is not None]
    steps += [(wire.GroupStep.JOIN if is_joined else wire.GroupStep.READ, before, after, b"") for before, after, is_joined in blueprint.opens]
    return codec.named_steps(steps, size)


def cloned(
    compiled: Compiled,
    ids: Ids,
    group: Group | None,
    fds: list[int],
    *,
    joins: Sequence[tuple[int, int]] = (),
    made: Made | None = None,
    ahead: bool = False,
) -> Session:
    """Ask the launcher for a clone; with *ahead*, one for later, which carries out the early operations and waits for the others, if any.

    *made*: groups that the launcher makes for it.
    """
    into = wire.NO_SLOT
    if group is not None and group.init_fd is not None:
        group.own(ids.root)
        fds.append(group.init_fd)
        into = len(fds)
    maps = ids.maps
    request = codec.CreateRequest(
        clone_flags=compiled.ops.clone_flags,
        flags=(wire.CREATE_DENY_SETGROUPS if maps.deny_setgroups else wire.CREATE_MAP_HELPERS if maps.helpers else 0)
        | (wire.CREATE_CAN_WAIT if ahead else 0)
        | (wire.CREATE_PREPARED if ahead and not compiled.is_complete else 0),
        uid=ids.init_uid,
        gid=ids.init_gid,
        uid_map=codec.encode_maps(maps.uid_map),
        gid_map=codec.encode_maps(maps.gid_map),
        joins=tuple(joins),
        cleanup=() if made is None else made.groups,
        groups=b"" if made is None else made.steps,
        host_ops=compiled.root_host_ops if ahead else compiled.all_host_ops,
        init_ops=compiled.early if ahead else compiled.all_init_ops,
        exec=b"",
        into_cgroup=into,
    )
    session = Session(compiled)
    session.begin(codec.encode_create(request), fds)
    return session
