"""What lies in a store of volumes beside its volumes: places that their owner keeps locked while something comes or goes; see `volumes`."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from collections.abc import Callable, Iterator
from typing import Final

from sandbox._sys.calls import openat2
from sandbox.fs._fill import BENEATH
from sandbox.fs._scratch import remove_tree
from sandbox.fs._volume_images import image_status
from sandbox.fs._volume_use import DIRECTORY, is_there, try_lock, unlock

DATA: Final = "_data"
DOCUMENT: Final = "volume.json"
NEW: Final = ".new-"
TEMP: Final = ".temp-"
GONE: Final = ".gone-"
Announce = Callable[[str], None]


def stage(store: int, prefix: str, announce: Announce = lambda name: None) -> tuple[str, int]:
    """Make a directory that is locked; its name and a descriptor."""
    while True:
        name = prefix + os.urandom(8).hex()
        announce(name)
        os.mkdir(name, 0o700, dir_fd=store)
        fd = -1
        try:
            fd = os.open(name, DIRECTORY, dir_fd=store)
            fcntl.flock(fd, fcntl.LOCK_EX)
            if is_there(name, store, fd):  # else somebody has swept it between the two
                return name, fd
        except FileNotFoundError:
            pass
        if fd >= 0:
            unlock(fd)


def sweep(store: int) -> None:
    """Remove what those left who died while they made or removed something."""
    for name in os.listdir(store):
        if not name.startswith((NEW, TEMP, GONE)):
            continue
        with contextlib.suppress(OSError):  # another one was faster; or it is not ours to remove
            fd = os.open(name, DIRECTORY, dir_fd=store)
            try:
                if try_lock(fd):
                    remove_tree(name, store)
            finally:
                unlock(fd)


def make_data(directory: int) -> None:
    """Make the directory that containers see."""
    os.mkdir(DATA, 0o700, dir_fd=directory)
    # By descriptor and not by mkdir's mode, which the umask (the host program's own) would cut.
    fd = os.open(DATA, DIRECTORY, dir_fd=directory)
    try:
        os.fchmod(fd, 0o1777)
    finally:
        os.close(fd)


def write_document(directory: int, raw: bytes) -> None:
    """Write the document of a volume that is being made."""
    fd = os.open(DOCUMENT, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=directory)
    with open(fd, "wb") as file:
        file.write(raw)
        file.flush()
        os.fsync(fd)


def remove_temporary(name: str, store: int) -> None:
    """Remove an anonymous volume; closes *store*."""
    try:
        with contextlib.suppress(FileNotFoundError, PermissionError):  # the launcher was faster; or files belong to ids that only root may remove
            remove_tree(name, store)
    finally:
        os.close(store)


def has_entries(data: int) -> bool:
    """Whether there is anything in it; a directory that a program has closed to us counts as one that has."""
    try:
        with os.scandir(f"/proc/self/fd/{data}") as entries:
            return next(iter(entries), None) is not None
    except PermissionError:
        return True


def disk_usage(directory: int) -> int:
    """Bytes on the disk below *directory*; a file with several names counts once, and what cannot be looked into not at all."""
    image = image_status(directory)
    if image is not None:
        return image.st_blocks * 512
    seen: set[tuple[int, int]] = set()
    waiting, size = [DATA], 0
    while waiting:
        path = waiting.pop()
        for name, info in _entries(path, directory):
            if info.st_nlink == 1 or stat.S_ISDIR(info.st_mode) or (info.st_dev, info.st_ino) not in seen:
                size += info.st_blocks * 512
            seen.update([(info.st_dev, info.st_ino)] if info.st_nlink > 1 else [])
            waiting += [f"{path}/{name}"] if stat.S_ISDIR(info.st_mode) else []
    return size


def _entries(path: str, directory: int) -> Iterator[tuple[str, os.stat_result]]:
    """What is in the directory at *path*. Deeper than a path can say (4,096 bytes), nothing is."""
    with contextlib.suppress(OSError):
        fd = openat2(path, DIRECTORY, dir_fd=directory, resolve=BENEATH)
        try:
            for name in os.listdir(fd):
                with contextlib.suppress(FileNotFoundError):
                    yield name, os.stat(name, dir_fd=fd, follow_symlinks=False)
        finally:
            os.close(fd)
