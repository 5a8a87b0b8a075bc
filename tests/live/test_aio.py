"""`sandbox.aio`: the same face with await, under asyncio's own loop and uvloop's."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import inspect
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any, get_type_hints

import pytest

import sandbox
from sandbox import DEVNULL, PIPE, STDOUT, BrokenError, ClosedError, SetupError, Status, UsageError, _session, aio
from sandbox.aio import _options
from tests.loops import heartbeat
from tests.support import needs

pytestmark = [needs("userns"), pytest.mark.unprivileged, pytest.mark.usefixtures("libuv_has_its_pipe")]
Run = Callable[[Coroutine[Any, Any, Any]], Any]
MANY = 1000


def open_fds() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


# ---- The face


def test_aio_has_what_the_blocking_face_has() -> None:
    names = {name for name in vars(sandbox.Container) if not name.startswith("_")}
    assert names - set(dir(aio.Container)) == set()
    names = {name for name in vars(sandbox.Process) if not name.startswith("_")}
    assert names - set(dir(aio.Process)) == {"fileno"}  # the loop waits by itself


@pytest.mark.parametrize(
    ("options", "function", "own"),
    [
        (_options.ContainerOptions, sandbox.Container.__init__, {"self", "image"}),
        (_options.ExecOptions, sandbox.Container.exec, {"self", "argv"}),
        (_options.PopenOptions, sandbox.Container.popen, {"self", "argv"}),
    ],
)
def test_options_are_those_of_the_blocking_face(options: type, function: Callable[..., Any], own: set[str]) -> None:
    assert set(get_type_hints(options)) == set(inspect.signature(function).parameters) - own
    assert set(get_type_hints(_options.RunOptions)) >= set(get_type_hints(_options.ExecOptions)) | set(get_type_hints(_options.ContainerOptions))


@pytest.mark.parametrize("name", ["write_bytes", "read_bytes", "make_dirs", "copy_in", "copy_out", "kill"])
def test_methods_take_the_same_arguments(name: str) -> None:
    ours, theirs = (inspect.signature(getattr(kind, name)).parameters for kind in (aio.Container, sandbox.Container))
    assert [(p.name, p.kind, p.default) for p in ours.values()] == [(p.name, p.kind, p.default) for p in theirs.values()]


@pytest.mark.usefixtures("no_leftovers")
def test_a_program_runs_and_its_result_is_the_same(run: Run) -> None:
    async def main() -> None:
        c = aio.Container()
        async with c:
            assert c.is_running
            assert "pid=" in repr(c)
            r = await c.exec(["sh", "-c", "cat; echo err >&2; exit 3"], input=b"abc" * 100_000)
            assert (r.status, r.exit_code, r.stdout, r.stderr) == (Status.EXITED, 3, b"abc" * 100_000, b"err\n")
            assert (await c.exec(["echo", "é"], text=True)).stdout == "é\n"
            assert (await c.exec(["sh", "-c", "echo 1; echo 2 >&2"], stderr=STDOUT)).stdout == b"1\n2\n"
            assert (await c.exec(["echo", "gone"], stdout=DEVNULL, stderr=DEVNULL)).stdout is None
            assert (await c.exec(["sleep", "9"], timeout=0.05)).status is Status.TIMEOUT
            assert (await c.exec(["yes"], output_limit=100_000)).status is Status.OUTPUT_LIMIT
            with pytest.raises(sandbox.CommandError):
                await c.exec(["false"], check=True)
        await c.close()
        assert repr(c).endswith(", closed)")
        with pytest.raises(ClosedError):
            await c.exec(["true"])
        with pytest.raises(ClosedError):
            await c.create()

    run(main())


def test_wrong_calls_are_refused_as_ever(run: Run) -> None:
    async def main() -> None:
        with pytest.raises(UsageError):
            aio.Container(memory="nonsense")
        with pytest.raises(TypeError, match="unexpected keyword"):
            await aio.Container().exec(["true"], nonsense=1)  # type: ignore[call-arg]
        with pytest.raises(ClosedError, match="not started"):
            await aio.Container().exec(["true"])
        async with aio.Container() as c:
            for wrong in ({"check": 1}, {"timeout": -1}, {"input": b"", "stdin": PIPE}, {"encoding": "nonsense"}, {"input": "text"}):
                with pytest.raises(UsageError):
                    await c.exec(["true"], **wrong)
            with pytest.raises(sandbox.ProgramNotFoundError):
                await c.exec(["no-such-program"])
            with pytest.raises(sandbox.ProgramNotFoundError):
                await c.popen(["no-such-program"])
            with pytest.raises(UsageError, match="tty"):
                await c.popen(["true"], tty=True, stdin=PIPE)
            assert (await c.exec(["true"])).ok

    run(main())


@pytest.mark.usefixtures("no_leftovers")
def test_run_makes_a_container_for_one_program(run: Run) -> None:
    async def main() -> None:
        assert (await aio.run(["echo", "one"], timeout=10)).stdout == b"one\n"
        with pytest.raises(UsageError, match="unknown argument"):
            await aio.run(["true"], nonsense=1)  # type: ignore[call-arg]
        async with aio.Container() as c:
            results = await asyncio.gather(*(aio.run(["readlink", "/proc/self/ns/net"], net=c) for _ in range(3)), c.exec(["readlink", "/proc/self/ns/net"]))
            if os.geteuid() == 0:
                assert len({r.stdout for r in results}) == 1

    if os.geteuid() == 0:
        run(main())


@needs("cgroup:memory")
@pytest.mark.usefixtures("no_leftovers")
def test_limits_and_accounting_hold_here_too(run: Run) -> None:
    async def main() -> None:
        async with aio.Container(memory="100M", pids=64) as c:
            hog = ["python3", "-c", "x = bytearray(90 << 20)"]
            results = await asyncio.gather(*(c.exec(hog, memory="20M") if i % 2 else c.exec(["true"]) for i in range(8)))
            assert [r.status for r in results] == [Status.EXITED, Status.MEMORY_LIMIT] * 4
            assert all(r.memory_peak for r in results)
            assert (await c.stats()).memory is not None
            await c.pause()
            with pytest.raises(UsageError, match="paused"):
                await c.exec(["true"])
            await c.resume()
            assert c.cgroup is not None
            assert "Unshare" in c.explain()
            assert c.degraded == ()
            assert c.spec.limits.pids == 64
            await c.pause()  # and what is frozen can be closed

    run(main())


# ---- Many at once


@pytest.mark.usefixtures("no_leftovers")
def test_a_thousand_programs_at_once_keep_nobody_waiting(run: Run) -> None:
    async def main() -> list[float]:
        async with contextlib.AsyncExitStack() as stack:
            boxes = [await stack.enter_async_context(aio.Container()) for _ in range(4)]
            before = open_fds()
            async with heartbeat() as turns:
                results = await asyncio.gather(*(boxes[i % 4].exec(["echo", str(i)]) for i in range(MANY)))
            assert [int(r.stdout) for r in results] == list(range(MANY))
            # One idle channel for each program that ran beside others; the next ones use them.
            channels = len(open_fds() - before)
            assert channels <= MANY
            return turns

    turns = run(main())
    assert max(turns) < 0.1, f"the loop was busy for {max(turns) * 1e3:.0f} ms of CPU time in one turn"


def test_where_descriptors_are_short_programs_wait_for_one_another() -> None:
    code = """
