"""What this host offers, as far as a container's plan depends on it: each probe asks once per process."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from functools import lru_cache
from typing import Final

from attrs import evolve

from sandbox import cg, fs
from sandbox._compile import Host
from sandbox._ids import allot, shape
from sandbox._spec import ContainerSpec
from sandbox._sys import features
from sandbox._sys.attributes import tmpfs_user_xattrs
from sandbox.cg import LIMIT_NAMES, Limits, Mode, detect, limits_need_v2
from sandbox.cg import Host as GroupHost
from sandbox.errors import SetupError, UnsupportedError
from sandbox.ns import id_ranges


def host() -> Host:
    """The facts. Privileged: root, with the right to mount here and to map ids, and with ids to map.

    Root of an outer container that has but a few ids is an ordinary user to us: its containers have one id, its own.
    """
    return _host(os.geteuid(), detect(), features.state())


@lru_cache(maxsize=8)
def _host(euid: int, groups: GroupHost, _state: int) -> Host:
    return Host(
        privileged=euid == 0 and features.privileged() and id_ranges().are_any,
        landlock_abi=features.landlock_abi(),
        clone3_exec=groups.mode is Mode.V2 and features.clone_into_cgroup(),
        mount_setattr=features.mount_setattr(),
    )


_done: dict[ContainerSpec, tuple[int, int, GroupHost]] = {}  # what else the answer follows from: features, user, control groups
_MOST_DONE: Final = 256


def is_known_to_do(spec: ContainerSpec) -> bool:
    """Whether all that *spec* asks of this host was found to be there, and no probe has answered otherwise since."""
    known = _done.get(spec)
    return known is not None and known[:2] == (features.state(), os.geteuid()) and known[2] is detect()


def note_that_it_does(spec: ContainerSpec) -> None:
    """Remember that all of it is there."""
    if len(_done) >= _MOST_DONE:
        _done.clear()
    _done[spec] = features.state(), os.geteuid(), detect()


def runs_may_need_v2() -> bool:
    """Whether a run's limits or accounting can be cgroup v2's here."""
    return _may_need_v2(detect())


@lru_cache(maxsize=8)
def _may_need_v2(groups: GroupHost) -> bool:
    found = [groups.find(controller) for controller in ("memory", "pids", "cpu", "cpuacct")]
    return any(hierarchy is not None and hierarchy.version == 2 for hierarchy in found) or groups.mode is Mode.V2


# What is enforced, or not, by itself; swap goes with memory.
LIMITS_APART: Final = (("memory", "swap"), *((name,) for name in LIMIT_NAMES if name not in ("memory", "swap")))


def check_limits(limits: Limits) -> None:
    """Refuse what this host cannot enforce, all at once. Raises: UnsupportedError; UsageError: it names CPUs that are not there."""
    cg.check_limits(limits)
    check_groups(limits)


def check_groups(limits: Limits | None) -> None:
    """Refuse groups of cgroup v2, for *limits* or for none, where nothing can be started in one.

    Raises: UnsupportedError.
    """
    if features.clone_into_cgroup():
        return
    if detect().mode is Mode.V2 or (limits is not None and limits_need_v2(limits)):
        raise UnsupportedError(
            "limits and accounting on cgroup v2 take clone3 with CLONE_INTO_CGROUP, which this host does not offer",
            feature="clone_into_cgroup",
            remedy="boot Linux 5.7 or later; inside another container, its seccomp filter must allow clone3",
        )


def check_time_namespaces() -> None:
    """Refuse clocks of a container's own where the kernel has no time namespaces.

    Raises: UnsupportedError.
    """
    if not features.time_namespace():
        raise UnsupportedError(
            "this kernel has no time namespaces, which time_offsets= takes",
            feature="time_namespace",
            remedy="boot a kernel with CONFIG_TIME_NS=y, or leave time_offsets out",
        )


def check_overlay(*, ask: bool = False) -> None:
    """Refuse what takes an overlay where there is none. To *ask* takes 10 ms, once; else, where nobody has, the mount itself tells.

    Raises: UnsupportedError.
    """
    if not features.overlay() or (features.overlay_in_userns() if ask else features.overlay_in_userns.known()) is False:
        raise fs.no_overlay()


def with_overlay(spec: ContainerSpec, or_degrade: Callable[[Callable[[], object], str], bool]) -> ContainerSpec:
    """The same where there are overlays; else, with ``strict=False``, one that copies its directory.

    Raises: UnsupportedError: with ``strict=True``, or there is nothing to copy it into.
    """
    layer = spec.filesystem.scratch
    if layer is None or layer.disk is not None or not isinstance(spec.filesystem.root, fs.Directory):
        check_overlay()
        return spec
    if or_degrade(lambda: check_overlay(ask=not spec.strict), "overlay (the directory is copied into memory instead)"):
        return spec
    return evolve(spec, filesystem=evolve(spec.filesystem, scratch=evolve(layer, copy=True)))


def lacking(spec: ContainerSpec) -> tuple[str, ...]:
    """Say what a scratch layer in memory cannot do here, for ``c.degraded``."""
    layer = spec.filesystem.scratch
    if layer is None or layer.disk is not None or not spec.filesystem.takes_overlay or tmpfs_user_xattrs():
        return ()
    what = "a directory of the image that has something new in it cannot be removed, nor one that was removed be made again (EIO)"
    return (f"overlay: {what}, for tmpfs has no user attributes before Linux 6.6; scratch=Scratch(disk=...), on ext4 or xfs, has them",)


_mappable: dict[int, bool] = {}
_UNMAPPABLE: Final = (errno.EINVAL, errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS)


def can_map(fd: int) -> bool:
    """Whether the file system behind *fd* can be id-mapped; tried once per file system, by a helper of the launcher."""
    if not features.idmapped_mounts():
        return False
    device = os.fstat(fd).st_dev
    known = _mappable.get(device)
    if known is None:
        known = _mappable[device] = _try_to_map(fd)
    return known


def _try_to_map(fd: int) -> bool:
    from sandbox import _plan as plan
    from sandbox._spawner import Helpers
    from sandbox._sys.constants import CLONE_NEWPID, CLONE_NEWUSER

    ids = allot(shape(privileged=True, uid=0))
    planned = plan.Plan(
        clone_flags=CLONE_NEWUSER | CLONE_NEWPID,
        uid_map=ids.maps.uid_map,
        gid_map=ids.maps.gid_map,
        host_ops=(plan.CloneTree("probe", "source", recursive=False), plan.SetAttr("probe", recursive=False, idmap=True)),
        fds={"source": fd},
    )
    try:
        with Helpers().helper(planned):
            return True
    except SetupError as error:
        if error.step == "host" and error.errno in _UNMAPPABLE:
            return False
        raise
    finally:
        ids.release()
