"""Moves a run's input and output until its end, in the calling thread."""

from __future__ import annotations

import contextlib
import os
import select
import signal as signals
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, Protocol

from attrs import define, field

from sandbox._launch import codec, wire
from sandbox._run import Spec
from sandbox._wiring import Wiring
from sandbox.errors import BrokenError, ProtocolError

if TYPE_CHECKING:
    from sandbox._launch.driver import Channel

GRACE_S: Final = 5.0  # how much later than init's our own deadline is
CHUNK: Final = 1 << 18
LITTLE: Final = 4096
FEED: Final = 1 << 20  # bytes of input at once
PIPE_SIZE: Final = 1 << 20  # asked for once a program has filled a default pipe (64 KiB): fewer switches per byte
F_SETPIPE_SZ: Final = 1031
Streams = tuple[Any, Any, bool, bool, int | None, int | None]  # stdout, stderr; whether each was cut; how much came of each
LATE: Final = "the container's init did not keep the deadline; the container is being killed"


@define
class Capture:
    """A captured stream, bounded: its head is kept (or, with a *sink*, passed on as it comes), all of it is counted."""

    fd: int
    limit: int
    sink: Callable[[bytes], object] | None = None
    chunks: list[bytes | bytearray] = field(factory=list[bytes | bytearray])
    size: int = 0  # of what was kept or passed on
    dropped: int = 0  # how much more came
    truncated: bool = False
    is_open: bool = True  # more may come
    _widened: bool = False
    _waste: bytearray | None = None

    def read(self, most: int = CHUNK) -> bool:
        """Take what is there; False at the end of the stream."""
        if self.truncated:
            return self._count()
        data = os.read(self.fd, most)
        if not data:
            self.is_open = False
            return False
        if len(data) >= 65536 and not self._widened:
            self._widen()
        self.put(data)
        return True

    def put(self, data: bytes) -> None:
        """Take *data* that somebody has read from it."""
        room = self.limit - self.size
        if len(data) > room:
            self.truncated = True
            self.dropped = len(data) - room
            data = data[:room]
        if data:
            self.size += len(data)
            if self.sink is not None:
                self.sink(data)
            elif self.chunks and len(data) < LITTLE:
                self._gather(data)
            else:
                self.chunks.append(data)

    def _gather(self, data: bytes) -> None:
        # An object for each byte that a program writes alone would take 40 times as much memory as the limit says.
        last = self.chunks[-1]
        if isinstance(last, bytearray):
            last += data
        else:
            self.chunks.append(bytearray(data))

    def _count(self) -> bool:
        """Read into memory that is there already; what is above the limit is only counted."""
        if self._waste is None:
            self._waste = bytearray(CHUNK)
        count = os.readv(self.fd, [self._waste])
        self.dropped += count
        self.is_open = count > 0
        return self.is_open

    @property
    def total(self) -> int:
        """How many bytes have come."""
        return self.size + self.dropped

    def _widen(self) -> None:
        import fcntl

        self._widened = True
        with contextlib.suppress(OSError):  # above the user's share of pipe memory: it stays as it is, only slower
            fcntl.fcntl(self.fd, F_SETPIPE_SZ, PIPE_SIZE)

    def bytes(self) -> bytes:
        """All of it."""
        return b"".join(self.chunks) if self.chunks else b""


def await_end(channel: Channel, wall_s: float | None) -> codec.End:
    """The end of a run that has nothing to move. Raises: as `Pump.run`."""
    give_up = None if wall_s is None else time.monotonic() + wall_s + GRACE_S
    while True:
        if not channel.wait(None if give_up is None else give_up - time.monotonic()):
            raise BrokenError(LATE)
        end = _end_of(channel.receive_alone())
        if end is not None:
            return end


def _end_of(event: codec.Event | None) -> codec.End | None:
    """What an event in the middle of a run says of its end."""
    if isinstance(event, codec.End):
        return event
    if event is None or isinstance(event, codec.Gone):
        raise BrokenError("the container ended while the program ran (killed, or out of memory on the host)")
    if not isinstance(event, codec.Started):
        raise ProtocolError(f"{type(event).__name__} in the middle of a run")
    return None


class Poll(Protocol):
    """What a `Pump` asks of select.poll; somebody else may do the waiting in its place (`_reactor.Watch`)."""

    def register(self, fd: int, eventmask: int, /) -> None:
        """Watch *fd*, or change what it is watched for."""

    def unregister(self, fd: int, /) -> None:
        """Watch it no more. Raises: KeyError: it was not watched."""

    def poll(self, timeout: float | None = None, /) -> list[tuple[int, int]]:
        """What is ready."""
        ...


