"""What became of a program: decided here, from causes that we own; only then from the wait status."""

from __future__ import annotations

import enum
import os
import signal as signals
from typing import Any

from attrs import frozen

from sandbox._launch import codec, wire
from sandbox._run import Spec
from sandbox.cg import Leaf
from sandbox.errors import CommandError


class Status(enum.Enum):
    """What became of a program."""

    EXITED = "exited"
    SIGNALED = "signaled"
    TIMEOUT = "timeout"
    CPU_LIMIT = "cpu limit"
    MEMORY_LIMIT = "memory limit"
    OUTPUT_LIMIT = "output limit"
    SYSCALL_DENIED = "syscall denied"
    KILLED = "killed"


@frozen
class Result:
    """How a program ended and what it used.

    Times are seconds. `cpu_time` covers everything that the program started when its run had a control group, else its
    first process and what that waited for. `memory_peak` (bytes, page cache included) and `pids_peak` are None without
    a control group or where the kernel does not count them; `max_rss` is the largest resident set of one process.
    `exit_code` is None unless a status EXITED; `signal` is None unless a signal ended the first process. `syscall` is
    the number of the forbidden system call for SYSCALL_DENIED.
    """

    argv: tuple[str, ...]
    status: Status
    exit_code: int | None
    signal: int | None
    stdout: Any  # bytes; str in text mode; None when it was not captured
    stderr: Any
    stdout_truncated: bool
    stderr_truncated: bool
    cpu_time: float
    user_time: float
    system_time: float
    wall_time: float
    memory_peak: int | None
    max_rss: int
    pids_peak: int | None
    oom_killed: bool
    syscall: int | None = None

    @property
    def ok(self) -> bool:
        """Whether it exited by itself with code 0."""
        return self.status is Status.EXITED and self.exit_code == 0

    @property
    def returncode(self) -> int:
        """As subprocess: the exit code, or minus the signal; -9 when one of our limits ended it."""
        if self.exit_code is not None:
            return self.exit_code
        return -(self.signal or signals.SIGKILL)

    def check(self) -> Result:
        """Return self if `ok`; otherwise raise CommandError."""
        if self.ok:
            return self
        raise CommandError(self._complaint(), self)

    def _complaint(self) -> str:
        what = {
            Status.EXITED: f"exited with code {self.exit_code}",
            Status.SIGNALED: f"was ended by signal {self.signal}",
            Status.SYSCALL_DENIED: f"called the forbidden system call {self.syscall}",
        }.get(self.status, f"ended by {self.status.value}")
        stderr = self.stderr.decode(errors="replace") if isinstance(self.stderr, bytes) else self.stderr
        tail = f": {stderr.strip()[-400:]}" if stderr and stderr.strip() else ""
        return f"{self.argv[0]} {what}{tail}"


def decide(end: codec.End, *, oom_killed: bool, output_hit: bool) -> Status:
    """Why the run ended: the first of our own causes that holds, then the wait status."""
    if end.cause == wire.Cause.WALL:
        return Status.TIMEOUT
    if end.cause == wire.Cause.CPU:
        return Status.CPU_LIMIT
    if oom_killed:
        return Status.MEMORY_LIMIT
    if output_hit:
        return Status.OUTPUT_LIMIT
    if end.cause == wire.Cause.KILLED:
        return Status.KILLED
    if end.cause == wire.Cause.SYSCALL:
        return Status.SYSCALL_DENIED
    return Status.SIGNALED if os.WIFSIGNALED(end.status) else Status.EXITED


def make_result(spec: Spec, end: codec.End, leaf: Leaf | None, *, output_hit: bool, streams: tuple[Any, Any, bool, bool]) -> Result:
    """Put a result together from init's word and the control group's."""
    usage = None if leaf is None else leaf.usage()
    oom = usage is not None and bool(usage.oom_kills)
    status = decide(end, oom_killed=oom, output_hit=output_hit)
    user, system, cpu = end.user_us / 1e6, end.system_us / 1e6, end.cpu_ns / 1e9
    if usage is not None:
        cpu = cpu if usage.cpu_time is None else usage.cpu_time
        user = user if usage.user_time is None else usage.user_time
        system = system if usage.system_time is None else usage.system_time
    signaled = os.WIFSIGNALED(end.status)
    return Result(
        argv=spec.args,
        status=status,
        exit_code=None if signaled or status is not Status.EXITED else os.waitstatus_to_exitcode(end.status),
        signal=os.WTERMSIG(end.status) if signaled else None,
        stdout=streams[0],
        stderr=streams[1],
        stdout_truncated=streams[2],
        stderr_truncated=streams[3],
        cpu_time=cpu,
        user_time=user,
        system_time=system,
        wall_time=end.wall_ns / 1e9,
        memory_peak=None if usage is None else usage.memory_peak,
        max_rss=end.max_rss_kib * 1024,
        pids_peak=None if usage is None else usage.pids_peak,
        oom_killed=oom,
        syscall=end.detail if status is Status.SYSCALL_DENIED else None,
    )
