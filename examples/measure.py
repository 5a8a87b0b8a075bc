#!/usr/bin/env python3
"""Measure two programs that do the same in different ways, and watch one of them run: figures that can be published, and a plot.

    examples/measure.py --repeat 30 --out results

It writes into the directory: runs.csv (each run), figures.json (estimates, intervals, warnings), samples.csv (memory, CPU ... over time) and, with
matplotlib (pip install 'sandbox[plot]'), run.png.
"""

from __future__ import annotations

import argparse
import os
import sys

import sandbox
from sandbox import Comparison, Container, Monitor, SandboxError

LIST = "sum([i * i for i in range({n})])"
GENERATOR = "sum(i * i for i in range({n}))"
PHASES = """
import time
a = [bytearray(4 << 20) for _ in range(8)]     # grows by 32 MiB
sum(i * i for i in range({n}))                 # computes
time.sleep(0.2)                                # waits
"""


def python(code: str, n: int) -> list[str]:
    """The command: the host's Python, as its view inside the container shows it."""
    return ["python3", "-I", "-S", "-c", code.format(n=n)]


def compare(n: int, repeat: int) -> Comparison:
    """Let the two take turns, with the same limits."""
    programs = {"a list": python(LIST, n), "a generator": python(GENERATOR, n)}
    return sandbox.compare(programs, repeat=repeat, warmup=2, memory="512M", cpus=1)


def watch(n: int) -> Monitor:
    """Take samples while one program runs."""
    with Container(memory="512M", pids=16) as container, container.monitor(interval=0.02) as monitor:
        container.exec(python(PHASES, n), check=True)
    return monitor


def describe(found: Comparison) -> None:
    """Print what can be said, with its uncertainty."""
    for each in found.measurements:
        wall, memory = each.wall_time, each.memory_peak
        print(f"{each.name}: {wall.median * 1e3:.1f} ms (MAD {wall.mad * 1e3:.1f})", end="")
        print(f", {memory.median / 1e6:.1f} MB" if memory else ", memory not known here", f"in {wall.count} runs")
    for figure in ("cpu_time", "memory_peak"):
        ratio = found.ratio("a generator", figure=figure).estimate
        if ratio is not None:
            bounds = f", surely within {ratio.low:.2f} ... {ratio.high:.2f} ({ratio.confidence:.0%})" if ratio.confidence is not None else ""
            print(f"{figure}: a generator takes {ratio.median:.2f} of what a list takes{bounds}")
    for line in found.warnings:
        print(f"warning: {line}", file=sys.stderr)


def main() -> int:
    """Measure, write the files, say where they are."""
    parser = argparse.ArgumentParser(description="Measure two programs, and watch one.")
    parser.add_argument("--repeat", type=int, default=30, help="runs of each")
    parser.add_argument("-n", type=int, default=1_000_000, help="how much work a run is")
    parser.add_argument("--out", default="results", help="directory for the files")
    options = parser.parse_args()
    os.makedirs(options.out, exist_ok=True)
    try:
        found = compare(options.n, options.repeat)
        monitor = watch(options.n)
    except SandboxError as error:
        print(f"measure: {error}", file=sys.stderr)
        return 1
    describe(found)
    found.to_csv(os.path.join(options.out, "runs.csv"))
    found.to_json(os.path.join(options.out, "figures.json"))
    monitor.to_csv(os.path.join(options.out, "samples.csv"))
    print(f"{len(monitor.rows)} samples, {monitor.cost * 1e6:.0f} us of CPU time each, {monitor.missed} missed")
    try:
        monitor.plot(os.path.join(options.out, "run.png"), title="grow, compute, wait")
    except sandbox.UnsupportedError as error:
        print(f"no plot: {error}", file=sys.stderr)
    print("written to", options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
