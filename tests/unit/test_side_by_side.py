"""The side-by-side comparison: its table from runs that are made up, and one quick round of the real thing."""

from __future__ import annotations

import pytest

from benchmarks import side_by_side
from benchmarks.peers import Refused
from benchmarks.side_by_side import BEGIN, END, WORK, Result, Run, put_between, table
from tests.support import needs

PROGRAM = " ".join(WORK[1])


def test_the_table_tells_spread_and_overhead_round_by_round():
    bare = [Run(wall=0.010 + number, cpu=0.010) for number in range(6)]
    theirs = [Run(wall=0.012 + number, cpu=0.010 + number / 1000) for number in range(6)]
    result = Result({(PROGRAM, "no isolation"): bare, (PROGRAM, "theirs"): theirs}, [Refused("other", "not installed")])
    lines = table(result).splitlines()
    assert f"| {PROGRAM} | no isolation | 10.00 | 0.0% | 0% | - |" in lines
    # The host was a second slower in each round, for both: the overhead is 2 ms all the same.
    assert f"| {PROGRAM} | theirs | 12.50 | 20.0% | 40% | 2.00 (2.00 ... 2.00) |" in lines
    assert "Did not take part: other: not installed" in lines


def test_only_what_is_between_the_marks_is_replaced():
    text = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    assert put_between(text, "new") == f"before\n{BEGIN}\nnew\n{END}\nafter\n"
    with pytest.raises(ValueError, match="no lines"):
        put_between("nothing", "new")


def test_the_document_has_the_marks_and_a_table():
    with open(side_by_side.DOCUMENT) as file:
        text = file.read()
    assert all(f"| {' '.join(words)} | sandbox, exec |" in text for words in WORK)


@needs("root", "userns", "cgroup:memory", "cgroup:pids", "cgroup:cpu", "program:gcc", "program:bwrap", "program:prlimit")
def test_one_round_runs_everyone(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(side_by_side, "WORK", WORK[:2])
    document = tmp_path / "document.md"
    document.write_text(f"{BEGIN}\n{END}\n")
    assert side_by_side.main(["--rounds", "1", "--write", str(document)]) == 0
    printed = capsys.readouterr().out
    assert printed.strip() in document.read_text()
    for words in WORK[:2]:
        for name in ("no isolation", "bwrap + rlimits", "sandbox, whole", "sandbox, exec"):
            assert f"| {' '.join(words)} | {name} |" in printed
