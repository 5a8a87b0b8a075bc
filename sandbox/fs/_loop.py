"""Loop devices (loop(4)): a file as a block device, for as long as somebody uses it.

A device is set up with *autoclear*: the kernel takes it down when its last user has gone, a mount in a namespace that ends or a process
that is killed included. So nobody has to. One file must never be behind two devices, each with a cache and a file system of its own: whoever
calls `attach` holds a lock that all callers for that file share, and a device that is there already is found and used again.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import struct
from typing import Final

from sandbox.errors import UnsupportedError

# <linux/loop.h>
_GET_STATUS64: Final = 0x4C05
_CONFIGURE: Final = 0x4C0A  # Linux 5.8
_GET_FREE: Final = 0x4C82
_AUTOCLEAR: Final = 4
_DIRECT_IO: Final = 16
_MAJOR: Final = 7  # LOOP_MAJOR
# struct loop_info64: device and inode of the file, rdevice, offset, sizelimit; number, two of encryption, flags; names and keys, init.
_INFO: Final = struct.Struct("=QQQQQIIII160x16x")
# struct loop_config: fd, block_size, loop_info64, reserved.
_CONFIG: Final = struct.Struct(f"=II{_INFO.size}s64x")

_CONTROL: Final = "/dev/loop-control"
_BLOCKS: Final = "/sys/block"
BLOCK: Final = 4096
_REMEDY: Final = (
    "load the module loop (modprobe loop), and in an outer container hand /dev/loop-control and /dev/loop* in; or mount a Tmpfs(target, size=...)"
)


def check_loop() -> None:
    """Raises: UnsupportedError: this host gives us no loop devices."""
    os.close(_control())


def attach(image: int) -> tuple[int, str]:
    """Return the loop device of the file behind *image* (open for writing): a descriptor that keeps it there, and its path.

    The caller holds a lock on the file. Raises: UnsupportedError; OSError.
    """
    return _found(image) or _configured(image)


def _control() -> int:
    try:
        return os.open(_CONTROL, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise UnsupportedError(f"volume: a size takes a loop device: {_CONTROL}: {error.strerror}", feature="loop", remedy=_REMEDY) from error


def _found(image: int) -> tuple[int, str] | None:
    file = os.fstat(image)
    name = os.path.basename(os.readlink(f"/proc/self/fd/{image}"))
    for device in os.listdir(_BLOCKS):
        if device.startswith("loop") and _backing_name(device) == name:
            path = f"/dev/{device}"
            fd = _opened(path)
            if fd is None:
                continue
            with contextlib.ExitStack() as stack:
                stack.callback(os.close, fd)
                if _is_of(fd, file):
                    stack.pop_all()
                    return fd, path
    return None


def _backing_name(device: str) -> str:
    """The name of the file behind *device*, "" when it has none; it is not proof, for there are many of that name."""
    try:
        with open(f"{_BLOCKS}/{device}/loop/backing_file", encoding="utf-8", errors="surrogateescape") as file:
            return os.path.basename(file.read().removesuffix("\n").removesuffix(" (deleted)"))
    except OSError:
        return ""


def _opened(path: str) -> int | None:
    """Open a device for reading, which one that is read-only allows too; None when it is just being taken down. While it is open, it stays."""
    try:
        return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return None
        # It may be ours: a second device for the same file would destroy what is in it.
        raise UnsupportedError(f"volume: {path}: {error.strerror}", feature="loop", remedy=_REMEDY) from error


def _is_of(fd: int, file: os.stat_result) -> bool:
    try:
        raw = fcntl.ioctl(fd, _GET_STATUS64, bytes(_INFO.size))
    except OSError as error:
        if error.errno == errno.ENXIO:  # it has gone before we opened it
            return False
        raise
    device, inode, _, offset, limit, *_ = _INFO.unpack(raw)
    if (os.major(device), os.minor(device), inode) != (os.major(file.st_dev), os.minor(file.st_dev), file.st_ino):
        return False
    if offset or limit:
        raise OSError(errno.EBUSY, "somebody has put another loop device over a part of it; take that down (losetup -d)")
    return True


def _configured(image: int) -> tuple[int, str]:
    # Direct: what programs write is cached once, by the file system in the image. Where the one below cannot, the kernel leaves it out.
    info = _INFO.pack(0, 0, 0, 0, 0, 0, 0, 0, _AUTOCLEAR | _DIRECT_IO)
    config = _CONFIG.pack(image, BLOCK, info)
    with contextlib.ExitStack() as stack:
        control = _control()
        stack.callback(os.close, control)
        while True:
            path = f"/dev/loop{fcntl.ioctl(control, _GET_FREE)}"
            try:
                fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            except OSError as error:
                raise UnsupportedError(f"volume: {path}: {error.strerror}", feature="loop", remedy=_REMEDY) from error
            with contextlib.ExitStack() as failed:
                failed.callback(os.close, fd)
                if _configure(fd, config):
                    failed.pop_all()
                    return fd, path


def _configure(fd: int, config: bytes) -> bool:
    """Set the device up; False when somebody else was faster."""
    status = os.fstat(fd)
    if not stat.S_ISBLK(status.st_mode) or os.major(status.st_rdev) != _MAJOR:
        raise UnsupportedError("volume: what is at /dev/loop* are no loop devices", feature="loop", remedy=_REMEDY)
    try:
        fcntl.ioctl(fd, _CONFIGURE, config)
    except OSError as error:
        if error.errno == errno.EBUSY:
            return False
        if error.errno in (errno.EINVAL, errno.ENOTTY):
            raise UnsupportedError("volume: loop devices cannot be set up at once here", feature="loop", remedy="boot Linux 5.8 or later") from error
        raise
    return True
