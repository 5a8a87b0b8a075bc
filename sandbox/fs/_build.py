"""Specs to plan operations, purely: nothing here looks at the host or opens anything.

Theory of operation
-------------------
The operations of one container come in parts, carried out in this order:

1. *root_host_ops*, by the launcher in the caller's mount namespace (privileged callers only): a detached, private and id-mapped copy
   of the root directory.
2. *base_ops*, by init: the file system in memory that carries all layers (`BASE`; in a plain view of the host it is the root
   itself), and what is the same in every container: /dev with its devices, /proc and /sys with their masks.
3. the names (`name_ops`): before any mount of the caller's, so that a file that is bound there is never written to.
4. *rest_ops*, by init: the root, and what else needs no source but it. In a container without mounts of sources, that is all.
5. *host_ops*, by the launcher: as 1, of each source of a mount.
6. *late_ops*, by init: the mounts, parents first, and what comes after them.

1 to 4 depend on nothing but the spec, the root directory and the host's own trees: they can be carried out before anybody asks for
the container (`sandbox._spares`). /proc, /dev and /sys of a `Directory` are made aside and moved to their places last, and thereby
hide whatever a mount's target reached through links of the root. What is made aside stands on the root of init's copy of
the host's tree, seen by nobody (before Linux 6.15 neither overlay nor open_tree accepts a mount that is attached nowhere, and
since 6.17 overlay accepts none that another user namespace made). It vanishes with that tree in `Pivot`; a mount that is still needed
then is kept in place, and known by its descriptor.

Everything is made below the root's own descriptor, so that links inside it lead nowhere else. Over a `Directory`, our files
and the places for our mounts lie in the upper layer before the two are joined: whatever the directory has by their names (a link,
a FIFO, a directory of somebody else) is covered, never followed. Over `Layers` they are a layer of their own, the highest of those below
the upper one, which then has nothing but what was written in the container (`_layered`).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Final

from attrs import evolve, frozen

from sandbox._plan import (
    HOST,
    NO_ID,
    ROLE_ROOT,
    ROLE_UNSEALED,
    Attach,
    CloneTree,
    CopyTree,
    FdPath,
    MakeDir,
    MakePrivate,
    MakeTarget,
    Mask,
    NewFs,
    NewOverlay,
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
    MOUNT_ATTR_NOATIME,
    MOUNT_ATTR_NODEV,
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
from sandbox.fs._kernel import (
    BASE,
    DEV,
    EMPTY,
    ITEM,
    NOSUID_NODEV,
    NULL,
    PROC,
    SYS,
    TTY_GID,
    dev_ops,
    own_places,
    proc_ops,
    shows_sysfs,
    sysfs_ops,
    tmpfs_options,
)
from sandbox.fs._layered import layered_root, ours_in, overlay_flags, workdir, writable_places
from sandbox.fs._names import ROOT
from sandbox.fs._specs import Bind, FilesystemSpec, HostView, Layers, Mount, Tmpfs, Volume, default_inodes

_LOWER: Final = "fs.lower"
_POINT: Final = "fs.point"
_UNSEALED: Final[Slot] = "fs.unsealed"

_REAL_PATH: Final = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_SYMLINKS

# A root that will be read-only still holds what we put there: a few small files, and the mounts' targets.
_SKELETON: Final = (4 << 20, 4096)

_KERNEL_TREES: Final = ("/proc/", "/sys/")
_NOBODY: Final = 65534
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
    """A source that is open in *slot*. *path*: where init finds it itself; "" for privileged callers. *id_map*: map its owners.

    *is_mount*: it is a mount of the container's own already, attached nowhere.
    *etc*: mode, uid and gid of a root's /etc, where it is a directory: those that ours, in the layer above, shall have.
    """

    slot: Slot
    path: str = ""
    id_map: bool = False
    etc: tuple[int, int, int] | None = None
    is_mount: bool = False


@frozen(cache_hash=True)
class Sources:
    """What was opened: one for each mount (None: a tmpfs), one for a `Directory` or the directory of `Layers`, one for a scratch layer on disk."""

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

    *etc*: the slot, and the path below it, where the root's /etc is when the names are written. *needs_sources*: nothing at
    all can be done before there are sources, for the layer that is written to is one.
    Compared by identity: `build` returns the same one for the same arguments, so it may stand for them in a cache's key.
    """

    root_host_ops: tuple[Op, ...]
    base_ops: tuple[Op, ...]
    rest_ops: tuple[Op, ...]
    host_ops: tuple[Op, ...]
    late_ops: tuple[Op, ...]
    etc: tuple[Slot, str]
    needs_sources: bool = False

    def early(self, names: tuple[Op, ...]) -> tuple[Op, ...]:
        """What init can do before there are sources but the root, with *names* in their place."""
        return () if self.needs_sources else (*self.base_ops, *names, *self.rest_ops)

    def late(self, names: tuple[Op, ...]) -> tuple[Op, ...]:
        """What init does then; empty when nothing of the spec takes another source."""
        return (*self.base_ops, *names, *self.rest_ops, *self.late_ops) if self.needs_sources else self.late_ops


