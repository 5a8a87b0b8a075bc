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
from typing import Final, Protocol

from sandbox import _plan as plan
from sandbox._compile import Compiled
from sandbox._launch import codec, driver, wire
from sandbox._launch.driver import Channel, close_all
from sandbox._pump import GRACE_S, Pump, Streams, await_end
from sandbox._result import Result, make_result
from sandbox._run import Spec, Text, encode, start_error
from sandbox._sinks import SinkFailed, decoded, finish
from sandbox._wiring import Wiring
from sandbox.cg import Leaf
from sandbox.errors import BrokenError, ClosedError, ProtocolError, SandboxError, SetupError
from sandbox.fs import no_overlay
from sandbox.process import Process

_NO_FDS: Final[Mapping[str, int]] = {}
_NOTHING: Final = (None, None, False, False, None, None)
START_S: Final = 60.0  # an init that says nothing for so long is broken
GONE_S: Final = 10.0
_HINTS: Final = {
    (wire.Phase.CLONE, errno.EPERM): "user namespaces are forbidden here; `sandbox doctor` says by what",
    (wire.Phase.CLONE, errno.ENOSPC): "user.max_user_namespaces or a nesting limit is reached; raise the sysctl",
    (wire.Phase.CLONE, errno.EUSERS): "user namespaces are nested too deeply (32)",
    (wire.Phase.CLONE, errno.EAGAIN): "a limit on processes is reached (RLIMIT_NPROC, pids.max, kernel.pid_max)",
    (wire.Phase.CLONE, errno.ENOSYS): "clone3 with CLONE_INTO_CGROUP is missing, and nothing else puts init into a group of cgroup v2",
    (wire.Phase.MAPS, errno.EPERM): "the ids are not this user's; check /etc/subuid and /etc/subgid, or run as root",
    (wire.Phase.MAPS, errno.ENOENT): "newuidmap and newgidmap are missing; install the package uidmap",
}


def _describe(op: plan.Op) -> str:
    return op.describe()


def _is_overlay(op: plan.Op) -> bool:
    return isinstance(op, plan.NewFs) and op.fstype == "overlay"


class Leaves(Protocol):
    """Who makes and removes the control groups of runs."""

    def tidy(self, has_ended: Callable[[], bool]) -> None:
        """Do what can be done while a program runs; *has_ended* says whether it was too short for that."""

    def retire(self, leaf: Leaf) -> None:
        """Take a run's leaf back."""


