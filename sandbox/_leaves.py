"""The control groups of one container's runs."""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import ClassVar, Final

from attrs import define, field

from sandbox._launch import codec, wire
from sandbox._session import Session
from sandbox.cg import Group, Leaf, Limits
from sandbox.errors import BrokenError, SandboxError

MAX_KINDS: Final = 4  # of limits that are remembered
FEW, MANY = 8, 32  # leaves that the launcher makes at once
MAX_STEPS: Final = 60000  # bytes of steps in a message (wire.md)
NAME: Final = "exec-%012d"  # of one length, for what names are put into; at 5,000 runs a second, the numbers last six years
NAME_SIZE: Final = 17
STALE_S: Final = 1.0  # after which the launcher is not expected to do what it was asked for


@define(eq=False)
class _Batch:
    """What the launcher was asked for at once."""

    names: deque[bytes]  # of leaves to be made
    dying: list[bytes]  # of leaves to be removed, before
    at: float = field(factory=time.monotonic)


@define(eq=False)
class _Kind:
    """Fresh leaves with the same limits."""

    limits: Limits | None
    spare: Leaf | None = None
    taken: int = 0
    ahead: int = 0  # how many the launcher shall hold ready; 0: it is not needed
    is_alone: bool = False  # the launcher cannot help with these
    batches: deque[_Batch] = field(factory=deque[_Batch])

    @property
    def promised(self) -> int:
        """How many leaves the launcher has made, or will make."""
        return sum(len(batch.names) for batch in self.batches)


