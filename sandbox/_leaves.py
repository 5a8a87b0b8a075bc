"""The control groups of one container's runs."""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import ClassVar, Final

from attrs import define, field, frozen

from sandbox._launch import codec, wire
from sandbox._launch.delivery import Deliveries
from sandbox._session import Session
from sandbox.cg import Group, Leaf, Limits
from sandbox.cg.leaf import Ahead, Opened, Shape
from sandbox.errors import BrokenError, SandboxError

MAX_KINDS: Final = 4  # of limits that are remembered
FEW, MANY = 8, 32  # leaves that the launcher makes at once
MAX_STEPS: Final = 60000  # bytes of steps in a message (wire.md)
NAME: Final = "exec-%012d"  # of one length, for what names are put into; at 5,000 runs a second, the numbers last six years
NAME_SIZE: Final = 17
AT_ONCE: Final = 4  # leaves that are taken over, and closed, at once
ROOM: Final = 4  # that many times the descriptors that are open is what a process must be allowed, for that: a leaf has seven
STALE_S: Final = 1.0  # after which the launcher is not expected to do what it was asked for


@frozen(eq=False)
class _Recipe:
    """What the launcher does for each leaf of a kind: the pieces that its name joins to encoded steps, and what they open."""

    shape: Shape
    opened: Opened
    count: int  # of descriptors
    making: list[bytes]


@define(eq=False)
class _Batch:
    """What the launcher was asked for at once."""

    recipe: _Recipe
    names: deque[bytes]  # of leaves to be made
    dying: list[bytes]  # of leaves to be removed, before
    at: float = field(factory=time.monotonic)


@define(eq=False)
class _Kind:
    """Fresh leaves with the same limits."""

    limits: Limits | None
    spares: list[Leaf] = field(factory=list[Leaf])
    at_once: int = 1  # how many of these there are at most, and how many are closed at once
    taken: int = 0
    ahead: int = 0  # how many the launcher shall hold ready; 0: it is not needed
    is_alone: bool = False  # the launcher cannot help with these
    recipe: _Recipe | None = None
    deliveries: Deliveries | None = None  # of what the launcher opens
    batches: deque[_Batch] = field(factory=deque[_Batch])

    @property
    def promised(self) -> int:
        """How many leaves the launcher has made, or will make."""
        count = 0
        for batch in tuple(self.batches):  # other threads have their turn meanwhile
            count += len(batch.names)
        return count

    def forget(self, names: Iterable[bytes]) -> None:
        """Nobody waits for what was opened of these any more."""
        if self.deliveries is not None:
            self.deliveries.forget(names)


