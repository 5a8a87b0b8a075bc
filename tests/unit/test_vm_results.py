"""The page of what passes where: from lines to cells."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.vm import results


def write(path: Path, *lines: tuple[str, str, str]) -> None:
    text = "".join(json.dumps({"test": test, "outcome": outcome, "seconds": 0.1, "said": said}) + "\n" for test, outcome, said in lines)
    path.write_text(text, encoding="utf-8")


@pytest.fixture
def hosts(tmp_path: Path) -> list[str]:
    root, user = tmp_path / "6.12-root.jsonl", tmp_path / "6.12-user.jsonl"
    write(
        root,
        ("tests/live/a.py::one", "failed", "assert 1 == 2"),
        ("tests/live/a.py::one", "passed", ""),  # again, once it was repaired
        ("tests/live/a.py::two", "skipped", "needs user: runs as root"),
        ("tests/escape/b.py::three", "passed", ""),
        ("tests/escape/b.py::three", "failed", "left behind"),  # by its teardown
    )
    write(user, ("tests/live/a.py::two", "skipped", "needs systemd: cannot make a cgroup below /sys/fs/cgroup/x: no"))
    return [str(root), str(user)]


def test_the_last_outcome_of_a_test_counts_and_what_no_host_runs_is_named(hosts: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert results.main(hosts) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "| 6.12-root | 1 / 0 / 1 | 0 / 1 / 0 | not run |" in lines
    assert "| 6.12-user | 0 / 0 / 1 (1 not run) | not run | not run |" in lines
    assert lines[lines.index("## Failed") + 2 :][:1] == ["- 6.12-root: `tests/escape/b.py::three`"]
    assert lines[lines.index("## Skipped on every host") + 2 :][:1] == ["- `tests/live/a.py::two`"]
    assert "- needs systemd: cannot make a cgroup below /sys/fs/cgroup/... no: 6.12-user (1)" in lines


def test_all_is_well_when_nothing_failed_and_each_test_ran_somewhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "here.jsonl", ("tests/live/a.py::one", "passed", ""), ("tests/live/a.py::two", "skipped", "why"))
    write(tmp_path / "there.jsonl", ("tests/live/a.py::two", "passed", ""))
    assert results.main([str(tmp_path / "here.jsonl"), str(tmp_path / "there.jsonl")]) == 0
    assert capsys.readouterr().out.count("None.") == 2


def test_a_function_that_ran_with_one_of_its_parameters_has_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, all_of_them = tmp_path / "one.jsonl", tmp_path / "all.jsonl"
    write(one, ("tests/live/a.py::one[1]", "passed", ""))
    write(all_of_them, *((f"tests/live/a.py::{name}", "passed", "") for name in ("one[1]", "one[2]", "two[1]", "two[2]")))
    assert results.main([str(one), str(all_of_them)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "| one | 1 / 0 / 0 (1 not run) | not run | not run |" in lines
    assert "| all | 4 / 0 / 0 | not run | not run |" in lines


def test_the_table_of_the_round_before_is_kept_and_that_of_two_before_is_not(tmp_path: Path, hosts: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    before = tmp_path / "tests.md"
    write(tmp_path / "old.jsonl", ("tests/live/a.py::one", "passed", ""))
    write(tmp_path / "older.jsonl", ("tests/live/a.py::one", "passed", ""))
    for arguments in ([str(tmp_path / "older.jsonl")], ["--earlier", str(before), str(tmp_path / "old.jsonl")]):
        results.main(arguments)
        before.write_text(capsys.readouterr().out, encoding="utf-8")
    results.main(["--earlier", str(before), *hosts])
    below = capsys.readouterr().out.partition(results.EARLIER)[2]
    assert "| old | 1 / 0 / 0 | not run | not run |" in below
    assert "| older |" not in below