class Pump:
    """Moves a run's input and output until its END has come. `run` does so in the calling thread; an event loop calls `begin`, `handle` for
    what is ready of the descriptors that *poll* was told of, and `finish` once there is an `end`.
    """

    def __init__(self, channel: Channel, wiring: Wiring, spec: Spec, data: bytes | None, poll: Poll | None = None) -> None:
        self._channel = channel
        self._wiring = wiring
        self._data: memoryview[int] | None = memoryview(data) if data else None
        self._give_up = None if spec.wall_s is None else time.monotonic() + spec.wall_s + GRACE_S
        self._poll: Poll = select.poll() if poll is None else poll
        self._stdout = None if wiring.stdout is None else Capture(wiring.stdout, spec.output_limit)
        self._stderr = None if wiring.stderr is None else Capture(wiring.stderr, spec.output_limit if spec.error_limit is None else spec.error_limit)
        if wiring.sinks is not None:
            self._pass_on(wiring.sinks)
        self._captures = {capture.fd: capture for capture in (self._stdout, self._stderr) if capture is not None}
        self._is_cut = spec.discards  # or it was asked for already
        self.end: codec.End | None = None

    def run(self) -> codec.End:
        """Until the end. Raises BrokenError when init went away or did not keep the deadline."""
        self.begin()
        while self.end is None:
            self._step()
        self.finish()
        return self.end

    def begin(self) -> None:
        """Send what input the pipe takes, and have the descriptors watched."""
        self._poll.register(self._channel.fileno(), select.POLLIN)
        for fd in self._captures:
            self._poll.register(fd, select.POLLIN)
        if self._wiring.stdin is not None:
            self._feed()

    def _pass_on(self, sinks: Mapping[int, Callable[[Any], object]]) -> None:
        for number, capture in ((1, self._stdout), (2, self._stderr)):
            if capture is not None:
                capture.sink = sinks.get(number)

    def streams(self) -> Streams:
        """What was captured of stdout and stderr."""
        out, err = self._stdout, self._stderr
        return (
            None if out is None or out.sink is not None else out.bytes(),
            None if err is None or err.sink is not None else err.bytes(),
            out is not None and out.truncated,
            err is not None and err.truncated,
            None if out is None else out.total,
            None if err is None else err.total,
        )

    def _step(self) -> None:
        wait_ms = None if self._give_up is None else max(0.0, (self._give_up - time.monotonic()) * 1000)
        events = self._channel.await_events(self._poll.poll, wait_ms)
        if not events:
            raise BrokenError(LATE)
        for fd, event in events:
            self.handle(fd, event)

    def handle(self, fd: int, event: int) -> None:
        """Do what one ready descriptor asks for; does not wait. Raises: as `run`, but for the deadline."""
        if (capture := self._captures.get(fd)) is not None:
            self._read(capture, event)
        elif fd == self._channel.fileno():
            self.end = _end_of(self._channel.receive_alone())
        else:
            self._feed()

    def _read(self, capture: Capture, event: int) -> None:
        # POLLHUP alone: nobody writes any more, and most likely nothing is left. A small buffer then: large ones come from the kernel.
        if not capture.read(CHUNK if event & select.POLLIN else LITTLE):
            self._poll.unregister(capture.fd)
        elif capture.truncated and not self._is_cut:
            self._is_cut = True
            self._channel.send(wire.Msg.KILL, b"\1" + signals.SIGKILL.to_bytes(4, "little"))

    def _feed(self) -> None:
        """Write input as far as the pipe takes it; close the pipe at its end, or when nobody reads it."""
        fd = self._wiring.stdin
        if fd is None:
            return
        os.set_blocking(fd, False)
        most = FEED
        try:
            while self._data and most > 0:  # whoever reads as fast as we write does not keep the others waiting
                written = os.write(fd, self._data)
                self._data = self._data[written:]
                most -= written
        except BlockingIOError:
            pass
        except BrokenPipeError:
            self._data = None  # it ended or closed its input without reading all; as subprocess.communicate, that is its own affair
        if self._data:
            self._poll.register(fd, select.POLLOUT)
            return
        with contextlib.suppress(KeyError):  # it took everything at once and was never registered
            self._poll.unregister(fd)
        self._wiring.stdin = None  # first: an interrupt in between shall not have it closed twice
        os.close(fd)

    def finish(self) -> None:
        """All writers are dead: what is in the pipes is all there will be. Never waits: a descriptor may have been passed on to somebody outside."""
        self._wiring.close_lent()
        self._is_cut = True  # there is nothing left to kill
        self._poll.unregister(self._channel.fileno())
        if self._wiring.stdin is not None:
            with contextlib.suppress(KeyError):  # it was never registered
                self._poll.unregister(self._wiring.stdin)
        left = 2 * PIPE_SIZE  # more than what can be in the two; whoever holds the other end outside may write for ever
        while left > 0 and (events := self._poll.poll(0)):
            for fd, event in events:
                capture = self._captures[fd]
                before = capture.total
                self._read(capture, event)
                left -= capture.total - before
