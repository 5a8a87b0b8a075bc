"""The small examples do what they say."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import import_path, needs, patience

EXAMPLES = Path(__file__).parents[2] / "examples"
ADD = '#include <stdio.h>\nint main(void) { int a, b; if (scanf("%d %d", &a, &b) != 2) return 1; PRINT; return 0; }\n'


def grade(directory: Path, source: str) -> tuple[int, str]:
    """The grader's exit code and words for *source*, against two sums."""
    (directory / "program.c").write_text(source)
    for name, given, expected in (("one", "3 4", "7"), ("two", "1 1", "2")):
        (directory / f"{name}.in").write_text(given)
        (directory / f"{name}.out").write_text(f"{expected}\n")
    argv = [sys.executable, EXAMPLES / "grader.py", directory / "program.c", directory]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=patience(60), env={**os.environ, "PYTHONPATH": import_path()})
    assert done.stderr == ""
    return done.returncode, done.stdout


@needs("root", "cgroup:memory", "cgroup:pids", "program:gcc")
@pytest.mark.parametrize(
    ("source", "said"),
    [
        (ADD.replace("PRINT", 'printf("%d\\n", a + b)'), "one passed\ntwo passed\n"),
        (ADD.replace("PRINT", 'printf("%d\\n", a * b + (a == 3) * -5)'), "one passed\ntwo wrong answer\n"),
        (ADD.replace("PRINT", 'for (; a == 1;) ; puts("7")'), "one passed\ntwo too slow\n"),
        (ADD.replace("PRINT", "return 5"), "one runtime error (5)\ntwo runtime error (5)\n"),
        ("int main(void) { oops }", "compile error: "),
    ],
)  # fmt: skip
def test_the_grader_grades(tmp_path: Path, source: str, said: str) -> None:
    code, words = grade(tmp_path, source)
    assert words.startswith(said)
    assert code == 2 - words.count("passed")


def test_the_grader_is_short() -> None:
    assert len((EXAMPLES / "grader.py").read_text().splitlines()) <= 60
