"""The example judge, from end to end: real compilers, friendly and hostile submissions, and every verdict must be right.

SANDBOX_JUDGE_ROUNDS says how often everything is judged (2 without it, 1 on a slow machine; 20 for the claim that is made). On a slow machine
all limits of time are longer, and as exact.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import pytest

from sandbox import Bind, Container
from tests.support import needs, slowness, why_not

ROOT: Final = Path(__file__).parents[2]
JUDGE: Final = ROOT / "examples" / "judge"
ROUNDS: Final = int(os.environ.get("SANDBOX_JUDGE_ROUNDS", "2" if slowness() < 4 else "1"))
# Starting a program suffers most on a slow machine. What a submission does once it runs is nearer to what it takes elsewhere.
FACTOR: Final = max(1.0, slowness() / 3)
SEARCHED: Final = os.pathsep.join(filter(None, (os.fspath(ROOT), os.environ.get("PYTHONPATH"))))
ENVIRONMENT: Final = {**os.environ, "PYTHONPATH": SEARCHED, "PYTHONDONTWRITEBYTECODE": "1"}
MODULES: Final = ("judge", "languages", "main", "trap")
LIMITS: Final = needs("root", "cgroup:memory", "cgroup:pids", "program:gcc", "program:g++", "program:python3")

# The cause, beside the verdict: a time limit for the wrong reason is a wrong verdict too.
REASONS: Final = {
    "all_paths.cpp": "CPU time", "busy.c": "CPU time", "busy.py": "CPU time", "busy_child.c": "CPU time", "busy_orphans.c": "CPU time",
    "busy_threads.cpp": "CPU time", "fork_bomb.c": "CPU time", "sleeping.c": "wall clock", "sleeping.py": "wall clock", "stopped.c": "wall clock",
    "division.c": "SIGFPE", "exception.cpp": "SIGABRT", "null_pointer.c": "SIGSEGV", "kills_itself.c": "SIGKILL", "feigns_cpu_limit.c": "SIGXCPU",
    "exit_code.c": "exit code 3", "fork_fails.c": "exit code 1", "exception.py": "exit code 1", "recursion.py": "exit code 1",
    "bomb_device.c": "compiler: memory limit", "bomb_messages.c": "compiler: output limit", "bomb_binary.c": "compiler: exit code 1",
    "syntax.c": "compiler: exit code 1", "types.cpp": "compiler: exit code 1", "stray_return.py": "compiler: exit code 1",
}  # fmt: skip
# What the issue of this judge lists, by verdict: nobody may take one of these away unnoticed.
PROMISED: Final = {
    "accepted": {"sum.c", "sum.cpp", "sum.py"},
    "wrong_answer": {"overflow.c", "floats.cpp", "greedy.py"},
    "compile_error": {"syntax.c", "bomb_device.c", "bomb_templates.cpp"},
    "time_limit": {"busy.c", "sleeping.c", "stopped.c", "busy_child.c", "fork_bomb.c"},
    "memory_limit": {"heap.c", "stack.c", "bss.c", "children.c"},
    "output_limit": {"endless.c"},
    "runtime_error": {"exit_code.c", "null_pointer.c", "exception.cpp", "fork_fails.c"},
    "contained": {"host_files.py", "other_runs.py", "network.py", "kills_everyone.c"},
    "forbidden_call": {"mount.c", "traces_init.c", "user_namespace.c"},
}
MIB: Final = 1 << 20

Records = list[dict[str, Any]]


def run_judge(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, JUDGE, "--time-factor", str(FACTOR), *arguments]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def finished() -> subprocess.CompletedProcess[str]:
    return run_judge("--json", "--rounds", str(ROUNDS))


@pytest.fixture
def records(finished: subprocess.CompletedProcess[str]) -> Records:
    return [json.loads(line) for line in finished.stdout.splitlines()]


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, ModuleType]]:
    """The judge's own modules, whose names are too general to stay among those of the tests."""
    assert not [name for name in MODULES if name in sys.modules]
    monkeypatch.syspath_prepend(os.fspath(JUDGE))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield {name: importlib.import_module(name) for name in MODULES}
    for name in MODULES:
        del sys.modules[name]


