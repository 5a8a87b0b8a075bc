"""Specs to plan operations, purely: nothing here looks at the host or opens anything.

Theory of operation
-------------------
The operations of one container come in three parts, carried out in this order:

1. *host_ops*, by the launcher in the caller's mount namespace (privileged callers only): a detached, private and
   id-mapped copy of each source.
2. *root_ops*, by init: the root. Mounts that only overlay layers need are attached to ``/`` of init's copy of the host's
   tree, below the root, and vanish with that tree in `Pivot`: before Linux 6.15 neither overlay nor open_tree accepts a
   mount that is attached nowhere, and since 6.17 overlay accepts none that another user namespace made.
   The caller puts the container's names (`name_ops`) right after: before any mount, so that a file of the caller's
   that is bound there is never written to.
3. *mount_ops*, by init: the mounts, parents first; then /proc, /dev, /sys, which thereby hide whatever a mount's target
   reached through links of the root; then what is mounted below /dev, masks, read-only flags, hooks, `Pivot`.

Everything is made below the root's own descriptor, so that links inside it lead nowhere else. On a `Directory`, /proc,
/dev and /sys must be real directories: `MakeDir` and the `Open` with RESOLVE_NO_SYMLINKS refuse anything else.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import lru_cache
from typing import Final

from attrs import frozen

from sandbox._plan import (
    HOST,
    ROLE_PROC,
    ROLE_PTS,
    ROLE_ROOT,
    Attach,
    CloneTree,
    FdPath,
    MakeDir,
    MakePrivate,
    MakeTarget,
    Mask,
    NewFs,
    Op,
    Open,
    Pivot,
    ReadOnlyPath,
    SetAttr,
    Sethook,
    Slot,
    Symlink,
    WriteFile,
)
from sandbox._sys.constants import (
    MOUNT_ATTR_NODEV,
    MOUNT_ATTR_NOEXEC,
    MOUNT_ATTR_NOSUID,
    MOUNT_ATTR_RDONLY,
    MS_PRIVATE,
    O_DIRECTORY,
    O_NOFOLLOW,
    O_PATH,
    RESOLVE_IN_ROOT,
    RESOLVE_NO_MAGICLINKS,
    RESOLVE_NO_SYMLINKS,
)
from sandbox.fs._host import HostFiles
from sandbox.fs._names import ROOT
from sandbox.fs._specs import DEVICES, Bind, Directory, FilesystemSpec, HostView, Mount, Tmpfs, Volume, default_inodes

_SCRATCH: Final = "fs.scratch"
_LOWER: Final = "fs.lower"
_ITEM: Final = "fs.item"  # short-lived: its descriptor is replaced by the next one
_PROC: Final = "fs.proc"
_OWN_PROC: Final = "fs.own_proc"
_SYS: Final = "fs.sys"
_DEV: Final = "fs.dev"
_NULL: Final = "fs.null"
_EMPTY: Final = "fs.empty"
_PTS: Final = "fs.pts"
_POINT: Final = "fs.point"

_NOSUID_NODEV: Final = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV
_DATA_ONLY: Final = _NOSUID_NODEV | MOUNT_ATTR_NOEXEC
_REAL_PATH: Final = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_SYMLINKS

# A root that will be read-only still holds what we put there: a few small files, and the mounts' targets.
_SKELETON: Final = (4 << 20, 4096)
_DEV_LIMITS: Final = (64 << 10, 256)

_TTY_GID: Final = 5  # Debian's and Fedora's group "tty"
_NOBODY: Final = 65534
_DEV_LINKS: Final = (
    ("ptmx", "pts/ptmx"),
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
)
_HOST_DIRECTORIES: Final = (
    ("etc", 0o755),
    ("home", 0o755),
    ("root", 0o700),
    ("run", 0o755),
    ("tmp", 0o1777),
    ("usr", 0o755),
    ("var", 0o755),
    ("var/tmp", 0o1777),
)


@frozen(cache_hash=True)
class Source:
    """A source that is open in *slot*. *path*: where init finds it itself; "" for privileged callers. *id_map*: map its owners."""

    slot: Slot
    path: str = ""
    id_map: bool = False


@frozen(cache_hash=True)
class Sources:
    """What was opened: one for each mount (None: a tmpfs), one for a `Directory`, one for a scratch layer on disk."""

    mounts: tuple[Source | None, ...] = ()
    root: Source | None = None
    scratch: Source | None = None


@frozen(cache_hash=True)
class Host:
    """What is known of the host: its files, the mounts below the trees that get an overlay, and how many ids the container has."""

    files: HostFiles
    submounts: tuple[tuple[str, tuple[str, ...]], ...] = ()
    ids: int = 65536
    privileged: bool = True
    only_id: int | None = None  # the one id that there is, beside (or instead of) those from 0 on

    def has_id(self, number: int) -> bool:
        """Whether the container has this id."""
        return number < self.ids or number == self.only_id


@frozen(eq=False)
class Static:
    """The operations that are the same for each container of one spec; see the top of this file for the order.

    Compared by identity: `build` returns the same one for the same arguments, so it may stand for them in a cache's key.
    """

    host_ops: tuple[Op, ...]
    root_ops: tuple[Op, ...]
    mount_ops: tuple[Op, ...]


@lru_cache(maxsize=256)
def build(spec: FilesystemSpec, host: Host, sources: Sources) -> Static:
    """Return the operations for *spec*; cached, as all arguments are frozen."""
    return Static(tuple(_host_ops(spec, host, sources)), tuple(_root_ops(spec, host, sources)), tuple(_mount_ops(spec, host, sources)))


# --- host_ops ---------------------------------------------------------------------------------------------------------


def _host_ops(spec: FilesystemSpec, host: Host, sources: Sources) -> Iterator[Op]:
    if not host.privileged:
        return
    if isinstance(spec.root, HostView) and spec.root.overlay:
        for index, tree in enumerate(host.files.trees):
            slot = f"{_LOWER}{index}"
            yield CloneTree(slot, HOST, tree, recursive=False)
            yield _detach(slot, MOUNT_ATTR_RDONLY, recursive=False, id_map=True)
    if sources.root is not None:
        yield CloneTree(_LOWER, sources.root.slot, recursive=False)
        yield _detach(_LOWER, MOUNT_ATTR_RDONLY, recursive=False, id_map=sources.root.id_map)
    if sources.scratch is not None:
        yield CloneTree(_SCRATCH, sources.scratch.slot, recursive=False)
        yield _detach(_SCRATCH, 0, recursive=False, id_map=sources.scratch.id_map)
    for mount, source in zip(spec.mounts, sources.mounts, strict=True):
        if source is not None:
            yield CloneTree(source.slot, source.slot, recursive=_is_recursive(mount))
            yield _detach(source.slot, _bind_attrs(mount), recursive=True, id_map=source.id_map)


def _detach(slot: Slot, attrs: int, *, recursive: bool, id_map: bool) -> SetAttr:
    # Private: a copy of a shared mount is its peer, and what is mounted inside it would appear on the host.
    return SetAttr(slot, set=attrs | _NOSUID_NODEV, propagation=MS_PRIVATE, recursive=recursive, idmap=id_map)


def _is_recursive(mount: Mount) -> bool:
    return isinstance(mount, Bind) and mount.recursive


def _bind_attrs(mount: Mount) -> int:
    read_only = isinstance(mount, (Bind, Volume)) and mount.read_only
    return _NOSUID_NODEV | (MOUNT_ATTR_RDONLY if read_only else 0)


# --- root_ops ---------------------------------------------------------------------------------------------------------


def _root_ops(spec: FilesystemSpec, host: Host, sources: Sources) -> Iterator[Op]:
    yield MakePrivate()
    if _needs_empty(spec):
        yield NewFs(_EMPTY, "tmpfs", _tmpfs_options(4096, 2, 0o555), MOUNT_ATTR_RDONLY | _DATA_ONLY)
    if isinstance(spec.root, Directory):
        yield from _directory_root(spec, host, sources)
    else:
        yield from _host_root(spec, spec.root, host, sources)


def _tmpfs_options(size: int, inodes: int, mode: int) -> tuple[tuple[str, str], ...]:
    return ("size", str(size)), ("nr_inodes", str(inodes)), ("mode", f"{mode:o}")


def _root_attrs(spec: FilesystemSpec) -> int:
    return MOUNT_ATTR_NODEV | (0 if spec.suid else MOUNT_ATTR_NOSUID)


def _scratch(spec: FilesystemSpec, source: Source | None) -> Iterator[Op]:
    """Attach the file system that holds all layers, where no program will see it."""
    if source is None:
        limits = _SKELETON if spec.scratch is None else spec.scratch.limits
        yield NewFs(_SCRATCH, "tmpfs", _tmpfs_options(*limits, 0o755), _root_attrs(spec))
    elif source.path:
        yield Open(_SCRATCH, source.path, O_PATH | O_DIRECTORY | O_NOFOLLOW, same_as=source.slot)
        yield CloneTree(_SCRATCH, _SCRATCH, recursive=False)
        yield SetAttr(_SCRATCH, set=_NOSUID_NODEV, recursive=False)
    yield Attach(_SCRATCH, "/")


def _overlay(out: Slot, lower: Slot, name: str, spec: FilesystemSpec) -> Iterator[Op]:
    """Make an overlay of *lower* and the layer *name* of the scratch file system."""
    yield MakeDir(f"upper{name}", _SCRATCH)
    yield MakeDir(f"work{name}", _SCRATCH)
    options: list[tuple[str, str | FdPath | None]] = [
        ("lowerdir", FdPath(lower)),
        ("upperdir", FdPath(_SCRATCH, f"/upper{name}")),
        ("workdir", FdPath(_SCRATCH, f"/work{name}")),
        ("userxattr", None),  # trusted.* takes CAP_SYS_ADMIN in the first user namespace
    ]
    if spec.scratch is not None and spec.scratch.disk is not None:
        options.append(("volatile", None))
    yield NewFs(out, "overlay", tuple(options), _root_attrs(spec))


def _directory_root(spec: FilesystemSpec, host: Host, sources: Sources) -> Iterator[Op]:
    if sources.root is None:
        raise AssertionError("a Directory comes with its source")
    yield from _scratch(spec, sources.scratch)
    if host.privileged:
        yield Attach(_LOWER, "/")
    else:
        yield Open(_LOWER, sources.root.path, O_PATH | O_DIRECTORY | O_NOFOLLOW, same_as=sources.root.slot)
    yield from _overlay(ROOT, _LOWER, "", spec)
    yield Attach(ROOT, "/")
    yield MakeDir("etc", ROOT)


def _host_root(spec: FilesystemSpec, view: HostView, host: Host, sources: Sources) -> Iterator[Op]:
    lowers: list[Slot] = [f"{_LOWER}{index}" for index in range(len(host.files.trees))] if view.overlay else []
    if lowers or sources.scratch is not None:
        yield from _scratch(spec, sources.scratch)
        yield from (Attach(lower, "/") for lower in lowers)
        yield MakeDir("root", _SCRATCH)
        yield CloneTree(ROOT, _SCRATCH, "root", recursive=False)
    else:
        limits = _SKELETON if spec.scratch is None else spec.scratch.limits
        yield NewFs(ROOT, "tmpfs", _tmpfs_options(*limits, 0o755), _root_attrs(spec))
    yield Attach(ROOT, "/")
    yield from (MakeDir(path, ROOT, mode) for path, mode in _HOST_DIRECTORIES)
    yield from _accounts(view, host)
    if lowers:
        yield from _overlaid_trees(spec, host, lowers)
    else:
        yield from (op for tree in host.files.trees for op in _host_bind(tree))
    yield from _host_etc(host.files)


def _overlaid_trees(spec: FilesystemSpec, host: Host, lowers: list[Slot]) -> Iterator[Op]:
    below = dict(host.submounts)
    for index, (tree, lower) in enumerate(zip(host.files.trees, lowers, strict=True)):
        yield MakeDir(tree, ROOT)
        yield from _overlay(_ITEM, lower, str(index), spec)
        yield Attach(_ITEM, tree, ROOT)
        # An overlay shows one file system only; the others stay what they are without it: bound, read-only.
        yield from (op for path in below.get(tree, ()) for op in _host_bind(path))


def _host_bind(path: str) -> Iterator[Op]:
    """Bind a host path read-only to the same place. Not id-mapped: of the host's files, programs have the rights of "others"."""
    yield CloneTree(_ITEM, HOST, path)
    yield SetAttr(_ITEM, set=MOUNT_ATTR_RDONLY | _NOSUID_NODEV)
    yield MakeTarget(path, ROOT, _ITEM)
    yield Attach(_ITEM, path, ROOT)


