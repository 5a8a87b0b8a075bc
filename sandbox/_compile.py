"""From a container's spec to the bytes of its plan: joins what ns, fs and sec hand up. Pure, and cached by spec."""

from __future__ import annotations

import os
import struct
from collections.abc import Hashable
from functools import lru_cache
from typing import Final

from attrs import frozen

from sandbox import _plan as plan
from sandbox import sec
from sandbox._launch import codec
from sandbox._spec import ContainerSpec
from sandbox._sys import constants as sys
from sandbox.fs import Bind, FsPlan, Volume

PROC: Final = f"@{plan.ROLE_PROC}"
_UNSHARED: Final = {"cgroup": sys.CLONE_NEWCGROUP, "ipc": sys.CLONE_NEWIPC, "net": sys.CLONE_NEWNET, "uts": sys.CLONE_NEWUTS}
CLONED: Final = {"user": sys.CLONE_NEWUSER, "pid": sys.CLONE_NEWPID}
KINDS: Final = frozenset((*_UNSHARED, *CLONED, "mount", "time"))
_PATH_DIR: Final = sys.O_PATH | sys.O_DIRECTORY


@frozen(cache_hash=True)
class Host:
    """What of this host the plan depends on; probed once per process."""

    privileged: bool
    landlock_abi: int
    clone3_exec: bool  # execs join their cgroup by CLONE_INTO_CGROUP


@frozen(eq=False)
class Compiled:
    """A plan in bytes: operations with their counts, and the names of the slots that the caller fills, in order."""

    ops: plan.Plan
    host_ops: bytes
    init_ops: bytes
    names: tuple[str, ...]


def setup_ops(spec: ContainerSpec, host: Host, fsplan: FsPlan, file_targets: frozenset[str]) -> tuple[plan.Op, ...]:
    """What init carries out, in order: namespaces, names, file systems, and last the walls that forbid all that."""
    ready = ("net",) if spec.joins_net or spare_net(spec, host) else ()
    private = [kind for kind in _UNSHARED if kind not in (*spec.share, *ready)]
    flags = sys.CLONE_NEWNS
    for kind in private:
        flags |= _UNSHARED[kind]
    ops: list[plan.Op] = [plan.Unshare(flags)]
    if "uts" in private:
        ops.append(plan.SetHostname(spec.hostname))
        if spec.domainname is not None:
            ops.append(plan.SetDomainname(spec.domainname))
    if "net" in private:
        ops.append(plan.LoopbackUp())
    ops += fsplan.init_ops(fsplan.names(spec.hostname))
    if spec.time_offsets is not None:
        ops += _time_ops(spec.time_offsets)
    ops += _walls(spec, host, file_targets)
    return tuple(ops)


def spare_net(spec: ContainerSpec, host: Host) -> bool:
    """Whether it gets one of the launcher's ready network namespaces. Not where its root shall own it: to mount sysfs, or to
    have capabilities over it.
    """
    return host.privileged and spec.host_view and spec.net is None and not spec.joins_net and not spec.security.wants_capabilities


def _time_ops(offsets: tuple[float, float]) -> tuple[plan.Op, ...]:
    """A time namespace for the programs: the offsets count from the first execve on (time_namespaces(7))."""
    lines = b"".join(
        b"%b %d %d\n" % (clock, int(value // 1), int(value % 1 * 1e9)) for clock, value in zip((b"monotonic", b"boottime"), offsets, strict=True)
    )
    return plan.Unshare(sys.CLONE_NEWTIME), plan.WriteProc("self/timens_offsets", lines, PROC)


def _walls(spec: ContainerSpec, host: Host, file_targets: frozenset[str]) -> tuple[plan.Op, ...]:
    opens: list[plan.Op] = [plan.Open(f"wall.{path}", f"/{path}", _PATH_DIR) for path in ("", "proc", "dev")]
    writable: list[str] = []
    files: list[str] = []
    if spec.filesystem.scratch is not None:
        writable.append("wall.")
    else:
        opens.append(plan.Open("wall.shm", "/dev/shm", _PATH_DIR))  # noqa: S108 - a path inside
        writable.append("wall.shm")
        if spec.filesystem.mqueue:
            opens.append(plan.Open("wall.mqueue", "/dev/mqueue", _PATH_DIR))
            writable.append("wall.mqueue")
        for number, mount in enumerate(spec.filesystem.mounts):
            if isinstance(mount, (Bind, Volume)) and mount.read_only:
                continue
            slot = f"wall.{number}"
            opens.append(plan.Open(slot, mount.target, sys.O_PATH))
            is_file = isinstance(mount, Bind) and mount.target in file_targets
            (files if is_file else writable).append(slot)
    walls = sec.ops(
        spec.security,
        proc=PROC,
        root="wall.",
        landlock_abi=host.landlock_abi,
        writable=writable,
        writable_files=files,
        devices=("wall.dev", "wall.proc"),
        host_view=spec.host_view,
        clone3=host.clone3_exec,
    )
    if not any(isinstance(op, plan.Landlock) for op in walls):
        return walls
    return (*opens, *walls)


def compile_plan(spec: ContainerSpec, host: Host, fsplan: FsPlan) -> Compiled:
    """The plan of *spec* in bytes. Cached: a judge creates the same container again and again."""
    files = frozenset(mount.target for mount in spec.filesystem.mounts if isinstance(mount, Bind) and not os.path.isdir(mount.source))
    return _compiled(spec, host, fsplan.key, tuple(fsplan.fds), files, _Uncounted(fsplan))


class _Uncounted:
    """Carries a plan through the cache without being part of its key: the other parts of the key determine its operations."""

    __slots__ = ("value",)

    def __init__(self, value: FsPlan) -> None:
        self.value = value

    def __hash__(self) -> int:
        return 0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Uncounted)


@lru_cache(maxsize=128)
def _compiled(  # noqa: PLR0917 - a key is by position
    spec: ContainerSpec, host: Host, found: Hashable, names: tuple[str, ...], files: frozenset[str], uncounted: _Uncounted
) -> Compiled:
    del found  # what fs.ops saw on the host: another key for other operations
    fsplan = uncounted.value
    ops = setup_ops(spec, host, fsplan, files)
    slots = codec.SlotTable(names)
    uncounted.value = None  # type: ignore[assignment]  # the cache keeps its key: not this plan's descriptors with it
    return Compiled(
        ops=plan.Plan(clone_flags=clone_flags(), host_ops=fsplan.host_ops, init_ops=ops),
        host_ops=_counted(fsplan.host_ops, slots),
        init_ops=_counted(ops, slots),
        names=names,
    )


def clone_flags() -> int:
    """CLONE_NEW* of the clone of init itself: what cannot be entered later by the process itself."""
    return CLONED["user"] | CLONED["pid"]


def _counted(ops: tuple[plan.Op, ...], slots: codec.SlotTable) -> bytes:
    return struct.pack("<I", len(ops)) + codec.encode_ops(ops, slots)
