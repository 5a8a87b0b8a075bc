"""Threads that carry out tasks in order: what `concurrent.futures` does too, which loads logging and more, a twentieth of what a rebuild takes."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

from attrs import define, field

T = TypeVar("T")


@define(eq=False, repr=False)
class Task(Generic[T]):
    """Something to be done once, by some thread."""

    _work: Callable[[], T]
    _over: threading.Event = field(factory=threading.Event, init=False)
    _value: list[T] = field(factory=list[T], init=False)
    error: BaseException | None = field(default=None, init=False)  # why it failed

    def carry_out(self) -> None:
        """Do it; what goes wrong is `result`'s to raise."""
        try:
            self._value.append(self._work())
        except BaseException as error:  # noqa: BLE001 - it goes to whoever asks for the result
            self.error = error
        finally:
            self._over.set()

    def result(self) -> T:
        """What it gave; wait until it is over. Raises: what it raised."""
        self._over.wait()
        if self.error is not None:
            raise self.error
        return self._value[0]


def carry_out(tasks: Iterable[Task[T]], *, threads: int, stop: Callable[[], object]) -> None:
    """Do all *tasks*, begun in this order, and wait until they are over. An interrupt calls *stop*, and is raised when they are."""
    rest, lock = iter(tasks), threading.Lock()

    def take() -> None:
        while True:
            with lock:
                task = next(rest, None)
            if task is None:
                return
            task.carry_out()

    workers = [_Worker(take, number) for number in range(threads)]
    try:
        for worker in workers:
            worker.thread.start()
        for worker in workers:
            worker.over.wait()
    except BaseException:
        stop()
        for worker in workers:
            worker.await_end()
        raise


class _Worker:
    """A thread, and when it is over: an interrupted `Thread.join` takes a thread that runs for one that has ended (CPython before 3.13)."""

    def __init__(self, work: Callable[[], None], number: int) -> None:
        self._work = work
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._run, name=f"build-{number}")

    def _run(self) -> None:
        try:
            self._work()
        finally:
            self.over.set()

    def await_end(self) -> None:
        """Wait for one that was stopped, however often there is an interrupt: it uses what our caller takes away next."""
        while self.thread.ident is not None and not self.over.is_set():
            with contextlib.suppress(KeyboardInterrupt):
                self.over.wait()
