"""What a start found of its root, so that the next one over the same need not open it again: a few looks by path instead."""

from __future__ import annotations

import os
import stat
import time
from typing import Final

from attrs import frozen

from sandbox.errors import UsageError
from sandbox.fs._host import HostFiles, host_files

State = tuple[int, ...]
_ACCOUNTS: Final = ("etc/passwd", "etc/group")
_SETTLED_NS: Final = 100_000_000  # a file system may keep times in steps of 10 ms: what changes twice within one has one time


def state_of(path: str, directory: int | None, *, follow: bool = False) -> State:
    """What tells one state of an entry from another: device, inode, mode, owner, and the times of its last changes; () when it is not there."""
    try:
        found = os.stat(path, dir_fd=directory, follow_symlinks=follow)
    except OSError:
        return ()
    return found.st_dev, found.st_ino, found.st_mode, found.st_uid, found.st_gid, found.st_mtime_ns, found.st_ctime_ns


@frozen(eq=False)
class Seen:
    """What was found: of a directory itself, its /etc and the files there that tell users' numbers (of `Layers`, which never change, only the
    directory that they are in); of the host what is bound of it.
    """

    path: str | None  # None: a view of the host
    root: State
    inside: tuple[tuple[str, State], ...] = ()  # paths, and what was there
    host: HostFiles | None = None

    @classmethod
    def directory(cls, path: str, fd: int, *, layered: bool) -> Seen | None:
        """What is behind *fd*, which was opened by *path*; None: it cannot be told again by its times, or by looks that follow no link."""
        root = state_of(".", fd)
        inside: list[tuple[str, State]] = []
        if not layered:
            inside = [(f"{path}/{name}", state_of(name, fd)) for name in ("etc", *_ACCOUNTS)]
            etc, *accounts = [state for _, state in inside]
            if (etc and not stat.S_ISDIR(etc[2])) or any(state and not stat.S_ISREG(state[2]) for state in accounts):
                return None
        before = time.time_ns() - _SETTLED_NS
        if not root or any(state and max(state[5:]) >= before for state in (root, *(state for _, state in inside))):
            return None
        return cls(path, root, tuple(inside))

    @classmethod
    def of_host(cls, files: HostFiles) -> Seen:
        """What is there of *files*, by which something was made: if the host shows others by now, it is not so any more from the beginning."""
        return cls(None, (), tuple([(path, state_of(path, None, follow=True)) for path in files.binds]), files)

    @property
    def state(self) -> tuple[State, ...]:
        """As `FsPlan.state` says it."""
        if self.path is None:
            return tuple([state for _, state in self.inside])
        return (self.root, self.inside[0][1]) if self.inside else (self.root,)

    def is_still_so(self) -> bool:
        """Whether all of it is there as it was."""
        path, follow = self.path, self.path is None
        if path is None:
            if host_files() is not self.host:
                return False
        elif state_of(path, None, follow=True) != self.root:
            return False
        # Each state has device and inode: what is looked at by one path after another is of one directory, or differs.
        return all(state_of(inner, None, follow=follow) == state for inner, state in self.inside)

    def open(self) -> int | None:
        """The directory, which is the caller's to close; None: a view of the host. Raises: UsageError: another one is there now; OSError."""
        if self.path is None:
            return None
        fd = os.open(self.path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        if state_of(".", fd) == self.root:
            return fd
        os.close(fd)
        raise UsageError(f"root: {self.path!r} has changed since the last container over it was made")
