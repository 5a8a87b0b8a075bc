"""Limits by control groups: enforced, accounted for each run on its own, and removed."""

from __future__ import annotations

import errno
import os
import time

import pytest

import sandbox
from sandbox import Container, Status, Tmpfs, UsageError
from tests.support import needs, patience, repeats

pytestmark = [needs("root", "cgroup:memory", "cgroup:pids"), pytest.mark.usefixtures("no_leftovers")]
SH = "/bin/sh"
PYTHON = "/usr/bin/python3"


@needs("program:python3")
@pytest.mark.skipif(not os.path.exists(PYTHON), reason="no /usr/bin/python3")
def test_memory_limit_of_a_run() -> None:
    with Container() as c:
        hog = c.exec([PYTHON, "-c", "x = bytearray(200 << 20)"], memory="40M", timeout=patience(30))
        assert (hog.status, hog.oom_killed) == (Status.MEMORY_LIMIT, True)
        assert hog.memory_peak is not None
        assert hog.memory_peak <= 41 << 20
        again = c.exec(["true"], memory="40M")
        assert again.ok
        assert again.memory_peak is not None
        assert again.memory_peak < 10 << 20  # nothing inherited from the run before


@pytest.mark.skipif(not os.path.exists(PYTHON), reason="no /usr/bin/python3")
def test_memory_limit_of_the_container_holds_for_all_its_runs() -> None:
    with Container(memory="64M") as c:
        assert c.exec([PYTHON, "-c", "x = bytearray(200 << 20)"], timeout=patience(30)).status is Status.MEMORY_LIMIT
        assert c.exec(["true"]).ok


@pytest.mark.skipif(not os.path.exists(PYTHON), reason="no /usr/bin/python3")
def test_a_child_that_is_killed_for_memory_counts() -> None:
    script = f"{PYTHON} -c 'x = bytearray(200 << 20)'; exit 0"
    assert sandbox.run([SH, "-c", script], memory="40M", timeout=patience(30)).status is Status.MEMORY_LIMIT


def test_memory_charged_to_a_tmpfs_counts() -> None:
    with Container(mounts=[Tmpfs("/work", size="200M")]) as c:
        result = c.exec([SH, "-c", "head -c 150000000 /dev/zero > /work/f"], memory="40M", timeout=patience(30))
    assert result.status is Status.MEMORY_LIMIT


def test_fork_bomb_is_stopped() -> None:
    script = "f() { f | f & }; f; while :; do :; done"
    with Container() as c:
        result = c.exec([SH, "-c", script], pids=32, timeout=1.5)
        assert result.status in {Status.TIMEOUT, Status.EXITED, Status.SIGNALED}
        assert result.pids_peak is None or result.pids_peak <= 32
        assert c.exec(["echo", "alive"], pids=32).stdout == b"alive\n"


def test_cpu_time_of_all_children_counts() -> None:
    script = "(while :; do :; done) & (while :; do :; done) & wait"
    result = sandbox.run([SH, "-c", script], cpu_time=0.4, timeout=patience(30))
    assert result.status is Status.CPU_LIMIT
    assert 0.35 < result.cpu_time < 1.5


def test_quota_slows_down() -> None:
    result = sandbox.run([SH, "-c", "while :; do :; done"], cpus=0.25, timeout=1.0, accounting=True)
    assert result.status is Status.TIMEOUT
    assert result.cpu_time < 0.6


def test_pause_freezes_and_resume_goes_on() -> None:
    with Container(memory="64M", pids=32) as c:
        p = c.popen([SH, "-c", "while :; do echo x; sleep 0.01; done"], stdout=sandbox.PIPE)
        assert p.stdout is not None
        assert p.stdout.read(2) == b"x\n"
        c.pause()
        used = c.stats().cpu_time
        os.set_blocking(p.stdout.fileno(), False)
        while p.stdout.read(65536):
            pass
        assert c.stats().cpu_time == used
        c.resume()
        os.set_blocking(p.stdout.fileno(), True)
        assert p.stdout.read(2)
        p.kill()
        p.wait(10)
        p.close()


def test_pause_catches_who_waits_for_a_vfork() -> None:
    """The shell has vfork(2): on cgroup v1 its child was stopped before execve, and the shell, which waits for that, never."""
    with Container(memory="64M", pids=32) as c:
        for _ in range(repeats(30)):
            with c.popen([SH, "-c", "while :; do echo x; sleep 0.01; done"], stdout=sandbox.PIPE) as p:
                assert p.stdout is not None
                assert p.stdout.read(2) == b"x\n"
                c.pause()
                c.resume()
                p.kill()


def test_stats_tell_of_all_programs() -> None:
    with Container(memory="64M", pids=32) as c:
        c.exec([SH, "-c", "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done"])
        stats = c.stats()
    assert stats.cpu_time is not None
    assert stats.cpu_time > 0


def test_python_sees_no_difference_between_the_runs() -> None:
    with Container(memory="64M") as c:
        peaks = [c.exec(["true"]).memory_peak or 0 for _ in range(5)]
    assert max(peaks) < 3 << 20


