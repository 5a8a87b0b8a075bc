"""What is known of the tests on each host (tests/vm/outcomes.tsv), and docs/reference/tests.md, which is made from it.

``python -m tests.vm.results merge COLLECTED [HOST.jsonl ...]``: take over what tests have said on these hosts, and write both anew. A line of such
a log is what tests/conftest.py writes for a test: its name, its outcome, how long it took, and why it was skipped or how it failed.

``python -m tests.vm.results missing COLLECTED HOST [--one-each] [--all] [--below PREFIX]``: print the tests that this host has still to run.

COLLECTED is what ``pytest --collect-only -q`` says: the tests that there are.
"""

from __future__ import annotations

import argparse
import collections
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from tests.vm import outcomes
from tests.vm.outcomes import FAILED, PASSED, SKIPPED, Host, Record, function

PAGE: Final = Path(__file__).parents[2] / "docs/reference/tests.md"
HEAD: Final = """# Which tests pass on which host

Made by `tests/vm/suite` from [the outcome of each test](../../tests/vm/outcomes.tsv): it runs the live and escape tests, and the faults, on each of these hosts. Not edited by hand.

Each cell: passed / failed / skipped, each set of parameters counted (an emulated machine may have been asked for the first one only); and how many test functions were not run there yet. A host is this machine (hybrid control groups) or a kernel of Debian's in an emulated machine, with all controllers
on cgroup v2: as root; as uid 1000 with a delegated control group; as uid 1000 without; as uid 1000 in a session that systemd made.

A host is asked in parts, at different times: what failed and has been repaired since stands here as failed until it runs there again.
"""
EARLIER: Final = "## The round before, of other commits"
OUTCOMES: Final = (PASSED, FAILED, SKIPPED)
DIRECTORIES: Final = ("tests/live", "tests/escape", "tests/faults")

Hosts = Mapping[str, Host]


def earlier_rows(page: str) -> list[str]:
    """What *page* has of a round before, of which only the counts are left."""
    return [line for line in page.partition(EARLIER)[2].splitlines() if line.startswith("| ")]


def page(hosts: Hosts, tests: Iterable[str], earlier: Sequence[str] = ()) -> Iterator[str]:
    """The lines of the page."""
    yield HEAD
    yield "| host | " + " | ".join(f"`{directory}`" for directory in DIRECTORIES) + " |"
    yield "| --- |" + " --- |" * len(DIRECTORIES)
    known = set(tests)
    for name, host in sorted(hosts.items()):
        yield f"| {name} | " + " | ".join(_cell(host, directory, known) for directory in DIRECTORIES) + " |"
    failed = [f"- {name}: `{test}`" for name, host in sorted(hosts.items()) for test, outcome in sorted(host.items()) if outcome.outcome == FAILED]
    yield from _section("Failed", failed)
    yield from _section("Skipped on every host", [f"- `{test}`" for test in skipped_everywhere(hosts)])
    yield from _section("Skipped, and why", list(_reasons(hosts)))
    if earlier:
        yield from _section(EARLIER.removeprefix("## "), earlier)


def skipped_everywhere(hosts: Hosts) -> list[str]:
    """The tests that some host has skipped and none has run."""
    run = {test for host in hosts.values() for test, outcome in host.items() if outcome.outcome != SKIPPED}
    return sorted({test for host in hosts.values() for test in host} - run)


def _cell(host: Host, directory: str, known: set[str]) -> str:
    counted = collections.Counter(outcome.outcome for test, outcome in host.items() if test.startswith(f"{directory}/"))
    if not counted:
        return "not run"
    left = len(_functions(known, directory) - _functions(host, directory))
    return " / ".join(str(counted[outcome]) for outcome in OUTCOMES) + (f" ({left} not run)" if left else "")


def _functions(tests: Iterable[str], directory: str) -> set[str]:
    return {function(test) for test in tests if test.startswith(f"{directory}/")}


def _reasons(hosts: Hosts) -> Iterator[str]:
    """One line for each reason: on which hosts, and how many tests."""
    counted: dict[str, collections.Counter[str]] = {}
    for name, host in sorted(hosts.items()):
        for outcome in host.values():
            if outcome.outcome == SKIPPED:
                counted.setdefault(outcome.reason, collections.Counter())[name] += 1
    for reason, times in sorted(counted.items()):
        yield f"- {reason}: " + ", ".join(f"{name} ({count})" for name, count in times.items())


def _section(title: str, lines: Sequence[str]) -> Iterator[str]:
    yield from ("", f"## {title}", "", *(lines or ["None."]))


def merge(logs: Iterable[Path], tests: Sequence[str], *, record_path: Path, page_path: Path) -> bool:
    """Take over *logs*; False when a test has failed, or was skipped everywhere."""
    record = Record.read(record_path)
    record.keep(tests)
    for log in logs:
        record.merge(log.stem, outcomes.read_log(log))
    record.write(record_path)
    earlier = earlier_rows(page_path.read_text(encoding="utf-8")) if page_path.exists() else []
    lines = page(record.hosts, record.tests, earlier)
    page_path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    failed = any(outcome.outcome == FAILED for host in record.hosts.values() for outcome in host.values())
    return not failed and not skipped_everywhere(record.hosts)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.vm.results")
    parser.add_argument("--record", type=Path, default=outcomes.PATH)
    parser.add_argument("--page", type=Path, default=PAGE)
    commands = parser.add_subparsers(dest="command", required=True)
    merging = commands.add_parser("merge")
    merging.add_argument("collected", type=Path)
    merging.add_argument("logs", type=Path, nargs="*")
    missing = commands.add_parser("missing")
    missing.add_argument("collected", type=Path)
    missing.add_argument("host")
    missing.add_argument("--one-each", action="store_true")
    missing.add_argument("--all", action="store_true")
    missing.add_argument("--below", default="", metavar="PREFIX")
    return parser


def main(arguments: Sequence[str]) -> int:
    """Do what was asked for; see the module. 1 when a test has failed, or was skipped everywhere."""
    asked = _parser().parse_args(arguments)
    tests = outcomes.collected(asked.collected)
    if asked.command == "merge":
        return int(not merge(asked.logs, tests, record_path=asked.record, page_path=asked.page))
    below = [test for test in tests if test.startswith(asked.below)]
    missing = Record.read(asked.record).missing(asked.host, below, one_each=asked.one_each, everything=asked.all)
    sys.stdout.writelines(f"{test}\n" for test in missing)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
