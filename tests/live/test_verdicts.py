"""Every way in which a program ends, or has to be ended, gives the right status; and what follows in the same container is unaffected.

SANDBOX_VERDICTS says how often each is tried (once without it; 50 for the claim that is made).
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from sandbox import Bind, Container, Result, Rlimits, Security, Status
from sandbox.cg import Mode, detect
from sandbox.sec import NOTIFY, Profile, profile_policy, rule, syscall_number
from tests.support import needs, why_not

ROUNDS: Final = int(os.environ.get("SANDBOX_VERDICTS", "1"))
FATES: Final = "/programs/fates"
MIB: Final = 1 << 20
LONG: Final = {"timeout": 60.0}  # never what ends it
pytestmark = [needs("userns", "program:gcc"), pytest.mark.unprivileged, pytest.mark.timeout(60 + 30 * ROUNDS)]
memory_group, pids_group = needs("cgroup:memory"), needs("cgroup:pids")


USUAL: Final[dict[Container, float]] = {}  # CPU time that a run after another may take, in seconds: more in an emulated machine


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("programs")
    source = Path(__file__).with_name("fates.c")
    subprocess.run(["gcc", "-O1", "-Wall", "-Wextra", "-Werror", "-static", "-pthread", "-o", directory / "fates", source], check=True)
    for path in (directory, *directory.parents[:2]):
        path.chmod(0o755)
    return directory


@pytest.fixture(scope="module")
def box(programs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Container]:
    """One container for all: what a program does to it, the next one would feel."""
    disk = tmp_path_factory.mktemp("disk")
    disk.chmod(0o777)
    with Container(mounts=[Bind(programs, "/programs", read_only=True), Bind(disk, "/disk")]) as container:
        USUAL[container] = max(0.05, *(10 * run(container, "after", timeout=20.0).cpu_time for _ in range(3)))
        yield container


def run(box: Container, *argv: str, **limits: Any) -> Result:
    """Run a fate. Where there is no control group, what needs none is judged all the same."""
    if why_not("cgroup:memory") or why_not("cgroup:pids"):
        limits["accounting"] = False
    return box.exec([FATES, *argv], **limits)


def check_after(box: Container) -> None:
    """A plain run, that of a program which uses 1 MiB and looks around, is what it always is."""
    after = run(box, "after", timeout=20.0, cpu_time=10.0)
    assert (after.status, after.exit_code, after.stdout, after.stderr) == (Status.EXITED, 0, b"0 others\n", b""), after
    assert not after.oom_killed
    assert after.cpu_time < USUAL.get(box, 0.05), after
    assert after.memory_peak is None or MIB <= after.memory_peak < 3 * MIB, after
    assert after.max_rss < 3 * MIB, after
    assert after.pids_peak in {1, None}, after


def verdicts(box: Container, *argv: str, **limits: Any) -> Iterator[Result]:
    """Each round's result, the container having been looked at after it."""
    for _ in range(ROUNDS):
        result = run(box, *argv, **limits)
        check_after(box)
        yield result


@pytest.mark.parametrize("argv", ["busy", "child", "thread", "thread_alone"])
def test_busy_is_over_its_cpu_time(box: Container, argv: str) -> None:
    for result in verdicts(box, argv, cpu_time=0.1, **LONG):
        assert (result.status, result.oom_killed) == (Status.CPU_LIMIT, False), result
        assert 0.1 <= result.cpu_time < 0.5, result  # on a busy machine init waits for a CPU, too


@pytest.mark.parametrize("argv", ["sleep", "pause", "stop", "busy", "child", "thread", "thread_alone"])
def test_late_is_over_its_time(box: Container, argv: str) -> None:
    for result in verdicts(box, argv, cpu_time=30.0, timeout=0.1):
        assert (result.status, result.oom_killed) == (Status.TIMEOUT, False), result
        assert 0.1 <= result.wall_time < 10, result


def test_what_a_program_leaves_behind_does_not_live_on(box: Container) -> None:
    for result in verdicts(box, "daemon", cpu_time=30.0, **LONG):
        assert (result.status, result.exit_code) == (Status.EXITED, 0), result
        assert result.wall_time < 20, result


@memory_group
@pytest.mark.parametrize("argv", ["heap", "stack", "bss", "mmap", "shm", "write /dev/shm/flood", "write /tmp/flood"])
@pytest.mark.parametrize("memory", ["4M", "24M"])
def test_too_much_memory_is_over_its_memory(box: Container, argv: str, memory: str) -> None:
    rlimits = Rlimits(stack="1G")
    for result in verdicts(box, *argv.split(), memory=memory, cpu_time=30.0, rlimits=rlimits, **LONG):
        assert (result.status, result.oom_killed) == (Status.MEMORY_LIMIT, True), result
        assert result.memory_peak is not None
        limit = int(memory[:-1]) * MIB
        assert 0.98 * limit - MIB <= result.memory_peak <= limit, result


@memory_group
def test_page_cache_is_taken_back_and_is_nobodys_fault(box: Container, tmp_path: Path) -> None:
    if os.major(tmp_path.stat().st_dev) == 0:
        pytest.skip("the temporary directory is on no disk: its files are memory")
    for result in verdicts(box, "page_cache", memory="8M", cpu_time=30.0, **LONG):
        assert (result.status, result.exit_code, result.oom_killed) == (Status.EXITED, 0, False), result
        assert result.memory_peak is not None
        assert 7 * MIB <= result.memory_peak <= 8 * MIB, result