def _host_etc(files: HostFiles) -> Iterator[Op]:
    yield WriteFile("/etc/nsswitch.conf", b"passwd: files\ngroup: files\nhosts: files dns\n", ROOT)
    made = {"/etc"}
    for path, _ in (*files.files, *files.links):
        yield from _parents(path, made)
    yield from (WriteFile(path, data, ROOT) for path, data in files.files)
    yield from (Symlink(path, target, ROOT) for path, target in files.links)
    yield from (op for path in files.binds for op in _host_bind(path))


def _parents(path: str, made: set[str]) -> Iterator[Op]:
    parent = os.path.dirname(path)
    if parent in ("/", *made):
        return
    yield from _parents(parent, made)
    made.add(parent)
    yield MakeDir(parent, ROOT)


def _accounts(view: HostView, host: Host) -> Iterator[Op]:
    """Write passwd and group: root, the sandbox's user where its ids exist, nobody."""
    users = "root:x:0:0:root:/root:/bin/sh\n"
    groups = "root:x:0:\n" + (f"tty:x:{_TTY_GID}:\n" if host.has_id(_TTY_GID) else "")
    if view.uid and host.has_id(view.uid) and host.has_id(view.gid) and view.uid != _NOBODY:
        home = f"home/{view.user}"
        users += f"{view.user}:x:{view.uid}:{view.gid}::/{home}:/bin/sh\n"
        groups += f"{view.user}:x:{view.gid}:\n" if view.gid not in (0, _TTY_GID, _NOBODY) else ""
        yield MakeDir(home, ROOT, 0o700, view.uid, view.gid)
    users += f"nobody:x:{_NOBODY}:{_NOBODY}:nobody:/nonexistent:/usr/sbin/nologin\n"
    groups += f"nogroup:x:{_NOBODY}:\n"
    yield WriteFile("etc/passwd", users.encode(), ROOT)
    yield WriteFile("etc/group", groups.encode(), ROOT)


