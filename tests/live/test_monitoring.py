"""Monitors of real containers: rows that follow a program, moments that do not drift, and an end in every case."""

from __future__ import annotations

import csv
import os
import threading
import time
from typing import Any

import pytest

from sandbox import DEVNULL, PIPE, ClosedError, Container, Monitor, Sample, SetupError, UsageError
from sandbox.cg import detect
from tests.support import known, needs, patience

pytestmark = [needs("userns", "cgroup:memory", "cgroup:pids", "program:python3"), pytest.mark.unprivileged, pytest.mark.usefixtures("no_leftovers")]
MIB = 1 << 20
PYTHON = "python3"  # the host's, which its view shows
# Says when it holds 32 MiB, gives them back when told, and says so.
HOLDER = "import sys; a = bytearray(32 << 20); print(1, flush=True); input(); del a; print(2, flush=True); input()"


def limited(**more: object) -> Container:
    return Container(memory="256M", pids=32, **more)


def wait_for_next(monitor: Monitor) -> Any:
    """Give the first sample that is taken after now; Any, for a host that meets the needs tells what is asked of it."""
    seen = monitor.rows[-1].time
    return next(row for row in monitor if row.time > seen)


def figures(monitor: Monitor) -> list[Any]:
    return list(monitor.rows)


def test_rows_follow_what_a_program_does():
    with limited() as c, c.monitor(0.01) as monitor, c.popen([PYTHON, "-c", HOLDER], stdin=PIPE, stdout=PIPE) as p:
        known(p.stdout).readline()
        wait_for_next(monitor)
        holding = wait_for_next(monitor)
        known(p.stdin).write(b"\n")
        known(p.stdin).flush()
        known(p.stdout).readline()
        wait_for_next(monitor)
        after = wait_for_next(monitor)
        known(p.stdin).close()
        p.wait()
    first, last = figures(monitor)[0], figures(monitor)[-1]
    assert first.pids == last.pids == 0
    assert holding.pids == 1
    assert 32 * MIB < holding.memory < 64 * MIB
    assert holding.memory - after.memory > 30 * MIB
    assert last.memory_peak >= holding.memory
    assert first.cpu_time < holding.cpu_time <= last.cpu_time
    assert last.user_time + last.system_time == pytest.approx(last.cpu_time, abs=2e-6)  # the kernel rounds each of them


def test_figures_until_then_never_fall():
    with limited() as c, c.monitor(0.005) as monitor:
        for _ in range(3):
            c.exec([PYTHON, "-c", "sum(range(10**6))"])
    rows = monitor.rows
    for name in ("time", "cpu_time", "memory_peak"):
        values = [getattr(row, name) for row in rows]
        assert values == sorted(values), name


@needs("cgroup:cpu", "cgroup:cpuacct")
def test_the_last_row_tells_what_all_runs_used():
    with limited(cpus=0.1) as c:
        with c.monitor(60) as monitor:
            used = sum(c.exec([PYTHON, "-c", "sum(range(10**6))"]).cpu_time for _ in range(2))
        first, last = figures(monitor)
        stats = c.stats()
    assert last.cpu_time - first.cpu_time == pytest.approx(used, rel=0.02, abs=0.002)
    assert last.throttled_time == pytest.approx(stats.throttled_time)
    assert last.throttled_time > 0, "10 ms in each 100 ms were not enough"


def test_what_this_host_does_not_tell_is_none():
    with limited() as c, c.monitor(60) as monitor:
        pass
    (row, *_), v2 = monitor.rows, known(detect().find("memory")).version == 2
    assert (row.cpu_pressure is not None) == (v2 and os.path.exists("/proc/pressure/cpu"))
    if not v2:  # its group has no such controllers: nobody asked for limits on the CPU and the disks
        assert (row.throttled_time, row.read_bytes, row.writes) == (None, None, None)
    assert None not in (row.memory, row.anon, row.file, row.cpu_time, row.pids)


