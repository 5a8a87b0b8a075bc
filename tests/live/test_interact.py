"""`sandbox.interact`: two programs that talk, and the verdict; with pipes between them, and with a transcript."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import sandbox
from sandbox import Chunk, Container, Interaction, Party, ProgramNotFoundError, Status, UsageError, Verdict, aio
from sandbox._interact import CHUNK_COST, judge
from tests.support import import_path, needs, patience

pytestmark = [needs("userns"), pytest.mark.unprivileged]
ROOT = Path(__file__).parents[2]
DIRECT: dict[str, Any] = {}
RELAY: dict[str, Any] = {"transcript": "1M"}
BOTH = pytest.mark.parametrize("how", [DIRECT, RELAY], ids=["pipes", "transcript"])
# Says a word, expects it back.
ECHO_JUDGE = 'echo hello; read answer; test "$answer" = hello'


@pytest.fixture
def boxes() -> Iterator[tuple[Container, Container]]:
    with Container() as interactor, Container() as solution:
        yield interactor, solution


def sh(box: Container, script: str, **options: Any) -> Party:
    return Party(box, ["sh", "-c", script], **options)


def play(boxes: tuple[Container, Container], interactor: str, solution: str, how: dict[str, Any], **options: Any) -> Interaction:
    return sandbox.interact(sh(boxes[0], interactor), sh(boxes[1], solution), **{"timeout": 5.0, **how, **options})


@BOTH
@pytest.mark.usefixtures("no_leftovers")
def test_two_programs_in_two_containers_talk_and_nothing_is_left(how: dict[str, Any]) -> None:
    with Container() as a, Container() as b:
        game = play((a, b), ECHO_JUDGE, "head -n 1", how)
        assert game.verdict is Verdict.ACCEPTED
        assert game.ok
        assert game.interactor.ok
        assert game.solution.ok
        assert game.solution.stdout is None
        assert game.broken_by is None
        assert a.exec(["true"]).ok
        assert b.exec(["true"]).ok


@BOTH
def test_both_may_be_in_one_container(boxes: tuple[Container, Container], how: dict[str, Any]) -> None:
    assert play((boxes[0], boxes[0]), ECHO_JUDGE, "head -n 1", how).ok


@BOTH
@pytest.mark.parametrize(
    ("scripts", "verdict", "first"),
    [
        ((ECHO_JUDGE, "read x; echo wrong; cat >/dev/null"), Verdict.REJECTED, "interactor"),
        (("read x || exit 0; exit 1", "exit 0"), Verdict.ACCEPTED, "solution"),
        (("read x", "exit 3"), Verdict.SOLUTION_FAILED, "solution"),
        (("read x", "kill -SEGV $$"), Verdict.SOLUTION_FAILED, "solution"),
        (("exit 0", "cat >/dev/null; exit 3"), Verdict.SOLUTION_FAILED, "interactor"),
        (("exit 1", "cat >/dev/null; exit 3"), Verdict.REJECTED, "interactor"),
        (("exit 0", "while echo; do :; done"), Verdict.ACCEPTED, "interactor"),
        (("kill -SEGV $$", "cat >/dev/null"), Verdict.INTERACTOR_FAILED, "interactor"),
        (("while echo; do :; done", "exit 0"), Verdict.REJECTED, "solution"),
        (("cat >/dev/null; exit 1", "exec >&-; cat >/dev/null"), Verdict.REJECTED, "solution"),
    ],
)
def test_the_verdict_is_the_interactors_unless_the_solution_failed_first(
    boxes: tuple[Container, Container], how: dict[str, Any], scripts: tuple[str, str], verdict: Verdict, first: str
) -> None:
    game = play(boxes, *scripts, how)
    assert (game.verdict, game.first) == (verdict, first), game


@BOTH
def test_a_solution_that_dies_of_the_verdict_has_not_failed_first(boxes: tuple[Container, Container], how: dict[str, Any]) -> None:
    # Both end within microseconds of one another: whichever init is heard first, the order is that of the pipes.
    games = [play(boxes, "exit 1", "cat >/dev/null; exit 9", how) for _ in range(25)]
    assert {(game.verdict, game.first) for game in games} == {(Verdict.REJECTED, "interactor")}
    games = [play(boxes, "cat >/dev/null; exit 1", "exit 9", how) for _ in range(25)]
    assert {(game.verdict, game.first) for game in games} == {(Verdict.SOLUTION_FAILED, "solution")}


@BOTH
def test_whoever_does_not_listen_breaks_the_pipe(boxes: tuple[Container, Container], how: dict[str, Any]) -> None:
    game = play(boxes, "read x; exit 0", "exec yes", how)
    assert game.broken_by == "interactor"
    assert (game.solution.status, game.solution.signal) == (Status.SIGNALED, signal.SIGPIPE)
    game = play(boxes, "exec yes", "read x; exit 0", how)
    assert game.broken_by == "solution"
    assert game.interactor.signal == signal.SIGPIPE


@BOTH
def test_a_partner_that_ignores_the_end_is_killed_after_a_while(boxes: tuple[Container, Container], how: dict[str, Any]) -> None:
    game = play(boxes, "exit 0", "exec sleep 60", how, timeout=None, linger=0.1)
    assert game.solution.status is Status.KILLED
    assert game.verdict is Verdict.SOLUTION_FAILED
    game = play(boxes, "exec sleep 60", "exit 0", how, timeout=None, linger=0.1)
    assert game.interactor.status is Status.KILLED
    assert game.verdict is Verdict.INTERACTOR_FAILED


@BOTH
def test_two_who_wait_for_each_other_are_the_solutions_fault(boxes: tuple[Container, Container], how: dict[str, Any]) -> None:
    begin = time.monotonic()
    game = play(boxes, "read x", "read x", how, timeout=0.2)
    assert time.monotonic() - begin < patience(20)
    assert game.solution.status is Status.TIMEOUT
    assert game.verdict is Verdict.SOLUTION_FAILED


@needs("cgroup:memory", "program:python3")
@BOTH
def test_each_has_its_own_limits_and_its_own_figures(boxes: tuple[Container, Container], how: dict[str, Any]) -> None:
    hog = Party(boxes[1], ["/usr/bin/python3", "-c", "x = bytearray(90 << 20); print(1)"], memory="30M", timeout=patience(20))
    game = sandbox.interact(sh(boxes[0], 'read x; test -n "$x"', memory="64M"), hog, **how)
    assert game.solution.status is Status.MEMORY_LIMIT
    assert game.verdict is Verdict.SOLUTION_FAILED
    assert game.interactor.memory_peak is not None
    assert game.interactor.memory_peak < 20 << 20
    busy = sh(boxes[1], "while :; do :; done", cpu_time=0.1, timeout=patience(20))
    game = sandbox.interact(sh(boxes[0], "read x"), busy, **how)
    assert game.solution.status is Status.CPU_LIMIT
    assert game.interactor.cpu_time < 0.1
    noisy = sh(boxes[1], "yes >&2", output_limit=1000, timeout=patience(20))
    game = sandbox.interact(sh(boxes[0], "read x; echo why >&2"), noisy, **how)
    assert game.solution.status is Status.OUTPUT_LIMIT
    assert len(game.solution.stderr) == 1000
    assert game.interactor.stderr == b"why\n"


@BOTH
def test_a_megabyte_goes_both_ways(boxes: tuple[Container, Container], how: dict[str, Any]) -> None:
    # More than all pipes and buffers hold, written before anything is read: the solution gives back each byte.
    script = "import os, sys, threading; w = sys.stdout.buffer; t = threading.Thread(target=lambda: (w.write(b'x' * 10**6), w.flush(), os.close(1))); t.start(); "
    script += "n = len(sys.stdin.buffer.read()); os._exit(n != 10**6)"
    assert sandbox.interact(Party(boxes[0], ["/usr/bin/python3", "-c", script]), sh(boxes[1], "cat"), timeout=20, **how).ok


def test_half_closed_is_end_of_file(boxes: tuple[Container, Container]) -> None:
    for how in (DIRECT, RELAY):
        assert play(boxes, 'echo 1 2; exec >&-; read x; test "$x" = 1', "wc -l", how).ok


def test_a_transcript_has_who_said_what_when(boxes: tuple[Container, Container]) -> None:
    game = play(boxes, ECHO_JUDGE, "head -n 1", RELAY)
    assert game.transcript is not None
    assert [(chunk.role, chunk.data) for chunk in game.transcript] == [("interactor", b"hello\n"), ("solution", b"hello\n")]
    assert 0 <= game.transcript[0].time <= game.transcript[1].time < patience(20)
    assert not game.transcript_truncated
    assert isinstance(game.transcript[0], Chunk)
    assert play(boxes, ECHO_JUDGE, "head -n 1", DIRECT).transcript is None


def test_a_transcript_is_bounded_whatever_is_said(boxes: tuple[Container, Container]) -> None:
    limit = 10 * CHUNK_COST
    game = play(boxes, "head -c 1000000 >/dev/null", "yes", {"transcript": limit})
    assert game.transcript is not None
    assert game.transcript_truncated
    assert sum(len(chunk.data) for chunk in game.transcript) == limit
    game = play(boxes, "for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15; do echo; read x; done", "while read x; do echo; done", {"transcript": limit})
    assert game.transcript is not None
    assert len(game.transcript) == 10
    assert game.transcript_truncated


@pytest.mark.usefixtures("no_leftovers")
def test_one_that_cannot_be_started_ends_the_other() -> None:
    with Container() as a, Container() as b:
        for how in (DIRECT, RELAY):
            begin = time.monotonic()
            with pytest.raises(ProgramNotFoundError):
                sandbox.interact(sh(a, "exec sleep 60"), Party(b, ["no-such-program"]), **how)
            with pytest.raises(ProgramNotFoundError):
                sandbox.interact(Party(a, ["no-such-program"]), sh(b, "exec sleep 60"), **how)
            assert time.monotonic() - begin < patience(30)
        b.close()
        with pytest.raises(sandbox.ClosedError):
            sandbox.interact(sh(a, "exec sleep 60"), sh(b, "true"))
        assert b"sleep" not in a.exec(["ps", "ax"]).stdout


@pytest.mark.usefixtures("no_leftovers")
def test_a_container_that_dies_is_an_error_and_the_other_program_ends() -> None:
    with Container() as a, Container() as b:
        threading.Timer(0.1, lambda: os.kill(b.pid, signal.SIGKILL)).start()
        with pytest.raises(sandbox.BrokenError):
            sandbox.interact(sh(a, "exec sleep 60"), sh(b, "exec sleep 60"))
        assert b"sleep" not in a.exec(["ps", "ax"]).stdout


def test_wrong_calls_are_refused(boxes: tuple[Container, Container]) -> None:
    for wrong in ({"stdin": None}, {"input": b""}, {"text": True}, {"check": True}, {"nonsense": 1}):
        with pytest.raises(UsageError, match="is not for a program that talks"):
            Party(boxes[0], ["true"], **wrong)
    party = sh(boxes[0], "true")
    refused: list[dict[str, object]] = [{"linger": -1}, {"timeout": "soon"}, {"transcript": "much"}, {"cpuset": "nonsense"}]
    for change in refused:
        with pytest.raises(UsageError):
            sandbox.interact(party, party, **change)  # type: ignore[call-overload]
    with pytest.raises(UsageError, match="is no Party"):
        sandbox.interact(party, boxes[1])
    with pytest.raises(UsageError, match="is no Party"):
        asyncio.run(aio.interact(boxes[0], party))
    with pytest.raises(UsageError, match=r"aio\.interact"):
        sandbox.interact(party, Party(aio.Container(), ["true"]))
    assert "Party(" in repr(party)


@needs("root", "cgroup:cpuset")
def test_both_share_the_cpus_they_are_given(boxes: tuple[Container, Container]) -> None:
    cpu = max(os.sched_getaffinity(0))
    show = "grep Cpus_allowed_list /proc/self/status >&2"
    game = play(boxes, f"{show}; read x", f"{show}; echo", DIRECT, cpuset=[cpu])
    assert game.ok
    assert game.interactor.stderr.split() == game.solution.stderr.split() == [b"Cpus_allowed_list:", b"%d" % cpu]


def test_the_verdict_is_a_function_of_the_results(boxes: tuple[Container, Container]) -> None:
    ok, bad, broken = (boxes[0].exec(["sh", "-c", script]) for script in ("exit 0", "exit 1", "kill -PIPE $$"))
    assert judge(broken, ok, "solution") is Verdict.REJECTED
    assert judge(broken, ok, "interactor") is Verdict.INTERACTOR_FAILED
    assert judge(ok, broken, "solution") is Verdict.ACCEPTED
    assert judge(bad, bad, "solution") is Verdict.SOLUTION_FAILED
    assert judge(bad, bad, "interactor") is Verdict.REJECTED


@BOTH
@pytest.mark.usefixtures("no_leftovers")
def test_in_asyncio_many_games_go_on_at_once_and_a_cancelled_one_ends(how: dict[str, Any]) -> None:
    async def main() -> None:
        async with aio.Container() as a, aio.Container() as b:
            def game(interactor: str, solution: str) -> Any:
                return aio.interact(Party(a, ["sh", "-c", interactor]), Party(b, ["sh", "-c", solution]), timeout=patience(30), linger=patience(0.2), **how)

            long = asyncio.create_task(game("exec sleep 60", "exec sleep 60"))
            games = await asyncio.gather(*(game(ECHO_JUDGE, "head -n 1") for _ in range(20)), game("exit 0", "exec sleep 60"))
            assert [g.verdict for g in games] == [Verdict.ACCEPTED] * 20 + [Verdict.SOLUTION_FAILED]
            long.cancel()
            with pytest.raises(asyncio.CancelledError):
                await long
            for box in (a, b):
                assert b"sleep" not in (await box.exec(["ps", "ax"])).stdout
            with pytest.raises(ProgramNotFoundError):
                await aio.interact(Party(a, ["cat"]), Party(b, ["no-such-program"]), **how)
            with pytest.raises(UsageError, match=r"sandbox\.interact"):
                await aio.interact(Party(a, ["cat"]), Party(Container(), ["cat"]))

    asyncio.run(main())


def test_the_example_runs() -> None:
    before, limit, after = (ROOT / "examples" / "interactive.py").read_text(encoding="utf-8").partition("timeout=1.0")
    assert limit
    command = [sys.executable, "-c", f"{before}timeout={patience(4.0)}{after}"]
    env = {**os.environ, "PYTHONPATH": import_path()}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=patience(60), check=False)
    assert done.returncode == 0, done.stderr
    assert "halving        accepted" in done.stdout
    assert "counting       rejected" in done.stdout