# --- mount_ops --------------------------------------------------------------------------------------------------------


def _mount_ops(spec: FilesystemSpec, host: Host, sources: Sources) -> Iterator[Op]:
    pairs = tuple(zip(spec.mounts, sources.mounts, range(len(spec.mounts)), strict=True))
    yield from (op for mount, source, index in pairs if not _is_below_dev(mount) for op in _mount(mount, source, index, (ROOT, "")))
    yield from _proc(spec)
    dev = _DEV if _has_own_dev(spec) else ROOT, "" if _has_own_dev(spec) else "dev/"
    yield from _dev(spec, host, *dev)
    yield from (op for mount, source, index in pairs if _is_below_dev(mount) for op in _mount(mount, source, index, dev))
    if _shows_sysfs(spec):
        yield from _sysfs(spec)
    yield from _masks(spec, host.files)
    if dev[0] == _DEV:
        yield SetAttr(_DEV, set=MOUNT_ATTR_RDONLY, recursive=False)
    if spec.scratch is None:
        yield SetAttr(ROOT, set=MOUNT_ATTR_RDONLY, recursive=False)
    yield Sethook(ROOT, ROLE_ROOT)
    yield Sethook(_OWN_PROC, ROLE_PROC)
    yield Sethook(_PTS, ROLE_PTS)
    yield Pivot(ROOT)


