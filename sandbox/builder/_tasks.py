"""Threads that carry out tasks in order: what `concurrent.futures` does too, which loads logging and more, a twentieth of what a rebuild takes."""

from __future__ import annotations

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

    workers = [threading.Thread(target=take, name=f"build-{number}") for number in range(threads)]
    begun: list[threading.Thread] = []
    try:
        for worker in workers:
            worker.start()
            begun.append(worker)
        for worker in begun:
            worker.join()
    except BaseException:
        stop()
        for worker in begun:
            worker.join()
        raise
