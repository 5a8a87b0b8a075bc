"""What is known of the tests on each host: from logs to the record, from the record to the page, and what is still to run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.vm import outcomes, results

pytest_plugins = ["pytester"]

ONE, TWO, THREE = "tests/live/a.py::one", "tests/live/a.py::two", "tests/escape/b.py::three"


class Place:
    """A record and a page of a test's own."""

    def __init__(self, directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.directory, self.record, self.page = directory, directory / "outcomes.tsv", directory / "tests.md"
        self.collected = directory / "collected"
        self._capsys = capsys

    def tests(self, *names: str) -> None:
        """These are what pytest collects from now on."""
        self.collected.write_text("\n".join((*names, "", f"{len(names)} tests collected in 0.1s")), encoding="utf-8")

    def merge(self, host: str, *lines: tuple[str, str, str]) -> int:
        log = self.directory / f"{host}.jsonl"
        text = "".join(json.dumps({"test": test, "outcome": outcome, "seconds": 0.1, "said": said}) + "\n" for test, outcome, said in lines)
        log.write_text(text, encoding="utf-8")
        return self._main("merge", str(self.collected), str(log))

    def missing(self, host: str, *options: str) -> list[str]:
        assert self._main("missing", str(self.collected), host, *options) == 0
        return self._capsys.readouterr().out.splitlines()

    def lines(self) -> list[str]:
        return self.page.read_text(encoding="utf-8").splitlines()

    def _main(self, *arguments: str) -> int:
        return results.main(["--record", str(self.record), "--page", str(self.page), *arguments])


@pytest.fixture
def place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Place:
    place = Place(tmp_path, capsys)
    place.tests(ONE, TWO, THREE)
    return place


def test_the_last_outcome_of_a_test_counts_and_what_no_host_runs_is_named(place: Place) -> None:
    status = place.merge(
        "6.12-root",
        (ONE, "failed", "assert 1 == 2"),
        (ONE, "passed", ""),  # again, once it was repaired
        (TWO, "skipped", "needs user: runs as root"),
        (THREE, "passed", ""),
        (THREE, "failed", "left behind"),  # by its teardown
    )
    assert status == 1
    assert place.merge("6.12-user", (TWO, "skipped", "needs systemd: cannot make a cgroup below /sys/fs/cgroup/x: no")) == 1
    lines = place.lines()
    assert "| 6.12-root | 1 / 0 / 1 | 0 / 1 / 0 | not run |" in lines
    assert "| 6.12-user | 0 / 0 / 1 (1 not run) | not run | not run |" in lines
    assert lines[lines.index("## Failed") + 2 :][:1] == [f"- 6.12-root: `{THREE}`"]
    assert lines[lines.index("## Skipped on every host") + 2 :][:1] == [f"- `{TWO}`"]
    assert "- needs systemd: cannot make a cgroup below /sys/fs/cgroup/... no: 6.12-user (1)" in lines


def test_all_is_well_when_nothing_failed_and_each_test_ran_somewhere(place: Place) -> None:
    assert place.merge("here", (ONE, "passed", ""), (TWO, "skipped", "why")) == 1
    assert place.merge("there", (TWO, "passed", "")) == 0
    assert place.lines().count("None.") == 2


def test_a_test_in_which_the_machine_died_has_failed(place: Place) -> None:
    assert place.merge("6.1-root", (ONE, "started", ""), (ONE, "passed", ""), (TWO, "started", "")) == 1
    assert place.missing("6.1-root") == [TWO, THREE]
    assert f"- 6.1-root: `{TWO}`" in place.lines()


def test_a_function_that_ran_with_one_of_its_parameters_has_run(place: Place) -> None:
    names = [f"tests/live/a.py::{name}" for name in ("one[1]", "one[2]", "two[1]", "two[2]")]
    place.tests(*names)
    place.merge("one", (names[0], "passed", ""))
    place.merge("all", *((name, "passed", "") for name in names))
    assert "| one | 1 / 0 / 0 (1 not run) | not run | not run |" in place.lines()
    assert "| all | 4 / 0 / 0 | not run | not run |" in place.lines()
    assert place.missing("one") == names[1:]
    assert place.missing("one", "--one-each") == ["tests/live/a.py::two[1]"]
    assert place.missing("another", "--one-each") == names[::2]
    assert place.missing("all") == []
    assert place.missing("all", "--all", "--one-each") == names[::2]


def test_what_has_not_run_or_failed_is_still_to_run_in_the_order_of_pytest(place: Place) -> None:
    place.tests(TWO, ONE, THREE)
    place.merge("6.1-root", (TWO, "skipped", "why"), (ONE, "failed", "assert"))
    assert place.missing("6.1-root") == [ONE, THREE]
    assert place.missing("6.1-root", "--below", "tests/live/") == [ONE]
    assert place.missing("6.1-root", "--all") == [TWO, ONE, THREE]
    assert place.missing("6.1-user") == [TWO, ONE, THREE]


def test_a_test_that_is_no_more_is_forgotten_and_so_is_what_only_it_said(place: Place) -> None:
    place.merge("6.1-root", (ONE, "skipped", "of one"), (TWO, "skipped", "of two"))
    place.tests(TWO, THREE)
    place.merge("6.1-root", (THREE, "passed", ""))
    text = place.record.read_text(encoding="utf-8")
    assert ONE not in text
    assert "of one" not in text
    assert f"{TWO}\t2" in text.splitlines()  # a reason keeps its number: other lines stay as they are
    place.merge("6.1-root", (THREE, "skipped", "of three"))
    assert f"{THREE}\t1" in place.record.read_text(encoding="utf-8").splitlines()


def test_the_record_is_sorted_and_stays_what_it_is(place: Place) -> None:
    place.merge("b", (TWO, "passed", ""), (ONE, "skipped", "a\treason\nof lines"))
    place.merge("a", (TWO, "failed", "assert"))
    lines = place.record.read_text(encoding="utf-8").splitlines()
    assert lines[-4:] == ["test\ta\tb", f"{THREE}\t-\t-", f"{ONE}\t-\t1", f"{TWO}\tf\tp"]
    assert "# 1\ta reason of lines" in lines
    record = outcomes.Record.read(place.record)
    record.write(place.record)
    assert place.record.read_text(encoding="utf-8").splitlines() == lines


def test_what_the_page_has_of_a_round_before_stays(place: Place) -> None:
    row = "| old | 1 / 0 / 0 | not run | not run |"
    place.page.write_text(f"# Page\n\n| new | 2 / 0 / 0 |\n\n{results.EARLIER}\n\n{row}\n", encoding="utf-8")
    for _ in range(2):
        place.merge("6.1-root", (ONE, "passed", ""))
        below = place.page.read_text(encoding="utf-8").partition(results.EARLIER)[2]
        assert row in below.splitlines()
        assert "| new |" not in below


def test_the_record_in_the_repository_makes_the_page_in_the_repository() -> None:
    record = outcomes.Record.read()
    text = results.PAGE.read_text(encoding="utf-8")
    assert "".join(f"{line}\n" for line in results.page(record.hosts, record.tests, results.earlier_rows(text))) == text


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[tuple[str, str]]]:
    path = tmp_path / "log"
    monkeypatch.setenv("SANDBOX_TESTS_LOG", str(path))
    return lambda: [(line["test"], line["outcome"]) for line in outcomes.read_log(path)]


def test_a_log_says_which_test_has_begun_and_what_came_of_it(pytester: pytest.Pytester, log: Callable[[], list[tuple[str, str]]]) -> None:
    pytester.makeconftest(Path(__file__).parents[1].joinpath("conftest.py").read_text(encoding="utf-8"))
    pytester.makepyfile(test_it="import os\n\ndef test_one() -> None: pass\n\ndef test_two() -> None: os._exit(3)\n")
    assert pytester.runpytest_subprocess("-p", "no:cacheprovider", "-o", f"pythonpath={Path(__file__).parents[2]}").ret == 3
    one, two = "test_it.py::test_one", "test_it.py::test_two"
    assert log() == [(one, "started"), (one, "passed"), (two, "started")]
