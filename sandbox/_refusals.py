"""Words for a set-up that the kernel refused: what failed, by whom, and what would help; made where the plan is known."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import Final

from sandbox import _plan as plan
from sandbox._launch import codec, wire
from sandbox._sys import features, outer
from sandbox._sys.constants import CLONE_NEWNET, CLONE_NEWPID, CLONE_NEWUSER
from sandbox.cg.files import NO_MORE
from sandbox.errors import ProtocolError, SandboxError, SetupError, UnsupportedError
from sandbox.fs import no_overlay
from sandbox.ns.namespace import FLAGS

_HINTS: Final = {
    (wire.Phase.CLONE, errno.EPERM): "user namespaces are forbidden here; `sandbox doctor` says by what (else: by a chroot; use pivot_root)",
    (wire.Phase.CLONE, errno.ENOSPC): "user.max_user_namespaces is reached, or in a namespace around us (bwrap --disable-userns); raise the sysctl",
    (wire.Phase.CLONE, errno.EUSERS): "user namespaces are nested too deeply (32)",
    (wire.Phase.CLONE, errno.EAGAIN): "a limit on processes is reached (RLIMIT_NPROC, pids.max, kernel.pid_max)",
    (wire.Phase.CLONE, errno.ENOSYS): "clone3 with CLONE_INTO_CGROUP is missing, and nothing else puts init into a group of cgroup v2",
    (wire.Phase.MAPS, errno.EPERM): "the ids are not this user's; check /etc/subuid and /etc/subgid, or run as root",
    (wire.Phase.MAPS, errno.ENOENT): "newuidmap and newgidmap are missing; install the package uidmap",
}
_OF_PIDS: Final = {
    errno.EINVAL: "what runs there gets a pid namespace of its own inside the one that was entered, whose owner must be entered too: "
    "ns.enter(pid.user(), pid); into a container of this library leads Container.exec",
    errno.ENOMEM: "the first process of the pid namespace has ended, and with it the namespace, or memory is short",
}
_NO_MORE_INSIDE: Final = (
    "what runs there gets a pid namespace of its own, and the user namespace that was entered allows no more of them "
    "(user.max_pid_namespaces there); those of this library's containers allow none: into them leads Container.exec"
)
_WORDS: Final = {
    wire.Phase.CLONE: "clone the container's init into new namespaces",
    wire.Phase.MAPS: "write the id maps of the user namespace",
    wire.Phase.EXEC: "start the program",
    wire.Phase.REQUEST: "read the request (a bug of ours)",
    wire.Phase.GROUPS: "make the control groups ahead",
}
_COPYING: Final = {
    errno.ENOSPC: "the directory does not fit into the scratch layer: give scratch=Scratch('1G', copy=True), and inodes= for many small files",
    errno.EACCES: "to copy the directory takes the right to read all of it",
    errno.ELOOP: "the directory is more than 100 levels deep",
    errno.EMFILE: "the directory is deeper than this process may open files (ulimit -Hn)",
}
_UNFIT: Final = (
    "no overlay lies over, or writes to, such a file system: /proc, vfat or an overlay over another one (in a container in a container), say; "
    "copy the directory to ext4, xfs, btrfs or a tmpfs; or have it copied into memory, by scratch='copy'"
)
_WRITING: Final = (plan.MakeDir, plan.MakeTarget, plan.WriteFile, plan.Symlink)
_NO_DIRECTORY: Final = (errno.ENOENT, errno.ENOTDIR, errno.EEXIST, errno.ELOOP)
_FORBIDDEN: Final = (errno.EPERM, errno.EACCES, errno.ENOSPC)


def setup_error(failed: codec.Failed, planned: plan.Plan, host_ops_before: int) -> SandboxError:
    """The error for *failed*; of *planned*'s host operations, *host_ops_before* were carried out by an earlier request."""
    try:
        phase = wire.Phase(failed.phase)
    except ValueError:
        return ProtocolError(f"init reports a failure in the unknown phase {failed.phase}")
    if phase is wire.Phase.CLONE and failed.index:
        return _no_join(failed, planned)
    if phase is wire.Phase.CLONE and (hint := _inside_hint(failed.errno, planned)):
        return SetupError("start a process in the namespaces that were entered", failed.errno, step="clone", hint=hint)
    op = _operation(phase, failed.index, planned, host_ops_before)
    if (known := _unsupported(phase, op, failed.errno)) is not None:
        return known
    words = _WORDS.get(phase, "set up")
    if phase in (wire.Phase.HOST, wire.Phase.INIT):
        words = op.describe() if op is not None else f"{phase.name.lower()} operation {failed.index}"
    return SetupError(words, failed.errno, step=phase.name.lower(), hint=_hint(phase, op, failed.errno))


