"""Containers made ahead of time, as far as nobody needs to be asked: their inits, with all namespaces and the common part of the root.

Theory of operation
-------------------
Most of what a container costs is the same for each of a kind: the clone, the namespaces (the network's above all), /proc, /sys and
/dev with their masks. A process that makes containers of one kind again and again therefore has the next one made
while the present one is set up and runs: by the launcher, as far as `Compiled.early` goes, which takes nothing from outside. Who asks
for such a container then completes it with its sources and limits.

A spare is used for a container with the very same bytes of early operations, over the same directory in the same state, with the same
limits and the same id inside. A view of the host is worth as much as a new one only if the host's mounts are still the same: the kernel
tells when they change (poll(2) of /proc/self/mountinfo), and then those spares are dropped. A spare never had a program, nor a
file of any other container; nothing of one reaches another by it.

Only a container that has let go of the host's tree by then is made ahead (`Compiled.may_wait`): one that waits with a copy of it would keep
every file system of the host busy. So those over a directory with binds are not, nor any with binds of an ordinary user.

The first container of a kind makes none: a process that needs one container has no use for a second. There are at most `MOST` at
once, and `PER_KIND` of a kind. They end with the process, in whatever way, like everything that its launcher made.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import select
import threading
from collections.abc import Callable
from typing import Any, Final, NamedTuple, Protocol

from attrs import define, field

from sandbox._ids import Ids
from sandbox._launch import driver
from sandbox._session import Session
from sandbox.cg import Blueprint, Group, Leaf, Limits
from sandbox.errors import SandboxError
from sandbox.fs import host_trees

MOST: Final = 16
PER_KIND: Final = 4
_KINDS_REMEMBERED: Final = 16


class Extra(Protocol):
    """What is made for a spare beside itself."""

    @property
    def is_done(self) -> bool:
        """Whether nobody waits for it who uses it now."""
        ...

    def close(self) -> None:
        """Do without it."""

    def abandon(self) -> None:
        """In a forked child: let go of its copies."""


class Attach(Protocol):
    """What connects a container to networks. *key*: of equal ones, one may use what another has prepared."""

    @property
    def key(self) -> object: ...

    def prepare(self, session: Session, /) -> Extra | None:
        """Have a spare's own part made, without waiting. Raises: SandboxError."""

    def attach(self, session: Session, extra: Any, /) -> Callable[[], object]:  # noqa: ANN401 - what `prepare` gave
        """Connect a container that has run no program yet; what is returned takes it back."""
        ...


class Kind(NamedTuple):
    """What containers must have in common to be prepared for one another."""

    early: bytes
    state: tuple[object, ...]  # what early operations found: the directory that it is over, or what of the host is bound
    host_view: bool
    ids: tuple[int | None, int]  # the one, and how many from 0 on
    limits: Limits | None  # those of its control groups, which are made ahead too
    network: object = None  # `Attach.key`


@define(eq=False)
class Spare:
    """A container that waits to be completed, with its ids and, in time, its control groups."""

    session: Session
    ids: Ids
    name: str
    group: Group | None = None  # on cgroup v2
    leaf: Leaf | None = None  # the first of it
    blueprint: Blueprint | None = None  # on v1: of the control groups that the launcher makes, and removes
    extra: Extra | None = None

    @property
    def is_ready(self) -> bool:
        """Whether it has been made."""
        return self.session.has_begun

    @property
    def is_whole(self) -> bool:
        """Whether it has all that its kind may have."""
        return self.extra is not None and self.extra.is_done

    def take_extra(self) -> Extra | None:
        """What was made beside it, now the caller's."""
        found, self.extra = self.extra, None
        return found

    def take_leaf(self) -> Leaf | None:
        """The first run's control group, now the caller's."""
        found, self.leaf = self.leaf, None
        return found

    def close(self) -> None:
        """End it, and wait until it is gone."""
        self.session.close()
        self.drop()

    def abandon(self) -> None:
        """Let go of this process's copies of its descriptors."""
        self.session.abandon()
        if self.extra is not None:
            self.extra.abandon()
        if self.leaf is not None:
            self.leaf.close()
        if self.group is not None:
            self.group.abandon()

    def drop(self) -> None:
        """Let go of it: init ends, and the launcher removes what was made for it. Waits for nothing but the answer about what is made beside it."""
        self.session.abandon()
        if (extra := self.take_extra()) is not None:
            with contextlib.suppress(SandboxError, OSError):  # what failed is what nobody needs
                extra.close()
        if (leaf := self.take_leaf()) is not None:
            leaf.remove()
        if self.group is not None:
            self.group.remove()
        if self.blueprint is not None and self.session.launcher is not driver.known():  # whoever would remove them has died
            self.blueprint.remove(self.name.encode())
        self.ids.release()


