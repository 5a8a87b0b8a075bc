"""`Namespaces`: which namespaces a container has of each kind; and the pieces of its plan that follow from that."""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from attrs import Factory, frozen

from sandbox.errors import UnsupportedError
from sandbox.ns import cgroup, ipc, mount, net, pid, time, user, uts
from sandbox.ns._pieces import Host, Join, Pieces, merge

__all__ = ["Namespaces", "pieces"]

_PRIVATE_USER: Final = user.User()


@frozen(cache_hash=True)
class Namespaces:
    """One choice for each kind: a namespace of its own, `Host` (the embedding process's), or `Join` (somebody's).

    All are its own by default, but for time: a time namespace hides nothing, it only shifts clocks.
    """

    mount: mount.Mount | Join = Factory(mount.Mount)
    pid: pid.Pid | Join = Factory(pid.Pid)
    net: net.Net | Host | Join = Factory(net.Net)
    uts: uts.Uts | Host | Join = Factory(uts.Uts)
    ipc: ipc.Ipc | Host | Join = Factory(ipc.Ipc)
    user: user.User | Host | Join = _PRIVATE_USER
    cgroup: cgroup.Cgroup | Host | Join = Factory(cgroup.Cgroup)
    time: time.Time | Host | Join = Factory(Host)


def pieces(spec: Namespaces, *, privileged: bool) -> Pieces:
    """The pieces of all kinds, put together. Pure, and remembered where no descriptor is involved.

    Raises: UnsupportedError for what cannot be had without privileges; UsageError for a `Join` of the wrong kind.
    """
    choices = (spec.mount, spec.pid, spec.net, spec.uts, spec.ipc, spec.user, spec.cgroup, spec.time)
    joined = any(isinstance(choice, Join) for choice in choices)
    if not privileged:
        _check_rights(spec, joined=joined)
    return _merged(spec, privileged) if joined else _remembered(spec, privileged)


def _check_rights(spec: Namespaces, *, joined: bool) -> None:
    if isinstance(spec.user, Host):
        raise UnsupportedError(
            "namespaces cannot be made in the host's user namespace", feature="CAP_SYS_ADMIN", remedy="run as root, or take a user namespace"
        )
    if joined and not isinstance(spec.user, Join):
        raise UnsupportedError(
            "another container's namespaces belong to its user namespace",
            feature="CAP_SYS_ADMIN",
            remedy="run as root, or share that container's user namespace too",
        )


def _merged(spec: Namespaces, privileged: bool) -> Pieces:
    parts = (
        user.pieces(spec.user),
        pid.pieces(spec.pid),
        mount.pieces(spec.mount),
        uts.pieces(spec.uts),
        net.pieces(spec.net),
        ipc.pieces(spec.ipc),
        cgroup.pieces(spec.cgroup),
        time.pieces(spec.time),
    )
    return merge(parts, privileged=privileged)


_remembered = lru_cache(maxsize=128)(_merged)