def test_a_limit_that_cannot_be_had_is_an_error() -> None:
    with pytest.raises(sandbox.UsageError, match="cpuset: 4000: no such CPU"), Container(cpuset="0,4000"):
        pass


def test_without_strict_only_the_limit_that_cannot_be_had_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sandbox.cg.present.weighing_disks", lambda *_: frozenset())
    with pytest.raises(sandbox.UnsupportedError, match="io"), Container(io_weight=50, memory="64M"):
        pass
    with Container(io_weight=50, memory="64M", strict=False) as c:
        assert c.exec([SH, "-c", "x=$(head -c 200000000 /dev/zero | tr '\\0' x)"]).status is sandbox.Status.MEMORY_LIMIT
        assert [line.partition(":")[0] for line in c.degraded if not line.startswith("landlock: ")] == ["io_weight"]
    with Container(io_weight=50, strict=False) as c:
        assert c.exec(["true"]).ok


def test_limits_are_checked_before_anything_is_touched() -> None:
    for wrong in ({"memory": "-1"}, {"memory": "12Q"}, {"memory": 0}, {"pids": 0}, {"cpus": 0}, {"cpus": -1.0}, {"swap": "1M"}, {"cpu_weight": 0}):
        with pytest.raises(sandbox.UsageError):
            Container(**wrong)


def test_control_files_are_typed_attributes() -> None:
    with Container(memory="64M", pids=32) as c:
        assert c.cgroup.pids.max == 32
        assert 64 << 20 in {getattr(c.cgroup.memory, name, None) for name in ("limit_in_bytes", "max")}


def test_cpu_time_without_a_control_group_is_refused_or_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise sandbox.UnsupportedError("no groups here", feature="cgroup", remedy="ask for one")

    for module in ("_start", "_started"):
        monkeypatch.setattr(f"sandbox.{module}.make_group", refuse)
    with Container() as c, pytest.raises(sandbox.UnsupportedError, match="no groups here; ask for one"):
        c.exec(["true"], cpu_time=1.0)
    with Container(strict=False) as c:
        result = c.exec(["sh", "-c", "while :; do :; done"], cpu_time=0.1, timeout=patience(20))
        assert result.status is Status.CPU_LIMIT
        assert [line for line in c.degraded if "no groups here" in line]


def test_a_paused_container_is_closed_at_once() -> None:
    c = Container(memory="100M").create()
    p = c.popen(["sleep", "100"])
    c.pause()
    with pytest.raises(UsageError, match="paused"):
        c.exec(["true"])
    began = time.monotonic()
    c.close()
    assert time.monotonic() - began < patience(10)
    p.close()


def test_text_that_cannot_be_decoded_costs_neither_time_nor_the_container() -> None:
    with Container() as c:
        began = time.monotonic()
        with pytest.raises(UnicodeDecodeError):
            c.exec(["printf", r"\377"], text=True)
        assert time.monotonic() - began < patience(10)
        assert c.exec(["sleep", "5"], timeout=1e-10).status is Status.TIMEOUT


def test_memory_that_is_used_up_by_files_costs_programs_but_not_the_container() -> None:
    for _ in range(3):
        with Container(memory="32M", mounts=[Tmpfs("/t", size="64M")]) as c:
            assert c.exec(["dd", "if=/dev/zero", "of=/t/f", "bs=64k"]).status is Status.MEMORY_LIMIT
            for _ in range(20):
                try:
                    c.exec(["sh", "-c", "echo x > /t/h"])
                except sandbox.SetupError as error:
                    # As the kernel came upon it: copying the words, reading the first page of the program, counting its user's processes.
                    assert error.errno in {errno.ENOMEM, errno.E2BIG, errno.ENOEXEC, errno.EAGAIN}
                    assert error.errno != errno.EAGAIN or "memory" in str(error)
            assert c.is_running


def test_a_program_that_cannot_be_executed_for_a_lease_holds_nobody_up_for_long() -> None:
    holder = "import fcntl, os, signal, time; signal.signal(signal.SIGIO, signal.SIG_IGN); fd = os.open('/tmp/prog', os.O_RDONLY);"
    holder += "fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK); print('held', flush=True); time.sleep(60)"
    with Container() as c:
        c.exec(["cp", "/bin/true", "/tmp/prog"]).check()
        with c.popen(["python3", "-c", holder], stdout=sandbox.PIPE) as p, c.popen(["sleep", "60"], timeout=0.5) as other:
            assert p.stdout is not None
            assert p.stdout.readline() == b"held\n"
            began = time.monotonic()
            with pytest.raises(sandbox.SetupError, match="ETIMEDOUT"):
                c.exec(["/tmp/prog"])
            assert other.wait(patience(20)).status is Status.TIMEOUT
            assert time.monotonic() - began < patience(20)  # and not the 60 s of the lease
            p.kill()


@needs("cgroup:hugetlb")
def test_a_limit_that_is_v2s_on_a_hybrid_host_is_set_like_any_other() -> None:
    with Container(hugetlb={"2MB": "4M"}, memory="64M") as c:
        result = c.exec(["cat", "/proc/self/cgroup"])
        assert result.ok, result
        assert c.cgroup is not None
