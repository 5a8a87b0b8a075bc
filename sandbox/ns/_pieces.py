"""What each kind of namespace hands up: its pieces of a plan; and the words for where a namespace comes from."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from attrs import field, frozen

from sandbox import _plan as plan
from sandbox._sys import constants as sys
from sandbox.errors import UsageError
from sandbox.ns.namespace import FLAGS, Namespace

__all__ = ["Host", "Join", "Pieces", "join_pieces", "merge"]

# As root we have every right over the others until we enter their user namespace, so that comes last; the mount namespace
# before it, since it changes what paths mean.
_ORDER: Final = ("cgroup", "ipc", "uts", "net", "time", "pid", "mount", "user")


@frozen
class Host:
    """Stay in the namespace of the embedding process."""


@frozen
class Join:
    """Share *namespace* with whoever lives in it; it must stay open until the container has been made."""

    namespace: Namespace

    @classmethod
    def of(cls, pid: int, kind: str) -> Join:
        """Share the namespace of *kind* that process *pid* is in. Raises: as `Namespace.of`."""
        return cls(Namespace.of(pid, kind))


@frozen
class Pieces:
    """Pieces of a `Plan`: flags of the clone (user, pid), flags of init's one `Unshare` (the others), joins, and what init does then.

    *early_ops* follow the `Unshare` directly; *late_ops* need the container's own procfs (in slot `PROC`).
    """

    clone_flags: int = 0
    unshare_flags: int = 0
    uid_map: tuple[plan.IdMap, ...] = ()
    gid_map: tuple[plan.IdMap, ...] = ()
    deny_setgroups: bool = False
    map_helpers: bool = False
    joins: tuple[tuple[plan.Slot, int], ...] = ()
    early_ops: tuple[plan.Op, ...] = ()
    late_ops: tuple[plan.Op, ...] = ()
    fds: Mapping[plan.Slot, int] = field(default=MappingProxyType({}), eq=False)

    @property
    def init_ops(self) -> tuple[plan.Op, ...]:
        """All of it for init: the `Unshare` first."""
        first = (plan.Unshare(self.unshare_flags),) if self.unshare_flags else ()
        return (*first, *self.early_ops, *self.late_ops)

    def to_plan(self) -> plan.Plan:
        """A plan of its own: a process in these namespaces, with the caller's view of files."""
        return plan.Plan(
            clone_flags=self.clone_flags,
            uid_map=self.uid_map,
            gid_map=self.gid_map,
            deny_setgroups=self.deny_setgroups,
            joins=self.joins,
            init_ops=self.init_ops,
            fds=dict(self.fds),
        )


def slot_of(kind: str) -> plan.Slot:
    """The slot that the joined namespace of *kind* is handed in by."""
    return f"ns.{kind}"


def join_pieces(kind: str, join: Join) -> Pieces:
    """Pieces for sharing *join*'s namespace as *kind*.

    Raises: UsageError when it is a namespace of another kind; ClosedError when it has been closed.
    """
    if join.namespace.kind != kind:
        raise UsageError(f"{kind}: {join.namespace!r} is a namespace of kind {join.namespace.kind!r}")
    return Pieces(joins=((slot_of(kind), FLAGS[kind]),), fds={slot_of(kind): join.namespace.fileno()})


def merge(pieces: tuple[Pieces, ...], *, privileged: bool) -> Pieces:
    """Put the pieces of all kinds together: one `Unshare`, and joins in an order that works.

    Without privileges only the user namespace gives rights over the others, so it is joined first.
    """
    joins = [join for piece in pieces for join in piece.joins]
    rank = {FLAGS[kind]: place for place, kind in enumerate(_ORDER)}
    if not privileged:
        rank[sys.CLONE_NEWUSER] = -1
    clone_flags = unshare_flags = 0
    fds: dict[plan.Slot, int] = {}
    for piece in pieces:
        clone_flags |= piece.clone_flags
        unshare_flags |= piece.unshare_flags
        fds.update(piece.fds)
    return Pieces(
        clone_flags=clone_flags,
        unshare_flags=unshare_flags,
        uid_map=tuple(item for piece in pieces for item in piece.uid_map),
        gid_map=tuple(item for piece in pieces for item in piece.gid_map),
        deny_setgroups=any(piece.deny_setgroups for piece in pieces),
        map_helpers=any(piece.map_helpers for piece in pieces),
        joins=tuple(sorted(joins, key=lambda join: rank[join[1]])),
        early_ops=tuple(op for piece in pieces for op in piece.early_ops),
        late_ops=tuple(op for piece in pieces for op in piece.late_ops),
        fds=fds,
    )
