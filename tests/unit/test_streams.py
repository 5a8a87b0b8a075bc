"""What comes in pieces is what was sent: lines, characters, kept heads."""

from __future__ import annotations

import os
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox._pump import Capture
from sandbox._run import Text
from sandbox._sinks import decoded, finish
from sandbox._streams import lines

pytestmark = pytest.mark.unprivileged
NAMES = st.sampled_from(["stdout", "stderr"])
PIECES = st.lists(st.tuples(NAMES, st.lists(st.sampled_from([b"a", b"bc", b"\n", b"\n\n", b"\0"]), min_size=1).map(b"".join)))
TEXTS = st.text(alphabet=st.one_of(st.sampled_from("a\r\né€🦊"), st.characters(exclude_categories=["Cs"])))


@given(PIECES, st.integers(1, 9), st.booleans())
def test_lines_are_what_came_cut_at_newlines_and_limits(pieces: list[tuple[str, bytes]], limit: int, as_text: bool) -> None:
    given_in = [(name, data.decode() if as_text else data) for name, data in pieces]
    found = list(lines(given_in, limit))
    newline = "\n" if as_text else b"\n"
    for wanted in ("stdout", "stderr"):
        whole = [data for name, data in given_in if name == wanted]
        got = [line for name, line in found if name == wanted]
        assert newline[:0].join(got) == newline[:0].join(whole)
        assert all(0 < len(line) <= limit for line in got)
        assert all(newline not in line[:-1] for line in got)
        # Only a newline or the limit ends a line, but for the last.
        assert all(line.endswith(newline) or len(line) == limit for line in got[:-1])


def cut(raw: bytes, places: Sequence[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(raw) + 1) for place in places), len(raw)]
    return [raw[a:b] for a, b in zip(edges, edges[1:], strict=False) if a < b]


@given(TEXTS, st.lists(st.integers(0, 1000)))
def test_text_that_comes_in_pieces_is_whole(text: str, places: list[int]) -> None:
    got: list[str] = []
    how = Text("utf-8", "strict")
    sinks = decoded({1: got.append}, how)
    for piece in cut(text.encode(), places):
        sinks[1](piece)
    finish(sinks, (False, False))
    assert "".join(got) == how.decode(text.encode())
    assert "" not in got


@given(TEXTS, st.integers(0, 1000))
def test_text_that_was_cut_ends_with_a_whole_character(text: str, place: int) -> None:
    raw = text.encode()[:place]
    expected = raw.decode("utf-8", "ignore").replace("\r\n", "\n").replace("\r", "\n")
    assert Text("utf-8", "strict").decode(raw, cut=True) == expected


@given(st.lists(st.binary(min_size=1, max_size=9000), max_size=20), st.integers(0, 30_000))
def test_a_capture_keeps_the_head_and_counts_all(pieces: list[bytes], limit: int) -> None:
    read, write = os.pipe()
    try:
        capture = Capture(read, limit)
        for piece in pieces:
            os.write(write, piece)
            assert capture.read()
    finally:
        os.close(write)
    whole = b"".join(pieces)
    assert not capture.read()
    os.close(read)
    assert (capture.bytes(), capture.total, capture.truncated) == (whole[:limit], len(whole), len(whole) > limit)
