"""The use of a volume by one container: the lock that keeps it from being removed, and what is mounted.

The lock is flock(2)'s, on the directory that holds a volume's document and its files: shared by all who use it, exclusive for a moment to fill
or to remove it. That directory is seen by no container, so no program can hold the lock. It ends with its owner, however that ends;
a forked child, which has a copy of the descriptor, closes it. Whoever lets go says LOCK_UN, which counts for all copies: one may be in a child that
was forked by another thread a moment ago.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import weakref
from collections.abc import Callable
from typing import Final

from attrs import define

DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_uses: Final = weakref.WeakSet["VolumeUse"]()


def _nothing() -> None:
    pass


@define(eq=False, slots=True, weakref_slot=True)
class VolumeUse:
    """One use. *fd*: what is to be mounted, O_PATH; `take` hands it over. *lock*: the volume's directory, locked until `close`.

    *is_mount*: *fd* is a mount of its own already, attached nowhere.
    """

    fd: int
    lock: int
    _removal: Callable[[], None] = _nothing
    is_mount: bool = False

    def __attrs_post_init__(self) -> None:
        _uses.add(self)

    def take(self) -> int:
        """The descriptor of what is to be mounted, now the caller's own."""
        fd, self.fd = self.fd, -1
        return fd

    def close(self) -> None:
        """End the use; an anonymous volume is removed with all that is in it. May be called twice. The container must have ended."""
        removal, self._removal = self._removal, _nothing
        try:
            removal()
        finally:
            lock, self.lock = self.lock, -1
            if lock >= 0:
                unlock(lock)
            self.abandon()

    def abandon(self) -> None:
        """Close this process's descriptors."""
        for fd in (self.fd, self.lock):
            if fd >= 0:
                os.close(fd)
        self.fd = self.lock = -1


def try_lock(fd: int) -> bool:
    """Lock a directory exclusively, without waiting; a shared lock of the same descriptor is lost when that fails."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def unlock(fd: int) -> None:
    """Give a lock up, if there is one, for all copies of the descriptor, and close it."""
    try:
        fcntl.flock(fd, fcntl.LOCK_UN)
    finally:
        os.close(fd)


def is_there(name: str, parent: int, fd: int) -> bool:
    """Whether *name* still is the directory behind *fd*."""
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.stat(name, dir_fd=parent, follow_symlinks=False), os.fstat(fd))
    return False


def _after_fork_in_child() -> None:
    for use in list(_uses):
        use._removal = _nothing  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] - of this module
        use.abandon()


os.register_at_fork(after_in_child=_after_fork_in_child)
