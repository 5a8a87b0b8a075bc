"""Streams of one process that cannot block each other: a caller with one thread may write to and read from it in any order.

Theory of operation
-------------------
A pipe holds 64 KiB. A caller who writes more, to a program that answers meanwhile, and who does not read the answers, waits for
ever; so does one who reads stdout while the program waits for somebody to read stderr. Here, whoever has to wait for one of
the streams takes what the others have, up to *limit* bytes of each, and keeps it for whoever reads it later. Beyond that
limit it is as with plain pipes: the program waits.

Several threads may use the streams. What is kept, and the reading into it, is under one lock. A thread that waits for a stream has it for
itself (`busy`), so that nobody takes away what it waits for.
"""

from __future__ import annotations

import io
import os
import select
import threading
from collections.abc import Sequence
from typing import IO, TYPE_CHECKING

from attrs import define, field

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

CHUNK = 65536
PIPE_BUF = 4096  # what a pipe that polls as writable takes without blocking (pipe(7))


@define(eq=False)
class Output:
    """One of the program's outputs, and what was read of it ahead of time."""

    fd: int
    limit: int
    kept: bytearray = field(factory=bytearray)
    busy: int = 0  # threads that wait for it
    ended: bool = False
    closed: bool = False

    @property
    def may_be_taken(self) -> bool:
        """Whether somebody who waits for another stream takes what this one has."""
        return not (self.busy or self.ended or self.closed) and len(self.kept) < self.limit


class Duplex:
    """The streams of one process."""

    def __init__(self, outputs: Sequence[Output]) -> None:
        self._outputs = outputs
        self._lock = threading.Lock()

    def read(self, output: Output, into: memoryview[int]) -> int:
        """Read what there is of *output*, or wait for some; 0 at its end."""
        with self._lock:
            if output.kept:
                return _take(output, into)
            if output.ended:
                return 0
            output.busy += 1
        try:
            while True:
                ready = self._wait(output.fd, select.POLLIN)
                if ready:
                    return os.readv(output.fd, [into])
        finally:
            with self._lock:
                output.busy -= 1

    def write(self, fd: int, data: memoryview[int]) -> int:
        """Write all of *data*. Raises: BrokenPipeError."""
        done = 0
        while done < len(data):
            if self._wait(fd, select.POLLOUT):
                done += os.write(fd, data[done : done + PIPE_BUF])
        return done

    def _wait(self, fd: int, event: int) -> bool:
        """Wait until *fd* is ready, or something else was taken; say whether it was *fd*."""
        with self._lock:
            others = {output.fd: output for output in self._outputs if output.fd != fd and output.may_be_taken}
        if not others:
            return True  # whoever comes next may block: there is nobody to wait for us
        poll = select.poll()
        poll.register(fd, event)
        for other in others:
            poll.register(other, select.POLLIN)
        is_ready = False
        for found, _ in poll.poll():
            if found == fd:
                is_ready = True
            else:
                self._keep(others[found])
        return is_ready

    def _keep(self, output: Output) -> None:
        with self._lock:
            if output.may_be_taken:
                data = os.read(output.fd, CHUNK)  # it polled as readable, and nobody else reads it
                output.kept += data
                output.ended = not data

    def take(self, fd: int) -> bytes:
        """What was read ahead of the output *fd*."""
        with self._lock:
            found = next(output for output in self._outputs if output.fd == fd)
            kept, found.kept = bytes(found.kept), bytearray()
            return kept

    def close(self, output: Output) -> None:
        """Close an output, and forget what was kept of it."""
        with self._lock:
            if not output.closed:
                output.closed = True
                output.kept.clear()
                os.close(output.fd)


def open_files(fds: tuple[int | None, int | None, int | None], limits: tuple[int, int]) -> tuple[Duplex, list[IO[bytes] | None]]:
    """Binary files for our ends of stdin, stdout and stderr."""
    _, out, err = fds
    outputs = [None if fd is None else Output(fd, limit) for fd, limit in zip((out, err), limits, strict=True)]
    duplex = Duplex([output for output in outputs if output is not None])
    stdin = None if fds[0] is None else io.BufferedWriter(Writer(duplex, fds[0]))
    return duplex, [stdin, *(None if output is None else io.BufferedReader(Reader(duplex, output)) for output in outputs)]


def _take(output: Output, into: memoryview[int]) -> int:
    count = min(len(into), len(output.kept))
    into[:count] = output.kept[:count]
    del output.kept[:count]
    return count


class Reader(io.RawIOBase):
    """An output as a file."""

    def __init__(self, duplex: Duplex, output: Output) -> None:
        self._duplex = duplex
        self._output = output

    def readable(self) -> bool:
        return True

    def fileno(self) -> int:
        if self.closed:
            raise ValueError("I/O operation on closed file")
        return self._output.fd

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        return self._duplex.read(self._output, memoryview(buffer).cast("B"))

    def close(self) -> None:
        if not self.closed:
            super().close()
            self._duplex.close(self._output)


class Writer(io.RawIOBase):
    """The program's input as a file."""

    def __init__(self, duplex: Duplex, fd: int) -> None:
        self._duplex = duplex
        self._fd = fd

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        if self.closed:
            raise ValueError("I/O operation on closed file")
        return self._fd

    def write(self, data: ReadableBuffer, /) -> int:
        return self._duplex.write(self._fd, memoryview(data).cast("B"))

    def close(self) -> None:
        if not self.closed:
            super().close()
            os.close(self._fd)
