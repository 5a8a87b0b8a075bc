"""What a subcommand ends with, and what it says then."""

from __future__ import annotations

import pytest

from sandbox import SandboxError, UsageError
from sandbox.cli.outcome import outcome
from sandbox.cli.parser import WrongUseError


def ending(error: BaseException | None, value: int | None = None):
    def carry_out() -> int | None:
        if error is not None:
            raise error
        return value

    return carry_out


@pytest.mark.parametrize(
    ("error", "value", "code", "said"),
    [
        (None, None, 0, ""),
        (None, 3, 3, ""),
        (WrongUseError("no such option"), None, 2, "sandbox x: no such option (see sandbox x --help)\n"),
        (UsageError("wrong \x1b[31m"), None, 1, "sandbox x: wrong \\x1b[31m\n"),
        (SandboxError("it failed"), None, 1, "sandbox x: it failed\n"),
        (OSError(28, "No space left on device"), None, 1, "sandbox x: No space left on device\n"),
        (OSError(2, "No such file or directory", b"/a\x1b"), None, 1, "sandbox x: /a\\x1b: No such file or directory\n"),
        (OSError("timed out"), None, 1, "sandbox x: timed out\n"),
        (SystemExit(0), None, 0, ""),
    ],
)
def test_each_end_has_its_code_and_one_line(error, value, code, said, capsys: pytest.CaptureFixture[str]) -> None:
    assert outcome("sandbox x", ending(error, value)) == code
    assert capsys.readouterr().err == said


def test_a_reader_that_went_is_no_failure_of_the_command() -> None:
    with pytest.raises(BrokenPipeError):
        outcome("sandbox x", ending(BrokenPipeError()))
