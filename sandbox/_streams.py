"""What `Process.communicate` keeps between its calls: moves a running program's input and output at once, as subprocess does."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable
from typing import IO, Any

from sandbox._pump import FEED, Capture, Poll
from sandbox._run import Text
from sandbox.errors import UsageError

File = IO[Any] | None


class Communication:
    """Input still to be sent, output read so far. Output beyond *limit* bytes of a stream makes it call *kill*."""

    def __init__(
        self,
        files: tuple[File, File, File],
        data: bytes | str | None,
        text: Text,
        *,
        limit: int,
        kill: Callable[[], None],
        poll: Poll | None = None,
    ) -> None:
        stdin, stdout, stderr = files
        if not isinstance(data, (str, bytes, bytearray, memoryview, type(None))):
            raise UsageError(f"input: {type(data).__name__} is neither bytes nor str")
        raw = data.encode(text.encoding or "utf-8", text.errors) if isinstance(data, str) else data
        self._text = text
        self._kill = kill
        self._stdin = stdin
        self._data = memoryview(raw or b"")
        self._poll: Poll = select.poll() if poll is None else poll
        self._streams = [None if file is None else Capture(file.fileno(), limit) for file in (stdout, stderr)]
        self._open = {stream.fd: stream for stream in self._streams if stream is not None}
        for fd in self._open:
            self._poll.register(fd, select.POLLIN)
        self._input = None if stdin is None else stdin.fileno()
        if self._input is not None:
            os.set_blocking(self._input, False)
            self._poll.register(self._input, select.POLLOUT)

    @property
    def has_input(self) -> bool:
        """Whether there is input to send."""
        return bool(self._data)

    def move(self, deadline: float | None) -> None:
        """Until all streams have ended. Raises: TimeoutError at *deadline* (time.monotonic()); call it again to go on."""
        while not self.is_done:
            wait = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000
            events = self._poll.poll(wait)
            if not events:
                raise TimeoutError
            for fd, _ in events:
                self.handle(fd)

    @property
    def is_done(self) -> bool:
        """Whether all streams have ended."""
        return not self._open and self._input is None

    def handle(self, fd: int) -> None:
        """Do what one ready descriptor asks for; does not wait."""
        if fd == self._input:
            self._feed(fd)
        elif fd in self._open:
            self._read(fd)

    def _read(self, fd: int) -> None:
        capture = self._open[fd]
        try:
            more = capture.read()
        except OSError as error:  # EIO: the last program on a terminal has closed it
            if error.errno != 5:
                raise
            more = False
        if capture.truncated:
            self._kill()
        if not more:
            self._poll.unregister(fd)
            del self._open[fd]

    def _feed(self, fd: int) -> None:
        most = FEED
        try:
            while self._data and most > 0:
                written = os.write(fd, self._data)
                self._data = self._data[written:]
                most -= written
        except BlockingIOError:
            return
        except BrokenPipeError:
            self._data = memoryview(b"")
        if self._data:
            return
        self._poll.unregister(fd)
        self._input = None
        if self._stdin is not None and not os.isatty(fd):
            self._stdin.close()

    def captured(self) -> tuple[Any, Any, bool, bool]:
        """stdout and stderr as far as they were captured, and whether each was cut."""
        out, err = (None if stream is None else self._text.decode(stream.bytes()) for stream in self._streams)
        cut_out, cut_err = (stream is not None and stream.truncated for stream in self._streams)
        return out, err, cut_out, cut_err
