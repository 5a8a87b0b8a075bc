"""`sandbox.aio`: the same face with await, under asyncio's own loop and uvloop's."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_type_hints

import pytest

import sandbox
from sandbox import DEVNULL, PIPE, STDOUT, ClosedError, SetupError, Status, UnsupportedError, UsageError, _session, aio
from sandbox.aio import _options
from tests.live.loops import MANY, Run, heartbeat, open_fds
from tests.support import needs, patience

pytestmark = [needs("userns"), pytest.mark.unprivileged, pytest.mark.usefixtures("libuv_has_its_pipe")]


# ---- The face


def test_aio_has_what_the_blocking_face_has() -> None:
    names = {name for name in dir(sandbox.Container) if not name.startswith("_")}
    assert names - set(dir(aio.Container)) == set()
    names = {name for name in vars(sandbox.Process) if not name.startswith("_")}
    assert names - set(dir(aio.Process)) == {"fileno", "IS_WAITING"}  # the loop waits by itself


@pytest.mark.parametrize(
    ("options", "function", "own"),
    [
        (_options.ContainerOptions, sandbox.Container.__init__, {"self", "image"}),
        (_options.ExecOptions, sandbox.Container.exec, {"self", "argv"}),
        (_options.PopenOptions, sandbox.Container.popen, {"self", "argv"}),
    ],
)
def test_options_are_those_of_the_blocking_face(options: type, function: Callable[..., Any], own: set[str]) -> None:
    assert set(get_type_hints(options)) == set(inspect.signature(function).parameters) - own - {"unknown"}
    assert set(get_type_hints(_options.RunOptions)) >= set(get_type_hints(_options.ExecOptions)) | set(get_type_hints(_options.ContainerOptions))


@pytest.mark.parametrize("name", ["write_bytes", "read_bytes", "make_dirs", "copy_in", "copy_out", "kill", "listdir", "stat", "exists", "remove", "monitor"])
def test_methods_take_the_same_arguments(name: str) -> None:
    ours, theirs = (inspect.signature(getattr(kind, name)).parameters for kind in (aio.Container, sandbox.Container))
    assert [(p.name, p.kind, p.default) for p in ours.values()] == [(p.name, p.kind, p.default) for p in theirs.values()]


@pytest.mark.usefixtures("no_leftovers")
def test_a_program_runs_and_its_result_is_the_same(aio_run: Run) -> None:
    async def main() -> None:
        async with aio.Container() as c:
            running = [c.is_running]
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
        assert [*running, c.is_running] == [True, False]
        await c.close()
        with pytest.raises(ClosedError):
            await c.exec(["true"])
        with pytest.raises(ClosedError):
            await c.create()

    aio_run(main())


def test_wrong_calls_are_refused_as_ever(aio_run: Run) -> None:
    async def main() -> None:
        with pytest.raises(UsageError):
            aio.Container(memory="nonsense")
        with pytest.raises(UsageError, match="unknown argument 'nonsense'"):
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

    aio_run(main())


@pytest.mark.usefixtures("no_leftovers")
def test_run_makes_a_container_for_one_program(aio_run: Run) -> None:
    async def main() -> None:
        assert (await aio.run(["echo", "one"], timeout=10)).stdout == b"one\n"
        with pytest.raises(UsageError, match="unknown argument"):
            await aio.run(["true"], nonsense=1)  # type: ignore[call-arg]
        async with aio.Container() as c:
            results = await asyncio.gather(*(aio.run(["readlink", "/proc/self/ns/net"], net=c) for _ in range(3)), c.exec(["readlink", "/proc/self/ns/net"]))
            if os.geteuid() == 0:
                assert len({r.stdout for r in results}) == 1

    if os.geteuid() == 0:
        aio_run(main())


@needs("cgroup:memory")
@pytest.mark.usefixtures("no_leftovers")
def test_limits_and_accounting_hold_here_too(aio_run: Run) -> None:
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
            assert [line for line in c.degraded if not line.startswith("landlock: ABI")] == []  # as old kernels have it
            assert c.spec.limits.pids == 64
            await c.pause()  # and what is frozen can be closed

    aio_run(main())


# ---- Many at once


@pytest.mark.usefixtures("no_leftovers")
def test_a_thousand_programs_at_once_keep_nobody_waiting(aio_run: Run) -> None:
    async def main() -> list[float]:
        async with contextlib.AsyncExitStack() as stack:
            boxes = [await stack.enter_async_context(aio.Container()) for _ in range(4)]
            for box in boxes:  # which open what stays
                await box.exec(["true"])
            before = open_fds()
            async with heartbeat() as turns:
                results = await asyncio.gather(*(boxes[i % 4].exec(["echo", str(i)]) for i in range(MANY)))
            assert [int(r.stdout) for r in results] == list(range(MANY))
            # One idle channel for each program that ran beside others; the next ones use them.
            channels = len(open_fds() - before)
            assert channels <= MANY
            return turns

    turns = aio_run(main())
    assert max(turns) < patience(0.1), f"the loop was busy for {max(turns) * 1e3:.0f} ms of CPU time in one turn"


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
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=patience(60), check=False)
    assert done.stdout == "done\n", done.stderr


@pytest.mark.usefixtures("no_leftovers")
def test_a_full_container_lets_programs_wait_and_another_one_does_not(aio_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_session, "CHANNELS", 6)

    async def main() -> None:
        async with aio.Container() as c, aio.Container() as other:
            long = asyncio.create_task(c.exec(["sleep", "30"]))
            many = asyncio.gather(*(c.exec(["sh", "-c", "sleep 0.02; echo $0", str(i)]) for i in range(30)))
            assert (await other.exec(["true"])).ok
            assert [int(r.stdout) for r in await many] == list(range(30))
            long.cancel()
            held = [await c.popen(["sleep", "9"]) for _ in range(6)]
            with pytest.raises(SetupError, match=r"at most 6 programs|as many programs"):
                await c.popen(["true"])
            with pytest.raises(SetupError, match="as many programs"):
                await c.exec(["true"])
            for process in held:
                await process.close()
            assert (await c.exec(["true"])).ok

    aio_run(main())


def test_a_full_container_refuses_threads_one_more_program_and_lives_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_session, "CHANNELS", 2)
    with sandbox.Container() as c:
        with c.popen(["cat"], stdin=PIPE) as first, c.popen(["cat"], stdin=PIPE) as second:
            with pytest.raises(SetupError, match="at most 2 programs"):
                c.exec(["true"])
            assert first.poll() is second.poll() is None
        assert c.exec(["true"]).ok


# ---- Processes


@pytest.mark.usefixtures("no_leftovers")
def test_a_program_is_talked_to_both_ways(aio_run: Run) -> None:
    async def main() -> None:
        async with aio.Container() as c:
            async with c.popen(["cat"], stdin=PIPE, stdout=PIPE) as p:
                assert p.stdin is not None
                assert p.stdout is not None
                await p.stdin.write(b"one\ntwo")
                assert await p.stdout.readline() == b"one\n"
                assert await p.stdout.read(2) == b"tw"
                data = bytes(range(256)) * 4096
                writing = asyncio.create_task(p.stdin.write(data))  # 1 MiB: more than the pipes hold
                assert await p.stdout.read(1 + len(data)) == b"o" + data
                assert await writing == len(data)
                assert p.poll() is None
                await p.stdin.close()
                assert await p.stdout.read() == b""
                assert (await p.wait()).ok
                assert p.returncode == 0
            async with c.popen(["printf", "a\\nb\\nc"], stdout=PIPE) as p:
                assert p.stdout is not None
                assert [line async for line in p.stdout] == [b"a\n", b"b\n", b"c"]
            async with c.popen(["head", "-c", "300000", "/dev/zero"], stdout=PIPE) as p:
                assert p.stdout is not None
                parts = [part async for part in p.stdout.chunks()]
                assert sum(map(len, parts)) == 300_000
            async with c.popen(["printf", "\\303\\251\\r\\nx"], stdout=PIPE, text=True) as p:
                assert p.stdout is not None
                assert await p.stdout.readline() == "é\n"
                assert await p.stdout.read() == "x"

    aio_run(main())


@pytest.mark.usefixtures("no_leftovers")
def test_communicate_goes_on_after_a_timeout(aio_run: Run) -> None:
    async def main() -> None:
        async with aio.Container() as c:
            async with c.popen(["sh", "-c", "cat; sleep 0.2; echo end"], stdin=PIPE, stdout=PIPE, stderr=PIPE) as p:
                with pytest.raises(TimeoutError):
                    await p.communicate(b"x" * 200_000, timeout=0.05)
                assert await p.communicate() == (b"x" * 200_000 + b"end\n", b"")
                with pytest.raises(UsageError):
                    await p.communicate(b"more")
            p = await c.popen(["yes"], stdout=PIPE, output_limit=1000)
            out, _ = await p.communicate()
            assert len(out) == 1000
            assert p.result is not None
            assert p.result.status is Status.OUTPUT_LIMIT
            await p.close()

    aio_run(main())


@pytest.mark.usefixtures("no_leftovers")
def test_a_wait_that_ends_early_lets_the_program_run_on_and_the_block_ends_it(aio_run: Run) -> None:
    async def main() -> None:
        async with aio.Container() as c:
            p = await c.popen(["sleep", "60"])
            with pytest.raises(TimeoutError):
                await p.wait(0.02)
            waiting = [asyncio.create_task(p.wait()) for _ in range(3)]
            await asyncio.sleep(0.01)
            waiting[0].cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting[0]
            assert p.poll() is None
            p.terminate()
            assert [r.signal for r in await asyncio.gather(*waiting[1:])] == [signal.SIGTERM] * 2
            with contextlib.suppress(ZeroDivisionError):
                async with c.popen(["sleep", "60"]) as p:
                    raise ZeroDivisionError
            assert p.result is not None
            assert p.result.status is Status.KILLED
            await p.close()
            async with c.popen(["sh", "-c", "stty size; read x; echo got $x"], tty=True) as p:
                assert p.stdin is not None
                assert p.stdout is not None
                assert await p.stdout.readline() == b"24 80\r\n"
                p.resize(30, 90)
                await p.stdin.write(b"word\n")
                assert b"got word" in await p.stdout.read()

    aio_run(main())


@pytest.mark.usefixtures("no_leftovers")
def test_a_stream_that_is_closed_says_so_to_who_waits_for_it(aio_run: Run) -> None:
    async def main() -> None:
        async with aio.Container() as c, c.popen(["cat"], stdin=PIPE, stdout=PIPE) as p:
            assert p.stdin is not None
            assert p.stdout is not None
            reading = asyncio.create_task(p.stdout.read(1))
            await asyncio.sleep(0)
            await p.stdout.close()
            assert p.stdout.closed
            with pytest.raises(UsageError, match="closed"):
                await reading
            with pytest.raises(UsageError, match="bytes expected"):
                await p.stdin.write("text")
            p.kill()
            await p.wait()
            with pytest.raises(BrokenPipeError):
                await p.stdin.write(b"x")

    aio_run(main())


# ---- Files


@pytest.mark.usefixtures("no_leftovers")
def test_files_go_in_and_out_while_the_loop_goes_on(aio_run: Run, tmp_path: Path) -> None:
    (tmp_path / "tree" / "deep").mkdir(parents=True)
    (tmp_path / "tree" / "deep" / "file").write_bytes(b"in" * 3_000_000)

    async def main() -> None:
        async with aio.Container() as c:
            async with heartbeat() as turns:
                await asyncio.gather(*(c.write_bytes(f"/tmp/{i}", b"%d" % i) for i in range(50)))
                assert [await c.read_bytes(f"/tmp/{i}") for i in range(50)] == [b"%d" % i for i in range(50)]
                await c.make_dirs("/tmp/a/b")
                await c.copy_in(tmp_path / "tree", "/tmp/a/b")
                await c.copy_out("/tmp/a/b/deep", tmp_path / "out")
            assert len(turns) > 10
            assert (tmp_path / "out" / "file").read_bytes() == b"in" * 3_000_000
            with pytest.raises(SetupError):
                await c.read_bytes("/tmp/missing")
            with pytest.raises(UsageError):
                await c.read_bytes("/tmp/a", max_size="1M")
            copying = asyncio.create_task(c.copy_in(tmp_path / "tree", "/tmp/again"))
            await asyncio.sleep(0)
            copying.cancel()
            with pytest.raises(asyncio.CancelledError):
                await copying
            assert (await c.exec(["true"])).ok

    aio_run(main())


def test_a_user_by_name_is_looked_up_inside(aio_run: Run) -> None:
    async def main() -> None:
        async with aio.Container() as c:
            name = (await c.exec(["id", "-un"])).stdout.decode().strip()
            assert (await c.exec(["id", "-un"], user=name, text=True)).stdout.strip() == name
            with pytest.raises(UsageError, match="not in the container's"):
                await c.exec(["true"], user="nobody-such")

    aio_run(main())


def test_without_greenlet_files_are_refused_and_programs_run(aio_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "greenlet", None)

    async def main() -> None:
        async with aio.Container() as c:
            assert (await c.exec(["true"])).ok
            with pytest.raises(UnsupportedError, match="sandbox\\[aio\\]"):
                await c.read_bytes("/etc/passwd")

    aio_run(main())


# ---- Monitors


@pytest.mark.usefixtures("no_leftovers")
@needs("cgroup:memory", "cgroup:pids")
def test_a_monitor_samples_in_the_loop(aio_run: Run) -> None:
    async def main() -> None:
        threads = threading.active_count()
        async with aio.Container(memory="64M", pids=8) as c, c.monitor(0.01) as monitor, c.popen(["sleep", "9"]) as program:
            times = []
            async for row in monitor:
                times.append(row.time)
                if len(times) > 3 and row.pids == 1:
                    break
            assert threading.active_count() <= threads
            assert times == sorted(set(times))
            program.kill()  # whose end this waits for
        assert monitor.rows[-1].time >= times[-1]
        with pytest.raises(UsageError, match="started before"):
            await monitor.start()

    aio_run(main())


@pytest.mark.usefixtures("no_leftovers")
@needs("cgroup:memory", "cgroup:pids")
def test_a_monitor_ends_with_its_container(aio_run: Run) -> None:
    async def main() -> None:
        c = await aio.Container(memory="64M", pids=8).create()
        monitor = await c.monitor(0.01).start()
        await c.close()
        assert len([row async for row in monitor]) >= 1  # the iteration ends
        await monitor.stop()

    aio_run(main())


# ---- Both outputs at once


def test_both_outputs_come_as_they_come(aio_run: Run) -> None:
    async def main() -> None:
        script = "echo out 1; echo err 1 >&2; printf 'no newline'"
        async with aio.Container() as c:
            async with c.popen(["sh", "-c", script], stdout=PIPE, stderr=PIPE) as p:
                assert sorted([pair async for pair in p.lines()]) == [("stderr", b"err 1\n"), ("stdout", b"no newline"), ("stdout", b"out 1\n")]
            async with c.popen(["sh", "-c", script], stdout=PIPE, stderr=PIPE, text=True) as p:
                found = {"stdout": "", "stderr": ""}
                async for name, part in p.chunks(5):
                    assert len(part) <= 5
                    found[name] += part
            assert found == {"stdout": "out 1\nno newline", "stderr": "err 1\n"}
            async with c.popen(["sh", "-c", "echo 1; exec sleep 9"], stdout=PIPE, stderr=PIPE) as p:
                async for pair in p.lines():  # who stops early leaves nothing that reads
                    assert pair == ("stdout", b"1\n")
                    break
                p.kill()

    aio_run(main())