import asyncio, resource, sandbox
from sandbox import aio
async def main():
    async with aio.Container() as c:
        await c.exec(["true"])
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        results = await asyncio.gather(*(c.exec(["echo", str(i)]) for i in range(200)))
        assert [int(r.stdout) for r in results] == list(range(200))
        with open("/dev/null"):  # an eighth of them is never taken
            pass
        held = []
        try:
            while True:
                held.append(await c.popen(["sleep", "9"], stdout=sandbox.PIPE))
        except sandbox.SetupError as error:
            assert error.step == "shortage" and "RLIMIT_NOFILE" in str(error), error
        try:
            await c.exec(["true"])  # nobody's end is to be waited for
        except sandbox.SetupError as error:
            assert error.step == "shortage", error
        else:
            raise AssertionError("there was a descriptor left")
        for process in held:
            await process.close()
        assert (await c.exec(["true"])).ok
asyncio.run(main())
print("done")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "done\n", done.stderr


@pytest.mark.usefixtures("no_leftovers")
def test_a_full_container_lets_programs_wait_and_another_one_does_not(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_session, "CHANNELS", 6)

    async def main() -> None:
        async with aio.Container() as c, aio.Container() as other:
            long = asyncio.create_task(c.exec(["sleep", "30"]))
            many = asyncio.gather(*(c.exec(["sh", "-c", "sleep 0.02; echo $0", str(i)]) for i in range(30)))
            assert (await other.exec(["true"])).ok
            assert [int(r.stdout) for r in await many] == list(range(30))
            long.cancel()
            await asyncio.gather(long, return_exceptions=True)
            held = [await c.popen(["sleep", "9"]) for _ in range(6)]
            with pytest.raises(SetupError, match=r"at most 6 programs|as many programs"):
                await c.popen(["true"])
            with pytest.raises(SetupError, match="as many programs"):
                await c.exec(["true"])
            for process in held:
                await process.close()
            assert (await c.exec(["true"])).ok

    run(main())


