"""`sandbox.aio`: programs beside the loop, their streams, and files."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

import sandbox
from sandbox import PIPE, BrokenError, SetupError, Status, UnsupportedError, UsageError, aio
from tests.loops import heartbeat
from tests.support import needs

pytestmark = [needs("userns"), pytest.mark.unprivileged, pytest.mark.usefixtures("libuv_has_its_pipe")]
Run = Callable[[Coroutine[Any, Any, Any]], Any]


# ---- Processes


@pytest.mark.usefixtures("no_leftovers")
def test_a_program_is_talked_to_both_ways(run: Run) -> None:
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

    run(main())


@pytest.mark.usefixtures("no_leftovers")
def test_communicate_goes_on_after_a_timeout(run: Run) -> None:
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

    run(main())


@pytest.mark.usefixtures("no_leftovers")
def test_a_wait_that_ends_early_lets_the_program_run_on_and_the_block_ends_it(run: Run) -> None:
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

    run(main())


@pytest.mark.usefixtures("no_leftovers")
def test_a_stream_that_is_closed_says_so_to_who_waits_for_it(run: Run) -> None:
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

    run(main())


# ---- Files


@pytest.mark.usefixtures("no_leftovers")
def test_files_go_in_and_out_while_the_loop_goes_on(run: Run, tmp_path: Path) -> None:
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

    run(main())


def test_a_user_by_name_is_looked_up_inside(run: Run) -> None:
    async def main() -> None:
        async with aio.Container() as c:
            name = (await c.exec(["id", "-un"])).stdout.decode().strip()
            assert (await c.exec(["id", "-un"], user=name, text=True)).stdout.strip() == name
            with pytest.raises(UsageError, match="not in the container's"):
                await c.exec(["true"], user="nobody-such")

    run(main())


def test_without_greenlet_files_are_refused_and_programs_run(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "greenlet", None)

    async def main() -> None:
        async with aio.Container() as c:
            assert (await c.exec(["true"])).ok
            with pytest.raises(UnsupportedError, match="sandbox\\[aio\\]"):
                await c.read_bytes("/etc/passwd")

    run(main())


def test_without_a_loop_a_program_on_the_first_channel_hears_of_its_containers_end_too() -> None:
    with sandbox.Container() as c:
        p = c.popen(["sleep", "60"])
        os.kill(c.pid, signal.SIGKILL)
        with pytest.raises(BrokenError):
            p.wait()
        p.close()
