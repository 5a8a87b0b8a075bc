"""Bring a container to life: sources, control group, ids, clone; and take all of it back, whatever failed."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable, Generator, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from attrs import evolve

from sandbox import _again, _cleaning, _host, _spares, cg, fs, ns, sec
from sandbox._cleaning import announce
from sandbox._clone import cloned, groups_of
from sandbox._compile import Compiled, Host, compile_plan
from sandbox._ids import Ids, allot, shape
from sandbox._imaged.use import removal, use
from sandbox._launch import driver
from sandbox._leaves import Leaves
from sandbox._session import Session
from sandbox._spares import Attach, Kind, Spare, spares
from sandbox._spec import ContainerSpec
from sandbox._started import Started, make_group
from sandbox._sys.floor import check_floor
from sandbox._undo import Undo
from sandbox._users import Identity, identify, number_of
from sandbox.cg import (
    LEAF_ACCOUNTING,
    Blueprint,
    Group,
    Leaf,
    Limits,
    close_owner,
    limits_need_v2,
)
from sandbox.cg import blueprint as blueprint_of
from sandbox.errors import BrokenError, SetupError, UnsupportedError
from sandbox.ns.time import check_clocks

if TYPE_CHECKING:
    from sandbox._sharing import Joined

_numbers: Final = map("c%010d".__mod__, itertools.count(1))  # names of one length: see groups_of
_NO_LIMITS: Final = Limits()
_NOTHING: Final[Mapping[str, int]] = MappingProxyType({})
_T = TypeVar("_T")
Steps = Generator[Session, None, _T]
at_shut_down: Final[list[Callable[[], object]]] = []  # what others have that ends with the launcher


class Starting:
    """One container on its way: what it needs, what was found ready, and what has to be made."""

    def __init__(self, spec: ContainerSpec, joins: Sequence[tuple[str, Any]], attach: Attach | None) -> None:
        self.spec = spec
        self.attach = attach
        self.spare_used: Spare | None = None
        self.host = _host.host()
        self.name = next(_numbers)
        self.degraded: list[str] = []
        self.shape = self._ids()
        self.joins = joins
        self.kind: Kind | None = None
        self.compiled: Compiled | None = None
        self.is_limited = spec.limits != _NO_LIMITS  # and can be
        self.clones_into_group = False
        self.runs_may_need_v2 = _host.runs_may_need_v2()
        self.leaves = Leaves()
        self.blueprint: Blueprint | None = None  # of the groups that the launcher has made
        self.first: Leaf | None = None  # made ahead
        self.identity: Identity | None = None
        self._root: int | None = None
        self._seen: fs.Seen | None = None  # instead of an open root
        self._has_looked = False  # for a spare

    @property
    def adopts(self) -> bool:
        """Whether the launcher has made the control groups, and removes them."""
        return self.blueprint is not None

    def _ids(self) -> Ids:
        uid = 0 if self.host.privileged else number_of(self.spec.user, self.spec.filesystem.root)
        spec, found = self.spec, shape(privileged=self.host.privileged, uid=uid)
        if not spec.subids or self.host.privileged:  # root's have a range of their own in any case
            return found
        made: list[Ids] = []
        self._or_degrade(lambda: made.append(shape(privileged=False, uid=uid, subids=True)), "subids")
        return made[0] if made else found

    def start(self, stack: Undo) -> Steps[tuple[Session, Ids, Group | None]]:
        """Everything, in order; *stack* takes it back."""
        again = yield from self._by_what_is_known(stack)
        if again is not None:
            return again
        self._check()
        spec = self.spec
        # Cgroup v2: init must be in the group from its clone on, so there is always one, where that is possible.
        self.clones_into_group = self.host.clone3_exec or (self.is_limited and limits_need_v2(spec.limits))
        joined = None
        if self.joins:
            joined = self._join(stack)
            spec = self.spec
        fsplan = open_sources(spec, self.host, self.shape, given=_NOTHING if joined is None else joined.given())
        stack.callback(fsplan.close)
        host = self.host if self.clones_into_group == self.host.clone3_exec else evolve(self.host, clone3_exec=True)
        compiled = compile_plan(spec, host, fsplan)
        fds = [fsplan.fds[slot] for slot in compiled.names]
        if joined is None and compiled.may_wait and self.clones_into_group == self.host.clone3_exec:
            limited = spec.limits if self.is_limited else None
            network = None if self.attach is None else self.attach.key
            self.kind = Kind(compiled.early, fsplan.state(), spec.host_view, (self.shape.only, self.shape.count), limited, network)
        self.compiled = compiled
        self._root = fsplan.root
        ready = spares().take(self.kind) if self.kind is not None and not self._has_looked else None
        seen = None if ready is None else fsplan.seen(spec.filesystem.root)  # before more is read of it
        started = yield from self._by_spare(ready, compiled, fds, fsplan, stack)
        if started is None:
            started = yield from self._finish(self._begin(compiled, fds, joined, stack), fsplan, stack)
        elif seen is not None and self.kind is not None:
            kind = self.kind._replace(network=None)
            known = _again.Known(self.host, self.shape, self.is_limited, self.clones_into_group, compiled, kind, self.identity, seen)
            _again.remember(spec, known)
        fsplan.release(keep_root=self.kind is not None)  # the next one of this kind will be over it
        return started

    def _by_what_is_known(self, stack: Undo) -> Steps[tuple[Session, Ids, Group | None] | None]:
        """Start it from a spare by what an earlier start found (this host does all of it, too); None where nothing is known, or there is no spare."""
        known = None if self.joins else _again.recall(self.spec, self.host, self.shape, is_limited=self.is_limited)
        if known is None:
            return None
        kind = known.kind_in(None if self.attach is None else self.attach.key)
        ready, self._has_looked = spares().take(kind), True
        if ready is None:
            return None
        self.clones_into_group, self.compiled, self.kind = known.clones_into_group, known.compiled, kind
        self.identity, self._seen = known.identity, known.seen
        started = yield from self._by_spare(ready, known.compiled, [], None, stack)
        if started is None:
            self._seen = None
        return started

    def _by_spare(
        self, ready: Spare | None, compiled: Compiled, fds: list[int], fsplan: fs.FsPlan | None, stack: Undo
    ) -> Steps[tuple[Session, Ids, Group | None] | None]:
        """Start it from a spare; None when there is none, or when that fails: a new one then does, or says why not."""
        if ready is None:
            return None
        try:
            with Undo() as mine:
                started = yield from self._finish(self._complete(ready, compiled, fds, mine), fsplan, mine)
                if not started[0].is_alive:  # it said that it was ready, but that may be long ago
                    return None
                stack.take(mine)
                self.spare_used = ready
                return started
        except (BrokenError, OSError):
            self.leaves, self.blueprint, self.first, self.name = Leaves(), None, None, next(_numbers)
            return None

    def _finish(
        self, started: tuple[Session, Ids, Group | None], fsplan: fs.FsPlan | None, stack: Undo
    ) -> Steps[tuple[Session, Ids, Group | None]]:
        """What can be done while init is at work; then wait for it."""
        session, ids, group = started
        first = self.first
        if self.blueprint is not None:
            announce()
            group = Group(self.name, self.spec.limits, controllers=LEAF_ACCOUNTING)
            stack.callback(group.remove)
            first = group.adopt(self.blueprint, session.take_opened(len(self.blueprint.opens)))
        elif group is None and self.is_limited:
            group = self._limited_group(stack)
        if group is not None:
            stack.callback(self.leaves.clear, group)
            if self.is_limited:
                self.leaves.prepare(group, first)
        if fsplan is not None:
            self.identity = identify(self.spec, fsplan, ids)
        if not session.is_ready:
            yield session
        session.await_ready()
        return session, ids, group

    def _join(self, stack: Undo) -> Joined:
        from sandbox._sharing import join  # needed by few

        joined = join(self.joins, self.host, self.spec)
        stack.callback(joined.close)
        if joined.places:
            self.spec = evolve(self.spec, filesystem=evolve(self.spec.filesystem, given=tuple(joined.places)))
        return joined

    def _check(self) -> None:
        """Refuse what this host cannot do, before anything is touched."""
        asked = self.spec
        if _host.is_known_to_do(asked):
            return
        check_floor()
        if isinstance(self.spec.namespaces.time, ns.Time):
            check_clocks(self.spec.namespaces.time)
            if not self._or_degrade(_host.check_time_namespaces, "time_offsets"):
                self.spec = evolve(self.spec, namespaces=evolve(self.spec.namespaces, time=ns.Host()))
        if self.spec.filesystem.takes_overlay:
            self.spec = _host.with_overlay(self.spec, self._or_degrade)
        if self.is_limited:
            self._check_limits()
        if self.spec is asked and not self.degraded:
            _host.note_that_it_does(asked)

    def _check_limits(self) -> None:
        for words in _host.LIMITS_APART if not self.spec.strict else ():  # so that the others hold
            limits = self.spec.limits
            if (part := limits.only(words)) != _NO_LIMITS and not self._or_degrade(partial(cg.check_limits, part), words[0]):
                self.spec = evolve(self.spec, limits=limits.without(words))
        limits = self.spec.limits
        self.is_limited = limits != _NO_LIMITS and self._or_degrade(partial(_host.check_limits, limits), "limits")

    def _or_degrade(self, attempt: Callable[[], object], what: str) -> bool:
        """Do *attempt*; with ``strict=False``, False and a line in `degraded` where the host cannot do it."""
        try:
            attempt()
        except UnsupportedError as error:
            if self.spec.strict:
                raise
            if (line := f"{what}: {error}") not in self.degraded:
                self.degraded.append(line)
            return False
        return True

    def _limited_group(self, stack: Undo) -> Group | None:
        made: list[Group] = []
        self.is_limited = self._or_degrade(lambda: made.append(make_group(self.name, self.spec.limits)), "limits")
        if not made and self.spec.limits.swap is not None:  # many kernels do not count swap on v1, which only the group itself tells
            self.spec = evolve(self.spec, limits=self.spec.limits.without(("swap",)))
            self.is_limited = self._or_degrade(lambda: made.append(make_group(self.name, self.spec.limits)), "limits")
        if not made:
            return None
        stack.callback(made[0].remove)
        return made[0]

    def _first_group(self, stack: Undo) -> Group | None:
        if self.is_limited:
            return self._limited_group(stack)
        with contextlib.suppress(UnsupportedError):  # nobody asked for limits
            group = make_group(self.name, _NO_LIMITS)
            stack.callback(group.remove)
            return group
        return None

    def _begin(
        self, compiled: Compiled, fds: list[int], joined: Joined | None, stack: Undo
    ) -> tuple[Session, Ids, Group | None]:
        ids = allot(self.shape) if joined is None else joined.allot(self.shape)
        stack.callback(ids.release)
        group = self._first_group(stack) if self.clones_into_group else None
        joins: list[tuple[int, int]] = []
        if joined is not None:
            for namespace, flag in joined.joins():
                fds.append(namespace.fileno())
                joins.append((len(fds), flag))
            compiled = evolve(compiled, ops=evolve(compiled.ops, joins=tuple((f"ns.{slot}", flag) for slot, flag in joins)))
        session = cloned(compiled, ids, group, fds, joins=joins)
        stack.callback(session.close)
        return session, ids, group

    def _complete(self, ready: Spare, compiled: Compiled, fds: list[int], stack: Undo) -> tuple[Session, Ids, Group | None]:
        """Have a spare carry out what it still lacks. Raises: BrokenError, SetupError: it is not there any more."""
        stack.callback(ready.close)
        if compiled.is_complete:
            ready.session.compiled = compiled
        else:
            ready.session.complete(compiled, fds)
        self.name = ready.name
        self.blueprint, self.first = ready.blueprint, ready.take_leaf()
        return ready.session, ready.ids, ready.group

    def spare(self) -> Spare:
        """Have one more container of this kind made, as far as init goes."""
        compiled, kind = self.compiled, self.kind
        if compiled is None or kind is None:
            raise AssertionError("start() comes first")
        name = next(_numbers)
        with Undo() as mine, Undo() as stack:
            ids = allot(self.shape)
            stack.callback(ids.release)
            group = blueprint = None
            if self.host.clone3_exec:
                try:
                    group = make_group(name, kind.limits or _NO_LIMITS)
                except UnsupportedError:
                    if kind.limits is not None:  # else nobody asked for limits
                        raise
                else:
                    stack.callback(group.remove)
            elif kind.limits is not None:
                blueprint = blueprint_of(kind.limits, LEAF_ACCOUNTING, Leaves.FIRST)
            made = None if blueprint is None else groups_of(blueprint, name)
            root = self._root
            if self._seen is not None and (root := self._seen.open()) is not None:
                mine.callback(os.close, root)
            session = cloned(compiled, ids, group, [] if root is None else [root], made=made, ahead=True)
            leaf = None
            if group is not None and kind.limits is not None:
                stack.callback(session.close)
                leaf = group.make_leaf(Leaves.FIRST)
            stack.keep()
            return Spare(session, ids, name, group, leaf, blueprint)


def start(spec: ContainerSpec, *, joins: Sequence[tuple[str, Any]] = (), attach: Attach | None = None) -> Started:
    """Start a container, as *attach* has it connected. Raises what `Container.create` says; nothing is left behind then."""
    steps = start_steps(spec, joins=joins, attach=attach)
    try:
        while True:
            next(steps)  # what it would wait for, it waits for by itself
    except StopIteration as done:
        return cast("Started", done.value)


def start_steps(spec: ContainerSpec, *, joins: Sequence[tuple[str, Any]] = (), attach: Attach | None = None) -> Steps[Started]:
    """As `start`, for those who must not wait: gives each session at whose init it would wait, until `Session.take_start` says that it is ready."""
    with Undo() as stack:
        if spec.image is not None:
            stack.callback(use(spec.image))
        starting = Starting(spec, joins, attach)
        try:
            session, ids, group = yield from starting.start(stack)
        except SetupError as error:
            if spec.image is None or (removed := removal(spec.image)) is None:
                raise
            raise removed from error
        if attach is not None:
            used = starting.spare_used
            stack.callback(attach.attach(session, None if used is None else used.take_extra()))
        degraded = [*starting.degraded, *_skipped(session), *sec.unenforced(spec.security, landlock_abi=starting.host.landlock_abi)]
        degraded += _host.lacking(starting.spec)
        return Started(
            session, starting.spec, starting.name, ids, tuple(degraded), starting.identity, starting, stack.keep(), group, starting.leaves
        )


def open_sources(
    spec: ContainerSpec, host: Host, ids: Ids, announce: Callable[[str], None] = announce, *, given: Mapping[str, int] = _NOTHING
) -> fs.FsPlan:
    mapping = _host.can_map
    return fs.ops(spec.filesystem, privileged=host.privileged, ids=ids.count, only_id=ids.only, id_mapping=mapping, announce=announce, given=given)


def _skipped(session: Session) -> list[str]:
    ops = session.compiled.ops.init_ops
    return [f"{ops[index].describe()[:200]}: {os.strerror(error)}" for index, error in session.skipped if index < len(ops)]


def shut_down() -> None:
    """End this process's launcher, its containers, and remove its directories in the control groups; a later use starts afresh.

    Not needed: all of that happens when the process ends, in whatever way.
    """
    _spares.close()
    for end in at_shut_down:
        end()
    driver.shut_down()
    _cleaning.forget()
    close_owner()
