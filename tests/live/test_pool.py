"""The pool: uses are given out fairly, to many threads, and leave nothing; what they leave one another is in test_pool_traces.py."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Executor
from pathlib import Path
from typing import Any

import pytest

import sandbox
from sandbox import PIPE, Bind, BrokenError, ClosedError, Container, Lease, Pool, SetupError, Status, UsageError, Volume
from sandbox import _box as box_module
from tests.leak.killed import run_and_kill
from tests.live.smuggler import LIMITS, PATIENCE_S, TMP, make_root
from tests.support import needs, repeats

pytestmark = [needs("userns", "overlay", "program:gcc"), pytest.mark.unprivileged]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_root(tmp_path_factory.mktemp("pool") / "root")


# ---- Uses ----


@pytest.fixture
def pool(root: Path) -> Iterator[Pool]:
    with Pool(root, size=2, **LIMITS) as pool:
        yield pool


def test_many_threads_use_a_few_containers(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(box_module, "LITTLE", 64 << 20)  # what the kernel has not yet freed is no reason to replace one
    seen: list[bytes] = []

    def work(number: int) -> None:
        for turn in range(10):
            word = b"%d.%d" % (number, turn)
            seen.append(word if pool.exec(["cat"], input=word).stdout == word else b"wrong")

    with Pool(size=3, read_only=True, **LIMITS) as pool:
        threads = [threading.Thread(target=work, args=(number,)) for number in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE_S)
        stats = pool.stats()
    assert sorted(seen) == sorted(b"%d.%d" % (number, turn) for number in range(12) for turn in range(10))
    assert stats.leased == 0
    assert stats.made < 60, "the containers were used again"


def test_two_who_want_several_do_not_wait_for_one_another(root: Path) -> None:
    done: list[bool] = []
    turns = repeats(30)

    def work() -> None:
        for _ in range(turns):
            with pool.acquire(2, timeout=PATIENCE_S) as (first, second):
                done.append(first.exec(["/smuggle", "leave", "numbers"]).ok)
                done.append(second.exec(["/smuggle", "leave", "numbers"]).ok)

    with Pool(root, size=3, **LIMITS) as pool:
        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE_S)
    assert done == [True] * (3 * turns * 2)


def await_idle(pool: Pool) -> None:
    """Both of its containers are there, and wait."""
    until = time.monotonic() + PATIENCE_S
    while len(pool._idle) < 2 and time.monotonic() < until:
        time.sleep(0.01)
    assert len(pool._idle) == 2


def test_who_comes_next_has_what_was_used_last(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(box_module, "LITTLE", 64 << 20)
    await_idle(pool)
    pool.exec(["/smuggle", "leave", "numbers"])
    last = pool._idle[-1]
    for _ in range(3):
        pool.exec(["/smuggle", "leave", "numbers"])
        assert pool._idle[-1] is last


def test_who_wants_all_is_not_overtaken(pool: Pool) -> None:
    over = threading.Event()

    def work() -> None:
        while not over.is_set():
            pool.exec(["/smuggle", "leave", "numbers"])

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(5):
            with pool.acquire(2, timeout=PATIENCE_S) as leases:
                assert len(leases) == 2
    finally:
        over.set()
        for thread in threads:
            thread.join(PATIENCE_S)


def test_acquire_gives_all_or_none_in_time(pool: Pool) -> None:
    with pool.acquire():
        before = time.monotonic()
        with pytest.raises(TimeoutError, match=r"acquire\(2\)"):
            pool.acquire(2, timeout=0.05)
        assert time.monotonic() - before < PATIENCE_S
        with pool.acquire(1, timeout=PATIENCE_S):  # nothing is held by who gave up
            assert pool.stats().leased == 2
    with pytest.raises(UsageError, match="size=3"):
        pool.acquire(3)
    assert pool.stats().leased == 0


def test_a_lease_ends_once_and_for_all(pool: Pool) -> None:
    leases = pool.acquire(2)
    first = leases[0]
    assert [first.exec(["/smuggle", "leave", "numbers"]).ok, leases[1:][0].exec(["/smuggle", "leave", "numbers"]).ok] == [True, True]
    leases.release()
    leases.release()
    assert pool.stats().leased == 0
    for use in (lambda: first.exec(["/smuggle"]), lambda: first.container):
        with pytest.raises(ClosedError, match="lease"):
            use()


def test_a_lease_that_ends_while_a_program_runs_takes_the_container_with_it() -> None:
    outcome: list[BaseException] = []
    reading, writing = os.pipe()

    def work(box: Lease) -> None:
        try:
            box.exec(["sh", "-c", "echo; sleep 1000"], stdout=writing)
        except BaseException as error:
            outcome.append(error)

    with Pool(size=1, read_only=True, **LIMITS) as pool:
        leases = pool.acquire()
        thread = threading.Thread(target=work, args=(leases[0],))
        thread.start()
        assert os.read(reading, 1) == b"\n"
        leases.release()
        thread.join(PATIENCE_S)
        assert pool.exec(["true"]).ok
        assert pool.stats().replaced >= 1
    os.close(reading)
    os.close(writing)
    assert isinstance(outcome[0], ClosedError)


def test_what_a_program_leaves_is_there_during_the_lease(pool: Pool) -> None:
    with pool.lease() as box:
        assert box.exec(["/smuggle", "leave", "tmp"]).ok
        assert b" left" in box.exec(["/smuggle", "look"]).stdout
    with pool.lease() as box:
        assert b" left" not in box.exec(["/smuggle", "look"]).stdout


def test_the_container_itself_can_do_all_it_can_and_ends_with_the_lease() -> None:
    """Init is under a filter that reports to init: it must never wait for itself."""
    with Pool(size=1, mounts=[TMP], **LIMITS) as pool, pool.lease() as box:
        c = box.container
        c.write_bytes("/tmp/a", b"text")
        c.make_dirs("/tmp/b/c")
        assert c.read_bytes("/tmp/a") == b"text"
        with pytest.raises(SetupError) as caught:
            c.read_bytes("/tmp/missing")
        assert caught.value.errno == errno.ENOENT
        with c.popen(["cat"], stdin=PIPE, stdout=PIPE) as one, c.popen(["cat"], stdin=PIPE, stdout=PIPE) as two:  # each has its mark
            assert (one.communicate(b"1")[0], two.communicate(b"2")[0]) == (b"1", b"2")
        with c.popen(["sh", "-c", "stty size"], tty=True, size=(12, 34)) as p:
            assert p.terminal is not None
            with open(p.terminal, "rb", closefd=False) as screen:
                assert screen.readline() == b"12 34\r\n"  # which may come in pieces
        assert c.exec(["sh", "-c", "pwd; sleep 100 & echo x >/tmp/b/c/d"], cwd="/tmp").stdout == b"/tmp\n"
        killed = c.popen(["sleep", "100"])
        c.kill()
        assert killed.wait(PATIENCE_S).status is Status.KILLED
        where = c.pid
        assert pool.stats().replaced == 0
    with Pool(size=1, mounts=[TMP], **LIMITS) as pool:
        with pool.lease() as box:
            where = box.container.pid
        with pool.lease() as box:
            assert box.container.pid != where


def test_hostile_calls_are_told_from_those_that_leave_something() -> None:
    with Pool(size=1, mounts=[TMP], security="strict", **LIMITS) as pool:
        for _ in range(3):
            assert pool.exec(["sh", "-c", "echo x >/tmp/x; cat /tmp/x"]).stdout == b"x\n"
            assert pool.exec(["mount", "-t", "tmpfs", "x", "/tmp"]).status is Status.SYSCALL_DENIED
            assert pool.exec(["true"]).ok


def test_verdicts_are_those_of_a_container(root: Path) -> None:
    with Pool(size=1, read_only=True, **LIMITS) as pool:
        assert pool.exec(["sh", "-c", "exit 3"]).exit_code == 3
        assert pool.exec(["sleep", "100"], timeout=0.05).status is Status.TIMEOUT
        assert pool.exec(["cat", "/dev/zero"], output_limit=1000).status is Status.OUTPUT_LIMIT
        assert pool.exec(["sh", "-c", "kill -SEGV $$"]).signal == signal.SIGSEGV
        with pytest.raises(sandbox.CommandError):
            pool.exec(["false"], check=True)
        with pytest.raises(sandbox.ProgramNotFoundError):
            pool.exec(["no-such-program"])
        with pytest.raises(UsageError):
            pool.exec(["true"], timeout=-1)
        assert pool.stats().leased == 0


@needs("cgroup:memory")
def test_time_that_one_run_takes_from_a_quota_is_not_missed_by_the_next(root: Path) -> None:
    quota = 0.5
    with Pool(root, size=1, cpus=quota, **LIMITS) as pool:
        pool.exec(["/smuggle", "leave", "numbers"])
        for _ in range(3):
            before = pool.stats()
            pool.exec(["/smuggle", "leave", "cpu_time"])  # 50 ms, all that there is in 100
            assert pool.exec(["/smuggle", "leave", "numbers"], timeout=PATIENCE_S).ok
            assert pool.stats().replaced > before.replaced


# ---- Ends ----


def test_broken_containers_are_replaced(pool: Pool) -> None:
    assert pool.exec(["/smuggle", "leave", "numbers"]).ok
    await_idle(pool)
    for box in [*pool._idle]:
        session = box._session()
        session.kill()
        select.select([session.pidfd], [], [], PATIENCE_S)
    for _ in range(4):
        assert pool.exec(["/smuggle", "leave", "numbers"]).ok


def test_a_container_that_breaks_during_a_run_is_replaced() -> None:
    with Pool(size=1, read_only=True, **LIMITS) as pool:
        pool.start()
        with pytest.raises(BrokenError):
            pool.exec(["sleep", "100"], stdout=_Breaking(pool))
        assert pool.exec(["true"]).ok


class _Breaking:
    """A file whose descriptor is asked for when a container is leased, and which kills that container."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def fileno(self) -> int:
        session = next(iter(self._pool._leased))._session()
        threading.Timer(0.05, session.kill).start()
        return 2


