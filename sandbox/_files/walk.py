"""Goes through a tree by descriptors, name by name and never through a link; what it finds may change under its hands."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import stat
from collections.abc import Callable, Generator, Iterator
from typing import Final, NamedTuple

from attrs import define, frozen

from sandbox._files.limits import Copying
from sandbox.errors import SandboxError, SetupError, UsageError

CHUNK: Final = 1 << 20
OPEN: Final = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
Opener = Callable[[int, str, int], int]  # opens a name in a directory, with these flags


class Enter(NamedTuple):
    """A directory; what is in it follows. *path* is relative to the top."""

    path: str
    info: os.stat_result


class Leave(NamedTuple):
    """The end of a directory."""

    path: str
    info: os.stat_result


class File(NamedTuple):
    """A regular file; *fd* is open until the next step is asked for."""

    path: str
    fd: int
    info: os.stat_result


class Link(NamedTuple):
    """A symbolic link."""

    path: str
    target: str
    info: os.stat_result


Step = Enter | Leave | File | Link


def open_here(directory: int, name: str, flags: int) -> int:
    """Open with the caller's own rights."""
    return os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)


@define
class _Level:
    path: str
    fd: int
    info: os.stat_result
    names: Iterator[str]


@frozen
class Walk:
    """One way through the tree that is copied; *opener* opens what it finds. Without *reads*, files are only looked at (their fd is -1)."""

    opener: Opener
    copying: Copying
    reads: bool = True

    def steps(self, top: int) -> Generator[Step]:
        """All that is below the directory *top*, which stays the caller's to close. Close the generator.

        Raises: LimitError, TimeoutError; UsageError: a FIFO, socket or device; SetupError: it cannot be read, or went away.
        """
        levels = [self._level("", os.dup(top))]
        try:
            while levels:
                level = levels[-1]
                name = next(level.names, None)
                if name is None:
                    if level.path:
                        yield Leave(level.path, level.info)
                    os.close(levels.pop().fd)
                    continue
                path = f"{level.path}/{name}" if level.path else name
                with self._naming(path):
                    info = self._look(level.fd, name)
                if stat.S_ISLNK(info.st_mode):
                    with self._naming(path):
                        target = self._readlink(level.fd, name)
                    yield Link(path, target, info)
                    continue
                if stat.S_ISREG(info.st_mode) and not self.reads:
                    yield File(path, -1, info)
                    continue
                fd, info = self._open(level.fd, name, path, info)
                if stat.S_ISDIR(info.st_mode):
                    levels.append(self._level(path, fd))
                    self.copying.check_depth(len(levels) - 1)
                    yield Enter(path, info)
                else:
                    try:
                        yield File(path, fd, info)
                    finally:
                        os.close(fd)
        finally:
            for level in levels:
                os.close(level.fd)

    def _level(self, path: str, fd: int) -> _Level:
        """A directory's level; its names are listed at once, so that one descriptor is open for each. Takes *fd*."""
        try:
            with self._naming(path), os.scandir(fd) as entries:
                names = [entry.name for entry in itertools.islice(entries, self.copying.entries_left + 1)]
                self.copying.take_entries(len(names))
                return _Level(path, fd, os.fstat(fd), iter(names))
        except BaseException:
            os.close(fd)
            raise

    def _open(self, directory: int, name: str, path: str, info: os.stat_result) -> tuple[int, os.stat_result]:
        """Open a file or directory, and look again: a program may have exchanged it since."""
        self._check_kind(info, path)
        with self._naming(path):
            fd = self.opener(directory, name, OPEN)
        try:
            info = os.fstat(fd)
            self._check_kind(info, path)
        except BaseException:
            os.close(fd)
            raise
        return fd, info

    def _check_kind(self, info: os.stat_result, path: str) -> None:
        if not (stat.S_ISREG(info.st_mode) or stat.S_ISDIR(info.st_mode)):
            raise UsageError(f"{self.copying.what}: {self._full(path)}: {kind(info.st_mode)} cannot be copied")

    def _look(self, directory: int, name: str) -> os.stat_result:
        try:
            return os.stat(name, dir_fd=directory, follow_symlinks=False)
        except PermissionError:
            with self._handle(directory, name) as fd:
                return os.fstat(fd)

    def _readlink(self, directory: int, name: str) -> str:
        try:
            return os.readlink(name, dir_fd=directory)
        except PermissionError:
            with self._handle(directory, name) as fd:
                return os.readlink("", dir_fd=fd)

    @contextlib.contextmanager
    def _handle(self, directory: int, name: str) -> Generator[int]:
        fd = self.opener(directory, name, os.O_PATH)
        try:
            yield fd
        finally:
            os.close(fd)

    def _full(self, path: str) -> str:
        top = self.copying.source
        return f"{top.rstrip('/')}/{path}" if path else top

    @contextlib.contextmanager
    def _naming(self, path: str) -> Generator[None]:
        try:
            yield
        except SandboxError:
            raise
        except TimeoutError as error:
            if error.errno is None:  # the copy's own
                raise
            raise self._failed(error, path) from error
        except OSError as error:
            raise self._failed(error, path) from error

    def _failed(self, error: OSError, path: str) -> SetupError:
        return SetupError(f"{self.copying.what}: {self._full(path)}", error.errno or errno.EIO, step="files")


def kind(mode: int) -> str:
    """What a file is, in words."""
    kinds = {stat.S_IFDIR: "a directory", stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}
    return kinds.get(stat.S_IFMT(mode), "a symbolic link" if stat.S_ISLNK(mode) else "of an unknown kind")


def contents(fd: int, info: os.stat_result, copying: Copying) -> Iterator[tuple[int, bytes]]:
    """A regular file's data with their offsets, holes left out; one that ends in a hole has a last piece, empty, at its end.

    Raises: LimitError, TimeoutError, OSError.
    """
    copying.check_size(info.st_size)  # a sparse file of a petabyte costs nothing to refuse
    if info.st_blocks * 512 >= info.st_size or not _knows_holes(fd):
        yield from _dense(fd, copying)
        return
    end = 0
    for start, stop in _extents(fd, info.st_size):
        for at in range(start, stop, CHUNK):
            data = os.pread(fd, min(CHUNK, stop - at), at)
            if not data:  # it has become shorter
                return
            copying.take_size(at + len(data) - end)
            end = at + len(data)
            yield at, data
    if end < info.st_size:
        copying.take_size(info.st_size - end)
        yield info.st_size, b""


def _knows_holes(fd: int) -> bool:
    """Whether its file system tells where data are; sysfs has sizes that are not true, no blocks, and does not (EINVAL)."""
    try:
        os.lseek(fd, 0, os.SEEK_DATA)
    except OSError as error:
        return error.errno == errno.ENXIO
    return True


def _dense(fd: int, copying: Copying) -> Iterator[tuple[int, bytes]]:
    at = 0
    while data := os.read(fd, CHUNK):
        copying.take_size(len(data))
        yield at, data
        at += len(data)


def _extents(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """Where a file has data: (start, end) each."""
    at = 0
    while at < size:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
            at = os.lseek(fd, start, os.SEEK_HOLE)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole follows
                return
            raise
        if start >= size:
            return
        yield start, min(at, size)
