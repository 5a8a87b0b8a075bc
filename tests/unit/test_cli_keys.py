"""The keys that detach, without a terminal."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox import UsageError
from sandbox.cli.keys import USUAL, Keys, to_keys


def test_keys_are_written_as_docker_writes_them() -> None:
    assert to_keys(USUAL) == b"\x10\x11"
    assert to_keys("a,Ctrl-@,ctrl-],ctrl-_,ctrl-Z,,".rstrip(",")) == b"a\0\x1d\x1f\x1a"
    assert to_keys("") == b""
    for wrong in ("ctrl-", "ctrl-1", "ab", "a,,b", "é"):
        with pytest.raises(UsageError, match="no key"):
            to_keys(wrong)


@given(st.lists(st.text("ab\x10\x11", max_size=5)), st.sampled_from([b"\x10\x11", b"aab", b"a", b"abab", b""]))
def test_all_but_the_keys_goes_through_however_it_is_cut(pieces: list[str], keys: bytes) -> None:
    typed, passed = Keys(keys), b""
    for piece in pieces:
        passed += typed.take(piece.encode())
        if typed.were_typed:
            break
    whole = "".join(pieces).encode()
    assert typed.were_typed == (keys != b"" and keys in whole)
    assert passed + typed.rest() == (whole.partition(keys)[0] if typed.were_typed else whole)
