"""``--tty``: a terminal inside for the program, the caller's own in raw mode, and everything moved between the two."""

from __future__ import annotations

import contextlib
import os
import select
import termios
import time
import tty
from typing import Any, Final, Protocol, Self

from attrs import define, field

from sandbox.cli.keys import Keys
from sandbox.cli.relay import write_all

CHUNK: Final = 65536
END_OF_INPUT: Final = b"\x04"  # what a terminal takes for the end of input, at the beginning of a line (VEOF)
REPEATS: Final = 16  # of the end of input
QUIET_S: Final = 0.1  # after which nothing more comes
REST_S: Final = 2.0
DEFAULT_SIZE: Final = (24, 80)


class OnTerminal(Protocol):
    """A program that has a terminal: a `Process`, or one in another process's container."""

    @property
    def terminal(self) -> int | None:
        """Its other end."""
        ...

    def resize(self, rows: int, columns: int) -> None:
        """Tell the terminal its size."""
        ...

    def fileno(self) -> int:
        """What becomes readable when the program has ended."""
        ...


@define(eq=False)
class Terminal:
    """The caller's terminal. Within ``with`` it is raw; it is as before afterwards, however the block ends.

    Standard input need not be a terminal: then it is passed on as if typed, and its end ends the program's input. That end
    is typed again when the program shows something: a shell that has changed the terminal's mode since has lost it.
    *keys*: end the `relay` when they are typed; None: nothing does but the program.
    """

    interactive: bool = True
    keys: Keys | None = None
    _saved: list[Any] | None = None
    _pending: bytes = field(default=b"", init=False)
    _in_line: bool = field(default=False, init=False)
    _repeats: int = field(default=0, init=False)

    def __enter__(self) -> Self:
        if self.interactive and os.isatty(0):
            self._saved = termios.tcgetattr(0)
            tty.setraw(0, termios.TCSADRAIN)
        return self

    def __exit__(self, *exc: object) -> None:
        if self._saved is not None:
            # A terminal that has gone away (EIO after a hang-up) needs no restoring.
            with contextlib.suppress(termios.error):
                termios.tcsetattr(0, termios.TCSADRAIN, self._saved)

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of the first of our standard streams that is a terminal."""
        for fd in (0, 1, 2):
            with contextlib.suppress(OSError):
                size = os.get_terminal_size(fd)
                return size.lines, size.columns
        return DEFAULT_SIZE

    def resize(self, process: OnTerminal) -> None:
        """Tell the program's terminal the size of ours."""
        with contextlib.suppress(OSError):  # the program has just ended
            process.resize(*self.size)

    def relay(self, process: OnTerminal) -> None:
        """Move input and output until every program has closed the terminal, or this one has ended: another may hold it open, and is not ours."""
        fd = process.terminal
        if fd is None:
            raise AssertionError("a program with tty=True has a terminal")
        self.resize(process)  # it may have changed since
        os.set_blocking(fd, False)
        reads_input = self.interactive
        while True:
            poll = select.poll()
            poll.register(fd, select.POLLIN | (select.POLLOUT if self._pending else 0))
            poll.register(process.fileno(), select.POLLIN)
            # Nothing more is read while the program does not take what was typed: neither side may wait for the other.
            if reads_input and not self._pending:
                poll.register(0, select.POLLIN)
            for ready, events in poll.poll():
                if ready == process.fileno():
                    self._show_rest(fd)
                    return
                if ready == 0:
                    reads_input = self._type()
                    if self.keys is not None and self.keys.were_typed:
                        self._feed(fd)
                        return
                    continue
                if events & select.POLLOUT:
                    self._feed(fd)
                if events & ~select.POLLOUT and not self._show(fd):
                    return

    def _show_rest(self, fd: int) -> None:
        """What was written before the end; the kernel passes it through the terminal a moment later."""
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        deadline = time.monotonic() + REST_S
        while time.monotonic() < deadline and poll.poll(QUIET_S * 1000) and self._show(fd):
            pass

    def _type(self) -> bool:
        """Take what was typed; False at its end."""
        try:
            data = os.read(0, CHUNK)
        except BlockingIOError:
            return True
        except OSError:  # EIO: our terminal was hung up; SIGHUP is on its way to the program
            data = b""
        if data:
            self._in_line = data[-1:] not in (b"\r", b"\n")
            self._pending = data if self.keys is None else self.keys.take(data)
        else:  # within a line, the first one only ends the line
            self._pending = (b"" if self.keys is None else self.keys.rest()) + END_OF_INPUT * (2 if self._in_line else 1)
            self._repeats = REPEATS
        return bool(data)

    def _feed(self, fd: int) -> None:
        with contextlib.suppress(BlockingIOError):
            self._pending = self._pending[os.write(fd, self._pending) :]

    def _show(self, fd: int) -> bool:
        """Pass output on; False once every program has closed the terminal."""
        try:
            data = os.read(fd, CHUNK)
        except BlockingIOError:
            return True
        except OSError:  # EIO: closed by all
            return False
        write_all(1, data)
        if self._repeats and not self._pending:
            self._repeats -= 1  # bounded: a terminal that echoes it would ask for the next one
            self._pending = END_OF_INPUT
        return bool(data)
