"""Netlink's framing: what is put together is read again, and what is cut off is told, not taken for whole."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.errors import ProtocolError
from sandbox.net import netlink

ATTRIBUTES = st.lists(st.tuples(st.integers(0, 0x3FFF), st.binary(max_size=40)), max_size=6)
MESSAGES = st.lists(st.tuples(st.integers(0, 0xFFFF), st.integers(0, 0xFFFF), st.integers(0, 0xFFFFFFFF), st.binary(max_size=40)), max_size=5)


def aligned(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


@given(ATTRIBUTES)
def test_attributes_are_read_as_they_were_written(given_: list[tuple[int, bytes]]) -> None:
    assert list(netlink.attributes(b"".join(netlink.attribute(*one) for one in given_))) == given_


@given(MESSAGES)
def test_messages_are_read_as_they_were_written(given_: list[tuple[int, int, int, bytes]]) -> None:
    data = b"".join(aligned(netlink.message(kind, flags, body, sequence=sequence)) for kind, flags, sequence, body in given_)
    assert [tuple(one) for one in netlink.messages(data)] == given_


@given(st.binary(max_size=100))
def test_rubbish_is_an_error_of_ours_or_read_within_its_bounds(data: bytes) -> None:
    for read in (netlink.attributes, netlink.messages):
        try:
            assert sum(len(one[-1]) for one in read(data)) <= len(data)
        except ProtocolError:
            continue
    before = [*netlink.attributes(data, strict=False)]
    assert sum(len(value) for _, value in before) <= len(data)


def test_what_is_cut_off_is_told() -> None:
    whole = netlink.message(16, netlink.REQUEST, b"body")
    for data in (whole[:-1], whole + b"\0", whole[:8]):
        with pytest.raises(ProtocolError, match="netlink message"):
            list(netlink.messages(data))
    with pytest.raises(ProtocolError, match="netlink attribute"):
        list(netlink.attributes(netlink.attribute(1, b"value")[:-4]))
    assert list(netlink.attributes(netlink.attribute(1, b"four") + b"\0\1", strict=False)) == [(1, b"four")]


def test_marks_of_the_kernel_are_not_the_number() -> None:
    assert list(netlink.attributes(netlink.attribute(7 | netlink.NESTED, b"") + netlink.attribute(8 | 0x4000, b""))) == [(7, b""), (8, b"")]


def test_an_errno_is_what_the_kernel_says() -> None:
    assert netlink.code_of((-17).to_bytes(4, "little", signed=True) + b"rest") == 17
    assert netlink.code_of(bytes(4)) == 0
    with pytest.raises(ProtocolError):
        netlink.code_of(b"\0")


def test_an_attribute_that_is_too_long_is_refused() -> None:
    assert len(netlink.attribute(1, bytes(0xFFFB))) == 0x10000
    with pytest.raises(ProtocolError, match="at most"):
        netlink.attribute(1, bytes(0xFFFC))
