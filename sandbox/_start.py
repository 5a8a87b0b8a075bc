"""Bring a container to life: sources, control group, ids, clone; and take all of it back, whatever failed."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import threading
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Final, TypeVar, cast

from attrs import define, evolve, field

from sandbox import _cleaning, _host, _spares, fs, ns, sec
from sandbox._arguments import Prepared
from sandbox._cleaning import announce
from sandbox._clone import cloned, groups_of
from sandbox._compile import Compiled, Host, compile_plan
from sandbox._ids import Ids, allot, shape
from sandbox._imaged.use import removal, use
from sandbox._launch import driver
from sandbox._leaves import Leaves
from sandbox._run import MEMORY_HINT
from sandbox._session import Session
from sandbox._spares import Attach, Kind, Spare, spares
from sandbox._spec import ContainerSpec
from sandbox._sys.constants import CLONE_NEWNET
from sandbox._sys.floor import check_floor
from sandbox._undo import Undo
from sandbox._users import Identity, identify, number_of
from sandbox._wiring import Wiring
from sandbox.cg import (
    LEAF_ACCOUNTING,
    Blueprint,
    Group,
    Leaf,
    Limits,
    Stats,
    check_limits,
    close_owner,
    limits_need_v2,
)
from sandbox.cg import blueprint as blueprint_of
from sandbox.errors import BrokenError, SandboxError, SetupError, UnsupportedError, UsageError
from sandbox.ns.time import check_clocks

if TYPE_CHECKING:
    from sandbox.cg.series import Sampler

_numbers: Final = map("c%010d".__mod__, itertools.count(1))  # names of one length: see groups_of
_NO_LIMITS: Final = Limits()
_T = TypeVar("_T")
Steps = Generator[Session, None, _T]
at_shut_down: Final[list[Callable[[], object]]] = []  # what others have that ends with the launcher


@define(eq=False)
class Started:
    """A running container and what belongs to it, in the order in which it is undone."""

    session: Session
    spec: ContainerSpec
    name: str
    ids: Ids
    degraded: tuple[str, ...]
    identity: Identity | None  # of the container's own user, where the files that tell it are known already
    _starting: _Starting
    _stack: Undo
    _group: Group | None = field(alias="group")
    _leaves: Leaves = field(alias="leaves")
    _has_successor: bool = False
    is_paused: bool = False
    _lock: threading.Lock = field(factory=threading.Lock)

    def close(self) -> None:
        """Undo everything. A failure does not hide an earlier one. In a forked child only its copies are closed: the rest is the parent's."""
        if self.session.owner != os.getpid():
            self._abandon()
            return
        try:
            self._prepare_end()
            self.session.end(self._left)
            # Meanwhile the launcher reaps init. (Where init's end takes long, not before: both would take the kernel's locks from one another.)
            self._leaves.clear(self._group)
            if self._starting.adopts or self._leaves.has_asked:  # the launcher removes the group, or may be making some in it
                if self._group is not None and self._starting.adopts:
                    self._group.close_if_empty()  # there is time for it now
                has_gone = self.session.close()
                if self._group is not None and self._starting.adopts and has_gone:
                    self._group.forget()
            if self._group is not None and self._group.init_fd is None:
                self._group.remove_if_idle()
        finally:  # Ctrl-C, say
            self._stack.close()
        self._complete_successors()

    def begin_close(self) -> None:
        """Kill everything, and do not wait: once `Session.take_end` says so, neither does `close`."""
        self._prepare_end()
        self.session.begin_end(self._left)

    def _prepare_end(self) -> None:
        self._prepare_successor()
        if self.is_paused:
            self.resume()  # what is frozen does not die

    @property
    def _left(self) -> bytes | None:
        """What tells how much memory is left in its group, if nothing in the container can be in the caller's way after its end (see held.c)."""
        starting, group = self._starting, self._group
        if group is None or (group.init_fd is None and not starting.adopts):  # on v1, what the launcher has not made goes before it looks
            return None
        if starting.kind is None or starting.compiled is None or not starting.compiled.is_complete:
            return None
        return group.memory_file

    @property
    def memory_file(self) -> bytes | None:
        """What tells how much memory its programs have; None without a control group."""
        return None if self._group is None else self._group.memory_file

    def _abandon(self) -> None:
        self._stack.keep()
        self.session.abandon()
        self._leaves.abandon()
        if self._group is not None:
            self._group.abandon()

    def _prepare_successor(self) -> None:
        """Ask for the next container of this kind to be made ahead, once."""
        if self._has_successor or self._starting.kind is None:
            return
        if self.session.launcher is driver.known():  # else it has died, or was shut down
            self._has_successor = True
            spares().prepare(self._starting.kind, self._starting.spare)

    def at_end(self, undo: Callable[[], object]) -> None:
        """Have *undo* called when it has ended."""
        self._stack.callback(undo)

    def _complete_successors(self) -> None:
        """Have those made ahead connected to the network, as far as they have got."""
        kind, attach = self._starting.kind, self._starting.attach
        if kind is not None and attach is not None and kind.network is not None:
            spares().complete(kind, attach.prepare)

    def leaf(self, prepared: Prepared, wiring: Wiring) -> Leaf | None:
        """The run's own control group, where there is a reason for one; closes *wiring* when that fails."""
        if self.session.owner != os.getpid():
            wiring.close()
            driver.check_owner(self.session.owner)
        if self.is_paused:
            wiring.close()
            raise UsageError("the container is paused; resume() it before it can run a program")
        is_plain = not (prepared.accounted or self._starting.is_limited)
        if is_plain and self._group is None:
            return None
        try:
            if self._starting.runs_may_need_v2:
                self._check_v2(prepared.limits)
            group = self._group or self.group()
            return self._leaves.common(group) if is_plain and self._starting.clones_into_group else self._leaves.take(group, prepared.limits)
        except UnsupportedError as error:
            if self.spec.strict:
                wiring.close()
                raise
            if (line := f"a run's control group: {error}") not in self.degraded:
                self.degraded = (*self.degraded, line)
            return None  # init adds the CPU time of processes up, which a program that disowns its children escapes
        except OSError as error:
            wiring.close()
            if not self.session.is_alive:
                raise BrokenError("the container has ended; start another one") from error
            if isinstance(error, SandboxError):
                raise
            hint = MEMORY_HINT if error.errno == errno.ENOMEM else ""
            raise SetupError("make the control group of a run", error.errno or errno.EIO, step="cgroup", hint=hint) from error
        except BaseException:
            wiring.close()
            raise

    def _check_v2(self, limits: Limits | None) -> None:
        _host.check_groups(limits)
        if limits is not None and not self._starting.clones_into_group and limits_need_v2(limits):
            raise UnsupportedError(
                "that limit is cgroup v2's on this host, and the container's filter does not allow init to put programs into such groups",
                feature="cgroup:v2",
                remedy="give the container a limit of the same kind too, in Container(...)",
            )

    def retire(self, leaf: Leaf) -> None:
        """Take back the leaf of a run that has ended."""
        self._leaves.retire(leaf)

    def tidy(self, has_ended: Callable[[], bool]) -> None:
        """Work that can be done while a program runs."""
        self._prepare_successor()
        self._complete_successors()
        if self._group is not None:
            self._leaves.tidy(self._group, self.session, has_ended)

    def group(self) -> Group:
        """The container's control group, made now if it had none."""
        if self._group is None:
            with self._lock:
                if self._group is None:
                    group = make_group(self.name, self.spec.limits)
                    self._stack.callback(group.remove)
                    self._group = group
        return self._group

    def pause(self) -> None:
        """Freeze all programs."""
        group = self._existing_group("pause")
        self.is_paused = True  # first: what a freeze that fails has frozen has to be thawed as well
        group.freeze()

    def resume(self) -> None:
        """Let them go on."""
        self._existing_group("resume").thaw()
        self.is_paused = False

    def stats(self) -> Stats:
        """What all programs used."""
        return self._existing_group("stats").stats()

    def sampler(self) -> Sampler:
        """What reads that again and again; the caller closes it."""
        return self._existing_group("monitor").sampler()

    def _existing_group(self, what: str) -> Group:
        if self._group is None:  # one that is made now would be without the programs that run already
            raise UsageError(f"{what}: the container has no control group; give it a limit (memory=, pids= ...)")
        return self._group


