"""`aio.Process`: a program beside the event loop, and its streams."""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import errno
import io
import os
import select
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator
from types import TracebackType
from typing import IO, Any, Final, Self

from sandbox._driven import DrivenProcess
from sandbox._files.face import MAX_READ
from sandbox._pump import GRACE_S, LATE
from sandbox._reactor import Watch
from sandbox._result import Result
from sandbox._run import Text
from sandbox._streams import Communication
from sandbox._types import Size, to_count, to_size
from sandbox.aio._hub import Deaf, Spot, hub
from sandbox.errors import BrokenError, SandboxError, UsageError

CHUNK: Final = 1 << 16
FAIR: Final = 1 << 20  # bytes after which the loop's other tasks have their turn, however fast the other side is


class _Stream:
    """One end of a pipe, or a terminal; owned by *file*."""

    _mask: int

    def __init__(self, file: IO[Any], text: Text) -> None:
        self._file, self._fd, self._text = file, file.fileno(), text
        self._spot = Spot(self._fd, self._mask)
        self._since = 0  # bytes moved without waiting
        os.set_blocking(self._fd, False)

    def fileno(self) -> int:
        """Its descriptor, which does not block."""
        return self._file.fileno()

    @property
    def closed(self) -> bool:
        return self._file.closed

    async def close(self) -> None:
        """Close it; whoever waits for it gets an error. May be called twice."""
        self._spot.let_go()
        with contextlib.suppress(OSError):
            self._file.close()

    async def _wait(self) -> None:
        self._since = 0
        await self._spot.wait()
        self._check()

    def _check(self) -> None:
        if self._file.closed:
            raise UsageError("the stream is closed")

    async def _moved(self, size: int) -> None:
        self._since += size
        if self._since >= FAIR:
            self._since = 0
            await asyncio.sleep(0)


class Reader(_Stream):
    """A program's output: bytes, or str in text mode. Lines, with ``async for``. For one task at a time."""

    _mask = select.POLLIN

    def __init__(self, file: IO[Any], text: Text) -> None:
        super().__init__(file, text)
        self._is_over = False
        self._decoder = None
        self._data: Any = b""  # read, and not yet given
        if text.encoding is not None:
            self._decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder(text.encoding)(text.errors), translate=True)
            self._data = ""

    async def _fill(self) -> bool:
        """Read what there is, waiting until there is something; False at the end."""
        while not self._is_over:
            self._check()
            try:
                new = os.read(self._fd, CHUNK)
            except BlockingIOError:
                await self._wait()
                continue
            except OSError as error:
                if error.errno != errno.EIO:  # the last program on a terminal has closed it
                    raise
                new = b""
            self._is_over = not new
            self._data += new if self._decoder is None else self._decoder.decode(new, final=self._is_over)
            await self._moved(len(new))
            return True
        return False

    def _take(self, size: int) -> Any:  # noqa: ANN401 - bytes or str
        found, self._data = self._data[:size], self._data[size:]
        return found

    async def read(self, size: int = -1) -> Any:  # noqa: ANN401
        """Read *size* bytes (characters), fewer only at the end; -1: all until the end, however much that is."""
        parts: list[Any] = []
        left = size
        while left != 0:
            if self._data:
                part = self._take(len(self._data) if left < 0 else left)
                parts.append(part)
                left -= len(part) if left > 0 else 0
            elif not await self._fill():
                break
        return (b"" if self._decoder is None else "").join(parts)

    async def read1(self, size: int = CHUNK) -> Any:  # noqa: ANN401
        """Read what there is, up to *size*; empty at the end only."""
        while not self._data and await self._fill():
            pass
        return self._take(size)

    async def readline(self, size: int = MAX_READ) -> Any:  # noqa: ANN401
        """Read a line with its end, or *size* bytes (characters) of one that is longer; empty at the end only."""
        newline: Any = b"\n" if self._decoder is None else "\n"
        looked = 0
        while True:
            at = self._data.find(newline, looked)
            if at >= 0 or len(self._data) >= size:
                return self._take(min(size, at + 1) if at >= 0 else size)
            looked = len(self._data)
            if not await self._fill():
                return self._take(size)

    async def chunks(self) -> AsyncGenerator[Any, None]:
        """All that comes, as it comes."""
        while part := await self.read1():
            yield part

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:  # noqa: ANN401
        if line := await self.readline():
            return line
        raise StopAsyncIteration


