"""`Monitor`: a time series of what a container's programs use, and its table and plot.

Theory of operation
-------------------
A thread of its own reads the control group's files, which it keeps open, at moments fixed beforehand: the n-th sample is due n intervals after
the first one, whatever the ones before took. Between them it sleeps in poll(2) on two descriptors: one says that the caller has
stopped it, the other, init's pidfd, that the container has ended. When as many rows are kept as may be, every second one is dropped and the
interval doubles: a run of any length fits, and is covered from its beginning to its end.
"""

from __future__ import annotations

import bisect
import contextlib
import errno
import math
import os
import select
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final, Self

from sandbox._tables import Target, to_frame, write_csv
from sandbox._types import StrPath, to_count, to_seconds
from sandbox.cg.series import Sample, Sampler
from sandbox.errors import ClosedError, SetupError, UsageError, raise_shortage, shortages

if TYPE_CHECKING:
    from sandbox._session import Session
    from sandbox._started import Started
    from sandbox.net.counters import NetStats

__all__ = ["Monitor", "Sample"]

LEAST_INTERVAL_S: Final = 0.001
LEAST_ROWS: Final = 16
MAX_ROWS: Final = 10_000


class Monitor:
    """Samples of a container, taken while the ``with`` block runs; made by `Container.monitor`.

    Iterating gives the samples from the first one on, waits for the next one, and ends when the monitor was stopped, or the container was
    closed. `rows` are those that are there now. All methods may be called by any thread, during the block and after it.

    The thread takes Python's lock for about 0.05 ms per sample: a host program that computes in Python all the time makes
    samples up to some ms late, and each tells when it really was taken.
    """

    def __init__(
        self, started: Started, interval: float = 0.05, *, max_rows: int = MAX_ROWS, counters: Callable[[], NetStats | None] = lambda: None
    ) -> None:
        """*interval*: seconds, from 0.001 on. *max_rows*: how many are kept (10,000 take 8 MB). *counters*: of all networks of the container."""
        self._interval = to_seconds(interval, what="interval")
        if self._interval < LEAST_INTERVAL_S:
            raise UsageError(f"interval: {interval!r} is too short; give {LEAST_INTERVAL_S} s or more")
        self._max_rows = to_count(max_rows, what="max_rows", least=LEAST_ROWS) // 2 * 2  # even: halves are evenly spaced
        self._stride = 1
        self._started = started
        self._counters = counters
        self._rows: list[Sample] = []
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._owner = os.getpid()
        self._is_over = False
        self._error: BaseException | None = None
        self._stop_fd = -1
        self._due = 0  # of the intervals that we were asked for
        self._missed, self._taken, self._cpu_time = 0, 0, 0.0
        #: when the series began, in seconds since the epoch; `Sample.time` counts from there
        self.began: float | None = None

    def __repr__(self) -> str:
        state = "not started" if self._thread is None else "over" if self._is_over else "running"
        return f"Monitor({state}, {len(self._rows)} rows, interval={self.interval:g})"

    # ---- Life ----

    def start(self) -> Self:
        """Take the first sample, and go on in a thread.

        Raises: UsageError: it was started before, or the container has no control group (it needs a limit). ClosedError. SetupError: no thread.
        """
        if self._thread is not None:
            raise UsageError("the monitor was started before; make another one")
        with shortages("start a monitor"), contextlib.ExitStack() as stack:
            sampler = stack.enter_context(self._started.sampler())
            pidfd = _dup_pidfd(self._started.session)
            stack.callback(os.close, pidfd)
            self._stop_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            thread = threading.Thread(target=self._run, args=(sampler, (self._stop_fd, pidfd), time.monotonic()), name="sandbox-monitor", daemon=True)
            self.began = time.time()
            try:
                thread.start()
            except RuntimeError as error:
                os.close(self._stop_fd)
                self._stop_fd = -1
                raise SetupError("start a thread", errno.EAGAIN, step="monitor", hint="this process or its user has as many as it may") from error
            stack.pop_all()  # the thread's now
        self._thread = thread
        with self._changed:
            self._changed.wait_for(lambda: self._rows or self._is_over)
        return self

    def stop(self) -> None:
        """Take a last sample, and end the thread; twice is fine. `with` does it.

        Raises: OSError: samples could not be taken any more (out of descriptors, say); the rows until then are there.
        """
        stop_fd, self._stop_fd = self._stop_fd, -1
        if self._thread is None or stop_fd < 0:
            return
        try:
            if self._owner == os.getpid():  # a forked child has no such thread
                os.eventfd_write(stop_fd, 1)
                self._thread.join()
        finally:
            os.close(stop_fd)
        if self._error is not None:
            with shortages("take samples"):
                raise self._error

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        try:
            self.stop()
        except OSError:
            if kind is None:  # else the first error is the one to be told
                raise

    # ---- The thread ----

    def _run(self, sampler: Sampler, fds: tuple[int, int], begin: float) -> None:
        try:
            self._sample_until_stopped(sampler, fds, begin)
        except OSError as error:
            self._error = error
        finally:
            sampler.close()
            os.close(fds[1])
            with self._changed:
                self._is_over = True
                self._cpu_time = time.thread_time()
                self._changed.notify_all()

    def _sample_until_stopped(self, sampler: Sampler, fds: tuple[int, int], begin: float) -> None:
        poll = select.poll()
        for fd in fds:
            poll.register(fd, select.POLLIN)
        while (due := self.take(sampler, begin)) is not None:
            if _wait(poll, due):
                self.take_last(sampler, begin)
                return

    # ---- One sample ----

    def take(self, sampler: Sampler, begin: float) -> float | None:
        """Take the sample that is due; give when (time.monotonic()) the next one is. None: the container has gone.

        For those who wait by themselves: *begin* is when the first was due. Raises: OSError, as `stop`.
        """
        sample = self._read(sampler, begin)
        if sample is None:
            return None
        stride = self._keep(sample)
        self._due, missed = next_due(self._due, stride, (time.monotonic() - begin) / self._interval)
        self._missed += missed
        return begin + self._due * self._interval

    def take_last(self, sampler: Sampler, begin: float) -> None:
        """Take one more than was due: it tells what all runs used together."""
        last = self._read(sampler, begin)
        if last is not None:
            self._keep(last)

    def _read(self, sampler: Sampler, begin: float) -> Sample | None:
        sample = sampler.read(lambda: time.monotonic() - begin)
        passed = None if sample is None else self._counters()
        if sample is None or passed is None:
            return sample
        dropped = passed.received_dropped + passed.sent_dropped
        return sample._replace(net_received_bytes=passed.received_bytes, net_sent_bytes=passed.sent_bytes, net_dropped=dropped)

    def _keep(self, sample: Sample) -> int:
        """Add a row; give how many of the intervals asked for lie between two samples now."""
        with self._changed:
            if len(self._rows) >= self._max_rows:
                del self._rows[1::2]
                self._stride *= 2
            self._rows.append(sample)
            self._taken += 1
            self._cpu_time = time.thread_time()
            self._changed.notify_all()
            return self._stride

    # ---- What was found ----

    @property
    def interval(self) -> float:
        """Seconds between two samples, now: what was asked for, or twice that, four times ... when more rows came than are kept."""
        return self._interval * self._stride

    @property
    def missed(self) -> int:
        """How many samples could not be taken in time, and were left out: this process did not get the CPU. The others stay where they were due."""
        return self._missed

    @property
    def cost(self) -> float:
        """Seconds of CPU time that the thread took per sample, on average."""
        with self._changed:
            return self._cpu_time / self._taken if self._taken else 0.0

    @property
    def rows(self) -> tuple[Sample, ...]:
        """The samples that are kept, in order."""
        with self._changed:
            return tuple(self._rows)

    def __iter__(self) -> Iterator[Sample]:
        if self._thread is None:
            raise ClosedError("the monitor is not started; use `with`, or start()")
        seen = -1.0
        while (sample := self._next(seen)) is not None:
            seen = sample.time
            yield sample

    def _next(self, seen: float) -> Sample | None:
        """The first row that was taken after *seen*; None: there will be none."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_over or (self._rows and self._rows[-1].time > seen))
            return self.after(seen)

    def after(self, seen: float) -> Sample | None:
        """The first row that was taken later than *seen*, if there is one by now; does not wait."""
        with self._changed:
            at = bisect.bisect_right(self._rows, seen, key=lambda row: row.time)
            return self._rows[at] if at < len(self._rows) else None

    def to_csv(self, target: Target) -> None:
        """Write a head line, and a line for each row, to a path or a text file; what is not known is empty."""
        write_csv(target, Sample._fields, self.rows)

    def to_pandas(self) -> Any:  # noqa: ANN401 - a pandas.DataFrame
        """Give a pandas.DataFrame, a column for each field of `Sample`; what is not known is NaN.

        Raises: UnsupportedError: pandas is not installed.
        """
        return to_frame(Sample._fields, self.rows)

    def plot(self, target: StrPath, *, title: str = "") -> None:
        """Draw memory, CPU, processes, I/O and pressure, as far as they are known, over time, into a file (.png, .svg, .pdf ...).

        Needs: matplotlib, from ``pip install 'sandbox[plot]'``. Raises: UnsupportedError: it is not there. UsageError: fewer than two rows.
        """
        from sandbox._plot import draw

        draw(self.rows, target, title=title)


def next_due(due: int, stride: int, passed: float) -> tuple[int, int]:
    """Give when the next sample is due, and how many before it are missed; all in intervals since the beginning.

    *due*: when the last sample was; *stride*: from one to the next; *passed*: until now.
    """
    missed = max(0, math.floor(passed) - due) // stride
    return due + stride * (missed + 1), missed


def _dup_pidfd(session: Session) -> int:
    try:
        fd = os.dup(session.pidfd)
    except OSError as error:
        raise_shortage(error, "start a monitor")
        raise ClosedError("the container is closed") from None
    if not session.is_alive:  # and then the number may have been given to another file in between
        os.close(fd)
        raise ClosedError("the container has ended")
    return fd


def _wait(poll: select.poll, deadline: float) -> bool:
    """Wait until *deadline* (monotonic); True: one of the descriptors has something to say before."""
    left = deadline - time.monotonic()
    # poll(2) counts in ms and rounds up: it gets the whole ones, and the rest is slept.
    if poll.poll(max(0, math.floor(left * 1000))):
        return True
    left = deadline - time.monotonic()
    if left > 0:
        time.sleep(left)
    return False
