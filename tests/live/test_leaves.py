"""The control groups of runs: each is fresh, whoever made it, and none is left."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sandbox import DEVNULL, Container, Limits, Process, Status, UsageError
from sandbox._launch import codec, wire
from sandbox._leaves import AT_ONCE, FEW, MAX_KINDS, Leaves, _messages
from tests.support import needs, patience, repeats

pytestmark = [needs("userns"), needs("cgroup:memory", "cgroup:pids"), pytest.mark.usefixtures("no_leftovers")]
ROOM = ["/bin/sh", "-c", "head -c 12000000 /dev/zero | tail -c 12000000 | wc -c"]


def leaves_of(container: Container) -> Leaves:
    assert container._started is not None
    return container._started._leaves


def hurried(container: Container, **limits: object) -> None:
    """Have the launcher hold groups ready, as after programs that are too short to make them meanwhile, and run until it has."""
    for _ in range(2):  # the first one's group was there, and the second one asks for more
        assert container.exec(["/bin/true"], stdout=DEVNULL, stderr=DEVNULL, **limits).ok  # type: ignore[arg-type]
    for kind in leaves_of(container)._kinds.values():
        if kind.taken > 1 and not kind.is_alone:
            kind.ahead = max(FEW, kind.ahead)
    for _ in range(3):
        assert container.exec(["/bin/true"], stdout=DEVNULL, stderr=DEVNULL, **limits).ok  # type: ignore[arg-type]
    assert leaves_of(container).has_asked


def settles_at(container: Container, pids: int) -> bool:
    """Whether so many are counted at last: a killed process can do nothing more, but counts until it is reaped, on a slow machine a while later."""
    deadline = time.monotonic() + patience(10.0)
    while container.stats().pids != pids and time.monotonic() < deadline:
        time.sleep(0.005)
    return container.stats().pids == pids


def groups_below(container: Container) -> list[str]:
    bundle = container._started.group()._live()  # type: ignore[union-attr]
    return [f"{place.path}/{name}" for place in bundle.places.values() for name in os.listdir(place.path) if name.startswith("exec-")]


def test_what_is_made_ahead_is_fresh_and_has_the_limits_of_its_run() -> None:
    with Container(memory="64M", pids=32) as c:
        hurried(c, memory="32M", pids=16)
        for _ in range(3 * FEW):
            assert c.exec(["/bin/true"], memory="32M", pids=16).memory_peak < 4 << 20  # type: ignore[operator]
        for _ in range(FEW):
            big = c.exec(ROOM, memory="32M", pids=16)
            assert big.ok
            assert 8 << 20 < big.memory_peak < 33 << 20  # type: ignore[operator]
            killed = c.exec(["/bin/sh", "-c", "head -c 60000000 /dev/zero | tail -c 60000000 | wc -c"], memory="32M", pids=16)
            assert killed.status is Status.MEMORY_LIMIT
            after = c.exec(["/bin/true"], memory="32M", pids=16)
            assert (after.oom_killed, after.pids_peak) in {(False, 1), (False, None)}
            assert after.memory_peak < 4 << 20  # type: ignore[operator]
            assert after.cpu_time < patience(0.05)
            bomb = c.exec(["/bin/sh", "-c", "i=0; while [ $i -lt 40 ]; do sleep 5 & i=$((i+1)); done"], memory="32M", pids=16, timeout=10)
            assert bomb.pids_peak is None or bomb.pids_peak <= 16


class TestWhatTheLauncherOpens:
    """The descriptors of groups that are made ahead come with them; where they do not, they are opened when they are needed."""

    def test_a_run_opens_nothing_of_its_group(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with Container(memory="64M", pids=32) as c:
            hurried(c)
            for _ in range(2 * AT_ONCE):
                time.sleep(patience(0.05))  # the launcher is at it when nothing else is asked
                assert c.exec(["/bin/true"], stdout=DEVNULL, stderr=DEVNULL).ok
            monkeypatch.setattr("sandbox.cg.leaf.os.open", lambda *_args, **_more: pytest.fail("opened by the run"))
            for _ in range(3):
                result = c.exec(["/bin/true"], stdout=DEVNULL, stderr=DEVNULL)
                assert result.ok
                assert result.memory_peak
                assert result.cpu_time > 0
            monkeypatch.undo()

    def test_descriptors_do_not_pile_up_and_go_with_the_container(self) -> None:
        def count() -> int:
            return len(os.listdir("/proc/self/fd"))

        for _ in range(2):  # what a process opens once for all its containers, and for the next one of a kind
            with Container(memory="64M", pids=32) as c:
                hurried(c)
        before = count()
        with Container(memory="64M", pids=32) as c:
            hurried(c)
            counts: list[int] = []
            for turn in range(120):
                limits = {"memory": f"{32 + turn // 20}M"} if turn % 4 == 0 else {}  # kinds come and go
                assert c.exec(["/bin/true"], stdout=DEVNULL, stderr=DEVNULL, **limits).ok  # type: ignore[arg-type]
                time.sleep(0.004)
                counts.append(count())
            assert max(counts) <= before + 7 * AT_ONCE * (MAX_KINDS + 2)
        assert count() <= before + 2  # of a container that is being made ahead; a group has seven

    def test_few_descriptors_are_left_alone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("sandbox._leaves.os.sysconf", lambda _name: 20)
        with Container(memory="64M", pids=32) as c:
            hurried(c)
            assert all(kind.at_once == 1 for kind in leaves_of(c)._kinds.values())
            for _ in range(2 * FEW):
                assert c.exec(["/bin/true"], stdout=DEVNULL, stderr=DEVNULL).ok
                time.sleep(0.004)

    def test_without_room_for_them_runs_go_on(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("sandbox._launch.delivery.Deliveries.take", lambda *_args: None)
        with Container(memory="64M", pids=32) as c:
            hurried(c)
            for _ in range(3 * FEW):
                result = c.exec(["/bin/true"], stdout=DEVNULL, stderr=DEVNULL)
                assert (result.ok, result.oom_killed) == (True, False)
                assert result.memory_peak
                time.sleep(0.004)


@needs("cgroup:cpu")
def test_what_was_made_before_the_container_had_a_controller_is_not_used_after() -> None:
    with Container(memory="64M", pids=32) as c:
        hurried(c)
        for _ in range(2 * AT_ONCE):
            time.sleep(patience(0.02))
            assert c.exec(["/bin/true"], stdout=DEVNULL, stderr=DEVNULL).ok
        for turn in range(3 * AT_ONCE):  # v1: a hierarchy that was not needed before
            assert c.exec(["/bin/true"], cpus=0.5, accounting="full").ok
            assert c.exec(["/bin/true"], stdout=DEVNULL, stderr=DEVNULL).memory_peak
            time.sleep(patience(0.01) * (turn % 2))


def test_groups_do_not_pile_up() -> None:
    with Container(memory="64M", pids=32) as c:
        hurried(c)
        for _ in range(300):
            c.exec(["/bin/true"], stdout=DEVNULL, stderr=DEVNULL)
        kinds = leaves_of(c)._kinds.values()
        bound = sum(kind.ahead + kind.at_once + 1 for kind in kinds) * 2  # made, and not yet removed
        deadline = time.monotonic() + patience(30.0)  # the launcher removes them when nothing else is asked of it
        while (count := len({os.path.basename(path) for path in groups_below(c)})) > bound:
            assert time.monotonic() < deadline, (count, bound)
            time.sleep(0.005)
    with Container(memory="64M", pids=32) as c:
        for _ in range(20):
            with c.popen(["/bin/true"]) as process:
                process.wait()
        deadline = time.monotonic() + patience(30.0)
        while len({os.path.basename(path) for path in groups_below(c)}) > 4:
            assert time.monotonic() < deadline
            time.sleep(0.005)


def test_many_kinds_of_limits_by_turns() -> None:
    with Container(memory="256M", pids=64) as c:
        for turn in range(4 * MAX_KINDS):
            size = 16 + turn % (MAX_KINDS + 2)
            result = c.exec(["/bin/sh", "-c", "cat /sys/fs/cgroup/*/memory* 2>/dev/null; true"], memory=f"{size}M", pids=8)
            assert result.ok
        assert len(leaves_of(c)._kinds) <= MAX_KINDS


def test_threads_share_what_is_made_ahead() -> None:
    failed: list[object] = []
    with Container(memory="256M", pids=128) as c:
        hurried(c, memory="32M")

        def work() -> None:
            for _ in range(repeats(40)):
                result = c.exec(["/bin/true"], memory="32M")
                if not result.ok or result.memory_peak is None or result.memory_peak > 8 << 20:
                    failed.append(result)

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failed


HURRY_AND_DIE = """
import os, signal
from sandbox import Container, DEVNULL
with Container(memory="64M", pids=32) as c:
    for _ in range({runs}):
        c.exec(["/bin/true"], stdout=DEVNULL, stderr=DEVNULL, memory="32M")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("runs", [3, 9, 10, 11, 40])