def test_a_forked_child_is_refused(pool: Pool) -> None:
    pid = os.fork()
    if pid == 0:
        code = 1
        with contextlib.suppress(BaseException):
            uses: tuple[Callable[[], object], ...] = (lambda: pool.exec(["/smuggle"]), pool.acquire, lambda: pool.submit(["/smuggle"]), pool.start)
            for use in uses:
                try:
                    use()
                except ClosedError:
                    continue
                os._exit(2)
            pool.close()
            code = 0
        os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0
    assert pool.exec(["/smuggle", "leave", "numbers"]).ok


@pytest.mark.usefixtures("no_leftovers")
def test_close_ends_what_runs_and_leaves_nothing(root: Path) -> None:
    pool = Pool(size=2, read_only=True, **LIMITS).start()
    outcome: list[BaseException] = []
    threads = len(threading.enumerate())

    def work() -> None:
        try:
            pool.exec(["sleep", "1000"])
        except BaseException as error:
            outcome.append(error)

    workers = [threading.Thread(target=work) for _ in range(3)]  # the third one waits for its turn
    for worker in workers:
        worker.start()
    future = pool.submit(["sleep", "1000"])
    deadline = time.monotonic() + PATIENCE_S
    while pool.stats().leased < 2:
        assert time.monotonic() < deadline
    pool.close()
    pool.close()
    for worker in workers:
        worker.join(PATIENCE_S)
    assert [type(error) for error in outcome] == [ClosedError] * 3
    with pytest.raises((ClosedError, CancelledError)):
        future.result(PATIENCE_S)
    with pytest.raises(ClosedError, match="pool"):
        pool.exec(["true"])
    with pytest.raises(ClosedError, match="pool"):
        pool.submit(["true"])
    assert len(threading.enumerate()) <= threads