@define(eq=False)
class Leaves:
    """Each run gets a fresh group. What making and removing one costs (0.3 ms on cgroup v1) is paid while something else is waited for.

    The first is made while init is at work. From the second run on, while a program runs, the one of the run before is removed, and
    one made for the next. Where programs are so short that they would have to wait for that, the launcher does both, several at
    once, in a moment in which nothing is asked of it.
    """

    _numbers: itertools.count[int] = field(factory=lambda: itertools.count(2))
    _kinds: dict[Limits | None, _Kind] = field(factory=dict[Limits | None, _Kind])  # the last one used comes last
    _is_over: bool = False
    has_asked: bool = False  # the launcher may be at work on the container's groups, as long as it does not know that it has ended
    _common: Leaf | None = None
    _retired: list[Leaf] = field(factory=list[Leaf])
    _dead: list[bytes] = field(factory=list[bytes])  # closed, to be removed with the next batch
    _lock: threading.Lock = field(factory=threading.Lock)

    FIRST: ClassVar[str] = NAME % 1

    def take(self, group: Group, limits: Limits | None) -> Leaf:
        """A fresh leaf."""
        with self._lock:
            kind = self._kind(limits)
            kind.taken += 1
            spare, kind.spare = kind.spare, None
            plain = self._kinds.get(None) if spare is None and limits is not None else None
            unlimited = None
            if plain is not None:
                unlimited, plain.spare = plain.spare, None
        if spare is None and unlimited is not None and limits is not None:
            try:
                spare = unlimited if group.limit_leaf(unlimited, limits) else None
            finally:
                if spare is None:
                    self.retire(unlimited)
        return spare or self._promised(kind, group) or self._make(group, limits)

    def common(self, group: Group) -> Leaf:
        """The one for all runs that have no limits and whose use nobody asked for: on cgroup v2 a program needs a group (see `Shape.v2`)."""
        with self._lock:
            if self._common is None:
                self._common = group.make_leaf("common", controllers=frozenset())
            return self._common

    def _kind(self, limits: Limits | None) -> _Kind:
        """The kind, as the last one used; the caller has the lock. One that was not used for long is forgotten, and its leaves are removed."""
        kind = self._kinds.pop(limits, None) or _Kind(limits)
        self._kinds[limits] = kind
        if len(self._kinds) > MAX_KINDS:
            self._drop(self._kinds.pop(next(iter(self._kinds))))
        return kind

    def _drop(self, kind: _Kind) -> None:
        if kind.spare is not None:
            self._retired.append(kind.spare)
            kind.spare = None
        for batch in kind.batches:
            self._dead += [*batch.names, *batch.dying]
            batch.names.clear()
            batch.dying.clear()
        kind.batches.clear()  # another thread may hold it still
        kind.ahead, kind.is_alone = 0, True

    def prepare(self, group: Group, first: Leaf | None = None) -> None:
        """Make the first one, without limits of its own, unless it is there; or take *first*, which has been made as `FIRST`."""
        kind = self._kind(None)
        if kind.spare is None:
            kind.spare = first or self._make(group, None)

    def _make(self, group: Group, limits: Limits | None) -> Leaf:
        return group.make_leaf(NAME % next(self._numbers), limits)

    def _promised(self, kind: _Kind, group: Group) -> Leaf | None:
        """One that the launcher has made."""
        with self._lock:
            batch = kind.batches[0] if kind.batches else None
            if batch is None:
                return None
            name = batch.names.popleft()
            if not batch.names:
                kind.batches.popleft()
        try:
            leaf = group.open_leaf(name, kind.limits)
        except BaseException:
            with self._lock:
                self._dead.append(name)
            raise
        with self._lock:
            if leaf is not None:
                batch.dying.clear()  # they came first
            elif time.monotonic() - batch.at > STALE_S or self._kinds.get(kind.limits) is not kind:
                self._dead += [name, *batch.names, *batch.dying]  # something failed there; it will try to remove them
                batch.names.clear()
                batch.dying.clear()
                with contextlib.suppress(ValueError):  # another thread has its last name, or the kind was dropped
                    kind.batches.remove(batch)
            else:
                if not batch.names:
                    kind.batches.appendleft(batch)
                batch.names.appendleft(name)
        return leaf

    def retire(self, leaf: Leaf) -> None:
        """Have it closed and removed at the next occasion, unless others have it too."""
        if leaf is self._common:
            return
        with self._lock:
            self._retired.append(leaf)
            is_over = self._is_over
        if is_over:  # a program that was closed after its container: no other occasion comes
            self._remove_retired()

    def tidy(self, group: Group, session: Session, has_ended: Callable[[], bool]) -> None:
        """While a program runs: remove what is retired, and have a spare; where the program has ended before that was done, ask for help."""
        with self._lock:
            kind = next(reversed(self._kinds.values()), None)
            if kind is None or (not kind.ahead and not self._retired and kind.taken < 2):
                return
            retired, self._retired = self._retired, []
            ahead = kind.ahead
            if ahead:
                self._dead += [leaf.name for leaf in retired]
        for leaf in retired:
            if ahead:
                leaf.close()
                group.forget_leaf(leaf)
            else:
                leaf.remove()
        made = self._have_spare(kind, group)
        if (made or (retired and not ahead)) and has_ended():
            with self._lock:
                if not kind.is_alone and kind.ahead < MANY:
                    kind.ahead = max(FEW, 2 * kind.ahead)
        if kind.ahead:
            self._ask(kind, group, session)

    def _have_spare(self, kind: _Kind, group: Group) -> bool:
        """Whether one had to be made."""
        if kind.spare is not None or kind.taken < 2:
            return False
        with contextlib.suppress(OSError, SandboxError):  # the run that needs one will say what is wrong
            found = self._promised(kind, group) if kind.ahead else None
            spare = found or self._make(group, kind.limits)
            with self._lock:
                if kind.spare is None and self._kinds.get(kind.limits) is kind:
                    kind.spare = spare
                    return found is None
            self.retire(spare)
        return True

    def _ask(self, kind: _Kind, group: Group, session: Session) -> None:
        """Have the launcher remove the dead and make some for later."""
        with self._lock:
            if not kind.ahead or kind.promised > kind.ahead // 2 or self._kinds.get(kind.limits) is not kind:
                return
            steps = group.leaf_steps(kind.limits)
            if steps is None:
                kind.ahead, kind.is_alone = 0, True
                return
            names = [(NAME % next(self._numbers)).encode() for _ in range(kind.ahead - kind.promised)]
            batch = _Batch(deque(names), self._dead)
            self._dead = []
            kind.batches.append(batch)
            self.has_asked = True
            dying = list(batch.dying)
        removal = codec.named_steps([(wire.GroupStep.REMOVE, place, b"", b"") for place in group.leaf_places()], NAME_SIZE)
        making = codec.named_steps([(_step(value), before, after, value or b"") for before, after, value in steps], NAME_SIZE)
        with contextlib.suppress(BrokenError):  # then all ends
            for message in _messages([*(name.join(removal) for name in dying), *(name.join(making) for name in names)]):
                session.change_groups(message)

    def abandon(self) -> None:
        """Close our copies of the descriptors: in a forked child, which must not wait for the parent's lock."""
        for leaf in [*self._retired, *filter(None, [self._common]), *(kind.spare for kind in self._kinds.values() if kind.spare is not None)]:
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
            self._kinds = {}
            if self._common is not None:
                self._retired.append(self._common)
                self._common = None
            dead, self._dead = self._dead, []
        self._remove_retired()
        if dead and group is not None:
            group.remove_leaves(dead)


def _step(value: bytes | None) -> wire.GroupStep:
    return wire.GroupStep.MAKE if value is None else wire.GroupStep.WRITE


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
