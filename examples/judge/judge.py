"""Compile a submission, run it against a problem's tests, and say what became of it.

Theory of operation
-------------------
Nothing of a submission is trusted, so everything that handles it runs in a container: the compiler too, for a source can
be an attack on it. Each compilation and each test gets a container of its own, made from a read-only view of the host
(its compilers and libraries, none of its secrets) with one writable directory that lives in memory and goes with it. All that
passes between them goes through this process as bytes: the source in, the program out, the program in, its output out.

Why a program failed is not guessed: `Result.status` names the cause, and `_fate` only translates it.
"""

from __future__ import annotations

import enum
import signal
import tomllib
from pathlib import Path
from typing import Final

from attrs import define, evolve, field, frozen
from languages import LANGUAGES, Language
from trap import Trap

from sandbox import Container, ProgramNotFoundError, Result, Rlimits, Status, Tmpfs, UsageError

HERE: Final = Path(__file__).resolve().parent
BOX: Final = "/tmp"  # a path inside the containers: the one writable directory
COMPILER_SECONDS: Final = 10.0
MAX_PROGRAM: Final = "16M"
# The stack may use all the memory that there is: its limit is the control group's, as for the rest.
STACK: Final = Rlimits(stack="1G")


class Verdict(enum.Enum):
    """What a judge says; the value is also the name of the directory for submissions that must get it."""

    ACCEPTED = "accepted"
    WRONG_ANSWER = "wrong_answer"
    COMPILE_ERROR = "compile_error"
    TIME_LIMIT = "time_limit"
    MEMORY_LIMIT = "memory_limit"
    OUTPUT_LIMIT = "output_limit"
    RUNTIME_ERROR = "runtime_error"
    FORBIDDEN_CALL = "forbidden_call"
    CONTAINED = "contained"  # problems with a trap: it tried to get out, and could not
    ESCAPED = "escaped"
    SKIPPED = "skipped"  # there is no compiler for it here


@frozen
class Test:
    """One input and the output that is right for it."""

    name: str
    input: bytes
    output: bytes


@frozen
class Problem:
    """A task: its tests, and what a run of a solution may use. With *trapped*, a `Trap` is set up and makes the input."""

    name: str
    tests: tuple[Test, ...]
    cpu_time: float
    timeout: float
    memory: str
    pids: int
    output_limit: str
    trapped: bool = False

    @classmethod
    def load(cls, directory: Path) -> Problem:
        """Read ``problem.toml`` and ``tests/*.in`` with their ``.out``."""
        settings = tomllib.loads((directory / "problem.toml").read_text(encoding="utf-8"))
        inputs = sorted((directory / "tests").glob("*.in"))
        tests = tuple(Test(path.stem, path.read_bytes(), path.with_suffix(".out").read_bytes()) for path in inputs)
        return cls(directory.name, tests, **settings)


@frozen
class Submission:
    """A source for a problem; *expected* is the verdict that it was written to get, None when nobody knows."""

    problem: str
    path: Path
    expected: Verdict | None = None

    @property
    def language(self) -> Language:
        return LANGUAGES[self.path.suffix]


@define
class Report:
    """A verdict, the reason for it, and the most that a run used (of the compiler, if it came no further)."""

    submission: Submission
    verdict: Verdict = Verdict.ACCEPTED
    reason: str = ""
    passed: int = 0
    cpu_time: float = 0.0
    wall_time: float = 0.0
    memory: int | None = None
    pids: int | None = None
    messages: bytes = field(default=b"", repr=False)  # the compiler's

    @property
    def is_expected(self) -> bool:
        return self.verdict is self.submission.expected

    def measure(self, result: Result) -> None:
        """Keep the largest figures; peaks that the kernel does not count stay None."""
        self.cpu_time = max(self.cpu_time, result.cpu_time)
        self.wall_time = max(self.wall_time, result.wall_time)
        if result.memory_peak is not None:
            self.memory = max(self.memory or 0, result.memory_peak)
        if result.pids_peak is not None:
            self.pids = max(self.pids or 0, result.pids_peak)


def bundled() -> list[Submission]:
    """All submissions that come with the judge: ``submissions/PROBLEM/VERDICT/NAME.SUFFIX``."""
    paths = sorted((HERE / "submissions").glob("*/*/*.*"))
    return [Submission(path.parts[-3], path, Verdict(path.parts[-2])) for path in paths if path.suffix in LANGUAGES]