def _no_join(failed: codec.Failed, planned: plan.Plan) -> SetupError:
    """An existing namespace could not be joined; one of a container's own is not in its plan, and is a network's."""
    kind = planned.joins[failed.index - 1][1] if failed.index <= len(planned.joins) else CLONE_NEWNET
    name = next((name for name, flag in FLAGS.items() if flag == kind), hex(kind))
    hint = ""
    if failed.errno == errno.EPERM:
        hint = "it takes CAP_SYS_ADMIN, also in the user namespace that owns it: run as root"
        hint += ", or enter its user() together with it, if that is yours" if planned.joins and kind != CLONE_NEWUSER else ""
    elif failed.errno == errno.EINVAL and kind in (CLONE_NEWUSER, CLONE_NEWPID):
        hint = "the caller is in it already" if kind == CLONE_NEWUSER else "it does not lie below the caller's own"
    return SetupError(f"join the {name} namespace", failed.errno, step="clone", hint=hint)


def _inside_hint(number: int, planned: plan.Plan) -> str:
    """What keeps a process out of namespaces that it has joined: it gets a pid namespace of its own, below those."""
    kinds = {kind for _, kind in planned.joins}
    if CLONE_NEWPID in kinds and number in _OF_PIDS:
        return _OF_PIDS[number]
    return _NO_MORE_INSIDE if number == errno.ENOSPC and kinds & {CLONE_NEWPID, CLONE_NEWUSER} else ""


def _operation(phase: wire.Phase, index: int, planned: plan.Plan, host_ops_before: int) -> plan.Op | None:
    ops: Sequence[plan.Op] = ()
    if phase is wire.Phase.HOST:
        ops, index = planned.host_ops, index + host_ops_before
    elif phase is wire.Phase.INIT:
        ops = planned.init_ops
    return ops[index] if index < len(ops) else None


def _unsupported(phase: wire.Phase, op: plan.Op | None, number: int) -> UnsupportedError | None:
    """What this host lacks, where that is known."""
    if _is_overlay(op) and number in (errno.EPERM, errno.ENODEV):
        return no_overlay()
    if isinstance(op, plan.NewFs) and op.fstype == "proc" and number == errno.EPERM:
        return _no_procfs()
    # Ubuntu lets everybody clone, but what was cloned has no rights: unshare is the first call that takes one.
    if phase in (wire.Phase.CLONE, wire.Phase.MAPS) or isinstance(op, plan.Unshare):
        return _no_userns() if number in _FORBIDDEN else None
    return None


def _is_overlay(op: plan.Op | None) -> bool:
    return isinstance(op, plan.NewOverlay) or (isinstance(op, plan.NewFs) and op.fstype == "overlay")


def _no_procfs() -> UnsupportedError:
    hidden = outer.hidden_proc()
    shown = f"{', '.join(hidden[:3])}{' and more' if len(hidden) > 3 else ''} {'are' if len(hidden) > 1 else 'is'} hidden in ours" if hidden else ""
    return UnsupportedError(
        f"the kernel refuses a /proc of the container's own: {shown or 'the /proc of this process does not show all of it'}",
        feature="procfs",
        remedy=outer.PROC_REMEDY,
    )


def _no_userns() -> UnsupportedError | None:
    features.userns_obstacle.forget()  # an answer from before may be what has changed
    obstacle = features.userns_obstacle()
    if obstacle is None:
        return None
    return UnsupportedError(f"no user namespace can be used here: {obstacle.reason}", feature="user_namespaces", remedy=obstacle.remedy)


def _hint(phase: wire.Phase, op: plan.Op | None, number: int) -> str:
    if _is_overlay(op) and number == errno.EINVAL:
        return _UNFIT
    if isinstance(op, plan.CopyTree) and number in _COPYING:
        return _COPYING[number]
    if isinstance(op, plan.MakeTarget) and op.path.endswith("/.") and number in _NO_DIRECTORY:
        return "the image's VOLUME or WORKDIR there is a file, or a link that leads nowhere: mount something on it, or give another cwd="
    if isinstance(op, plan.SetAttr) and op.idmap and op.recursive and number == errno.EINVAL:
        return (
            "what is mounted below it cannot be id-mapped (proc, say, or a tmpfs before Linux 6.3): leave that out by Bind(..., recursive=False), "
            "or --mount type=bind,...,bind-recursive=disabled"
        )
    if isinstance(op, _WRITING) and number == errno.ENOSPC:
        return "what the container's root is written to is full: give scratch= more bytes, Scratch(..., inodes=...) more files, or its disk more room"
    if isinstance(op, plan.Unshare) and number == errno.ENOSPC:
        return "user.max_mnt_namespaces, max_net_namespaces or another limit of that kind is reached; raise the sysctl"
    if number == errno.EMFILE:
        return "this process, whose limits its containers have, may not have as many files open as that takes (RLIMIT_NOFILE, ulimit -Hn)"
    if phase in (wire.Phase.HOST, wire.Phase.INIT) or (phase is wire.Phase.CLONE and number != errno.ENOSPC):
        return outer.suspects(number) or _HINTS.get((phase, number), "")
    if phase is wire.Phase.GROUPS:
        return NO_MORE.get(number, "")
    return _HINTS.get((phase, number), "")
