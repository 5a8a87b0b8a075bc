"""`Cgroup` on the real kernel: below our own start cgroup only, and nothing left of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

import attrs
import pytest

import sandbox
from sandbox.cg import Cgroup, Group, Limits, available, close_owner, detect, owner_paths
from sandbox.cg.tree import is_alive, start_time, sweep
from sandbox.errors import ClosedError, SetupError, UnsupportedError, UsageError
from tests.support import needs, patience

pytestmark = needs("root", "cgroup:memory", "cgroup:pids")
ROOT = Path(__file__).parents[2]
PYTHON = sys.executable


def groups() -> set[str]:
    """Every group below our start cgroups that could be ours."""
    return {str(path) for h in detect().hierarchies for path in Path(h.start).glob(f"sandbox-{os.getpid()}-*/**")}


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    sandbox.shut_down()  # what other tests have had made ahead is in groups, too
    close_owner()
    fds, before = len(os.listdir("/proc/self/fd")), groups()
    yield
    close_owner()
    assert groups() == before == set()
    assert len(os.listdir("/proc/self/fd")) == fds


class Program:
    """A program that says a line when it is ready, and ends when its input does."""

    def __init__(self, code: str = "") -> None:
        self.popen = subprocess.Popen(
            [PYTHON, "-c", f"import sys, os\nprint(flush=True)\n{code}\nsys.stdin.read()"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.pid = self.popen.pid
        self.line()

    def line(self) -> str:
        assert self.popen.stdout is not None
        return self.popen.stdout.readline().strip()

    def say(self, text: str) -> None:
        assert self.popen.stdin is not None
        self.popen.stdin.write(f"{text}\n")
        self.popen.stdin.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.popen.kill()
        self.popen.communicate()


def cgroup_lines(pid: int | str) -> list[str]:
    return Path(f"/proc/{pid}/cgroup").read_text().splitlines()


def test_the_kernel_rounds_memory_to_pages():
    page = os.sysconf("SC_PAGESIZE")
    with Cgroup("job", Limits(memory=100_000)) as cg:
        assert cg.in_force().memory == 100_000 // page * page
        assert page != 4096 or cg.in_force().memory == 98304


def test_an_attached_process_is_seen_in_proc_and_in_the_group():
    with Cgroup("job", Limits(memory="64M", pids=16)) as cg, Program() as program:
        cg.attach(program.pid)
        assert cg.pids() == [program.pid]
        home = detect().require("memory")
        inside = next(line for line in cgroup_lines(program.pid) if home.version == 2 or "memory" in line.split(":")[1].split(","))
        # below the group that we were started in, whatever it is
        below = home.start.removeprefix(home.mount)
        assert inside.split(":", 2)[2].startswith(f"{below}/sandbox-{os.getpid()}-")
        assert inside.endswith("/job")


def test_leaving_kills_what_is_in_the_group():
    with Program() as program:
        with Cgroup("job", Limits(pids=16)) as cg:
            cg.attach(program.pid)
        assert program.popen.wait() == -signal.SIGKILL


@needs("cgroup:cpuset", "cgroup:cpu")
def test_all_limits_are_read_back():
    wanted = Limits(memory="64M", swap="16M", cpus=0.5, cpu_weight=50, cpuset={min(os.sched_getaffinity(0))}, pids=7)
    with Cgroup("job", wanted) as cg:
        # On v2 disks have a weight too, once their controller has been handed down to anybody beside us.
        assert attrs.evolve(cg.in_force(), io_weight=None) == wanted


@needs("cgroup:cpu")
def test_cpu_limits_are_read_back():
    with Cgroup("job", Limits(cpus=0.5, cpu_weight=50)) as cg:
        assert (cg.in_force().cpus, cg.in_force().cpu_weight) == (0.5, 50)


@needs("cgroup-v1", "cgroup:devices")
def test_devices_that_are_not_allowed_cannot_be_used():
    with Cgroup("job", Limits(devices=["c 1:3 rwm"])) as cg, Program("sys.stdin.readline()\nopen('/dev/null').close()\nopen('/dev/zero')") as program:
        cg.attach(program.pid)
        assert program.popen.stderr is None
        program.say("go")
        assert program.popen.wait() == 1
        assert cg.in_force().devices == ("c 1:3 rwm",)


def test_set_changes_what_is_given_and_leaves_the_rest():
    with Cgroup("job", Limits(memory="32M", pids=7)) as cg:
        cg.set(Limits(memory="64M"))  # memory and swap together have to grow first
        assert (cg.in_force().memory, cg.in_force().swap, cg.in_force().pids) == (64 << 20, 0, 7)
        cg.set(Limits(memory="16M", swap="8M"))
        assert (cg.in_force().memory, cg.in_force().swap) == (16 << 20, 8 << 20)
        cg.set(Limits(cpus=0.25))
        assert cg.in_force().cpus == 0.25
        assert cg.limits == Limits(memory="16M", swap="8M", pids=7, cpus=0.25)


def test_a_memory_limit_below_what_is_used_is_an_error_or_kills():
    code = "x = bytearray(48 << 20)\nprint(flush=True)"
    with Cgroup("job", Limits(memory="128M")) as cg, Program(f"sys.stdin.readline()\n{code}") as program:
        cg.attach(program.pid)
        program.say("go")
        program.line()
        try:
            cg.set(Limits(memory="8M"))
        except SetupError as error:  # v1 refuses
            assert "in use" in str(error) or "uses more" in str(error)
            assert cg.in_force().memory == 128 << 20
        else:  # v2 kills
            assert program.popen.wait() == -signal.SIGKILL


def test_a_memory_bomb_is_killed_and_counted():
    with Cgroup("job", Limits(memory="32M")) as cg, Program("sys.stdin.readline()\nx = bytearray(200 << 20)") as program:
        cg.attach(program.pid)
        program.say("go")
        assert program.popen.wait() == -signal.SIGKILL
        events = cg.events()
        assert events.oom_kill  # v2 kills the group as a whole, and may count its victim twice
        assert events.max is None or events.max > 0  # None: it was met, this kernel does not count how often
        stats = cg.stats()
        assert stats.memory_peak is None or (20 << 20) < stats.memory_peak <= 32 << 20


def test_more_processes_than_allowed_are_refused_and_counted():
    code = "sys.stdin.readline()\ntry:\n    for _ in range(10): os.fork() or sys.stdin.read()\nexcept BlockingIOError: print('no', flush=True)"
    with Cgroup("job", Limits(pids=4)) as cg, Program(code) as program:
        cg.attach(program.pid)
        program.say("go")
        assert program.line() == "no"
        assert cg.events().pids_max
        assert cg.stats().pids == len(cg.pids()) <= 4


def test_kill_ends_a_fork_bomb():
    code = "sys.stdin.readline()\nwhile True:\n    try: os.fork()\n    except OSError: pass"
    with Cgroup("job", Limits(pids=50)) as cg, Program(code) as program:
        cg.attach(program.pid)
        program.say("go")
        while len(cg.pids()) < 10:
            os.sched_yield()
        cg.kill()
        assert cg.pids() == []
        assert program.popen.wait() == -signal.SIGKILL
        assert cg.in_force().pids == 50  # it can be used again


def test_a_frozen_process_stands_still_and_can_be_killed():
    code = "sys.stdin.readline()\nn = 0\nwhile True: n += 1"
    with Cgroup("job", Limits(pids=5)) as cg, Program(code) as program:
        cg.attach(program.pid)
        program.say("go")
        cg.freeze()

        def times() -> tuple[float | None, list[str]]:
            return cg.stats().cpu_time, Path(f"/proc/{program.pid}/stat").read_text().rpartition(")")[2].split()[11:13]

        deadline, before = time.monotonic() + patience(10), None
        while (used := times()) != before:  # on v2, what it used last is counted a moment after it stands still
            assert time.monotonic() < deadline, "it goes on"
            before = used
            threading.Event().wait(0.05)  # time has to pass: that is what it is about
        cg.thaw()
        while cg.stats().cpu_time == used[0]:
            os.sched_yield()
        cg.freeze()
        cg.kill()
        assert program.popen.wait() == -signal.SIGKILL


def test_freezing_needs_no_freezer_from_the_start():
    with Cgroup("job", Limits(pids=5), controllers=["pids"]) as cg, Program() as program:
        cg.attach(program.pid)
        cg.freeze()
        cg.thaw()
        program.say("")


def test_cpu_time_and_throttling_are_told():
    code = "sys.stdin.readline()\nimport time\nend = time.process_time() + 0.1\nwhile time.process_time() < end: pass\nprint(flush=True)"
    with Cgroup("job", Limits(cpus=0.05)) as cg, Program(code) as program:
        cg.attach(program.pid)
        program.say("go")
        program.line()
        stats = cg.stats()
        assert stats.cpu_time is not None
        assert 0.05 < stats.cpu_time < 0.5
        assert stats.user_time is not None
        assert stats.system_time is not None
        assert stats.user_time + stats.system_time == pytest.approx(stats.cpu_time, abs=1e-4)
        assert stats.periods
        assert stats.throttled_periods
        assert stats.throttled_time


def test_io_is_told(tmp_path: Path):
    target = tmp_path / "data"
    if not os.path.exists(f"/sys/dev/block/{os.major(tmp_path.stat().st_dev)}:{os.minor(tmp_path.stat().st_dev)}"):
        pytest.skip("the temporary directory is not on a disk")
    code = f"sys.stdin.readline()\nf = os.open({str(target)!r}, os.O_WRONLY | os.O_CREAT)\nos.write(f, b'x' * 65536)\nos.fsync(f)\nprint(flush=True)"
    with Cgroup("job", Limits(io_max={str(tmp_path): {"wbps": "1G"}})) as cg, Program(code) as program:
        cg.attach(program.pid)
        program.say("go")
        program.line()
        assert cg.in_force().io_max == cg.limits.io_max
        io = cg.stats().io
        assert io is not None
        assert all(disk.read_bytes >= 0 for disk in io)


def test_a_group_in_a_group_is_removed_with_it():
    outer = Cgroup("outer", Limits(pids=20), controllers=["pids"])
    with outer:
        inner = Cgroup("inner", Limits(pids=5), parent=outer, controllers=["pids"]).create()
        with Program() as program:
            inner.attach(program.pid)
            assert inner.name == "outer/inner"
            assert outer.pids() == []
            assert outer.pids(recursive=True) == [program.pid]
            stats = outer.stats()
            assert stats.pids == 1
            outer.remove()
            assert program.popen.wait() == -signal.SIGKILL


def test_an_inner_group_brings_the_controllers_that_its_parent_lacks():
    with Cgroup("outer", controllers=["pids"]) as outer, Cgroup("inner", Limits(memory="16M"), parent=outer) as inner:
        assert inner.in_force().memory == 16 << 20
        assert Path(inner.path("memory")).parent.name == "outer"


def test_a_name_that_is_taken_is_refused_and_the_first_group_stays():
    with Cgroup("job", Limits(pids=5)) as cg:
        with pytest.raises(UsageError, match="exists already"):
            Cgroup("job", Limits(pids=6)).create()
        assert cg.in_force().pids == 5


def test_a_limit_that_the_kernel_refuses_leaves_no_group():
    with pytest.raises((SetupError, UnsupportedError), match="hugetlb"):
        Cgroup("job", Limits(memory="16M", hugetlb={"1024": 0})).create()


@needs("cgroup:cpuset")
def test_cpus_that_are_not_there_are_refused_before_anything_is_made(monkeypatch: pytest.MonkeyPatch):
    def touch(*_: object) -> None:
        raise AssertionError("something was touched")

    for name in ("make_directory", "write_bytes"):
        monkeypatch.setattr(f"sandbox.cg.files.{name}", touch)
    for make in (lambda: Cgroup("job", Limits(cpuset="4000")).create(), lambda: Group("c1", Limits(cpuset="0,4000")).create()):
        with pytest.raises(UsageError, match=r"cpuset: 4000: no such CPU here; choose from \d"):
            make()


@needs("cgroup:cpuset")
def test_cpus_that_are_not_there_cannot_be_set_later_either():
    cpu = min(os.sched_getaffinity(0))
    with Cgroup("job", Limits(cpuset=[cpu])) as cg:
        with pytest.raises(UsageError, match="no such CPU"):
            cg.set(Limits(cpuset="4000"))
        assert cg.in_force().cpuset == str(cpu)


def test_use_without_create_raises_closed():
    cg = Cgroup("job")
    for use in (cg.stats, cg.pids, cg.kill, cg.events, lambda: cg.attach(1), lambda: cg.set(Limits(pids=1))):
        with pytest.raises(ClosedError):
            use()
    cg.remove()


def test_removing_twice_is_fine():
    cg = Cgroup("job", Limits(pids=5)).create()
    cg.remove()
    cg.remove()
    with cg:  # and it can be made again
        assert cg.in_force().pids == 5


def test_a_group_does_not_kill_its_caller():
    def work() -> str:
        cg = Cgroup("self", Limits(pids=50)).create()
        cg.attach(0)
        with pytest.raises(UsageError) as caught:
            cg.kill()
        return f"{os.getpid()}|{caught.value}"

    pid, _, said = in_a_child(work).partition("|")
    assert "this process is in it" in said
    for h in detect().hierarchies:
        sweep(h.start)
        assert list(Path(h.start).glob(f"sandbox-{pid}-*")) == []


def test_typed_files():
    with Cgroup("job", Limits(memory="16M", pids=5)) as cg:
        assert cg.files.pids.max == 5
        cg.files.pids.max = None
        assert cg.in_force().pids is None
        name = "limit_in_bytes" if detect().require("memory").version == 1 else "max"
        assert getattr(cg.files.memory, name) == 16 << 20
        assert "memory" in cg.files.names()
        assert cg.read("pids", "pids.max") == "max\n"
        cg.write("pids", "pids.max", "9")
        assert cg.in_force().pids == 9
        with pytest.raises(UsageError):
            cg.read("pids", "../pids.max")


def test_available_tells_for_each_limit_and_changes_nothing():
    before = {h.start: (Path(h.start) / "cgroup.subtree_control").read_text() for h in detect().hierarchies if h.version == 2}
    found = {a.limit: a for a in available()}
    assert found["memory"].is_available
    assert found["pids"].is_available
    for entry in found.values():
        assert entry.is_available or entry.reason
    assert {start: (Path(start) / "cgroup.subtree_control").read_text() for start in before} == before


def in_a_child(work: Callable[[], str]) -> str:
    """Give what *work* says in a forked child."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(write, work().encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as file:
        said = file.read()
    os.waitpid(pid, 0)
    return said


