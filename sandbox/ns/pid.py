"""PID namespaces: the container's processes see and signal one another only, and all end with its init."""

from __future__ import annotations

from attrs import evolve, frozen

from sandbox._sys.constants import CLONE_NEWPID
from sandbox.errors import UnsupportedError
from sandbox.ns._pieces import Host, Join, Pieces, join_pieces

__all__ = ["Pid", "pieces"]


@frozen
class Pid:
    """A PID namespace of its own; init is its PID 1."""


def pieces(spec: Pid | Host | Join) -> Pieces:
    """Pieces of a plan for *spec*.

    There is always a new namespace, because init ends what programs leave behind by kill(-1), which must not reach
    anybody else. With `Join` it lies inside the joined one: its processes are seen (and signalled) from there, under numbers
    of there, but see only themselves.

    Raises: UnsupportedError for `Host`, for the same reason.
    """
    own = Pieces(clone_flags=CLONE_NEWPID)
    if isinstance(spec, Host):
        raise UnsupportedError(
            "a container cannot live in the host's pid namespace: nothing could be ended for sure",
            feature="pid: Host",
            remedy="bind the host's /proc read-only if its processes are to be seen",
        )
    return evolve(join_pieces("pid", spec), clone_flags=CLONE_NEWPID) if isinstance(spec, Join) else own
