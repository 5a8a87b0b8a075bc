"""Words for a container that could not be set up, made where its plan is known."""

from __future__ import annotations

import errno
from typing import Final

from sandbox import _plan as plan
from sandbox._compile import Compiled
from sandbox._launch import codec, wire
from sandbox.errors import ProtocolError, SandboxError, SetupError
from sandbox.fs import no_overlay

_HINTS: Final = {
    (wire.Phase.CLONE, errno.EPERM): "user namespaces are forbidden here; `sandbox doctor` says by what",
    (wire.Phase.CLONE, errno.ENOSPC): "user.max_user_namespaces or a nesting limit is reached; raise the sysctl",
    (wire.Phase.CLONE, errno.EUSERS): "user namespaces are nested too deeply (32)",
    (wire.Phase.CLONE, errno.EAGAIN): "a limit on processes is reached (RLIMIT_NPROC, pids.max, kernel.pid_max)",
    (wire.Phase.CLONE, errno.ENOSYS): "clone3 with CLONE_INTO_CGROUP is missing, and nothing else puts init into a group of cgroup v2",
    (wire.Phase.MAPS, errno.EPERM): "the ids are not this user's; check /etc/subuid and /etc/subgid, or run as root",
    (wire.Phase.MAPS, errno.ENOENT): "newuidmap and newgidmap are missing; install the package uidmap",
}


def setup_error(failed: codec.Failed, compiled: Compiled, *, host_ops_before: int) -> SandboxError:
    """What to raise for *failed*, of a container whose host operations before the ones of *compiled* were so many."""
    try:
        phase = wire.Phase(failed.phase)
    except ValueError:
        return ProtocolError(f"init reports a failure in the unknown phase {failed.phase}")
    ops = {wire.Phase.HOST: compiled.ops.host_ops, wire.Phase.INIT: compiled.ops.init_ops}.get(phase)
    words = {
        wire.Phase.CLONE: f"join namespace {failed.index} before the clone" if failed.index else "clone the container's init into new namespaces",
        wire.Phase.MAPS: "write the id maps of the user namespace",
        wire.Phase.EXEC: "start the program",
        wire.Phase.REQUEST: "read the request (a bug of ours)",
        wire.Phase.GROUPS: "make the control groups ahead",
    }.get(phase, "set up")
    if ops is not None:
        index = failed.index + (host_ops_before if phase is wire.Phase.HOST else 0)
        if index < len(ops) and _is_overlay(ops[index]) and failed.errno in (errno.EPERM, errno.ENODEV):
            return no_overlay()
        words = ops[index].describe() if index < len(ops) else f"{phase.name.lower()} operation {index}"
    hint = _HINTS.get((phase, failed.errno), "")
    if words.startswith(plan.Unshare.__name__) and failed.errno == errno.ENOSPC:
        hint = "user.max_mnt_namespaces, max_net_namespaces or another limit of that kind is reached; raise the sysctl"
    return SetupError(words, failed.errno, step=phase.name.lower(), hint=hint)


def _is_overlay(op: plan.Op) -> bool:
    return isinstance(op, plan.NewFs) and op.fstype == "overlay"