def make_group(name: str, limits: Limits) -> Group:
    """Make a control group; the launcher is told first what to remove if we cannot."""
    announce()
    return Group(name, limits, controllers=LEAF_ACCOUNTING).create()


class _Starting:
    """One container on its way: what it needs, what was found ready, and what has to be made."""

    def __init__(self, spec: ContainerSpec, net_of: int | ns.Namespace | None, attach: Attach | None) -> None:
        self.spec = spec
        self.attach = attach
        self.spare_used: Spare | None = None
        self.host = _host.host()
        self.name = next(_numbers)
        self.degraded: list[str] = []
        self.shape = self._ids()
        self.net_of = net_of
        self.kind: Kind | None = None
        self.compiled: Compiled | None = None
        self.is_limited = spec.limits != _NO_LIMITS  # and can be
        self.clones_into_group = False
        self.runs_may_need_v2 = _host.runs_may_need_v2()
        self.leaves = Leaves()
        self.blueprint: Blueprint | None = None  # of the groups that the launcher has made
        self.identity: Identity | None = None

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
        self._check()
        spec = self.spec
        # Cgroup v2: init must be in the group from its clone on, so there is always one, where that is possible.
        self.clones_into_group = self.host.clone3_exec or (self.is_limited and limits_need_v2(spec.limits))
        joined = None
        if self.net_of is not None:
            joined = _host.join_net(self.net_of, self.host)
            stack.callback(joined.close)
        fsplan = open_sources(spec, self.host, self.shape)
        stack.callback(fsplan.close)
        host = self.host if self.clones_into_group == self.host.clone3_exec else evolve(self.host, clone3_exec=True)
        compiled = compile_plan(spec, host, fsplan)
        fds = [fsplan.fds[slot] for slot in compiled.names]
        if joined is None and compiled.may_wait and self.clones_into_group == self.host.clone3_exec:
            limited = spec.limits if self.is_limited and not self.host.clone3_exec else None
            network = None if self.attach is None else self.attach.key
            self.kind = Kind(compiled.early, fsplan.state(), spec.host_view, (self.shape.only, self.shape.count), limited, network)
        self.compiled = compiled
        self._root = fsplan.root
        started = yield from self._by_spare(compiled, fds, fsplan, stack)
        if started is None:
            started = yield from self._finish(self._begin(compiled, fds, joined, stack), fsplan, stack)
        fsplan.release(keep_root=self.kind is not None)  # the next one of this kind will be over it
        return started

    def _by_spare(
        self, compiled: Compiled, fds: list[int], fsplan: fs.FsPlan, stack: Undo
    ) -> Steps[tuple[Session, Ids, Group | None] | None]:
        """Start it from a spare; None when there is none, or when that fails: a new one then does, or says why not."""
        ready = self.kind and spares().take(self.kind)
        if not ready:
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
            self.leaves, self.blueprint, self.name = Leaves(), None, next(_numbers)
            return None

    def _finish(
        self, started: tuple[Session, Ids, Group | None], fsplan: fs.FsPlan, stack: Undo
    ) -> Steps[tuple[Session, Ids, Group | None]]:
        """What can be done while init is at work; then wait for it."""
        session, ids, group = started
        first = None
        if self.blueprint is not None:
            announce()
            group = Group(self.name, self.spec.limits, controllers=LEAF_ACCOUNTING)
            stack.callback(group.remove)
            first = group.adopt(self.blueprint, session.take_opened(len(self.blueprint.opens)))
        elif group is None and self.is_limited:
            group = self._limited_group(stack)
        if group is not None:
            stack.callback(self.leaves.clear, group)
            self.leaves.prepare(group, first) if self.is_limited else self.leaves.common(group)
        self.identity = identify(self.spec, fsplan, ids)
        if not session.is_ready:
            yield session
        session.await_ready()
        return session, ids, group

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
            self.is_limited = self._or_degrade(self._check_limits, "limits")
        if self.spec is asked and not self.degraded:
            _host.note_that_it_does(asked)

    def _check_limits(self) -> None:
        check_limits(self.spec.limits)
        _host.check_groups(self.spec.limits)

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
        self, compiled: Compiled, fds: list[int], joined: ns.Namespace | None, stack: Undo
    ) -> tuple[Session, Ids, Group | None]:
        ids = allot(self.shape)
        stack.callback(ids.release)
        group = self._first_group(stack) if self.clones_into_group else None
        joins: list[tuple[int, int]] = []
        if joined is not None:
            fds.append(joined.fileno())
            joins.append((len(fds), CLONE_NEWNET))
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
        if ready.group is not None and self.is_limited:
            ready.group.limit(self.spec.limits)
        self.blueprint = ready.blueprint
        return ready.session, ready.ids, ready.group

    def spare(self) -> Spare:
        """Have one more container of this kind made, as far as init goes."""
        compiled, kind = self.compiled, self.kind
        if compiled is None or kind is None:
            raise AssertionError("start() comes first")
        name = next(_numbers)
        with Undo() as stack:
            ids = allot(self.shape)
            stack.callback(ids.release)
            group = blueprint = None
            if self.host.clone3_exec:
                group = make_group(name, _NO_LIMITS)
                stack.callback(group.remove)
            elif kind.limits is not None:
                blueprint = blueprint_of(kind.limits, LEAF_ACCOUNTING, Leaves.FIRST)
            made = None if blueprint is None else groups_of(blueprint, name)
            session = cloned(compiled, ids, group, [] if self._root is None else [self._root], made=made, ahead=True)
            stack.keep()
            return Spare(session, ids, name, group, blueprint)