def _is_below_dev(mount: Mount) -> bool:
    return mount.target.startswith("/dev/")


def _has_own_dev(spec: FilesystemSpec) -> bool:
    # On a skeleton that will be read-only, /dev is a plain directory of it: as closed, and a file system less to make.
    return isinstance(spec.root, Directory) or spec.scratch is not None


def _needs_empty(spec: FilesystemSpec) -> bool:
    return bool(spec.masked) or (spec.sysfs is None and _shows_sysfs(spec))


def _shows_sysfs(spec: FilesystemSpec) -> bool:
    return isinstance(spec.root, Directory) if spec.sysfs is None else spec.sysfs


def _mount(mount: Mount, source: Source | None, index: int, where: tuple[Slot, str]) -> Iterator[Op]:
    at, prefix = where
    path = f"{prefix}{mount.target.removeprefix('/dev/')}" if _is_below_dev(mount) else mount.target
    slot = f"fs.tmpfs{index}" if source is None else source.slot
    if isinstance(mount, Tmpfs):
        inodes = default_inodes(mount.size) if mount.inodes is None else mount.inodes
        yield NewFs(slot, "tmpfs", _tmpfs_options(mount.size, inodes, mount.mode), _NOSUID_NODEV)
    elif source is not None and source.path:
        yield Open(slot, source.path, O_PATH | O_NOFOLLOW, same_as=slot)
        yield CloneTree(slot, slot, recursive=_is_recursive(mount))
        yield SetAttr(slot, set=_bind_attrs(mount))
    yield MakeTarget(path, at, slot)
    yield Attach(slot, path, at)


