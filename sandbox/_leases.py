"""What the pool gives out: a lease is a container for a time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, overload

from sandbox._box import Box
from sandbox._types import Argument
from sandbox.container import Container
from sandbox.errors import ClosedError, CommandError, UsageError
from sandbox.process import Result


class Lease:
    """A container of a pool, for as long as it is leased; afterwards every use raises ClosedError. Thread-safe."""

    __slots__ = ("_box", "_lock", "_running")

    def __init__(self, box: Box) -> None:
        self._box: Box | None = box
        self._running = 0
        self._lock = threading.Lock()

    def _live(self) -> Box:
        box = self._box
        if box is None:
            raise ClosedError("the lease is over; acquire another one")
        return box

    def exec(self, argv: Sequence[Argument], **options: Any) -> Result:  # noqa: ANN401 - Container.exec's
        """Run a program, as `Container.exec`. What it leaves, the next program of this lease finds, and nobody else."""
        with self._lock:
            box = self._live()
            self._running += 1
        try:
            return run_in(box, argv, options)
        finally:
            with self._lock:
                self._running -= 1

    @property
    def container(self) -> Container:
        """The container itself, for all else that it can do: files in and out, `popen` ... Then it ends with the lease."""
        box = self._live()
        box.spend()
        return box

    def end(self) -> None:
        """Part of the end of the leases: `Leases.release` ends all. A container in which somebody still runs something is not handed on."""
        with self._lock:
            if self._box is not None and self._running:
                self._box.spend()
            self._box = None


class Leases(Sequence[Lease]):
    """Leases that begin and end together; a context manager, and a sequence: ``with pool.acquire(2) as (first, second)``."""

    def __init__(self, boxes: Sequence[Box], release: Callable[[Sequence[Box]], None]) -> None:
        self._boxes, self._release = boxes, release
        self._leases = tuple(map(Lease, boxes))

    @overload
    def __getitem__(self, index: int) -> Lease: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Lease, ...]: ...
    def __getitem__(self, index: int | slice) -> Lease | tuple[Lease, ...]:
        return self._leases[index]

    def __len__(self) -> int:
        return len(self._leases)

    def release(self) -> None:
        """End them, and give the containers back; twice is fine. What still runs there is killed."""
        boxes, self._boxes = self._boxes, ()
        for lease in self._leases:
            lease.end()
        if boxes:
            self._release(boxes)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.release()


def run_in(box: Box, argv: Sequence[Argument], options: Mapping[str, Any]) -> Result:
    """Run a program in a container of a pool, which learns what that used."""
    try:
        result = box.exec(argv, **options)
    except CommandError as error:
        box.note(error.result)
        raise
    except UsageError:  # nothing ran
        raise
    except BaseException:
        box.spend()
        raise
    box.note(result)
    return result