@lru_cache(maxsize=256)
def build(spec: FilesystemSpec, host: Host, sources: Sources) -> Static:
    """Return the operations for *spec*; cached, as all arguments are frozen."""
    base = _quiet(spec, _base_ops(spec, host, sources))
    root = _quiet(spec, _root_ops(spec, host, sources))
    end = _quiet(spec, (*_mounts(spec, sources, below_dev=False), *_end_ops(spec, sources)))
    etc = (ROOT, "etc") if isinstance(spec.root, HostView) else (BASE, f"{ours_in(spec)}/etc")
    disk, mounted = sources.scratch is not None or _overlays_host(spec), any(sources.mounts)
    root_host, host_ops = tuple(_root_host_ops(spec, host, sources)), tuple(_mount_host_ops(spec, host, sources))
    if disk:
        return Static((), base, (*root, *end, Pivot(ROOT)), (*root_host, *host_ops), (), etc, needs_sources=True)
    if not mounted:
        return Static(root_host, base, (*root, *end, Pivot(ROOT)), (), (), etc)
    if host.privileged and isinstance(spec.root, HostView):
        return Static(root_host, base, (*root, Pivot(ROOT)), host_ops, end, etc)
    # Over a directory /proc and the like wait aside, on the host's tree; and without privileges init finds sources by their paths there.
    return Static(root_host, base, root, host_ops, (*end, Pivot(ROOT)), etc)


def _quiet(spec: FilesystemSpec, ops: Iterable[Op]) -> tuple[Op, ...]:
    """*ops*; for a traceless container with mounts that reading does not change (for procfs, see `_kernel`)."""
    return tuple(_without_times(op) if spec.traceless else op for op in ops)


def _without_times(op: Op) -> Op:
    if isinstance(op, NewOverlay):
        return evolve(op, attrs=op.attrs | MOUNT_ATTR_NOATIME)
    return evolve(op, attrs=op.attrs | MOUNT_ATTR_NOATIME) if isinstance(op, NewFs) and op.fstype != "proc" else op


def _overlays_host(spec: FilesystemSpec) -> bool:
    return isinstance(spec.root, HostView) and spec.root.overlay


# --- host_ops ---------------------------------------------------------------------------------------------------------


def _root_host_ops(spec: FilesystemSpec, host: Host, sources: Sources) -> Iterator[Op]:
    if not host.privileged:
        return
    if _overlays_host(spec):
        for index, tree in enumerate(host.files.trees):
            slot = f"{_LOWER}{index}"
            yield CloneTree(slot, HOST, tree, recursive=False)
            yield _detach(slot, MOUNT_ATTR_RDONLY, recursive=False, id_map=True)
    if sources.root is not None:
        yield CloneTree(_LOWER, sources.root.slot, recursive=False)
        yield _detach(_LOWER, MOUNT_ATTR_RDONLY, recursive=False, id_map=sources.root.id_map)
    if sources.scratch is not None:
        yield CloneTree(BASE, sources.scratch.slot, recursive=False)
        yield _detach(BASE, 0, recursive=False, id_map=sources.scratch.id_map)


