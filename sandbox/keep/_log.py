"""What a container's program wrote: a log of two files of a bounded size, written by the keeper and read by anybody who may.

``log.0`` is being written; when it has half of the bound, it becomes ``log.1``, and what was that is gone. Each begins with MAGIC and a number
that grows by one with each file, by which a reader that was too slow knows that something is lost. A record is the time (nanoseconds since 1970),
the stream (1 or 2), the length, and the bytes as they came: not lines.
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
import time
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Final

from attrs import define, field, frozen

MAGIC: Final = b"sandbox log 1\n\0\0"
NUMBER: Final = struct.Struct("<Q")
RECORD: Final = struct.Struct("<QBI")
HEAD: Final = len(MAGIC) + NUMBER.size
CHUNK: Final = 32768  # bytes of one record, at most
LEAST: Final = 4 * (CHUNK + RECORD.size + HEAD)  # of a bound that makes sense
CURRENT: Final = "log.0"
LAST: Final = "log.1"
_NEXT: Final = "log.new"


@frozen
class Record:
    """What came at once from one stream: 1 is stdout, 2 is stderr."""

    time_ns: int
    stream: int
    data: bytes


@define
class LogWriter:
    """Writes into the directory behind *directory*, *bound* bytes at most. What the disk has no room for is dropped, and counted in `lost`."""

    directory: int
    bound: int
    lost: int = 0
    _fd: int = field(default=-1, init=False)
    _size: int = field(default=0, init=False)
    _number: int = field(default=0, init=False)

    def write(self, stream: int, data: bytes) -> None:
        """Add a record of at most CHUNK bytes."""
        raw = RECORD.pack(time.time_ns(), stream, len(data)) + data
        try:
            if self._fd < 0 or self._size + len(raw) > self.bound // 2:
                self._rotate()
            _write_all(self._fd, raw)
        except OSError:  # no room: the program is not to wait for somebody who makes some
            self.lost += len(data)
            if self._fd >= 0:
                os.ftruncate(self._fd, self._size)
                os.lseek(self._fd, self._size, os.SEEK_SET)
            return
        self._size += len(raw)

    def _rotate(self) -> None:
        room = os.fstatvfs(self.directory)
        if room.f_bavail < room.f_blocks // 8:  # others have their state in that file system, too
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fd = os.open(_NEXT, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=self.directory)
        try:
            _write_all(fd, MAGIC + NUMBER.pack(self._number + 1))
            if self._fd >= 0:
                os.rename(CURRENT, LAST, src_dir_fd=self.directory, dst_dir_fd=self.directory)
            os.rename(_NEXT, CURRENT, src_dir_fd=self.directory, dst_dir_fd=self.directory)
        except OSError:
            os.close(fd)
            raise
        self.close()
        self._fd, self._size, self._number = fd, HEAD, self._number + 1

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _write_all(fd: int, raw: bytes) -> None:
    view = memoryview(raw)
    while view:
        view = view[os.write(fd, view) :]


@define
class LogReader:
    """Reads the log of the directory behind *directory*. `read` gives what is new each time; `gaps` counts the files that were gone before."""

    directory: int
    gaps: int = 0
    _fd: int = field(default=-1, init=False)
    _offset: int = field(default=0, init=False)
    _number: int = field(default=0, init=False)

    def read(self, *, to_now: bool = False) -> Iterator[Record]:
        """What was written since the last call; with *to_now*, before this one, as far as it is there. Raises: ValueError: it is damaged."""
        end = self._now() if to_now else None
        while True:
            yield from self._rest(end)
            found = self._next_file()
            if found is None:
                return
            yield from self._rest(end)  # what came between the last look and the turn to the next file
            fd, number = found
            if end is not None and number > end[0]:
                if self._number:
                    os.close(fd)
                    return
                end = number, os.fstat(fd).st_size  # what there was has gone already
            self.close()
            self.gaps += max(number - self._number - 1, 0) if self._number else 0
            self._fd, self._offset, self._number = fd, HEAD, number

    def _now(self) -> tuple[int, int]:
        """The number of the file that is written to, and how long it is."""
        try:
            fd = os.open(CURRENT, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.directory)
        except FileNotFoundError:
            return 0, 0
        try:
            head = os.pread(fd, HEAD, 0)
            return (NUMBER.unpack(head[len(MAGIC) :])[0] if len(head) == HEAD else 0), os.fstat(fd).st_size
        finally:
            os.close(fd)

    def _rest(self, end: tuple[int, int] | None) -> Iterator[Record]:
        while self._fd >= 0 and (end is None or (self._number, self._offset) < end):
            head = os.pread(self._fd, RECORD.size, self._offset)
            if len(head) < RECORD.size:
                return
            time_ns, stream, size = RECORD.unpack(head)
            if stream not in (1, 2) or not 0 < size <= CHUNK:
                raise ValueError("the log is damaged")
            data = os.pread(self._fd, size, self._offset + RECORD.size)
            if len(data) < size:  # it is being written
                return
            self._offset += RECORD.size + size
            yield Record(time_ns, stream, data)

    def _next_file(self) -> tuple[int, int] | None:
        """The oldest file that is newer than ours."""
        for name in (LAST, CURRENT):
            with contextlib.suppress(FileNotFoundError):
                fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.directory)
                head = os.pread(fd, HEAD, 0)
                number = NUMBER.unpack(head[len(MAGIC) :])[0] if len(head) == HEAD and head.startswith(MAGIC) else 0
                if number > self._number:
                    return fd, number
                os.close(fd)
                if not number:
                    raise ValueError("the log is damaged")
        return None

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def lines(records: Iterable[Record]) -> Iterator[Record]:
    """The same by lines, each with its newline, but for a last one without; a line has the time at which it began. Streams may interleave."""
    open_lines: dict[int, Record] = {}
    for record in records:
        for piece in _split(record.data):
            begun = open_lines.pop(record.stream, None)
            line = Record(record.time_ns, record.stream, piece) if begun is None else Record(begun.time_ns, begun.stream, begun.data + piece)
            if line.data.endswith(b"\n") or len(line.data) >= CHUNK:
                yield line
            else:
                open_lines[record.stream] = line
    yield from open_lines.values()


def _split(data: bytes) -> list[bytes]:
    """As splitlines, but at newlines alone: bytes.splitlines takes carriage returns too."""
    found = [piece + b"\n" for piece in data.split(b"\n")]
    found[-1] = found[-1][:-1]
    return found if found[-1] else found[:-1]


def tail(records: Iterable[Record], count: int) -> Iterator[Record]:
    """The last *count* lines."""
    return iter(deque(lines(records), maxlen=count))
