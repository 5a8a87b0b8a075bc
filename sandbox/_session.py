"""A live container: its init's channels, its control group, and what is asked of it. The facade over it is `Container`."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Final, NamedTuple

from sandbox import _plan as plan
from sandbox._beginning import GONE_S, Beginning
from sandbox._compile import Compiled
from sandbox._launch import codec, driver, wire
from sandbox._launch.driver import Channel
from sandbox._pump import GRACE_S, Pump, Streams, await_end
from sandbox._result import Result, make_result
from sandbox._run import Leaves, Spec, Text, encode, start_error
from sandbox._sinks import SinkFailed, decoded, finish
from sandbox._sys.fds import close_all
from sandbox._wiring import Wiring
from sandbox.cg import Leaf
from sandbox.errors import BrokenError, ClosedError, ProtocolError, SandboxError, SetupError, UsageError
from sandbox.process import Process

KILL_RUN: Final = (wire.Msg.KILL, b"\1" + signal.SIGKILL.to_bytes(4, "little"))
_NO_FDS: Final[Mapping[str, int]] = {}
_NOTHING: Final = (None, None, False, False, None, None)
_NO_OPS: Final = codec.block(bytes(4)) + bytes(4)  # none, of which nothing is wanted
CHANNELS: Final = 500  # init has room for 512; a few may still be on their way out
_SHORT_CHANNELS: Final = 4  # beyond that, for what ends and freezes programs


def _describe(op: plan.Op) -> str:
    return op.describe()


class Asked(NamedTuple):
    """A request that init has, and what it is about."""

    channel: Channel
    ops: tuple[plan.Op, ...]
    expected: int  # of descriptors that are to come


class Session(Beginning):
    """One container from its clone to its end. Thread-safe; belongs to the process that started it."""

    def __init__(self, compiled: Compiled) -> None:
        super().__init__(compiled)
        self._lock = threading.Lock()
        self._is_ending = False
        self._is_spent = False  # the first channel is in an unknown state, and in nobody's hands
        self._control: Channel | None = None
        self._idle: list[Channel] = []
        self.patience: Callable[[Channel | None], None] | None = None  # of who waits for an answer to OPS; None: before it is asked for
        self._channels = 1  # how many there are
        self._starts = threading.Lock()  # who asks for a program
        self._is_held = False

    # ---- Channels ----

    def _take_over(self, channel: Channel) -> None:
        if self._control is None:  # else it was taken over when something was made ahead for a spare
            self._control = channel
            self._idle.append(channel)

    @contextlib.contextmanager
    def _channel(self) -> Generator[Channel]:
        """Borrow an idle channel, or open another; it goes back unless an error left it in an unknown state."""
        channel = self.take_channel(beyond=_SHORT_CHANNELS)
        try:
            yield channel
        except BaseException:
            self.give_channel(channel, sound=False)
            raise
        self.give_channel(channel, sound=True)

    def take_channel(self, *, beyond: int = 0) -> Channel:
        """An idle channel, or a new one. Raises: SetupError: EAGAIN: there are as many as may be, and *beyond*."""
        with self._lock:
            if self.owner != os.getpid() or self._closed or self._is_ending or (control := self._control) is None:
                driver.check_owner(self.owner)
                raise ClosedError("the container is not running; start() it, or use it inside `with`")
            if self._idle:
                return self._idle.pop()
            if self._channels >= CHANNELS + beyond:
                raise SetupError("run a program", errno.EAGAIN, step="shortage", hint=f"a container runs at most {CHANNELS} programs at once")
            channel, theirs = Channel.pair()
            try:
                control.send(wire.Msg.CHANNEL, b"", [theirs])
            except BaseException:
                channel.close()
                raise
            finally:
                os.close(theirs)
            self._channels += 1
            return channel

    @property
    def has_room(self) -> bool:
        """Whether `take_channel` would neither wait nor fail because there are as many programs as init takes."""
        with self._lock:
            control = self._control
            return bool(self._idle) or control is None or (self._channels < CHANNELS and control.is_writable())

    def give_channel(self, channel: Channel, *, sound: bool) -> None:
        """Give it back. An unsound one is closed, which ends what runs on it; the first one is the container's life."""
        with self._lock:
            if sound and not self._closed:
                self._idle.append(channel)
                return
            is_life = channel is self._control and not self._closed
            self._is_spent |= is_life
            self._channels -= not is_life
        if is_life:
            self.kill()  # `close` closes it
        else:
            channel.close()

    # ---- Programs ----

    def run(self, spec: Spec, wiring: Wiring, data: bytes | None, leaf: Leaf | None, *, text: Text, leaves: Leaves) -> Result:
        """Run a program to its end in the calling thread."""
        try:
            channel = self.take_channel()
        except BaseException:
            self.discard(wiring, leaf, leaves)
            raise
        sound = False
        try:
            body, fds = encode(spec, wiring, leaf)
            begin = time.perf_counter()
            try:
                self.ask_for_program(channel, body, fds)
            except UsageError:
                sound = True
                raise
            wiring.close_lent(outputs=False)
            if leaf is not None:
                leaf.watch()
            leaves.tidy(channel.has_event)
            if wiring.sinks is not None:
                wiring.sinks = decoded(wiring.sinks, text)
            try:
                end, streams = self._wait(channel, wiring, spec, data)
            except (BrokenError, ProtocolError):
                raise
            except BaseException:  # Ctrl-C, say: the program ends before we go on
                sound = self._abandon(channel)
                raise
            sound = True
            channel.learn(time.perf_counter() - begin, (end.setup_ns + end.wall_ns) * 1e-9)
            if end.cause == wire.Cause.NOT_STARTED:
                raise start_error(spec, end.status, end.detail)
            if text.encoding is not None:
                streams = (text.decode(streams[0], cut=streams[2]), text.decode(streams[1], cut=streams[3]), *streams[2:])
                finish(wiring.sinks, streams[2:4])
            return make_result(spec, end, leaf, output_hit=(streams[2] or streams[3]) and not spec.discards, streams=streams)
        except SinkFailed as failed:
            raise failed.error from None
        except (BrokenError, OSError) as error:
            # Another thread has closed the container, and with it the channel or the run's control group.
            if (self._closed or self._is_ending) and not isinstance(error, SetupError):
                raise ClosedError("the container was closed while the program ran") from error
            raise
        finally:
            self.give_channel(channel, sound=sound)
            self.discard(wiring, leaf, leaves)

    def ask_for_program(self, channel: Channel, body: bytes, fds: list[int]) -> None:
        """Raises: UsageError: there are to be none for now; the channel is as it was. OSError, as `Channel.send`."""
        channel.last = b""
        with self._starts:
            if self._is_held:
                raise UsageError("the container is paused; resume() it before it can run a program")
            channel.send(wire.Msg.EXEC, body, fds)

    def hold(self) -> None:
        """Let no program be asked for until `release`. Those that have been run, each in its control group, when this returns.

        Raises: BrokenError: init does not answer, or has gone.
        """
        with self._starts:
            self._is_held = True
        for _ in range(2):  # init looks at all channels that have something, one after another: what came before the first one is done by the second
            with self._channel() as channel:
                channel.send(wire.Msg.OPS, _NO_OPS)
                self._done(channel, 0)

    def release(self) -> None:
        """Let programs be asked for again."""
        self._is_held = False

    def _wait(self, channel: Channel, wiring: Wiring, spec: Spec, data: bytes | None) -> tuple[codec.End, Streams]:
        """Move input and output until the end, and give it with what was captured."""
        try:
            if wiring.is_plain:
                return await_end(channel, spec.wall_s), _NOTHING
            pump = Pump(channel, wiring, spec, data)
            return pump.run(), pump.streams()
        except (BrokenError, ProtocolError):
            self.kill()
            raise

    def _abandon(self, channel: Channel) -> bool:
        """Kill what runs on a channel and wait for its end, so that nothing outlives an interrupted call; whether it came."""
        with contextlib.suppress(SandboxError, TimeoutError):
            if channel.heard_end() is not None:  # interrupted when it had come
                return True
            channel.send(*KILL_RUN)
            deadline = time.monotonic() + GRACE_S
            while got := channel.receive(max(0.0, deadline - time.monotonic())):
                if isinstance(got[0], codec.End):
                    return True
                close_all(got[1])
        return False

    @staticmethod
    def discard(wiring: Wiring, leaf: Leaf | None, leaves: Leaves) -> None:
        """Take back what a run had, but for its channel."""
        wiring.close()
        if leaf is not None:
            leaves.retire(leaf)

    def popen(self, spec: Spec, wiring: Wiring, leaf: Leaf | None, *, text: Text, leaves: Leaves) -> Process:
        """Start a program and return at once."""
        channel, finish = self.launch(spec, wiring, leaf, leaves=leaves)
        try:
            return Process(spec, wiring, channel, leaf=leaf, text=text, finish=finish)
        except BaseException as error:
            wiring.close()
            self.give_back(channel, leaf, leaves, sound=isinstance(error, (SetupError, ValueError)))
            raise

    def launch(self, spec: Spec, wiring: Wiring, leaf: Leaf | None, *, leaves: Leaves) -> tuple[Channel, Callable[[bool], None]]:
        """Ask for a program; gives the channel on which STARTED comes, and what a `Process` calls at its end."""
        try:
            channel = self.take_channel()
        except BaseException:
            self.discard(wiring, leaf, leaves)
            raise

        def finish(sound: bool) -> None:
            if not sound:  # init did not answer, or not as it should: as `_wait`
                self.kill()
            self.give_back(channel, leaf, leaves, sound=sound)

        try:
            body, fds = encode(spec, wiring, leaf, flags=wire.EXEC_REPORT_START)
            self.ask_for_program(channel, body, fds)
            wiring.close_lent()
            leaves.tidy(lambda: False)
        except BaseException as error:
            wiring.close()
            self.give_back(channel, leaf, leaves, sound=isinstance(error, (SetupError, ValueError)))
            raise
        return channel, finish

    def give_back(self, channel: Channel, leaf: Leaf | None, leaves: Leaves, *, sound: bool) -> None:
        """Take back what a run had, but for its streams."""
        self.give_channel(channel, sound=sound)
        if leaf is not None:
            leaves.retire(leaf)

    # ---- Requests ----

    def request(
        self, ops: Sequence[plan.Op], wanted: Sequence[str], fds: Mapping[str, int] = _NO_FDS, *, words: Callable[[plan.Op], str] = _describe
    ) -> list[int]:
        """Carry operations out in the live container, with *fds* (slot -> descriptor, copied); returns the descriptors of the slots *wanted*.

        Raises: SetupError (with errno and *words*) for the operation that failed.
        """
        return self.answer(self.ask(ops, wanted, fds), words=words)

    def ask(self, ops: Sequence[plan.Op], wanted: Sequence[str], fds: Mapping[str, int] = _NO_FDS) -> Asked:
        """As `request`, without waiting for `answer`, which must be called."""
        slots = codec.SlotTable(fds, first=0)
        block = len(ops).to_bytes(4, "little") + codec.encode_ops(ops, slots)
        numbers = b"".join(slots.number(name).to_bytes(2, "little") for name in wanted)
        if self.patience is not None:
            self.patience(None)
        channel = self.take_channel()
        try:
            channel.send(wire.Msg.OPS, codec.block(block) + len(wanted).to_bytes(4, "little") + numbers, list(fds.values()))
        except BaseException:
            self.give_channel(channel, sound=False)
            raise
        return Asked(channel, tuple(ops), len(wanted))

    def answer(self, asked: Asked, *, words: Callable[[plan.Op], str] = _describe) -> list[int]:
        """Wait for the answer to `ask`, once. Raises: as `request`."""
        channel, ops = asked.channel, asked.ops
        try:
            if self.patience is not None:
                self.patience(channel)
            event, got = self._done(channel, asked.expected)
        except BaseException:
            self.give_channel(channel, sound=False)
            raise
        self.give_channel(channel, sound=True)
        if event.errno:
            what = words(ops[event.index]) if event.index < len(ops) else "operation"
            raise SetupError(what[:400], event.errno, step="request")
        return got

    def forget(self, asked: Asked) -> None:
        """Do without the answer to `ask`; a container that has no other channel ends by that."""
        self.give_channel(asked.channel, sound=False)

    def _done(self, channel: Channel, count: int) -> tuple[codec.Done, list[int]]:
        event, got = self._next(channel)
        if not isinstance(event, codec.Done) or len(got) != (0 if event.errno else count):
            close_all(got)
            raise ProtocolError(f"{type(event).__name__} with {len(got)} descriptors in answer to OPS")
        return event, got

    def signal_all(self, signum: int) -> None:
        """Send a signal to every process of the container but init."""
        with self._channel() as channel:
            channel.send(wire.Msg.SIGNAL_ALL, int(signum).to_bytes(4, "little"))

    def change_groups(self, steps: Sequence[bytes], deliver: int) -> None:
        """Have the launcher take encoded *steps* with this container's control groups, when it has nothing else to do; see `Launcher.change_groups`.

        Raises: BrokenError.
        """
        if self.launcher is not None:
            self.launcher.change_groups(codec.encode_groups(self.pid, steps), deliver)

    # ---- End ----

    @property
    def is_ending(self) -> bool:
        """Whether somebody has asked for its end."""
        return self._closed or self._is_ending

    @property
    def is_alive(self) -> bool:
        """Whether init lives, and nobody has asked for its end."""
        if self._closed or self._is_ending or self.pidfd < 0 or self.owner != os.getpid():
            return False
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        return not poll.poll(0)

    def abandon(self) -> None:
        """Let go of it: in a forked child of its copies only, else it ends. Does not wait."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        for channel in {id(channel): channel for channel in (*self._idle, self._control, self._starting) if channel is not None}.values():
            channel.close()  # the last one that is open is init's life
        self._drop_pidfd(kill=self.owner == os.getpid())

    @property
    def channel_fd(self) -> int:
        """What becomes readable with the next event of a start, or of the end; while a program runs on the first channel, the latter is `pidfd`."""
        with self._lock:
            channel = self._control or self._starting
            if channel is None or channel.fileno() < 0 or (self._control is not None and not self._is_ours(channel)):
                return self.pidfd
            return channel.fileno()

    def _is_ours(self, control: Channel) -> bool:
        """Whether nobody runs a program on the first channel; the caller has the lock."""
        return control in self._idle or self._control is None or self._is_spent

    def end(self, left: bytes | None = None) -> None:
        """Kill everything, and wait until it is dead; `close` then waits until the launcher has reaped it and removed what was left.

        *left*, the file that tells how much memory is left in the control group, says that nobody minds if namespaces go a moment
        later than that: then there is nothing to wait for here, unless a program runs.
        """
        if self.begin_end(left):
            poll = select.poll()
            poll.register(self.pidfd, select.POLLIN)
            poll.poll(GONE_S * 1000)

    def begin_end(self, left: bytes | None = None) -> bool:
        """As `end`, without waiting; whether there is a death to wait for."""
        if self.owner != os.getpid() or self.pidfd < 0 or self._is_gone:
            return False
        with self._lock:
            was_ending, self._is_ending = self._is_ending, True  # no program is started from now on
            is_idle = self._control in self._idle
        # Said once only: the launcher may have reaped it since, and its pid be another container's.
        if was_ending or left is None or self.launcher is None or not self.launcher.finish(codec.encode_finish(self.pid, left)):
            self.kill()
            return True
        return not is_idle

    def take_end(self) -> bool:
        """Take the next event of the end, which must be there (`channel_fd` is readable); whether `close` would not wait now."""
        channel = self._control or self._starting
        if channel is None or self._is_gone or channel.fileno() < 0:
            return True
        with self._lock:
            is_ours = self._is_ours(channel)
        return not is_ours or self._take_last(channel)

    def close(self) -> bool:
        """Kill everything, and wait until the launcher has removed what was left; whether it said so. May be called twice.

        A call in another thread that waits for a program's end gets it, or ClosedError; its channel is its own to close.
        """
        with self._lock:
            if self._closed:
                return False
            self._closed = True
            channels, self._idle = self._idle, []
            control = self._control or self._starting
            is_ours = control is not None and (control in channels or self._control is None or self._is_spent)
        try:
            if self.owner == os.getpid():
                self.kill()
                return control is not None and is_ours and self._await_gone(control)
        except TimeoutError:
            raise BrokenError(f"the launcher did not say within {GONE_S:.0f} s that the container is gone; is it stopped?") from None
        finally:
            # In a forked child only its copies are closed: the container is the parent's.
            for channel in {id(channel): channel for channel in (*channels, control if is_ours else None) if channel is not None}.values():
                channel.close()
            self._drop_pidfd(kill=False)
        return False
