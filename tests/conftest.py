"""Hooks and fixtures for all tests: needs are checked, and what was skipped is counted."""

from __future__ import annotations

import collections
import functools
import json
import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from tests.leak.snapshot import Snapshot
from tests.support import patience, slowness, why_not

# No deadline, and slow ones are no failure: on a machine with other work that says nothing. In CI, every run tries the same examples.
_slow = [hypothesis.HealthCheck.too_slow]
hypothesis.settings.register_profile("here", deadline=None, suppress_health_check=_slow)
hypothesis.settings.register_profile("ci", deadline=None, suppress_health_check=_slow, derandomize=True, database=None)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "here")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Give tests the time that they need on a slow machine, or (SANDBOX_TESTS_ONE_EACH=1) run each with the first of its parameters alone."""
    if os.environ.get("SANDBOX_TESTS_ONE_EACH"):
        first = set({item.nodeid.partition("[")[0]: item for item in reversed(items)}.values())
        config.hook.pytest_deselected(items=[item for item in items if item not in first])
        items[:] = [item for item in items if item in first]
    if slowness() == 1.0:
        return
    for item in items:
        marker = item.get_closest_marker("timeout")
        # Those that say nothing are far from the limit anywhere; a test that hangs should not cost an hour.
        seconds = patience(marker.args[0]) if marker is not None else min(patience(float(config.getini("timeout"))), 600.0)
        item.add_marker(pytest.mark.timeout(seconds), append=False)


def pytest_runtest_setup(item: pytest.Item) -> None:
    required = os.environ.get("SANDBOX_TESTS_REQUIRE", "").split()
    for mark in item.iter_markers("needs"):
        for name in mark.args:
            reason = why_not(name)
            if reason and name in required:
                pytest.fail(f"SANDBOX_TESTS_REQUIRE asks for {name}: {reason}", pytrace=False)
            if reason:
                pytest.skip(f"needs {name}: {reason}")


def pytest_runtest_logstart(nodeid: str) -> None:
    """Say in which test a machine has died."""
    _log(nodeid, "started")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" or not report.passed:
        outcome = "passed" if hasattr(report, "wasxfail") and report.skipped else report.outcome
        _log(report.nodeid, outcome, report.duration, _said(report))


def _log(test: str, outcome: str, seconds: float = 0.0, said: str = "") -> None:
    """Append what came of a test to the file that SANDBOX_TESTS_LOG names, at once: a machine that dies later has told this much."""
    if path := os.environ.get("SANDBOX_TESTS_LOG"):
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"test": test, "outcome": outcome, "seconds": round(seconds, 2), "said": said}) + "\n")


def _said(report: pytest.TestReport) -> str:
    if report.passed or hasattr(report, "wasxfail"):
        return ""
    return _reason(report) if report.skipped else report.longreprtext[-8000:]


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many tests ran, how many did not, and why; also to the file that SANDBOX_TESTS_SUMMARY names."""
    lines = list(summary_lines(terminalreporter.stats))
    terminalreporter.section("run and skipped")
    for line in lines:
        terminalreporter.write_line(line)
    if path := os.environ.get("SANDBOX_TESTS_SUMMARY"):
        Path(path).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def summary_lines(stats: dict[str, list[pytest.TestReport]]) -> Iterator[str]:
    count = {outcome: len(stats.get(outcome, [])) for outcome in ("passed", "failed", "error", "skipped", "xfailed", "xpassed")}
    reasons = collections.Counter(_reason(report) for report in stats.get("skipped", []))
    for reason, times in reasons.most_common():
        yield f"skipped {times:4d}: {reason}"
    passed, failed = count["passed"] + count["xfailed"], count["failed"] + count["error"] + count["xpassed"]
    yield f"{passed} passed, {failed} failed, {count['skipped']} skipped"


def _reason(report: pytest.TestReport) -> str:
    text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return text.removeprefix("Skipped: ")


@pytest.fixture
def no_leftovers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fail the test when it leaves anything behind: see tests/leak/snapshot.py for what is counted."""
    import sandbox

    _open_what_stays()
    sandbox.shut_down()
    scratch = tmp_path / "tmp"
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    before = Snapshot.take()
    yield
    sandbox.shut_down()
    left = before.wait_until_clean()
    assert not left, "left behind:\n" + "\n".join(left)


@functools.cache
def _open_what_stays() -> None:
    """/dev/null and the like are opened once per process."""
    import sandbox

    sandbox.run(["true"])
