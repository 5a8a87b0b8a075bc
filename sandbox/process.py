"""One program's run, from the caller's side: its request, its streams, its end, its result.

Theory of operation
-------------------
A run occupies one channel. The request goes out with the descriptors the program gets; init answers STARTED (when
asked) and, once nothing that the program started is alive any more, END. Only then are the captured pipes drained to
their end and the run's control group is read and removed. Deadlines are init's; this side has one of its own, later,
only for an init that does not answer.

Why a run ended is decided here, in `decide`, from causes that we own: our deadline, the control group's count of OOM
kills, our output cap, the caller's kill, the system call filter; only then from the wait status.
"""

from __future__ import annotations

import contextlib
import os
import signal as signals
import time
from collections.abc import Callable, Iterator
from typing import IO, TYPE_CHECKING, Any, ClassVar, Self

from sandbox._launch import codec, wire
from sandbox._pump import GRACE_S, LATE, Streams
from sandbox._result import Result, Status, make_result
from sandbox._run import Spec, Text, start_error
from sandbox._streams import Communication, open_terminal
from sandbox._sys.fds import close_all
from sandbox._types import DEVNULL, PIPE, STDOUT, Size, to_bool, to_count, to_signal, to_size
from sandbox._wiring import Wiring
from sandbox.cg import Leaf
from sandbox.errors import BrokenError, ClosedError, ProtocolError, UsageError

if TYPE_CHECKING:
    from sandbox._duplex import Duplex
    from sandbox._launch.driver import Channel

__all__ = ["DEVNULL", "PIPE", "STDOUT", "Process", "Result", "Status"]