def named(records: Records, *names: str) -> Records:
    """The records of these submissions, of which there must be one per round."""
    found = [record for record in records if record["submission"] in names]
    assert len(found) == ROUNDS * len(names)
    return found


@LIMITS
@pytest.mark.timeout(60 + 180 * ROUNDS)
class TestAllSubmissions:
    def test_every_verdict_is_the_right_one(self, finished: subprocess.CompletedProcess[str], records: Records) -> None:
        wrong = [f"{r['submission']}: {r['verdict']} ({r['reason']}), not {r['expected']}" for r in records if r["verdict"] != r["expected"]]
        assert not wrong, "\n".join(wrong)
        assert finished.returncode == 0, finished.stderr
        assert len(records) == ROUNDS * sum(path.suffix in (".c", ".cpp", ".py") for path in (JUDGE / "submissions").rglob("*.*"))

    def test_every_cause_is_the_right_one(self, records: Records) -> None:
        causes = [(r["submission"], r["reason"].split(" (test")[0]) for r in named(records, *REASONS)]
        assert not [f"{name}: {cause}, not {REASONS[name]}" for name, cause in causes if cause != REASONS[name]]

    def test_what_was_promised_is_there(self, records: Records) -> None:
        judged = {(r["verdict"], r["submission"]) for r in records}
        assert not {(verdict, name) for verdict, names in PROMISED.items() for name in names} - judged

    def test_cpu_time_is_that_of_all_processes(self, records: Records) -> None:
        for record in named(records, "busy.c", "busy_child.c", "busy_orphans.c", "busy_threads.cpp", "fork_bomb.c"):
            assert 0.5 * FACTOR <= record["cpu_time"] <= 1.0 * FACTOR, record
        for record in named(records, "sleeping.c", "stopped.c"):
            assert record["cpu_time"] < 0.1 * FACTOR, record
            assert 5.0 * FACTOR <= record["wall_time"] <= 8.0 * FACTOR, record

    def test_memory_peaks_are_the_limit_where_it_was_hit_and_small_elsewhere(self, records: Records) -> None:
        for record in records:
            if record["verdict"] == "memory_limit":
                assert 62 * MIB <= record["memory"] <= 64 * MIB, record
            if record["verdict"] == "accepted":
                assert 0 < record["memory"] < 20 * MIB, record

    def test_fork_bombs_get_no_more_processes_than_allowed(self, records: Records) -> None:
        for record in named(records, "fork_bomb.c", "fork_fails.c"):
            assert record["pids"] in (16, None), record  # None: a kernel that keeps no peak
            assert record["memory"] < 64 * MIB, record

    def test_the_compiler_reads_no_secrets(self, records: Records) -> None:
        first = Path("/etc/shadow").read_text(encoding="utf-8").splitlines()[0]
        for record in named(records, "reads_shadow.c"):
            assert "No such file" in record["messages"], record
            assert first not in record["messages"]

    def test_a_program_that_leaves_a_daemon_behind_is_not_waited_for(self, records: Records) -> None:
        for record in named(records, "leaves_a_daemon.c"):
            assert record["passed"] == 3, record
            assert record["wall_time"] < 2 * FACTOR, record


@LIMITS
@pytest.mark.usefixtures("no_leftovers")
def test_hostile_submissions_leave_nothing_behind(modules: dict[str, ModuleType]) -> None:
    names = ("leaves_a_daemon.c", "busy_orphans.c", "fork_bomb.c", "fork_fails.c", "children.c", "bomb_device.c", "kills_everyone.c", "other_runs.py")
    chosen = [submission for submission in modules["judge"].bundled() if submission.path.name in names]
    reports = list(modules["main"].judge_all(chosen, jobs=4, time_factor=FACTOR))
    assert len(reports) == len(names)
    assert all(report.is_expected for report in reports), reports


