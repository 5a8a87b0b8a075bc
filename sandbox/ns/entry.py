"""Running programs inside namespaces that exist already, and making new ones: always in a child of the launcher.

This package must not know the launcher; whoever does (the facade) binds a `Spawner` when it is asked for `sandbox.ns`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from sys import modules
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

from attrs import field, frozen

from sandbox import _plan as plan
from sandbox._sys import constants as sys
from sandbox._sys import features
from sandbox._types import Argument, to_argv
from sandbox.errors import ClosedError, SetupError, UnsupportedError, UsageError
from sandbox.ns._pieces import Join, Pieces, join_pieces, merge
from sandbox.ns.namespace import FLAGS, Namespace

if TYPE_CHECKING:
    from sandbox.process import Result

__all__ = ["Entered", "Spawner", "bind_spawner", "carry_out", "create", "create_plan", "enter"]

N = TypeVar("N", bound=Namespace)
_CHILDREN: Final = {"time": "time_for_children"}  # unshare(CLONE_NEWTIME) moves children only


class Spawner(Protocol):
    """What the facade provides."""

    def helper(self, planned: plan.Plan) -> AbstractContextManager[int]:
        """Start a process that has carried out *planned* and then waits; its pid in our pid namespace. It ends with the block.

        Raises: SetupError, as for any plan.
        """
        ...

    def run(self, planned: plan.Plan, argv: tuple[bytes, ...], /, **options: Any) -> Result:  # noqa: ANN401 - the facade's words, checked there
        """Run one program in a process set up by *planned*, with the options of `Container.exec`, and wait for it."""
        ...


_make_spawner: Callable[[], Spawner] | None = None


def bind_spawner(make: Callable[[], Spawner]) -> None:
    """Say who starts processes, once one is needed; the facade does."""
    global _make_spawner
    _make_spawner = make


def _bound() -> Spawner:
    if _make_spawner is None:
        # ``from sandbox.ns import Namespace`` loads this package past the face. Asked for its `ns`, the face binds.
        modules["sandbox"].__getattr__("ns")
    if _make_spawner is None:
        raise ClosedError("nothing starts processes: the package `sandbox` has bound no spawner")
    return _make_spawner()


def carry_out(planned: plan.Plan) -> None:
    """Have a helper carry out *planned*, and end it. Raises: SetupError."""
    with _bound().helper(planned):
        pass


@frozen
class Entered:
    """Namespaces in which programs can be run; they stay the caller's, and must be open when `run` is called."""

    namespaces: tuple[Namespace, ...] = field(converter=tuple[Namespace, ...])

    def run(self, argv: Sequence[Argument], **options: Any) -> Result:  # noqa: ANN401 - as above
        """Run *argv* inside, with the options of `Container.exec`, and wait for it.

        Of the kinds that were not entered, it has the caller's namespaces (files and network of the host, and no walls: this
        runs programs that you trust), and always a pid namespace of its own, in which nothing that it started outlives it. It
        lies inside the one that was entered; a `Container` forbids that, its own way in is `Container.exec`.

        Raises: UsageError for a bad argv; SetupError: EPERM without rights over a namespace; ClosedError; as `Container.exec`.
        """
        return _bound().run(self.plan(), to_argv(argv), **options)

    def plan(self) -> plan.Plan:
        """The plan of it. Raises: ClosedError when one of the namespaces has been closed."""
        joined = tuple(join_pieces(item.kind, Join(item)) for item in self.namespaces)
        return merge((*joined, Pieces(clone_flags=sys.CLONE_NEWPID)), privileged=features.privileged()).to_plan()


def enter(*namespaces: Namespace) -> Entered:
    """Get a handle that runs programs inside all of *namespaces* at once, one of each kind at most.

    Without privileges, the user namespace that owns the others must be among them: only it gives the rights.
    Raises: UsageError.
    """
    if not namespaces:
        raise UsageError("enter: give at least one namespace")
    if strangers := [item for item in namespaces if not isinstance(item, Namespace)]:
        raise UsageError(f"enter: {strangers[0]!r} is not a Namespace; open one by Namespace.of(pid, 'net'), say")
    kinds = [item.kind for item in namespaces]
    twice = sorted({kind for kind in kinds if kinds.count(kind) > 1})
    if twice:
        raise UsageError(f"enter: two namespaces of kind {', '.join(twice)}; a process is in one of each kind")
    return Entered(namespaces)


def create_plan(kind: str) -> plan.Plan:
    """The plan of a helper that makes a new namespace of *kind*. Pure.

    Raises: UsageError for kinds that cannot exist without a process, or are none.
    """
    if kind == "user":
        raise UsageError("create: a user namespace is made with its id maps; start a Container, and take its namespace('user')")
    if kind == "pid":
        raise UsageError("create: a pid namespace ends with its first process; start a Container, and take its namespace('pid')")
    if kind not in FLAGS:
        raise UsageError(f"create: {kind!r} is none of {', '.join(FLAGS)}")
    after: dict[str, plan.Op] = {"net": plan.LoopbackUp(), "mount": plan.MakePrivate()}
    ops = (plan.Unshare(FLAGS[kind]), *((after[kind],) if kind in after else ()))
    return plan.Plan(clone_flags=sys.CLONE_NEWPID, init_ops=ops)


def create(kind: str, adopt: Callable[[int], N]) -> N:
    """Make a new namespace of *kind*; *adopt* takes the descriptor over, at once: before an interrupt amid the helper's end could lose it.

    Raises: as `create_plan`; UnsupportedError without privileges; SetupError.
    """
    planned = create_plan(kind)
    if not features.privileged():
        raise UnsupportedError(
            f"a {kind} namespace on its own would belong to nobody but the host's root",
            feature="CAP_SYS_ADMIN",
            remedy="run as root, or start a Container",
        )
    with _bound().helper(planned) as pid:
        path = f"/proc/{pid}/ns/{_CHILDREN.get(kind, 'mnt' if kind == 'mount' else kind)}"
        try:
            fd = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise SetupError(f"open {path}", error.errno or 0) from error
        return adopt(fd)
