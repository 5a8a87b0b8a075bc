"""Run after run through a pool, each with a known fate: is anything growing, or wrong? ``python -m benchmarks.soak [RUNS]``.

A mixture of verdicts goes through `sandbox.Pool` from several threads. Each result is compared with what the program was written to
get; after each window of runs (a twentieth) a line says the rate, the memory of this process and of its launcher (with its helper), open
descriptors, control groups and threads. At the end the second half of the windows is compared with the first: what is not flat is said,
and is the exit code.

Most runs (`USUAL`) are what judges run most: a static program that ends by itself, with limits and accounting. One in `EVERY` has another
fate. Those that take long by their nature (a time-out) are rarer.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from attrs import define, field, frozen

from sandbox import DEVNULL, Pool, Result, Status

HERE = Path(__file__).resolve().parent
LIMITS: dict[str, Any] = {"memory": "32M", "pids": 16, "cpu_time": 5.0, "timeout": 10.0, "stderr": DEVNULL}
EVERY = 50
WINDOWS = 20
PATIENCE_S = 60.0


@frozen
class Fate:
    """A program, the limits that it meets, and what must become of it."""

    argv: tuple[str, ...]
    status: Status
    exit_code: int | None = None
    options: dict[str, Any] = field(factory=dict)
    share: int = 1  # how often it comes among the others

    def fits(self, result: Result) -> bool:
        return result.status is self.status and (self.exit_code is None or result.exit_code == self.exit_code)


USUAL = Fate(("/soak", "sum"), Status.EXITED, 0)
OTHERS = (
    Fate(("/soak", "fail"), Status.EXITED, 137, share=4),
    Fate(("/soak", "abort"), Status.SIGNALED, share=4),
    Fate(("/soak", "fault"), Status.SIGNALED, share=4),
    Fate(("/soak", "kill"), Status.SIGNALED, share=4),
    Fate(("/soak", "heap"), Status.MEMORY_LIMIT, options={"memory": "8M"}, share=4),
    Fate(("/soak", "flood"), Status.OUTPUT_LIMIT, options={"output_limit": 4096}, share=4),
    Fate(("/soak", "write"), Status.EXITED, 0, share=4),  # a file in /tmp: the container is replaced
    Fate(("/soak", "fork"), Status.EXITED, 0, share=4),
    Fate(("/soak", "mount"), Status.SYSCALL_DENIED, share=2),
    Fate(("/soak", "spin"), Status.CPU_LIMIT, options={"cpu_time": 0.02}),
    Fate(("/soak", "sleep"), Status.TIMEOUT, options={"timeout": 0.02}),
)
CYCLE = [fate for fate in OTHERS for _ in range(fate.share)]


def fates(runs: int, every: int = EVERY) -> Iterator[Fate]:
    """What is run, in order: one of the others in each *every*."""
    for number in range(runs):
        yield CYCLE[number // every % len(CYCLE)] if number % every == every - 1 else USUAL


@frozen
class Window:
    """What was seen at the end of some runs."""

    runs: int
    rate: float
    memory_kb: int
    launcher_kb: int
    fds: int
    groups: int
    threads: int
    replaced: int

    def line(self) -> str:
        return (
            f"{self.runs:8d} runs {self.rate:7.0f}/s  memory {self.memory_kb:6d} kB, launcher {self.launcher_kb:5d} kB"
            f"  fds {self.fds:3d}  groups {self.groups:3d}  threads {self.threads:2d}  replaced {self.replaced}"
        )


@define
class Soak:
    """One soak: *workers* threads on a pool of as many containers."""

    root: Path
    runs: int
    workers: int
    every: int = EVERY
    windows: list[Window] = field(factory=list)
    wrong: list[str] = field(factory=list)
    seen: Counter[Status] = field(factory=Counter)
    _lock: threading.Lock = field(factory=threading.Lock)

    def run(self, report: Any = None) -> Soak:  # noqa: ANN401 - called with each Window
        """Run everything; *report* is called with each window."""
        # All limits on the pool's containers are met by nobody: those that decide are the runs' own.
        with Pool(self.root, size=self.workers, security="strict", memory="256M", pids=64) as pool:
            todo = fates(self.runs, self.every)
            for _ in range(WINDOWS):
                share, before = self.runs // WINDOWS, time.perf_counter()
                self._work(pool, [next(todo) for _ in range(share)])
                window = self._look(pool, share / (time.perf_counter() - before))
                self.windows.append(window)
                if report is not None:
                    report(window)
        return self

    def _work(self, pool: Pool, todo: list[Fate]) -> None:
        def worker(mine: list[Fate]) -> None:
            for fate in mine:
                result = pool.exec(fate.argv, **{**LIMITS, **fate.options})
                with self._lock:
                    self.seen[result.status] += 1
                    if not fate.fits(result):
                        self.wrong.append(f"{fate.argv[1]}: {result.status} {result.exit_code} {result.signal}, not {fate.status}")

        threads = [threading.Thread(target=worker, args=(todo[number :: self.workers],)) for number in range(self.workers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _look(self, pool: Pool, rate: float) -> Window:
        done = len(self.windows) + 1
        # The larger of the two: the helper begins with the first container that needs it, whenever that is.
        memory, launcher = memory_kb(os.getpid()), max(map(memory_kb, launchers()), default=0)
        fds, groups, threads = len(os.listdir("/proc/self/fd")), count_groups(), threading.active_count()
        return Window(done * (self.runs // WINDOWS), rate, memory, launcher, fds, groups, threads, pool.stats().replaced)

    def growing(self) -> list[str]:
        """What of the second half of the windows is not as in the first half (the very first window, where all begins, apart)."""
        middle = len(self.windows) // 2
        first, second = self.windows[1:middle], self.windows[middle:]
        problems: list[str] = []
        for name, most, slack in (("memory_kb", 1.03, 2048), ("launcher_kb", 1.1, 512), ("fds", 1.0, 12), ("groups", 1.0, 96), ("threads", 1.0, 1)):
            before, after = (statistics.median(getattr(window, name) for window in half) for half in (first, second))
            if after > before * most + slack:
                problems.append(f"{name} grows: {before:g}, then {after:g}")
        before, after = (statistics.median(window.rate for window in half) for half in (first, second))
        if after < before * 0.8:
            problems.append(f"the rate falls: {before:.0f}/s, then {after:.0f}/s")
        return problems


def memory_kb(pid: int) -> int:
    """Resident memory of a process that is its own (what it shares with the launcher's inits is counted in each)."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in text.splitlines() if line.startswith(("RssAnon:", "RssShmem:")))


def launchers() -> list[int]:
    """The launcher of this process, and its helper."""
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                argv = (entry / "cmdline").read_bytes().split(b"\0")
                name = (entry / "comm").read_text().strip()
            except OSError:
                continue
            if argv[:2] == [b"sandbox-launcher", str(os.getpid()).encode()] and name in ("sandbox-launch", "sandbox-release"):
                found.append(int(entry.name))
    return found


def count_groups() -> int:
    """Control groups of this process's containers, in the hierarchy that has most."""
    mounts = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines() if line.split()[2] in ("cgroup", "cgroup2")]
    mine = f"sandbox-{os.getpid()}-"
    return max((sum(mine in directory for directory, _, _ in os.walk(mount)) for mount in mounts), default=0)


