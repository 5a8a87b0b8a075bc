"""The control groups of one container's runs."""

from __future__ import annotations

import contextlib
import itertools
import threading
from typing import ClassVar

from attrs import define, field

from sandbox.cg import Group, Leaf, Limits
from sandbox.errors import SandboxError


@define(eq=False)
class Leaves:
    """Each run gets a fresh group; what making and removing them costs (0.4 ms on
    cgroup v1) is paid while something else is waited for: the first is made while init is at work, and from the second run on, while a
    program runs, the one of the run before is removed, and one made for the next.
    """

    _numbers: itertools.count[int] = field(factory=lambda: itertools.count(1))
    _spare: Leaf | None = None
    _limits: Limits | None = None  # the spare's, and the last run's
    _taken: int = 0
    _is_over: bool = False
    _retired: list[Leaf] = field(factory=list[Leaf])
    _lock: threading.Lock = field(factory=threading.Lock)

    def take(self, group: Group, limits: Limits | None) -> Leaf:
        """A fresh leaf."""
        with self._lock:
            spare, had = self._spare, self._limits
            self._spare, self._limits = None, limits
            self._taken += 1
        if spare is None:
            return self._make(group, limits)
        fits = had == limits
        try:
            fits = fits or (had is None and limits is not None and group.limit_leaf(spare, limits))
        finally:
            if not fits:
                self.retire(spare)
        return spare if fits else self._make(group, limits)

    FIRST: ClassVar[str] = "exec-1"

    def prepare(self, group: Group, *, adopt: bool = False) -> None:
        """Make the first one, without limits of its own, unless it is there. *adopt*: see `Group.make_leaf`."""
        if self._spare is None:
            self._spare = self._make(group, None, adopt=adopt)

    def _make(self, group: Group, limits: Limits | None, *, adopt: bool = False) -> Leaf:
        return group.make_leaf(f"exec-{next(self._numbers)}", limits, adopt=adopt)

    def retire(self, leaf: Leaf) -> None:
        """Have it removed at the next occasion."""
        leaf.close()
        with self._lock:
            self._retired.append(leaf)
            is_over = self._is_over
        if is_over:  # a program that was closed after its container: no other occasion comes
            self.clear()

    def tidy(self, group: Group) -> None:
        """Remove what is retired, and make a spare."""
        with self._lock:
            retired, self._retired = self._retired, []
            make = self._spare is None and self._taken > 1
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

    def abandon(self) -> None:
        """Close our copies of the descriptors: in a forked child, which must not wait for the parent's lock."""
        for leaf in self._retired if self._spare is None else [*self._retired, self._spare]:
            leaf.close()

    def clear(self) -> None:
        """Remove all, now and what is retired later."""
        with self._lock:
            self._is_over = True
            retired, self._retired = self._retired, []
            spare, self._spare = self._spare, None
        for leaf in retired if spare is None else [*retired, spare]:
            with contextlib.suppress(OSError):  # a program is still in it: it goes with the container, and then its group
                leaf.remove()
