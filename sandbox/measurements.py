"""What repeated runs have shown: `Measurement` of one program, `Comparison` of several that took turns."""

from __future__ import annotations

import os
import shlex
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

from attrs import asdict, field, fields, frozen

from sandbox._tables import Target, opened, to_frame, write_csv
from sandbox.errors import CommandError, UsageError
from sandbox.estimates import Estimate
from sandbox.process import Result, Status

__all__ = ["Comparison", "Measurement", "Ratio"]

_NOT_COLUMNS: Final = frozenset(("argv", "stdout", "stderr", "stdout_truncated", "stderr_truncated"))
_FIELDS: Final = tuple(each.name for each in fields(Result) if each.name not in _NOT_COLUMNS)
COLUMNS: Final = ("name", "round", "ok", *_FIELDS)
_WIDE: Final = 0.1  # a distance of the quartiles, as a share of the median, above which a spread is worth a warning
_FAR: Final = 10  # robust standard deviations (1.4826 MAD) from the median, from which on a run is an outlier
_SHARE: Final = 0.02  # ... and at least this share of the median
_HYPERFINE: Final = (("mean", "mean"), ("stddev", "stdev"), ("median", "median"), ("min", "min"), ("max", "max"))  # its JSON's words, ours


def name_of(argv: Iterable[bytes]) -> str:
    """A program's words, as a shell would take them."""
    return shlex.join(os.fsdecode(word) for word in argv)


