"""Repeated runs of real programs: what is measured, what is not, and the command line that does it."""

from __future__ import annotations

import contextlib
import csv
import fcntl
import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import sandbox
from sandbox import PIPE, CommandError, Container, Sample, Status, UnsupportedError, UsageError
from tests.support import known, needs, patience

pytestmark = [needs("userns", "program:python3"), pytest.mark.unprivileged]
ACCOUNTED = needs("cgroup:memory", "cgroup:pids", "cgroup:cpuacct")
COMMAND = [sys.executable, "-m", "sandbox", "bench"]
SPIN = "sum(range({}))"


def python(work: str) -> list[str]:
    return ["python3", "-c", work]  # the host's, which its view shows


# ---- The library ----


@ACCOUNTED
@pytest.mark.usefixtures("no_leftovers")
def test_times_and_memory_are_measured():
    m = sandbox.measure(python("a = bytearray(32 << 20)"), repeat=6, warmup=1)
    assert len(m.runs) == 6
    assert m.failures == ()
    assert m.cpu_time.median > 0
    assert 0 < known(m.wall_time.low) <= m.wall_time.median <= known(m.wall_time.high)
    assert 32 << 20 < known(m.memory_peak).median < 64 << 20


@ACCOUNTED
def test_programs_take_turns_and_the_ratio_is_that_of_their_work():
    c = sandbox.compare({"one": python(SPIN.format(10**6)), "four": python(SPIN.format(4 * 10**6))}, repeat=6, warmup=1)
    assert [each.name for each in c.measurements] == ["one", "four"]
    assert all(len(each.runs) == 6 for each in c.measurements)
    assert known(c.ratio("four", figure="cpu_time").estimate).median > 1.3
    assert known(c.ratio("one", "four", figure="cpu_time").estimate).median < 1 / 1.3


def test_runs_of_one_container_see_each_others_files_and_fresh_ones_do_not():
    append = ["sh", "-c", "echo x >>/tmp/file; wc -l </tmp/file"]
    for fresh, lines in ((False, [2, 3, 4]), (True, [1, 1, 1])):
        m = sandbox.measure(append, repeat=3, warmup=1, fresh=fresh, stdout=PIPE)
        assert [int(run.stdout) for run in m.runs] == lines


def test_setup_runs_once_and_prepare_before_each_run():
    show = ["sh", "-c", "cat /tmp/setup /tmp/prepare | tr -d '\\n'"]
    again = {"setup": ["sh", "-c", "echo s >>/tmp/setup"], "prepare": ["sh", "-c", "echo p >>/tmp/prepare"]}
    m = sandbox.measure(show, repeat=2, warmup=1, stdout=PIPE, **again)
    assert [run.stdout for run in m.runs] == [b"spp", b"sppp"]
    for step in again:
        with pytest.raises(CommandError):
            sandbox.measure(["true"], repeat=1, **{step: ["false"]})


def test_each_run_reads_the_input_from_its_beginning(tmp_path: Path):
    (tmp_path / "in").write_text("abc")
    m = sandbox.measure(["cat"], repeat=2, warmup=0, stdin=tmp_path / "in", stdout=PIPE)
    assert [run.stdout for run in m.runs] == [b"abc", b"abc"]
    m = sandbox.measure(["cat"], repeat=2, warmup=0, input=b"def", stdout=PIPE)
    assert [run.stdout for run in m.runs] == [b"def", b"def"]


def test_failures_are_counted_and_never_averaged():
    flaky = ["sh", "-c", "echo >>/tmp/n; [ $(wc -l </tmp/n) -ne 3 ] || { sleep 2; exit 7; }"]
    m = sandbox.measure(flaky, repeat=4, warmup=0)
    assert m.succeeded == (True, True, False, True)
    assert [run.exit_code for run in m.failures] == [7]
    assert (m.wall_time.count, m.wall_time.max < 2 <= m.failures[0].wall_time) == (3, True)
    assert any("1 of 4 runs failed" in line for line in m.warnings)
    with pytest.raises(CommandError) as raised:
        sandbox.measure(flaky, repeat=4, warmup=0, check=True)
    assert raised.value.result.exit_code == 7


