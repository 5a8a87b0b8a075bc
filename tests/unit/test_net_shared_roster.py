"""The roster that several processes write: pieces of lines, logs of many who came and went, and the kernel's word for who is there."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Generator, Iterable
from pathlib import Path

import pytest

from sandbox.errors import SetupError
from sandbox.net import netlink
from sandbox.net.roster import BEGIN, Member
from sandbox.net.shared_roster import Log, Presence, SharedWriter


class File:
    """A log in a file, as any number of processes have it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.alive: set[int] = set()
        self.writers: list[SharedWriter] = []
        self.writer().begin("Shop", ["10.0.0.0/8"], forwards=False)

    def writer(self) -> SharedWriter:
        made = SharedWriter(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600), self.living)
        self.writers.append(made)
        return made

    def living(self, members: Iterable[Member]) -> list[Member]:
        return [member for member in members if member.port in self.alive]

    def read(self) -> Log:
        found = Log(os.open(self.path, os.O_RDONLY))
        found.refresh()
        return found


@pytest.fixture
def log(tmp_path: Path) -> Generator[File]:
    log = File(tmp_path / "names")
    yield log
    for writer in log.writers:
        writer.close()


def test_writers_of_two_processes_write_one_log(log: File) -> None:
    one, two = log.writer(), log.writer()
    one.join(Member("1-1", ["10.0.0.2"], ["web"], port=7))
    two.join(Member("2-1", ["10.0.0.3"], ["db"], port=8))
    one.leave("1-1")
    found = log.read()
    assert (found.name, found.forwards, sorted(found.members), found.members["2-1"].port) == ("shop", False, ["2-1"], 8)
    found.close()


