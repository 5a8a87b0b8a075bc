"""Bring a container to life: sources, control group, ids, clone; and take all of it back, whatever failed."""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
from typing import Final

from attrs import define, field

from sandbox import _host, fs, sec
from sandbox._arguments import Prepared
from sandbox._compile import Compiled, clone_flags, compile_plan, spare_net
from sandbox._ids import Ids
from sandbox._ids import ids as take_ids
from sandbox._launch import codec, driver, wire
from sandbox._session import Session
from sandbox._spec import ContainerSpec
from sandbox._wiring import Wiring
from sandbox.cg import Group, Leaf, Limits, Stats, close_owner, owner_paths
from sandbox.errors import SandboxError, UnsupportedError

_numbers: Final = itertools.count(1)
_NO_LIMITS: Final = Limits()
_announced: dict[int, tuple[str, ...]] = {}


@define(eq=False)
class Leaves:
    """The control groups of one container's runs. Each run gets a fresh one; what making and removing them costs (0.4 ms on
    cgroup v1) is paid while a program runs: the one of the run before is removed then, and one made for the next.
    """

    _numbers: itertools.count[int] = field(factory=lambda: itertools.count(1))
    _spare: Leaf | None = None
    _limits: Limits | None = None  # the spare's, and the last run's
    _retired: list[Leaf] = field(factory=list[Leaf])
    _lock: threading.Lock = field(factory=threading.Lock)

    def take(self, group: Group, limits: Limits | None) -> Leaf:
        """A fresh leaf."""
        with self._lock:
            spare, fits = self._spare, self._limits == limits
            self._limits = limits
            if spare is not None:
                self._spare = None
                if fits:
                    return spare
                self._retired.append(spare)
        return self._make(group, limits)

    def _make(self, group: Group, limits: Limits | None) -> Leaf:
        return group.make_leaf(f"exec-{next(self._numbers)}", limits)

    def retire(self, leaf: Leaf) -> None:
        """Have it removed at the next occasion."""
        leaf.close()
        with self._lock:
            self._retired.append(leaf)

    def tidy(self, group: Group) -> None:
        """Remove what is retired, and make a spare."""
        with self._lock:
            retired, self._retired = self._retired, []
            make = self._spare is None
            limits = self._limits
        for leaf in retired:
            leaf.remove()
        if not make:
            return
        with contextlib.suppress(OSError, SandboxError):  # the run that needs one will say what is wrong
            spare = self._make(group, limits)
            with self._lock:
                if self._spare is None and self._limits == limits:
                    self._spare = spare
                    return
            self.retire(spare)

    def clear(self) -> None:
        """Remove all."""
        with self._lock:
            retired, self._retired = self._retired, []
            spare, self._spare = self._spare, None
        for leaf in retired if spare is None else [*retired, spare]:
            with contextlib.suppress(OSError):  # a program is still in it: it goes with the container, and then its group
                leaf.remove()


@define(eq=False)
class Started:
    """A running container and what belongs to it, in the order in which it is undone."""

    session: Session
    spec: ContainerSpec
    name: str
    ids: Ids
    degraded: tuple[str, ...]
    _stack: contextlib.ExitStack
    _group: Group | None = None
    _leaves: Leaves = field(factory=Leaves)
    _lock: threading.Lock = field(factory=threading.Lock)

    def close(self) -> None:
        """Undo everything. A failure does not hide an earlier one."""
        self._leaves.clear()
        self._stack.close()

    def leaf(self, prepared: Prepared, wiring: Wiring) -> Leaf | None:
        """The run's own control group, where there is a reason for one; closes *wiring* when that fails."""
        wanted = prepared.accounted
        if wanted is None:
            wanted = self._group is not None
        if not wanted and self._group is None:
            return None
        try:
            limits = None if prepared.limits == _NO_LIMITS else prepared.limits
            return self._leaves.take(self.group(), limits)
        except UnsupportedError:
            if self.spec.strict or prepared.limits == _NO_LIMITS:
                wiring.close()
                raise
            return None
        except BaseException:
            wiring.close()
            raise

    def retire(self, leaf: Leaf) -> None:
        """Take back the leaf of a run that has ended."""
        self._leaves.retire(leaf)

    def tidy(self) -> None:
        """Work on leaves that can be done while a program runs."""
        if self._group is not None:
            self._leaves.tidy(self._group)

    def group(self) -> Group:
        """The container's control group, made now if it had none."""
        if self._group is None:
            with self._lock:
                if self._group is None:
                    self._group = make_group(self.name, self.spec.limits, self._stack)
        return self._group

    def pause(self) -> None:
        """Freeze all programs."""
        self.group().freeze()

    def resume(self) -> None:
        """Let them go on."""
        self.group().thaw()

    def stats(self) -> Stats:
        """What all programs used."""
        return self.group().stats()


