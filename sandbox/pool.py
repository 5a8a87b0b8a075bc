"""`Pool`: warm containers for many short runs, each of which finds a container as if nobody had been there before.

Theory of operation
-------------------
docs/design/pool.md says what "as if nobody had been there" covers, how it is proven, and what was measured. In short: a container is
handed on only if it is known that its last user left nothing (`_box`); otherwise it is closed, and another one is made. The first takes about
a tenth of an exec, and happens while nobody waits; the second costs about what `sandbox.run` costs, in a thread of the pool's own (the
*keeper*) as long as there are idle containers to go on with.

A use begins with a permit (`_turns`): as many as the pool's size are out at once, and several are given together or not at all. With it
comes an idle container, or else a new one, made by whoever wants it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Final, Self

from attrs import frozen

from sandbox._box import Box, check_spec, traceless, why_not_kept
from sandbox._keeper import Keeper
from sandbox._leases import Lease, Leases, run_in
from sandbox._turns import Turns
from sandbox._types import Argument, StrPath, to_bool, to_count, to_seconds
from sandbox.container import Container
from sandbox.errors import ClosedError, SandboxError, SetupError, UsageError
from sandbox.process import Result

__all__ = ["Lease", "Leases", "Pool", "PoolStats"]

MOST: Final = 4096
HOPELESS: Final = 4
FEW_THREADS: Final = "a limit on processes is reached (RLIMIT_NPROC, pids.max, kernel.pid_max)"
TICK_S: Final = 0.005  # the kernel's coarse clock goes on each 1 to 10 ms


@frozen
class PoolStats:
    """What a pool has done and has: containers *made*; how often one was *kept* and used again, and how often *replaced* (or one too
    many); how many are *idle* now, and how many *leased*.
    """

    made: int
    kept: int
    replaced: int
    idle: int
    leased: int


class Pool(Executor):
    """Containers of one kind, kept warm. Each use finds one in which nothing of an earlier use is left: no file, process, IPC object, socket,
    memory charge, or number of a process.

    image: as `Container`'s, or a `Container` that was not started: then the pool's are like that one.
    size: how many are in use at once (None: as many as there are CPUs). max_idle: how many wait for use at most (None: *size*).
    reuse: False: each use gets a new container, whatever the last one did. With True, a container is handed on after a use that has
        provably left nothing; in return /proc shows programs their own processes and nothing else, and there is no /sys.
    options: `Container`'s.

    Nothing happens before ``with``, `start` or the first use. Thread-safe; a forked child must not use it (ClosedError).
    Raises: UsageError: a wrong value; or containers that share with one another by their nature (a writable `Bind`, ``net="host"``).
    """

    def __init__(
        self,
        image: StrPath | Container | None = None,
        *,
        size: int | None = None,
        max_idle: int | None = None,
        reuse: bool = True,
        **options: Any,  # noqa: ANN401 - Container's
    ) -> None:
        if isinstance(image, Container) and options:
            raise UsageError(f"{min(options)}: say that to the Container which the pool's are to be like")
        like = image if isinstance(image, Container) else Container(image, **options)
        spec = like.spec
        check_spec(spec, in_network=like.network is not None)
        self.size = len(os.sched_getaffinity(0)) if size is None else to_count(size, what="size", most=MOST)
        self.max_idle = self.size if max_idle is None else to_count(max_idle, what="max_idle", least=0, most=MOST)
        #: why containers are replaced after each use; "" when they need not be
        self.why_replaced = why_not_kept(spec) if to_bool(reuse, what="reuse") else "reuse=False"
        self.spec = spec if self.why_replaced else traceless(spec)
        self._owner = os.getpid()
        self._turns = Turns(self.size)
        self._lock = self._turns.lock
        self._idle: list[Box] = []
        self._unsettled: deque[Box] = deque()  # new ones, of the keeper's
        self._doomed: list[Box] = []
        self._leased: set[Box] = set()
        self._being_made = 0
        self._has_started = False
        self._in_vain = 0  # uses in a row that have left something; approximate, with several threads
        self._made = self._kept = self._replaced = 0
        self._keeper = Keeper(self._tidy)
        self._workers: ThreadPoolExecutor | None = None

    def __repr__(self) -> str:
        return f"Pool(size={self.size}, {'closed' if self._turns.is_closed else self.stats()})"

    # ---- Life ----

    def start(self) -> Self:
        """Make the first container, so that what is wrong with them shows now; others follow while nobody waits.

        Raises: what `Container.create` does; ClosedError.
        """
        self._check()
        with self._lock:
            if self._has_started:
                return self
            self._has_started = True
        try:
            box = self._make()
        except BaseException:
            self._has_started = False
            raise
        self._add_unsettled(box)
        return self

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is None and not self._turns.is_closed:
            self.shutdown()
        self.close()

    def close(self) -> None:
        """Kill what runs and remove everything; uses that are under way raise ClosedError. Twice is fine; in a forked child it does nothing."""
        if os.getpid() != self._owner:
            return
        with self._lock:
            self._turns.close()
            boxes = [*self._idle, *self._unsettled, *self._doomed, *self._leased]
            self._idle.clear()
            self._unsettled.clear()
            self._doomed.clear()
            workers = self._workers
        if workers is not None:
            workers.shutdown(wait=False, cancel_futures=True)
        self._keeper.close()  # what it is making is added to the doomed
        with self._lock:
            boxes += self._doomed
            self._doomed.clear()
        _close_all(boxes)
        if workers is not None:
            workers.shutdown(wait=True)

    def stats(self) -> PoolStats:
        """What it has done, and has."""
        with self._lock:
            idle = len(self._idle) + len(self._unsettled)
            return PoolStats(made=self._made, kept=self._kept, replaced=self._replaced, idle=idle, leased=self._turns.out)

    def _check(self) -> None:
        if os.getpid() != self._owner:
            raise ClosedError("the pool belongs to the process that made it; a forked child makes its own")
        if self._turns.is_closed:
            raise self._closed_error()

    @staticmethod
    def _closed_error() -> ClosedError:
        return ClosedError("the pool was closed; make another one")

    # ---- Uses ----

    def exec(self, argv: Sequence[Argument], **options: Any) -> Result:  # noqa: ANN401 - Container.exec's
        """Run a program to its end in a container of its own, as `Container.exec`; waits for one.

        Raises: as `Container.exec`; ClosedError when the pool is closed.
        """
        box = self._take_idle() or self._take(1, None)[0]
        try:
            return run_in(box, argv, options)
        except ClosedError:
            self._check()  # in words of the pool
            raise
        finally:
            self._give_one(box)

    def acquire(self, count: int = 1, *, timeout: float | None = None) -> Leases:
        """Lease *count* containers at once, or none: whoever waits for several holds none meanwhile, and is not overtaken by others.

        Raises: TimeoutError after *timeout* seconds; UsageError: more than the pool's size; ClosedError.
        """
        boxes = self._take(to_count(count, what="acquire"), None if timeout is None else to_seconds(timeout, what="timeout"))
        return Leases(boxes, self._give)

    @contextlib.contextmanager
    def lease(self, *, timeout: float | None = None) -> Generator[Lease]:
        """One container: ``with pool.lease() as box``. Raises: as `acquire`."""
        with self.acquire(timeout=timeout) as leases:
            yield leases[0]

    def _take_idle(self) -> Box | None:
        """One that is idle, if nobody waits: this is the hot path."""
        self._check()
        with self._lock:
            if not self._idle or not self._turns.take_now(1):
                return None
            box = self._idle.pop()  # whose memory the processors still have
            self._leased.add(box)
        if self._is_ready(box):
            return box
        box.spend()
        self._give_one(box)
        return None

    def _is_ready(self, box: Box) -> bool:
        """Whether an idle one may be used. The counts are approximate, with several threads."""
        was_used = box.was_used
        try:
            is_ready = box.is_ready()
        except (SandboxError, OSError):  # it is broken
            is_ready = False
        if was_used and is_ready:
            self._kept += 1
            self._in_vain = 0
        return is_ready

    def _take(self, count: int, timeout: float | None) -> list[Box]:
        self._check()
        turns, found = self._turns, list[Box]()
        with self._lock:
            if not turns.take_now(count):
                turns.wait(count, timeout, self._closed_error)
        try:
            while len(found) < count:
                box = self._find() or self._make_now()
                found.append(box)
                with self._lock:
                    self._leased.add(box)
                self._check()
        except BaseException:
            self._give(found)
            with self._lock:
                turns.put(count - len(found))
            raise
        return found

    def _find(self) -> Box | None:
        """An idle one that is ready; those that are not are replaced."""
        while True:
            with self._lock:
                if not self._idle and not self._unsettled:
                    return None
                box = self._idle.pop() if self._idle else self._unsettled.popleft()
            if self._is_ready(box):
                return self._with_hope(box)
            self._in_vain += 1
            self._doom([box])

    def _make_now(self) -> Box:
        box = self._make()
        try:
            return self._with_hope(box)
        except BaseException:
            self._doom([box])
            raise

    def _with_hope(self, box: Box) -> Box:
        """That a new one may be handed on later takes a few milliseconds now. They are spent unless the last uses have all left something."""
        if self._in_vain < HOPELESS:
            box.settle_soon()
        return box

    def _make(self) -> Box:
        box = Box(self.spec).create()
        with self._lock:
            self._made += 1
        return box

    def _give(self, boxes: Sequence[Box]) -> None:
        """Take back what was leased."""
        for box in boxes:
            self._give_one(box)

    def _give_one(self, box: Box) -> None:
        is_kept = was_clean = False
        try:
            is_kept = box.give_back()
            was_clean = not is_kept and box.was_clean()
        except (SandboxError, OSError):  # it is broken
            is_kept = False
        if was_clean:
            self._in_vain = 0
        elif not is_kept:
            self._in_vain += 1
        with self._lock:
            self._leased.discard(box)
            is_kept = is_kept and not self._turns.is_closed and len(self._idle) < self.max_idle
            if is_kept:
                self._idle.append(box)
            self._turns.put(1)
        if not is_kept:
            self._doom([box])

    def _doom(self, boxes: list[Box]) -> None:
        with self._lock:
            self._replaced += len(boxes)
            self._doomed += boxes
            is_closed = self._turns.is_closed
        if is_closed or not self._keeper.wake():
            self._close_doomed()  # there is no keeper any more, or none yet

    # ---- In the keeper's thread ----

    def _tidy(self) -> float | None:
        """Close what is doomed, and have enough idle ones."""
        self._close_doomed()
        if self._lacks_one():
            try:
                box = self._make()
            except (SandboxError, OSError):
                return None  # whoever needs one gets the reason
            finally:
                with self._lock:
                    self._being_made -= 1
            self._add_unsettled(box)
            return 0.0
        return self._settle()

    def _close_doomed(self) -> None:
        with self._lock:
            doomed, self._doomed = self._doomed, []
        _close_all(doomed)

    def _lacks_one(self) -> bool:
        with self._lock:
            idle = len(self._idle) + len(self._unsettled) + self._being_made
            lacks = idle < self.max_idle and idle + self._turns.out < self.size and not self._turns.is_closed
            self._being_made += lacks
            return lacks

    def _add_unsettled(self, box: Box) -> None:
        with self._lock:
            (self._doomed if self._turns.is_closed else self._unsettled).append(box)
        self._keeper.wake()

    def _settle(self) -> float | None:
        """Have the new ones answer that they are ready; None: all are."""
        with self._lock:
            box = self._unsettled.popleft() if self._unsettled else None
        if box is None:
            return None
        try:
            is_settled = box.settle()
        except (SandboxError, OSError):  # it has died
            self._doom([box])
            return 0.0
        with self._lock:
            # Another one may have come back meanwhile.
            is_surplus = self._turns.is_closed or (is_settled and len(self._idle) >= self.max_idle)
            (self._doomed if is_surplus else self._idle if is_settled else self._unsettled).append(box)
        return 0.0 if is_settled else TICK_S

    # ---- As an executor ----

    def submit(  # type: ignore[override]  # a program, not a function
        self,
        argv: Sequence[Argument],
        /,
        **options: Any,  # noqa: ANN401 - Container.exec's
    ) -> Future[Result]:
        """Have a program run, as `exec`, in one of *size* threads of the pool's own; the future's result is its `Result`."""
        self._check()
        with self._lock:
            if self._workers is None:
                self._workers = ThreadPoolExecutor(self.size, thread_name_prefix="sandbox-pool")
        try:
            return self._workers.submit(self.exec, argv, **options)
        except RuntimeError as error:  # shut down, or no thread is to be had
            self._check()
            if "thread" not in str(error):
                raise self._closed_error() from error
            raise SetupError("start a thread of the pool", errno.EAGAIN, step="thread", hint=FEW_THREADS) from error

    def map(  # type: ignore[override]
        self,
        jobs: Iterable[Sequence[Argument] | Mapping[str, Any]],
        /,
        *,
        backlog: int | None = None,
        **options: Any,  # noqa: ANN401 - Container.exec's
    ) -> Iterator[Result]:
        """Run many programs, *size* at once, and give their results in the order of *jobs*.

        jobs: an argv each, or a mapping with ``"argv"`` and more of `Container.exec`'s arguments, over *options*. May be endless: at most
            *backlog* (None: twice the size) are taken from it ahead of the result that is waited for.
        """
        most = 2 * self.size if backlog is None else to_count(backlog, what="backlog")
        self._check()
        return self._results(iter(jobs), most, options)

    def _results(self, jobs: Iterator[Sequence[Argument] | Mapping[str, Any]], most: int, options: dict[str, Any]) -> Generator[Result]:
        pending: deque[Future[Result]] = deque()
        try:
            for job in jobs:
                pending.append(self._submit_job(job, options))
                if len(pending) >= most:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()

    def _submit_job(self, job: Sequence[Argument] | Mapping[str, Any], options: dict[str, Any]) -> Future[Result]:
        if not isinstance(job, Mapping):
            return self.submit(job, **options)
        if "argv" not in job:
            raise UsageError(f"map: a job without 'argv': {sorted(map(str, job))}")
        return self.submit(job["argv"], **{**options, **{key: value for key, value in job.items() if key != "argv"}})

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Accept no more; let what was submitted come to its end, or be cancelled where it has not begun; then close the pool.

        wait: False: return at once, and do the rest in a thread, if one is to be had.
        """
        if os.getpid() != self._owner:
            return
        with self._lock:
            workers = self._workers
        if workers is not None:
            workers.shutdown(wait=False, cancel_futures=cancel_futures)
        if wait:
            self._finish()
            return
        try:
            threading.Thread(target=self._finish, name="sandbox-pool-end").start()
        except RuntimeError:  # no thread is to be had
            self._finish()

    def _finish(self) -> None:
        if self._workers is not None:
            self._workers.shutdown(wait=True)
        self.close()


def _close_all(boxes: Iterable[Box]) -> None:
    for box in boxes:
        with contextlib.suppress(SandboxError, OSError):  # the launcher cleans up behind it
            box.close()