def test_a_limit_that_was_met_is_a_failure():
    m = sandbox.measure(["sleep", "60"], repeat=1, warmup=0, timeout=0.05)
    assert m.failures[0].status is Status.TIMEOUT
    with pytest.raises(CommandError, match="none of 1 runs succeeded: timeout"):
        m.estimate()


def test_other_exit_codes_can_mean_success():
    m = sandbox.measure(["sh", "-c", "exit 1"], repeat=2, warmup=0, exit_codes=(1,))
    assert m.failures == ()
    with pytest.raises(CommandError, match="exited with code 0, which is not among"):
        sandbox.measure(["true"], repeat=1, warmup=0, exit_codes=(1,), check=True)


def test_failed_warm_ups_are_told():
    m = sandbox.measure(["sh", "-c", "rm /tmp/none || { touch /tmp/none; exit 1; }; touch /tmp/none"], repeat=2, warmup=1)
    assert m.failures == ()
    assert "1 warm-up runs failed" in m.warnings


def test_progress_is_told_after_each_run():
    told: list[tuple[int, int]] = []
    sandbox.compare([["true"], ["true"]], repeat=2, warmup=1, progress=lambda done, total: told.append((done, total)))
    assert told == [(number, 6) for number in range(1, 7)]


def test_the_order_of_turns_is_the_seeds(monkeypatch: pytest.MonkeyPatch):
    def order(seed: int) -> list[tuple[bytes, ...]]:
        seen: list[tuple[bytes, ...]] = []
        real = Container.exec

        def noting(self: Container, argv: tuple[bytes, ...], **options: Any) -> sandbox.Result:
            seen.append(argv)
            return real(self, argv, **options)

        with monkeypatch.context() as patch:
            patch.setattr(Container, "exec", noting)
            sandbox.compare({str(number): ["true", str(number)] for number in range(4)}, repeat=3, warmup=0, seed=seed, accounting=False)
        return seen

    first = order(1)
    assert first == order(1) != order(2)
    assert all(len(set(first[at : at + 4])) == 4 for at in (0, 4, 8)), "each has its turn in each round"


@pytest.mark.parametrize(
    "wrong",
    [
        {"repeat": 0}, {"repeat": 1.5}, {"warmup": -1}, {"confidence": 2}, {"exit_codes": (256,)}, {"exit_codes": 0}, {"check": 1}, {"fresh": "no"},
        {"prepare": "true"}, {"setup": []}, {"pass_fds": [3]}, {"stdin": 0}, {"no_such_option": 1}, {"memory": "lots"},
    ],
)  # fmt: skip
def test_wrong_arguments_are_refused(wrong: dict[str, object]):
    with pytest.raises(UsageError):
        sandbox.measure(["true"], **wrong)


def test_without_control_groups_the_warnings_say_what_is_missing(monkeypatch: pytest.MonkeyPatch):
    real = Container.exec

    def refusing(self: Container, argv: object, **options: object) -> sandbox.Result:
        if options["accounting"]:
            raise UnsupportedError("no", feature="cgroup", remedy="do")
        return real(self, argv, **options)

    monkeypatch.setattr(Container, "exec", refusing)
    m = sandbox.measure(["true"], repeat=2, warmup=0)
    assert any(line.startswith("no control group: ") for line in m.warnings)
    with pytest.raises(UnsupportedError):
        sandbox.measure(["true"], repeat=2, warmup=0, accounting=True)


# Here, for matplotlib keeps its fonts' files open, and numpy its threads, and the monitor's own tests count what is left.


@ACCOUNTED
@needs("module:pandas")
def test_a_monitors_rows_go_to_pandas():
    with Container(memory="64M") as c, c.monitor(0.01) as monitor:
        c.exec(["true"])
    frame = monitor.to_pandas()
    assert list(frame.columns) == list(Sample._fields)
    assert list(frame["cpu_time"]) == [row.cpu_time for row in monitor.rows]


@ACCOUNTED
@needs("module:matplotlib")
def test_a_monitored_run_is_drawn(tmp_path: Path):
    with Container(memory="64M") as c, c.monitor(0.01) as monitor:
        c.exec(["true"])
    monitor.plot(tmp_path / "run.png", title="true")
    assert (tmp_path / "run.png").read_bytes().startswith(b"\x89PNG")