def make_group(name: str, limits: Limits, stack: contextlib.ExitStack) -> Group:
    """Make the control group, to be removed with *stack*; the launcher is told what to remove if we cannot."""
    group = Group(name, limits).create()
    stack.callback(group.remove)
    paths = owner_paths()
    if _announced.get(os.getpid()) != paths:
        driver.current().set_cleanup(tuple(os.fsencode(path) for path in paths))
        _announced.clear()
        _announced[os.getpid()] = paths
    return group


def _group_for(spec: ContainerSpec, name: str, stack: contextlib.ExitStack, degraded: list[str]) -> Group | None:
    """v1: when there are limits. v2: init must be in the group from its clone on, so one is made where that is possible."""
    asked = spec.limits != _NO_LIMITS
    if not asked and not _host.host().clone3_exec:
        return None
    try:
        return make_group(name, spec.limits, stack)
    except UnsupportedError as error:
        if asked and spec.strict:
            raise
        if asked:
            degraded.append(f"limits: {error}")
        return None


def start(spec: ContainerSpec, *, net_of: int | None = None) -> Started:
    """Start a container. Raises what `Container.create` says; nothing is left behind then."""
    host = _host.host()
    name = f"c{next(_numbers)}"
    degraded: list[str] = []
    with contextlib.ExitStack() as stack:
        ids = take_ids(privileged=host.privileged, uid=_first_number(spec.user))
        stack.callback(ids.release)
        fsplan = stack.enter_context(fs.ops(spec.filesystem, privileged=host.privileged, ids=ids.count, only_id=ids.only, id_mapping=_host.can_map))
        compiled = compile_plan(spec, host, fsplan)
        group = _group_for(spec, name, stack, degraded)
        session = Session(compiled)
        fds = [fsplan.fds[slot] for slot in compiled.names]
        joins: list[tuple[int, int]] = []
        if net_of is not None:
            joins, opened = _join_net(net_of, len(fds) + 1)
            stack.callback(os.close, opened)
            fds.append(opened)
        into = wire.NO_SLOT
        if group is not None and group.init_fd is not None:
            group.own(ids.root)
            into = len(fds) + 1
            fds.append(group.init_fd)
        stack.callback(session.close)
        session.start(_create_request(compiled, ids, wire.CREATE_SPARE_NET if spare_net(spec, host) else 0, joins, into), fds)
        fsplan.release()
        degraded += _skipped(compiled, session)
        degraded += sec.unenforced(spec.security, landlock_abi=host.landlock_abi)
        return Started(session, spec, name, ids, tuple(degraded), stack.pop_all(), group)
    raise AssertionError("unreachable")


def _create_request(compiled: Compiled, ids: Ids, more: int, joins: list[tuple[int, int]], into: int) -> bytes:
    flags = more | (wire.CREATE_DENY_SETGROUPS if ids.deny_setgroups else 0) | (wire.CREATE_MAP_HELPERS if ids.helpers else 0)
    request = codec.CreateRequest(
        clone_flags=clone_flags(),
        flags=flags,
        uid=ids.init_uid,
        gid=ids.init_gid,
        uid_map=codec.encode_maps(ids.uid_map),
        gid_map=codec.encode_maps(ids.gid_map),
        joins=tuple(joins),
        cleanup=(),
        host_ops=compiled.host_ops,
        init_ops=compiled.init_ops,
        exec=b"",
        into_cgroup=into,
    )
    return codec.encode_create(request)


def _join_net(pid: int, slot: int) -> tuple[list[tuple[int, int]], int]:
    """Join the network namespace of another container's init before the clone."""
    from sandbox._sys.constants import CLONE_NEWNET

    return [(slot, CLONE_NEWNET)], os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def _first_number(user: str) -> int:
    word = user.partition(":")[0]
    return int(word) if word.isascii() and word.isdigit() and len(word) < 10 else 0


def _skipped(compiled: Compiled, session: Session) -> list[str]:
    ops = compiled.ops.init_ops
    return [f"{ops[index].describe()[:200]}: {os.strerror(error)}" for index, error in session.skipped if index < len(ops)]


def explain(spec: ContainerSpec) -> str:
    """The plan in words; opens the sources, starts nothing."""
    host = _host.host()
    with fs.ops(spec.filesystem, privileged=host.privileged, id_mapping=_host.can_map) as fsplan:
        compiled = compile_plan(spec, host, fsplan)
    from attrs import evolve

    ids = take_ids(privileged=host.privileged, uid=_first_number(spec.user))
    try:
        lines = [evolve(compiled.ops, uid_map=ids.uid_map, gid_map=ids.gid_map).explain()]
    finally:
        ids.release()
    lines += [f"limit {field_} = {value}" for field_, value in _set_limits(spec.limits)]
    return "\n".join(lines)


def _set_limits(limits: Limits) -> list[tuple[str, object]]:
    import attrs

    return [(a.name, getattr(limits, a.name)) for a in attrs.fields(Limits) if getattr(limits, a.name) is not None]




def shut_down() -> None:
    """End this process's launcher, its containers, and remove its directories in the control groups; a later use starts afresh.

    Not needed: all of that happens when the process ends, in whatever way.
    """
    driver.shut_down()
    _announced.clear()
    close_owner()
