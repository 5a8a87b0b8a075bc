"""One container of a pool: whether it may be handed on as it is, and how that is proven.

Theory of operation
-------------------
A container is kept only when it is known that its last user left nothing; in every other case it is closed, and a new one takes its place. Who
knows is init: a traceless container (`sec.traces`) reports to it whatever could leave something behind. Init's answer to RESET says that
nothing was, that no process is left, and that numbers of processes begin anew. What init cannot know is looked at here:

- control groups: each run has a fresh one. The container's own, with its limits, counts what the kernel keeps (page cache, directory
  entries) of files that were read; with more than `LITTLE` it is replaced.
- a quota of CPU time is for each 100 ms: what one run used the next one would lack. Where that could be (`_is_owing`), it is replaced.
- what was done with it otherwise than by `exec`, by whoever had it.

The question is sent when a run has ended, and the answer taken when somebody wants the container: nobody waits for it.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING, Final

from attrs import evolve

from sandbox import ns
from sandbox._launch import codec, wire
from sandbox.container import Container
from sandbox.errors import SandboxError, UsageError
from sandbox.fs import Bind, Volume

if TYPE_CHECKING:
    from sandbox._launch.driver import Channel
    from sandbox._spec import ContainerSpec
    from sandbox.process import Result

LITTLE: Final = 4 << 20  # bytes; about what 32 control groups of runs, which are made ahead, take themselves
PERIOD_S: Final = 0.1  # of a CPU quota (cpu.cfs_period_us); we leave it as it is
OWING: Final = 0.1  # of a period's quota: what the next run may find used
ANSWER_S: Final = 5.0
TICK_S: Final = 0.001
SETTLE_S: Final = 0.02
HOPE_S: Final = 5.0  # after which one that has not settled never will
AGE_S: Final = 12 * 3600.0  # access times are renewed after a day (relatime)
_LAST_PID: Final = "/proc/sys/kernel/ns_last_pid"
_AGAIN: Final = 11  # EAGAIN: the kernel's clock has not gone on since it was made
_OURS: Final = ("net", "ipc", "uts", "cgroup")


class Box(Container):
    """A container that several users have, one after the other. Not for two threads at once, but for its programs."""

    def __init__(self, spec: ContainerSpec) -> None:
        super().__init__()
        self.spec = spec
        self._is_fresh = False  # as far as init can tell: nobody had it since it answered
        self._is_spent = not spec.filesystem.traceless
        self._asked: Channel | None = None
        self._memory_fd = -1
        self._memory_before = 0
        self._born = 0.0
        self._used_s, self._used_at = 0.0, 0.0

    def create(self) -> Box:
        """As `Container.create`."""
        super().create()
        if self._memory_fd < 0 and self.spec.limits.memory is not None and (path := self._live().memory_file) is not None:
            self._memory_fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            self._memory_before = self._memory()
        self._born = time.monotonic()
        return self

    def close(self) -> None:
        """As `Container.close`."""
        try:
            self._take_channel_back(sound=False)
            super().close()
        finally:
            fd, self._memory_fd = self._memory_fd, -1
            if fd >= 0:
                os.close(fd)

    def spend(self) -> None:
        """Say that it must not be handed on."""
        self._is_spent = True

    def settle(self) -> bool:
        """Before its first use: make sure that what is looked at later is in its final state; False: not yet, ask again a moment later."""
        if not self._is_spent and not self._is_fresh:
            self._ask()
            error = self._answer()
            is_late = time.monotonic() - self._born > HOPE_S
            self._is_fresh, self._is_spent = not error, error not in (0, _AGAIN) or (error == _AGAIN and is_late)
        return self._is_fresh or self._is_spent

    def settle_soon(self) -> None:
        """As `settle`, waiting for the tick of the kernel's clock that it may take."""
        until = time.monotonic() + SETTLE_S
        while not self.settle() and time.monotonic() < until:
            time.sleep(TICK_S)

    def note(self, result: Result) -> None:
        """Take into account what one run used."""
        if not self._is_spent and self._is_owing(result):
            self._is_spent = True

    def was_clean(self) -> bool:
        """After a use of one that must not be handed on: whether that was its only fault."""
        if self._is_fresh or self._is_spent:
            return False
        self._ask()
        return self._answer() in (0, _AGAIN)

    def give_back(self) -> bool:
        """After a use: whether it may be handed on, if init says so too, which is asked now."""
        if self._is_spent or not self._is_fresh or time.monotonic() - self._born > AGE_S:
            return False
        if self._memory_fd >= 0 and self._memory() > self._memory_before + LITTLE:
            self._is_spent = True
            return False
        self._is_fresh = False
        self._ask()
        return True

    @property
    def was_used(self) -> bool:
        """Whether init has yet to say that nothing was left of its last use."""
        return self._asked is not None

    def is_ready(self) -> bool:
        """Whether it may be handed to the next user. Waits for init's answer, which came long ago as a rule."""
        if self._asked is not None:
            self._is_fresh = self._answer() == 0
            if not self._is_fresh:
                return False
        return self.is_running  # it may have died since it answered

    def _ask(self) -> None:
        session = self._session()
        channel = session.take_channel()
        try:
            channel.send(wire.Msg.RESET, b"")
        except BaseException:
            session.give_channel(channel, sound=False)
            raise
        self._asked = channel

    def _answer(self) -> int:
        """Init's answer, an errno; anything but its answer in time counts as one."""
        channel, event = self._asked, None
        if channel is None:
            raise AssertionError("_ask() comes first")
        with contextlib.suppress(SandboxError, OSError):
            event = channel.receive_alone(ANSWER_S)
        is_sound = isinstance(event, codec.Done)
        self._take_channel_back(sound=is_sound)
        return event.errno if isinstance(event, codec.Done) else -1

    def _take_channel_back(self, *, sound: bool) -> None:
        channel, self._asked = self._asked, None
        if channel is not None:
            self._session().give_channel(channel, sound=sound)

    def _memory(self) -> int:
        return int(os.pread(self._memory_fd, 32, 0))

    def _is_owing(self, result: Result) -> bool:
        """Whether the next run could miss CPU time because of this one."""
        quota = self.spec.limits.cpus
        if quota is None or quota >= len(os.sched_getaffinity(0)) or (quota >= 1 and result.pids_peak == 1):
            return False  # it cannot be used up, or not by one thread at a time
        now = time.monotonic()
        self._used_s = result.cpu_time + (self._used_s if now - self._used_at < PERIOD_S else 0.0)
        self._used_at = now
        return self._used_s > OWING * quota * PERIOD_S


