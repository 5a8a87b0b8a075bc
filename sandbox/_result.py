"""What became of a program: decided here, from causes that we own; only then from the wait status."""

from __future__ import annotations

import enum
import os
import signal as signals
from typing import Any, Final

from attrs import frozen

from sandbox._launch import codec, wire
from sandbox._pump import Streams
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


@frozen(slots=False)  # 19 fields: with slots, making it frozen takes three times as long
class Result:
    """How a program ended and what it used.

    Times are seconds. `cpu_time` covers everything that the program started when its run had a control group, else its
    first process and what that waited for. `memory_peak` (bytes, page cache included) and `pids_peak` are None without
    a control group or where the kernel does not count them; `max_rss` is the largest resident set of one process.
    `exit_code` is None unless a status EXITED; `signal` is None unless a signal ended the first process. `syscall` is
    the number of the forbidden system call for SYSCALL_DENIED. `stdout_size` and `stderr_size` count the bytes that came, kept or not;
    a program that was killed for its output would have written more. They are None for what was not captured here.
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
    stdout_size: int | None = None
    stderr_size: int | None = None

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


_DEADLINES: Final[dict[int, Status]] = {wire.Cause.WALL: Status.TIMEOUT, wire.Cause.CPU: Status.CPU_LIMIT}
_OTHERS: Final[dict[int, Status]] = {wire.Cause.KILLED: Status.KILLED, wire.Cause.SYSCALL: Status.SYSCALL_DENIED}


def decide(end: codec.End, *, oom_killed: bool, output_hit: bool) -> Status:
    """Why the run ended: the first of our own causes that holds, then the wait status."""
    cause = end.cause
    if cause in _DEADLINES:
        return _DEADLINES[cause]
    if oom_killed:
        return Status.MEMORY_LIMIT
    if output_hit:
        return Status.OUTPUT_LIMIT
    if cause in _OTHERS:
        return _OTHERS[cause]
    return Status.SIGNALED if os.WIFSIGNALED(end.status) else Status.EXITED


def make_result(spec: Spec, end: codec.End, leaf: Leaf | None, *, output_hit: bool, streams: Streams) -> Result:
    """Put a result together from init's word and the control group's."""
    _, wait_status, detail, wall_ns, cpu_ns, user_us, system_us, max_rss_kib, *_ = end
    cpu, user, system, oom, memory_peak, pids_peak = cpu_ns / 1e9, user_us / 1e6, system_us / 1e6, False, None, None
    if leaf is not None:
        usage = leaf.usage((user, system))
        oom, memory_peak, pids_peak = bool(usage.oom_kills), usage.memory_peak, usage.pids_peak
        cpu = cpu if usage.cpu_time is None else usage.cpu_time
        user = user if usage.user_time is None else usage.user_time
        system = system if usage.system_time is None else usage.system_time
    status = decide(end, oom_killed=oom, output_hit=output_hit)
    stdout, stderr, stdout_truncated, stderr_truncated, stdout_size, stderr_size = streams
    return Result(
        spec.args,
        status,
        os.waitstatus_to_exitcode(wait_status) if status is Status.EXITED else None,
        os.WTERMSIG(wait_status) if os.WIFSIGNALED(wait_status) else None,
        stdout,
        stderr,
        stdout_truncated,
        stderr_truncated,
        cpu,
        user,
        system,
        wall_ns / 1e9,
        memory_peak,
        max_rss_kib * 1024,
        pids_peak,
        oom,
        detail if status is Status.SYSCALL_DENIED else None,
        stdout_size,
        stderr_size,
    )
