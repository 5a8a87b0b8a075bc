"""What became of a program: decided here, from causes that we own; only then from the wait status."""

from __future__ import annotations

import enum
import errno
import os
import signal as signals
from typing import TYPE_CHECKING, Any, Final

from attrs import field, frozen

from sandbox._launch import codec, wire
from sandbox._pump import Streams
from sandbox._run import Spec
from sandbox.cg import Leaf, Usage
from sandbox.errors import BrokenError, CommandError, UsageError

if TYPE_CHECKING:
    from sandbox.cg.details import Details

BLOCK: Final = 512  # bytes, of getrusage's blocks


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
    a program that was killed for its output would have written more. They are None for what was not captured here. `details` are there
    with ``accounting="full"``. docs/reference/result.md says of each figure where it comes from, and what is not exact about it.
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
    _end: codec.End | None = field(default=None, eq=False, repr=False)  # what few ask for is worked out when they do
    details: Details | None = None

    @property
    def setup_time(self) -> float:
        """Seconds from init's taking up the request until just before execve; `wall_time` begins there."""
        return self._told.setup_ns / 1e9

    @property
    def voluntary_switches(self) -> int:
        """How often its processes gave up a CPU to wait for something."""
        return self._told.voluntary_switches

    @property
    def involuntary_switches(self) -> int:
        """How often a CPU was taken from its processes."""
        return self._told.involuntary_switches

    @property
    def minor_faults(self) -> int:
        """Page faults that needed no disk."""
        return self._told.minor_faults

    @property
    def major_faults(self) -> int:
        """Page faults that had to wait for a disk."""
        return self._told.major_faults

    @property
    def io_read(self) -> int:
        """Bytes that were fetched from disks; what was in the page cache is not counted."""
        return self._told.blocks_in * BLOCK

    @property
    def io_written(self) -> int:
        """Bytes that are bound for disks: page cache of files made dirty, whenever it is written back."""
        return self._told.blocks_out * BLOCK

    @property
    def _told(self) -> codec.End:
        if self._end is None:
            raise UsageError("this Result was not made by a run, and has no such figure")
        return self._end

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

    @property
    def shell_code(self) -> int:
        """What ``sandbox run`` exits with, and a shell would say: the exit code, 128 + the signal, or what docs/reference/cli.md says of a limit."""
        if self.exit_code is not None:
            return self.exit_code
        return _SHELL_CODES.get(self.status, 128 + (self.signal or 0))

    @property
    def args(self) -> tuple[str, ...]:
        """`argv`, by subprocess's name."""
        return self.argv

    def check_returncode(self) -> None:
        """As subprocess: raise CommandError unless `ok`."""
        self.check()

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


_SHELL_CODES: Final = {
    Status.TIMEOUT: 124,  # timeout(1)'s
    Status.CPU_LIMIT: 128 + signals.SIGXCPU,  # what the kernel's own limits would have sent
    Status.MEMORY_LIMIT: 128 + signals.SIGKILL,
    Status.OUTPUT_LIMIT: 128 + signals.SIGXFSZ,
    Status.SYSCALL_DENIED: 128 + signals.SIGSYS,
    Status.KILLED: 128 + signals.SIGKILL,
}
_DEADLINES: Final[dict[int, Status]] = {wire.Cause.WALL: Status.TIMEOUT, wire.Cause.CPU: Status.CPU_LIMIT}
_OTHERS: Final[dict[int, Status]] = {wire.Cause.KILLED: Status.KILLED, wire.Cause.SYSCALL: Status.SYSCALL_DENIED}


def decide(end: codec.End, *, oom_killed: bool, output_hit: bool, pids_peak: int | None = None) -> Status:
    """Why the run ended: the first of our own causes that holds, then the wait status.

    A deadline comes after memory where memory has run out before: the kernel kills nobody for it who is being killed already. So
    what was counted was the only process there ever was (*pids_peak*); or the limit was passed by what is charged for its end.
    """
    cause = end.cause
    if not (cause or end.status or oom_killed or output_hit):  # by far the most
        return Status.EXITED
    if cause in _DEADLINES and not (oom_killed and (pids_peak == 1 or end.detail == wire.DETAIL_AT_END)):
        return _DEADLINES[cause]
    if oom_killed:
        return Status.MEMORY_LIMIT
    if output_hit:
        return Status.OUTPUT_LIMIT
    if cause in _OTHERS:
        return _OTHERS[cause]
    return Status.SIGNALED if os.WIFSIGNALED(end.status) else Status.EXITED


def _usage(leaf: Leaf, user_us: int, system_us: int) -> Usage:
    try:
        return leaf.usage((user_us * 1000, system_us * 1000))
    except OSError as error:
        if error.errno != errno.ENODEV:
            raise
        # Somebody has ended the container right after the program, and the launcher its groups: whether memory ran out, nobody knows.
        raise BrokenError("the container ended before what the program used was read; start another one") from error


def make_result(spec: Spec, end: codec.End, leaf: Leaf | None, *, output_hit: bool, streams: Streams) -> Result:
    """Put a result together from init's word and the control group's."""
    _, wait_status, detail, wall_ns, cpu_ns, user_us, system_us, max_rss_kib, *_ = end
    cpu: float | None
    user: float | None
    system: float | None
    if leaf is None:
        memory_peak, oom, pids_peak, cpu, user, system = None, False, None, cpu_ns / 1e9, user_us / 1e6, system_us / 1e6
    else:
        memory_peak, kills, pids_peak, cpu, user, system = _usage(leaf, user_us, system_us)
        oom = bool(kills)
        if cpu is None:
            cpu = cpu_ns / 1e9
        if user is None or system is None:
            user, system = user_us / 1e6, system_us / 1e6
    status = decide(end, oom_killed=oom, output_hit=output_hit, pids_peak=pids_peak)
    exit_code: int | None
    signal: int | None
    if status is Status.EXITED:
        exit_code, signal = wait_status >> 8, None
    else:
        exit_code, signal = None, os.WTERMSIG(wait_status) if os.WIFSIGNALED(wait_status) else None
    stdout, stderr, stdout_truncated, stderr_truncated, stdout_size, stderr_size = streams
    return Result(
        spec.args,
        status,
        exit_code,
        signal,
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
        end,
        leaf.details() if spec.is_detailed and leaf is not None else None,
    )
