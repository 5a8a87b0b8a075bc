"""`Deliveries`: descriptors that come by name, in whatever order they are asked for, and none that stays open."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from sandbox._launch import wire
from sandbox._launch.delivery import Deliveries
from sandbox._launch.driver import send_message


@pytest.fixture
def deliveries() -> Iterator[Deliveries]:
    before = set(os.listdir("/proc/self/fd"))
    made = Deliveries()
    yield made
    made.close()
    made.close()
    assert set(os.listdir("/proc/self/fd")) == before


def deliver(deliveries: Deliveries, name: bytes, count: int) -> None:
    """As the launcher does, from files of its own."""
    files = [os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC) for _ in range(count)]
    with socket.socket(fileno=os.dup(deliveries.fileno())) as theirs:
        send_message(theirs, wire.Msg.OPENED, name, files)
    for fd in files:
        os.close(fd)


def taken(deliveries: Deliveries, name: bytes) -> int | None:
    """How many came."""
    fds = deliveries.take(name)
    if fds is None:
        return None
    for fd in fds:
        assert not os.get_inheritable(fd)
        os.close(fd)
    return len(fds)


def test_what_comes_is_given_once_in_any_order(deliveries: Deliveries) -> None:
    deliveries.expect([b"a", b"b", b"c"], 2)
    assert taken(deliveries, b"b") is None
    for name in (b"a", b"b", b"c"):
        deliver(deliveries, name, 2)
    assert [taken(deliveries, name) for name in (b"c", b"a", b"b", b"a")] == [2, 2, 2, None]


def test_each_name_has_a_count_of_its_own(deliveries: Deliveries) -> None:
    deliveries.expect([b"a"], 2)
    deliveries.expect([b"b"], 3)
    deliver(deliveries, b"a", 2)
    deliver(deliveries, b"b", 3)
    assert (taken(deliveries, b"b"), taken(deliveries, b"a")) == (3, 2)


def test_what_nobody_expects_is_closed(deliveries: Deliveries) -> None:
    deliver(deliveries, b"stranger", 2)
    deliveries.expect([b"a", b"gone", b"here"], 1)
    deliver(deliveries, b"gone", 1)
    deliver(deliveries, b"here", 1)
    deliveries.forget([b"gone"])
    deliver(deliveries, b"a", 1)
    assert taken(deliveries, b"a") == 1
    deliveries.forget([b"here", b"never"])  # it had come: the fixture counts
    assert taken(deliveries, b"here") is None


def test_too_few_are_none(deliveries: Deliveries) -> None:
    deliveries.expect([b"a", b"b"], 3)
    deliver(deliveries, b"a", 2)
    deliver(deliveries, b"b", 3)
    assert taken(deliveries, b"a") is None
    assert taken(deliveries, b"b") == 3


def test_what_was_not_taken_is_closed_with_it(deliveries: Deliveries) -> None:
    deliveries.expect([b"a", b"b"], 2)
    deliver(deliveries, b"a", 2)
    deliver(deliveries, b"b", 2)
    assert taken(deliveries, b"b") == 2
    deliveries.close()
    assert taken(deliveries, b"a") is None
