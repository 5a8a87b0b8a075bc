"""Mount namespaces: what the container's programs see as the file tree is theirs alone."""

from __future__ import annotations

from attrs import frozen

from sandbox import _plan as plan
from sandbox._sys.constants import CLONE_NEWNS
from sandbox.errors import UnsupportedError
from sandbox.ns._pieces import Host, Join, Pieces, join_pieces

__all__ = ["Mount", "pieces"]


@frozen
class Mount:
    """A copy of the caller's mount namespace. Mounts made in it stay in it, and none made outside later arrives."""


def pieces(spec: Mount | Host | Join) -> Pieces:
    """Pieces of a plan for *spec*.

    Raises: UnsupportedError for `Host`: a container's root would be mounted over the host's.
    """
    if isinstance(spec, Host):
        raise UnsupportedError(
            "a container cannot share the host's mount namespace", feature="mount: Host", remedy="bind what it needs with mounts=[Bind(...)]"
        )
    if isinstance(spec, Join):
        return join_pieces("mount", spec)
    # In a new user namespace the kernel makes the copy's mounts slaves (mount_namespaces(7)); MakePrivate cuts the rest.
    return Pieces(unshare_flags=CLONE_NEWNS, early_ops=(plan.MakePrivate(),))
