"""`aio.Monitor`: the series of `sandbox.Monitor`, taken by the event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from sandbox import monitoring
from sandbox._tables import Target
from sandbox._types import StrPath
from sandbox.cg.series import Sample, Sampler
from sandbox.errors import ClosedError, UsageError

if TYPE_CHECKING:
    from sandbox._started import Started
    from sandbox.net.counters import NetStats


class Monitor:
    """Samples of a container, taken while the ``async with`` block runs; made by `Container.monitor`.

    ``async for`` gives the samples from the first one on, waits for the next one, and ends when the monitor was stopped, or at the first
    sample that finds the container gone. Each sample keeps the loop for about 0.05 ms; a loop that is kept by others makes samples late, and
    each tells when it really was taken. `rows`, `interval`, `missed`, `to_csv`, `to_pandas` and `plot` are those of `sandbox.Monitor`.
    """

    def __init__(self, started: Started, interval: float, max_rows: int, counters: Callable[[], NetStats | None]) -> None:
        self._started = started
        self._series = monitoring.Monitor(started, interval, max_rows=max_rows, counters=counters)
        self._task: asyncio.Task[None] | None = None
        self._news = asyncio.Event()
        #: when the series began, in seconds since the epoch; `Sample.time` counts from there
        self.began: float | None = None

    def __repr__(self) -> str:
        state = "not started" if self._task is None else "over" if self._task.done() else "running"
        return f"aio.Monitor({state}, {len(self.rows)} rows, interval={self.interval:g})"

    async def start(self) -> Self:
        """Take the first sample, and go on. Raises: UsageError, ClosedError: as `sandbox.Monitor.start`."""
        if self._task is not None:
            raise UsageError("the monitor was started before; make another one")
        sampler = self._started.sampler()
        begin, self.began = time.monotonic(), time.time()
        try:
            due = self._series.take(sampler, begin)
        except BaseException:
            sampler.close()
            raise
        self._task = asyncio.create_task(self._run(sampler, begin, due), name="sandbox-monitor")
        return self

    async def _run(self, sampler: Sampler, begin: float, due: float | None) -> None:
        try:
            while due is not None:
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                due = self._series.take(sampler, begin)
                self._news.set()
        except asyncio.CancelledError:
            self._series.take_last(sampler, begin)
            raise
        finally:
            sampler.close()
            self._news.set()

    async def stop(self) -> None:
        """Take a last sample, and end; twice is fine. ``async with`` does it.

        Raises: OSError: samples could not be taken any more (out of descriptors, say); the rows until then are there.
        """
        if self._task is None:
            return
        self._task.cancel()
        await asyncio.wait([self._task])
        if not self._task.cancelled() and (error := self._task.exception()) is not None:
            raise error

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            await self.stop()
        except OSError:
            if kind is None:  # else the first error is the one to be told
                raise

    async def __aiter__(self) -> AsyncIterator[Sample]:
        if self._task is None:
            raise ClosedError("the monitor is not started; use `async with`, or start()")
        seen = -1.0
        while True:
            self._news.clear()
            while (sample := self._series.after(seen)) is not None:
                seen = sample.time
                yield sample
            if self._task.done():
                return
            await self._news.wait()

    # ---- What was found ----

    @property
    def interval(self) -> float:
        """See `sandbox.Monitor.interval`."""
        return self._series.interval

    @property
    def missed(self) -> int:
        """How many samples could not be taken in time, and were left out: others kept the loop."""
        return self._series.missed

    @property
    def rows(self) -> tuple[Sample, ...]:
        """The samples that are kept, in order."""
        return self._series.rows

    def to_csv(self, target: Target) -> None:
        """See `sandbox.Monitor.to_csv`."""
        self._series.to_csv(target)

    def to_pandas(self) -> Any:  # noqa: ANN401 - a pandas.DataFrame
        """See `sandbox.Monitor.to_pandas`."""
        return self._series.to_pandas()

    def plot(self, target: StrPath, *, title: str = "") -> None:
        """See `sandbox.Monitor.plot`."""
        self._series.plot(target, title=title)
