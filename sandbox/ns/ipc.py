"""IPC namespaces: System V shared memory, semaphores and queues, and POSIX message queues."""

from __future__ import annotations

from attrs import frozen

from sandbox._sys.constants import CLONE_NEWIPC
from sandbox.ns._pieces import Host, Join, Pieces, join_pieces

__all__ = ["Ipc", "pieces"]


@frozen
class Ipc:
    """An IPC namespace of its own; what programs leave in it ends with it."""


def pieces(spec: Ipc | Host | Join) -> Pieces:
    """Pieces of a plan for *spec*."""
    if isinstance(spec, Join):
        return join_pieces("ipc", spec)
    return Pieces() if isinstance(spec, Host) else Pieces(unshare_flags=CLONE_NEWIPC)