def judge(submission: Submission, *, time_factor: float = 1.0) -> Report:
    """Compile and run a submission. All limits of time are multiplied by *time_factor*.

    Raises: sandbox.UnsupportedError: this host cannot enforce a limit that the verdict depends on.
    """
    problem = Problem.load(HERE / "problems" / submission.problem)
    problem = evolve(problem, cpu_time=problem.cpu_time * time_factor, timeout=problem.timeout * time_factor)
    report = Report(submission)
    try:
        program = _compile(submission, report, COMPILER_SECONDS * time_factor)
    except ProgramNotFoundError:
        report.verdict, report.reason = Verdict.SKIPPED, f"no {submission.language.compile[0]}"
        return report
    if program is None:
        report.verdict = Verdict.COMPILE_ERROR
    elif problem.trapped:
        _run_in_trap(program, problem, report)
    else:
        _run_all(program, problem, report)
    return report


def new_box() -> Container:
    """A container for one compilation or one run; nothing in it outlives it."""
    return Container(read_only=True, mounts=[Tmpfs(BOX, size="32M")], cwd=BOX, security="strict", rlimits=STACK, shm="16M")


def _compile(submission: Submission, report: Report, seconds: float) -> bytes | None:
    """The program, or None with the reason and the compiler's messages in *report*."""
    language = submission.language
    with new_box() as box:
        box.write_bytes(f"{BOX}/{language.source}", submission.path.read_bytes())
        result = box.exec(language.compile, cpu_time=seconds, timeout=3 * seconds, memory="256M", pids=32, output_limit="64K")
        report.messages = result.stderr
        if result.ok:
            try:
                return box.read_bytes(f"{BOX}/{language.program}", max_size=MAX_PROGRAM)
            except UsageError:
                report.reason = "the program is too large"
        else:
            report.reason = f"compiler: {_words(result)}"
    report.measure(result)
    return None


def _run(program: bytes, language: Language, problem: Problem, data: bytes) -> Result:
    with new_box() as box:
        box.write_bytes(f"{BOX}/{language.program}", program, mode=0o755)
        return box.exec(
            language.run,
            input=data,
            cpu_time=problem.cpu_time,
            timeout=problem.timeout,
            memory=problem.memory,
            pids=problem.pids,
            output_limit=problem.output_limit,
        )


def _run_all(program: bytes, problem: Problem, report: Report) -> None:
    """Run the tests in order, up to the first that fails."""
    for test in problem.tests:
        result = _run(program, report.submission.language, problem, test.input)
        report.measure(result)
        report.verdict, report.reason = _fate(result, test)
        if report.verdict is not Verdict.ACCEPTED:
            report.reason = f"{report.reason} (test {test.name})".strip()
            return
        report.passed += 1


def _run_in_trap(program: bytes, problem: Problem, report: Report) -> None:
    """Run an attack where there is something to get, and look at what it got. It says ``nothing`` when it got nothing."""
    with Trap(new_box) as trap:
        result = _run(program, report.submission.language, problem, trap.directions)
        loot = trap.loot(result.stdout + result.stderr)
    report.measure(result)
    report.verdict, report.reason = _fate(result, Test("trap", trap.directions, b"nothing"))
    report.verdict = {Verdict.ACCEPTED: Verdict.CONTAINED, Verdict.WRONG_ANSWER: Verdict.ESCAPED}.get(report.verdict, report.verdict)
    if loot:
        report.verdict, report.reason = Verdict.ESCAPED, loot
    elif report.verdict is Verdict.ESCAPED:
        report.reason = result.stdout[:200].decode(errors="replace").strip() or "no answer"


_VERDICTS: Final = {
    Status.CPU_LIMIT: Verdict.TIME_LIMIT,
    Status.TIMEOUT: Verdict.TIME_LIMIT,
    Status.MEMORY_LIMIT: Verdict.MEMORY_LIMIT,
    Status.OUTPUT_LIMIT: Verdict.OUTPUT_LIMIT,
    Status.SYSCALL_DENIED: Verdict.FORBIDDEN_CALL,
    Status.SIGNALED: Verdict.RUNTIME_ERROR,
    Status.EXITED: Verdict.RUNTIME_ERROR,  # with an exit code other than 0
}  # not KILLED: nobody here does


def _fate(result: Result, test: Test) -> tuple[Verdict, str]:
    """Translate why a run ended into a verdict."""
    if not result.ok:
        return _VERDICTS[result.status], _words(result)
    # Words count, blanks and line ends do not.
    if result.stdout.split() != test.output.split():
        return Verdict.WRONG_ANSWER, ""
    return Verdict.ACCEPTED, ""


def _words(result: Result) -> str:
    """The cause of a failure, for people."""
    match result.status:
        case Status.EXITED:
            return f"exit code {result.exit_code}"
        case Status.SIGNALED:
            return signal.Signals(result.signal or 0).name
        case Status.CPU_LIMIT:
            return "CPU time"
        case Status.TIMEOUT:
            return "wall clock"
        case Status.SYSCALL_DENIED:
            return f"system call {result.syscall}"
        case other:
            return str(other.value)
