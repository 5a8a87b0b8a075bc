"""Volumes of a limited size: a file system in a file of the volume's, which the kernel mounts for each container that uses it.

Theory of operation
-------------------
``NAME/_image`` is a sparse file, as long as the volume may be large, with ext4 in it. It is made by mkfs.ext4 in a place of its own, and comes
into being with the volume, or in the place of an empty one, by one rename. A use is a mount of the file's loop device (`_loop`), attached nowhere:
init attaches it in its container. The kernel has one superblock for a device, so all containers see the same files, and takes both down when
the last mount has gone, however that went; nothing of it is in the host's mount namespace.

What may be mounted is only what was made here: a file system can be made such that it harms the kernel that mounts it. So there is no way to
hand a file or a device in, and the file is within nobody's reach: the store is 0700, the file ours alone (0600, one name). Containers reach what
is in it through ext4 alone, which checks its own metadata, and becomes read-only at the first fault.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import stat
from collections.abc import Generator
from typing import Final

from sandbox._sys import calls, features
from sandbox._sys.constants import (
    AT_EMPTY_PATH,
    FSCONFIG_CMD_CREATE,
    FSCONFIG_SET_FLAG,
    FSCONFIG_SET_STRING,
    FSMOUNT_CLOEXEC,
    FSOPEN_CLOEXEC,
    MOUNT_ATTR_NODEV,
    MOUNT_ATTR_NOSUID,
    OPEN_TREE_CLONE,
)
from sandbox.errors import SetupError, UnsupportedError, UsageError
from sandbox.fs._loop import BLOCK, attach, check_loop
from sandbox.fs._volume_use import DIRECTORY

IMAGE: Final = "_image"
_PROGRAM: Final = "mkfs.ext4"
_PLACES: Final = "/usr/sbin:/sbin:/usr/bin:/bin"
# No block kept for root. Nothing is zeroed that a hole of the file shows as zeros already: neither here nor later (noinit_itable).
_OPTIONS: Final = ("-q", "-F", "-b", str(BLOCK), "-m", "0", "-E", "nodiscard,lazy_itable_init=1,lazy_journal_init=1")
_OTHERWISE: Final = "mount a Tmpfs(target, size=...) for what need not last, or keep the store on a partition of its own: VolumeStore(path)"


def check_images(store: int, size: int) -> None:
    """Look, before anything is touched, whether a volume of *size* bytes can be made below *store*.

    Raises: UnsupportedError; SetupError: the disk has not so much room.
    """
    if not features.privileged():
        raise UnsupportedError(
            "volume: a size takes a file system of its own, which only root may mount", feature="volume-size", remedy=f"run as root; or {_OTHERWISE}"
        )
    _find_program()
    check_loop()
    room = os.fstatvfs(store)
    if (free := room.f_bavail * room.f_frsize) < size:
        hint = f"its disk has {free} bytes left; ask for less, or keep the store elsewhere: VolumeStore(path)"
        raise SetupError(f"make a volume of {size} bytes", errno.ENOSPC, step="volume", hint=hint)


def _find_program() -> str:
    found = shutil.which(_PROGRAM, path=f"{_PLACES}:{os.environ.get('PATH', '')}")
    if found is None:
        raise UnsupportedError(
            f"volume: a size takes {_PROGRAM}, which is not here", feature=_PROGRAM, remedy=f"install the package e2fsprogs; or {_OTHERWISE}"
        )
    return found


def has_image(directory: int) -> bool:
    """Whether the volume behind *directory* is one of a limited size."""
    return image_status(directory) is not None


def image_status(directory: int) -> os.stat_result | None:
    """Of the file with the file system, if there is one: its length is the volume's size, its blocks what it takes on the disk."""
    try:
        return os.stat(IMAGE, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return None


def make_image(directory: int, size: int) -> None:
    """Make the file system of a volume that is on its way; empty, and open to any user of a container, as `make_data`'s directory."""
    import subprocess  # needed by few

    image = os.open(IMAGE, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=directory)
    with _closing(image):
        os.fchmod(image, 0o600)  # whatever the umask
        os.ftruncate(image, size)
        argv = [_find_program(), *_OPTIONS, f"/proc/self/fd/{image}"]
        done = subprocess.run(
            argv,
            pass_fds=(image,),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={"PATH": _PLACES, "LC_ALL": "C"},
            cwd="/",
            check=False,
        )
        if done.returncode != 0:
            said = done.stdout[-400:].decode(errors="replace").strip()
            raise SetupError(f"make a file system ({_PROGRAM}: {said!r}, exit code {done.returncode})", errno.EIO, step="volume")
        os.fsync(image)
    with _closing(mount_image(directory)) as mount:
        os.rmdir("lost+found", dir_fd=mount)  # a volume is empty; e2fsck makes it again when it needs it
        with opened_top(mount) as top:
            os.fchmod(top, 0o1777)


@contextlib.contextmanager
def opened_top(mount: int) -> Generator[int]:
    """The top directory of a mount, to be read and written to; a mount's own descriptor only names it."""
    with _closing(os.open(".", DIRECTORY, dir_fd=mount)) as top:
        yield top


def mount_image(directory: int) -> int:
    """Mount the file system of the volume behind *directory*; a descriptor of the mount, which is attached nowhere and goes with it.

    Raises: UsageError: the file is not as it was made. UnsupportedError. SetupError: the kernel does not take it.
    """
    with _closing(os.open(IMAGE, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)) as image:
        _check(image)
        # Of an open file of its own: the device keeps the other one open as long as it lives, and with it a lock.
        with _closing(os.open(f"/proc/self/fd/{image}", os.O_RDONLY | os.O_CLOEXEC)) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            try:
                return _mount(image)
            finally:
                fcntl.flock(lock, fcntl.LOCK_UN)


def _check(image: int) -> None:
    status = os.fstat(image)
    ours = status.st_uid == os.geteuid() and status.st_nlink == 1 and not status.st_mode & 0o077
    if not stat.S_ISREG(status.st_mode) or not ours or status.st_size % BLOCK:
        path = os.readlink(f"/proc/self/fd/{image}")
        raise UsageError(f"volume: {path} is not as it was made (a file of one name, yours alone); nothing else is mounted: remove the volume")


def _mount(image: int) -> int:
    try:
        device, path = attach(image)
        with _closing(device), _closing(calls.fsopen("ext4", FSOPEN_CLOEXEC)) as context:
            calls.fsconfig(context, FSCONFIG_SET_STRING, "source", path)  # held by *device*: it cannot be another one meanwhile
            calls.fsconfig(context, FSCONFIG_SET_STRING, "errors", "remount-ro")
            # What is removed in the volume is given back to the disk below.
            for flag in ("discard", "noinit_itable"):
                calls.fsconfig(context, FSCONFIG_SET_FLAG, flag)
            calls.fsconfig(context, FSCONFIG_CMD_CREATE)
            return calls.fsmount(context, FSMOUNT_CLOEXEC, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV)
    except OSError as error:
        if error.errno in (errno.EPERM, errno.ENODEV):
            words = "this host mounts no ext4 for us"
            raise UnsupportedError(
                f"volume: {words} ({error.strerror})", feature="volume-size", remedy=f"run as root of the host; or {_OTHERWISE}"
            ) from error
        name = os.readlink(f"/proc/self/fd/{image}")
        hint = f"if it is damaged, close all containers that have it, and let e2fsck -f {name} repair it"
        raise SetupError("mount the file system of a volume", error.errno or errno.EIO, step="volume", hint=hint) from error


def mount_below(directory: int) -> int:
    """A mount of its own of a directory in a mount that is attached nowhere. Needs: Linux 6.15."""
    try:
        return calls.open_tree("", OPEN_TREE_CLONE | AT_EMPTY_PATH, dir_fd=directory)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        remedy = "boot Linux 6.15 or later; or mount the whole volume, or one without a size"
        raise UnsupportedError("volume: a sub-path of a volume that has a size", feature="volume-size", remedy=remedy) from error


@contextlib.contextmanager
def _closing(fd: int) -> Generator[int]:
    try:
        yield fd
    finally:
        os.close(fd)