class _MountTable:
    """Says whether what is mounted on the host's trees, which views of the host show, has changed."""

    def __init__(self) -> None:
        self._fd = os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLPRI)
        self._known = self._mounts()

    def _mounts(self) -> list[bytes]:
        os.lseek(self._fd, 0, os.SEEK_SET)
        parts: list[bytes] = []
        while part := os.read(self._fd, 1 << 20):
            parts.append(part)
        trees = tuple(map(os.fsencode, (*host_trees(), "/etc")))
        return [line for line in b"".join(parts).splitlines() if _concerns(line.split(b" ", 5)[4], trees)]

    def has_changed(self) -> bool:
        """Whether there was a change since the last call."""
        if not self._poll.poll(0):  # the common case: nothing at all was mounted or unmounted
            return False
        before, self._known = self._known, self._mounts()
        return before != self._known

    def close(self) -> None:
        os.close(self._fd)


def _concerns(point: bytes, trees: tuple[bytes, ...]) -> bool:
    return point == b"/" or point.startswith(trees)


@define(eq=False)
class Spares:
    """The spares of this process. Thread-safe."""

    _table: _MountTable = field(factory=_MountTable)
    _wanted: dict[Kind, int] = field(factory=dict[Kind, int])  # how many of a kind there should be; in the order of the last use
    _ready: dict[Kind, list[Spare]] = field(factory=dict[Kind, list[Spare]])
    _pending: int = 0  # being made
    _launcher: object = None  # whose spares these are
    _lock: threading.Lock = field(factory=threading.Lock)

    def take(self, kind: Kind) -> Spare | None:
        """A spare of *kind*, now the caller's; None when there is none."""
        with self._lock:
            stale = self._drop_stale()
            found = self._ready.get(kind, [])
            spare = _best(found, whole=kind.network is not None)
            wanted = self._wanted.pop(kind, -1)
            # A kind's second container makes the first spare. Whoever finds none that is whole would have been glad of one more.
            lacks = spare is None or (kind.network is not None and not spare.is_whole)
            self._wanted[kind] = min(PER_KIND, wanted + lacks)
            if len(self._wanted) > _KINDS_REMEMBERED:
                del self._wanted[next(iter(self._wanted))]
        _drop_all(stale)
        return spare

    def _drop_stale(self) -> list[Spare]:
        if self._table.has_changed():
            return [spare for kind in [*self._ready] if kind.host_view for spare in self._ready.pop(kind)]
        launcher = driver.known()
        if launcher is self._launcher:
            return []
        self._launcher = launcher
        return [spare for kind in [*self._ready] for spare in self._drop_orphans(kind)]

    def _drop_orphans(self, kind: Kind) -> list[Spare]:
        """Those of a launcher that has died."""
        mine, launcher = self._ready[kind], driver.known()
        self._ready[kind] = [spare for spare in mine if spare.session.launcher is launcher]
        return [spare for spare in mine if spare.session.launcher is not launcher]

    def _take_all(self) -> list[Spare]:
        dropped = [spare for spares in self._ready.values() for spare in spares]
        self._ready.clear()
        return dropped

    def prepare(self, kind: Kind, make: Callable[[], Spare]) -> None:
        """Have *make* make another one of *kind*, if more of them are likely to be asked for. Never fails: there is none then."""
        while self._reserve(kind):
            spare = None
            try:
                # Whoever needs a container gets the reason, if it still holds then.
                with contextlib.suppress(SandboxError, OSError):
                    spare = make()
            finally:
                with self._lock:
                    self._pending -= 1
                    unwanted = [] if spare is None else self._put(kind, spare)
                _drop_all(unwanted)
            if spare is None:
                return

    def complete(self, kind: Kind, prepare: Callable[[Session], Extra | None]) -> None:
        """Have *prepare* ask for what those of *kind* that are ready still lack. Does not wait; never fails: they are without it then."""
        with self._lock:
            mine = self._ready.get(kind, [])
            lacking = [spare for spare in mine if spare.extra is None and spare.is_ready]
            mine[:] = [spare for spare in mine if spare not in lacking]  # nobody takes them meanwhile
        for spare in lacking:
            try:
                if spare.session.look():
                    spare.session.await_ready()  # which takes no waiting
                    spare.extra = prepare(spare.session)
            except (SandboxError, OSError):
                spare.drop()
            except BaseException:  # Ctrl-C, say
                spare.drop()
                raise
            else:
                with self._lock:
                    unwanted = self._put(kind, spare)
                _drop_all(unwanted)

    def _put(self, kind: Kind, spare: Spare) -> list[Spare]:
        """Have it ready; whoever calls has the lock, and drops what is returned without it."""
        if kind.network is not None and kind not in self._wanted:  # the network was closed meanwhile
            return [spare]
        self._ready.setdefault(kind, []).append(spare)
        return []

    def drop_of(self, network: object) -> None:
        """Drop those that are prepared for a network."""
        with self._lock:
            dropped = [spare for kind in [*self._ready] if kind.network is network for spare in self._ready.pop(kind)]
            for kind in [kind for kind in self._wanted if kind.network is network]:
                del self._wanted[kind]
        _drop_all(dropped)

    def _reserve(self, kind: Kind) -> bool:
        """Whether one more of *kind* is to be made, by the calling thread."""
        with self._lock:
            if len(self._ready.get(kind, ())) + self._pending >= self._wanted.get(kind, 0):
                return False
            dropped = self._make_room(kind)
            if dropped is None:
                return False
            self._pending += 1
        _drop_all(dropped)
        return True

    def _make_room(self, kind: Kind) -> list[Spare] | None:
        """Drop one of a kind that was not used for longer than *kind*, when there are too many; None: there is no such kind."""
        if sum(map(len, self._ready.values())) + self._pending < MOST:
            return []
        for older in self._wanted:  # the last used comes last
            if older == kind:
                return None
            if self._ready.get(older):
                return [self._ready[older].pop(0)]
        forgotten = [spares for other, spares in self._ready.items() if spares and other not in self._wanted]
        return [forgotten[0].pop(0)] if forgotten else None

    def abandon(self) -> None:
        """Let go of this process's copies of their descriptors: in a forked child, which must not wait for the parent's lock."""
        for spare in self._take_all():
            spare.abandon()
        self._table.close()

    def close(self) -> None:
        """End all of them."""
        with self._lock:
            dropped = self._take_all()
            self._wanted.clear()
        for spare in dropped:
            with contextlib.suppress(SandboxError, OSError):  # the launcher cleans up behind it
                spare.close()
        self._table.close()


