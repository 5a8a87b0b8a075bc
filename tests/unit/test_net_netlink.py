"""Netlink's framing: what is put together is read again, and what is cut off is told, not taken for whole."""

from __future__ import annotations

import os
import socket
import struct
from contextlib import nullcontext

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.errors import ProtocolError, SetupError
from sandbox.net import netlink
from sandbox.net.rtnetlink import Requests

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


def test_a_descriptor_that_is_no_socket_of_rtnetlink_is_refused_and_closed() -> None:
    made = [os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC), *(end.detach() for end in socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET))]
    made.append(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 9).detach())  # of another protocol, NETLINK_AUDIT
    for fd in made:
        with pytest.raises(ProtocolError, match="no socket of rtnetlink"):
            Requests(fd)
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)


class Scripted(Requests):
    """A socket that answers as it is told."""

    def __init__(self, answers: list[tuple[bytes, tuple[int, int]]]) -> None:
        super().__init__(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0).detach())
        self.answers = answers
        self.real = self._sock
        self._made = self  # type: ignore[assignment]

    def settimeout(self, _: float) -> None:
        """Nothing waits here."""

    def sendto(self, *_: object) -> None:
        """Nobody is asked."""

    def recvfrom(self, _: int) -> tuple[bytes, tuple[int, int]]:
        if not self.answers:
            raise TimeoutError
        return self.answers.pop(0)


def acknowledged(number: int, code: int = 0) -> bytes:
    return netlink.message(netlink.ERROR, 0, struct.pack("=i", -code) + bytes(16), sequence=number)


def test_only_the_kernel_is_believed_and_only_in_turn_and_not_for_ever() -> None:
    other, kernel = (4711, 0), (0, 0)
    message = netlink.message(16, netlink.REQUEST, b"")
    cases = (([(acknowledged(0, 1), other), (acknowledged(0), kernel)], None), ([(acknowledged(0), other)], SetupError), ([], SetupError))
    for answers, error in cases:
        requests = Scripted(list(answers))
        with pytest.raises(error) if error else nullcontext():
            requests.send(message, "ask")
        requests.real.close()
    again = Scripted([(acknowledged(0, 2), kernel), (acknowledged(0), kernel)])
    with pytest.raises(ProtocolError, match="order"):
        again.send([message, message], "ask")
    again.real.close()
