"""From a container's spec to the bytes of its plan: joins what ns, fs and sec hand up. Pure, and cached by spec."""

from __future__ import annotations

import os
import struct
from collections.abc import Hashable
from functools import lru_cache
from typing import Final

from attrs import evolve, frozen

from sandbox import _plan as plan
from sandbox import ns, sec
from sandbox._classic import without_mount_setattr
from sandbox._launch import codec
from sandbox._spec import ContainerSpec
from sandbox._sys import constants as sys
from sandbox.fs import Bind, FsPlan, Volume

PROC: Final = f"@{plan.ROLE_PROC}"
_PATH_DIR: Final = sys.O_PATH | sys.O_DIRECTORY
_INSIDE: Final = sys.RESOLVE_IN_ROOT | sys.RESOLVE_NO_MAGICLINKS


@frozen(cache_hash=True)
class Host:
    """What of this host the plan depends on; probed once per process."""

    privileged: bool
    landlock_abi: int
    clone3_exec: bool  # execs join their cgroup by CLONE_INTO_CGROUP
    mount_setattr: bool


@frozen(eq=False)
class Compiled:
    """A plan in bytes: operations with their counts, and the names of the slots that the caller fills, in order.

    *early* and *late* are init's operations before and after *host_ops*; *early* takes nothing from outside but the root directory, so
    containers with equal bytes there, and the same directory, can be prepared for one another.
    """

    ops: plan.Plan
    root_host_ops: bytes
    early: bytes
    host_ops: bytes
    late: bytes
    all_host_ops: bytes
    all_init_ops: bytes
    names: tuple[str, ...]
    is_complete: bool  # there is nothing late
    may_wait: bool  # after the early ones init has let go of the host's tree, so that it keeps nothing busy there


def setup_ops(spec: ContainerSpec, host: Host, fsplan: FsPlan, file_targets: frozenset[str]) -> tuple[tuple[plan.Op, ...], tuple[plan.Op, ...]]:
    """What init carries out, in order, early and late: namespaces, names, file systems, and last the walls that forbid all that."""
    spaces = ns.pieces(spec.namespaces, privileged=host.privileged)
    known = spec.resolver
    names = fsplan.names(spec.hostname, hosts=known.hosts, nameservers=known.nameservers, search=known.search, options=known.options)
    early, late = fsplan.early_ops(names), fsplan.late_ops(names)
    first = (plan.Unshare(spaces.unshare_flags), *(op for op in spaces.early_ops if op != plan.MakePrivate()))  # fs begins with that
    limits, walls = _walls(spec, host, file_targets)
    if not early:
        return first, (*late, *spaces.late_ops, *limits, *walls)
    # What needs the container's procfs is done once that is there, and before new namespaces are forbidden.
    early = (*first, *early, *spaces.late_ops, *limits)
    return (early, (*late, *walls)) if late else ((*early, *walls), ())


def _walls(spec: ContainerSpec, host: Host, file_targets: frozenset[str]) -> tuple[tuple[plan.Op, ...], tuple[plan.Op, ...]]:
    """The walls that stand while there is still something to mount, and those that forbid it."""
    opens: list[plan.Op] = [plan.Open(f"wall.{path}", f"/{path}", _PATH_DIR) for path in ("", "proc", "dev")]
    writable: list[str] = []
    files: list[str] = []
    if spec.filesystem.mqueue or "/dev/mqueue" in spec.filesystem.given:
        # mq_open(2) goes by the kernel's own mount of it, which lies below no root of ours
        opens.append(plan.Open("wall.mqueue", "/dev/mqueue", _PATH_DIR))
        writable.append("wall.mqueue")
    if spec.filesystem.scratch is not None:
        writable.append("wall.")
    else:
        opens.append(plan.Open("wall.shm", "/dev/shm", _PATH_DIR))  # noqa: S108 - a path inside
        writable.append("wall.shm")
        for number, mount in enumerate(spec.filesystem.mounts):
            if isinstance(mount, (Bind, Volume)) and mount.read_only:
                continue
            slot = f"wall.{number}"
            opens.append(plan.Open(slot, mount.target, sys.O_PATH))
            is_file = isinstance(mount, Bind) and mount.target in file_targets
            (files if is_file else writable).append(slot)
        for number, path in enumerate(spec.filesystem.writable_places):
            opens.append(plan.Open(f"wall.place{number}", path, _PATH_DIR, resolve=_INSIDE))
            writable.append(f"wall.place{number}")
        own = _own_files(spec)  # which init writes anew when networks come and go; the mount that programs see stays read-only
        opens += [plan.Open(f"wall.{path}", path, sys.O_PATH | sys.O_NOFOLLOW, resolve=_INSIDE) for path in own]
        files += [f"wall.{path}" for path in own]
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
        traceless=spec.filesystem.traceless,
    )
    before = tuple(op for op in walls if not _forbids_mounting(op))
    after = tuple(op for op in walls if _forbids_mounting(op))
    return before, (*opens, *after) if any(isinstance(op, plan.Landlock) for op in after) else after