def test_a_log_that_finds_no_room_to_begin_anew_stays_as_it_was(log: File, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = log.writer()
    log.alive.add(7)
    writer.join(Member("1-1", ["10.0.0.2"], ["web"], port=7))
    write = os.pwrite

    def lacking(fd: int, data: bytes, at: int) -> int:
        lacks = at and (data.startswith(b'["network') or b"4-1" in data)
        return write(fd, data[:-10] if lacks else data, at)

    monkeypatch.setattr(os, "pwrite", lacking)
    for number in range(10_000):
        writer.leave(f"2-{number}")
    with pytest.raises(SetupError, match="write down"):
        writer.join(Member("4-1", ["10.0.0.4"], ["cut"], port=7))
    monkeypatch.undo()
    assert os.pread(writer.fd, 8, 0) == BEGIN.to_bytes(8, "little")
    found = log.read()
    assert (found.name, [*found.members]) == ("shop", ["1-1"])
    found.close()
    writer.join(Member("1-2", ["10.0.0.3"], ["db"], port=7))
    found = log.read()
    assert sorted(found.members) == ["1-1", "1-2"]
    found.close()


@pytest.mark.parametrize("size", [1, 20, -2])
def test_a_piece_of_a_line_of_somebody_who_was_killed_counts_for_nothing(log: Log, size: int) -> None:
    one, two = log.writer(), log.writer()
    late = log.read()
    os.pwrite(one.fd, Member("1-1", ["10.0.0.2"], ["web"]).line()[:size], os.fstat(one.fd).st_size)
    two.join(Member("2-1", ["10.0.0.3"], ["db"]))
    late.refresh()
    for found in (late, log.read()):
        assert sorted(found.members) == ["2-1"]
        found.close()


def test_a_log_of_many_who_came_and_went_or_were_killed_stays_small(log: File) -> None:
    one, two = log.writer(), log.writer()
    slow = log.read()
    log.alive = {1}
    one.join(Member("stays", ["10.0.0.2"], ["stays"], port=1))
    for number in range(2, 3000):
        (one, two)[number % 2].join(Member(f"k{number}", ["10.0.0.3"], ["comes", "goes"], port=number))
        if number % 3:  # others are killed, and nobody says so
            two.leave(f"k{number}")
    assert os.stat(log.path).st_blocks * 512 < 1 << 19
    slow.refresh()
    for found in (slow, log.read()):
        assert found.members["stays"].addresses == ("10.0.0.2",)
        assert found.name == "shop"
        found.close()


def test_a_log_that_was_being_written_anew_loses_nobody(log: File) -> None:
    one = log.writer()
    for number in range(5):
        one.join(Member(f"k{number}", [f"10.0.0.{number}"], ["name"], port=number))
    known = log.read()
    end = os.fstat(one.fd).st_size
    os.pwrite(one.fd, known.head + known.members["k0"].line()[:-9], end)  # killed within it
    log.writer().join(Member("k9", ["10.0.0.9"], ["name"]))
    known.refresh()
    for found in (known, log.read()):
        assert len(found.members) == len(found.named("name")) == 6
        found.close()


def answers(*kinds: tuple[int, int, int]) -> bytes:
    """Messages of the kernel: kind, family, index."""
    return b"".join(netlink.message(kind, 0, struct.pack("=BxHiII", family, 0, index, 0, 0)) for kind, family, index in kinds)


class Told(socket.socket):
    """A socket from which *said* is read, packet by packet, as from the kernel (or *sender*)."""

    said: list[bytes | OSError]
    asked = 0
    sender = 0

    def recvfrom(self, *_: int) -> tuple[bytes, tuple[int, int]]:  # type: ignore[override]
        if not self.said:
            raise BlockingIOError
        found = self.said.pop(0)
        if isinstance(found, OSError):
            raise found
        return found, (self.sender, 0)

    def sendto(self, data: bytes, *_: object) -> int:  # type: ignore[override]
        self.asked += 1
        return len(data)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Generator[tuple[Told, Presence]]:
    sock = Told(socket.AF_UNIX, socket.SOCK_DGRAM)
    sock.said = []
    monkeypatch.setattr("sandbox.net.shared_roster.socket.socket", lambda fileno: sock)
    presence = Presence(sock.fileno())
    yield sock, presence
    sock.close()


NEW, DEL, DONE, ERROR = 16, 17, 3, 2


def test_who_is_there_is_known_from_a_listing_and_what_came_since(told: tuple[Told, Presence]) -> None:
    sock, presence = told
    assert presence.has(7)  # nobody knows yet
    sock.said = [answers((NEW, 0, 5)), answers((NEW, 0, 6), (DEL, 0, 5)), answers((DONE, 0, 0))]
    presence.refresh()
    assert [presence.has(index) for index in (5, 6, 7)] == [False, True, False]
    sock.said = [answers((NEW, 0, 7), (DEL, 7, 6))]  # the bridge lets go of a port that is still there
    presence.refresh()
    assert [presence.has(index) for index in (5, 6, 7)] == [False, True, True]
    sock.sender, sock.said = 99, [answers((DEL, 0, 7))]  # not the kernel
    presence.refresh()
    assert presence.has(7)


def test_what_was_missed_is_asked_for_again(told: tuple[Told, Presence]) -> None:
    import errno

    sock, presence = told
    sock.said = [answers((NEW, 0, 5), (DONE, 0, 0)), OSError(errno.ENOBUFS, "no room"), answers((NEW, 0, 6))]
    presence.refresh()
    assert (sock.asked, presence.has(5)) == (2, True)
    sock.said = [answers((DONE, 0, 0))]
    presence.refresh()
    assert [presence.has(index) for index in (5, 6)] == [False, True]


def test_the_rest_of_an_answer_to_somebody_before_us_is_not_all(told: tuple[Told, Presence]) -> None:
    sock, presence = told
    busy = netlink.message(ERROR, 0, struct.pack("=i", -16) + bytes(16))
    sock.said = [busy, answers((NEW, 0, 6), (DONE, 0, 0))]
    presence.refresh()
    assert (sock.asked, presence.has(5)) == (2, True)
    sock.said = [answers((NEW, 0, 5), (NEW, 0, 6), (DONE, 0, 0))]
    presence.refresh()
    assert [presence.has(index) for index in (5, 6, 7)] == [True, True, False]
