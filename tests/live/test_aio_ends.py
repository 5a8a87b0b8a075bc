"""`sandbox.aio`: what is cancelled, closed or killed before its end."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import pytest

import sandbox
from sandbox import PIPE, BrokenError, ClosedError, Status, aio
from tests.live.loops import Run, open_fds
from tests.support import needs, patience

pytestmark = [needs("userns"), pytest.mark.unprivileged, pytest.mark.usefixtures("libuv_has_its_pipe")]


# ---- Ends before the end


@pytest.mark.usefixtures("no_leftovers")
def test_a_cancelled_task_kills_its_program_and_waits_for_that(aio_run: Run) -> None:
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

    aio_run(main())


@pytest.mark.usefixtures("no_leftovers")
def test_cancelled_at_any_moment_nothing_is_left(aio_run: Run) -> None:
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

    aio_run(main())


@pytest.mark.usefixtures("no_leftovers")
def test_one_failure_in_a_group_ends_the_others(aio_run: Run) -> None:
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

    aio_run(main())


@pytest.mark.usefixtures("no_leftovers")
def test_closing_ends_the_programs_of_other_tasks(aio_run: Run) -> None:
    async def main() -> None:
        c = await aio.Container().create()
        tasks = [asyncio.create_task(c.exec(["sleep", "60"])) for _ in range(5)]
        await c.exec(["true"])
        await asyncio.gather(c.close(), c.close())
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            assert isinstance(result, ClosedError) or (isinstance(result, sandbox.Result) and result.status is Status.KILLED), result

    aio_run(main())


@pytest.mark.usefixtures("no_leftovers")
def test_a_container_that_dies_is_told_to_all_who_wait(aio_run: Run) -> None:
    async def main() -> None:
        async with aio.Container() as c:
            tasks = [asyncio.create_task(c.exec(["sleep", "60"])) for _ in range(3)]
            p = await c.popen(["sleep", "60"])
            os.kill(c.pid, signal.SIGKILL)
            results = await asyncio.gather(*tasks, p.wait(), return_exceptions=True)
            assert all(isinstance(r, BrokenError) for r in results), results
            await p.close()

    aio_run(main())


def test_an_init_that_does_not_answer_is_given_up(aio_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("_runs", "process"):
        monkeypatch.setattr(f"sandbox.{module}.GRACE_S", 0.2)

    async def main() -> None:
        async with aio.Container() as c, aio.Container() as other:
            p = await c.popen(["sleep", "60"], timeout=2.0)  # of which there is some left now
            os.kill(c.pid, signal.SIGSTOP)
            task = asyncio.create_task(c.exec(["true"], timeout=0.1))
            assert (await other.exec(["true"])).ok
            with pytest.raises(BrokenError, match="deadline"):
                await task
            with pytest.raises(BrokenError):
                await p.wait()
            await p.close()

    aio_run(main())


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

    shown = asyncio.run(end()).splitlines()
    assert not [line for line in shown if b"sleep" in line and b"<defunct>" not in line]  # one that init has still to reap is dead
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
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=patience(60), check=False)
    assert done.stdout == "done\n", done.stderr
