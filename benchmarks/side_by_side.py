"""Side by side: the same programs under bwrap with rlimits and under ours, in one interleaved run: spread of CPU time, overhead per run.

``python -m benchmarks.side_by_side --write`` puts the table into docs/reference/comparison.md, which says how to read it.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from attrs import define, field, frozen

import sandbox
from benchmarks import ours
from benchmarks.peers import QUIET, Refused, probe, versions
from benchmarks.programs import Programs, compiled
from benchmarks.report import host_facts
from sandbox import Estimate

HERE = os.path.dirname(os.path.abspath(__file__))
DOCUMENT = os.path.join(os.path.dirname(HERE), "docs", "reference", "comparison.md")
BEGIN, END = "<!-- written by benchmarks/side_by_side.py: begin -->", "<!-- end -->"
SIDE = "/side"
BUSY = 0.5  # load before the run, from which on the table says so
SETTLE_S = 0.005  # what a run leaves to be done later must not fall on whose turn is next
# Some 10 to 30 ms each, of different kinds: user time, page faults, system calls, processes.
WORK = (("nothing",), ("spin", "60000000"), ("touch", "32"), ("calls", "100000"), ("fork", "100"))
# What rlimits have of the limits that ours set in control groups; nproc is per user, and not enforced for root.
RLIMITS = ("--cpu=10", f"--as={256 << 20}", "--nproc=64", "--nofile=64", "--core=0", f"--fsize={64 << 20}")


@frozen
class Run:
    """What the caller waited, and the CPU time that it was told; seconds."""

    wall: float
    cpu: float


@frozen
class Contestant:
    """A way to run a program; *run* takes its words and returns what one run took."""

    name: str
    run: Callable[[Sequence[str]], Run]


@define
class Result:
    """Every run, by program and contestant, in the order of rounds."""

    runs: dict[tuple[str, str], list[Run]] = field(factory=dict[tuple[str, str], list[Run]])
    refused: list[Refused] = field(factory=list[Refused])


def waited_for(command: Sequence[str]) -> Run:
    """Run a program of the host as our own child, and take what wait4(2) says of it and of all that it waited for."""
    before = time.perf_counter()
    process = subprocess.Popen(command, **QUIET)
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - before
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{command[0]}: exit code {process.returncode}")
    return Run(wall, usage.ru_utime + usage.ru_stime)


def timed_inside(command: Sequence[str], words: Sequence[str]) -> Run:
    """Run a program under *command*, with a parent inside that waits for it and tells us its CPU time."""
    told, tells = os.pipe()
    try:
        before = time.perf_counter()
        subprocess.run([*command, SIDE, "timed", str(tells), SIDE, *words], **QUIET, pass_fds=(tells,), check=True)
        wall = time.perf_counter() - before
        return Run(wall, int(os.read(told, 64)) / 1e6)
    except subprocess.CalledProcessError as error:
        raise RuntimeError(str(error)) from None
    finally:
        os.close(told)
        os.close(tells)


def in_container(execute: Callable[[], sandbox.Result]) -> Run:
    """The same of ours."""
    before = time.perf_counter()
    result = execute()
    wall = time.perf_counter() - before
    if not result.ok:
        raise RuntimeError(f"it did not run: {result}")
    return Run(wall, result.cpu_time)


def whole(root: str, words: Sequence[str]) -> sandbox.Result:
    """A container of its own, from its creation to its end."""
    with sandbox.Container(root, **ours.LIMITS) as container:
        return container.exec([SIDE, *words], **ours.NULL)


def contestants(p: Programs, stack: ExitStack) -> Iterator[Contestant]:
    """All that could take part."""
    live = stack.enter_context(sandbox.Container(p.root, **ours.LIMITS))
    limits = {**ours.NULL, **ours.RUN_LIMITS, "memory": "64M"}
    bwrap = ["bwrap", "--unshare-all", "--die-with-parent", "--ro-bind", p.root, "/", "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp", "--"]
    yield Contestant("no isolation", lambda words: waited_for([f"{p.root}{SIDE}", *words]))
    yield Contestant("bwrap + rlimits", lambda words: timed_inside(["prlimit", *RLIMITS, "--", *bwrap], words))
    yield Contestant("sandbox, whole", lambda words: in_container(lambda: whole(p.root, words)))
    yield Contestant("sandbox, exec", lambda words: in_container(lambda: live.exec([SIDE, *words], **limits)))


def measure(p: Programs, *, rounds: int, seed: int) -> Result:
    """Everyone, in turns, shuffled in each round; one round before does not count."""
    result, rng = Result(), random.Random(seed)
    with ExitStack() as stack:
        taking_part: list[Contestant] = []
        for each in contestants(p, stack):
            try:
                each.run(WORK[0])
                taking_part.append(each)
            except (RuntimeError, OSError) as error:
                result.refused.append(Refused(each.name, str(error)))
        turns = [(words, each) for words in WORK for each in taking_part]
        for number in range(rounds + 1):
            for words, each in rng.sample(turns, len(turns)):
                run = each.run(words)
                if number:
                    result.runs.setdefault((" ".join(words), each.name), []).append(run)
                time.sleep(SETTLE_S)
    return result


def rows(result: Result) -> Iterator[list[str]]:
    """The table's lines: CPU time and how it spreads, and how much longer than without isolation the caller waits, round by round."""
    for (program, name), runs in result.runs.items():
        cpu = Estimate.of(run.cpu for run in runs)
        base = result.runs[program, "no isolation"]
        overhead = Estimate.of(run.wall - bare.wall for run, bare in zip(runs, base, strict=True))
        spread = f"{cpu.spread:.1%}" if cpu.spread is not None else "-"
        reach = f"{(cpu.max - cpu.min) / cpu.median:.0%}" if cpu.median else "-"
        bounds = f" ({overhead.low * 1e3:.2f} ... {overhead.high * 1e3:.2f})" if overhead.low is not None and overhead.high is not None else ""
        told = "-" if runs is base else f"{overhead.median * 1e3:.2f}{bounds}"
        yield [program, name, f"{cpu.median * 1e3:.2f}", spread, reach, told]


