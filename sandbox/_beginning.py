"""A container's beginning, from the request for its clone until its init is ready; and what its failure leaves to be taken back."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Final

from sandbox._compile import Compiled
from sandbox._launch import codec, driver
from sandbox._launch.driver import Channel
from sandbox._sys.fds import close_all
from sandbox.errors import BrokenError, ProtocolError, SandboxError

START_S: Final = 60.0  # an init that says nothing for so long is broken
GONE_S: Final = 10.0


class _Ending:
    """A block that calls *end* when it fails, in few steps."""

    __slots__ = ("_end",)

    def __init__(self, end: Callable[[], None]) -> None:
        self._end = end

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is not None:
            self._end()


class Beginning:
    """One container until it is ready; `Session` goes on from there."""

    pidfd = -1
    _opened: Sequence[int] = ()  # what the launcher has opened for us

    def __init__(self, compiled: Compiled) -> None:
        self.owner = os.getpid()
        self.compiled = compiled
        self.launcher: driver.Launcher | None = None
        self._host_ops_before = 0
        self.pid = 0
        self.skipped: tuple[tuple[int, int], ...] = ()
        self._starting: Channel | None = None
        self._closed = False
        self._failure: SandboxError | None = None
        self._is_ready = False
        self._is_gone = False

    def __del__(self) -> None:
        # Not the plan: for one that an interrupt has kept its caller from taking over. Its channels close themselves likewise, and so it ends.
        if self.pidfd >= 0 and self.owner == os.getpid():
            close_all((self.pidfd, *self._opened))

    def _take_over(self, channel: Channel) -> None:
        """Go on, on the channel on which init has said that it is ready."""
        raise NotImplementedError

    def start(self, request: bytes, fds: Sequence[int]) -> None:
        """Clone init and wait until it is ready.

        Raises: SetupError with the operation that failed; BrokenError.
        """
        self.begin(request, fds)
        self.await_ready()

    def begin(self, request: bytes, fds: Sequence[int]) -> None:
        """Ask for init's clone, and go on: `await_ready` waits. With CREATE_PREPARED, `complete` must come between the two."""
        self.launcher = driver.current()
        self._starting = self.launcher.create(request, fds)

    @property
    def has_begun(self) -> bool:
        """Whether the launcher has answered: with init's clone, or that it failed."""
        return self._is_ready or self.pid > 0 or (self._starting is not None and self._starting.has_event())

    @property
    def is_ready(self) -> bool:
        """Whether init has said that it is ready."""
        return self._is_ready

    def look(self) -> bool:
        """Whether a container that was asked for ahead is ready, as far as is known without waiting. Raises: as `await_ready`."""
        while not self._is_ready and self._starting is not None and self._starting.has_event():
            self.take_start()
        return self._is_ready

    def complete(self, compiled: Compiled, fds: Sequence[int]) -> None:
        """Have a prepared init carry out what *compiled* has beside what it was prepared with.

        Raises: SetupError, BrokenError: it is not there, or no more.
        """
        self.compiled = compiled
        self._host_ops_before = int.from_bytes(compiled.root_host_ops[:4], "little")
        channel = self._starting
        if self.launcher is None or channel is None:
            raise AssertionError("begin() comes first")
        with self._ending_on_failure():
            self._await_clone(channel)
            self.launcher.complete(codec.encode_complete(self.pid, compiled.host_ops, compiled.late), fds)

    def _await_clone(self, channel: Channel) -> None:
        while not self.pid:
            self._on_event(channel)

    def take_opened(self, count: int) -> list[int]:
        """The *count* descriptors that the launcher has opened while it made control groups; they are the caller's then.

        Raises: BrokenError: it could not make all of them.
        """
        channel = self._starting
        if channel is None:
            raise AssertionError("begin() comes first")
        with self._ending_on_failure():
            self._await_clone(channel)
            if len(self._opened) != count:
                raise BrokenError("the launcher could not make the control groups ahead")
        found, self._opened = list(self._opened), ()
        return found

    def await_ready(self) -> None:
        """Wait until init has carried everything out. Raises: as `start`; nothing is left then."""
        channel = self._starting
        if channel is None:
            raise AssertionError("begin() comes first")
        with self._ending_on_failure():
            while not (self._is_ready or self._on_event(channel)):
                pass
        self._take_over(channel)

    def take_start(self) -> bool:
        """Take the next event of a start, which must be there (`channel_fd` is readable); whether `await_ready` would not wait now.

        Raises: as `await_ready`.
        """
        channel = self._starting
        if channel is None:
            raise AssertionError("begin() comes first")
        with self._ending_on_failure():
            if self._failure is None:
                self._is_ready = self._on_event(channel, stay=False)
            elif self._take_last(channel):
                raise self._failure
        return self._is_ready

    def _ending_on_failure(self) -> _Ending:
        return _Ending(self._end_on_failure)

    def _end_on_failure(self) -> None:
        self._closed = True  # first: an interrupt may come again in here, and `close` would use what is closed
        if self._starting is not None:
            self._starting.close()
        self._drop_pidfd(kill=True)

    def _on_event(self, channel: Channel, *, stay: bool = True) -> bool:
        """Take the next event of a start; say whether it was the last, READY. Without *stay*, a failure waits for GONE in `_failure`."""
        event, fds = self._next(channel)
        if isinstance(event, codec.Cloned):
            self._take_pidfd(event, fds)
            return False
        close_all(fds)
        if isinstance(event, codec.Ready):
            self.skipped = event.skipped
            return True
        if isinstance(event, codec.Failed):
            from sandbox._refusals import setup_error  # needed by few

            self._failure = setup_error(event, self.compiled.ops, self._host_ops_before)
            if not stay:
                return False
            self._await_gone(channel)
            raise self._failure
        if isinstance(event, codec.Gone):
            raise BrokenError(f"the container's init died while it was set up (wait status {event.status})")
        raise ProtocolError(f"{type(event).__name__} before READY")

    def _take_pidfd(self, event: codec.Cloned, fds: list[int]) -> None:
        if not fds or self.pidfd >= 0:
            close_all(fds)
            raise ProtocolError(f"CLONED with {len(fds)} descriptors{' again' if self.pidfd >= 0 else ''}")
        self.pid, self.pidfd, self._opened = event.pid, fds[0], fds[1:]

    @staticmethod
    def _next(channel: Channel) -> tuple[codec.Event, list[int]]:
        try:
            got = channel.receive(START_S)
        except TimeoutError:
            raise BrokenError(f"the container's init said nothing for {START_S:.0f} s") from None
        if got is None:
            raise BrokenError("the launcher went away while a container was set up, or could not take the descriptors of the request (ulimit -Hn)")
        return got

    def kill(self) -> None:
        """Kill init, and with it everything in the container. Does not wait."""
        if self.pidfd >= 0 and self.owner == os.getpid():
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def _await_gone(self, channel: Channel) -> bool:
        """Whether the launcher said it; else it has died."""
        deadline = time.monotonic() + GONE_S
        while not self._is_gone and not self._take_last(channel, max(0.0, deadline - time.monotonic())):
            pass
        return self._is_gone

    def _take_last(self, channel: Channel, timeout: float = 0) -> bool:
        """Take an event after which there is at most the end; whether it was that, or the launcher has died. Raises: TimeoutError."""
        got = channel.receive(timeout)
        if got is None:
            return True
        if isinstance(got[0], codec.Cloned):  # it was ended before anybody asked who it is
            self._take_pidfd(got[0], got[1])
            self.kill()
            return False
        close_all(got[1])
        self._is_gone = isinstance(got[0], codec.Gone)
        return self._is_gone

    def _drop_pidfd(self, *, kill: bool) -> None:
        opened, self._opened = self._opened, ()
        close_all(opened)
        try:
            if kill:
                self.kill()
        finally:
            fd, self.pidfd = self.pidfd, -1  # first: an interrupt in between shall not have it closed twice
            if fd >= 0:
                os.close(fd)
