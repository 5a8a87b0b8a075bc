"""Removing trees: as deep and as closed as a layer may be, with two descriptors and no recursion."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator
from typing import Final

_OPEN: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_TRIES: Final = 100


def empty(fd: int) -> None:
    """Remove everything in the directory *fd*: what is below a directory in it is moved up into it first, so that depth costs nothing.

    Somebody who has been killed may have had a process that still writes: then it is looked again, some times. Raises: OSError.
    """
    names = _new_names()
    for _ in range(_TRIES):
        if not (todo := _list(fd)):
            return
        while todo:
            name, is_directory = todo.pop()
            with contextlib.suppress(FileNotFoundError):
                todo += _remove(fd, name, is_directory=is_directory, names=names)


def _new_names() -> Iterator[str]:
    prefix = os.urandom(8).hex()
    return (f"{prefix}-{number}" for number in itertools.count())


def _list(fd: int) -> list[tuple[str, bool]]:
    with os.scandir(fd) as entries:
        return [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]


def _remove(parent: int, name: str, *, is_directory: bool, names: Iterator[str]) -> list[tuple[str, bool]]:
    """Remove one; give what was moved up from it, which is to be removed too."""
    moved: list[tuple[str, bool]] = []
    if not is_directory:
        os.unlink(name, dir_fd=parent)
        return moved
    # An ordinary user needs rights even on what is the user's own: to list a directory, and to move it (its ".." changes).
    os.chmod(name, 0o700, dir_fd=parent)
    fd = os.open(name, _OPEN, dir_fd=parent)
    try:
        for below, is_directory_too in _list(fd):
            if is_directory_too:
                os.chmod(below, 0o700, dir_fd=fd)
                moved.append((next(names), True))
                os.rename(below, moved[-1][0], src_dir_fd=fd, dst_dir_fd=parent)
            else:
                os.unlink(below, dir_fd=fd)
    finally:
        os.close(fd)
    with contextlib.suppress(OSError):  # ENOTEMPTY: somebody still writes; the next look takes it
        os.rmdir(name, dir_fd=parent)
    return moved
