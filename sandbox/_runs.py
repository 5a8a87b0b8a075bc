"""A program's run whose events somebody else waits for: the pieces of `Session.run`, without the waiting."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable

from sandbox._arguments import Prepared
from sandbox._launch import codec, wire
from sandbox._pump import GRACE_S, LATE, Pump
from sandbox._reactor import Reactor, Watch
from sandbox._result import Result, make_result
from sandbox._run import Text, encode, start_error
from sandbox._session import KILL_RUN
from sandbox._sinks import SinkFailed, decoded, finish
from sandbox._started import Started
from sandbox._wiring import Wiring
from sandbox.errors import BrokenError, ClosedError, ProtocolError, SandboxError, SetupError, UsageError


class Run:
    """One program from its request to its result. Does not wait: *reactor* calls it when there is something to do, in the thread that
    dispatches it, and it calls *on_end* once it is over; until then the caller keeps it.

    Raises: as `Container.exec`, for what fails before the program is on its way; *wiring* is closed then.
    """

    def __init__(
        self, live: Started, prepared: Prepared, wiring: Wiring, data: bytes | None, *, text: Text, reactor: Reactor, on_end: Callable[[Run], None]
    ) -> None:
        self._session, self._live, self._spec, self._wiring, self._text = live.session, live, prepared.spec, wiring, text
        self._on_end = on_end
        self._result: Result | None = None
        self._error: BaseException | None = None
        self.is_over = False
        self._is_sent = False
        self._leaf = live.leaf(prepared, wiring)
        try:
            self._channel = self._session.take_channel()
        except BaseException:
            self._session.discard(wiring, self._leaf, live)
            raise
        self._watch = Watch(reactor, self._on_event)
        if wiring.sinks is not None:
            wiring.sinks = decoded(wiring.sinks, text)
        self._pump = Pump(self._channel, wiring, self._spec, data, self._watch)
        try:
            self._begin()
        except BaseException as error:
            # What could not be sent (EMFILE, say) has left the channel as it was.
            self._release(sound=not self._is_sent and isinstance(error, (OSError, UsageError)))
            raise
        #: when (time.monotonic()) an init that has not kept the deadline is given up; the caller calls `give_up` then
        self.late_at = None if self._spec.wall_s is None else time.monotonic() + self._spec.wall_s + GRACE_S

    def _begin(self) -> None:
        body, fds = encode(self._spec, self._wiring, self._leaf, apart=self._leaf is not None)
        self._session.ask_for_program(self._channel, body, fds)
        self._is_sent = True
        self._wiring.close_lent(outputs=False)
        if self._leaf is not None:
            self._leaf.watch()
        self._pump.begin()
        self._live.tidy(self._channel.has_event)

    @property
    def fd(self) -> int:
        """The last descriptor that it took; the kernel gives the lowest that is free."""
        return self._channel.fileno()

    @property
    def result(self) -> Result:
        """What came of it, once `is_over`. Raises: as `Container.exec`."""
        if self._error is not None:
            raise self._error
        if self._result is None:
            raise AssertionError("the run is not over")
        return self._result

    @property
    def has_failed(self) -> bool:
        """Whether `result` raises."""
        return self._error is not None

    def _on_event(self, fd: int, event: int) -> None:
        try:
            self._pump.handle(fd, event)
            if (end := self._pump.end) is None:
                return
            self._pump.finish()
        except SinkFailed as failed:
            self._fail(failed.error)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is for whoever waits for the result
            self._fail(error)
        else:
            self._conclude(end)

    def _conclude(self, end: codec.End) -> None:
        try:
            self._result = self._result_of(end)
        except SinkFailed as failed:
            self._error = failed.error
        except Exception as error:  # noqa: BLE001
            self._error = self._in_words(error)
        self._end(sound=True)

    def _result_of(self, end: codec.End) -> Result:
        if end.cause == wire.Cause.NOT_STARTED:
            raise start_error(self._spec, end.status, end.detail)
        streams = self._pump.streams()
        if self._text.encoding is not None:
            decode = self._text.decode
            streams = (decode(streams[0], cut=streams[2]), decode(streams[1], cut=streams[3]), *streams[2:])
            finish(self._wiring.sinks, streams[2:4])
        output_hit = (streams[2] or streams[3]) and not self._spec.discards
        return make_result(self._spec, end, self._leaf, output_hit=output_hit, streams=streams)

    def _fail(self, error: BaseException) -> None:
        """End it for a reason of ours: init went away, or does not answer as it should."""
        if isinstance(error, (BrokenError, ProtocolError)):
            self._session.kill()
        self._error = self._in_words(error)
        self._end(sound=False)

    def _in_words(self, error: BaseException) -> BaseException:
        is_told = isinstance(error, SandboxError) and not isinstance(error, BrokenError)
        if is_told or not self._session.is_ending or not isinstance(error, (BrokenError, OSError)):
            return error
        told = ClosedError("the container was closed while the program ran")
        told.__cause__ = error
        return told

    def _end(self, *, sound: bool) -> None:
        self._release(sound=sound)
        self.is_over = True
        self._on_end(self)

    def _release(self, *, sound: bool) -> None:
        self._watch.close()
        self._session.give_channel(self._channel, sound=sound)
        self._session.discard(self._wiring, self._leaf, self._live)

    def kill(self) -> None:
        """Kill the program and all that it started; its end comes as ever."""
        if self.is_over:
            return
        if (end := self._channel.heard_end()) is not None:  # it has come, and an interrupt right after it
            self._conclude(end)
        else:
            with contextlib.suppress(SandboxError):  # its end is on the way then
                self._channel.send(*KILL_RUN)

    def give_up(self) -> None:
        """End it though init has not: it did not keep a deadline."""
        if not self.is_over:
            self._fail(BrokenError(LATE))

    def abandon(self) -> None:
        """Let go of it, without waiting: the program is killed, and the container with it if that takes its first channel.

        In a forked child only its copies are closed.
        """
        if self.is_over:
            return
        self.is_over = True
        if self._session.owner == os.getpid():
            self._error = ClosedError("nobody waits for the program any more")
            self._release(sound=False)
            return
        self._watch.close()
        self._channel.close()
        self._wiring.close()


def is_shortage(error: BaseException) -> bool:
    """Whether *error* may go away when another run ends: descriptors are short, or the container has as many programs as it takes."""
    return isinstance(error, SetupError) and error.step == "shortage"
