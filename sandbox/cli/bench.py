"""``sandbox bench``: programs run again and again, in turns; what they take, with its uncertainty."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import IO, Final, Self

from attrs import define

from sandbox import CommandError, Comparison, Estimate, Measurement, SandboxError, UnsupportedError, UsageError, compare
from sandbox.cli import options
from sandbox.cli.groups import with_groups
from sandbox.cli.outcome import complain, one_line
from sandbox.cli.run import OWN_FAILURE, WRONG_USE, code_of_error

FAILED: Final = 1
_MIB: Final = 1 << 20
_BAR: Final = 30
_REDRAW_S: Final = 0.1
_UNITS: Final = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))
_FIGURES: Final = (
    ("wall_time", "wall time"),
    ("cpu_time", "CPU time"),
    ("user_time", "  user"),
    ("system_time", "  system"),
    ("memory_peak", "memory peak"),
)


def main(arguments: Sequence[str]) -> int:
    """Measure what the command line says; return the exit code."""
    from sandbox.cli.arguments import parse_bench
    from sandbox.cli.parser import WrongUseError

    try:
        request = options.to_bench_request(parse_bench(arguments), os.environ)
    except WrongUseError as error:
        return _complain(error, WRONG_USE, hint=" (see sandbox bench --help)")
    except SandboxError as error:
        return _complain(error, OWN_FAILURE)
    except SystemExit:  # --help
        return 0
    try:
        found = _measure_and_export(request)
    except CommandError as error:
        return _complain(error, FAILED, hint=" (--ignore-failure counts failures and goes on)")
    except SandboxError as error:
        return _complain(error, code_of_error(error))
    except OSError as error:
        return _complain(error, OWN_FAILURE)
    return _report(found)


def _complain(error: Exception, code: int, *, hint: str = "") -> int:
    complain("sandbox bench", f"{error}{hint}")
    return code


def _measure_and_export(request: options.BenchRequest) -> Comparison:
    """The files are opened before anything is started: a bad path costs no run."""
    with ExitStack() as stack:
        json = _opened("--export-json", request.json, stack)
        csv = _opened("--export-csv", request.csv, stack)
        found = _measure(request)
        if json is not None:
            found.to_json(json)
        if csv is not None:
            found.to_csv(csv)
        return found


def _opened(option: str, path: str | None, stack: ExitStack) -> IO[str] | None:
    if path is None:
        return None
    try:
        return stack.enter_context(open(path, "w", encoding="utf-8", newline=""))
    except OSError as error:
        raise UsageError(f"{option}: {path}: {error.strerror}") from None


def _measure(request: options.BenchRequest) -> Comparison:
    """With control groups where they can be had; else the warnings say what is not known."""
    with ProgressLine() as progress:
        try:
            return with_groups(lambda: compare(request.programs, progress=progress.show, accounting=True, **request.arguments))
        except UnsupportedError as error:
            if not error.feature.startswith("cgroup"):
                raise
            return compare(request.programs, progress=progress.show, **request.arguments)


@define(eq=False)
class ProgressLine:
    """How far it is, in one line on standard error, if that is a terminal; removed at the end."""

    _is_shown: bool = False
    _begin: float = 0.0
    _drawn: float = 0.0

    def __enter__(self) -> Self:
        self._is_shown = sys.stderr is not None and sys.stderr.isatty()
        self._begin = time.monotonic()
        return self

    def __exit__(self, *exc: object) -> None:
        self._write("\r\033[K")

    def show(self, done: int, total: int) -> None:
        """Draw it anew, at most ten times a second."""
        now = time.monotonic()
        if now - self._drawn >= _REDRAW_S:
            self._drawn = now
            self._write(f"\r\033[K{bar(done, total, now - self._begin)}")

    def _write(self, text: str) -> None:
        if self._is_shown:
            sys.stderr.write(text)
            sys.stderr.flush()


def bar(done: int, total: int, passed_s: float) -> str:
    """A bar, the runs done, and a guess at the time that is left."""
    full = _BAR * done // total
    left = passed_s / done * (total - done) if done else 0.0
    return f"[{'#' * full}{'.' * (_BAR - full)}] {done}/{total} runs, about {left:.0f} s left"


def _report(found: Comparison) -> int:
    first = found.measurements[0]
    for each in found.measurements:
        print(f"{one_line(each.name)}\n{describe(each)}")
    for each in found.measurements[1:]:
        if first.counted and each.counted:
            print(describe_ratio(found, each.name))
    for line in found.warnings:
        print(f"sandbox bench: warning: {one_line(line)}", file=sys.stderr)
    return 0 if all(each.counted for each in found.measurements) else FAILED


def describe(measurement: Measurement) -> str:
    """The figures of one program, a line each: median, MAD, the interval of the median, and the extremes."""
    if not measurement.counted:
        return f"  none of {len(measurement.runs)} runs succeeded"
    lines: list[str] = []
    for figure, words in _FIGURES:
        estimate = measurement.estimate(figure)
        text = "not known here" if estimate is None else in_words(estimate, *_unit(figure, estimate.max))
        lines.append(f"  {words:12s} {text}")
    runs = f"{len(measurement.counted)} runs" if not measurement.failures else f"{len(measurement.counted)} of {len(measurement.runs)} runs"
    return "\n".join([*lines, f"  {runs}, after {measurement.warmup} to warm up"])


def _unit(figure: str, size: float) -> tuple[float, str]:
    if figure == "memory_peak":
        return _MIB, "MiB"
    return next(((value, name) for value, name in _UNITS if size >= value), _UNITS[-1])


def in_words(estimate: Estimate, unit: float, name: str) -> str:
    """``12.3 ms ± 0.1   median within 12.2 ... 12.5 (96 %)   all within 12.0 ... 14.8``."""
    text = f"{estimate.median / unit:9.3f} {name:3s} ± {estimate.mad / unit:.3f}"
    if estimate.low is not None and estimate.high is not None and estimate.confidence is not None:
        text += f"   median within {estimate.low / unit:.3f} ... {estimate.high / unit:.3f} ({estimate.confidence:.1%})"
    return f"{text}   all within {estimate.min / unit:.3f} ... {estimate.max / unit:.3f}"


def describe_ratio(found: Comparison, name: str) -> str:
    """How many times as much *name* takes as the first program."""
    parts: list[str] = []
    for figure, words in _FIGURES:
        estimate = found.ratio(name, figure=figure).estimate
        if words.startswith(" ") or estimate is None:
            continue
        part = f"{estimate.median:.3f} times the {words}"
        if estimate.low is not None and estimate.high is not None:
            part += f" ({estimate.low:.3f} ... {estimate.high:.3f})"
        parts.append(part)
    told = ", ".join(parts) or "nothing comparable: the two never succeeded in the same round"
    return f"{one_line(name)} / {one_line(found.measurements[0].name)}: {told}"
