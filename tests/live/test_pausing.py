"""A container is paused while others start programs in it: those are frozen, refused, or not yet there; none of them goes on."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path

import pytest

from sandbox import DEVNULL, Container, Process, SetupError, UsageError, aio
from sandbox._session import CHANNELS
from tests.support import needs

pytestmark = [needs("userns"), pytest.mark.unprivileged, needs("cgroup:memory", "cgroup:pids")]

BUSY = ("/bin/sh", "-c", "while :; do :; done")
ROUNDS = 8


def cpu_times(c: Container) -> dict[str, str]:
    """Of each program's first process, in ticks."""
    children = Path(f"/proc/{c.pid}/task/{c.pid}/children").read_text().split()
    return {child: " ".join(Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[11:13]) for child in children}


def starters(c: Container, programs: list[Process], refused: list[UsageError], *, by_exec: bool) -> list[threading.Thread]:
    def start() -> None:
        try:
            if by_exec:
                c.exec(BUSY, timeout=0.5, stdout=DEVNULL, stderr=DEVNULL)
            else:
                programs.append(c.popen(BUSY))
        except UsageError as error:
            refused.append(error)

    return [threading.Thread(target=start) for _ in range(3)]


@pytest.mark.parametrize("by_exec", [False, True])
@pytest.mark.parametrize("options", [{"memory": "256M"}, {}])
def test_who_starts_programs_meanwhile_is_refused_or_has_them_frozen(options: dict[str, str], by_exec: bool) -> None:
    for turn in range(ROUNDS):
        with Container(**options) as c:
            c.stats()  # without limits: its group is there from now on
            programs, refused = [c.popen(["/bin/sleep", "60"])], list[UsageError]()
            threads = starters(c, programs, refused, by_exec=by_exec)
            for thread in threads:
                thread.start()
            time.sleep(0.0005 * turn)
            c.pause()
            if not by_exec:
                for thread in threads:
                    thread.join(20)  # nobody waits for `resume`
                assert not any(thread.is_alive() for thread in threads)
                assert len(programs) + len(refused) == 4
            first = cpu_times(c)
            time.sleep(0.05)
            assert cpu_times(c) == first
            assert c.read_bytes("/etc/hostname") is not None  # init is at hand
            c.resume()
            for thread in threads:
                thread.join(20)
            assert not any(thread.is_alive() for thread in threads)
            assert all("paused" in str(error) for error in refused)
            assert c.exec(["/bin/true"]).ok  # whoever was refused has left no trace
            for program in programs:
                program.close()


def test_an_event_loops_programs_too() -> None:
    async def use() -> None:
        for _ in range(ROUNDS):
            async with aio.Container(memory="256M") as c:
                tasks = [asyncio.create_task(c.exec(BUSY, timeout=0.3)) for _ in range(3)]
                await asyncio.sleep(0)
                await c.pause()
                with pytest.raises(UsageError, match="paused"):
                    await c.exec(["/bin/true"])
                first = (await c.stats()).cpu_time
                await asyncio.sleep(0.05)
                assert (await c.stats()).cpu_time == first
                await c.resume()
                ends = await asyncio.gather(*tasks, return_exceptions=True)
                assert all(not isinstance(end, BaseException) or isinstance(end, UsageError) for end in ends)
                assert (await c.exec(["/bin/true"])).ok

    asyncio.run(use())


def test_what_is_refused_keeps_its_channel() -> None:
    """The first channel is the container's life: to refuse a program on it must not end that."""
    with Container(memory="256M") as c:
        session = c._live().session
        session.hold()
        for _ in range(3):
            with pytest.raises(UsageError, match="paused"):
                c.exec(["/bin/true"])
            with pytest.raises(UsageError, match="paused"):
                c.popen(["/bin/true"])
        session.release()
        assert c.exec(["/bin/true"]).ok


def test_as_many_programs_as_there_may_be_are_frozen_and_killed_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    with Container(memory="256M") as c, c.popen(["/bin/sleep", "60"]) as sleeper:
        session = c._live().session
        others, session._idle = session._idle, []
        for channel in others:
            channel.close()
        monkeypatch.setattr(session, "_channels", CHANNELS)
        with pytest.raises(SetupError, match="at most 500"):
            c.exec(["/bin/true"])
        c.pause()
        c.resume()
        c.kill()
        assert sleeper.wait(20).returncode == -9
