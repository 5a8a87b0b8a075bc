"""A scratch layer on disk: a directory of its own, locked while in use, removed afterwards.

Each lies below the directory that the caller gave, as ``scratch-<random>``, with mode 0700. Its owner holds a lock on it
(flock(2), which ends with the process). Who makes a new one removes those whose owner died without doing so.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import os
from collections.abc import Callable, Iterator
from typing import Final

from attrs import define

from sandbox.errors import SetupError, UsageError, raise_shortage

_PREFIX: Final = "scratch-"
_OPEN: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


_TRIES = 100  # to remove a directory


@define(eq=False)
class ScratchDirectory:
    """One scratch layer on disk; `fd` is open and locked until `close`, which removes the directory."""

    fd: int
    parent: int
    name: str

    def close(self) -> None:
        """Remove the directory and what is in it; may be called twice. The container must have ended.

        Raises: SetupError: it is not gone; the launcher removes it when this process ends.
        """
        if self.fd < 0:
            return
        fd, parent, self.fd, self.parent = self.fd, self.parent, -1, -1
        try:
            for _ in range(_TRIES):
                # A launcher that has given up removes it at the same time, and what is in it goes under our hands.
                with contextlib.suppress(FileNotFoundError):
                    remove_tree(self.name, parent)
                if not os.fstat(fd).st_nlink:
                    break
        except OSError as error:
            action = f"remove the scratch directory {self.name}"
            raise_shortage(error, action)
            raise SetupError(action, error.errno or errno.EIO, step="cleanup") from error
        finally:
            os.close(fd)
            os.close(parent)


def make_scratch(base: str, announce: Callable[[str], None] = lambda path: None) -> ScratchDirectory:
    """Make a scratch directory below *base*, after removing those that dead processes left there. *announce* is told its path first.

    Raises: UsageError: *base* is not a directory that the caller can write to. SetupError: the disk is full, or descriptors have run out.
    """
    try:
        parent = os.open(base, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        _check_shortage(base, error)
        raise UsageError(f"scratch: {base!r}: {error.strerror}; give an existing directory of yours") from error
    try:
        _sweep(parent)
        return _make(parent, os.path.abspath(base), announce)
    except OSError as error:
        os.close(parent)
        _check_shortage(base, error)
        raise UsageError(f"scratch: cannot make a directory in {base!r}: {error.strerror}; give a directory of yours") from error
    except BaseException:
        os.close(parent)
        raise


def _check_shortage(base: str, error: OSError) -> None:
    raise_shortage(error, f"make a scratch directory in {base!r}")
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        raise SetupError(f"make a scratch directory in {base!r}", error.errno, step="scratch", hint="the disk has no room for it") from error


def _make(parent: int, base: str, announce: Callable[[str], None]) -> ScratchDirectory:
    while True:
        name = _PREFIX + os.urandom(8).hex()
        announce(f"{base}/{name}")
        os.mkdir(name, 0o700, dir_fd=parent)
        fd = -1
        try:
            fd = os.open(name, _OPEN, dir_fd=parent)
            fcntl.flock(fd, fcntl.LOCK_EX)
            # Somebody may have swept it between mkdir and flock.
            if _is_there(name, parent, fd):
                return ScratchDirectory(fd, parent, name)
        except FileNotFoundError:
            pass
        if fd >= 0:
            os.close(fd)


def _is_there(name: str, parent: int, fd: int) -> bool:
    try:
        return os.path.samestat(os.stat(name, dir_fd=parent, follow_symlinks=False), os.fstat(fd))
    except FileNotFoundError:
        return False


def _sweep(parent: int) -> None:
    for name in os.listdir(parent):
        if name.startswith(_PREFIX):
            _sweep_one(name, parent)


def _sweep_one(name: str, parent: int) -> None:
    try:
        fd = os.open(name, _OPEN, dir_fd=parent)
    except OSError:  # another one was faster, or it is not ours
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        remove_tree(name, parent)
    except OSError:  # in use; or somebody else's, whose business it is
        return
    finally:
        os.close(fd)


def remove_tree(name: str, parent: int) -> None:
    """Remove a tree, whatever modes its directories have (overlay's work directory has 000), and however deep it is; links are not followed.

    A program made it: shutil.rmtree recurses once for each level (before Python 3.13), and holds a descriptor for each. Here, what lies
    in a directory moves up to *name*, so that there are never more than two levels to look at. The launcher does the same.

    Raises: FileNotFoundError, NotADirectoryError: *name* is no directory.
    """
    _unlock(name, parent)
    top = os.open(name, _OPEN, dir_fd=parent)
    names = (f"{_PREFIX}{os.urandom(8).hex()}-{number}" for number in itertools.count())
    try:
        while entries := os.listdir(top):
            for entry in entries:
                if not _unlink(entry, top):
                    _dissolve(entry, top, names)
    finally:
        os.close(top)
    os.rmdir(name, dir_fd=parent)


def _unlink(name: str, directory: int) -> bool:
    """Remove *name* unless it is a directory; say whether that was so."""
    try:
        os.unlink(name, dir_fd=directory)
    except IsADirectoryError:
        return False
    return True


def _dissolve(name: str, top: int, names: Iterator[str]) -> None:
    """Remove the directory *name*; the directories in it move up to *top*."""
    _unlock(name, top)
    fd = os.open(name, _OPEN, dir_fd=top)
    try:
        for entry in os.listdir(fd):
            if not _unlink(entry, fd):
                _unlock(entry, fd)  # to move a directory is to write to it
                os.rename(entry, next(names), src_dir_fd=fd, dst_dir_fd=top)
    finally:
        os.close(fd)
    os.rmdir(name, dir_fd=top)


def _unlock(name: str, parent: int) -> None:
    try:
        # O_PATH and the link in /proc: chmod by name would follow a symlink, and opening takes the right that is missing.
        fd = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    except NotADirectoryError:
        return
    try:
        if os.fstat(fd).st_mode & 0o700 != 0o700:
            os.chmod(f"/proc/self/fd/{fd}", 0o700)
    finally:
        os.close(fd)