EMBEDDING = """
import sandbox, sys, threading
pool = sandbox.Pool(size=2, read_only=True, **%r).start()
for _ in range(5):
    pool.exec(["true"])
leases = pool.acquire(1)
pool.submit(["sleep", "1000"])
print("ready", flush=True)
leases[0].exec(["sleep", "1000"])
"""


def test_kill_of_the_embedding_process_leaves_nothing() -> None:
    assert not run_and_kill(EMBEDDING % (LIMITS,))


def test_a_process_that_ends_without_closing_its_pool_leaves_nothing() -> None:
    code = f"import sandbox; p = sandbox.Pool(size=2, read_only=True, **{LIMITS!r}).start(); print(p.exec(['echo', 'x']).stdout)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "b'x\\n'\n", "")


# ---- As an executor ----


def test_map_gives_results_in_order_and_does_not_run_ahead(root: Path) -> None:
    taken = itertools.count()
    with Pool(size=2, read_only=True, **LIMITS) as pool:
        results = pool.map(({"argv": ["cat"], "input": b"%d" % next(taken)} for _ in itertools.repeat(None)), backlog=3, timeout=PATIENCE_S)
        assert [next(results).stdout for _ in range(10)] == [b"%d" % number for number in range(10)]
        assert next(taken) <= 13
        results.close()
        assert [result.stdout for result in pool.map([["echo", "a"], ["echo", "b"]])] == [b"a\n", b"b\n"]
        with pytest.raises(UsageError, match="argv"):
            list(pool.map([{"input": b""}]))


