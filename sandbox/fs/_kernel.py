"""What every container gets of the kernel: /dev with its devices, /proc and /sys with their masks, as plan operations; pure."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Final

from sandbox._plan import (
    HOST,
    ROLE_LAST_PID,
    ROLE_PROC,
    ROLE_PTS,
    Attach,
    CloneTree,
    MakeDir,
    Mask,
    NewFs,
    Op,
    Open,
    ReadOnlyPath,
    SetAttr,
    Sethook,
    Slot,
    Symlink,
    WriteFile,
)
from sandbox._sys.constants import MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC, MOUNT_ATTR_NOSUID, MOUNT_ATTR_RDONLY
from sandbox.fs._names import ROOT
from sandbox.fs._specs import DEVICES, FilesystemSpec, HostView, default_inodes

BASE: Final = "fs.base"
ITEM: Final = "fs.item"  # short-lived: its descriptor is replaced by the next one
PROC: Final = "fs.proc"
_OWN_PROC: Final = "fs.own_proc"
_LAST_PID: Final = "fs.last_pid"
SYS: Final = "fs.sys"
DEV: Final = "fs.dev"
NULL: Final = "fs.null"
EMPTY: Final = "fs.empty"
_PTS: Final = "fs.pts"
NOSUID_NODEV: Final = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV
_DATA_ONLY: Final = NOSUID_NODEV | MOUNT_ATTR_NOEXEC
TTY_GID: Final = 5  # Debian's and Fedora's group "tty"
_DEV_LINKS: Final = (
    ("ptmx", "pts/ptmx"),
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
)

def own_places(spec: FilesystemSpec) -> tuple[str, ...]:
    return ("proc", "dev", "sys") if shows_sysfs(spec) else ("proc", "dev")


def tmpfs_options(size: int, inodes: int, mode: int) -> tuple[tuple[str, str], ...]:
    return ("size", str(size)), ("nr_inodes", str(inodes)), ("mode", f"{mode:o}")


def workplace(spec: FilesystemSpec) -> Slot:
    """Where /proc, /dev and /sys are made. In a view of the host that is their own place: its links are ours or the host's."""
    return ROOT if isinstance(spec.root, HostView) else BASE


def dev_ops(spec: FilesystemSpec, ids: int, *, has_mqueue: bool) -> Iterator[Op]:
    at = workplace(spec)
    yield CloneTree(DEV, at, "dev", recursive=False)
    yield SetAttr(DEV, set=MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC, recursive=False)
    yield Attach(DEV, "dev", at)
    for name in DEVICES:
        slot = NULL if name == "null" else ITEM
        yield CloneTree(slot, HOST, f"/dev/{name}", recursive=False)
        # Devices can be written to all the same; but the times of the host's node stay as they are, whoever touches it (utimensat(2): EROFS).
        yield SetAttr(slot, set=MOUNT_ATTR_RDONLY, recursive=False)
        yield WriteFile(name, b"", DEV)
        yield Attach(slot, name, DEV)
    yield from (Symlink(name, target, DEV) for name, target in _DEV_LINKS)
    pts = NewFs(_PTS, "devpts", _pts_options(ids), MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC)
    yield from _dev_mount(pts, "pts")
    yield Sethook(_PTS, ROLE_PTS)
    for path in spec.given:
        yield MakeDir(path.removeprefix("/dev/"), DEV)
        yield Attach(given_slot(path), path.removeprefix("/dev/"), DEV)
    if spec.mqueue and has_mqueue:
        yield from _dev_mount(NewFs(ITEM, "mqueue", (), _DATA_ONLY), "mqueue")
    elif spec.mqueue:  # a kernel without POSIX queues: mq_open will say so
        yield MakeDir("mqueue", DEV)
    if "/dev/shm" not in spec.given and all(mount.target != "/dev/shm" for mount in spec.mounts):  # noqa: S108  # the container's, not the host's
        options = tmpfs_options(spec.shm, default_inodes(spec.shm), 0o1777)
        yield from _dev_mount(NewFs(ITEM, "tmpfs", options, _DATA_ONLY), "shm")


def given_slot(path: str) -> Slot:
    """The slot of a mount that was handed to `ops`."""
    return f"fs.given{path}"