class Session:
    """One container from its clone to its end. Thread-safe; belongs to the process that started it."""

    def __init__(self, compiled: Compiled) -> None:
        self.owner = os.getpid()
        self.compiled = compiled
        self.launcher: driver.Launcher | None = None
        self._host_ops_before = 0
        self.pid = 0
        self.pidfd = -1
        self.skipped: tuple[tuple[int, int], ...] = ()
        self._lock = threading.Lock()
        self._starting: Channel | None = None
        self._is_ending = False
        self._is_spent = False  # the first channel is in an unknown state, and in nobody's hands
        self._control: Channel | None = None
        self._idle: list[Channel] = []
        self._closed = False

    # ---- Start ----

    def start(self, request: bytes, fds: Sequence[int]) -> None:
        """Clone init and wait until it is ready.

        Raises: SetupError with the operation that failed; BrokenError.
        """
        self.begin(request, fds)
        self.await_ready()

    def begin(self, request: bytes, fds: Sequence[int]) -> None:
        """Ask for init's clone, and go on: `await_ready` waits. With CREATE_PREPARED, `complete` must come between the two."""
        self.launcher = driver.current()
        self._starting = self.launcher.create(request, fds)

    @property
    def has_begun(self) -> bool:
        """Whether the launcher has answered: with init's clone, or that it failed."""
        return self._starting is not None and self._starting.has_event()

    def complete(self, compiled: Compiled, fds: Sequence[int]) -> None:
        """Have a prepared init carry out what *compiled* has beside what it was prepared with.

        Raises: SetupError, BrokenError: it is not there, or no more.
        """
        self.compiled = compiled
        self._host_ops_before = int.from_bytes(compiled.root_host_ops[:4], "little")
        channel = self._starting
        if self.launcher is None or channel is None:
            raise AssertionError("begin() comes first")
        with self._ending_on_failure():
            while not self.pid:
                self._on_event(channel)
            self.launcher.complete(codec.encode_complete(self.pid, compiled.host_ops, compiled.late), fds)

    def await_ready(self) -> None:
        """Wait until init has carried everything out. Raises: as `start`; nothing is left then."""
        channel = self._starting
        if channel is None:
            raise AssertionError("begin() comes first")
        with self._ending_on_failure():
            while not self._on_event(channel):
                pass
        self._control = channel
        self._idle.append(channel)

    @contextlib.contextmanager
    def _ending_on_failure(self) -> Generator[None]:
        try:
            yield
        except BaseException:
            if self._starting is not None:
                self._starting.close()
            self._drop_pidfd(kill=True)
            self._closed = True
            raise

    def _on_event(self, channel: Channel) -> bool:
        """Take the next event of a start; say whether it was the last, READY."""
        event, fds = self._next(channel)
        if isinstance(event, codec.Cloned):
            self._take_pidfd(event, fds)
            return False
        close_all(fds)
        if isinstance(event, codec.Ready):
            self.skipped = event.skipped
            return True
        if isinstance(event, codec.Failed):
            error = self.setup_error(event)
            self._await_gone(channel)
            raise error
        if isinstance(event, codec.Gone):
            raise BrokenError(f"the container's init died while it was set up (wait status {event.status})")
        raise ProtocolError(f"{type(event).__name__} before READY")

    def _take_pidfd(self, event: codec.Cloned, fds: list[int]) -> None:
        if len(fds) != 1 or self.pidfd >= 0:
            close_all(fds)
            raise ProtocolError(f"CLONED with {len(fds)} descriptors{' again' if self.pidfd >= 0 else ''}")
        self.pid, self.pidfd = event.pid, fds[0]

    @staticmethod
    def _next(channel: Channel) -> tuple[codec.Event, list[int]]:
        try:
            got = channel.receive(START_S)
        except TimeoutError:
            raise BrokenError(f"the container's init said nothing for {START_S:.0f} s") from None
        if got is None:
            raise BrokenError("the launcher went away while a container was set up, or could not take the descriptors of the request (ulimit -Hn)")
        return got

    def setup_error(self, failed: codec.Failed) -> SandboxError:
        """Words for a failed set-up, made where the plan is known."""
        try:
            phase = wire.Phase(failed.phase)
        except ValueError:
            return ProtocolError(f"init reports a failure in the unknown phase {failed.phase}")
        ops = {wire.Phase.HOST: self.compiled.ops.host_ops, wire.Phase.INIT: self.compiled.ops.init_ops}.get(phase)
        words = {
            wire.Phase.CLONE: f"join namespace {failed.index} before the clone" if failed.index else "clone the container's init into new namespaces",
            wire.Phase.MAPS: "write the id maps of the user namespace",
            wire.Phase.EXEC: "start the program",
            wire.Phase.REQUEST: "read the request (a bug of ours)",
            wire.Phase.GROUPS: "make the control groups ahead",
        }.get(phase, "set up")
        if ops is not None:
            index = failed.index + (self._host_ops_before if phase is wire.Phase.HOST else 0)
            if index < len(ops) and _is_overlay(ops[index]) and failed.errno in (errno.EPERM, errno.ENODEV):
                return no_overlay()
            words = ops[index].describe() if index < len(ops) else f"{phase.name.lower()} operation {index}"
        hint = _HINTS.get((phase, failed.errno), "")
        if words.startswith(plan.Unshare.__name__) and failed.errno == errno.ENOSPC:
            hint = "user.max_mnt_namespaces, max_net_namespaces or another limit of that kind is reached; raise the sysctl"
        return SetupError(words, failed.errno, step=phase.name.lower(), hint=hint)

    # ---- Channels ----

    @contextlib.contextmanager
    def _channel(self) -> Generator[Channel]:
        """Borrow an idle channel, or open another; it goes back unless an error left it in an unknown state."""
        channel = self.take_channel()
        try:
            yield channel
        except BaseException:
            self.give_channel(channel, sound=False)
            raise
        self.give_channel(channel, sound=True)

    def take_channel(self) -> Channel:
        """An idle channel, or a new one."""
        with self._lock:
            if self.owner != os.getpid() or self._closed or self._is_ending or (control := self._control) is None:
                driver.check_owner(self.owner)
                raise ClosedError("the container is not running; start() it, or use it inside `with`")
            if self._idle:
                return self._idle.pop()
            channel, theirs = Channel.pair()
            try:
                control.send(wire.Msg.CHANNEL, b"", [theirs])
            except BaseException:
                channel.close()
                raise
            finally:
                os.close(theirs)
            return channel

    def give_channel(self, channel: Channel, *, sound: bool) -> None:
        """Give it back. An unsound one is closed, which ends what runs on it; the first one is the container's life."""
        with self._lock:
            if sound and not self._closed:
                self._idle.append(channel)
                return
            is_life = channel is self._control and not self._closed
            self._is_spent |= is_life
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
            self._discard(wiring, leaf, leaves)
            raise
        sound = False
        try:
            # With a control group there is work to do meanwhile, which shall not keep the program waiting for this CPU.
            body, fds = encode(spec, wiring, leaf, apart=leaf is not None)
            channel.send(wire.Msg.EXEC, body, fds)
            wiring.close_lent(outputs=False)
            if leaf is not None:
                # The kernel may have put init on this CPU, for whoever sends a message mostly waits for the answer then.
                os.sched_yield()
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
            self._discard(wiring, leaf, leaves)

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
            channel.send(wire.Msg.KILL, b"\1" + signal.SIGKILL.to_bytes(4, "little"))
            deadline = time.monotonic() + GRACE_S
            while got := channel.receive(max(0.0, deadline - time.monotonic())):
                if isinstance(got[0], codec.End):
                    return True
                close_all(got[1])
        return False

    @staticmethod
    def _discard(wiring: Wiring, leaf: Leaf | None, leaves: Leaves) -> None:
        wiring.close()
        if leaf is not None:
            leaves.retire(leaf)

    def popen(self, spec: Spec, wiring: Wiring, leaf: Leaf | None, *, text: Text, leaves: Leaves) -> Process:
        """Start a program and return at once."""
        try:
            channel = self.take_channel()
        except BaseException:
            self._discard(wiring, leaf, leaves)
            raise

        def give_back(sound: bool) -> None:
            self.give_channel(channel, sound=sound)
            if leaf is not None:
                leaves.retire(leaf)

        def finish(sound: bool) -> None:
            if not sound:  # init did not answer, or not as it should: as `_wait`
                self.kill()
            give_back(sound)

        try:
            body, fds = encode(spec, wiring, leaf, flags=wire.EXEC_REPORT_START)
            channel.send(wire.Msg.EXEC, body, fds)
            wiring.close_lent()
            leaves.tidy(lambda: False)
            return Process(spec, wiring, channel, leaf=leaf, text=text, finish=finish)
        except BaseException as error:
            wiring.close()
            give_back(isinstance(error, (SetupError, ValueError)))
            raise

    # ---- Requests ----

    def request(
        self, ops: Sequence[plan.Op], wanted: Sequence[str], fds: Mapping[str, int] = _NO_FDS, *, words: Callable[[plan.Op], str] = _describe
    ) -> list[int]:
        """Carry operations out in the live container, with *fds* (slot -> descriptor, copied); returns the descriptors of the slots *wanted*.

        Raises: SetupError (with errno and *words*) for the operation that failed.
        """
        slots = codec.SlotTable(fds, first=0)
        block = len(ops).to_bytes(4, "little") + codec.encode_ops(ops, slots)
        numbers = b"".join(slots.number(name).to_bytes(2, "little") for name in wanted)
        with self._channel() as channel:
            channel.send(wire.Msg.OPS, codec.block(block) + len(wanted).to_bytes(4, "little") + numbers, list(fds.values()))
            event, got = self._next(channel)
            if not isinstance(event, codec.Done) or len(got) != (0 if event.errno else len(wanted)):
                close_all(got)
                raise ProtocolError(f"{type(event).__name__} with {len(got)} descriptors in answer to OPS")
        if event.errno:
            what = words(ops[event.index]) if event.index < len(ops) else "operation"
            raise SetupError(what[:400], event.errno, step="request")
        return got

    def signal_all(self, signum: int) -> None:
        """Send a signal to every process of the container but init."""
        with self._channel() as channel:
            channel.send(wire.Msg.SIGNAL_ALL, int(signum).to_bytes(4, "little"))

    def change_groups(self, steps: Sequence[tuple[wire.GroupStep, bytes, bytes]]) -> None:
        """Have the launcher take *steps* with this container's control groups, when it has nothing else to do. Raises: BrokenError."""
        if self.launcher is not None:
            self.launcher.change_groups(codec.encode_groups(self.pid, steps))

    # ---- End ----

    def kill(self) -> None:
        """Kill init, and with it everything in the container. Does not wait."""
        if self.pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

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

    def end(self, left: bytes | None = None) -> None:
        """Kill everything, and wait until it is dead; `close` then waits until the launcher has reaped it and removed what was left.

        *left*, the file that tells how much memory is left in the control group, says that nobody minds if namespaces go a moment
        later than that: then there is nothing to wait for here, unless a program runs.
        """
        if self.owner != os.getpid() or self.pidfd < 0:
            return
        with self._lock:
            self._is_ending = True  # no program is started from now on
            is_idle = self._control in self._idle
        if left is None or self.launcher is None or not self.launcher.finish(codec.encode_finish(self.pid, left)):
            self.kill()
        elif is_idle:
            return
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        poll.poll(GONE_S * 1000)

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

    def _await_gone(self, channel: Channel) -> bool:
        """Whether the launcher said it; else it has died."""
        deadline = time.monotonic() + GONE_S
        while got := channel.receive(max(0.0, deadline - time.monotonic())):
            if isinstance(got[0], codec.Cloned):  # it was ended before anybody asked who it is
                self._take_pidfd(got[0], got[1])
                self.kill()
                continue
            close_all(got[1])
            if isinstance(got[0], codec.Gone):
                return True
        return False

    def _drop_pidfd(self, *, kill: bool) -> None:
        if kill:
            self.kill()
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1
