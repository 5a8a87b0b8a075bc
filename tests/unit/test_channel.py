"""A channel sleeps until its answer comes, or looks for it first where sleep has turned out to be dear."""

from __future__ import annotations

import gc
import os
import socket
from collections.abc import Iterator

import pytest

from sandbox._launch import driver
from sandbox._launch.driver import DEAR_S, LOOK_S, LOOKS, MOST_PAUSE, Channel, Launcher
from sandbox.errors import BrokenError

CHEAP = DEAR_S / 2
DEAR = LOOK_S  # more than DEAR_S, and still soon


@pytest.fixture
def ends() -> Iterator[tuple[Channel, socket.socket]]:
    channel, number = Channel.pair()
    theirs = socket.socket(fileno=number)
    with theirs:
        yield channel, theirs
    channel.close()


@pytest.fixture(autouse=True)
def _two_cpus_and_nothing_learned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    monkeypatch.setattr(Channel, "first_looks", 0)


def sleep(channel: Channel) -> None:
    assert not channel.wait(0.0)


def find_dear(channel: Channel) -> None:
    """Have it sleep, and learn that this was dear."""
    sleep(channel)
    channel.learn(DEAR, 0.0)


def look(ends: tuple[Channel, socket.socket]) -> None:
    """Have it find an answer at once."""
    channel, theirs = ends
    theirs.send(b"x")
    assert channel.wait(None)
    channel.learn(DEAR, 0.0)
    assert channel.sock.recv(1) == b"x"


def test_a_channel_sleeps_at_first(ends: tuple[Channel, socket.socket]) -> None:
    assert ends[0].looks == 0


def test_it_looks_after_a_sleep_that_was_dear(ends: tuple[Channel, socket.socket]) -> None:
    sleep(ends[0])
    ends[0].learn(DEAR, 0.0)
    assert ends[0].looks == LOOKS


def test_another_channel_begins_with_what_was_learned(ends: tuple[Channel, socket.socket]) -> None:
    sleep(ends[0])
    ends[0].learn(DEAR, 0.0)
    other, theirs = Channel.pair()
    assert other.looks == LOOKS
    sleep(other)  # it looks first, in vain
    other.learn(CHEAP, 0.0)
    assert Channel.first_looks == -LOOKS
    assert ends[0].looks == LOOKS
    other.close()
    os.close(theirs)


@pytest.mark.parametrize(("took_s", "busy_s"), [(CHEAP, 0.0), (DEAR, DEAR - CHEAP), (10 * LOOK_S, 0.0)])
def test_it_sleeps_on_where_that_is_cheap_or_answers_take_long(ends: tuple[Channel, socket.socket], took_s: float, busy_s: float) -> None:
    sleep(ends[0])
    ends[0].learn(took_s, busy_s)
    assert ends[0].looks == 0


def test_it_sleeps_on_where_there_is_one_cpu_only(ends: tuple[Channel, socket.socket], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3})
    sleep(ends[0])
    ends[0].learn(DEAR, 0.0)
    assert ends[0].looks == 0


def test_an_answer_that_is_there_teaches_nothing_but_that_one_more_look_is_over(ends: tuple[Channel, socket.socket]) -> None:
    channel = ends[0]
    find_dear(channel)
    look(ends)
    assert channel.looks == LOOKS - 1


def test_after_its_looks_it_sleeps_once_to_see_what_that_costs(ends: tuple[Channel, socket.socket]) -> None:
    channel, theirs = ends
    sleep(channel)
    channel.learn(DEAR, 0.0)
    theirs.send(b"x")
    for _ in range(LOOKS):
        assert channel.wait(None)
        channel.learn(DEAR, 0.0)
    assert channel.looks == 0


def test_a_look_that_finds_nothing_in_time_ends_in_sleep(ends: tuple[Channel, socket.socket]) -> None:
    channel = ends[0]
    find_dear(channel)
    look(ends)
    sleep(channel)
    assert channel.looks == 0
    channel.learn(DEAR, 0.0)  # the others were not in vain: it goes on
    assert channel.looks == LOOKS


def test_where_the_first_look_is_in_vain_none_follows_for_a_while_each_time_for_a_longer_one(ends: tuple[Channel, socket.socket]) -> None:
    channel = ends[0]
    sleep(channel)
    channel.learn(DEAR, 0.0)
    pauses = []
    for _ in range(8):
        sleep(channel)  # it looks first
        pauses.append(-channel.looks)
        for _ in range(pauses[-1]):
            assert channel.looks < 0
            sleep(channel)
            channel.learn(DEAR, 0.0)
        assert channel.looks == 0
        sleep(channel)
        channel.learn(DEAR, 0.0)
        assert channel.looks == LOOKS
    assert pauses == [LOOKS, 2 * LOOKS, 4 * LOOKS, 8 * LOOKS, 16 * LOOKS, 32 * LOOKS, MOST_PAUSE, MOST_PAUSE]


def test_a_look_that_was_not_in_vain_makes_the_next_pause_a_short_one(ends: tuple[Channel, socket.socket]) -> None:
    channel, theirs = ends
    channel.looks = LOOKS
    sleep(channel)
    channel.looks = LOOKS
    theirs.send(b"x")
    assert channel.wait(None)
    assert channel.sock.recv(1) == b"x"
    channel.looks = LOOKS
    sleep(channel)
    assert channel.looks == -LOOKS


def test_a_dead_launcher_s_descriptor_is_nobody_else_s_while_somebody_may_send_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    number = ours.fileno()
    launcher = Launcher(ours)
    monkeypatch.setattr(driver, "_current", launcher)
    del ours
    theirs.close()
    with pytest.raises(BrokenError):
        launcher.create(b"", ())
    assert driver.known() is None  # the next one gets a launcher of its own
    with open(os.devnull) as another:
        assert another.fileno() != number == launcher.fileno()
    with pytest.raises(BrokenError):  # a thread that had it in hand before
        launcher.create(b"", ())
    del launcher
    gc.collect()  # the tracebacks of what was raised have it, too
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(number)
