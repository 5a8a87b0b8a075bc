"""Copies from a container to the host: what comes out stays below the destination, and nothing that lies there is written through."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator

from attrs import define

from sandbox import _plan as plan
from sandbox._files.inside import Inside
from sandbox._files.limits import Copying
from sandbox._files.walk import OPEN, Enter, File, Leave, Link, Step, Walk, contents, kind, open_here
from sandbox.errors import SandboxError, UsageError

_DIR_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def copy_out(inside: Inside, target: str, copying: Copying) -> None:
    """Copy a file or a tree to the host. Links are copied as links, never followed; special files are refused."""
    source = copying.source
    fd = inside.open(source, OPEN)
    try:
        info = os.fstat(fd)
        if stat.S_ISDIR(info.st_mode):
            _copy_tree(inside, fd, target, copying)
            return
        if not stat.S_ISREG(info.st_mode):
            raise UsageError(f"{copying.what}: {source}: {kind(info.st_mode)} cannot be copied")
        copying.take_entries(1)
        if os.path.isdir(target):
            target = os.path.join(target, os.path.basename(source))
        out = _Out(inside, copying, os.path.dirname(os.path.abspath(target)))
        with contextlib.closing(out):
            out.put_file(fd, info, os.path.basename(target), source)
    finally:
        os.close(fd)


@define
class _Opener:
    """Opens with the caller's own rights, or has init do it where they are not enough."""

    inside: Inside
    base: str

    def __call__(self, directory: int, name: str, flags: int) -> int:
        try:
            return open_here(directory, name, flags)
        except PermissionError:
            op = plan.Open("file", name, flags | os.O_NOFOLLOW, at="dir")
            return self.inside.do([op], ["file"], {"dir": directory}, base=self.base)[0]


def _copy_tree(inside: Inside, fd: int, target: str, copying: Copying) -> None:
    is_new = not os.path.isdir(target)
    os.makedirs(target, exist_ok=True)
    walk = Walk(_Opener(inside, f"{copying.source.rstrip('/')}/.../"), copying)
    with contextlib.closing(_Out(inside, copying, target)) as out, contextlib.closing(walk.steps(fd)) as steps:
        for step in steps:
            out.put(step)
        if is_new:
            _finish(out.levels[0], os.fstat(fd))


class _Out:
    """The host's side: a descriptor for each directory from the target down to where the copy is."""

    def __init__(self, inside: Inside, copying: Copying, target: str) -> None:
        self._inside = inside
        self._copying = copying
        self.levels = [os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)]

    def put(self, step: Step) -> None:
        """Take one step of a walk."""
        name = step.path.rpartition("/")[2]
        match step:
            case Enter():
                self.levels.append(_make_dir(name, self.levels[-1]))
                self._copying.report(step.path, entries=1)
            case Leave():
                _finish(self.levels[-1], step.info)
                os.close(self.levels.pop())
            case Link():
                _make_link(step.target, name, self.levels[-1])
                os.utime(name, ns=(step.info.st_atime_ns, step.info.st_mtime_ns), dir_fd=self.levels[-1], follow_symlinks=False)
                self._copying.report(step.path, entries=1)
            case File():
                self.put_file(step.fd, step.info, name, step.path)

    def put_file(self, fd: int, info: os.stat_result, name: str, path: str) -> None:
        """Copy an open file to *name*; *path* is its own."""
        copying = self._copying
        copying.check_size(info.st_size)
        new = _open_new(name, self.levels[-1], copying.what)
        try:
            pieces = contents(fd, info, copying)
            while (piece := self._next(pieces, path)) is not None:
                if piece[0]:
                    copying.report(path)
                _write(new, *piece)
            os.fchmod(new, stat.S_IMODE(info.st_mode) & 0o777)
            os.utime(new, ns=(info.st_atime_ns, info.st_mtime_ns))
        finally:
            os.close(new)
        copying.report(path, entries=1)

    def _next(self, pieces: Iterator[tuple[int, bytes]], path: str) -> tuple[int, bytes] | None:
        """The next piece, or None at the end; what cannot be read is the container's fault, not that of the target."""
        try:
            return next(pieces, None)
        except SandboxError:
            raise
        except OSError as error:
            if error.errno is None:  # the copy's own TimeoutError
                raise
            raise self._inside.failed(error, path) from error

    def close(self) -> None:
        """Close the descriptors."""
        while self.levels:
            os.close(self.levels.pop())


def _make_dir(name: str, out: int) -> int:
    with contextlib.suppress(FileExistsError):  # merged, as cp does; it is opened without following a link
        os.mkdir(name, 0o700, dir_fd=out)
    return os.open(name, _DIR_FLAGS, dir_fd=out)


def _finish(fd: int, info: os.stat_result) -> None:
    """A directory's mode and time, once all is in it. It stays its new owner's to change: a hostile one could not be removed else."""
    os.fchmod(fd, stat.S_IMODE(info.st_mode) & 0o777 | 0o700)
    os.utime(fd, ns=(info.st_atime_ns, info.st_mtime_ns))


def _make_link(target: str, name: str, out: int) -> None:
    try:
        os.symlink(target, name, dir_fd=out)
    except FileExistsError:
        os.unlink(name, dir_fd=out)
        os.symlink(target, name, dir_fd=out)


def _open_new(name: str, out: int, what: str) -> int:
    """A new regular file; one that has this name goes, for its mode may forbid to write to it. Nothing else is replaced, nor written to."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return os.open(name, flags, 0o600, dir_fd=out)
    except FileExistsError:
        mode = os.stat(name, dir_fd=out, follow_symlinks=False).st_mode
    if not stat.S_ISREG(mode):
        raise UsageError(f"{what}: {name} is {kind(mode)} in the target; remove it first")
    os.unlink(name, dir_fd=out)
    return os.open(name, flags, 0o600, dir_fd=out)


def _write(fd: int, offset: int, data: bytes) -> None:
    if not data:
        os.ftruncate(fd, offset)
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written
