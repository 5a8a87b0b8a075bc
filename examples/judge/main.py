"""The judge's command line: ``python examples/judge`` judges all bundled submissions and compares with the expected verdicts.

Exit code: 0: every verdict is the expected one; 1: one is not; 2: this host cannot enforce what a verdict depends on;
77: all that were given are right, but submissions were skipped for want of a compiler.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TextIO

from judge import HERE, Report, Submission, Verdict, bundled, judge
from languages import LANGUAGES

from sandbox import UnsupportedError

_ROW = "{:8} {:28} {:15} {:26} {:>8} {:>8} {:>9}  {}"
_HEAD = _ROW.format("problem", "submission", "verdict", "why", "CPU s", "wall s", "memory", "")


def main() -> int:
    options = _arguments()
    submissions = [_given(path, options.problem) for path in options.sources] or bundled()
    reports: list[Report] = []
    if not options.json:
        print(_HEAD.rstrip())
    try:
        for report in judge_all(submissions, rounds=options.rounds, jobs=options.jobs, time_factor=options.time_factor):
            reports.append(report)
            print(json.dumps(_record(report)) if options.json else _row(report), flush=True)
    except UnsupportedError as error:
        print(f"judge: a verdict would not be exact on this host: {error}", file=sys.stderr)
        return 2
    return _conclude(reports, sys.stderr if options.json else sys.stdout)


def judge_all(submissions: Iterable[Submission], *, rounds: int = 1, jobs: int = 1, time_factor: float = 1.0) -> Iterator[Report]:
    """Judge each, *jobs* at a time, and report in order. The library is safe in threads."""
    with ThreadPoolExecutor(jobs) as pool:
        waiting = [pool.submit(judge, submission, time_factor=time_factor) for _ in range(rounds) for submission in submissions]
        try:
            for future in waiting:
                yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="judge", description="Judge submissions in containers; without arguments, all bundled ones.")
    parser.add_argument("sources", nargs="*", type=Path, metavar="SOURCE", help=f"a source ({', '.join(LANGUAGES)}); default: all bundled ones")
    parser.add_argument("--problem", choices=_problems(), help="the problem that the sources solve; default: by their directory")
    parser.add_argument("--rounds", type=_positive, default=1, help="judge everything so many times")
    parser.add_argument("--jobs", type=_positive, default=len(os.sched_getaffinity(0)), help="judge so many at once; default: one per CPU")
    parser.add_argument("--time-factor", type=_factor, default=1.0, help="multiply all limits of time, on a machine that is so much slower")
    parser.add_argument("--json", action="store_true", help="print a JSON object per submission instead of the table")
    return parser.parse_args()


def _problems() -> list[str]:
    return sorted(path.name for path in (HERE / "problems").iterdir())


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not above 0")
    return number


def _factor(text: str) -> float:
    number = float(text)
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{number} is no factor")
    return number


def _given(path: Path, problem: str | None) -> Submission:
    """A source named on the command line; a bundled one brings its problem and its expected verdict with it."""
    if not path.is_file() or path.suffix not in LANGUAGES:
        raise SystemExit(f"judge: {path}: give a file that ends in {', '.join(LANGUAGES)}")
    path = path.resolve()
    for known in bundled():
        if known.path == path and problem in (None, known.problem):
            return known
    if problem is None:
        raise SystemExit(f"judge: {path}: say with --problem which problem it solves: {', '.join(_problems())}")
    return Submission(problem, path)


def _row(report: Report) -> str:
    submission = report.submission
    remark = "" if submission.expected is None or report.is_expected else f"EXPECTED {submission.expected.value}"
    if report.verdict is Verdict.SKIPPED:
        remark = "not judged"
    figures = (f"{report.cpu_time:.3f}", f"{report.wall_time:.3f}", "?" if report.memory is None else f"{report.memory / 1048576:.1f} M")
    verdict = report.verdict.value.replace("_", " ")
    return _ROW.format(submission.problem, submission.path.name, verdict, report.reason, *figures, remark).rstrip()


def _record(report: Report) -> dict[str, object]:
    submission = report.submission
    return {
        "problem": submission.problem,
        "submission": submission.path.name,
        "expected": None if submission.expected is None else submission.expected.value,
        "verdict": report.verdict.value,
        "reason": report.reason,
        "passed": report.passed,
        "cpu_time": report.cpu_time,
        "wall_time": report.wall_time,
        "memory": report.memory,
        "pids": report.pids,
        "messages": report.messages.decode(errors="replace"),
    }


def _conclude(reports: list[Report], file: TextIO) -> int:
    skipped = [report for report in reports if report.verdict is Verdict.SKIPPED]
    known = [report for report in reports if report.submission.expected is not None and report not in skipped]
    wrong = [report for report in known if not report.is_expected]
    reasons = ", ".join(sorted({report.reason for report in skipped}))
    tail = f", {len(skipped)} skipped: {reasons}" if skipped else ""
    print(f"{len(reports) - len(skipped)} judged, {len(known) - len(wrong)} of {len(known)} verdicts as expected{tail}", file=file)
    return 1 if wrong else 77 if skipped else 0


if __name__ == "__main__":
    raise SystemExit(main())
