"""Network namespaces: own links, addresses, routes, ports, abstract sockets; and keeping one by name, as `ip netns` does."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from typing import Final

from attrs import frozen

from sandbox import _plan as plan
from sandbox._sys import calls, features
from sandbox._sys import constants as sys
from sandbox._sys.fds import Fd
from sandbox.errors import UnsupportedError, UsageError
from sandbox.ns import entry
from sandbox.ns._pieces import Host, Join, Pieces, join_pieces
from sandbox.ns.namespace import NETNS, Namespace, named_path

__all__ = ["Net", "forget", "forget_plan", "keep", "keep_plan", "pieces"]

_DIRECTORY: Final = sys.O_PATH | sys.O_DIRECTORY | sys.O_NOFOLLOW


@frozen
class Net:
    """A network namespace of its own, with ``lo`` up unless *loopback* is False, and nothing else."""

    loopback: bool = True


def pieces(spec: Net | Host | Join) -> Pieces:
    """Pieces of a plan for *spec*. A joined namespace is left as it is."""
    if isinstance(spec, Join):
        return join_pieces("net", spec)
    if isinstance(spec, Host):
        return Pieces()
    return Pieces(unshare_flags=sys.CLONE_NEWNET, early_ops=(plan.LoopbackUp(),) if spec.loopback else ())


# --- names that last, where iproute2 keeps them


def keep_plan(name: str, fd: int, *, is_mount: bool) -> plan.Plan:
    """The plan that keeps the network namespace behind *fd* as *name*, once its file is there. Pure.

    *is_mount*: /run/netns is a mount point already. If not it becomes one, with what is mounted below it; either way it is
    made shared, as iproute2 does: a name that is removed here is then gone in all copies of the mount namespace, too.
    """
    folder = plan.Open("netns", NETNS, _DIRECTORY)
    if is_mount:
        share: tuple[plan.Op, ...] = (folder, plan.SetAttr("netns", propagation=sys.MS_SHARED))
    else:
        copy, shared = plan.CloneTree("shared", src="netns"), plan.SetAttr("shared", propagation=sys.MS_SHARED)
        share = (folder, copy, shared, plan.Attach("shared", NETNS))
    bind = plan.BindMount("kept", named_path("net", name))
    return plan.Plan(clone_flags=sys.CLONE_NEWPID, host_ops=(*share, bind), fds={"kept": fd})


def forget_plan(name: str) -> plan.Plan:
    """The plan that removes *name*. A leftover file that nothing is mounted on is removed as well. Pure."""
    path = named_path("net", name)
    return plan.Plan(clone_flags=sys.CLONE_NEWPID, host_ops=(plan.Unmount(path, optional=True), plan.Unlink(path)))


def keep(namespace: Namespace, name: str) -> None:
    """Keep a network namespace as *name*, beyond the end of this process, where ``ip netns exec NAME`` finds it.

    Needs: root.
    Raises: UsageError for another kind, a bad name, or a name that is taken; UnsupportedError without root; SetupError.
    """
    path = named_path(namespace.kind, name)
    _need_root("keep")
    fd = namespace.fileno()
    with _locked_folder():
        try:
            os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL, 0))
        except FileExistsError:
            raise UsageError(f"name: {name!r} is taken; forget({name!r}) removes it") from None
        try:
            entry.carry_out(keep_plan(name, fd, is_mount=_is_mount(NETNS)))
        except BaseException:
            os.unlink(path)
            raise


def forget(name: str) -> None:
    """Remove the name of a network namespace; the namespace lives on while there are processes or handles in it.

    Needs: root.
    Raises: UsageError for a name that is not there; UnsupportedError without root; SetupError.
    """
    path = named_path("net", name)
    _need_root("forget")
    if not os.path.lexists(path):
        raise UsageError(f"name: no network namespace is kept as {name!r}")
    with _locked_folder():
        entry.carry_out(forget_plan(name))


@contextmanager
def _locked_folder() -> Generator[None]:
    """Make /run/netns, and hold the lock that iproute2 takes as well (netns_add, since 5.9) while it becomes a mount point."""
    from fcntl import LOCK_EX, flock

    os.makedirs(NETNS, 0o755, exist_ok=True)
    with Fd.open(NETNS, os.O_RDONLY | os.O_DIRECTORY) as folder:
        flock(folder.fileno(), LOCK_EX)
        yield


def _is_mount(path: str) -> bool:
    found = calls.statx(path)
    if not found.attributes_mask & sys.STATX_ATTR_MOUNT_ROOT:
        raise UnsupportedError("cannot tell whether /run/netns is a mount point", feature="statx", remedy="use Linux 5.8 or later")
    return bool(found.attributes & sys.STATX_ATTR_MOUNT_ROOT)


def _need_root(what: str) -> None:
    if not features.privileged():
        raise UnsupportedError(f"{what}: names are mounts in the host's tree", feature="CAP_SYS_ADMIN", remedy="run as root, or hold the handle")
