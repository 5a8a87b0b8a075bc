"""The standard streams of one more program in a container that goes on after us.

They are pipes, and never our own descriptors: whatever runs in there can hand those on to what stays (SCM_RIGHTS), which then could read what
is typed at our terminal, or write to our files, for as long as it likes. So what is in the pipes is moved here, until the program has ended.
"""

from __future__ import annotations

import contextlib
import os
import select
from typing import Final, Self

from sandbox.cli.relay import write_all

CHUNK: Final = 65536
_LAST: Final = 1 << 20  # bytes of the rest: what a pipe holds at most (pipe(7)); somebody may go on filling it


class Streams:
    """*interactive*: pass our input on; without, it is empty. Closed with ``with``."""

    def __init__(self, *, interactive: bool) -> None:
        with contextlib.ExitStack() as undo:
            self._theirs: list[int] = []
            self._targets: dict[int, int] = {}  # the reading ends, and where what comes goes
            undo.callback(self.close)
            self._input = -1
            if interactive:
                reader, self._input = os.pipe()
                os.set_blocking(self._input, False)
                self._theirs.append(reader)
            else:
                self._theirs.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
            self._add(1)
            # Both to one place: then what was written first comes first.
            if os.path.sameopenfile(1, 2):
                self._theirs.append(os.dup(self._theirs[-1]))
            else:
                self._add(2)
            undo.pop_all()
        self._pending = b""
        self._reads = interactive

    def _add(self, target: int) -> None:
        reader, writer = os.pipe()
        os.set_blocking(reader, False)
        self._targets[reader] = target
        self._theirs.append(writer)

    @property
    def theirs(self) -> tuple[int, ...]:
        """What the program gets: standard input, output, and error."""
        return tuple(self._theirs)

    def started(self) -> None:
        """The program has them now."""
        while self._theirs:
            os.close(self._theirs.pop())

    def relay(self, ended: int) -> None:
        """Move what comes until *ended* is readable, then the rest."""
        while True:
            poll = select.poll()
            poll.register(ended, select.POLLIN)
            for reader in self._targets:
                poll.register(reader, select.POLLIN)
            if self._pending:
                poll.register(self._input, select.POLLOUT)
            elif self._reads:
                poll.register(0, select.POLLIN)
            ready = {fd for fd, _ in poll.poll()}
            for reader in ready & self._targets.keys():
                self._move(reader)
            if 0 in ready:
                self._read()
            if self._pending and self._input in ready:
                self._feed()
            if ended in ready:
                break
        for reader in tuple(self._targets):
            left = _LAST
            while left > 0 and (moved := self._move(reader)):
                left -= moved

    def _move(self, reader: int) -> int:
        """Move what is there; how much it was. The end, or nobody who reads us, closes it: then the program learns that too."""
        try:
            data = os.read(reader, CHUNK)
        except BlockingIOError:
            return 0
        if data:
            with contextlib.suppress(BrokenPipeError):
                write_all(self._targets[reader], data)
                return len(data)
        del self._targets[reader]
        os.close(reader)
        return 0

    def _read(self) -> None:
        try:
            self._pending = os.read(0, CHUNK)
        except BlockingIOError:
            return
        except OSError:  # EIO: the terminal was hung up
            self._pending = b""
        if not self._pending:
            self._end_input()

    def _feed(self) -> None:
        try:
            self._pending = self._pending[os.write(self._input, self._pending) :]
        except BlockingIOError:
            return
        except BrokenPipeError:  # it reads no more
            self._pending = b""
            self._end_input()

    def _end_input(self) -> None:
        self._reads = False
        os.close(self._input)
        self._input = -1

    def close(self) -> None:
        """Close what is left."""
        self.started()
        for reader in self._targets:
            os.close(reader)
        self._targets = {}
        if self._input >= 0:
            self._end_input()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
