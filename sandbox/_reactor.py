"""Waiting for many descriptors at once, for those who do not give a thread to each: an epoll with a function to call for each descriptor.

Theory of operation
-------------------
The epoll is a descriptor itself, so an event loop of any kind watches a `Reactor` as one of its own, with one reader
(`sandbox.aio`); and a thread that waits for two programs calls `dispatch` (`sandbox.interact`). Two things are gained over
giving each descriptor to the loop: how much is done at once is ours to bound (a loop would call a thousand readers in a row), and
registering costs 1 us instead of 10.

One event is taken at a time. With several at once, the first one's function could close a descriptor that another event is about, and
open a new one under its number. The kernel reports events in the order in which they happened (its list of what is ready is a queue,
and what stays ready goes to the end of it), so nobody starves, and the order of ends is known.
"""

from __future__ import annotations

import contextlib
import os
import select
import weakref
from collections.abc import Callable

Handler = Callable[[int, int], None]  # descriptor, events


class Reactor:
    """An epoll and what to do for each of its descriptors. For one thread at a time."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._handlers: dict[int, Handler] = {}
        _all.add(self)

    def fileno(self) -> int:
        """The descriptor that is readable when `dispatch` has something to do."""
        return self._epoll.fileno()

    def __len__(self) -> int:
        return len(self._handlers)

    def register(self, fd: int, mask: int, handler: Handler) -> None:
        """Call *handler* whenever one of the events *mask* (as of select.poll; hang-ups and errors always are) is there."""
        self._handlers[fd] = handler  # first: an event that nobody handles would come again and again
        try:
            self._epoll.register(fd, mask)
        except OSError:
            del self._handlers[fd]
            raise

    def modify(self, fd: int, mask: int) -> None:
        """Wait for other events."""
        self._epoll.modify(fd, mask)

    def unregister(self, fd: int) -> None:
        """Let go of *fd*; must come before it is closed. Raises: KeyError: it was not registered."""
        if not self._epoll.closed and fd in self._handlers:
            with contextlib.suppress(FileNotFoundError):  # an interrupt has come between the two, the last time
                self._epoll.unregister(fd)
        del self._handlers[fd]

    def dispatch(self, timeout: float | None = 0) -> bool:
        """Handle one event; False when there was none for *timeout* seconds. Raises what the handler does."""
        events = self._epoll.poll(timeout, 1)
        for fd, event in events:
            self._handlers[fd](fd, event)
        return bool(events)

    def close(self) -> None:
        """Close it; may be called twice. What is registered can still be unregistered."""
        self._epoll.close()


class Watch:
    """A `Reactor` as one run sees it: a `_pump.Poll` whose events go to *handler*."""

    def __init__(self, reactor: Reactor, handler: Handler) -> None:
        self._reactor: Reactor | None = reactor
        self._handler = handler
        self._masks: dict[int, int] = {}

    def register(self, fd: int, eventmask: int, /) -> None:
        """As of select.poll."""
        if self._reactor is None:
            pass
        elif fd in self._masks:
            self._reactor.modify(fd, eventmask)
        else:
            self._reactor.register(fd, eventmask, self._handler)
        self._masks[fd] = eventmask

    def unregister(self, fd: int, /) -> None:
        """As of select.poll."""
        if fd in self._masks and self._reactor is not None:
            self._reactor.unregister(fd)
        del self._masks[fd]

    def pause(self) -> None:
        """Take no events until `resume`."""
        reactor, self._reactor = self._reactor, None
        if reactor is not None:
            for fd in self._masks:
                reactor.unregister(fd)

    def resume(self, reactor: Reactor) -> None:
        """Take them again, from *reactor*."""
        self._reactor = reactor
        for fd, mask in self._masks.items():
            reactor.register(fd, mask, self._handler)

    def poll(self, timeout: float | None = None, /) -> list[tuple[int, int]]:
        """Look at this run's descriptors only; *timeout* in milliseconds, as of select.poll."""
        poll = select.poll()
        for fd, mask in self._masks.items():
            poll.register(fd, mask)
        return poll.poll(timeout)

    def close(self) -> None:
        """Let go of what is still registered."""
        while self._masks:
            fd, _ = self._masks.popitem()
            if self._reactor is not None:
                with contextlib.suppress(KeyError):  # an interrupt has come between noting and registering it
                    self._reactor.unregister(fd)


_all: weakref.WeakSet[Reactor] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    """Both processes have the same epoll: what this one took out of it would be taken from its parent."""
    for reactor in [*_all]:
        reactor.close()


os.register_at_fork(after_in_child=_after_fork_in_child)