HEAD = ("program", "under", "CPU time, ms", "its quartiles apart", "its extremes apart", "overhead per run, ms")


def _place(row: Sequence[str]) -> tuple[int, str]:
    return [" ".join(words) for words in WORK].index(row[0]), row[1]


def table(result: Result) -> str:
    """All of it, in Markdown."""
    lines = [HEAD, ("---",) * len(HEAD), *sorted(rows(result), key=_place)]
    refused = [f"\nDid not take part: {each.name}: {each.reason}" for each in result.refused]
    return "\n".join([*(f"| {' | '.join(line)} |" for line in lines), *refused])


def facts(result: Result) -> str:
    """A line that says of which machine and how many runs the table is."""
    host, known = host_facts(), versions()
    count = max(map(len, result.runs.values()))
    machine = f"{host['cpus']} CPUs ({host['processor']}), Linux {host['kernel']}, cgroups {host['cgroups']}, uid {host['user']}"
    busy = " Other work was going on, which shows in every spread and overhead: write it anew on an idle host." if host["load"][0] > BUSY else ""
    return f"{count} runs each, in turns; {machine}; {known.get('bwrap', 'no bwrap')}; load before: {host['load'][0]:.1f}.{busy}"


def put_between(text: str, new: str) -> str:
    """Replace what stands between the two marks. Raises: ValueError: they are not there."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"no lines {BEGIN} and {END} to write between")
    return f"{before}{BEGIN}\n{new}\n{END}{after}"


@contextmanager
def programs() -> Iterator[Programs]:
    """Those of the benchmarks, and our own in the same root. Raises: RuntimeError: it cannot be compiled."""
    with compiled() as p:
        command = [os.environ.get("CC", "cc"), "-O2", "-Wall", "-Wextra", "-static", "-o", f"{p.root}{SIDE}", os.path.join(HERE, "side.c")]
        probe(command)
        yield p


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the table, and write it if that is asked."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.side_by_side", description="Compare with bwrap and rlimits.")
    parser.add_argument("--rounds", type=int, default=60, metavar="N", help="runs of each program under each (60)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the order of turns")
    parser.add_argument("--write", nargs="?", const=DOCUMENT, metavar="FILE", help="put the table into FILE (docs/reference/comparison.md)")
    options = parser.parse_args(argv)
    if shutil.which("prlimit") is None:
        print("side_by_side: no prlimit; install util-linux", file=sys.stderr)
        return 2
    with programs() as p:
        result = measure(p, rounds=options.rounds, seed=options.seed)
    text = f"{facts(result)}\n\n{table(result)}"
    print(text)
    if options.write:
        with open(options.write) as file:
            whole_text = put_between(file.read(), text)
        with open(options.write, "w") as file:
            file.write(whole_text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
