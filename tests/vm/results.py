"""Write docs/reference/tests.md from what tests have said on each host: ``python -m tests.vm.results [--earlier PAGE] HOST.jsonl ...``.

A line of such a file is what tests/conftest.py writes for a test: its name, its outcome, how long it took, and why it was skipped or how it failed.
The logs go with the machine that they were written on: of PAGE, which was made from others, the table is kept, below that of these.
"""

from __future__ import annotations

import collections
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, TypedDict

HEAD: Final = """# Which tests pass on which host

Made by `tests/vm/suite`, which runs the live and escape tests, and the faults, on each of these hosts. Not edited by hand.

Each cell: passed / failed / skipped, each set of parameters counted (an emulated machine may have been asked for the first one only); and how many test functions were not run there at all, though another host did. A host is this machine (hybrid control groups) or a kernel of Debian's in an emulated machine, with all controllers
on cgroup v2: as root; as uid 1000 with a delegated control group; as uid 1000 without; as uid 1000 in a session that systemd made.

A host may have been asked in parts, at different times: what failed and has been repaired since stands here as failed until it runs there again.
"""
EARLIER: Final = "## The round before, of other commits"
PASSED, FAILED, SKIPPED = OUTCOMES = ("passed", "failed", "skipped")
DIRECTORIES: Final = ("tests/live", "tests/escape", "tests/faults")


class Line(TypedDict):
    """What one test said."""

    test: str
    outcome: str
    seconds: float
    said: str


Host = Mapping[str, Line]  # by the name of the test
Hosts = Mapping[str, Host]


def read(path: Path) -> Host:
    """What each test said last. A test that failed in its teardown has failed, though its body passed."""
    found: dict[str, Line] = {}
    for text in path.read_text(encoding="utf-8").splitlines():
        line: Line = json.loads(text)
        found[line["test"]] = line
    return found


def rows(page: str) -> list[str]:
    """The table of hosts of an earlier *page*, but not what that had of one before it."""
    lines = page.partition(EARLIER)[0].splitlines()
    return [line for line in lines if line.startswith("| ")]


def page(hosts: Hosts, earlier: Sequence[str] = ()) -> Iterator[str]:
    """The lines of the page."""
    yield HEAD
    known = {test for host in hosts.values() for test in host}
    yield "| host | " + " | ".join(f"`{directory}`" for directory in DIRECTORIES) + " |"
    yield "| --- |" + " --- |" * len(DIRECTORIES)
    for name, host in hosts.items():
        yield f"| {name} | " + " | ".join(_cell(host, directory, known) for directory in DIRECTORIES) + " |"
    yield from _section("Failed", [f"- {name}: `{line['test']}`" for name, host in hosts.items() for line in host.values() if line["outcome"] == FAILED])
    yield from _section("Skipped on every host", [f"- `{test}`" for test in skipped_everywhere(hosts)])
    yield from _section("Skipped, and why", list(_reasons(hosts)))
    if earlier:
        yield from _section(EARLIER.removeprefix("## "), earlier)


def skipped_everywhere(hosts: Hosts) -> list[str]:
    """The tests that some host has skipped and none has run."""
    run = {test for host in hosts.values() for test, line in host.items() if line["outcome"] != SKIPPED}
    return sorted({test for host in hosts.values() for test in host} - run)


def _cell(host: Host, directory: str, known: set[str]) -> str:
    counted = collections.Counter(line["outcome"] for test, line in host.items() if test.startswith(f"{directory}/"))
    if not counted:
        return "not run"
    left = len(_functions(known, directory) - _functions(host, directory))
    return " / ".join(str(counted[outcome]) for outcome in OUTCOMES) + (f" ({left} not run)" if left else "")


def _functions(tests: Iterable[str], directory: str) -> set[str]:
    """The names without parameters."""
    return {test.partition("[")[0] for test in tests if test.startswith(f"{directory}/")}


def _reasons(hosts: Hosts) -> Iterator[str]:
    """One line for each reason: on which hosts, and how many tests."""
    counted: dict[str, collections.Counter[str]] = {}
    for name, host in hosts.items():
        for line in host.values():
            if line["outcome"] == SKIPPED:
                counted.setdefault(_shortened(line["said"]), collections.Counter())[name] += 1
    for reason, times in sorted(counted.items()):
        yield f"- {reason}: " + ", ".join(f"{name} ({count})" for name, count in times.items())


def _shortened(reason: str) -> str:
    """Without what is different each time."""
    return re.sub(r"/sys/fs/cgroup\S*", "/sys/fs/cgroup/...", reason).replace("\n", " ")


def _section(title: str, lines: Sequence[str]) -> Iterator[str]:
    yield from ("", f"## {title}", "", *(lines or ["None."]))


def main(arguments: Sequence[str]) -> int:
    """Print the page; 1 when a test has failed, or was skipped everywhere."""
    earlier: list[str] = []
    if arguments[0] == "--earlier":
        earlier, arguments = rows(Path(arguments[1]).read_text(encoding="utf-8")), arguments[2:]
    hosts = {Path(argument).stem: read(Path(argument)) for argument in arguments}
    sys.stdout.writelines(f"{line}\n" for line in page(hosts, earlier))
    failed = any(line["outcome"] == FAILED for host in hosts.values() for line in host.values())
    return int(failed or bool(skipped_everywhere(hosts)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