def make_root(directory: Path) -> Path:
    """A root directory with the program and nothing else. Raises: subprocess.CalledProcessError, when it cannot be compiled."""
    root = directory / "root"
    for name in ("dev", "etc", "proc", "sys", "tmp"):
        (root / name).mkdir(parents=True)
    (root / "tmp").chmod(0o1777)
    for path in (directory, root):
        path.chmod(0o755)
    subprocess.run([os.environ.get("CC", "cc"), "-O2", "-static", "-o", root / "soak", HERE / "soak.c"], check=True)
    return root


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description="Run after run through a pool; is anything growing, or wrong?")
    parser.add_argument("runs", nargs="?", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--every", type=int, default=EVERY, help="one run in so many has another fate than the usual")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="soak-") as scratch:
        begin = time.perf_counter()
        soak = Soak(make_root(Path(scratch)), arguments.runs, arguments.workers, arguments.every)
        soak.run(lambda window: print(window.line(), flush=True))
    seconds = time.perf_counter() - begin
    print(f"{sum(soak.seen.values())} runs in {seconds:.0f} s; " + ", ".join(f"{status.value} {count}" for status, count in soak.seen.most_common()))
    problems = [*soak.wrong[:20], *soak.growing()]
    rate = statistics.median(window.rate for window in soak.windows)
    print("\n".join(problems) or f"all as they had to be; nothing grows; {rate:.0f} runs/s (median)")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
