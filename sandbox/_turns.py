"""Permits for a number of things at once: all or none, in the order in which they were asked for."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from attrs import define, field

from sandbox.errors import ClosedError, UsageError

_FOREVER: Final = threading.TIMEOUT_MAX


@define(eq=False)
class Turns:
    """*size* permits. Who asks for several gets them together, and is not overtaken: so nobody waits with some in hand. Thread-safe.

    *lock* is the caller's, who may hold it around `take_now` and `put`.
    """

    size: int
    lock: threading.Lock = field(factory=threading.Lock)
    out: int = 0
    is_closed: bool = False
    _queue: deque[object] = field(factory=deque[object])
    _changed: threading.Condition = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._changed = threading.Condition(self.lock)

    def take_now(self, count: int) -> bool:
        """With the lock held: take *count* if nobody waits and so many are free."""
        if self._queue or self.is_closed or self.out + count > self.size:
            return False
        self.out += count
        return True

    def wait(self, count: int, timeout: float | None, closed: Callable[[], ClosedError]) -> None:
        """With the lock held: take *count*, waiting for them.

        Raises: TimeoutError; ClosedError when `close` is called meanwhile; UsageError: there are never so many.
        """
        if count > self.size:
            raise UsageError(f"acquire({count}): the pool has {self.size} containers; make it with size={count}")
        if self.take_now(count):
            return
        ticket = object()
        self._queue.append(ticket)
        until = time.monotonic() + (_FOREVER if timeout is None else timeout)
        try:
            while not self.is_closed and (self._queue[0] is not ticket or self.out + count > self.size):
                left = until - time.monotonic()
                if left <= 0:
                    raise TimeoutError(f"acquire({count}): not free within {timeout} s; {self.out} of {self.size} containers are in use")
                self._changed.wait(min(left, _FOREVER))
            if self.is_closed:
                raise closed()
            self.out += count
        finally:
            self._queue.remove(ticket)
            self._changed.notify_all()  # the next one's turn

    def put(self, count: int) -> None:
        """With the lock held: give *count* back."""
        self.out -= count
        if self._queue:
            self._changed.notify_all()

    def close(self) -> None:
        """With the lock held: whoever waits or asks gets ClosedError."""
        self.is_closed = True
        self._changed.notify_all()
