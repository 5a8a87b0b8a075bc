"""The attacks' harness: a canary on the host, the attackers' programs, who is attacked, and a table that compares.

``pytest tests/escape --against=bwrap --against=runc --table=FILE`` runs the attacks that ask for `target` in those tools too, and
prints which of them held. A peer that does not hold is a line of that table, no failure; ``--against=weakened`` is this library with its
walls taken down, which shows that the attacks do work.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from tests.escape.canary import Canary
from tests.escape.targets import KINDS, NEEDS, OURS, PEERS, DockerTarget, NotApplicable, Refused, Target, make_root
from tests.support import why_not

PAYLOADS = Path(__file__).parent / "payloads"
VERDICTS = pytest.StashKey[dict[tuple[str, str], str]]()
REASONS = pytest.StashKey[dict[str, str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--against", action="append", default=[], choices=PEERS, help="run the attacks against this tool too, and compare")
    parser.addoption("--table", metavar="FILE", help="write the comparison there, as markdown")


def _against(config: pytest.Config) -> list[str]:
    # When all tests are run, this file is read too late to add options.
    names: list[str] = config.getoption("--against", [])
    return names


def pytest_configure(config: pytest.Config) -> None:
    config.stash[VERDICTS], config.stash[REASONS] = {}, {}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "target" in metafunc.fixturenames:
        metafunc.parametrize("target", [*OURS, *_against(metafunc.config)], indirect=True)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not _against(config):
        return
    compared = [item for item in items if "target" in getattr(item, "fixturenames", ())]
    config.hook.pytest_deselected(items=[item for item in items if item not in compared])
    items[:] = compared


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    target = getattr(item, "funcargs", {}).get("target")
    if not isinstance(target, Target) or (report.when == "setup" and report.passed):
        return report
    key = _title(item), target.name
    verdicts = item.config.stash[VERDICTS]
    if report.when == "call" or report.failed:
        verdict = _verdict(report, call, target)
        verdicts[key] = max(verdicts.get(key, ""), verdict, key=_RANKS.index)
        if report.failed and call.excinfo is not None:
            item.config.stash[REASONS][item.name] = str(call.excinfo.value).partition("\n")[0][:300]
        if target.name not in OURS and verdict != "error":
            report.outcome = "passed"
    return report


# A title stands for all rows of a parametrised attack: the worst of them counts.
_RANKS = ["", "not applicable", "safe", "refused", "UNSAFE", "error"]


def _verdict(report: pytest.TestReport, call: pytest.CallInfo[None], target: Target) -> str:
    error = call.excinfo.value if call.excinfo is not None else None
    if isinstance(error, NotApplicable) or report.skipped:
        return "not applicable"
    if isinstance(error, Refused):
        return "refused"
    if report.failed:  # any other exception is a fault of the harness, and stays a failure
        return "UNSAFE" if isinstance(error, (AssertionError, pytest.fail.Exception)) else "error"
    return "refused" if target.refused else "safe"


def _title(item: pytest.Item) -> str:
    return item.name.partition("[")[0].removeprefix("test_").replace("_", " ")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    against = _against(config)
    if not against:
        return
    lines = list(_table(config.stash[VERDICTS], [*OURS, *against]))
    terminalreporter.section("who holds")
    for line in (*lines, "", *(f"{name}: {reason}" for name, reason in config.stash[REASONS].items())):
        terminalreporter.write_line(line)
    if path := config.getoption("--table", None):
        Path(path).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _table(verdicts: dict[tuple[str, str], str], names: list[str]) -> Iterator[str]:
    yield "| attack | " + " | ".join(names) + " |"
    yield "| --- |" + " --- |" * len(names)
    for title in dict.fromkeys(title for title, _ in verdicts):
        yield f"| {title} | " + " | ".join(verdicts.get((title, name), "not applicable") for name in names) + " |"


# --- fixtures ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def attacks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the attackers' programs, compiled and static: or copied, where SANDBOX_TESTS_ATTACKS has them."""
    if given := os.environ.get("SANDBOX_TESTS_ATTACKS"):
        return _reachable(Path(shutil.copytree(given, tmp_path_factory.mktemp("attacks"), dirs_exist_ok=True)))
    if reason := why_not("program:gcc"):
        pytest.skip(f"needs program:gcc: {reason}")
    directory = _reachable(tmp_path_factory.mktemp("attacks"))
    sources = sorted(PAYLOADS.glob("*.c"))
    compilers = [subprocess.Popen(["gcc", "-O1", "-static", "-pthread", "-w", "-o", directory / source.stem, source]) for source in sources]
    assert not any(compiler.wait() for compiler in compilers)
    return directory


@pytest.fixture(scope="session")
def base_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that serves as the root of a container."""
    if reason := why_not("program:busybox"):
        pytest.skip(f"needs program:busybox: {reason}")
    return make_root(_reachable(tmp_path_factory.mktemp("root")))


def _reachable(directory: Path) -> Path:
    directory.chmod(0o755)
    return directory


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root of the test's own, to plant things in."""
    if reason := why_not("program:busybox"):
        pytest.skip(f"needs program:busybox: {reason}")
    return make_root(tmp_path / "root")


@pytest.fixture
def open_place() -> Iterator[Path]:
    """A directory that every user of the host may come to: those that pytest makes are closed, which is a wall that is not ours."""
    with tempfile.TemporaryDirectory(prefix="open-", dir="/tmp") as directory:
        yield _reachable(Path(directory))


@pytest.fixture
def canary(open_place: Path) -> Iterator[Canary]:
    """A tree of the host, which everybody may read and write but for its secret; the test fails when it has changed."""
    canary = Canary.make(open_place / "host")
    yield canary
    assert canary.changes() == []


@pytest.fixture(scope="session")
def targets(attacks: Path, base_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Target]]:
    """Those that were asked for so far, by name."""
    made: dict[str, Target] = {}
    yield made
    for target in made.values():
        target.close()


@pytest.fixture
def target(
    request: pytest.FixtureRequest, targets: dict[str, Target], attacks: Path, base_root: Path, tmp_path_factory: pytest.TempPathFactory
) -> Target:
    """Who is attacked."""
    name: str = request.param
    for need in NEEDS.get(name, ()):
        if reason := why_not(need):
            pytest.skip(f"needs {need}: {reason}")
    if name not in targets:
        target = KINDS[name](attacks, base_root, tmp_path_factory.mktemp(name))
        if isinstance(target, DockerTarget):
            target.start()
        targets[name] = target
    targets[name].refused = ""
    targets[name].said.clear()
    return targets[name]


@pytest.fixture(autouse=True)
def nothing_left(request: pytest.FixtureRequest) -> None:
    """Whatever is tried, nothing of ours is left on the host. Beside other tools that cannot be told: their daemons come and go."""
    if not _against(request.config):
        request.getfixturevalue("no_leftovers")
