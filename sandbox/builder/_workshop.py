"""Directories of a build: one for what it needs until its end, and those of ``RUN --mount=type=cache``, which last.

They lie in the store, closed to others. A build holds a lock on its own directory; what nobody holds was left by a build that was killed, and
the next one removes it. A cache's directory is named by a hash of its id, so no id is a path.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import itertools
import os
from collections.abc import Callable
from typing import Final, Self

from attrs import define, field

from sandbox.errors import ImageError

_LOCK: Final = "lock"
_BEGUN: Final = "begun"
MAX_PRIVATE: Final = 1000


@define(eq=False, repr=False)
class Workshop:
    """The directory of one build below *top*. Thread-safe."""

    top: str
    path: str = field(default="", init=False)
    _lock: int = field(default=-1, init=False)
    _numbers: itertools.count[int] = field(factory=itertools.count, init=False)

    def __enter__(self) -> Self:
        os.makedirs(self.top, mode=0o700, exist_ok=True)
        sweep(self.top)
        while self._lock < 0:
            self.path = os.path.join(self.top, os.urandom(8).hex())
            os.mkdir(self.path, 0o700)
            self._lock = _locked(os.path.join(self.path, _LOCK), self.path)
        return self

    def __exit__(self, *exc: object) -> None:
        _remove(self.path)
        os.close(self._lock)

    def directory(self) -> str:
        """Make a new directory; it is removed with the others."""
        path = os.path.join(self.path, str(next(self._numbers)))
        os.mkdir(path, 0o700)
        return path


def _locked(path: str, directory: str) -> int:
    """Make and lock the lock of a new directory; -1: a sweep was faster, and took it for a dead one's."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except FileNotFoundError:
        return -1
    fcntl.flock(fd, fcntl.LOCK_EX)
    if os.path.isdir(directory) and os.fstat(fd).st_nlink:
        return fd
    os.close(fd)
    return -1


def sweep(top: str) -> None:
    """Remove the directories of builds that are no more."""
    for name in os.listdir(top):
        path = os.path.join(top, name)
        try:
            fd = os.open(os.path.join(path, _LOCK), os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            _remove_bare(path)
            continue
        except NotADirectoryError:
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(path)
        except BlockingIOError:
            continue  # its build goes on
        finally:
            os.close(fd)


def _remove(path: str) -> None:
    """Remove a directory, its lock last: who is killed in between leaves what the next sweep finds."""
    others = [name for name in os.listdir(path) if name != _LOCK] if os.path.isdir(path) else []
    if others:
        import shutil  # a build whose steps were all done before has made nothing

        for name in others:
            shutil.rmtree(os.path.join(path, name), onerror=_open_up)
    with contextlib.suppress(OSError):
        os.unlink(os.path.join(path, _LOCK))
    with contextlib.suppress(OSError):
        os.rmdir(path)


def _remove_bare(path: str) -> None:
    """Remove one that has no lock yet, or no more; one that is just coming into being is made again by its owner."""
    if os.path.isdir(path) and not os.listdir(path):
        try:
            os.rmdir(path)
        except OSError:
            return


def _open_up(_function: object, path: str, _error: object) -> None:
    """An ordinary user's own directory without the right to write in it: take it, and go on."""
    parent = os.path.dirname(path)
    os.chmod(parent, 0o700)
    if os.path.isdir(path) and not os.path.islink(path):
        os.chmod(path, 0o700)
        import shutil

        shutil.rmtree(path, ignore_errors=True)
    elif os.path.lexists(path):
        os.unlink(path)


@define(eq=False, repr=False)
class CacheMount:
    """The directory of one cache mount while a step uses it; close it."""

    path: str
    _lock: int

    @classmethod
    def take(cls, top: str, identity: str, sharing: str) -> CacheMount:
        """Open (or make) the directory of *identity*. *sharing*: "shared" by all, "locked": waits for others, "private": another one instead."""
        base = hashlib.sha256(identity.encode()).hexdigest()
        for number in range(MAX_PRIVATE):
            folder = os.path.join(top, base if not number else f"{base}-{number}")
            os.makedirs(os.path.join(folder, "data"), mode=0o700, exist_ok=True)
            fd = os.open(os.path.join(folder, _LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(fd, _HOW[sharing])
            except BlockingIOError:
                os.close(fd)
                continue
            return cls(os.path.join(folder, "data"), fd)
        raise ImageError(f"more than {MAX_PRIVATE} steps use a private cache {identity!r} at once")

    def begin_with(self, make: Callable[[], str]) -> None:
        """Put the directory that *make* makes, in the same file system, in the place of an empty one; only once, whatever becomes of it then."""
        begun = os.path.join(os.path.dirname(self.path), _BEGUN)
        if os.path.exists(begun):
            return
        try:
            os.rename(make(), self.path)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # somebody else was faster, or has been killed after this
                raise
        os.close(os.open(begun, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))

    def close(self) -> None:
        """Let others have it."""
        os.close(self._lock)


_HOW: Final = {"shared": fcntl.LOCK_SH, "locked": fcntl.LOCK_EX, "private": fcntl.LOCK_EX | fcntl.LOCK_NB}
