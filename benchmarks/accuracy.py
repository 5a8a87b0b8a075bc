"""How exact the figures of a run are: programs that know what they use, against what the library says they used.

    python -m benchmarks.accuracy [--rounds N] [--case NAME ...] [--json FILE]

A figure is right when it differs from the truth by at most 2 % and 2 ms (CPU time), or 2 % and 1 MiB (memory). Exit code 1 when one is not. The truth
about CPU time is what the processes' own clocks told when they ended; about memory, what was asked for and touched.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from attrs import field, frozen

from sandbox import Bind, Container, Result

SHARE, CPU_S, MEMORY = 0.02, 0.002, 1 << 20
MIB = 1 << 20
HERE = os.path.dirname(os.path.abspath(__file__))


@frozen
class Case:
    """One program, and which figure is compared with what it prints."""

    name: str
    argv: tuple[str, ...]
    figure: str  # of Result

    @property
    def slack(self) -> float:
        return MEMORY if self.figure in {"memory_peak", "max_rss"} else CPU_S


def _cpu(*argv: str) -> Case:
    return Case(" ".join(argv), argv, "cpu_time")


CASES: tuple[Case, ...] = (
    _cpu("user", "60"),
    _cpu("system", "60"),
    _cpu("both", "60"),
    _cpu("forked", "3", "20"),
    _cpu("threads", "3", "20"),
    _cpu("orphan", "60"),
    _cpu("ignored", "60"),
    Case("user, user_time", ("user", "60"), "user_time"),
    Case("system, system_time", ("system", "60"), "system_time"),
    Case("orphan, user_time", ("orphan", "60"), "user_time"),
    Case("nothing", ("nothing",), "memory_peak"),
    *(Case(f"{what} {size >> 20}M", (what, str(size)), "memory_peak") for what in ("heap", "shared", "pair", "left") for size in (3 * MIB, 48 * MIB)),
    Case("stack 6M", ("stack", str(6 * MIB)), "memory_peak"),
    Case("released 32M", ("released", str(32 * MIB)), "memory_peak"),
    Case("file on tmpfs 16M", ("file", str(16 * MIB), "/tmp/known"), "memory_peak"),
    Case("file on disk 16M", ("file", str(16 * MIB), "/disk/known"), "memory_peak"),
    Case("heap 48M, max_rss", ("heap", str(48 * MIB)), "max_rss"),
    Case("left 48M, max_rss", ("left", str(48 * MIB)), "max_rss"),
)


@frozen
class Measured:
    """A case's truths and figures, round by round."""

    case: Case
    pairs: list[tuple[float, float]] = field(factory=list[tuple[float, float]])

    @property
    def off(self) -> list[float]:
        """By how much each figure is beyond what is allowed; at most 0: right."""
        return [abs(told - truth) - (truth * SHARE + self.case.slack) for truth, told in self.pairs]

    @property
    def wrong(self) -> int:
        return sum(excess > 0 for excess in self.off)


@contextmanager
def container() -> Iterator[Container]:
    """One that has the compiled programs at /known, and a directory on a disk at /disk. Raises: RuntimeError: they cannot be compiled."""
    with tempfile.TemporaryDirectory(prefix="accuracy-") as scratch:
        os.chmod(scratch, 0o755)
        programs, disk = os.path.join(scratch, "programs"), os.path.join(scratch, "disk")
        os.mkdir(programs, 0o755)
        os.mkdir(disk)
        os.chmod(disk, 0o777)
        _compile(os.path.join(programs, "known"))
        with Container(mounts=[Bind(programs, "/known", read_only=True), Bind(disk, "/disk")]) as live:
            yield live
        shutil.rmtree(disk, ignore_errors=True)  # what belongs to a user of the container is not everybody's to remove


def _compile(target: str) -> None:
    command = [os.environ.get("CC", "cc"), "-O2", "-Wall", "-Wextra", "-static", "-pthread", "-o", target, os.path.join(HERE, "known.c")]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise RuntimeError(f"no C compiler: {command[0]} is not in PATH; install gcc, or set CC") from None
    if done.returncode != 0:
        raise RuntimeError(f"cannot compile known.c:\n{done.stderr}")


def execute(live: Container, case: Case) -> Result:
    """Run a case's program. Raises: CommandError."""
    result = live.exec(["/known/known", *case.argv], timeout=60.0, memory="256M", accounting=True, check=True)
    if case.argv[0] == "file":
        live.exec(["rm", "-f", case.argv[2]], check=True)
    return result


def truth_of(case: Case, result: Result) -> float:
    """What the program says about itself, in seconds or bytes."""
    kind, *numbers = result.stdout.split()
    if kind == b"memory":
        return float(numbers[0])
    total_ns, user_us, system_us = map(int, numbers)
    return {"cpu_time": total_ns / 1e9, "user_time": user_us / 1e6, "system_time": system_us / 1e6}[case.figure]


def measure(live: Container, cases: Iterable[Case], *, rounds: int) -> list[Measured]:
    """All cases by turns, *rounds* times."""
    found = [Measured(case) for case in cases]
    for _ in range(rounds):
        for one in found:
            result = execute(live, one.case)
            told = getattr(result, one.case.figure)
            if told is None:
                raise RuntimeError(f"this host does not tell {one.case.figure}")
            one.pairs.append((truth_of(one.case, result), told))
    return found


def table(measured: Sequence[Measured]) -> str:
    """A line for each case; CPU in milliseconds, memory in KiB."""
    lines = [f"{'case':24s} {'figure':12s} {'truth':>10s} {'least off':>10s} {'median':>10s} {'most':>10s}  wrong"]
    for one in measured:
        scale, unit = (1024, "KiB") if one.case.slack == MEMORY else (1e-3, "ms")
        off = [(told - truth) / scale for truth, told in one.pairs]
        truth = statistics.median(truth for truth, _ in one.pairs) / scale
        figures = " ".join(f"{value:10.2f}" for value in (truth, min(off), statistics.median(off), max(off)))
        lines.append(f"{one.case.name:24s} {one.case.figure:12s} {figures}  {one.wrong} of {len(off)} ({unit})")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; 1 when a figure was wrong, 2 when nothing could be measured."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy", description="How exact the figures of a run are.")
    parser.add_argument("--rounds", type=int, default=50, metavar="N", help="runs of each case (default 50)")
    parser.add_argument("--case", action="append", choices=[case.name for case in CASES], metavar="NAME", help="only this one; again for more")
    parser.add_argument("--json", metavar="FILE", help="write every pair of truth and figure there too")
    options = parser.parse_args(argv)
    try:
        with container() as live:
            measured = measure(live, [case for case in CASES if case.name in (options.case or [case.name])], rounds=options.rounds)
    except RuntimeError as error:
        print(f"accuracy: {error}", file=sys.stderr)
        return 2
    print(table(measured))
    if options.json:
        with open(options.json, "w") as file:
            json.dump({one.case.name: one.pairs for one in measured}, file)
    return 1 if any(one.wrong for one in measured) else 0


if __name__ == "__main__":
    sys.exit(main())