def test_submit_gives_futures_of_results(root: Path) -> None:
    with Pool(size=2, read_only=True, **LIMITS) as pool:
        assert isinstance(pool, Executor)
        futures = [pool.submit(["echo", str(number)]) for number in range(20)]
        assert [future.result(PATIENCE_S).stdout for future in futures] == [b"%d\n" % number for number in range(20)]
        last = pool.submit(["sh", "-c", "sleep 0.2; echo last"])
    assert last.result(0).stdout == b"last\n", "the end of the block waits for what was submitted"


@pytest.mark.usefixtures("no_leftovers")
def test_shutdown_ends_the_pool_with_or_without_waiting() -> None:
    pool = Pool(size=1, read_only=True, **LIMITS)
    running = pool.submit(["sleep", "0.2"])
    waiting = [pool.submit(["true"]) for _ in range(3)]
    pool.shutdown(wait=False, cancel_futures=True)
    with pytest.raises(ClosedError):
        pool.submit(["true"])
    assert running.cancelled() or running.result(PATIENCE_S).ok
    assert all(future.cancelled() for future in waiting)
    pool.shutdown()
    with pytest.raises(ClosedError):
        pool.exec(["true"])


@pytest.mark.usefixtures("no_leftovers")
def test_where_no_thread_is_to_be_had_a_pool_works_without_and_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    pool = Pool(size=1, mounts=[TMP], **LIMITS).start()
    assert [pool.exec(["sh", "-c", "echo x >>/tmp/x; cat /tmp/x"]).stdout for _ in range(3)] == [b"x\n"] * 3
    with pytest.raises(SetupError, match="thread"):
        pool.submit(["true"])
    pool.shutdown(wait=False)
    with pytest.raises(ClosedError):
        pool.exec(["true"])


# ---- What a pool is made of ----


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"net": "host"}, "net"),
        ({"share": ["ipc"]}, "share"),
        ({"mounts": [Bind("/usr", "/usr2")]}, "read_only=True"),
        ({"mounts": [Volume("v", "/v")]}, "read_only=True"),
        ({"size": 0}, "size"),
        ({"max_idle": -1}, "max_idle"),
        ({"reuse": 1}, "reuse"),
        ({"no_such": 1}, "no_such"),
    ],
)
def test_what_runs_would_share_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises((UsageError, TypeError), match=words):
        Pool(**options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"reuse": False}, "reuse"),
        ({"security": sandbox.Security(seccomp=False)}, "seccomp"),
        ({"security": sandbox.Security(nesting=True)}, "nesting"),
        ({"security": sandbox.Security(cap_add=["CHOWN"])}, "capabilities"),
        ({"security": sandbox.Security(no_new_privs=False)}, "no_new_privs"),
    ],
)
def test_without_a_proof_each_use_has_a_new_container(options: dict[str, Any], words: str) -> None:
    with Pool(size=1, **options, **LIMITS) as pool:
        assert words in pool.why_replaced
        assert [pool.exec(["sh", "-c", "echo $$"]).stdout for _ in range(3)] == [b"2\n"] * 3
        assert pool.stats().kept == 0
        assert pool.exec(["cat", "/proc/meminfo"]).ok


def test_a_container_can_stand_for_its_kind() -> None:
    with Pool(Container(hostname="mine", read_only=True, **LIMITS), size=1) as pool:
        assert pool.exec(["hostname"]).stdout == b"mine\n"
    with pytest.raises(UsageError, match="hostname"):
        Pool(Container(), hostname="other")


def test_no_more_wait_than_were_asked_for(root: Path) -> None:
    with Pool(root, size=2, max_idle=0, **LIMITS) as pool:
        for _ in range(3):
            with pool.acquire(2) as leases:
                assert all(isinstance(lease, Lease) for lease in leases)
        stats = pool.stats()
    assert (stats.idle, stats.kept) == (0, 0)
    assert stats.made >= 6
