"""Moves a running program's input and output at once, as subprocess does: what `Process.communicate` keeps between its calls, and iterators."""

from __future__ import annotations

import contextlib
import io
import os
import select
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import IO, TYPE_CHECKING, Any, Final

from sandbox._pump import FEED, Capture, Poll, Streams
from sandbox._run import Text
from sandbox.errors import UsageError

if TYPE_CHECKING:
    from typing_extensions import Buffer

File = IO[Any] | None
_EIO: Final = 5  # the last program on a terminal has closed it


class _Terminal(io.FileIO):
    """A terminal whose last program has gone is at its end; the kernel says EIO, and what was read before it would be lost."""

    def readinto(self, buffer: Buffer, /) -> int | None:
        try:
            return super().readinto(buffer)
        except OSError as error:
            if error.errno != _EIO:
                raise
            return 0

    def readall(self) -> bytes:
        return b"".join(iter(lambda: self.read(65536) or b"", b""))

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or size < 0:
            return self.readall()
        buffer = bytearray(size)
        return bytes(buffer[: self.readinto(buffer)])


def open_terminal(fd: int, mode: str) -> IO[bytes]:
    """A buffered file of what programs write to a terminal."""
    return io.BufferedReader(_Terminal(fd, mode))


class Communication:
    """Input still to be sent, output read so far. Output beyond its limit makes it call *kill* once; None: it is only counted."""

    def __init__(
        self,
        files: tuple[File, File, File],
        data: bytes | str | None,
        text: Text,
        *,
        limits: tuple[int, int],
        kill: Callable[[], None] | None,
        poll: Poll | None = None,
    ) -> None:
        stdin, stdout, stderr = files
        if not isinstance(data, (str, bytes, bytearray, memoryview, type(None))):
            raise UsageError(f"input: {type(data).__name__} is neither bytes nor str")
        if stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                stdin.flush()  # what was written to it before comes first
        raw = data.encode(text.encoding or "utf-8", text.errors) if isinstance(data, str) else data
        self._text = text
        self._kill = kill
        self._stdin = stdin
        self._data = memoryview(raw or b"")
        self._poll: Poll = select.poll() if poll is None else poll
        self._streams = [None if file is None else Capture(file.fileno(), limit) for file, limit in zip((stdout, stderr), limits, strict=True)]
        self._open = {stream.fd: stream for stream in self._streams if stream is not None}
        for fd in self._open:
            self._poll.register(fd, select.POLLIN)
        self._input = None if stdin is None else stdin.fileno()
        if self._input is not None:
            os.set_blocking(self._input, False)
            self._poll.register(self._input, select.POLLOUT)

    def put(self, fd: int, data: bytes) -> None:
        """Take what somebody has read of the output *fd* before."""
        if data:
            self._open[fd].put(data)

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
        except OSError as error:
            if error.errno != _EIO:
                raise
            more = False
        if capture.truncated and self._kill is not None:
            self._kill()
            self._kill = None
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

    def captured(self) -> Streams:
        """stdout and stderr as far as they were captured."""
        out, err = (None if stream is None else self._text.decode(stream.bytes(), cut=stream.truncated) for stream in self._streams)
        cut_out, cut_err = (stream is not None and stream.truncated for stream in self._streams)
        size_out, size_err = (None if stream is None else stream.total for stream in self._streams)
        return out, err, cut_out, cut_err, size_out, size_err


def chunks(files: Mapping[str, IO[Any]], text: Text, size: int, ahead: Callable[[int], bytes]) -> Iterator[tuple[str, Any]]:
    """(name, data) as they come, until all have ended. *ahead* gives what was read of a descriptor before."""
    names = {file.fileno(): name for name, file in files.items()}
    decoders = {fd: _decoder(text) for fd in names}
    poll = select.poll()
    for fd, name in names.items():
        poll.register(fd, select.POLLIN)
        if data := decoders[fd](ahead(fd), False):
            yield name, data
    while names:
        for fd, _ in poll.poll():
            raw = _read(fd, size)
            if data := decoders[fd](raw, not raw):
                yield names[fd], data
            if not raw:
                poll.unregister(fd)
                del names[fd]


def _read(fd: int, size: int) -> bytes:
    try:
        return os.read(fd, size)
    except OSError as error:
        if error.errno != _EIO:
            raise
        return b""


def _decoder(text: Text) -> Callable[[bytes, bool], Any]:
    if text.encoding is None:
        return lambda data, final: data
    import io

    decode, newlines = text.decoder(), io.IncrementalNewlineDecoder(None, translate=True)
    return lambda data, final: newlines.decode(decode(data, final=final), final=final)


def lines(pieces: Iterable[tuple[str, Any]], limit: int) -> Iterator[tuple[str, Any]]:
    """(name, line) from (name, data), each with its newline; a line of more than *limit* comes in parts."""
    waiting: dict[str, list[Any]] = {}
    sizes: dict[str, int] = {}
    for name, data in pieces:
        newline: Any = b"\n" if isinstance(data, bytes) else "\n"
        *whole, last = data.split(newline)
        for part in whole:
            sizes[name] = 0
            for piece in _cut(data[:0].join([*waiting.pop(name, ()), part, newline]), limit):
                yield name, piece
        if last:
            waiting.setdefault(name, []).append(last)
            sizes[name] = sizes.get(name, 0) + len(last)
            if sizes[name] >= limit:
                full = list(_cut(data[:0].join(waiting.pop(name)), limit))
                rest = full.pop() if len(full[-1]) < limit else data[:0]
                waiting[name], sizes[name] = [rest], len(rest)
                for piece in full:
                    yield name, piece
    for name, parts in waiting.items():
        if rest := parts[0][:0].join(parts):
            yield name, rest


def _cut(line: Any, limit: int) -> Iterator[Any]:  # noqa: ANN401 - bytes or str
    return (line[at : at + limit] for at in range(0, len(line), limit))