def start(spec: ContainerSpec, *, net_of: int | ns.Namespace | None = None, attach: Attach | None = None) -> Started:
    """Start a container, as *attach* has it connected. Raises what `Container.create` says; nothing is left behind then."""
    steps = start_steps(spec, net_of=net_of, attach=attach)
    try:
        while True:
            next(steps)  # what it would wait for, it waits for by itself
    except StopIteration as done:
        return cast("Started", done.value)


def start_steps(spec: ContainerSpec, *, net_of: int | ns.Namespace | None = None, attach: Attach | None = None) -> Steps[Started]:
    """As `start`, for those who must not wait: gives each session at whose init it would wait, until `Session.take_start` says that it is ready."""
    with Undo() as stack:
        if spec.image is not None:
            stack.callback(use(spec.image))
        starting = _Starting(spec, net_of, attach)
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
        return Started(
            session, starting.spec, starting.name, ids, tuple(degraded), starting.identity, starting, stack.keep(), group, starting.leaves
        )


def open_sources(spec: ContainerSpec, host: Host, ids: Ids, announce: Callable[[str], None] = announce) -> fs.FsPlan:
    return fs.ops(spec.filesystem, privileged=host.privileged, ids=ids.count, only_id=ids.only, id_mapping=_host.can_map, announce=announce)


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