class Writer(_Stream):
    """A program's input. For one task at a time."""

    _mask = select.POLLOUT

    async def write(self, data: bytes | str) -> int:
        """Write all of *data*, waiting while the program does not read. Nothing is kept back, so there is nothing to flush.

        Raises: BrokenPipeError: nobody reads it any more.
        """
        if isinstance(data, str) != (self._text.encoding is not None):
            raise UsageError(f"write: {type(data).__name__} given; {'text' if self._text.encoding else 'bytes'} expected")
        view = memoryview(data.encode(self._text.encoding or "utf-8", self._text.errors) if isinstance(data, str) else data)
        while view:
            self._check()
            try:
                written = os.write(self._fd, view)
            except BlockingIOError:
                await self._wait()
            else:
                view = view[written:]
                await self._moved(written)
        return len(data)


class Process:
    """A program that runs beside the loop; `sandbox.Process`, where what waits is awaited.

    `stdin` is a `Writer`, `stdout` and `stderr` are `Reader` for what was PIPE, else None. A task that is cancelled while it waits here lets the
    program run on, as a timeout does; the end of ``async with`` ends it.
    """

    def __init__(self, driven: DrivenProcess) -> None:
        self._driven = driven
        self._spot = Spot(driven.fileno())
        self._communication: Communication | None = None
        self._watch: Watch | None = None
        self._moved = asyncio.Event()
        self._error: BaseException | None = None
        self.args, self.pid, self.terminal = driven.args, driven.pid, driven.terminal
        self.stdin = None if driven.stdin is None else Writer(driven.stdin, driven.text)
        self.stdout = None if driven.stdout is None else Reader(driven.stdout, driven.text)
        self.stderr = None if driven.stderr is None else Reader(driven.stderr, driven.text)

    @property
    def result(self) -> Result | None:
        """The result, once `wait` or `poll` has seen the end."""
        return self._driven.result

    @property
    def returncode(self) -> int | None:
        """As subprocess: None while it runs, or nobody has looked."""
        return self._driven.returncode

    def poll(self) -> int | None:
        """The return code if it has ended, else None."""
        return self._driven.poll()

    async def wait(self, timeout: float | None = None) -> Result:
        """Wait for the end of the program and of everything it started. Raises: as `sandbox.Process.wait`."""
        if not isinstance(timeout, (int, float, type(None))):
            raise UsageError(f"timeout: {timeout!r} is not a time; give seconds as a number, or None to wait for ever")
        until = None if timeout is None else time.monotonic() + timeout
        while True:
            try:
                return self._driven.wait(0)
            except TimeoutError:
                left = self._left(until)
            await self._spot.wait(left)

    def _left(self, until: float | None) -> float | None:
        """How long to wait at most. Raises: TimeoutError, BrokenError: not at all."""
        now, late = time.monotonic(), self._driven.late_at
        if until is not None and now >= until:
            raise TimeoutError
        if late is not None and now >= late:
            self._spot.let_go()
            self._driven.give_up()
            raise BrokenError(LATE)
        ends = [at for at in (until, late) if at is not None]
        return min(ends) - now if ends else None

    def chunks(self, size: int = CHUNK) -> AsyncGenerator[tuple[str, Any], None]:
        """What comes from stdout and stderr, as it comes: ``("stdout", b"...")``; str in text mode. Ends when both have ended; then `wait`."""
        most = to_count(size, what="size")
        return self._either(lambda stream: stream.read1(most))

    def lines(self, *, limit: Size = 1 << 20) -> AsyncGenerator[tuple[str, Any], None]:
        """As `chunks`, by lines, each with its newline; one of more than *limit* comes in parts."""
        most = to_size(limit, what="limit", least=1)
        return self._either(lambda stream: stream.readline(most))

    async def _either(self, read: Callable[[Reader], Coroutine[Any, Any, Any]]) -> AsyncGenerator[tuple[str, Any], None]:
        """What *read* gives of either stream, whichever is first."""
        streams = {name: stream for name, stream in (("stdout", self.stdout), ("stderr", self.stderr)) if stream is not None}
        reading = {asyncio.create_task(read(stream)): name for name, stream in streams.items()}
        try:
            while reading:
                ready, _ = await asyncio.wait(reading, return_when=asyncio.FIRST_COMPLETED)
                for task in ready:
                    name = reading.pop(task)
                    if part := task.result():
                        yield name, part
                        reading[asyncio.create_task(read(streams[name]))] = name
        finally:
            for task in reading:
                task.cancel()
            if reading:
                await asyncio.wait(reading)

    async def communicate(self, input: bytes | str | None = None, timeout: float | None = None) -> tuple[Any, Any]:  # noqa: A002 - subprocess's name
        """Send *input*, read the streams to their ends, and wait; returns (stdout, stderr). Raises: as `sandbox.Process.communicate`."""
        until = None if timeout is None else time.monotonic() + timeout
        moving = self._begin(input)
        try:
            while not moving.is_done:
                self._moved.clear()
                async with asyncio.timeout(None if until is None else max(0.0, until - time.monotonic())):
                    await self._moved.wait()
                if self._error is not None:
                    raise self._error
        finally:
            if self._watch is not None:
                self._watch.pause()
            hub().tidy()
        captured = moving.captured()
        self._driven.keep(captured)
        await self.wait(None if until is None else max(0.0, until - time.monotonic()))
        return captured[0], captured[1]

    def _begin(self, data: bytes | str | None) -> Communication:
        driven, reactor = self._driven, hub().reactor
        if self._communication is None or self._watch is None:
            self._watch = Watch(reactor, self._on_stream)
            files, kill = (driven.stdin, driven.stdout, driven.stderr), None if driven.spec.discards else driven.kill
            self._communication = Communication(files, data, driven.text, limits=driven.limits, kill=kill, poll=self._watch)
        elif data:
            raise UsageError("communicate: input was given before; the second call only goes on")
        else:
            self._watch.resume(reactor)
        return self._communication

    def _on_stream(self, fd: int, _event: int) -> None:
        if self._communication is None:
            return
        try:
            self._communication.handle(fd)
        except (SandboxError, OSError) as error:
            self._error = error
        if self._error is not None or self._communication.is_done:
            self._moved.set()

    def send_signal(self, signal: int, *, to_all: bool = False) -> None:
        """Send a signal to the program's first process; nothing happens when it has ended. to_all: to all that it has started too."""
        self._driven.send_signal(signal, to_all=to_all)

    def terminate(self) -> None:
        """Send SIGTERM to its first process."""
        self._driven.terminate()

    def kill(self) -> None:
        """Kill the program and everything it started; the result says KILLED."""
        self._driven.kill()

    def resize(self, rows: int, columns: int) -> None:
        """Tell the terminal its new size; the program gets SIGWINCH."""
        self._driven.resize(rows, columns)

    async def close(self) -> None:
        """Kill it if it runs, wait for its end, and close the streams. May be called twice. Raises: as `sandbox.Process.close`."""
        with Deaf() as deaf:
            await self._close_streams()
            is_late = False
            if not self._driven.is_over:
                with contextlib.suppress(SandboxError):  # it has ended, and the container perhaps with it
                    self._driven.kill()
                with contextlib.suppress(SandboxError):
                    is_late = not await deaf.wait(self._has_ended)
            if is_late:
                self._spot.let_go()
                self._driven.give_up()
            self._driven.close()
            self.terminal = None
            if is_late:
                raise BrokenError(f"the container's init has not ended the program within {GRACE_S:g} s; close the container")

    async def _has_ended(self) -> bool:
        try:
            await self.wait(GRACE_S)
        except TimeoutError:
            return False
        return True

    async def _close_streams(self) -> None:
        for stream in (self.stdout, self.stderr, self.stdin):
            if stream is not None:
                await stream.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if kind is None:
                await self._close_streams()  # a program that still writes gets SIGPIPE, as with subprocess
                await self.wait()
        finally:
            await self.close()


class Opening:
    """What `Container.popen` gives: awaited, the `Process`; with ``async with``, it is ended with the block."""

    def __init__(self, start: Callable[[], Awaitable[Process]]) -> None:
        self._start = start
        self._process: Process | None = None

    def __await__(self) -> Generator[Any, None, Process]:
        return self._start().__await__()

    async def __aenter__(self) -> Process:
        self._process = await self._start()
        return self._process

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._process is not None:
            await self._process.__aexit__(kind, error, trace)
