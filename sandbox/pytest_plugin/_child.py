"""The pytest inside the container: runs one test, with its fixtures, and tells what became of it.

A plugin of that pytest. Its terminal goes nowhere, output is not captured but left to whoever started it, and each phase of the test is
one line of JSON to a descriptor. `sandbox.pytest_plugin._inside` is the other side, and believes nothing of it.
"""

from __future__ import annotations

import io
import json
import os
import sys
from typing import IO, TYPE_CHECKING, Any, Final

import pytest

from sandbox import pytest_plugin

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_TEXT: Final = 64 << 10  # characters of one text
MAX_WARNINGS: Final = 50
_MAX_PROPERTIES: Final = 50


class Telling:
    """Reports as lines of JSON; see `_inside.Phase` for what they may be."""

    def __init__(self, fd: int, config: pytest.Config) -> None:
        self._fd = fd
        self._config = config
        self._warnings = 0

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        crash = getattr(report.longrepr, "reprcrash", None)
        told: dict[str, object] = {"when": report.when, "outcome": report.outcome, "duration": report.duration}
        told["wasxfail"] = getattr(report, "wasxfail", None)
        told["log"] = [[name, text[-MAX_TEXT:]] for name, text in report.sections if name.startswith("Captured log")]
        told["properties"] = [[name, str(value)[:1000]] for name, value in report.user_properties[:_MAX_PROPERTIES]]
        if isinstance(report.longrepr, tuple):
            told["where"] = list(report.longrepr[:2])
            told["message"] = report.longrepr[2]
        elif crash is not None:
            told["where"] = [crash.path, crash.lineno]
            told["message"] = crash.message
        elif isinstance(report.longrepr, str):
            told["message"] = report.longrepr
        told["text"] = self._words_of(report)[-MAX_TEXT:]
        self._tell(told)

    def _words_of(self, report: pytest.TestReport) -> str:
        # As `longreprtext`, which takes the indentation of the first line away.
        text = io.StringIO()
        report.toterminal(type(self._config.get_terminal_writer())(text))
        return text.getvalue().rstrip()

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.tell_problem(f"collecting it inside the container failed:\n{report.longreprtext}")

    def pytest_keyboard_interrupt(self, excinfo: pytest.ExceptionInfo[BaseException]) -> None:
        self.tell_problem(f"pytest inside the container was ended: {excinfo.exconly()}")

    def pytest_internalerror(self, excrepr: object) -> None:
        self.tell_problem(f"pytest inside the container failed:\n{excrepr}")

    def pytest_warning_recorded(self, warning_message: Any) -> None:  # noqa: ANN401 - a warnings.WarningMessage
        self._warnings += 1
        if self._warnings <= MAX_WARNINGS:
            told = {"category": warning_message.category.__name__, "text": str(warning_message.message)[:1000]}
            self._tell({"warning": told, "where": [warning_message.filename, warning_message.lineno]})

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        if exitstatus not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
            self.tell_problem(f"pytest inside the container ended with {pytest.ExitCode(exitstatus).name}")

    def tell_problem(self, text: str) -> None:
        """Say why there is no report."""
        self._tell({"problem": text[-MAX_TEXT:]})

    def _tell(self, told: Mapping[str, object]) -> None:
        line = json.dumps(told, default=str).encode() + b"\n"
        while line:
            line = line[os.write(self._fd, line) :]


class _Before:
    """The terminal's reporter keeps what is standard output when it is made: by then that leads nowhere."""

    def __init__(self, nowhere: IO[str]) -> None:
        self._nowhere = nowhere

    @pytest.hookimpl(tryfirst=True)
    def pytest_configure(self) -> None:
        sys.stdout = self._nowhere


class _After:
    def __init__(self, stdout: IO[str]) -> None:
        self._stdout = stdout

    @pytest.hookimpl(trylast=True)
    def pytest_configure(self) -> None:
        sys.stdout = self._stdout


def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    """Take over what was asked for: before the command line's arguments, which come again in it, get their last word."""
    request = vars(sys.modules["__main__"])["request"]
    os.set_inheritable(request["fd"], False)
    early_config.option.__dict__.update(request["options"])
    early_config.stash[pytest_plugin.IS_INSIDE] = True
    nowhere = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - closed when pytest ends
    early_config.add_cleanup(nowhere.close)
    for plugin in (Telling(request["fd"], early_config), _Before(nowhere), _After(sys.stdout)):
        early_config.pluginmanager.register(plugin)
