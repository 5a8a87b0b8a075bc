"""`Group` and `Leaf` on the real kernel: what a container and its programs get."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import sandbox
from sandbox.cg import CpuFormat, Group, Host, Leaf, Limits, close_owner, detect
from sandbox.cg import group as group_module
from sandbox.cg import tree as tree_module
from sandbox.cg.group import LEAF_ACCOUNTING
from sandbox.errors import ClosedError, SetupError, UnsupportedError
from tests.support import needs

pytestmark = needs("root", "cgroup:memory", "cgroup:pids")
PYTHON = sys.executable


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    sandbox.shut_down()  # what other tests have had made ahead is in groups, too
    close_owner()
    fds = len(os.listdir("/proc/self/fd"))
    yield
    close_owner()
    assert [path for h in detect().hierarchies for path in Path(h.start).glob(f"sandbox-{os.getpid()}-*")] == []
    assert len(os.listdir("/proc/self/fd")) == fds


def joined(leaf: Leaf) -> Callable[[], None]:
    """What a child does before it runs the program (init does it in C)."""

    def join() -> None:
        for fd in leaf.join_fds:
            os.write(fd, b"0")
        if leaf.into_fd is not None:
            fd = os.open("cgroup.procs", os.O_WRONLY, dir_fd=leaf.into_fd)
            os.write(fd, b"0")
            os.close(fd)

    return join


def run(leaf: Leaf, code: str) -> int:
    return subprocess.run([PYTHON, "-c", code], preexec_fn=joined(leaf), stderr=subprocess.DEVNULL, check=False).returncode


def test_a_leaf_accounts_for_its_own_program_only():
    with Group("c1", Limits(memory="200M", pids=64)) as group:
        first = group.make_leaf("exec-1")
        assert run(first, "x = bytearray(50 << 20)\nfor _ in range(10**6): pass") == 0
        usage = first.usage()
        first.remove()
        second = group.make_leaf("exec-2")
        assert run(second, "pass") == 0
        after = second.usage()
        second.remove()
    assert usage.memory_peak is not None
    assert after.memory_peak is not None
    assert after.memory_peak < 50 << 20 < usage.memory_peak
    assert usage.cpu_time is not None
    assert usage.user_time is not None
    assert usage.system_time is not None
    assert usage.user_time + usage.system_time == pytest.approx(usage.cpu_time, abs=1e-4)
    assert usage.oom_kills == after.oom_kills == 0


def test_a_leaf_s_own_limit_kills_and_counts():
    with Group("c1", Limits(memory="200M")) as group:
        leaf = group.make_leaf("exec-1", Limits(memory="32M"))
        assert run(leaf, "x = bytearray(100 << 20)") == -signal.SIGKILL
        assert leaf.oom_kills  # v2 kills the leaf as a whole, and may count its victim twice
        leaf.remove()


def test_the_container_s_limit_is_counted_where_it_struck():
    with Group("c1", Limits(memory="32M")) as group:
        leaf, other = group.make_leaf("exec-1"), group.make_leaf("exec-2")
        assert run(leaf, "x = bytearray(100 << 20)") == -signal.SIGKILL
        assert leaf.oom_kills
        assert other.oom_kills == 0
        leaf.remove()
        other.remove()


def test_the_cpu_descriptor_tells_the_time_in_its_format():
    with Group("c1") as group:
        leaf = group.make_leaf("exec-1")
        run(leaf, "for _ in range(10**6): pass")
        assert leaf.cpu_fd is not None
        text = os.pread(leaf.cpu_fd, 4096, 0)
        number = int(text) / 1e9 if leaf.cpu_format is CpuFormat.NANOSECONDS else int(text.split()[1]) / 1e6
        assert number == leaf.cpu_usage
        assert number > 0
        leaf.remove()


@needs("cgroup-v1")
def test_a_limit_that_only_the_leaf_has_brings_its_hierarchy():
    with Group("c1", Limits(pids=10)) as group:
        leaf = group.make_leaf("exec-1", Limits(cpus=0.5, cpuset={min(os.sched_getaffinity(0))}))
        assert len(leaf.join_fds) == 5
        assert run(leaf, f"import os, sys; sys.exit(os.sched_getaffinity(0) != {{{min(os.sched_getaffinity(0))}}})") == 0
        leaf.remove()


@needs("cgroup-v1")
def test_what_has_no_leaf_of_its_own_is_joined_in_the_container_s_group():
    with Group("c1", Limits(cpus=0.5, pids=10)) as group:
        leaf = group.make_leaf("exec-1", controllers=frozenset({"pids"}))
        assert (len(leaf.join_fds), leaf.cpu_fd, leaf.memory_peak) == (4, None, None)
        path = Path(group.paths()[0])
        leaf.remove()
        assert path.exists()


def test_what_a_program_leaves_behind_is_killed():
    with Group("c1", Limits(pids=30)) as group:
        leaf = group.make_leaf("exec-1")
        run(leaf, "import os\nfor _ in range(5):\n    if os.fork() == 0:\n        os.setsid()\n        while True: pass")
        assert len(leaf.pids()) == 5
        leaf.kill()
        assert leaf.pids() == set()
        leaf.remove()


def test_a_group_that_is_removed_kills_and_removes_its_leaves():
    group = Group("c1", Limits(pids=30)).create()
    leaf = group.make_leaf("exec-1")
    popen = subprocess.Popen(["sleep", "1000"], preexec_fn=joined(leaf))
    group.remove()
    assert popen.wait() == -signal.SIGKILL
    leaf.remove()
    leaf.remove()
    group.remove()
    with pytest.raises(ClosedError):
        group.make_leaf("exec-2")


def test_pause_stops_the_programs():
    with Group("c1", Limits(pids=30)) as group:
        leaf = group.make_leaf("exec-1")
        with subprocess.Popen(["sh", "-c", "while :; do :; done"], preexec_fn=joined(leaf)) as popen:
            group.freeze()
            used = leaf.cpu_usage
            threading.Event().wait(0.03)
            assert leaf.cpu_usage == used
            group.thaw()
            while leaf.cpu_usage == used:
                os.sched_yield()
            popen.kill()
        leaf.remove()


def test_statistics_and_limits_of_the_container():
    with Group("c1", Limits(memory="64M", pids=30, cpus=1)) as group:
        leaf = group.make_leaf("exec-1")
        run(leaf, "x = bytearray(20 << 20)")
        leaf.remove()
        stats = group.stats()
        assert stats.cpu_time
        assert stats.memory_peak is None or stats.memory_peak > 20 << 20
        assert group.in_force().memory == 64 << 20
        assert group.events().max == 0
        assert group.pids() == set()
        assert group.files.pids.max == 30


def test_a_leaf_whose_limit_is_refused_leaves_nothing():
    with Group("c1", Limits(pids=30)) as group:
        with pytest.raises(Exception, match="cpuset"):
            group.make_leaf("exec-1", Limits(cpuset="4000"))
        group.make_leaf("exec-1").remove()


def test_a_name_that_is_taken_is_refused_and_the_leaf_stays():
    with Group("c1", Limits(pids=30)) as group:
        leaf = group.make_leaf("exec-1")
        with pytest.raises(FileExistsError):
            group.make_leaf("exec-1")
        assert run(leaf, "pass") == 0
        leaf.remove()


def test_paths_cover_all_that_was_made():
    with Group("c1", Limits(memory="64M", pids=30, cpus=1)) as group:
        group.freeze()
        group.thaw()
        made = {str(path) for h in detect().hierarchies for path in Path(h.start).glob(f"sandbox-{os.getpid()}-*/*") if path.is_dir()}
        assert made <= set(group.paths())


def test_many_threads_make_leaves_at_once():
    with Group("c1", Limits(pids=30)) as group:
        errors: list[BaseException] = []

        def work(number: int) -> None:
            try:
                for round_ in range(20):
                    leaf = group.make_leaf(f"exec-{number}-{round_}", Limits(memory=(number + 1) << 20))
                    leaf.usage()
                    leaf.remove()
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []


@pytest.fixture
def v2_only(monkeypatch: pytest.MonkeyPatch) -> Host:
    """Pretend that the v2 hierarchy is all there is; its cgroupfs is the real one."""
    unified = detect().unified
    if unified is None:
        pytest.skip("no v2 hierarchy is mounted")
    host = Host((unified,))
    monkeypatch.setattr(group_module, "detect", lambda: host)
    monkeypatch.setattr(tree_module, "detect", lambda: host)
    return host


BUILT_IN = frozenset({"cpuacct", "freezer", "pressure"})


def test_on_v2_init_and_programs_have_groups_of_their_own(v2_only: Host):
    with Group("c1", controllers=BUILT_IN) as group:
        (container,) = group.paths()
        assert sorted(path.name for path in Path(container).iterdir() if path.is_dir()) == ["init", "payload"]
        assert group.init_fd is not None
        assert os.path.samefile(f"/proc/self/fd/{group.init_fd}", f"{container}/init")
        leaf = group.make_leaf("exec-1")
        assert (leaf.join_fds, leaf.cpu_format) == ([], CpuFormat.CPU_STAT)
        assert os.path.samefile(f"/proc/self/fd/{leaf.into_fd}", f"{container}/payload/exec-1")
        assert run(leaf, "for _ in range(10**6): pass") == 0
        usage = leaf.usage()
        assert usage.cpu_time
        assert usage.user_time is not None
        assert usage.system_time is not None
        assert usage.user_time + usage.system_time == pytest.approx(usage.cpu_time, abs=1e-4)
        leaf.remove()


def test_on_v2_own_gives_what_clone_into_cgroup_asks_for(v2_only: Host):
    with Group("c1", controllers=BUILT_IN) as group:
        group.own(12345)
        leaf = group.make_leaf("exec-1")
        container = Path(group.paths()[0])
        owned = {str(path.relative_to(container)) for path in container.rglob("*") if path.stat().st_uid == 12345}
        assert owned == {"cgroup.procs", "payload/exec-1/cgroup.procs"}
        leaf.remove()


def test_on_v2_a_group_that_somebody_has_removed_is_told_in_words(v2_only: Host):
    with Group("c1", controllers=BUILT_IN) as group:
        container = Path(group.paths()[0])
        for directory in (container / "init", container / "payload", container):
            directory.rmdir()
        with pytest.raises(SetupError, match="to uid 12345: ENOENT"):
            group.own(12345)


def test_on_v2_programs_are_paused_and_killed_init_is_not(v2_only: Host):
    with Group("c1", controllers=BUILT_IN) as group:
        leaf = group.make_leaf("exec-1")
        init = subprocess.Popen(["sleep", "1000"])
        Path(group.paths()[0], "init", "cgroup.procs").write_text(str(init.pid))
        program = subprocess.Popen(["sh", "-c", "while :; do :; done"], preexec_fn=joined(leaf))
        group.freeze()
        assert group.pids() == {program.pid}
        used = leaf.cpu_usage
        threading.Event().wait(0.03)
        assert leaf.cpu_usage == used
        group.thaw()
        group.kill()
        assert program.wait() == -signal.SIGKILL
        assert init.poll() is None
        leaf.remove()
        init.kill()
        init.wait()


def test_on_v2_a_controller_that_was_not_delegated_is_named(v2_only: Host):
    if v2_only.find("memory") is not None:
        pytest.skip("memory lives in v2 here")
    with pytest.raises(UnsupportedError, match="no cgroup controller 'memory'"):
        Group("c1", Limits(memory="64M"), controllers=LEAF_ACCOUNTING).create()
