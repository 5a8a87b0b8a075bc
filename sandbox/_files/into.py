"""Copies from the host into a container: read here, below the source, and written by init, below the target, many at a time."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Generator, Iterator
from typing import Final

from attrs import define, field

from sandbox import _plan as plan
from sandbox._files import content
from sandbox._files.batch import Batch
from sandbox._files.inside import ROOT, Inside
from sandbox._files.limits import Copying
from sandbox._files.walk import OPEN, Enter, File, Leave, Link, Step, Walk, contents, kind, open_here
from sandbox._users import Identity
from sandbox.errors import UsageError

_MODES: Final = 0o1777  # set-id bits stay outside
_NANO: Final = 10**9


def copy_in(inside: Inside, target: str, owner: Identity, copying: Copying) -> None:
    """Copy a file or a tree from the host; links in a tree are copied as links. What cannot be copied is refused before anything is touched."""
    fd = _open_source(copying)
    try:
        info = os.fstat(fd)
        if stat.S_ISDIR(info.st_mode):
            _plan_tree(fd, copying)
            _copy_tree(inside, fd, target, owner, copying)
            return
        copying.check_size(info.st_size)
        copying.take_entries(1)
        copying.total_entries, copying.total_size = 1, info.st_size
        if content.is_dir(inside, target):
            target = f"{target.rstrip('/')}/{os.path.basename(os.path.abspath(copying.source))}"
        with _Target.opened(inside, owner, copying) as out:
            out.put_file(fd, info, target)
    finally:
        os.close(fd)


def _open_source(copying: Copying) -> int:
    """Open what the caller named, through links. Raises: UsageError: it is not there, or cannot be copied; OSError."""
    source = copying.source
    try:
        mode = os.stat(source).st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(f"{copying.what}: {source}: no such file or directory") from None
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise UsageError(f"{copying.what}: {source}: {kind(mode)} cannot be copied")
    fd = os.open(source, OPEN)
    if stat.S_ISREG(mode := os.fstat(fd).st_mode) or stat.S_ISDIR(mode):
        return fd
    os.close(fd)
    raise UsageError(f"{copying.what}: {source}: {kind(mode)} cannot be copied")


def _plan_tree(top: int, copying: Copying) -> None:
    """Look at all of it once: for its totals, and so that nothing is copied of what cannot be copied whole."""
    planned = copying.again()
    with contextlib.closing(Walk(open_here, planned, reads=False).steps(top)) as steps:
        for step in steps:
            if isinstance(step, File):
                planned.take_size(step.info.st_size)
    copying.total_entries, copying.total_size = planned.entries, planned.size


@define
class _Target:
    """The container's side of a copy."""

    batch: Batch
    copying: Copying
    done: list[str] = field(factory=list[str])  # entries that are complete once the batch is carried out

    @classmethod
    @contextlib.contextmanager
    def opened(
        cls, inside: Inside, owner: Identity, copying: Copying, *, base: str = "", directory: int | None = None
    ) -> Generator[_Target]:
        """One for a copy that takes place inside the block; at its end, all of it has been carried out."""
        batch = Batch(inside, owner.uid, owner.gid, base, directory)
        target = cls(batch, copying)
        batch.flushed = target.report
        with contextlib.closing(batch):
            yield target
            batch.flush()

    def report(self) -> None:
        """Tell of the entries that have been carried out."""
        done, self.done = self.done, []
        for path in done:
            self.copying.report(path, entries=1)
        self.copying.check_time()

    def put(self, step: Step) -> None:
        """Take one step of a walk."""
        batch, path = self.batch, step.path
        match step:
            case Enter():
                self.done.append(path)
                batch.add(plan.MakeDir(path, batch.at, stat.S_IMODE(step.info.st_mode) & _MODES, batch.uid, batch.gid))
            case Leave():
                batch.add(_set_times(path, batch.at, step.info))
            case Link():
                self.done.append(path)
                # One that is there already would make the second copy of a tree fail.
                batch.add(
                    plan.Unlink(path, batch.at, optional=True),
                    plan.Symlink(path, step.target, batch.at, batch.uid, batch.gid),
                    _set_times(path, batch.at, step.info),
                )
            case File():
                self.put_file(step.fd, step.info, path)

    def put_file(self, fd: int, info: os.stat_result, path: str) -> None:
        """Copy one file to *path*."""
        for offset, data in _created(contents(fd, info, self.copying)):
            if offset and offset != plan.NEW_FILE:
                self.copying.report(path)
            self.batch.write(path, data, mode=stat.S_IMODE(info.st_mode) & 0o777, offset=offset)
        self.done.append(path)
        self.batch.add(_set_times(path, self.batch.at, info))


def _copy_tree(inside: Inside, top: int, target: str, owner: Identity, copying: Copying) -> None:
    info = os.fstat(top)
    ops = content.dir_ops(target, uid=owner.uid, gid=owner.gid, mode=stat.S_IMODE(info.st_mode) & _MODES)
    (fd,) = inside.do([*ops, plan.Open("dir", target, os.O_PATH | os.O_DIRECTORY, at=ROOT)], ["dir"])
    try:
        with (
            _Target.opened(inside, owner, copying, base=target.rstrip("/") + "/", directory=fd) as out,
            contextlib.closing(Walk(open_here, copying).steps(top)) as steps,
        ):
            for step in steps:
                out.put(step)
        if target != "/":
            inside.do([_set_times(target, ROOT, info)])
    finally:
        os.close(fd)


def _created(pieces: Iterator[tuple[int, bytes]]) -> Iterator[tuple[int, bytes]]:
    """The first piece makes the file: it has no offset, and is empty if the file begins with a hole or has nothing at all."""
    first = next(pieces, (0, b""))
    if first[0]:
        yield plan.NEW_FILE, b""
        yield first
    else:
        yield plan.NEW_FILE, first[1]
    yield from pieces


def _set_times(path: str, at: str, info: os.stat_result) -> plan.SetTimes:
    seconds, nanoseconds = divmod(info.st_mtime_ns, _NANO)
    return plan.SetTimes(path, at, seconds, nanoseconds)
