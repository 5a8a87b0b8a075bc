"""Moves the program's output: through pipes, up to a limit."""

from __future__ import annotations

import os
import select
import sys
from typing import Final

from attrs import define, evolve

from sandbox import Process, Result, Status

CHUNK: Final = 65536
_BEFORE: Final = (Status.TIMEOUT, Status.CPU_LIMIT, Status.MEMORY_LIMIT)  # they hold first: docs/reference/result.md


@define
class _Stream:
    """One of the program's streams, and ours that it goes to."""

    source: int
    target: int
    room: int

    def move(self) -> tuple[bool, bool]:
        """Move what is there; (whether the stream goes on, whether it stayed within the limit)."""
        data = os.read(self.source, CHUNK)
        if not data:
            return False, True
        write_all(self.target, data[: max(0, self.room)])
        self.room -= len(data)
        return True, self.room >= 0


def relay_limited(process: Process, limit: int) -> Result:
    """Pass stdout and stderr on, up to *limit* bytes of each; a program that writes more is killed, and the result says so."""
    sys.stdout.flush()
    pairs = ((process.stdout, 1), (process.stderr, 2))
    streams = {file.fileno(): _Stream(file.fileno(), target, limit) for file, target in pairs if file is not None}
    poll = select.poll()
    for fd in streams:
        poll.register(fd, select.POLLIN)
    over = False
    while streams:
        for fd, _ in poll.poll():
            try:
                goes_on, within = streams[fd].move()
            except BrokenPipeError:  # nobody reads our output: then the program learns it too, by the end of its pipe
                goes_on, within = False, True
                _close_reader(process, fd)
            if not within and not over:
                over = True
                process.kill()
            if not goes_on:
                poll.unregister(fd)
                del streams[fd]
    result = process.wait()
    if not over or result.status in _BEFORE:
        return result
    return evolve(result, status=Status.OUTPUT_LIMIT, exit_code=None)  # also of one that had ended before we read what it wrote


def _close_reader(process: Process, fd: int) -> None:
    for file in (process.stdout, process.stderr):
        if file is not None and not file.closed and file.fileno() == fd:
            file.close()


def write_all(fd: int, data: bytes) -> None:
    """Write all of it, also where whoever shares the descriptor with us has made it non-blocking."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            poll = select.poll()
            poll.register(fd, select.POLLOUT)
            poll.poll()