class Process:
    """A program that runs beside the caller; subprocess.Popen's vocabulary.

    `stdin`, `stdout`, `stderr` are binary files for what was PIPE (text files in text mode), else None; with ``tty=True``
    `terminal` is the terminal's descriptor, and stdin and stdout are files on it. `result` is there after `wait`. Whoever waits for one
    of several pipes takes what comes from the others meanwhile, up to *output_limit*: they can be used in any order.
    Safe for one thread at a time.
    """

    IS_WAITING: ClassVar[bool] = True  # its streams wait for one another; else somebody else sees to that

    def __init__(self, spec: Spec, wiring: Wiring, channel: Channel, *, leaf: Leaf | None, text: Text, finish: Callable[[bool], None]) -> None:
        self._spec, self._wiring, self._channel, self._leaf, self._text = spec, wiring, channel, leaf, text
        self._finish = finish
        self._result: Result | None = None
        self._is_lost = False  # its end will not be told
        self._failure: Exception | None = None  # it never began
        self._give_up = time.monotonic() + spec.wall_s + GRACE_S if spec.wall_s else None
        self._communication: Communication | None = None
        self._captured: Streams = (None, None, False, False, None, None)
        self.args = spec.args
        self.terminal: int | None = None
        self.pid, fds = self._started()
        if fds:
            self.terminal = fds[0]
            try:
                wiring.stdin = os.dup(fds[0])
                wiring.stdout = os.dup(fds[0])
            except BaseException:  # who has asked closes the wiring's
                os.close(fds[0])
                raise
        self._duplex: Duplex | None = None
        ours = wiring.stdin, wiring.stdout, wiring.stderr
        wiring.stdin = wiring.stdout = wiring.stderr = None  # first: an interrupt in between shall not have them closed twice
        self.stdin, self.stdout, self.stderr = self._open_files(ours)

    def _open_files(self, fds: tuple[int | None, int | None, int | None]) -> tuple[IO[Any] | None, IO[Any] | None, IO[Any] | None]:
        if self.IS_WAITING and self.terminal is None and fds.count(None) < 2:  # two streams of one program can wait for each other
            from sandbox import _duplex

            self._duplex, files = _duplex.open_files(fds, self._limits())
        else:
            modes = ("wb", "rb", "rb")
            output = open if self.terminal is None else open_terminal
            openers = zip(fds, modes, (open, output, open), strict=True)
            files = [None if fd is None else opener(fd, mode) for fd, mode, opener in openers]
        stdin, stdout, stderr = (None if file is None else self._as_text(file) for file in files)
        return stdin, stdout, stderr

    def _as_text(self, file: IO[bytes]) -> IO[Any]:
        if self._text.encoding is None:
            return file
        import io

        return io.TextIOWrapper(file, encoding=self._text.encoding, errors=self._text.errors, write_through=True)

    def _limits(self) -> tuple[int, int]:
        spec = self._spec
        return spec.output_limit, spec.output_limit if spec.error_limit is None else spec.error_limit

    def _ahead(self, fd: int) -> bytes:
        return b"" if self._duplex is None else self._duplex.take(fd)

    def chunks(self, size: int = 65536) -> Iterator[tuple[str, Any]]:
        """What comes from stdout and stderr, as it comes: ``("stdout", b"...")``; str in text mode. Ends when both have ended; then `wait`.

        Read nothing from `stdout` and `stderr` yourself before.
        """
        from sandbox._streams import chunks

        files = {name: file for name, file in (("stdout", self.stdout), ("stderr", self.stderr)) if file is not None}
        return chunks(files, self._text, to_count(size, what="size"), self._ahead)

    def lines(self, *, limit: Size = 1 << 20) -> Iterator[tuple[str, Any]]:
        """As `chunks`, by lines, each with its newline; one of more than *limit* comes in parts."""
        from sandbox._streams import lines

        return lines(self.chunks(), to_size(limit, what="limit", least=1))

    def _started(self) -> tuple[int, list[int]]:
        got = self._channel.receive(GRACE_S + 30)
        if got is None or isinstance(got[0], codec.Gone):  # which comes on the first channel
            raise BrokenError("the container ended before the program started")
        event, fds = got
        if isinstance(event, codec.End) and event.cause == wire.Cause.NOT_STARTED:
            raise start_error(self._spec, event.status, event.detail)
        if not isinstance(event, codec.Started) or len(fds) != self._spec.tty:
            close_all(fds)
            raise ProtocolError(f"{type(event).__name__} with {len(fds)} descriptors instead of STARTED")
        return event.pid, fds

    def fileno(self) -> int:
        """A descriptor that becomes readable when the program has ended; for event loops. Then call `wait`."""
        return self._channel.fileno()

    @property
    def result(self) -> Result | None:
        """The result, once `wait` or `poll` has seen the end."""
        return self._result

    @property
    def _has_ended(self) -> bool:
        return self._result is not None or self._failure is not None  # then the channel is another program's

    @property
    def returncode(self) -> int | None:
        """As subprocess: None while it runs."""
        return None if self._result is None else self._result.returncode

    def poll(self) -> int | None:
        """The return code if it has ended, else None; never blocks."""
        try:
            return self.wait(0).returncode
        except TimeoutError:
            return None

    def wait(self, timeout: float | None = None) -> Result:
        """Wait for the end of the program and of everything it started.

        Raises: TimeoutError after *timeout* seconds; the program runs on. BrokenError when the container is gone. SetupError (ETIMEDOUT): the
        host is so busy that the program had not begun within a second, and was given up.
        """
        if self._result is not None:
            return self._result
        if self._failure is not None:
            raise self._failure
        if timeout is not None and (isinstance(timeout, bool) or not isinstance(timeout, (int, float))):
            raise UsageError(f"timeout: {timeout!r} is not a time; give seconds as a number, or None to wait for ever")
        self._result = self._conclude(self._await_end(timeout))
        return self._result

    def _await_end(self, timeout: float | None) -> codec.End:
        if self._is_lost:
            raise BrokenError("the container ended while the program ran")
        try:
            return self._channel.heard_end() or self._next_end(timeout)  # the former: an interrupt has come between it and us
        except (BrokenError, ProtocolError):
            self._is_lost = True
            self._finish(False)
            raise

    def _next_end(self, timeout: float | None) -> codec.End:
        patience = timeout
        if self._give_up is not None:  # init keeps the deadline; this is for one that does not
            late = max(GRACE_S, self._give_up - time.monotonic())
            patience = late if timeout is None else min(late, timeout)
        try:
            got = self._channel.receive(patience)
        except TimeoutError:
            if patience != timeout:
                raise BrokenError(LATE) from None
            raise
        if got is None or isinstance(got[0], codec.Gone):
            raise BrokenError("the container ended while the program ran")
        if not isinstance(got[0], codec.End):
            close_all(got[1])
            raise ProtocolError(f"{type(got[0]).__name__} instead of END")
        return got[0]

    def _conclude(self, end: codec.End) -> Result:
        try:
            if end.cause == wire.Cause.NOT_STARTED:  # on a busy host init learns that only now
                self._failure = start_error(self._spec, end.status, end.detail)
                raise self._failure
            return make_result(self._spec, end, self._leaf, output_hit=self._is_over(), streams=self._captured)
        finally:
            self._finish(True)

    def _is_over(self) -> bool:
        return (self._captured[2] or self._captured[3]) and not self._spec.discards

    def communicate(self, input: bytes | str | None = None, timeout: float | None = None) -> tuple[Any, Any]:  # noqa: A002 - subprocess's name
        """Send *input*, read the streams to their ends, and wait; returns (stdout, stderr).

        Raises: TimeoutError after *timeout* seconds; call it again to go on, as with subprocess.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        if self._communication is None:
            files = (self.stdin, self.stdout, self.stderr)
            kill = None if self._spec.discards else self.kill
            self._communication = Communication(files, input, self._text, limits=self._limits(), kill=kill)
            for file in (self.stdout, self.stderr):
                if file is not None:
                    self._communication.put(file.fileno(), self._ahead(file.fileno()))
        elif input:
            raise UsageError("communicate: input was given before; the second call only goes on")
        self._communication.move(deadline)
        self._captured = self._communication.captured()
        self.wait(None if deadline is None else max(0.0, deadline - time.monotonic()))
        return self._captured[0], self._captured[1]

    def send_signal(self, signal: int, *, to_all: bool = False) -> None:
        """Send a signal to the program's first process; nothing happens when it has ended.

        to_all: to all that it has started too, as a terminal's Ctrl-C goes to a whole group: a shell waits for its child before it heeds SIGINT.
        """
        scope = b"\1" if to_bool(to_all, what="to_all") else b"\0"
        if not self._has_ended:
            self._channel.send(wire.Msg.KILL, scope + to_signal(signal).to_bytes(4, "little"))

    def terminate(self) -> None:
        """Send SIGTERM to its first process."""
        self.send_signal(signals.SIGTERM)

    def kill(self) -> None:
        """Kill the program and everything it started; the result says KILLED."""
        if not self._has_ended:
            self._channel.send(wire.Msg.KILL, b"\1" + signals.SIGKILL.to_bytes(4, "little"))

    def resize(self, rows: int, columns: int) -> None:
        """Tell the terminal its new size; the program gets SIGWINCH."""
        if self.terminal is None:
            raise UsageError("resize: the program has no terminal; start it with tty=True")
        import fcntl
        import struct
        import termios

        fcntl.ioctl(self.terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def close(self) -> None:
        """Kill it if it runs, and close the files. May be called twice.

        Raises: BrokenError: the container's init does not answer (it was stopped, say).
        """
        for file in (self.stdin, self.stdout, self.stderr):
            if file is not None:
                _close(file)
        if self.terminal is not None:
            terminal, self.terminal = self.terminal, None
            os.close(terminal)
        if not self._has_ended and not self._is_lost:
            with contextlib.suppress(BrokenError, ClosedError):
                self.kill()
            try:
                self.wait(GRACE_S)
            except TimeoutError:
                self._finish(False)
                raise BrokenError(f"the container's init has not ended the program within {GRACE_S:g} s; close the container") from None
            except (BrokenError, ClosedError, ProtocolError):  # also where nobody was there to be told: it has given the channel back
                pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        if exc[0] is None:
            for file in (self.stdout, self.stderr, self.stdin):  # a program that still writes gets SIGPIPE, as with subprocess
                if file is not None and not file.closed:
                    file.close()
            if not self._has_ended:
                self.wait()
        self.close()


def _close(file: IO[Any]) -> None:
    """Close it, whatever is left in its buffer, and wherever an interrupt has ended an earlier call."""
    try:
        with contextlib.suppress(OSError):  # unflushed input that nobody reads any more
            file.close()
    except ValueError:  # the buffer is closed, and what is below it is not
        buffer: Any = getattr(file, "buffer", file)
        buffer.raw.close()
