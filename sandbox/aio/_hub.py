"""What all containers of one event loop share: one reader in the loop, its turns, and patience where descriptors are short.

Theory of operation
-------------------
All descriptors of all containers of a loop are in one `Reactor`, whose descriptor is the only one that the loop knows of. The loop calls
`_on_ready` when something is ready; that handles what it can in `TURN_S` and leaves the rest to the next turn of the loop, for
which it is still readable. So a thousand programs that end at once keep nobody else waiting for longer than that.

Programs are started in the same way: the first few at once, in the task that asks; when more are asked for in the same turn of the loop they
queue, first come first served, and are started for `TURN_S` in each turn.

Where descriptors are short (EMFILE, or the last one was within an eighth of the limit), or a container has as many programs as it takes, a
program that is to be run waits until another one of this loop has ended; when there is none, it fails. What `popen` starts
fails at once, for its end may depend on the very caller that would wait.

A hub belongs to its loop, which holds it by the reader, and is dropped with it: so are the tasks then, and they let go of their programs.
It has descriptors only while something is registered, or a container is open.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import resource
import select
import time
import weakref
from collections import deque
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Final, Generic, Self, TypeVar

from sandbox._reactor import Reactor
from sandbox._runs import Run, is_shortage
from sandbox.errors import SetupError

TURN_S: Final = 0.001
AT_ONCE: Final = 4  # programs that are started in the tasks that ask, in one turn
FULL: Final = 7 / 8  # of the descriptors that this process may have: the rest is the rest of the program's
_T = TypeVar("_T")


class Job(Generic[_T]):
    """Something to be started in its turn."""

    def __init__(self, work: Callable[[], _T], key: object, *, is_patient: bool) -> None:
        self.work, self.key, self.is_patient = work, key, is_patient
        self.future: asyncio.Future[_T] = asyncio.get_running_loop().create_future()


class Hub:
    """See above. For the thread of its loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = weakref.ref(loop)
        self._reactor: Reactor | None = None
        self._held = 0
        self._left = AT_ONCE  # programs that may still be started at once in this turn
        self._has_turn = False  # `_turn` is scheduled
        self._jobs: deque[Job[Any]] = deque()
        self._parked: dict[object, deque[Job[Any]]] = {}  # those whose container is full
        self._is_short = False  # of descriptors: until a program has ended
        self._runs: dict[Run, object] = {}

    # ---- Descriptors ----

    @property
    def reactor(self) -> Reactor:
        """The reactor, which the loop watches from now on."""
        if self._reactor is None:
            self._reactor = Reactor()
            asyncio.get_running_loop().add_reader(self._reactor.fileno(), self._on_ready)
        return self._reactor

    def hold(self) -> None:
        """Keep the reactor until `release`."""
        self._held += 1

    def release(self) -> None:
        """Let go of the reactor; without descriptors, it goes."""
        self._held -= 1
        self.tidy()

    def tidy(self) -> None:
        """Close the reactor when nobody needs it."""
        if self._reactor is None or self._held > 0 or len(self._reactor):
            return
        loop = self._loop()
        if loop is not None and not loop.is_closed():
            if loop is not _running():  # a container was made in one loop and closed in another
                loop.call_soon_threadsafe(self.tidy)
                return
            loop.remove_reader(self._reactor.fileno())
        self._reactor.close()
        self._reactor = None

    def _on_ready(self) -> None:
        until = time.monotonic() + TURN_S
        while self._reactor is not None and self._reactor.dispatch() and time.monotonic() < until:
            pass

    async def ready(self, fd: int, *, mask: int = select.POLLIN, timeout: float | None = None) -> bool:
        """Wait until *fd* is readable (or what *mask* says); False: it was not for *timeout* seconds. For one task at a time."""
        return await Spot(fd, mask).wait(timeout)

    # ---- Programs ----

    async def start(self, work: Callable[[], _T], key: object, *, is_patient: bool = False) -> _T:
        """Do *work* in its turn: in this one, if few have asked for more. *is_patient*: wait where it fails for a shortage.

        When this is cancelled, *work* may have been done.
        """
        job = Job(work, key, is_patient=is_patient)
        if self._left > 0 and not self._jobs and not self._is_short:
            self._left -= 1
            self._do(job)
        else:
            self._jobs.append(job)
        self._take_turn()
        try:
            return await job.future
        except BaseException:
            if job.future.done() and not job.future.cancelled():
                job.future.exception()  # it is known
            for queue in (self._jobs, *self._parked.values()):
                with contextlib.suppress(ValueError):
                    queue.remove(job)
            raise

    def _take_turn(self) -> None:
        if not self._has_turn:
            self._has_turn = True
            asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        self._has_turn = False
        self._left = AT_ONCE
        until = time.monotonic() + TURN_S
        while self._jobs and not self._is_short and time.monotonic() < until:
            self._do(self._jobs.popleft())
        if self._jobs and not self._is_short:
            self._take_turn()

    def _do(self, job: Job[_T]) -> None:
        if job.future.done():  # cancelled
            return
        try:
            job.future.set_result(job.work())
        except Exception as error:  # noqa: BLE001 - whatever it is, it is for the task that asked
            if not (job.is_patient and isinstance(error, SetupError) and is_shortage(error) and self._put_off(job, error.errno)):
                job.future.set_exception(error)

    def _put_off(self, job: Job[_T], number: int | None) -> bool:
        """Wait for the end of a program that holds what *job* lacks, if there is one."""
        if number == errno.EAGAIN:  # the container is full
            if not any(key is job.key for key in self._runs.values()):
                return False
            self._parked.setdefault(job.key, deque()).append(job)
            return True
        if not self._runs:
            return False
        self._jobs.appendleft(job)
        self._is_short = True
        return True

    def note(self, run: Run, key: object) -> None:
        """A program runs from now on, until `forget`."""
        self._runs[run] = key
        self._is_short = run.fd > FULL * resource.getrlimit(resource.RLIMIT_NOFILE)[0]

    def forget(self, run: Run) -> None:
        """It has ended; whoever waits for what it held may go on."""
        key = self._runs.pop(run)
        self._is_short = False
        if queue := self._parked.get(key):
            self._jobs.appendleft(queue.popleft())
            if not queue:
                del self._parked[key]
        if self._jobs:
            with contextlib.suppress(RuntimeError):  # the loop is no more, and with it those who wait
                self._take_turn()