def _attach_own(slot: Slot, path: str, spec: FilesystemSpec) -> Iterator[Op]:
    """Attach one of our own mounts to a top directory of the root, and to nothing that only leads there."""
    yield MakeDir(path, ROOT)
    if isinstance(spec.root, Directory):
        yield Open(_POINT, path, O_PATH | O_DIRECTORY | O_NOFOLLOW, ROOT, _REAL_PATH)
        yield Attach(slot, "", _POINT)
    else:
        yield Attach(slot, path, ROOT)


def _proc(spec: FilesystemSpec) -> Iterator[Op]:
    if _needs_empty(spec):
        # Its copies mask directories, and stand for a sysfs that is not to be had. It needs a place somewhere (before Linux
        # 6.15 only an attached mount can be copied), and lies below procfs for good; on the old root, it would be one more
        # mount for Pivot to wait for.
        yield from _attach_own(_EMPTY, "proc", spec)
    yield NewFs(_PROC, "proc", (), _DATA_ONLY)
    yield from _attach_own(_PROC, "proc", spec)
    # Before the masks: what init reads there is not what programs see.
    yield CloneTree(_OWN_PROC, _PROC, recursive=False)


def _dev(spec: FilesystemSpec, host: Host, at: Slot, prefix: str) -> Iterator[Op]:
    if at == _DEV:
        yield NewFs(_DEV, "tmpfs", _tmpfs_options(*_DEV_LIMITS, 0o755), MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC)
        yield from _attach_own(_DEV, "dev", spec)
    else:
        yield MakeDir("dev", ROOT)
    for name in DEVICES:
        slot = _NULL if name == "null" else _ITEM
        yield CloneTree(slot, HOST, f"/dev/{name}", recursive=False)
        yield WriteFile(f"{prefix}{name}", b"", at)
        yield Attach(slot, f"{prefix}{name}", at)
    yield from (Symlink(f"{prefix}{name}", target, at) for name, target in _DEV_LINKS)
    pts = NewFs(_PTS, "devpts", _pts_options(host.ids), MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC)
    yield from _dev_mount(pts, f"{prefix}pts", at)
    if spec.mqueue and host.files.has_mqueue:
        yield from _dev_mount(NewFs(_ITEM, "mqueue", (), _DATA_ONLY), f"{prefix}mqueue", at)
    elif spec.mqueue:  # a kernel without POSIX queues: mq_open will say so
        yield MakeDir(f"{prefix}mqueue", at)
    if all(mount.target != "/dev/shm" for mount in spec.mounts):  # noqa: S108  # the container's, not the host's
        options = _tmpfs_options(spec.shm, default_inodes(spec.shm), 0o1777)
        yield from _dev_mount(NewFs(_ITEM, "tmpfs", options, _DATA_ONLY), f"{prefix}shm", at)


def _dev_mount(new: NewFs, path: str, at: Slot) -> Iterator[Op]:
    yield new
    yield MakeDir(path, at)
    yield Attach(new.out, path, at)


def _pts_options(ids: int) -> tuple[tuple[str, str], ...]:
    options = ("ptmxmode", "0666"), ("mode", "0620")
    return (*options, ("gid", str(_TTY_GID))) if ids > _TTY_GID else options


def _sysfs(spec: FilesystemSpec) -> Iterator[Op]:
    optional = spec.sysfs is None
    if optional:
        # What is attached when the kernel refuses: a container inside one with a masked /sys gets no sysfs.
        yield CloneTree(_SYS, _EMPTY, recursive=False)
    yield NewFs(_SYS, "sysfs", (), _DATA_ONLY | MOUNT_ATTR_RDONLY, optional=optional)
    yield from _attach_own(_SYS, "sys", spec)


def _masks(spec: FilesystemSpec, files: HostFiles) -> Iterator[Op]:
    for path in spec.masked:
        if path.startswith("/sys/") and not _shows_sysfs(spec):
            continue
        yield Mask(*_inside(path), _NULL, _EMPTY)
    if spec.masked and _shows_sysfs(spec):
        yield from (Mask(*_inside(path), _NULL, _EMPTY) for path in files.throttles)
    yield from (ReadOnlyPath(*_inside(path)) for path in spec.read_only_paths)


def _inside(path: str) -> tuple[str, Slot]:
    # From procfs itself, so that no link of the root stands between.
    return (path.removeprefix("/proc/"), _PROC) if path.startswith("/proc/") else (path, ROOT)