def test_moments_do_not_drift():
    with limited() as c, c.monitor(0.05) as monitor:
        monitor._counters = lambda: time.sleep(0.004)  # so much would be added by each
        while len(monitor.rows) < 60:
            wait_for_next(monitor)
    # Each is late by what this host makes it wait, but that does not add up: a third of them are near to a multiple of the interval.
    late = sorted(row.time / 0.05 % 1 for row in monitor.rows[1:-1])
    assert late[len(late) // 3] < 0.2
    assert monitor.rows[-2].time >= 0.05 * (len(monitor.rows) - 2), "none is early"


def test_many_rows_thin_out_and_the_whole_run_stays():
    with limited() as c, c.monitor(0.001, max_rows=16) as monitor:
        while monitor.interval < 0.008:
            wait_for_next(monitor)
        assert len(monitor.rows) <= 16
    rows = monitor.rows
    assert 8 <= len(rows) <= 17
    assert rows[0].time < 0.5
    assert [row.time for row in rows] == sorted(row.time for row in rows)


def test_iteration_waits_and_ends_with_the_monitor():
    seen: list[Sample] = []
    with limited() as c:
        with c.monitor(0.01) as monitor:
            reader = threading.Thread(target=lambda: seen.extend(monitor))
            reader.start()
            wait_for_next(monitor)
        reader.join(10)
        assert not reader.is_alive()
    assert tuple(seen) == monitor.rows == tuple(monitor)


def test_a_monitor_ends_when_its_container_is_closed():
    with limited() as c:
        monitor = c.monitor(30).start()
    begin = time.monotonic()
    assert list(monitor), "it ends, though the next sample is due in half a minute"
    assert time.monotonic() - begin < 10
    monitor.stop()
    monitor.stop()
    assert "sandbox-monitor" not in [thread.name for thread in threading.enumerate()]


def test_a_monitor_ends_when_its_container_dies():
    with limited() as c, c.monitor(30) as monitor:
        os.kill(c.pid, 9)
        assert list(monitor)


def test_wrong_calls_are_refused():
    with limited() as c:
        for interval in (0, -1, 0.0001, float("nan"), "1", True):
            with pytest.raises(UsageError, match="interval"):
                c.monitor(interval)
        with pytest.raises(UsageError, match="max_rows"):
            c.monitor(max_rows=1)
        monitor = c.monitor()
        with pytest.raises(ClosedError, match="not started"):
            next(iter(monitor))
        with monitor, pytest.raises(UsageError, match="started before"):
            monitor.start()
        late = c.monitor()
    with pytest.raises(ClosedError):
        late.start()
    with pytest.raises(ClosedError):
        c.monitor()


def test_a_container_without_a_control_group_cannot_be_monitored():
    with Container() as c:
        c.exec(["true"])  # before it was asked for one
        with pytest.raises(UsageError, match="no control group"):
            c.monitor().start()


def test_without_a_thread_nothing_is_left(monkeypatch):
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with limited() as c, monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(SetupError, match="start a thread"):
            c.monitor().start()


def test_a_monitor_costs_little():
    with limited() as c, c.monitor(0.002) as monitor:
        while len(monitor.rows) < 50:
            wait_for_next(monitor)
    assert 0 < monitor.cost < patience(0.002), "CPU time of a sample"


def test_rows_go_to_csv(tmp_path):
    with limited() as c, c.monitor(0.01) as monitor:
        c.exec(["true"], stdout=DEVNULL)
    monitor.to_csv(tmp_path / "rows.csv")
    with (tmp_path / "rows.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["time"]) for row in rows] == [row.time for row in monitor.rows]
    assert [row["swap"] for row in rows] == ["" if row.swap is None else str(row.swap) for row in monitor.rows]


def test_a_forked_child_leaves_the_monitor_to_its_parent():
    with limited() as c, c.monitor(0.01) as monitor:
        pid = os.fork()
        if pid == 0:
            monitor.stop()
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        wait_for_next(monitor)