def check_spec(spec: ContainerSpec, *, in_network: bool) -> None:
    """Refuse what different users of a container would share whatever is done between them.

    Raises: UsageError.
    """
    if in_network or "net" in spec.joins or spec.net is not None:
        raise UsageError("net: containers of a pool have a network namespace of their own (net=None), or sockets of one run would meet the next")
    if spec.joins:
        raise UsageError(f"share: {[*spec.joins]} is another container's; in a pool, the next run would see what this one leaves there")
    if shared := [kind for kind in _OURS if isinstance(getattr(spec.namespaces, kind), ns.Host)]:
        raise UsageError(f"share: {shared} is the host's; in a pool, the next run would see what this one leaves there")
    for mount in spec.filesystem.mounts:
        if isinstance(mount, (Bind, Volume)) and not mount.read_only:
            raise UsageError(f"mounts: {mount.target} can be written to, and the next run would read that; give read_only=True, or a Tmpfs")


def why_not_kept(spec: ContainerSpec) -> str:
    """Say why containers of *spec* are replaced after each use, whatever was done; "" when they need not be."""
    security, limits, scratch = spec.security, spec.limits, spec.filesystem.scratch
    reasons = (
        (security.seccomp is False, "seccomp=False: nobody tells what programs do"),
        (security.nesting, "nesting=True: programs may change mounts"),
        (security.wants_capabilities, "capabilities were asked for"),
        (not security.no_new_privs, "no_new_privs=False: programs may get the rights of others"),
        (scratch is not None and scratch.disk is not None, "scratch on disk: reading leaves access times"),
        (bool(limits.io_max), "io_max: one run's share of time is the next one's delay"),
        (not os.path.exists(_LAST_PID), f"the kernel has no {_LAST_PID} (CONFIG_CHECKPOINT_RESTORE)"),
    )
    return next((words for holds, words in reasons if holds), "")


def traceless(spec: ContainerSpec) -> ContainerSpec:
    """*spec* for containers that may be kept."""
    return evolve(spec, filesystem=evolve(spec.filesystem, traceless=True, sysfs=False))