@LIMITS
@pytest.mark.parametrize("attack", ["network.py", "host_files.py", "other_runs.py"])
def test_the_attacks_do_find_the_flag_where_a_wall_is_missing(
    modules: dict[str, ModuleType], attack: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without this, an attack that looks in the wrong place would be called contained."""
    monkeypatch.setattr(tempfile, "tempdir", os.fspath(tmp_path))
    tmp_path.chmod(0o755)
    source = (JUDGE / "submissions" / "escape" / "contained" / attack).read_text(encoding="utf-8")
    argv = ["python3", "-I", "-c", source]
    with modules["trap"].Trap(modules["judge"].new_box) as trap:
        if attack == "network.py":
            with Container(net="host") as box:
                result = box.exec(argv, input=trap.directions)
        elif attack == "host_files.py":
            with Container(mounts=[Bind(path, path, read_only=True) for path in {os.fspath(p) for p in tmp_path.glob("trap-*")}]) as box:
                result = box.exec(argv, input=trap.directions)
        else:
            result = trap.other.exec(argv, input=trap.directions)  # among the other run's own things
        loot = trap.loot(result.stdout)
    assert result.ok, result
    assert result.stdout.strip() != b"nothing", result
    if attack == "other_runs.py":
        found = result.stdout.decode()
        assert all(word in found for word in ("/tmp/flag", "/dev/shm/flag", "process ", "tcp ", "-other")), found
    else:
        assert loot, result


@LIMITS
def test_a_wrong_verdict_is_shown_and_makes_the_exit_code_1(
    modules: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    judge = modules["judge"]
    wrong = judge.Submission("sum", JUDGE / "submissions/sum/wrong_answer/overflow.c", judge.Verdict.ACCEPTED)
    monkeypatch.setattr(modules["main"], "bundled", lambda: [wrong])
    monkeypatch.setattr(sys, "argv", ["judge"])
    assert modules["main"].main() == 1
    output = capsys.readouterr().out
    assert "EXPECTED accepted" in output
    assert "0 of 1 verdicts as expected" in output


@LIMITS
def test_a_missing_compiler_is_named_and_is_no_success(
    modules: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import attrs

    languages = modules["languages"].LANGUAGES
    monkeypatch.setitem(languages, ".cpp", attrs.evolve(languages[".cpp"], compile=("g++-of-nobody", "main.cpp")))
    monkeypatch.setattr(sys, "argv", ["judge", *(os.fspath(JUDGE / "submissions/sum/accepted" / name) for name in ("sum.c", "sum.cpp"))])
    assert modules["main"].main() == 77
    output = capsys.readouterr().out
    assert "skipped" in output
    assert "1 judged, 1 of 1 verdicts as expected, 1 skipped: no g++-of-nobody" in output


@LIMITS
def test_a_source_of_ones_own_is_judged_without_an_expectation(tmp_path: Path) -> None:
    source = tmp_path / "mine.py"
    source.write_text("print(-2)\n", encoding="utf-8")
    done = run_judge("--problem", "sum", os.fspath(source))
    assert done.returncode == 0, done.stderr
    assert "wrong answer    (test 2)" in done.stdout
    assert "say with --problem" in run_judge(os.fspath(source)).stderr


@needs("user", "userns", "program:gcc")
@pytest.mark.unprivileged
def test_without_control_groups_the_judge_says_so_instead_of_guessing() -> None:
    if not why_not("cgroup:memory"):
        pytest.skip("needs a host where this user has no memory control group")
    done = run_judge(os.fspath(JUDGE / "submissions/sum/accepted/sum.c"))
    assert done.returncode == 2, done
    assert "a verdict would not be exact on this host" in done.stderr
    assert "Traceback" not in done.stderr