def _mount_host_ops(spec: FilesystemSpec, host: Host, sources: Sources) -> Iterator[Op]:
    for mount, source in zip(spec.mounts, sources.mounts, strict=True):
        if host.privileged and source is not None:
            if not source.is_mount:
                yield CloneTree(source.slot, source.slot, recursive=_is_recursive(mount))
            yield _detach(source.slot, _bind_attrs(mount), recursive=True, id_map=source.id_map)


def _detach(slot: Slot, attrs: int, *, recursive: bool, id_map: bool) -> SetAttr:
    # Private: a copy of a shared mount is its peer, and what is mounted inside it would appear on the host.
    return SetAttr(slot, set=attrs | NOSUID_NODEV, propagation=MS_PRIVATE, recursive=recursive, idmap=id_map)


def _is_recursive(mount: Mount) -> bool:
    return isinstance(mount, Bind) and mount.recursive


def _bind_attrs(mount: Mount) -> int:
    read_only = isinstance(mount, (Bind, Volume)) and mount.read_only
    return NOSUID_NODEV | (MOUNT_ATTR_RDONLY if read_only else 0)


# --- base_ops ---------------------------------------------------------------------------------------------------------


def _base_ops(spec: FilesystemSpec, host: Host, sources: Sources) -> Iterator[Op]:
    yield MakePrivate()
    yield from _base(spec, sources.scratch)
    if isinstance(spec.root, HostView):
        yield from _skeleton(spec, spec.root, host)
    else:
        yield from _upper(spec, sources.root)
    yield from dev_ops(spec, host.ids, has_mqueue=host.files.has_mqueue)
    yield from proc_ops(spec)
    if shows_sysfs(spec):
        yield from sysfs_ops(spec, host.files.throttles)


def _root_attrs(spec: FilesystemSpec) -> int:
    return MOUNT_ATTR_NODEV | (0 if spec.suid else MOUNT_ATTR_NOSUID)


def _is_plain(spec: FilesystemSpec) -> bool:
    """Whether the root is the file system in memory itself, with nothing over or below it."""
    return isinstance(spec.root, HostView) and not spec.root.overlay and (spec.scratch is None or spec.scratch.disk is None)


def _base(spec: FilesystemSpec, disk: Source | None) -> Iterator[Op]:
    """Attach the file system that holds all layers. But for a plain root, no program will see it."""
    base = ROOT if _is_plain(spec) else BASE
    if disk is None:
        limits = _SKELETON if spec.scratch is None else spec.scratch.limits
        yield NewFs(base, "tmpfs", tmpfs_options(*limits, 0o755), _root_attrs(spec))
    elif disk.path:
        yield Open(base, disk.path, O_PATH | O_DIRECTORY | O_NOFOLLOW, same_as=disk.slot)
        yield CloneTree(base, base, recursive=False)
        yield SetAttr(base, set=NOSUID_NODEV, recursive=False)
    yield Attach(base, "/")


def _skeleton(spec: FilesystemSpec, view: HostView, host: Host) -> Iterator[Op]:
    if not _is_plain(spec):
        yield MakeDir("root", BASE)
        yield CloneTree(ROOT, BASE, "root", recursive=False)
        yield Attach(ROOT, "root", BASE)
    yield from (MakeDir(path, ROOT, mode) for path, mode in _HOST_DIRECTORIES)
    yield from (MakeDir(path, ROOT) for path in own_places(spec))
    yield from _accounts(view, host)
    yield from _host_etc(host.files)


def _upper(spec: FilesystemSpec, root: Source | None) -> Iterator[Op]:
    """Fill the layer above a `Directory`, or the highest of `Layers`, with what is ours, while it is nothing but a directory; and make places
    to work in.
    """
    mode, uid, gid = (root.etc if root is not None else None) or (0o755, NO_ID, NO_ID)
    ours = ours_in(spec)
    yield from (MakeDir(path, BASE) for path in dict.fromkeys(("upper", "work", "lower", "root", "empty", ours)))
    yield MakeDir(f"{ours}/etc", BASE, mode, uid, gid)
    yield from (MakeDir(f"{prefix}{path}", BASE) for prefix in ("", f"{ours}/") for path in own_places(spec))


