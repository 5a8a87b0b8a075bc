"""What must hold: each promise of speed as a line of data, and what became of it."""

from __future__ import annotations

from typing import Any

from attrs import frozen

from benchmarks.report import Report

HOT_AND_IDLE = ("hot", "idle")


@frozen
class Ratio:
    """The median of *case* is at most *limit* times that of *reference*, in each of *modes*."""

    promise: str
    group: str
    case: str
    reference: str
    limit: float
    modes: tuple[str, ...] = HOT_AND_IDLE


@frozen
class AtMost:
    """The figure *name* of *group* is at most *limit*."""

    promise: str
    group: str
    name: str
    limit: float
    unit: str


@frozen
class AtLeast:
    """The figure *name* of *group* is at least *limit*."""

    promise: str
    group: str
    name: str
    limit: float
    unit: str


BARS: tuple[Ratio | AtMost | AtLeast, ...] = (
    Ratio("exec, plain", "exec", "sandbox", "subprocess", 1.2),
    Ratio("exec, plain, captured", "exec", "sandbox, captured", "subprocess, captured", 1.2),
    Ratio("exec with limits and accounting", "exec", "sandbox, limits", "subprocess", 2.0),
    Ratio("exec with limits and accounting, captured", "exec", "sandbox, limits, captured", "subprocess, captured", 2.0),
    Ratio("create + run + destroy, everything on", "run", "sandbox", "bwrap", 0.5),
    Ratio("create + run + destroy, everything on", "run", "sandbox", "runc", 0.1),
    Ratio("create + run + destroy, everything on", "run", "sandbox", "floor", 2.0),
    Ratio("exec in a pool, with reset", "pool", "pool", "live", 1.5),
    Ratio("exec in a pool, with reset, limits and accounting", "pool", "pool, limits", "live, limits", 1.5),
    AtLeast("judged runs a second, 2 workers", "pool", "static program, 2 workers", 1000.0, "runs/s"),
    AtMost("the 1,000th container starts as fast as the first", "many", "last 50 / first 50", 1.3, "times"),
    AtMost("own memory of a container", "many", "PSS of init, median", 250.0, "kB"),
    AtMost("import over a bare interpreter", "import", "import sandbox", 45.0, "ms"),
    AtMost("import over a bare interpreter, with the names", "import", "from sandbox import Container, run", 45.0, "ms"),
    AtMost("wall deadline overshot, median", "deadline", "wall, median", 5.0, "ms"),
    AtMost("wall deadline overshot, worst", "deadline", "wall, worst", 20.0, "ms"),
    AtMost("CPU deadline overshot, median", "deadline", "CPU, median", 5.0, "ms"),
    AtMost("CPU deadline overshot, worst", "deadline", "CPU, worst", 20.0, "ms"),
    AtMost("left behind by kill -9 of the embedding process", "killed", "left behind", 0.0, "things"),
    AtMost("left behind by the benchmarks themselves", "leftovers", "left behind", 0.0, "things"),
)


def judge(report: Report, *, ratios_only: bool = False) -> list[dict[str, Any]]:
    """One verdict for each bar and mode: PASS, FAIL, or NOT MEASURED when a side of it did not take part."""
    chosen = [bar for bar in BARS if isinstance(bar, Ratio) or not ratios_only]
    return [verdict for bar in chosen for verdict in (_ratio(report, bar) if isinstance(bar, Ratio) else _at_most(report, bar))]


def _ratio(report: Report, bar: Ratio) -> list[dict[str, Any]]:
    return [
        _verdict(
            f"{bar.promise}, {mode}: {bar.case} / {bar.reference}",
            report.find_ratio(bar.group, mode, bar.case, bar.reference),
            bar.limit,
            "times",
        )
        for mode in bar.modes
    ]


def _at_most(report: Report, bar: AtMost | AtLeast) -> list[dict[str, Any]]:
    value = report.find_figure(bar.group, bar.name)
    return [_verdict(bar.promise, value, bar.limit, bar.unit, at_least=isinstance(bar, AtLeast))]


def _verdict(text: str, value: float | None, limit: float, unit: str, *, at_least: bool = False) -> dict[str, Any]:
    word = "NOT MEASURED" if value is None else "PASS" if (value >= limit if at_least else value <= limit) else "FAIL"
    return {"verdict": word, "promise": text, "value": value, "limit": limit, "unit": unit, "bound": "at least" if at_least else "at most"}


def as_text(verdicts: list[dict[str, Any]]) -> str:
    """A line for each."""
    return "\n".join(
        f"{v['verdict']:12s} {v['promise']}: " + ("-" if v["value"] is None else f"{v['value']:.2f}") + f" ({v['bound']} {v['limit']:g} {v['unit']})"
        for v in verdicts
    )
