"""What is said of runs, of runs that are made up here: figures, failures, warnings, tables."""

from __future__ import annotations

import csv
import io
import json
import sys

import pytest
from attrs import evolve

from sandbox import CommandError, Comparison, Measurement, Result, Status, UnsupportedError, UsageError
from sandbox.measurements import name_of
from sandbox.measuring import named
from tests.support import known, needs

pytestmark = pytest.mark.unprivileged

RUN = Result(
    argv=("true",), status=Status.EXITED, exit_code=0, signal=None, stdout=None, stderr=None, stdout_truncated=False, stderr_truncated=False,
    cpu_time=0.5, user_time=0.4, system_time=0.1, wall_time=1.0, memory_peak=1000, max_rss=2000, pids_peak=1, oom_killed=False,
)  # fmt: skip
FAILED = evolve(RUN, exit_code=3, wall_time=99.0)
TIMES = [1.0, 1.01, 1.02, 1.03, 1.04, 1.05, 1.06, 1.07, 1.08, 1.09]


def measured(*runs: Result, name: str = "it", **more: object) -> Measurement:
    succeeded = tuple(run.ok for run in runs)
    return Measurement(name=name, runs=runs, succeeded=succeeded, warmup=1, fresh=False, confidence=0.95, began=0.0, **more)


def at(*times: float) -> list[Result]:
    return [evolve(RUN, wall_time=time) for time in times]


def test_failures_are_counted_and_in_no_figure():
    m = measured(*at(*TIMES), FAILED, FAILED, evolve(RUN, status=Status.TIMEOUT, exit_code=None))
    assert (m.wall_time.count, m.wall_time.max) == (10, 1.09)
    assert len(m.failures) == 3
    assert m.own_warnings == ("3 of 13 runs failed, and are in no figure: exit code 3 (2 times), timeout",)


def test_without_a_success_there_is_no_figure():
    m = measured(FAILED, evolve(RUN, status=Status.SIGNALED, exit_code=None, signal=11))
    with pytest.raises(CommandError, match="none of 2 runs succeeded: exit code 3, signal 11") as raised:
        m.estimate("cpu_time")
    assert raised.value.result is FAILED
    assert "failed" in m.warnings[0]


def test_what_the_host_does_not_tell_is_none_and_not_0():
    m = measured(*at(*TIMES[:5]), evolve(RUN, memory_peak=None))
    assert m.memory_peak is None
    assert known(m.estimate("max_rss")).median == 2000


@pytest.mark.parametrize("figure", ["walltime", "stdout", "status", "argv"])
def test_what_is_no_figure_is_refused(figure: str):
    with pytest.raises(UsageError, match="estimate"):
        measured(RUN).estimate(figure)


def test_a_wide_spread_and_outliers_are_told():
    assert measured(*at(*TIMES)).own_warnings == ()
    (line,) = measured(*at(1, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6)).own_warnings
    assert line.startswith("wall time spreads: half of the runs lie in 23%")
    (line,) = measured(*at(*TIMES, 9.0)).own_warnings
    assert line.startswith("1 of 11 runs are far")
    (line,) = measured(*at(9.0, *TIMES)).own_warnings
    assert line.startswith("the first run took longer")
    (line,) = measured(*at(1.0, 1.0, 1.0)).own_warnings
    assert line == "3 runs are too few for an interval with 95% confidence"


def test_hosts_noise_comes_first_and_is_said_once():
    a, b = (measured(*at(1.0, 1.0), name=name, host_warnings=("noise",)) for name in "ab")
    few = "2 runs are too few for an interval with 95% confidence"
    assert a.warnings == ("noise", few)
    assert Comparison((a, b)).warnings == ("noise", f"a: {few}", f"b: {few}")


def test_a_ratio_is_taken_within_each_round():
    # The host slows down by 10 % each round: the medians' ratio knows nothing of that, the rounds' ratio is 2 all the same.
    slow = [1.1**number for number in range(8)]
    c = Comparison((measured(*at(*slow), name="a"), measured(*at(*(2 * time for time in slow)), name="b")))
    found = c.ratio("b")
    assert (found.name, found.reference, found.figure) == ("b", "a", "wall_time")
    assert (known(found.estimate).low, known(found.estimate).high) == (pytest.approx(2), pytest.approx(2))
    assert known(c.ratio("a", "b").estimate).median == pytest.approx(0.5)