# --- the root, and the caller's mounts --------------------------------------------------------------------------------


def _root_ops(spec: FilesystemSpec, host: Host, sources: Sources) -> Iterator[Op]:
    if not isinstance(spec.root, HostView):
        yield from _directory_root(spec, host, sources)
    elif spec.root.overlay:
        yield from _overlaid_trees(spec, host)
    else:
        yield from (op for tree in host.files.trees for op in _host_bind(tree))


def _directory_root(spec: FilesystemSpec, host: Host, sources: Sources) -> Iterator[Op]:
    if sources.root is None:
        raise AssertionError("a Directory, or Layers, come with their source")
    if host.privileged:
        yield Attach(_LOWER, "lower", BASE)
    else:
        yield Open(_LOWER, sources.root.path, O_PATH | O_DIRECTORY | O_NOFOLLOW, same_as=sources.root.slot)
    if isinstance(spec.root, Layers):
        yield from layered_root(spec, spec.root, _LOWER, _root_attrs(spec))
    elif spec.takes_overlay:
        yield from _overlay(ROOT, _LOWER, "", spec)
    else:
        # Into the layer that has our files already: they cover what the directory has by their names, as in an overlay.
        yield CopyTree(_LOWER, BASE, "upper")
        yield CloneTree(ROOT, BASE, "upper", recursive=False)
    yield Attach(ROOT, "root", BASE)
    yield from writable_places(spec)


def _overlay(out: Slot, lower: Slot, name: str, spec: FilesystemSpec) -> Iterator[Op]:
    """Make an overlay of *lower* and the layer *name* of the base."""
    options: list[tuple[str, str | FdPath | None]] = [
        ("lowerdir", FdPath(lower)),
        ("upperdir", FdPath(BASE, f"/upper{name}")),
        ("workdir", FdPath(BASE, f"/work{name}")),
        *overlay_flags(spec),
    ]
    yield NewFs(out, "overlay", tuple(options), _root_attrs(spec))


def _overlaid_trees(spec: FilesystemSpec, host: Host) -> Iterator[Op]:
    below = dict(host.submounts)
    for index, tree in enumerate(host.files.trees):
        lower = f"{_LOWER}{index}"
        yield from (MakeDir(f"{name}{index}", BASE) for name in ("lower", "upper", "work"))
        yield Attach(lower, f"lower{index}", BASE)
        yield MakeDir(tree, ROOT)
        yield from _overlay(ITEM, lower, str(index), spec)
        yield Attach(ITEM, tree, ROOT)
        # An overlay shows one file system only; the others stay what they are without it: bound, read-only.
        yield from (op for path in below.get(tree, ()) for op in _host_bind(path))


def _host_bind(path: str) -> Iterator[Op]:
    """Bind a host path read-only to the same place. Not id-mapped: of the host's files, programs have the rights of "others"."""
    yield CloneTree(ITEM, HOST, path)
    yield SetAttr(ITEM, set=MOUNT_ATTR_RDONLY | NOSUID_NODEV)
    yield MakeTarget(path, ROOT, ITEM)
    yield Attach(ITEM, path, ROOT)


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
    groups = "root:x:0:\n" + (f"tty:x:{TTY_GID}:\n" if host.has_id(TTY_GID) else "")
    if view.uid and host.has_id(view.uid) and host.has_id(view.gid) and view.uid != _NOBODY:
        home = f"home/{view.user}"
        users += f"{view.user}:x:{view.uid}:{view.gid}::/{home}:/bin/sh\n"
        groups += f"{view.user}:x:{view.gid}:\n" if view.gid not in (0, TTY_GID, _NOBODY) else ""
        yield MakeDir(home, ROOT, 0o700, view.uid, view.gid)
    users += f"nobody:x:{_NOBODY}:{_NOBODY}:nobody:/nonexistent:/usr/sbin/nologin\n"
    groups += f"nogroup:x:{_NOBODY}:\n"
    yield WriteFile("etc/passwd", users.encode(), ROOT)
    yield WriteFile("etc/group", groups.encode(), ROOT)