# ---- The command line ----


def bench(*arguments: str | Path, **more: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=patience(60), **more)


def test_bench_prints_figures_and_exports_them(tmp_path: Path):
    files = ["--export-json", tmp_path / "a.json", "--export-csv", tmp_path / "a.csv"]
    done = bench("--repeat", "3", "--warmup", "1", *files, "-n", "nothing", "--compare", "sh -c 'exit 0'", "--", "true")
    assert done.returncode == 0, done.stderr
    first, *lines = done.stdout.splitlines()
    assert first == "nothing"
    assert [line.split()[:2] for line in lines[:2]] == [["wall", "time"], ["CPU", "time"]]
    assert "  3 runs, after 1 to warm up" in lines
    assert lines[-1].startswith("sh -c 'exit 0' / nothing: ")
    assert "\r" not in done.stderr, "no progress where there is no terminal"
    results = json.loads((tmp_path / "a.json").read_text())["results"]
    assert [(each["command"], len(each["times"])) for each in results] == [("nothing", 3), ("sh -c 'exit 0'", 3)]
    with (tmp_path / "a.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 6


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--", "false"], 1, "exited with code 1"),
        (["-i", "--", "false"], 1, "none of 2 runs succeeded"),
        (["-i", "--compare", "false", "--", "true"], 1, "2 of 2 runs failed"),
        (["--exit-codes", "0,1", "--", "false"], 0, ""),
        (["--", "no-such-program"], 127, "no-such-program"),
        (["--repeat", "0", "--", "true"], 125, "repeat"),
        (["--export-json", "/no/such/directory/x", "--", "true"], 125, "--export-json"),
        (["--input", "/no/such/file", "--", "true"], 125, "/no/such/file"),
        ([], 2, "no program"),
    ],
)
def test_bench_exit_codes(arguments: list[str], code: int, words: str):
    done = bench("--runs", "2", "--warmup", "0", *arguments)
    assert (done.returncode, words in done.stderr + done.stdout) == (code, True), done
    if code in (2, 125, 126, 127):
        assert done.stderr.startswith("sandbox bench: ")
        assert done.stderr.count("\n") == 1, "a complaint is one line"


def test_bench_shows_output_on_request():
    assert bench("-r", "2", "--warmup", "1", "--show-output", "--", "echo", "hello").stdout.splitlines()[:3] == ["hello"] * 3


def test_bench_takes_the_options_of_run(tmp_path: Path):
    (tmp_path / "file").write_text("x")
    tmp_path.chmod(0o755)
    script = '[ "$A$(cat /in/file)$(pwd)" = bx/in ]'
    done = bench("-r", "1", "-e", "A=b", "-v", f"{tmp_path}:/in:ro", "-w", "/in", "--prepare", "test -f file", "--setup", "true", "--", "sh", "-c", script)
    assert done.returncode == 0, done.stderr
    assert bench("-r", "1", "--timeout", "50ms", "--", "sleep", "60").returncode == 1


def test_a_terminal_shows_the_progress_and_then_it_is_gone():
    main, other = pty.openpty()
    try:
        done = subprocess.run([*COMMAND, "-r", "2", "--", "true"], stdout=subprocess.PIPE, stderr=other, check=True, timeout=patience(60))
        fcntl.fcntl(main, fcntl.F_SETFL, os.O_NONBLOCK)
        octets = b""
        with contextlib.suppress(BlockingIOError):  # one read gives 4096 at most
            while data := os.read(main, 65536):
                octets += data
        drawn = octets.decode()
    finally:
        os.close(main)
        os.close(other)
    assert "1/5 runs" in drawn
    assert drawn.split("sandbox bench: warning")[0].endswith("\r\x1b[K")
    assert b"true\n" in done.stdout


def test_bench_help_lists_its_options():
    done = bench("--help")
    assert done.returncode == 0
    assert all(word in done.stdout for word in ("--repeat", "--warmup", "--compare", "--export-json", "--export-csv", "--memory"))
    assert "--tty" not in done.stdout