@frozen
class Measurement:
    """The runs of one program, in order; *succeeded* says of each whether it counts.

    Figures are of the runs that succeeded, `failures` are the others. *warmup* runs before them are not here. *fresh*: each had a container of
    its own. *began*: seconds since the epoch. Runs keep their output if it was captured.
    """

    name: str
    runs: tuple[Result, ...]
    succeeded: tuple[bool, ...]
    warmup: int
    fresh: bool
    confidence: float
    began: float
    host_warnings: tuple[str, ...] = ()
    _known: dict[str, Estimate | None] = field(factory=dict[str, "Estimate | None"], init=False, eq=False, repr=False)

    @property
    def counted(self) -> tuple[Result, ...]:
        """The runs that succeeded."""
        return tuple(run for run, ok in zip(self.runs, self.succeeded, strict=True) if ok)

    @property
    def failures(self) -> tuple[Result, ...]:
        """The runs that did not."""
        return tuple(run for run, ok in zip(self.runs, self.succeeded, strict=True) if not ok)

    def estimate(self, figure: str = "wall_time") -> Estimate | None:
        """What the runs say of *figure*, the name of a number in `Result`; None: this host does not tell it.

        Raises: UsageError: there is no such number. CommandError: no run succeeded.
        """
        if figure not in self._known:
            self._known[figure] = self._estimate(figure)
        return self._known[figure]

    def _estimate(self, figure: str) -> Estimate | None:
        if figure not in _FIELDS:
            raise UsageError(f"estimate: {figure!r} is no figure of a run; there are such as 'wall_time', 'cpu_time', 'memory_peak'")
        counted = self.counted
        if not counted:
            raise CommandError(f"{self.name}: none of {len(self.runs)} runs succeeded: {describe_failures(self.failures)}", self.failures[0])
        values = [getattr(run, figure) for run in counted]
        if None in values:
            return None
        if not all(isinstance(value, (int, float)) for value in values):
            raise UsageError(f"estimate: {figure!r} is not a number")
        return Estimate.of(values, confidence=self.confidence)

    @property
    def wall_time(self) -> Estimate:
        """Seconds, from its start to its end."""
        return self._certain("wall_time")

    @property
    def cpu_time(self) -> Estimate:
        """Seconds of all that it started."""
        return self._certain("cpu_time")

    @property
    def memory_peak(self) -> Estimate | None:
        """Bytes; None: this host does not tell."""
        return self.estimate("memory_peak")

    def _certain(self, figure: str) -> Estimate:
        found = self.estimate(figure)
        if found is None:
            raise AssertionError(f"{figure} is known of every run")
        return found

    @property
    def warnings(self) -> tuple[str, ...]:
        """Why the figures may be worth less than they look, a sentence each: the host's noise, failures, a wide spread, outliers."""
        return (*self.host_warnings, *self.own_warnings)

    @property
    def own_warnings(self) -> tuple[str, ...]:
        """Those of `warnings` that are about these runs, not about the host."""
        found: list[str] = []
        if failures := self.failures:
            found.append(f"{len(failures)} of {len(self.runs)} runs failed, and are in no figure: {describe_failures(failures)}")
        for figure, words in (("wall_time", "wall time"), ("cpu_time", "CPU time")) if self.counted else ():
            estimate = self._certain(figure)
            if estimate.spread is not None and estimate.spread > _WIDE:
                found.append(f"{words} spreads: half of the runs lie in {estimate.spread:.0%} of the median; run more often, on a quieter host")
        if self.counted:
            found += outliers([run.wall_time for run in self.counted], self._certain("wall_time"), warmup=self.warmup)
            if self.wall_time.confidence is None:
                found.append(f"{len(self.counted)} runs are too few for an interval with {self.confidence:.0%} confidence")
        return tuple(found)

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the columns of `rows`: name, round (from 0 on), ok, and the figures of `Result`."""
        return COLUMNS

    @property
    def rows(self) -> tuple[tuple[object, ...], ...]:
        """A row for each run, failed ones too."""
        pairs = enumerate(zip(self.runs, self.succeeded, strict=True))
        return tuple((self.name, number, ok, *(plain(getattr(run, name)) for name in _FIELDS)) for number, (run, ok) in pairs)

    def to_csv(self, target: Target) -> None:
        """Write a head line, and a line for each run, to a path or a text file; what is not known is empty."""
        write_csv(target, self.columns, self.rows)

    def to_pandas(self) -> Any:  # noqa: ANN401 - a pandas.DataFrame
        """Give a pandas.DataFrame of `rows`. Raises: UnsupportedError: pandas is not installed."""
        return to_frame(self.columns, self.rows)

    def to_json(self, target: Target) -> None:
        """Write everything as JSON, in hyperfine's words where it has one; see `Comparison.to_json`."""
        Comparison((self,)).to_json(target)

    def as_dict(self) -> dict[str, object]:
        """What `to_json` writes of this program."""
        found: dict[str, object] = {"command": self.name, "warmup": self.warmup, "fresh": self.fresh, "began": self.began}
        found |= {"failures": len(self.failures), "warnings": list(self.warnings), "estimates": {}}
        if self.counted:
            wall = self._certain("wall_time")
            found |= {theirs: getattr(wall, ours) for theirs, ours in _HYPERFINE}
            found |= {name: self._certain(f"{name}_time").mean for name in ("user", "system")}
            names = ("wall_time", "cpu_time", "user_time", "system_time", "memory_peak", "max_rss", "pids_peak")
            found["estimates"] = {name: None if (known := self.estimate(name)) is None else asdict(known) for name in names}
        found["times"] = [run.wall_time for run in self.counted]
        found["exit_codes"] = [run.exit_code for run in self.runs]
        found["runs"] = [dict(zip(self.columns[1:], row[1:], strict=True)) for row in self.rows]
        return found


def plain(value: object) -> object:
    """A value for a cell."""
    if isinstance(value, Status):
        return value.value
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def describe_failures(failures: Sequence[Result]) -> str:
    """How they ended, the most frequent first."""
    kinds = Counter(_ending(run) for run in failures)
    return ", ".join(f"{words} ({count} times)" if count > 1 else words for words, count in kinds.most_common())


def _ending(run: Result) -> str:
    if run.status is Status.EXITED:
        return f"exit code {run.exit_code}"
    return f"signal {run.signal}" if run.status is Status.SIGNALED else run.status.value


