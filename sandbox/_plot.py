"""A monitor's plot: a panel for each kind of figure that is known, all over the same time."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, Final

from attrs import frozen

from sandbox._types import StrPath
from sandbox.cg.series import Sample
from sandbox.errors import UnsupportedError, UsageError

MIB: Final = 1 << 20
Curve = tuple[list[float], list[float]]


@frozen
class Line:
    """One curve: a field of `Sample`, as it is or as it grows per second, divided by *unit*."""

    field: str
    label: str
    unit: float = 1.0
    per_second: bool = False


PANELS: Final[tuple[tuple[str, tuple[Line, ...]], ...]] = (
    ("memory (MiB)", (Line("memory", "all", MIB), Line("anon", "anonymous", MIB), Line("file", "page cache, tmpfs", MIB))),
    (
        "CPUs used",
        (
            Line("cpu_time", "all", 1, per_second=True),
            Line("user_time", "user", 1, per_second=True),
            Line("system_time", "system", 1, per_second=True),
            Line("throttled_time", "throttled", 1, per_second=True),
        ),
    ),
    ("processes, threads", (Line("pids", "at once"),)),
    ("I/O (MiB/s)", (Line("read_bytes", "read", MIB, per_second=True), Line("written_bytes", "written", MIB, per_second=True))),
    (
        "waiting (% of time)",
        (
            Line("cpu_pressure", "for a CPU", 0.01, per_second=True),
            Line("memory_pressure", "for memory", 0.01, per_second=True),
            Line("io_pressure", "for I/O", 0.01, per_second=True),
        ),
    ),
)


def curve(rows: Sequence[Sample], line: Line) -> Curve:
    """Times and values of *line*, without what is not known."""
    known = [(row.time, value) for row in rows if (value := getattr(row, line.field)) is not None]
    if not line.per_second:
        return [time for time, _ in known], [value / line.unit for _, value in known]
    # What grew between two samples belongs to the middle between them.
    steps = [((a + b) / 2, (after - before) / (b - a) / line.unit) for (a, before), (b, after) in pairwise(known)]
    return [time for time, _ in steps], [value for _, value in steps]


def panels(rows: Sequence[Sample]) -> list[tuple[str, list[tuple[str, Curve]]]]:
    """What there is to draw: panels, each with its labelled curves, without those of which nothing is known."""
    every = [(name, [(line.label, curve(rows, line)) for line in lines]) for name, lines in PANELS]
    known = [(name, [(label, found) for label, found in curves if found[0]]) for name, curves in every]
    return [(name, curves) for name, curves in known if curves]


def draw(rows: Sequence[Sample], target: StrPath, *, title: str) -> None:
    """Draw *rows* into the file *target*.

    Raises: UnsupportedError, UsageError: see `Monitor.plot`.
    """
    found = panels(rows) if len(rows) > 1 else []
    if not found:
        raise UsageError(f"plot: {len(rows)} samples are not enough; let the program run for more than one interval")
    # Not pyplot: it has a global state, and may look for a screen.
    figure = _figure_class()(figsize=(8, 0.6 + 1.8 * len(found)), layout="constrained")
    axes = figure.subplots(len(found), 1, sharex=True, squeeze=False)[:, 0]
    for axis, (name, curves) in zip(axes, found, strict=True):
        for label, (times, values) in curves:
            axis.plot(times, values, label=label, linewidth=1)
        axis.set_ylabel(name)
        axis.set_ylim(bottom=0)
        axis.legend(loc="upper left", fontsize="small")
        axis.grid(visible=True, alpha=0.3)
    axes[-1].set_xlabel("seconds")
    if title:
        figure.suptitle(title)
    figure.savefig(os.fspath(target))


def _figure_class() -> Callable[..., Any]:  # matplotlib's types are not here for everybody
    try:
        found: Callable[..., Any] = importlib.import_module("matplotlib.figure").Figure
    except ImportError:
        raise UnsupportedError(
            "matplotlib is not installed", feature="matplotlib", remedy="pip install 'sandbox[plot]', or take the rows, or to_csv()"
        ) from None
    return found