def _dev_mount(new: NewFs, path: str) -> Iterator[Op]:
    yield new
    yield MakeDir(path, DEV)
    yield Attach(new.out, path, DEV)


def _pts_options(ids: int) -> tuple[tuple[str, str], ...]:
    options = ("ptmxmode", "0666"), ("mode", "0620")
    return (*options, ("gid", str(TTY_GID))) if ids > TTY_GID else options


def proc_ops(spec: FilesystemSpec) -> Iterator[Op]:
    at = workplace(spec)
    if _needs_empty(spec):
        # Its copies mask directories, and stand for a sysfs that is not to be had. Attached, for only an attached mount can be
        # copied before Linux 6.15; in a view of the host below procfs, for good.
        place = "empty" if at == BASE else "proc"
        yield CloneTree(EMPTY, at, place, recursive=False)
        yield SetAttr(EMPTY, set=MOUNT_ATTR_RDONLY | _DATA_ONLY, recursive=False)
        yield Attach(EMPTY, place, at)
    if spec.traceless:
        yield from _traceless_proc_ops(at)
        return
    # Two mounts of one procfs, one on the other: init reads the one below, which has no masks. (As a mount that is attached nowhere,
    # it would cost a grace period of its own when init ends.)
    yield NewFs(_OWN_PROC, "proc", (), _DATA_ONLY)
    yield Attach(_OWN_PROC, "proc", at)
    yield Sethook(_OWN_PROC, ROLE_PROC)
    yield CloneTree(PROC, _OWN_PROC, recursive=False)
    yield Attach(PROC, "proc", at)
    yield from (Mask(path, PROC, NULL, EMPTY) for path in _below("/proc/", spec.masked))
    yield from (ReadOnlyPath(path, PROC) for path in _below("/proc/", spec.read_only_paths))


def _traceless_proc_ops(at: Slot) -> Iterator[Op]:
    """Init's procfs, whose file for the next process's number it keeps open; over it one of its own for programs.

    That one shows nothing but processes, and not init. Whoever looks a file of procfs up for the first time makes its inode, with the
    time: so others could tell later what was looked at. Access times cannot be turned off there (`mount_too_revealing` in fs/namespace.c
    locks them to what the host's procfs has); of the two links that are left, init sees to those.
    """
    yield NewFs(_OWN_PROC, "proc", (), _DATA_ONLY)
    yield Attach(_OWN_PROC, "proc", at)
    yield Sethook(_OWN_PROC, ROLE_PROC)
    yield Open(_LAST_PID, "sys/kernel/ns_last_pid", os.O_WRONLY, _OWN_PROC)
    yield Sethook(_LAST_PID, ROLE_LAST_PID)
    yield NewFs(PROC, "proc", (("hidepid", "invisible"), ("subset", "pid")), _DATA_ONLY)
    yield Attach(PROC, "proc", at)


def sysfs_ops(spec: FilesystemSpec, throttles: tuple[str, ...]) -> Iterator[Op]:
    optional = spec.sysfs is None
    if optional:
        # What is attached when the kernel refuses: a container inside one with a masked /sys gets no sysfs.
        yield CloneTree(SYS, EMPTY, recursive=False)
    yield NewFs(SYS, "sysfs", (), _DATA_ONLY | MOUNT_ATTR_RDONLY, optional=optional)
    yield Attach(SYS, "sys", workplace(spec))
    masked = (*spec.masked, *throttles) if spec.masked else ()
    yield from (Mask(path, SYS, NULL, EMPTY) for path in _below("/sys/", masked))
    yield from (ReadOnlyPath(path, SYS) for path in _below("/sys/", spec.read_only_paths))


def _below(tree: str, paths: tuple[str, ...]) -> Iterator[str]:
    # Paths below procfs and sysfs go from these themselves, so that no link of the root stands between.
    return (path.removeprefix(tree) for path in paths if path.startswith(tree))


def _needs_empty(spec: FilesystemSpec) -> bool:
    return bool(spec.masked) or (spec.sysfs is None and shows_sysfs(spec))


def shows_sysfs(spec: FilesystemSpec) -> bool:
    return not isinstance(spec.root, HostView) if spec.sysfs is None else spec.sysfs