@define(eq=False)
class Leaves:
    """Each run gets a fresh group. What making and removing one costs (0.3 ms on cgroup v1) is paid while something else is waited for.

    The first is made while init is at work. From the second run on, while a program runs, the one of the run before is removed, and
    one made for the next. Where programs are so short that they would have to wait for that, the launcher does both, several at
    once, in a moment in which nothing is asked of it. It opens their files, too, and sends the descriptors (`Deliveries`); those of a
    few groups are taken over at once, and closed at once.
    """

    _numbers: itertools.count[int] = field(factory=lambda: itertools.count(2))
    _kinds: dict[Limits | None, _Kind] = field(factory=dict[Limits | None, _Kind])  # the last one used comes last
    _last: _Kind | None = None  # it
    _is_over: bool = False
    has_asked: bool = False  # the launcher may be at work on the container's groups, as long as it does not know that it has ended
    _retired: list[Leaf] = field(factory=list[Leaf])
    _dead: list[bytes] = field(factory=list[bytes])  # closed, to be removed with the next batch
    _places: list[bytes] = field(factory=list[bytes])
    _removing: list[bytes] = field(factory=list[bytes])  # see `_removal`
    _lock: threading.Lock = field(factory=threading.Lock)

    FIRST: ClassVar[str] = NAME % 1

    def take(self, group: Group, limits: Limits | None) -> Leaf:
        """A fresh leaf."""
        with self._lock:
            kind = self._last
            if kind is None or kind.limits is not limits:
                kind = self._kind(limits)
            kind.taken += 1
            if kind.spares:
                return kind.spares.pop()
        return self._converted(group, limits) or self._promised(kind, group) or self._make(group, limits)

    def _converted(self, group: Group, limits: Limits | None) -> Leaf | None:
        """One that was made without limits of its own, with *limits*."""
        with self._lock:
            plain = None if limits is None else self._kinds.get(None)
            if plain is None or not plain.spares or limits is None:
                return None
            unlimited = plain.spares.pop()
        spare = None
        try:
            spare = unlimited if group.limit_leaf(unlimited, limits) else None
        finally:
            if spare is None:
                self.retire(unlimited)
        return spare

    def _kind(self, limits: Limits | None) -> _Kind:
        """The kind, as the last one used; the caller has the lock. One that was not used for long is forgotten, and its leaves are removed."""
        kind = self._kinds.pop(limits, None) or _Kind(limits)
        self._kinds[limits] = self._last = kind
        if len(self._kinds) > MAX_KINDS:
            self._drop(self._kinds.pop(next(iter(self._kinds))))
        return kind

    def _drop(self, kind: _Kind) -> None:
        self._retired += kind.spares
        kind.spares = []
        for batch in kind.batches:
            self._waste(kind, batch)
        kind.batches.clear()
        if kind.deliveries is not None:
            kind.deliveries.close()
        kind.ahead, kind.is_alone = 0, True

    def prepare(self, group: Group, first: Leaf | None = None) -> None:
        """Make the first one, without limits of its own, unless it is there; or take *first*, which has been made as `FIRST`."""
        kind = self._kind(None)
        if not kind.spares:
            kind.spares.append(first or self._make(group, None))

    def _make(self, group: Group, limits: Limits | None) -> Leaf:
        return group.make_leaf(NAME % next(self._numbers), limits)

    def _promised(self, kind: _Kind, group: Group) -> Leaf | None:
        """One that the launcher has made."""
        if not kind.batches:
            return None
        shape = group.shape(kind.limits)
        with self._lock:
            batch = kind.batches[0] if kind.batches else None
            if batch is None:
                return None
            if batch.recipe.shape is not shape:  # the group has got hierarchies since in which these are not
                kind.batches.popleft()
                self._waste(kind, batch)
                return None
            name = batch.names.popleft()
            if not batch.names:
                kind.batches.popleft()
        try:
            leaf = self._delivered(name, kind, batch.recipe, group)
            if leaf is None and (leaf := group.open_leaf(name, shape)) is not None:
                kind.forget([name])  # it was too early, or some of it could not be opened
        except BaseException:
            with self._lock:
                self._dead.append(name)
                kind.forget([name])
            raise
        with self._lock:
            if leaf is not None:
                batch.dying.clear()  # they came first
            elif time.monotonic() - batch.at > STALE_S or self._kinds.get(kind.limits) is not kind:
                batch.names.appendleft(name)
                self._waste(kind, batch)  # something failed there; it will try to remove them
                with contextlib.suppress(ValueError):  # another thread has its last name, or the kind was dropped
                    kind.batches.remove(batch)
            else:
                if not batch.names:
                    kind.batches.appendleft(batch)
                batch.names.appendleft(name)
        return leaf

    @staticmethod
    def _delivered(name: bytes, kind: _Kind, recipe: _Recipe, group: Group) -> Leaf | None:
        """It with all that the launcher has opened of it."""
        fds = None if kind.deliveries is None else kind.deliveries.take(name)
        return None if fds is None else group.take_leaf(name, recipe.shape, recipe.opened, fds)

    def _waste(self, kind: _Kind, batch: _Batch) -> None:
        """Do without what the launcher was asked for; the caller has the lock."""
        self._dead += [*batch.names, *batch.dying]
        kind.forget(batch.names)
        batch.names.clear()  # another thread may hold it still
        batch.dying.clear()

    def retire(self, leaf: Leaf) -> None:
        """Have it closed and removed at the next occasion."""
        with self._lock:
            self._retired.append(leaf)
            is_over = self._is_over
        if is_over:  # a program that was closed after its container: no other occasion comes
            self._remove_retired()

    def tidy(self, group: Group, session: Session, has_ended: Callable[[], bool]) -> None:
        """While a program runs: remove what is retired, and have a spare; where the program has ended before that was done, ask for help."""
        with self._lock:
            kind = self._last
            if kind is None:
                return
            ahead, retired = kind.ahead, self._retired
            if (kind.spares and len(retired) < kind.at_once) if ahead else (not retired and kind.taken < 2):
                return
            self._retired = []
            if ahead:
                self._dead += [leaf.name for leaf in retired]
        for leaf in retired:
            if ahead:
                leaf.close()
                group.forget_leaf(leaf)
            else:
                leaf.remove()
        made = not kind.spares and kind.taken > 1 and self._has_made_spare(kind, group)
        if (made or (retired and not ahead)) and has_ended():
            with self._lock:
                if not kind.is_alone and kind.ahead < MANY:
                    kind.ahead = max(FEW, 2 * kind.ahead)
        if kind.ahead and kind.promised <= kind.ahead // 2:
            self._ask(kind, group, session)

    def _has_made_spare(self, kind: _Kind, group: Group) -> bool:
        """Have spares; whether one had to be made."""
        made = False
        with contextlib.suppress(OSError, SandboxError):  # the run that needs one will say what is wrong
            for _ in range(kind.at_once):
                spare = self._promised(kind, group) if kind.ahead else None
                if spare is None:
                    if kind.spares:
                        break
                    spare, made = self._make(group, kind.limits), True
                with self._lock:
                    is_wanted = len(kind.spares) < kind.at_once and self._kinds.get(kind.limits) is kind
                    if is_wanted:
                        kind.spares.append(spare)
                if not is_wanted:
                    self.retire(spare)
                    break
            return made
        return True

    def _ask(self, kind: _Kind, group: Group, session: Session) -> None:
        """Have the launcher remove the dead and make some for later."""
        shape = group.shape(kind.limits)
        with self._lock:
            if not kind.ahead or kind.promised > kind.ahead // 2 or self._kinds.get(kind.limits) is not kind:
                return
            recipe = kind.recipe
            if recipe is None or recipe.shape is not shape:
                recipe = self._recipe(kind, group, shape)
                if recipe is None:
                    return
            deliveries = kind.deliveries
            if deliveries is None:
                try:
                    deliveries = kind.deliveries = Deliveries()
                except OSError:  # out of descriptors, say: what is needed is made when it is
                    return
            names = [(NAME % next(self._numbers)).encode() for _ in range(kind.ahead - kind.promised)]
            batch = _Batch(recipe, deque(names), self._dead)
            self._dead = []
            kind.batches.append(batch)
            deliveries.expect(names, recipe.count)
            self.has_asked = True
            dying = list(batch.dying)
        removal, making = self._removal(group), recipe.making
        with contextlib.suppress(BrokenError):  # then all ends
            for message in _messages([*(name.join(removal) for name in dying), *(name.join(making) for name in names)]):
                session.change_groups(message, deliveries.fileno())

    @staticmethod
    def _recipe(kind: _Kind, group: Group, shape: Shape) -> _Recipe | None:
        """What the launcher shall do for each; None: it cannot."""
        ahead = group.ahead(shape)
        if ahead is None:
            kind.ahead, kind.is_alone = 0, True
            return None
        kind.recipe = _Recipe(shape, ahead.opened, len(ahead.opens), codec.named_steps(_steps(ahead), NAME_SIZE))
        kind.at_once = AT_ONCE if _has_room() else 1
        return kind.recipe

    def _removal(self, group: Group) -> list[bytes]:
        """What the launcher shall do with each of the dead, wherever it is; the name joins these."""
        places = group.leaf_places()
        if places != self._places:  # the group may have got more
            self._places = places
            self._removing = codec.named_steps([(wire.GroupStep.REMOVE, place, b"", b"") for place in places], NAME_SIZE)
        return self._removing

    def abandon(self) -> None:
        """Close our copies of the descriptors: in a forked child, which must not wait for the parent's lock."""
        for kind in self._kinds.values():
            if kind.deliveries is not None:
                kind.deliveries.abandon()
        for leaf in [*self._retired, *itertools.chain.from_iterable(kind.spares for kind in self._kinds.values())]:
            leaf.close()

    def _remove_retired(self) -> None:
        with self._lock:
            retired, self._retired = self._retired, []
        for leaf in retired:
            with contextlib.suppress(OSError):  # a program is still in it: it goes with the container, and then its group
                leaf.remove()

    def clear(self, group: Group | None) -> None:
        """Remove all, now and what is retired later."""
        with self._lock:
            self._is_over = True
            for kind in self._kinds.values():
                self._drop(kind)
            self._kinds, self._last = {}, None
            dead, self._dead = self._dead, []
        self._remove_retired()
        if dead and group is not None:
            group.remove_leaves(dead)


