"""Many descriptors waited for at once: order, numbers that are used again, forks."""

from __future__ import annotations

import contextlib
import os
import select

import pytest

from sandbox._reactor import Reactor, Watch


@pytest.fixture
def pipes():
    ends = [os.pipe() for _ in range(4)]
    yield ends
    for fd in {fd for pair in ends for fd in pair}:
        with contextlib.suppress(OSError):
            os.close(fd)


def test_hang_ups_come_in_the_order_in_which_they_happened(pipes):
    with contextlib.closing(Reactor()) as reactor:
        seen: list[int] = []

        def note(fd: int, event: int) -> None:
            assert event == select.POLLHUP
            seen.append(fd)
            reactor.unregister(fd)

        for read, _ in pipes:
            reactor.register(read, 0, note)
        assert not reactor.dispatch()
        for at in (2, 0, 3, 1):
            os.write(pipes[at][1], b"data, which nobody asked to be told of")
            os.close(pipes[at][1])
        while reactor.dispatch():
            pass
        assert seen == [pipes[at][0] for at in (2, 0, 3, 1)]
        assert len(reactor) == 0


def test_an_event_of_a_closed_descriptor_does_not_reach_who_has_its_number_now(pipes):
    with contextlib.closing(Reactor()) as reactor:
        seen: list[str] = []
        (first, feed), (second, feed2) = pipes[:2]

        def replace(fd: int, event: int) -> None:
            seen.append("replaced")
            reactor.unregister(fd)
            reactor.unregister(second)
            os.dup2(pipes[2][0], second)  # which has nothing to read
            reactor.register(second, select.POLLIN, lambda *_: seen.append("wrong"))

        reactor.register(first, select.POLLIN, replace)
        reactor.register(second, select.POLLIN, lambda *_: seen.append("too late"))
        os.write(feed, b"x")
        os.write(feed2, b"x")
        while reactor.dispatch():
            pass
        assert seen == ["replaced"]


def test_a_watch_sees_its_own_only_and_can_be_paused(pipes):
    with contextlib.closing(Reactor()) as reactor:
        seen: list[int] = []
        mine, others = (Watch(reactor, lambda fd, _: seen.append(fd)) for _ in range(2))
        (read, feed), (other, feed2) = pipes[:2]
        mine.register(read, 0)
        mine.register(read, select.POLLIN)  # anew: as of select.poll
        others.register(other, select.POLLIN)
        os.write(feed, b"x")
        os.write(feed2, b"x")
        assert mine.poll(0) == [(read, select.POLLIN)]
        mine.pause()
        others.unregister(other)
        assert not reactor.dispatch()
        mine.resume(reactor)
        assert reactor.dispatch()
        assert seen == [read]
        mine.close()
        assert len(reactor) == 0
        with pytest.raises(KeyError):
            mine.unregister(read)


def test_a_forked_child_takes_nothing_from_its_parent(pipes):
    with contextlib.closing(Reactor()) as reactor:
        read, feed = pipes[0]
        reactor.register(read, select.POLLIN, lambda *_: None)
        if (pid := os.fork()) == 0:
            reactor.unregister(read)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        os.write(feed, b"x")
        assert reactor.dispatch()