def test_a_round_with_a_failure_has_no_ratio():
    a, b = measured(*at(1, 1, 1), FAILED, name="a"), measured(FAILED, *at(3, 3, 3), name="b")
    assert known(Comparison((a, b)).ratio("b").estimate).count == 2
    never = Comparison((measured(RUN, FAILED, name="a"), measured(FAILED, RUN, name="b"))).ratio("b")
    assert never.estimate is None


def test_against_nothing_or_what_is_not_known_there_is_no_ratio():
    none = Comparison((measured(evolve(RUN, memory_peak=None), name="a"), measured(RUN, name="b")))
    assert none.ratio("b", figure="memory_peak").estimate is None
    zero = Comparison((measured(evolve(RUN, system_time=0.0), name="a"), measured(RUN, name="b")))
    assert zero.ratio("b", figure="system_time").estimate is None
    assert known(zero.ratio("a", "b", figure="system_time").estimate).median == 0
    with pytest.raises(UsageError, match="no program 'c'"):
        zero.ratio("c")
    with pytest.raises(UsageError, match="no figure"):
        zero.ratio("a", figure="stdout")


def test_csv_has_a_row_for_each_run():
    file = io.StringIO()
    Comparison((measured(RUN, FAILED, name="a, b"), measured(evolve(RUN, memory_peak=None)))).to_csv(file)
    rows = list(csv.DictReader(io.StringIO(file.getvalue())))
    assert [(row["name"], row["round"], row["ok"], row["status"], row["exit_code"]) for row in rows] == [
        ("a, b", "0", "True", "exited", "0"), ("a, b", "1", "False", "exited", "3"), ("it", "0", "True", "exited", "0"),
    ]  # fmt: skip
    assert [row["memory_peak"] for row in rows] == ["1000", "1000", ""]
    assert {"cpu_time", "wall_time", "max_rss", "signal"} <= rows[0].keys()
    assert not {"stdout", "argv"} & rows[0].keys()


def test_json_speaks_hyperfines_words(tmp_path):
    path = tmp_path / "figures.json"
    Comparison((measured(*at(*TIMES), FAILED, name="a"), measured(*[FAILED] * 11, name="b"))).to_json(path)
    everything = json.loads(path.read_text())
    first, second = everything["results"]
    assert (first["command"], first["min"], first["max"], first["times"]) == ("a", 1.0, 1.09, TIMES)
    assert (first["mean"], first["median"], first["user"], first["system"]) == (pytest.approx(1.045), pytest.approx(1.045), 0.4, 0.1)
    assert first["stddev"] == pytest.approx(0.0302765)
    assert (first["failures"], first["exit_codes"][-1], len(first["runs"])) == (1, 3, 11)
    assert first["estimates"]["memory_peak"]["median"] == 1000
    assert (second["times"], second["failures"], "mean" in second) == ([], 11, False)
    assert [ratio["estimate"] for ratio in everything["ratios"]] == [None, None, None]


def test_a_target_that_is_no_file_is_refused():
    with pytest.raises(UsageError, match="neither a path nor a text file"):
        measured(RUN).to_csv(5)


@needs("module:pandas")
def test_pandas_gets_a_row_for_each_run():
    frame = measured(RUN, evolve(RUN, memory_peak=None)).to_pandas()
    assert list(frame["wall_time"]) == [1.0, 1.0]
    assert (frame["memory_peak"].iloc[0], bool(frame["memory_peak"].isna().iloc[1])) == (1000, True)


def test_without_pandas_the_error_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UnsupportedError, match=r"pip install 'sandbox\[pandas\]'"):
        measured(RUN).to_pandas()


def test_programs_are_named_by_their_words():
    assert name_of((b"sh", b"-c", b"exit 1")) == "sh -c 'exit 1'"
    assert list(named([["true"], ["true"], ["false"]])) == ["true", "true (2)", "false"]
    assert named({"a": ["true"]}) == {"a": (b"true",)}
    for nothing in ([], {}):
        with pytest.raises(UsageError, match="programs"):
            named(nothing)
    with pytest.raises(UsageError, match="argv"):
        named(["true"])