def _mounts(spec: FilesystemSpec, sources: Sources, *, below_dev: bool) -> Iterator[Op]:
    for index, mount in enumerate(spec.mounts):
        if mount.target.startswith("/dev/") == below_dev:
            slot = _slot(spec, sources, index)
            at, path, may_make = _place(spec, sources, index)
            yield from _mount(mount, sources.mounts[index], slot)
            # Nothing is ever made in a directory of the caller's; `_check_nested` has seen that the place is there.
            yield MakeTarget(path, at, slot) if may_make else Open(_POINT, path, O_PATH | O_NOFOLLOW, at, _REAL_PATH)
            yield Attach(slot, path, at)


def _slot(spec: FilesystemSpec, sources: Sources, index: int) -> Slot:
    """The slot of a mount. A tmpfs keeps one of its own only where another mount lies in it."""
    source = sources.mounts[index]
    if source is not None:
        return source.slot
    inside = f"{spec.mounts[index].target}/"
    return f"fs.mount{index}" if any(mount.target.startswith(inside) for mount in spec.mounts) else ITEM


def _place(spec: FilesystemSpec, sources: Sources, index: int) -> tuple[Slot, str, bool]:
    """Where a mount goes: a slot and the path below it, and whether that may be made.

    What lies in another mount goes from that one's own descriptor. Who shares its source with us can exchange a directory and a link
    at any time (CVE-2021-30465): from the root, such a link could put the mount over /proc or /usr; so it never leads out of the other mount.
    """
    target = spec.mounts[index].target
    for outer in range(index - 1, -1, -1):  # sorted by components: the last one that contains it is the innermost
        if target.startswith(f"{spec.mounts[outer].target}/"):
            inside = target.removeprefix(f"{spec.mounts[outer].target}/")
            return _slot(spec, sources, outer), inside, not isinstance(spec.mounts[outer], Bind)
    return (DEV, target.removeprefix("/dev/"), True) if target.startswith("/dev/") else (ROOT, target, True)


def _mount(mount: Mount, source: Source | None, slot: Slot) -> Iterator[Op]:
    if isinstance(mount, Tmpfs):
        inodes = default_inodes(mount.size) if mount.inodes is None else mount.inodes
        yield NewFs(slot, "tmpfs", tmpfs_options(mount.size, inodes, mount.mode), NOSUID_NODEV)
    elif source is not None and source.path:
        yield Open(slot, source.path, O_PATH | O_NOFOLLOW, same_as=slot)
        yield CloneTree(slot, slot, recursive=_is_recursive(mount))
        yield SetAttr(slot, set=_bind_attrs(mount))


# --- the end ----------------------------------------------------------------------------------------------------------


def _end_ops(spec: FilesystemSpec, sources: Sources) -> Iterator[Op]:
    if not isinstance(spec.root, HostView):
        for slot, place in ((PROC, "proc"), (DEV, "dev"), (SYS, "sys")):
            if place in own_places(spec):
                # To the directory of our own making, and to nothing that only leads there.
                yield Open(_POINT, place, O_PATH | O_DIRECTORY | O_NOFOLLOW, ROOT, _REAL_PATH)
                yield Attach(slot, "", _POINT)
    yield from _mounts(spec, sources, below_dev=True)
    yield from workdir(spec)
    yield from (Mask(path, ROOT, NULL, EMPTY) for path in spec.masked if not path.startswith(_KERNEL_TREES))
    yield from (ReadOnlyPath(path, ROOT) for path in spec.read_only_paths if not path.startswith(_KERNEL_TREES))
    yield SetAttr(DEV, set=MOUNT_ATTR_RDONLY, recursive=False)
    if spec.scratch is None:
        yield CloneTree(_UNSEALED, ROOT, recursive=False)  # /etc/hosts and /etc/resolv.conf change with the container's networks
        yield Sethook(_UNSEALED, ROLE_UNSEALED)
        yield SetAttr(ROOT, set=MOUNT_ATTR_RDONLY, recursive=False)
    yield Sethook(ROOT, ROLE_ROOT)
