"""What came of each test on each host, the last time that it ran there: the record that is kept in the repository, beside this file.

A table, sorted, with a line for each test that there is and a column for each host: ``p`` passed, ``f`` failed, ``-`` did not run there yet; a
number: skipped, for the reason that has this number above the table. Logs, as tests/conftest.py writes them, are merged into it.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final, TypedDict

PATH: Final = Path(__file__).with_name("outcomes.tsv")
STARTED, PASSED, FAILED, SKIPPED = "started", "passed", "failed", "skipped"
PASSED_CELL, FAILED_CELL, NO_CELL = "p", "f", "-"
HEAD: Final = "# Made by tests/vm/suite: see tests/vm/outcomes.py. p: passed; f: failed; -: not run; a number: skipped, because"
FIRST: Final = "test"


class Line(TypedDict):
    """What one test said."""

    test: str
    outcome: str
    seconds: float
    said: str


@dataclasses.dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a test; and why it was skipped, when it was."""

    outcome: str
    reason: str = ""


Host = Mapping[str, Outcome]  # by the name of the test


@dataclasses.dataclass
class Record:
    """All outcomes. Of tests that no host has run, only that there are."""

    tests: list[str] = dataclasses.field(default_factory=list[str])
    hosts: dict[str, dict[str, Outcome]] = dataclasses.field(default_factory=dict[str, dict[str, Outcome]])
    reasons: list[str] = dataclasses.field(default_factory=list[str])  # a number stays that of its reason

    @classmethod
    def read(cls, path: Path = PATH) -> Record:
        """That of *path*, or an empty one."""
        record = cls()
        names: list[str] = []
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
            test, *cells = line.split("\t")
            if test.startswith("#"):
                record.reasons += cells
            elif not names:
                names = cells
                record.hosts = {name: {} for name in names}
            else:
                record.tests.append(test)
                for name, cell in zip(names, cells, strict=True):
                    if cell != NO_CELL:
                        record.hosts[name][test] = record._outcome(cell)
        return record

    def write(self, path: Path = PATH) -> None:
        """All of it, at once: who is interrupted has the one before."""
        new = path.with_suffix(".new")
        new.write_text("".join(f"{line}\n" for line in self._lines()), encoding="utf-8")
        new.replace(path)

    def keep(self, collected: Iterable[str]) -> None:
        """Take over the names of the tests that there are; forget those that there are no more."""
        self.tests = sorted(collected)
        known = set(self.tests)
        for name, host in self.hosts.items():
            self.hosts[name] = {test: outcome for test, outcome in host.items() if test in known}

    def merge(self, name: str, log: Iterable[Line]) -> None:
        """Take over what tests have said on a host; of those that there are."""
        known = set(self.tests)
        new = {test: outcome for test, outcome in outcomes(log).items() if test in known}
        self.hosts.setdefault(name, {}).update(new)

    def missing(self, name: str, collected: Iterable[str], *, one_each: bool = False, everything: bool = False) -> Iterator[str]:
        """The tests that a host has still to run, and those that failed there. With *one_each*, the first set of parameters of a function will do."""
        host = {} if everything else self.hosts.get(name, {})
        seen = {function(test) for test, outcome in host.items() if outcome.outcome != FAILED}
        for test in collected:
            if test in host:
                wanted = host[test].outcome == FAILED
            else:
                wanted = not one_each or function(test) not in seen
                seen.add(function(test))
            if wanted:
                yield test

    def _outcome(self, cell: str) -> Outcome:
        if cell.isdecimal():
            return Outcome(SKIPPED, self.reasons[int(cell) - 1])
        return Outcome({PASSED_CELL: PASSED, FAILED_CELL: FAILED}[cell])

    def _lines(self) -> Iterator[str]:
        used = {outcome.reason for host in self.hosts.values() for outcome in host.values()}
        self.reasons = [reason if reason in used else "" for reason in self.reasons]
        self._number(sorted(used.difference(self.reasons, [""])))
        yield HEAD
        yield from (f"# {number}\t{reason}" for number, reason in enumerate(self.reasons, 1))
        names = sorted(self.hosts)
        yield "\t".join([FIRST, *names])
        for test in self.tests:
            yield "\t".join([test, *(self._cell(self.hosts[name].get(test)) for name in names)])

    def _number(self, reasons: Iterable[str]) -> None:
        """Numbers that nothing has any more are given away first."""
        for reason in reasons:
            if "" in self.reasons:
                self.reasons[self.reasons.index("")] = reason
            else:
                self.reasons.append(reason)

    def _cell(self, outcome: Outcome | None) -> str:
        if outcome is None:
            return NO_CELL
        if outcome.outcome == SKIPPED:
            return str(self.reasons.index(outcome.reason) + 1)
        return PASSED_CELL if outcome.outcome == PASSED else FAILED_CELL


def function(test: str) -> str:
    """The name without parameters."""
    return test.partition("[")[0]


def read_log(path: Path) -> Iterator[Line]:
    """What tests have said, in turn."""
    for text in path.read_text(encoding="utf-8").splitlines():
        yield json.loads(text)


def outcomes(log: Iterable[Line]) -> dict[str, Outcome]:
    """What each test said last. One that failed in its teardown has failed, though its body passed; one that has only begun, too: all ended in it."""
    found: dict[str, Outcome] = {}
    for line in log:
        outcome = FAILED if line["outcome"] == STARTED else line["outcome"]
        found[line["test"]] = Outcome(outcome, _shortened(line["said"]) if outcome == SKIPPED else "")
    return found


def collected(path: Path) -> list[str]:
    """The names of all tests, as ``pytest --collect-only -q`` has said them."""
    return [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("tests/") and "::" in line]


def _shortened(reason: str) -> str:
    """Without what is different each time."""
    return re.sub(r"/sys/fs/cgroup\S*", "/sys/fs/cgroup/...", reason).replace("\n", " ").replace("\t", " ") or "?"
