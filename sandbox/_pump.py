"""Moves a run's input and output until its end, in the calling thread."""

from __future__ import annotations

import contextlib
import os
import select
import signal as signals
import time
from typing import TYPE_CHECKING, Final

from attrs import define, field

from sandbox._launch import codec, wire
from sandbox._run import Spec
from sandbox._wiring import Wiring
from sandbox.errors import BrokenError, ProtocolError

if TYPE_CHECKING:
    from sandbox._launch.driver import Channel

GRACE_S: Final = 5.0  # how much later than init's our own deadline is
CHUNK: Final = 1 << 18
PIPE_SIZE: Final = 1 << 20  # asked for once a program has filled a default pipe (64 KiB): fewer switches per byte
F_SETPIPE_SZ: Final = 1031
_LATE: Final = "the container's init did not keep the deadline; the container is being killed"


@define
class Capture:
    """A captured stream, bounded."""

    fd: int
    limit: int
    chunks: list[bytes] = field(factory=list[bytes])
    size: int = 0
    truncated: bool = False
    _widened: bool = False

    def read(self) -> bool:
        """Take what is there; False at the end of the stream."""
        data = os.read(self.fd, CHUNK)
        if not data:
            return False
        if len(data) >= 65536 and not self._widened:
            self._widen()
        room = self.limit - self.size
        if len(data) > room:
            self.truncated = True
            data = data[:room]
        if data:
            self.chunks.append(data)
            self.size += len(data)
        return True

    def _widen(self) -> None:
        import fcntl

        self._widened = True
        with contextlib.suppress(OSError):  # above the user's share of pipe memory: it stays as it is, only slower
            fcntl.fcntl(self.fd, F_SETPIPE_SZ, PIPE_SIZE)

    def bytes(self) -> bytes:
        """All of it."""
        return b"".join(self.chunks)


def await_end(channel: Channel, wall_s: float | None) -> codec.End:
    """The end of a run that has nothing to move. Raises: as `Pump.run`."""
    give_up = None if wall_s is None else time.monotonic() + wall_s + GRACE_S
    while True:
        try:
            end = _end_of(channel.receive(None if give_up is None else give_up - time.monotonic()))
        except TimeoutError:
            raise BrokenError(_LATE) from None
        if end is not None:
            return end


def _end_of(got: tuple[codec.Event, list[int]] | None) -> codec.End | None:
    """What an event in the middle of a run says of its end."""
    if got is None:
        raise BrokenError("the container ended while the program ran (killed, or out of memory on the host)")
    event, fds = got
    for fd in fds:
        os.close(fd)
    if isinstance(event, codec.End):
        return event
    if isinstance(event, codec.Gone):
        raise BrokenError("the container ended while the program ran (killed, or out of memory on the host)")
    if not isinstance(event, codec.Started):
        raise ProtocolError(f"{type(event).__name__} in the middle of a run")
    return None


class Pump:
    """Moves a run's input and output until its END has come; for `exec`, in the calling thread."""

    def __init__(self, channel: Channel, wiring: Wiring, spec: Spec, data: bytes | None) -> None:
        self._channel = channel
        self._wiring = wiring
        self._limit = spec.output_limit
        self._data: memoryview[int] | None = memoryview(data) if data else None
        self._give_up = None if spec.wall_s is None else time.monotonic() + spec.wall_s + GRACE_S
        self._poll = select.poll()
        self._captures: dict[int, Capture] = {}
        self.output_hit = False
        self.end: codec.End | None = None

    def run(self) -> codec.End:
        """Until the end. Raises BrokenError when init went away or did not keep the deadline."""
        wiring = self._wiring
        self._poll.register(self._channel.fileno(), select.POLLIN)
        for fd in (wiring.stdout, wiring.stderr):
            if fd is not None:
                self._captures[fd] = Capture(fd, self._limit)
                self._poll.register(fd, select.POLLIN)
        if wiring.stdin is not None:
            self._feed()
        while self.end is None:
            self._step()
        self._drain()
        return self.end

    def output(self, fd: int | None) -> bytes | None:
        """What was captured of a stream."""
        return None if fd is None else self._captures[fd].bytes()

    def truncated(self, fd: int | None) -> bool:
        """Whether more came than was kept."""
        return fd is not None and self._captures[fd].truncated

    def _step(self) -> None:
        wait_ms = None if self._give_up is None else max(0.0, (self._give_up - time.monotonic()) * 1000)
        events = self._poll.poll(wait_ms)
        if not events:
            raise BrokenError(_LATE)
        control = self._channel.fileno()
        for fd, _ in events:
            if fd in self._captures:
                self._read(fd)
            elif fd == control:
                self._control()
            else:
                self._feed()

    def _read(self, fd: int) -> None:
        capture = self._captures[fd]
        if not capture.read():
            self._poll.unregister(fd)
        elif capture.truncated and not self.output_hit:
            self.output_hit = True
            self._channel.send(wire.Msg.KILL, b"\1" + signals.SIGKILL.to_bytes(4, "little"))

    def _control(self) -> None:
        self.end = _end_of(self._channel.receive())

    def _feed(self) -> None:
        """Write input as far as the pipe takes it; close the pipe at its end, or when nobody reads it."""
        fd = self._wiring.stdin
        if fd is None:
            return
        os.set_blocking(fd, False)
        try:
            while self._data:
                self._data = self._data[os.write(fd, self._data) :]
        except BlockingIOError:
            self._poll.register(fd, select.POLLOUT)
            return
        except BrokenPipeError:
            pass  # it ended or closed its input without reading all; as subprocess.communicate, that is its own affair
        self._data = None
        with contextlib.suppress(KeyError):  # it took everything at once and was never registered
            self._poll.unregister(fd)
        os.close(fd)
        self._wiring.stdin = None

    def _drain(self) -> None:
        """All writers are dead: what is in the pipes is all there will be. Never waits: a descriptor may have been passed on."""
        for fd, capture in self._captures.items():
            os.set_blocking(fd, False)
            try:
                while capture.read():
                    pass
            except BlockingIOError:
                pass  # somebody outside holds the other end
            self.output_hit |= capture.truncated