def _has_room() -> bool:
    """Whether this process has descriptors enough for some that it could do without."""
    with contextlib.suppress(OSError):
        most = os.sysconf("SC_OPEN_MAX")  # -1: no end
        return most < 0 or ROOM * len(os.listdir("/proc/self/fd")) < most
    return False


def _steps(ahead: Ahead) -> Iterator[tuple[wire.GroupStep, bytes, bytes, bytes]]:
    """What the launcher does for one leaf: it is made, and then its descriptors are on their way."""
    for before, after, value in ahead.steps:
        yield (wire.GroupStep.MAKE if value is None else wire.GroupStep.WRITE, before, after, value or b"")
    if ahead.owned is not None:
        before, after, uid = ahead.owned
        yield (wire.GroupStep.OWN, before, after, b"%d" % uid)
    for before, after, is_written in ahead.opens:
        yield (wire.GroupStep.JOIN if is_written else wire.GroupStep.READ, before, after, b"")
    yield (wire.GroupStep.GIVE, ahead.opens[0][0], b"", b"")


def _messages(parts: list[bytes]) -> Iterator[list[bytes]]:
    """Put *parts*, none of which may be torn apart, into as few messages as they fit into."""
    message: list[bytes] = []
    size = 0
    for part in parts:
        if message and size + len(part) > MAX_STEPS:
            yield message
            message, size = [], 0
        message.append(part)
        size += len(part)
    if message:
        yield message