def test_killed_while_the_launcher_makes_groups(runs: int) -> None:
    # What is left would be found by the fixture.
    done = subprocess.run([sys.executable, "-c", HURRY_AND_DIE.format(runs=runs)], check=False, cwd=Path(__file__).parents[2])
    assert done.returncode == -9


def test_messages_are_no_larger_than_a_datagram_and_tear_no_leaf_apart() -> None:
    leaf = bytes(12_050)
    for count in (1, 4, 5, 33):
        found = list(_messages([leaf] * count))
        assert sum(found, []) == [leaf] * count  # noqa: RUF017
        assert all(len(codec.encode_groups(1, parts)) <= wire.INLINE for parts in found)
        assert len(found) == -(-count // 4)


def test_a_stopped_launcher_holds_up_no_program() -> None:
    with Container(memory="64M", pids=32) as c:
        hurried(c)
        launcher = int(Path(f"/proc/{c.pid}/status").read_text().split("\nPPid:")[1].split()[0])
        os.kill(launcher, signal.SIGSTOP)
        try:
            for _ in range(200):
                assert c.exec(["/bin/true"], stdout=DEVNULL, stderr=DEVNULL).ok
        finally:
            os.kill(launcher, signal.SIGCONT)


def test_no_empty_batch_is_asked_for_when_threads_ask_at_once() -> None:
    with Container(memory="256M", pids=128) as c:
        hurried(c)
        started = c._started
        assert started is not None
        leaves, group, session = started._leaves, started.group(), started.session
        kind = leaves._kinds[None]
        for _ in range(3):
            leaves._ask(kind, group, session)
        assert all(batch.names for batch in kind.batches)
        leaves._drop(kind)
        leaves._ask(kind, group, session)
        assert (kind.promised, kind.ahead) == (0, 0)
        assert c.exec(["/bin/true"]).ok


class TestRunsThatNobodyAskedAbout:
    """Those without limits, in a container without: they come into no group, until one is made for another run."""

    def test_they_stay_where_init_is(self) -> None:
        with Container() as c, c.popen(["/bin/sleep", "60"]) as first:
            assert cgroups_of(children_of(c)) == {cgroups_of_init(c)}
            assert c.exec(["/bin/true"]).memory_peak is None
            for ask in (c.pause, c.stats, c.monitor().start):
                with pytest.raises(UsageError, match="no control group"):
                    ask()
            first.kill()

    @needs("cgroup:memory")
    def test_from_the_first_that_needs_a_group_on_each_has_one(self) -> None:
        with Container() as c, c.popen(["/bin/sleep", "60"]) as early:
            assert c.exec(["/bin/true"], accounting=True).memory_peak is not None
            assert c.exec(["/bin/true"], memory="32M").memory_peak is not None
            sleepers = [c.popen(["/bin/sleep", "60"]) for _ in range(2)]
            assert len(cgroups_of(children_of(c))) == 3
            assert c.stats().pids == 2
            assert c.exec(["/bin/sh", "-c", "sleep 60 & exit 3"]).exit_code == 3
            assert settles_at(c, 2)
            with pytest.raises(UsageError, match="before the container had a control group"):
                c.pause()  # not of the early one
            for sleeper in (*sleepers, early):
                sleeper.kill()
                assert sleeper.wait().returncode == -9
            assert settles_at(c, 0)

    @needs("cgroup:memory", "cgroup:pids")
    @pytest.mark.parametrize("first", ["pause", "stats", "update", "monitor"])
    def test_who_asks_before_the_first_program_has_all_of_them_in_a_group(self, first: str) -> None:
        with Container() as c:
            monitor = c.monitor()
            asks: dict[str, Callable[[], object]] = {
                "pause": c.pause, "stats": c.stats, "update": lambda: c.update(Limits(pids=50)), "monitor": monitor.start,
            }  # fmt: skip
            asks[first]()
            monitor.stop()
            if first == "pause":
                with pytest.raises(UsageError, match="paused"):
                    c.exec(["/bin/true"])
            c.resume()
            with c.popen(["/bin/sh", "-c", "sleep 60 & while :; do :; done"]) as busy:
                assert settles_at(c, 2)
                c.pause()
                used = c.stats().cpu_time
                time.sleep(0.1)
                assert c.stats().cpu_time == used
                c.resume()
                busy.kill()

    @needs("cgroup:memory")
    def test_a_program_that_is_started_while_the_group_is_asked_for_is_in_it_or_pause_is_refused(self) -> None:
        for _ in range(20):
            with Container() as c:
                programs: list[Process] = []
                thread = threading.Thread(target=lambda c=c, programs=programs: programs.append(c.popen(["/bin/sleep", "60"])))
                thread.start()
                refused = False
                try:
                    c.stats()
                except UsageError:
                    refused = True
                thread.join()
                if not refused and not c._live().can_pause:
                    with pytest.raises(UsageError, match="before the container had"):
                        c.pause()
                elif not refused:
                    assert c.stats().pids == 1
                programs[0].close()

    @needs("cgroup:memory")
    def test_whose_deadline_passes_ends_with_all_that_it_started_and_nothing_else_does(self) -> None:
        with Container() as c, c.popen(["/bin/sleep", "60"]) as other:
            result = c.exec(["/bin/sh", "-c", "setsid sleep 60 & (setsid sleep 60 &) ; sleep 60"], timeout=0.3)
            assert result.status is Status.TIMEOUT
            assert len(children_of(c)) == 1
            assert other.poll() is None
            other.kill()

    @needs("cgroup:memory")
    def test_where_the_container_has_a_limit_each_has_its_own(self) -> None:
        with Container(memory="64M") as c:
            assert c.exec(["/bin/true"]).memory_peak is not None


def children_of(container: Container) -> list[int]:
    """The processes whose parent is init, but those that only wait to be reaped."""
    found: list[int] = []
    for child in map(int, Path(f"/proc/{container.pid}/task/{container.pid}/children").read_text().split()):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has been
            if Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX":
                found.append(child)
    return found


def cgroups_of_init(container: Container) -> str:
    return Path(f"/proc/{container.pid}/cgroup").read_text()


def cgroups_of(pids: list[int]) -> set[str]:
    return {Path(f"/proc/{pid}/cgroup").read_text() for pid in pids}
