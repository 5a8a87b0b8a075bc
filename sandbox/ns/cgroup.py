"""Cgroup namespaces: /proc/self/cgroup and mounts of cgroup2 begin where the container's init is, not at the host's root."""

from __future__ import annotations

from attrs import frozen

from sandbox._sys.constants import CLONE_NEWCGROUP
from sandbox.ns._pieces import Host, Join, Pieces, join_pieces

__all__ = ["Cgroup", "pieces"]


@frozen
class Cgroup:
    """A cgroup namespace of its own, rooted in the groups that init is in when it is made: a program in a group beside init's
    sees ``/../payload/exec-1``, and nothing of what lies above.
    """


def pieces(spec: Cgroup | Host | Join) -> Pieces:
    """Pieces of a plan for *spec*."""
    if isinstance(spec, Join):
        return join_pieces("cgroup", spec)
    return Pieces() if isinstance(spec, Host) else Pieces(unshare_flags=CLONE_NEWCGROUP)