def test_without_the_right_to_write_the_error_names_the_remedy():
    def work() -> str:
        os.setgroups([])
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
        with pytest.raises(UnsupportedError) as caught:
            Cgroup("job", Limits(pids=5)).create()
        return f"{caught.value}|{caught.value.remedy}|{[entry.is_available for entry in available()]}"

    said = in_a_child(work)
    assert "Permission denied" in said
    assert "Delegate=yes" in said
    assert "True" not in said


def test_what_a_killed_process_leaves_is_swept_by_the_next():
    code = "from sandbox.cg import Cgroup, Limits, owner_paths\nCgroup('a', Limits(pids=5)).create()\nprint(*owner_paths(), flush=True)\ninput()"
    with subprocess.Popen([PYTHON, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as popen:
        assert popen.stdout is not None
        paths = [path for path in popen.stdout.readline().split() if os.path.exists(path)]
        assert paths
        for path in paths:
            assert sweep(os.path.dirname(path)) == []  # its owner is alive
            assert os.path.exists(path)
        popen.kill()
    removed = [gone for path in paths for gone in sweep(os.path.dirname(path))]
    assert set(paths) <= set(removed)
    assert not any(os.path.exists(path) for path in paths)


def test_a_process_that_ends_leaves_nothing():
    code = "from sandbox.cg import Cgroup, Limits, owner_paths\nwith Cgroup('a', Limits(pids=5)): pass\nprint(*owner_paths())"
    said = subprocess.run([PYTHON, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout
    assert said.split()
    assert not any(os.path.exists(path) for path in said.split())


def test_a_pid_that_was_given_to_another_is_not_the_owner():
    assert is_alive(os.getpid(), start_time(os.getpid()))
    assert not is_alive(os.getpid(), start_time(os.getpid()) - 1)
    assert not is_alive(1 << 22, 1)


def test_a_forked_child_has_directories_of_its_own():
    ours = owner_paths()
    theirs = in_a_child(lambda: "\n".join(owner_paths())).split("\n")
    assert len(theirs) == len(ours)
    assert not set(theirs) & set(ours)


def test_many_threads_make_groups_at_once():
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for round_ in range(5):
                with Cgroup(f"t{number}-{round_}", Limits(pids=5), controllers=["pids"]) as cg:
                    assert cg.in_force().pids == 5
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