def _best(found: list[Spare], *, whole: bool) -> Spare | None:
    """The first that is ready, of those that are *whole* if there are any; it is taken out."""
    ready = [spare for spare in found if spare.is_ready] if whole else found[:1]
    chosen = next((spare for spare in ready if spare.is_whole), None) or next(iter(ready), None)
    if chosen is None or not chosen.is_ready:
        return None
    found.remove(chosen)
    return chosen


def _drop_all(spares: list[Spare]) -> None:
    for spare in spares:
        with contextlib.suppress(SandboxError, OSError):
            spare.drop()


_spares: Spares | None = None
_lock = threading.Lock()


def spares() -> Spares:
    """The spares of this process, made at the first call."""
    global _spares
    found = _spares
    if found is None:
        with _lock:
            if _spares is None:
                _spares = Spares()
                atexit.register(_at_exit)
            found = _spares
    return found


def drop_of(network: object) -> None:
    """Drop the spares that are prepared for a network, if there are any."""
    found = _spares
    if found is not None:
        found.drop_of(network)


def _at_exit() -> None:
    global _spares
    found, _spares = _spares, None  # what other functions do at exit, after this one, begins anew
    if found is not None:
        found.abandon()


def close() -> None:
    """End all spares of this process; new ones are made when they are needed."""
    global _spares
    with _lock:
        found, _spares = _spares, None
        atexit.unregister(_at_exit)
    if found is not None:
        found.close()


def _after_fork_in_child() -> None:
    """They stay the parent's; this process has copies of their descriptors only."""
    global _spares, _lock
    _lock = threading.Lock()
    inherited, _spares = _spares, None
    if inherited is not None:
        inherited.abandon()


os.register_at_fork(after_in_child=_after_fork_in_child)