def _own_files(spec: ContainerSpec) -> list[str]:
    taken = {mount.target for mount in spec.filesystem.mounts}
    return [] if "/etc" in taken else [path for path in ("/etc/hosts", "/etc/resolv.conf") if path not in taken]


def _forbids_mounting(op: plan.Op) -> bool:
    # fsmount and open_tree make a mount namespace each, without a name, which counts (alloc_mnt_ns in the kernel).
    return isinstance(op, (plan.Landlock, plan.Seccomp)) or (isinstance(op, plan.WriteProc) and op.path == "sys/user/max_mnt_namespaces")


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
    early, late = setup_ops(spec, host, fsplan, files)
    root_host, mount_host = fsplan.root_host_ops, fsplan.host_ops
    if not host.mount_setattr:
        root_host, early, mount_host, late = without_mount_setattr(root_host, early, mount_host, late)
    slots = codec.SlotTable(names)
    uncounted.value = None  # type: ignore[assignment]  # the cache keeps its key: not this plan's descriptors with it
    before, first, host_ops, second = (codec.encode_ops(ops, slots) for ops in (root_host, early, mount_host, late))
    all_host = (*root_host, *mount_host)
    spaces = ns.pieces(spec.namespaces, privileged=host.privileged)
    return Compiled(
        ops=plan.Plan(clone_flags=spaces.clone_flags, host_ops=all_host, init_ops=(*early, *late)),
        root_host_ops=_counted(root_host, before),
        early=_counted(early, first),
        host_ops=_counted(mount_host, host_ops),
        late=_counted(late, second),
        all_host_ops=_counted(all_host, before + host_ops),
        all_init_ops=_counted((*early, *late), first + second),
        names=names,
        is_complete=not late and not mount_host,
        # A copy is as old as the container, and nobody would see that the directory has changed since.
        may_wait=any(isinstance(op, plan.Pivot) for op in early) and not any(isinstance(op, plan.CopyTree) for op in early),
    )


def helper_plan(planned: plan.Plan, names: tuple[str, ...], *, mount_setattr: bool = True) -> Compiled:
    """A plan of somebody else's in bytes, for a helper process; *names* are the slots of the descriptors that it is given."""
    if not mount_setattr:
        host, init = without_mount_setattr(planned.host_ops, planned.init_ops)
        planned = evolve(planned, host_ops=host, init_ops=init)
    slots = codec.SlotTable(names)
    host_ops, init_ops = (_counted(tuple(ops), codec.encode_ops(ops, slots)) for ops in (planned.host_ops, planned.init_ops))
    nothing = _counted((), b"")
    return Compiled(planned, host_ops, init_ops, nothing, nothing, host_ops, init_ops, names, is_complete=True, may_wait=False)


def _counted(ops: tuple[plan.Op, ...], encoded: bytes) -> bytes:
    return struct.pack("<I", len(ops)) + encoded