def test_a_full_container_refuses_threads_one_more_program_and_lives_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_session, "CHANNELS", 2)
    with sandbox.Container() as c:
        with c.popen(["cat"], stdin=PIPE) as first, c.popen(["cat"], stdin=PIPE) as second:
            with pytest.raises(SetupError, match="at most 2 programs"):
                c.exec(["true"])
            assert first.poll() is second.poll() is None
        assert c.exec(["true"]).ok


# ---- Ends before the end


@pytest.mark.usefixtures("no_leftovers")
def test_a_cancelled_task_kills_its_program_and_waits_for_that(run: Run) -> None:
    async def main() -> None:
        async with aio.Container() as c:
            task = asyncio.create_task(c.exec(["sh", "-c", "sleep 60 & echo started >/tmp/started; sleep 60"]))
            while not (await c.exec(["test", "-e", "/tmp/started"])).ok:
                pass
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert b"sleep" not in (await c.exec(["ps", "ax"])).stdout
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await c.exec(["sleep", "60"])
            assert b"sleep" not in (await c.exec(["ps", "ax"])).stdout

    run(main())


@pytest.mark.usefixtures("no_leftovers")
def test_cancelled_at_any_moment_nothing_is_left(run: Run) -> None:
    dice = random.Random(1)

    async def whole() -> None:
        async with aio.Container(read_only=True) as c:
            await c.exec(["sh", "-c", "sleep 0.002"], input=b"x" * 1000)
            async with c.popen(["cat"], stdin=PIPE, stdout=PIPE) as p:
                assert p.stdin is not None
                await p.stdin.write(b"line\n")
            await c.make_dirs("/dev/shm/a")

    async def main() -> None:
        begin = time.monotonic()
        await whole()
        length = time.monotonic() - begin
        async with aio.Container() as c:
            for _ in range(40):
                task = asyncio.create_task(whole())
                program = asyncio.create_task(c.exec(["sleep", "5"]))
                await asyncio.sleep(dice.uniform(0, length))
                task.cancel()
                program.cancel()
                if dice.random() < 0.3:  # and again, while it cleans up
                    await asyncio.sleep(0)
                    task.cancel()
                results = await asyncio.gather(task, program, return_exceptions=True)
                assert all(r is None or isinstance(r, asyncio.CancelledError) for r in results), results
            ps = (await c.exec(["ps", "-A", "-o", "args="])).stdout
            assert b"sleep" not in ps

    run(main())


@pytest.mark.usefixtures("no_leftovers")
def test_one_failure_in_a_group_ends_the_others(run: Run) -> None:
    async def main() -> None:
        async with aio.Container() as c:
            async def several() -> None:
                async with asyncio.TaskGroup() as group:
                    for _ in range(5):
                        group.create_task(c.exec(["sleep", "60"]))
                    group.create_task(c.exec(["false"], check=True))

            with pytest.raises(ExceptionGroup) as caught:
                await several()
            assert caught.group_contains(sandbox.CommandError)
            assert b"sleep" not in (await c.exec(["ps", "ax"])).stdout

    run(main())


