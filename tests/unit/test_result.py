"""A run's status is decided from causes, in the order of the design."""

from __future__ import annotations

import signal

import pytest

from sandbox import Result, Status
from sandbox._launch import codec, wire
from sandbox._result import decide


def end(cause: int = wire.Cause.NONE, status: int = 0, detail: int = 0) -> codec.End:
    return codec.End(cause, status, detail, *[0] * 12)


KILLED = int(signal.SIGKILL)


@pytest.mark.parametrize("cause", [wire.Cause.WALL, wire.Cause.CPU])
@pytest.mark.parametrize(("pids_peak", "is_told_apart"), [(1, True), (2, False), (None, False)])
def test_the_only_process_that_was_killed_for_memory_was_not_killed_by_a_deadline(cause: wire.Cause, pids_peak: int | None, is_told_apart: bool) -> None:
    deadline = {wire.Cause.WALL: Status.TIMEOUT, wire.Cause.CPU: Status.CPU_LIMIT}[cause]
    assert decide(end(cause, KILLED), oom_killed=True, output_hit=False, pids_peak=pids_peak) is (Status.MEMORY_LIMIT if is_told_apart else deadline)
    assert decide(end(cause, KILLED), oom_killed=False, output_hit=False, pids_peak=pids_peak) is deadline


@pytest.mark.parametrize(
    ("told", "oom", "output", "expected"),
    [
        (end(), False, False, Status.EXITED),
        (end(status=137 << 8), False, False, Status.EXITED),
        (end(status=KILLED), False, False, Status.SIGNALED),
        (end(status=KILLED), True, False, Status.MEMORY_LIMIT),
        (end(), True, False, Status.MEMORY_LIMIT),  # a child of its
        (end(), False, True, Status.OUTPUT_LIMIT),
        (end(wire.Cause.KILLED, KILLED), False, True, Status.OUTPUT_LIMIT),
        (end(wire.Cause.KILLED, KILLED), True, True, Status.MEMORY_LIMIT),
        (end(wire.Cause.KILLED, KILLED), False, False, Status.KILLED),
        (end(wire.Cause.SYSCALL, KILLED, 165), False, False, Status.SYSCALL_DENIED),
        (end(wire.Cause.WALL, KILLED), False, False, Status.TIMEOUT),
        (end(wire.Cause.WALL, KILLED), True, True, Status.TIMEOUT),
        (end(wire.Cause.CPU, KILLED), True, False, Status.CPU_LIMIT),
        (end(wire.Cause.CPU, 0, wire.DETAIL_AT_END), False, False, Status.CPU_LIMIT),
        (end(wire.Cause.CPU, KILLED, wire.DETAIL_AT_END), True, False, Status.MEMORY_LIMIT),
    ],
)
def test_status_is_the_first_cause_that_holds(told: codec.End, oom: bool, output: bool, expected: Status) -> None:
    assert decide(told, oom_killed=oom, output_hit=output) is expected


@pytest.mark.parametrize(
    ("status", "exit_code", "by", "expected"),
    [
        (Status.EXITED, 0, None, 0),
        (Status.EXITED, 42, None, 42),
        (Status.SIGNALED, None, signal.SIGSEGV, 139),
        (Status.TIMEOUT, None, signal.SIGKILL, 124),
        (Status.CPU_LIMIT, None, signal.SIGKILL, 152),
        (Status.CPU_LIMIT, None, None, 152),  # it had ended by itself
        (Status.MEMORY_LIMIT, None, None, 137),
        (Status.OUTPUT_LIMIT, None, signal.SIGKILL, 153),
        (Status.SYSCALL_DENIED, None, signal.SIGKILL, 159),
        (Status.KILLED, None, signal.SIGKILL, 137),
    ],
)
def test_a_shell_is_told_what_ended_it(status: Status, exit_code: int | None, by: int | None, expected: int) -> None:
    told = Result(("x",), status, exit_code, by, b"", b"", False, False, 0.0, 0.0, 0.0, 0.0, None, 0, None, False)
    assert told.shell_code == expected
