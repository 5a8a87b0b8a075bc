from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox._sys import subid
from sandbox._sys.subid import SubId

owners = st.text(st.characters(codec="ascii", categories=["Ll", "Nd"]), min_size=1, max_size=8)


@given(st.lists(st.builds(SubId, owners, st.integers(1, 1 << 31), st.integers(1, 1 << 30))))
def test_lines_survive_a_round_trip(lines):
    text = "".join(f"{line.owner}:{line.first}:{line.count}\n" for line in lines)
    assert subid.parse_subid(text) == tuple(lines)


@pytest.mark.parametrize(
    "line", ["", "# a:1:1", "a:1", ":1:1", "a:x:1", "a:1:-1", "a:1:0", "a:0:65536", "a:4294967295:1", "a:4294967290:10", "a:99999999999:1", "a:1:1:1"]
)
def test_lines_that_give_nothing_are_skipped(line):
    assert subid.parse_subid(f"{line}\nb:100000:65536\n") == (SubId("b", 100000, 65536),)


@given(st.text(max_size=200))
def test_any_text_is_read(text):
    assert all(line.count > 0 and line.first > 0 for line in subid.parse_subid(text))


def test_name_and_number_both_count_in_the_files_order():
    lines = subid.parse_subid("1000:300000:10\nann:100000:65536\nbob:200000:65536\nann:400000:5\n")
    assert subid.ranges_for(lines, name="ann", uid=1000) == ((300000, 10), (100000, 65536), (400000, 5))
    assert subid.ranges_for(lines, name=None, uid=1000) == ((300000, 10),)


def test_a_user_named_like_a_number_gets_nothing_of_that_number():
    lines = subid.parse_subid("1000:300000:10\n")
    assert subid.ranges_for(lines, name="1000", uid=1001) == ()


def test_the_files_of_the_host_are_read(tmp_path, monkeypatch):
    for name in ("SUBUID", "SUBGID"):
        path = tmp_path / name
        path.write_text(f"{os.geteuid()}:100000:65536\n")
        monkeypatch.setattr(subid, name, str(path))
    assert subid.of_user(os.geteuid()) == subid.Owned(((100000, 65536),), ((100000, 65536),))
    assert subid.of_user(os.geteuid() + 12345) == subid.Owned((), ())


def test_missing_files_give_nothing(tmp_path):
    assert subid.read(str(tmp_path / "none")) == ()