@memory_group
@pids_group
@pytest.mark.parametrize("argv", ["fork_bomb", "thread_bomb"])
def test_bombs_are_over_their_cpu_time(box: Container, argv: str) -> None:
    # A fork that `pids` refuses has copied the process before, and what it copied is freed later: of those there may be 64 MiB at once.
    for result in verdicts(box, argv, cpu_time=0.15, pids=24, memory="512M", **LONG):
        assert (result.status, result.oom_killed) == (Status.CPU_LIMIT, False), result
        assert result.pids_peak is None or 1 < result.pids_peak <= 24, result  # its time may be over before it has made them all


@pytest.mark.parametrize("stream", [1, 2])
def test_too_much_output_is_over_its_limit(box: Container, stream: int) -> None:
    for result in verdicts(box, "flood", str(stream), output_limit="1M", cpu_time=30.0, **LONG):
        assert result.status is Status.OUTPUT_LIMIT, result
        kept, other = (result.stdout, result.stderr) if stream == 1 else (result.stderr, result.stdout)
        assert (len(kept), other) == (MIB, b"")


def test_a_file_over_its_limit_is_a_signal_of_the_kernels(box: Container) -> None:
    for result in verdicts(box, "write", "/tmp/flood", rlimits=Rlimits(fsize="1M"), cpu_time=30.0, **LONG):
        assert (result.status, result.signal) == (Status.SIGNALED, signal.SIGXFSZ), result


@pytest.mark.parametrize(
    ("argv", "number"),
    [
        ("segv", signal.SIGSEGV), ("abort", signal.SIGABRT), ("fpe", signal.SIGFPE),
        (f"signal {int(signal.SIGKILL)}", signal.SIGKILL), (f"signal {int(signal.SIGXCPU)}", signal.SIGXCPU),
    ],
)  # fmt: skip
def test_a_signal_of_its_own_is_a_signal(box: Container, argv: str, number: int) -> None:
    for result in verdicts(box, *argv.split(), cpu_time=30.0, **LONG):
        assert (result.status, result.signal, result.exit_code, result.oom_killed) == (Status.SIGNALED, number, None, False), result


@pytest.mark.parametrize("code", [137, 124, 255, 1])
def test_an_exit_code_is_an_exit_code(box: Container, code: int) -> None:
    for result in verdicts(box, "exit", str(code), cpu_time=30.0, **LONG):
        assert (result.status, result.exit_code, result.signal) == (Status.EXITED, code, None), result


def test_a_forbidden_system_call_is_named(programs: Path) -> None:
    policy = profile_policy(Profile.DEFAULT, clone3=detect().mode is Mode.V2).first(rule("mount", NOTIFY))
    with Container(mounts=[Bind(programs, "/programs", read_only=True)], security=Security(seccomp=policy)) as strict:
        for result in verdicts(strict, "denied", cpu_time=30.0, **LONG):
            assert (result.status, result.exit_code, result.oom_killed) == (Status.SYSCALL_DENIED, None, False), result
            assert result.syscall == syscall_number("mount")


# What ends a program at the very instant of its deadline: whichever of the two came first must be told, and told as what it was.
INSTANTS: Final = [20.0 + 0.25 * step for step in range(-8, 24)]  # milliseconds from the start; it does what it does after 20


# It is one process: if the kernel has killed it for memory, nothing else has. (Else there would have to be an order: Linux 6.11 counts processes.)
one_process = needs("cgroup:memory", "cgroup:pids", "kernel:6.11")


@one_process
def test_memory_at_the_instant_of_the_deadline_is_told_from_the_deadline(box: Container) -> None:
    for round_ in range(ROUNDS):
        for ms in INSTANTS[round_ % 4 :: 4]:
            result = run(box, "at", "20", "memory", memory="32M", timeout=ms / 1000)
            assert result.status is (Status.MEMORY_LIMIT if result.oom_killed else Status.TIMEOUT), result
            assert result.signal == signal.SIGKILL
            assert result.status is Status.MEMORY_LIMIT or result.wall_time >= ms / 1000, result
        check_after(box)


@one_process
def test_memory_at_the_instant_of_the_cpu_limit_is_told_from_the_cpu_limit(box: Container) -> None:
    for round_ in range(ROUNDS):
        for cpu_time in (0.001 + 0.0005 * step for step in range(round_ % 4, 32, 4)):
            result = run(box, "mmap", memory="32M", cpu_time=cpu_time, **LONG)
            assert result.status is (Status.MEMORY_LIMIT if result.oom_killed else Status.CPU_LIMIT), result
            assert result.status is Status.MEMORY_LIMIT or result.cpu_time >= cpu_time, result
        check_after(box)


@pytest.mark.parametrize("what", ["kill", "exit"])
def test_an_end_at_the_instant_of_the_deadline_is_told_from_the_deadline(box: Container, what: str) -> None:
    own = {"kill": (Status.SIGNALED, signal.SIGKILL, None), "exit": (Status.EXITED, None, 7)}[what]
    for round_ in range(ROUNDS):
        for ms in INSTANTS[round_ % 4 :: 4]:
            result = run(box, "at", "20", what, timeout=ms / 1000)
            if result.status is Status.TIMEOUT:
                assert result.wall_time >= ms / 1000, result
            else:
                assert (result.status, result.signal, result.exit_code) == own, result
                assert result.wall_time >= 0.02, result
        check_after(box)


@memory_group
def test_its_own_kill_is_told_from_memory_that_has_run_out_before(box: Container) -> None:
    for _ in range(ROUNDS):
        assert run(box, "mmap", memory="8M", **LONG).status is Status.MEMORY_LIMIT
        result = run(box, "signal", "9", memory="8M", **LONG)
        assert (result.status, result.signal, result.oom_killed) == (Status.SIGNALED, signal.SIGKILL, False), result
