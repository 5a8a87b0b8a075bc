"""What the options of `sandbox bench` mean, and the words of its report, without starting anything."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

import sandbox
from sandbox import Container, Estimate, UsageError
from sandbox.cli import bench, options
from sandbox.cli.arguments import build_bench, parse_bench
from sandbox.cli.parser import WrongUseError

pytestmark = pytest.mark.unprivileged


def request(*words: str) -> options.BenchRequest:
    return options.to_bench_request(parse_bench([*words, "--", "true", "x y"]), {})


def arguments(*words: str) -> dict[str, Any]:
    return dict(request(*words).arguments)


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        (["--repeat", "5"], "repeat", 5),
        (["--runs", "5"], "repeat", 5),
        (["-r", "5"], "repeat", 5),
        (["--warmup", "0"], "warmup", 0),
        (["--setup", "sh -c 'a b'"], "setup", ("sh", "-c", "a b")),
        (["--prepare", "sync"], "prepare", ("sync",)),
        (["--fresh"], "fresh", True),
        (["--input", "file"], "stdin", "file"),
        (["--show-output"], "stdout", 1),
        (["--show-output"], "stderr", 2),
        (["-i"], "check", False),
        (["--exit-codes", "0, 2"], "exit_codes", (0, 2)),
        (["--confidence", "0.99"], "confidence", 0.99),
        (["--seed", "7"], "seed", 7),
        (["--memory", "64M"], "memory", "64M"),
        (["--timeout", "2s"], "timeout", 2.0),
        (["--cpuset-cpus", "0"], "cpuset", "0"),
        (["--workdir", "/tmp"], "cwd", "/tmp"),
    ],
)
def test_each_option_reaches_the_measurement(words: list[str], name: str, value: object):
    assert arguments(*words)[name] == value
    assert arguments().get(name) != value, "not the default, which would prove nothing"


def test_without_options_the_library_decides_and_a_failure_ends_it():
    mine = arguments()
    assert not {"repeat", "warmup", "seed", "confidence", "exit_codes", "stdout"} & mine.keys()
    assert (mine["check"], mine["fresh"]) == (True, False)
    known = {*inspect.signature(sandbox.compare).parameters, *inspect.signature(Container).parameters, *inspect.signature(Container.exec).parameters}
    assert mine.keys() <= known


def test_programs_have_names():
    assert request().programs == {"true 'x y'": ("true", "x y")}
    assert request("--compare", "false 1", "-n", "mine").programs == {"mine": ("true", "x y"), "false 1": ("false", "1")}
    assert (request("--export-json", "j", "--export-csv", "c").json, request("--export-json", "j", "--export-csv", "c").csv) == ("j", "c")


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--repeat", "many"], "--repeat"),
        (["--warmup", "1.5"], "--warmup"),
        (["--confidence", "much"], "--confidence"),
        (["--exit-codes", "0,x"], "--exit-codes"),
        (["--compare", "'"], "--compare"),
        (["--compare", ""], "--compare"),
        (["--prepare", " "], "--prepare"),
        (["--compare", "true 'x y'"], "--command-name"),
        (["-n", "a", "-n", "b"], "--command-name"),
    ],
)
def test_what_makes_no_sense_is_refused_by_its_name(words: list[str], complaint: str):
    with pytest.raises(UsageError, match=complaint):
        request(*words)


@pytest.mark.parametrize("words", [["--tty"], ["--output-limit", "1K"], ["--json", "-"], ["--no-such-option"], ["--repeat"]])
def test_options_of_run_that_mean_nothing_here_are_unknown(words: list[str]):
    with pytest.raises(WrongUseError):
        request(*words)
    with pytest.raises(WrongUseError, match="no program"):
        parse_bench([])


def test_every_option_has_help():
    assert all(action.help for action in build_bench()._actions)


def test_figures_in_words():
    e = Estimate.of([0.0101, 0.0102, 0.0103, 0.0104, 0.0105, 0.0106])
    assert bench.in_words(e, 1e-3, "ms") == "   10.350 ms  ± 0.150   median within 10.100 ... 10.600 (96.9%)   all within 10.100 ... 10.600"
    assert bench.in_words(Estimate.of([3.0]), 1.0, "s") == "    3.000 s   ± 0.000   all within 3.000 ... 3.000"


def test_the_progress_line():
    assert bench.bar(0, 30, 0.0) == f"[{'.' * 30}] 0/30 runs, about 0 s left"
    assert bench.bar(10, 30, 5.0) == f"[{'#' * 10}{'.' * 20}] 10/30 runs, about 10 s left"