class Spot:
    """A descriptor that any number of tasks wait for."""

    def __init__(self, fd: int, mask: int = select.POLLIN) -> None:
        self._fd = fd
        self._mask = mask
        self._hub: Hub | None = None  # while it is registered
        self._waiting: set[asyncio.Future[bool]] = set()

    async def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is ready; False: it was not for *timeout* seconds, or was let go of."""
        loop = asyncio.get_running_loop()
        if self._hub is None:
            self._hub = hub()
            self._hub.reactor.register(self._fd, self._mask, lambda _fd, _event: self._wake(is_ready=True))
        future: asyncio.Future[bool] = loop.create_future()
        self._waiting.add(future)
        timer = None if timeout is None else loop.call_later(timeout, lambda: None if future.done() else future.set_result(False))
        try:
            return await future
        finally:
            if timer is not None:
                timer.cancel()
            self._waiting.discard(future)
            if not self._waiting:
                self.let_go()

    def _wake(self, *, is_ready: bool) -> None:
        # Now, not when the tasks go on: it stays ready, and somebody else may have the descriptor by then.
        waiting, self._waiting = self._waiting, set()
        self.let_go()
        for future in waiting:
            if not future.done():
                future.set_result(is_ready)

    def let_go(self) -> None:
        """Wake all who wait; must come before the descriptor is closed."""
        found, self._hub = self._hub, None
        if found is not None:
            found.reactor.unregister(self._fd)
            found.tidy()
        if self._waiting:
            self._wake(is_ready=False)


def _running() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


# Weakly: it leads back to the loop, by the tasks that wait for its programs. Who holds it is the loop, by the reader, and those tasks.
_hubs: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, weakref.ref[Hub]] = weakref.WeakKeyDictionary()


def hub() -> Hub:
    """The hub of the running loop."""
    loop = asyncio.get_running_loop()
    known = _hubs.get(loop)
    found = None if known is None else known()
    if found is None:
        found = Hub(loop)
        _hubs[loop] = weakref.ref(found)
    return found


class Deaf:
    """Waits that a cancellation does not end: it is raised at the end of the block. For cleaning up, where all waits are bounded."""

    def __init__(self) -> None:
        self.cancelled: asyncio.CancelledError | None = None

    async def wait(self, make: Callable[[], Awaitable[_T]]) -> _T:
        """Await what *make* gives, again after each cancellation."""
        while True:
            try:
                return await make()
            except asyncio.CancelledError as error:
                self.cancelled = error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.cancelled is not None and error is None:
            raise self.cancelled