def outliers(values: Sequence[float], estimate: Estimate, *, warmup: int) -> list[str]:
    """Complain of values that are far from all others."""
    far = max(_FAR * 1.4826 * estimate.mad, _SHARE * estimate.median)
    found = [number for number, value in enumerate(values) if abs(value - estimate.median) > far]
    if not found:
        return []
    if found == [0] and values[0] > estimate.median:
        return [f"the first run took longer than all others; more than {warmup} warm-up runs may help"]
    return [f"{len(found)} of {len(values)} runs are far from the others; other work on the host may have disturbed them"]


class Ratio(NamedTuple):
    """How many times as much *name* takes as *reference*, by the rounds in which both succeeded.

    *estimate* is of the ratios within each round: its median, and the bounds of that. None: there was no such round, or the host does not tell.
    """

    name: str
    reference: str
    figure: str
    estimate: Estimate | None


@frozen
class Comparison:
    """Programs that were measured in turns, the reference first."""

    measurements: tuple[Measurement, ...]

    def __getitem__(self, name: str) -> Measurement:
        """The measurement of that name. Raises: UsageError: there is none."""
        for each in self.measurements:
            if each.name == name:
                return each
        raise UsageError(f"no program {name!r} was measured; there are {', '.join(repr(each.name) for each in self.measurements)}")

    def ratio(self, name: str, reference: str | None = None, *, figure: str = "wall_time") -> Ratio:
        """Compare *name* with *reference* (None: the first program), round by round."""
        one, other = self[name], self.measurements[0] if reference is None else self[reference]
        if figure not in _FIELDS:
            raise UsageError(f"ratio: {figure!r} is no figure of a run; there are such as 'wall_time', 'cpu_time', 'memory_peak'")
        rounds = zip(one.runs, one.succeeded, other.runs, other.succeeded, strict=True)
        pairs = [(getattr(a, figure), getattr(b, figure)) for a, a_ok, b, b_ok in rounds if a_ok and b_ok]
        is_known = bool(pairs) and all(a is not None and b for a, b in pairs)  # nothing can be said against 0
        estimate = Estimate.of((a / b for a, b in pairs), confidence=one.confidence) if is_known else None
        return Ratio(one.name, other.name, figure, estimate)

    @property
    def warnings(self) -> tuple[str, ...]:
        """The host's, and each program's own with its name before it."""
        several = len(self.measurements) > 1
        own = [f"{each.name}: {line}" if several else line for each in self.measurements for line in each.own_warnings]
        return (*self.measurements[0].host_warnings, *own)

    @property
    def columns(self) -> tuple[str, ...]:
        """As `Measurement.columns`."""
        return COLUMNS

    @property
    def rows(self) -> tuple[tuple[object, ...], ...]:
        """The rows of all, one program after the other."""
        return tuple(row for each in self.measurements for row in each.rows)

    def to_csv(self, target: Target) -> None:
        """As `Measurement.to_csv`."""
        write_csv(target, self.columns, self.rows)

    def to_pandas(self) -> Any:  # noqa: ANN401 - a pandas.DataFrame
        """As `Measurement.to_pandas`."""
        return to_frame(self.columns, self.rows)

    def to_json(self, target: Target) -> None:
        """Write ``{"results": [...], "ratios": [...]}``; ``results`` is what hyperfine's scripts read (times are wall times, in seconds)."""
        import json

        ratios: list[dict[str, object]] = []
        for each in self.measurements[1:]:
            for figure in ("wall_time", "cpu_time", "memory_peak"):
                found = self.ratio(each.name, figure=figure)
                ratios.append({**found._asdict(), "estimate": None if found.estimate is None else asdict(found.estimate)})
        with opened(target) as file:
            json.dump({"results": [each.as_dict() for each in self.measurements], "ratios": ratios}, file, indent=1)
            file.write("\n")