@pytest.mark.usefixtures("no_leftovers")
def test_closing_ends_the_programs_of_other_tasks(run: Run) -> None:
    async def main() -> None:
        c = await aio.Container().create()
        tasks = [asyncio.create_task(c.exec(["sleep", "60"])) for _ in range(5)]
        await c.exec(["true"])
        await asyncio.gather(c.close(), c.close())
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            assert isinstance(result, ClosedError) or (isinstance(result, sandbox.Result) and result.status is Status.KILLED), result

    run(main())


@pytest.mark.usefixtures("no_leftovers")
def test_a_container_that_dies_is_told_to_all_who_wait(run: Run) -> None:
    async def main() -> None:
        async with aio.Container() as c:
            tasks = [asyncio.create_task(c.exec(["sleep", "60"])) for _ in range(3)]
            p = await c.popen(["sleep", "60"])
            os.kill(c.pid, signal.SIGKILL)
            results = await asyncio.gather(*tasks, p.wait(), return_exceptions=True)
            assert all(isinstance(r, BrokenError) for r in results), results
            await p.close()

    run(main())


def test_an_init_that_does_not_answer_is_given_up(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("_runs", "process"):
        monkeypatch.setattr(f"sandbox.{module}.GRACE_S", 0.2)

    async def main() -> None:
        async with aio.Container() as c, aio.Container() as other:
            p = await c.popen(["sleep", "60"], timeout=0.1)
            os.kill(c.pid, signal.SIGSTOP)
            task = asyncio.create_task(c.exec(["true"], timeout=0.1))
            assert (await other.exec(["true"])).ok
            with pytest.raises(BrokenError, match="deadline"):
                await task
            with pytest.raises(BrokenError):
                await p.wait()
            await p.close()

    run(main())


@pytest.mark.usefixtures("no_leftovers")
def test_a_loop_that_is_closed_early_leaves_what_another_can_close() -> None:
    before = open_fds()
    loop = asyncio.new_event_loop()
    c = loop.run_until_complete(aio.Container().create())

    async def begin() -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(c.exec(["sleep", "60"]))
        await c.exec(["true"])
        return task

    task = loop.run_until_complete(begin())
    loop.set_exception_handler(lambda *_: None)  # it complains of the pending task
    loop.close()
    del task, loop
    gc.collect()  # the coroutine ends here, and kills its program

    async def end() -> bytes:
        found: bytes = (await c.exec(["ps", "ax"])).stdout if c.is_running else b""
        await c.close()
        return found

    assert b"sleep" not in asyncio.run(end())
    sandbox.shut_down()
    assert open_fds() <= before


@pytest.mark.usefixtures("no_leftovers")
def test_two_loops_in_two_threads_do_not_disturb_each_other() -> None:
    counted: list[int] = []
    shared = asyncio.run(aio.Container().create())

    async def main() -> None:
        async with aio.Container() as c:
            results = await asyncio.gather(*((c if i % 2 else shared).exec(["echo", str(i)]) for i in range(60)))
            counted.append(sum(int(r.stdout) for r in results))

    threads = [threading.Thread(target=lambda: asyncio.run(main())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    asyncio.run(shared.close())
    assert counted == [sum(range(60))] * 2


def test_a_forked_child_cannot_use_its_parents_containers_nor_disturb_them() -> None:
    code = """
import asyncio, gc, os
import sandbox
from sandbox import aio
async def main():
    async with aio.Container() as c:
        task = asyncio.create_task(c.exec(["sh", "-c", "sleep 0.3; echo late"]))
        process = await c.popen(["cat"], stdin=sandbox.PIPE, stdout=sandbox.PIPE)
        await c.exec(["true"])
        pid = os.fork()
        if pid == 0:
            async def child():
                try:
                    await c.exec(["true"])
                except sandbox.ClosedError as error:
                    assert "forked" in str(error), error
                else:
                    os._exit(2)
                await c.close()
                async with aio.Container() as own:
                    assert (await own.exec(["echo", "1"])).stdout == b"1\\n"
            task.get_coro().close()
            asyncio.events._set_running_loop(None)
            asyncio.run(child())
            gc.collect()
            os._exit(0)
        while not os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            await asyncio.sleep(0.01)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert (await task).stdout == b"late\\n"
        assert await process.communicate(b"x") == (b"x", None)
        assert (await c.exec(["true"])).ok
asyncio.run(main())
print("done")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "done\n", done.stderr
