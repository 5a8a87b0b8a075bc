"""The command line: choose cases, run them, print the tables, judge them."""

from __future__ import annotations

import argparse
import os
import random
import sys
import time
from collections.abc import Sequence

from benchmarks import bars, cases, leftovers, ours, report, traces
from benchmarks.programs import compiled


def main(argv: Sequence[str] | None = None) -> int:
    """Run; 1 when a bar is missed (with --check or --ratios) or a group failed, 2 when the programs cannot be compiled."""
    options = _parser().parse_args(argv)
    result = report.Report()
    if options.huge_pages:
        ours.limit_huge_pages()
    host = report.host_facts()
    before = leftovers.Leftovers.of(0)
    try:
        with traces.removed(), compiled() as programs:
            make = cases.quick if options.quick else cases.full
            setting = make(programs, random.Random(options.seed), rounds=options.rounds, with_docker=options.docker)
            failed = _run(options.case or list(cases.GROUPS), setting, result)
    except RuntimeError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 2
    _count_leftovers(result, before)
    verdicts = bars.judge(result, ratios_only=options.ratios) if options.check or options.ratios else []
    print(report.as_text(result))
    if verdicts:
        print(f"\nwhat must hold\n{bars.as_text(verdicts)}")
    if options.json:
        with open(options.json, "w") as file:
            file.write(report.as_json(result, host, verdicts))
    return 1 if failed or any(v["verdict"] == "FAIL" for v in verdicts) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure what containers cost.")
    parser.add_argument(
        "--case", action="append", choices=list(cases.GROUPS), metavar="NAME", help=f"one of {', '.join(cases.GROUPS)}; again for more"
    )
    parser.add_argument("--quick", action="store_true", help="few rounds: shows that everything runs, measures little")
    parser.add_argument("--rounds", type=int, metavar="N", help="rounds of the interleaved groups, in each mode")
    parser.add_argument("--docker", action="store_true", help="start a Docker daemon of our own for the run (root)")
    parser.add_argument("--check", action="store_true", help="judge the promises of speed; exit code 1 when one is not kept")
    parser.add_argument("--ratios", action="store_true", help="judge the ratios alone, for an emulated machine; exit code as with --check")
    parser.add_argument("--huge-pages", action="store_true", help="limit those and time instead of memory, processes and CPU: see benchmarks/on_v2")
    parser.add_argument("--json", metavar="FILE", help="write everything there too")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the order in which cases take turns")
    return parser


def _run(names: Sequence[str], setting: cases.Setting, result: report.Report) -> bool:
    failed = False
    for name in names:
        begin = time.monotonic()
        try:
            cases.GROUPS[name](setting, result)
        except Exception as error:  # noqa: BLE001 - the other groups are still worth their run; this one is listed, and the exit code says it
            result.refused[f"group {name}"] = f"{type(error).__name__}: {error}"
            failed = True
        print(f"{name}: {time.monotonic() - begin:.0f} s", file=sys.stderr)
    return failed


def _count_leftovers(result: report.Report, before: leftovers.Leftovers) -> None:
    """After everything: what this process itself has left."""
    ours.shut_down()
    left = leftovers.wait_until_clean(os.getpid(), before)
    result.figure("leftovers", "left behind", len(left), "things")
    result.notes += [f"left behind: {line}" for line in left.lines()[:20]]


if __name__ == "__main__":
    sys.exit(main())
