"""Being attached to the program of a container: what it writes from now on, and what it reads."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Self

from attrs import define, field

from sandbox import ProtocolError, UsageError
from sandbox.keep._log import LogReader, Record
from sandbox.keep._record import to_result
from sandbox.keep._store import Place
from sandbox.keep._waiting import Line

if TYPE_CHECKING:
    from sandbox import Result


@define(eq=False)
class Attachment:
    """One who is attached. Closing it changes nothing for the program; use ``with``.

    *input*: where to write what the program is to read; None: it was started without ``interactive``. It is non-blocking, it is the same one for all
    who are attached, and closing it ends nobody's input. *terminal*: its terminal's other end, or None.
    """

    _line: Line
    _place: Place
    _reader: LogReader
    input: int | None = None
    terminal: int | None = None
    result: Result | None = field(default=None, init=False)

    @classmethod
    def begin(cls, line: Line, place: Place, asked: bytes, answer_of: Callable[[Mapping[str, Any] | None], dict[str, Any]]) -> Self:
        """Ask for it on *line*, by the message *asked*; it owns that and *place* from now on, also when it fails. Raises: as the keeper."""
        reader, fds = LogReader(place.fd), list[int]()
        try:
            for _ in reader.read(to_now=True):  # what was before
                pass
            line.client.send(asked, socket.MSG_NOSIGNAL)
            message, fds = line.receive(1)
            said = answer_of(message)
            found = cls(line, place, reader)
            if said.get("tty"):
                found.terminal = fds[0]
                found.input = fds[0] if said.get("interactive") else None
            elif fds:
                found.input = fds[0]
        except BaseException:
            for fd in fds:
                os.close(fd)
            reader.close()
            place.close()
            line.client.close()
            raise
        return found

    def fileno(self) -> int:
        """A descriptor that becomes readable when there is something to `read`."""
        return self._line.client.fileno()

    def read(self) -> Iterator[Record]:
        """Wait until there is something new, and give it. At the end of the program that is the rest, and `result` is there.

        Raises: BrokenError: the container has ended before its program.
        """
        message, _ = self._line.receive()
        if message is not None and isinstance(message.get("ended"), dict):
            self.result = to_result(message["ended"])
        elif message is None or "log" not in message:
            from sandbox.keep._kept import answer_of

            answer_of(message)
            raise ProtocolError("a keeper's answer makes no sense")
        try:
            yield from self._reader.read(to_now=True)
        except ValueError as error:
            raise UsageError(f"container {self._place.id[:12]}: {error}") from error

    def check(self) -> None:
        """Ask the keeper whether it is there, for one who has waited long. Raises: BrokenError: it is stopped, or says nothing."""
        self._line.check()

    def resize(self, rows: int, columns: int) -> None:
        """Tell the terminal its new size; the program gets SIGWINCH."""
        import fcntl
        import struct
        import termios

        if self.terminal is None:
            raise UsageError("resize: the program has no terminal")
        with contextlib.suppress(OSError):  # the program has just ended
            fcntl.ioctl(self.terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def close(self) -> None:
        """Let go of it."""
        self._line.client.close()
        self._reader.close()
        self._place.close()
        fd = self.terminal if self.input is None else self.input
        if fd is not None:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
