"""The small part that touches the host: opens what a spec names, and hands it up with the operations."""

from __future__ import annotations

import contextlib
import os
import stat
import struct
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Final, Self

from attrs import define, field

from sandbox._plan import Op, Slot
from sandbox._sys import features
from sandbox._sys.calls import openat2
from sandbox._sys.constants import RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS, RESOLVE_NO_XDEV
from sandbox.errors import UnsupportedError, UsageError
from sandbox.fs._build import Host, Source, Sources, Static, build
from sandbox.fs._host import HostFiles, host_files, submounts
from sandbox.fs._kernel import given_slot
from sandbox.fs._layers import highest_with, read_layered, read_regular, remembered
from sandbox.fs._names import name_ops
from sandbox.fs._scratch import ScratchDirectory, make_scratch
from sandbox.fs._seen import Seen, State, state_of
from sandbox.fs._specs import Bind, Directory, FilesystemSpec, HostView, Layers, Mount, Root, Tmpfs, Volume

if TYPE_CHECKING:
    from sandbox.fs._volume_use import VolumeUse
    from sandbox.fs.volumes import VolumeStore

IdMapping = bool | Callable[[int], bool]
_PATH: Final = os.O_PATH | os.O_CLOEXEC
_ROOT_SOURCE: Final = "fs.src.root"
_ACL_GROUP_OBJ: Final = 4  # <linux/posix_acl.h>
_IDS: Final = 65536  # of a privileged caller's container
_MOST_REMEMBERED: Final = 256
_IDMAPPED: Final = "Linux 5.12"
_etcs: dict[State, tuple[int, int, int] | None] = {}  # what `_look_at_etc` found, by `state_of`


@define(eq=False)
class FsPlan:
    """The operations for one container, and the descriptors that they need; it owns these.

    Call `release` once the container has started (or failed to), `close` when it has ended.
    """

    static: Static
    fds: dict[Slot, int]
    _files: HostFiles = field(alias="files")  # those of the host that the operations are for
    layers: tuple[str, ...] | None = None  # of a root of `Layers`: their names in its directory
    _scratch: ScratchDirectory | None = field(default=None, alias="scratch")
    _uses: tuple[VolumeUse, ...] = field(default=(), alias="uses")
    _etc: State | None = field(default=None, alias="etc")  # what `state_of` said of a root's /etc, where it was asked

    @property
    def root_host_ops(self) -> tuple[Op, ...]:
        """What the launcher does, outside, before *early_ops*."""
        return self.static.root_host_ops

    @property
    def root(self) -> int | None:
        """The descriptor that *early_ops* need, if any."""
        return None if self.static.needs_sources else self.fds.get(_ROOT_SOURCE)

    def state(self) -> tuple[object, ...]:
        """What tells whether *early_ops* find the very same at another time: of a directory it and its /etc; of the host what is bound."""
        fd = self.fds.get(_ROOT_SOURCE)
        if fd is not None:
            # A name that came to or went from one of the two changes its times: an overlay that knew the old one is not taken.
            if self.layers is not None:  # a layer itself never changes; one that goes, and comes again, leaves the directory with another time
                return (state_of(".", fd),)
            return state_of(".", fd), state_of("etc", fd) if self._etc is None else self._etc
        return tuple(state_of(path, None, follow=True) for path in host_files().binds)

    def seen(self, root: Root) -> Seen | None:
        """What *root*, which this was made of, looked like; None where that could not be told from a later state of it."""
        if isinstance(root, HostView):
            return Seen.of_host(self._files)
        fd = self.fds.get(_ROOT_SOURCE)
        return None if fd is None else Seen.directory(root.path, fd, layered=self.layers is not None)

    @property
    def host_ops(self) -> tuple[Op, ...]:
        """What the launcher does, outside, before *late_ops*."""
        return self.static.host_ops

    def early_ops(self, names: tuple[Op, ...] = ()) -> tuple[Op, ...]:
        """What init does first, with *names* in their place; it needs no descriptor but that of *root*."""
        return self.static.early(names)

    def late_ops(self, names: tuple[Op, ...] = ()) -> tuple[Op, ...]:
        """What init does last. What comes last of all is `Pivot`, here or, when this is empty, in *early_ops*."""
        return self.static.late(names)

    def init_ops(self, names: tuple[Op, ...] = ()) -> tuple[Op, ...]:
        """Return all that init does."""
        return (*self.early_ops(names), *self.late_ops(names))

    @property
    def key(self) -> object:
        """What the operations depend on, cheap to hash: plans with equal keys differ in their descriptors only."""
        return self.static

    def names(
        self,
        hostname: str,
        *,
        hosts: Iterable[tuple[str, str]] = (),
        nameservers: Iterable[str] = (),
        search: Iterable[str] = (),
        options: Iterable[str] = (),
    ) -> tuple[Op, ...]:
        """Return what writes /etc/hostname, hosts and resolv.conf; see `name_ops`."""
        return name_ops(hostname, hosts=hosts, nameservers=nameservers, search=search, options=options, etc=self.static.etc)

    def read(self, path: str, most: int) -> bytes:
        """Read up to *most* bytes of the file *path* of a root `Directory` or `Layers`, following links within it; b"" when it is no regular
        file. In layers no link is followed.
        """
        root = self.fds.get(_ROOT_SOURCE)
        if root is None:
            return b""
        if self.layers is not None:
            return remembered(read_layered, root, self.layers, path, most)
        try:
            found = openat2(path.lstrip("/"), _PATH, dir_fd=root, resolve=RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_XDEV)
        except OSError:
            return b""
        try:
            return read_regular(found, most)
        finally:
            os.close(found)

    def release(self, *, keep_root: bool = False) -> None:
        """Close the sources, but for the root with *keep_root*: the container holds its own mounts of them. May be called twice."""
        for slot in [slot for slot in self.fds if not (keep_root and slot == _ROOT_SOURCE)]:
            os.close(self.fds.pop(slot))

    def close(self) -> None:
        """Close everything, let go of the volumes, and remove a scratch layer on disk and anonymous volumes. May be called twice."""
        self.release()
        if self._scratch is None and not self._uses:
            return
        with contextlib.ExitStack() as stack:  # one that fails keeps none of the others
            if self._scratch is not None:
                stack.callback(self._scratch.close)
            for use in self._uses:
                stack.callback(use.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def ops(
    spec: FilesystemSpec,
    *,
    privileged: bool,
    ids: int = 65536,
    only_id: int | None = None,
    id_mapping: IdMapping = True,
    volumes: VolumeStore | None = None,
    announce: Callable[[str], None] = lambda path: None,
    given: Mapping[str, int] = MappingProxyType({}),
) -> FsPlan:
    """Open what *spec* names and return the operations that set it up.

    *privileged*: the launcher may mount in the caller's namespaces (the caller is root). *ids*: how many ids the
    container has, from 0 on; *only_id*: one that it has beside them. *id_mapping*: whether the file system behind a
    descriptor can be id-mapped, or a function that says so; it counts for privileged callers only. *volumes*: where `Volume` names are looked up.
    *given*: the mounts of ``spec.given``, attached nowhere, by their targets; they are the plan's then, and closed if there is none.
    *announce* is told the path of a scratch layer on disk before that is made, so that somebody can remove it when this process is killed.

    Raises: UsageError: a source is missing or of the wrong kind; nothing was touched.
        UnsupportedError: the spec takes id-mapped mounts, which that file system does not offer.
    """
    if not isinstance(spec, FilesystemSpec):
        raise UsageError(f"spec: {spec!r} is not a FilesystemSpec")
    opener = _Opener(privileged, id_mapping, volumes, announce)
    if given:
        opener.fds.update((given_slot(path), fd) for path, fd in given.items())
    try:
        return opener.open(spec, ids, only_id)
    except BaseException:
        opener.close()
        raise


@lru_cache(maxsize=64)
def _plain_host(files: HostFiles, ids: int, privileged: bool, only_id: int | None) -> Host:
    """One object for the same facts: they are looked up by it."""
    return Host(files, (), ids, privileged, only_id)


@lru_cache(maxsize=256)
def _source(slot: Slot, id_map: bool, etc: tuple[int, int, int] | None) -> Source:
    return Source(slot, id_map=id_map, etc=etc)


@lru_cache(maxsize=256)
def _sources(mounts: tuple[Source | None, ...], root: Source | None, disk: Source | None) -> Sources:
    return Sources(mounts, root, disk)


@define(eq=False)
class _Opener:
    """Collects descriptors until there is an `FsPlan` to own them."""

    privileged: bool
    id_mapping: IdMapping
    volumes: VolumeStore | None
    announce: Callable[[str], None]
    fds: dict[Slot, int] = field(factory=dict[Slot, int])
    scratch: ScratchDirectory | None = None
    uses: list[VolumeUse] = field(factory=list["VolumeUse"])
    layers: tuple[str, ...] | None = None
    etc: State | None = None

    def open(self, spec: FilesystemSpec, ids: int, only_id: int | None) -> FsPlan:
        self.layers = spec.root.names if isinstance(spec.root, Layers) else None
        host = self._host(spec, ids, only_id)
        root = None if isinstance(spec.root, HostView) else self._root(spec.root)
        mounts = tuple([self._mount(mount, index) for index, mount in enumerate(spec.mounts)])
        if mounts:
            _check_nested(spec.mounts, mounts, self.fds)
        # Last, as it makes something.
        disk = self._disk(spec.scratch.disk) if spec.scratch is not None and spec.scratch.disk is not None else None
        static = build(spec, host, _sources(mounts, root, disk))
        return FsPlan(static, self.fds, host.files, self.layers, self.scratch, tuple(self.uses), self.etc)

    def close(self) -> None:
        for fd in self.fds.values():
            os.close(fd)
        for use in self.uses:
            use.close()
        if self.scratch is not None:
            self.scratch.close()

    def _host(self, spec: FilesystemSpec, ids: int, only_id: int | None) -> Host:
        files = host_files()
        if not isinstance(spec.root, HostView) or not spec.root.overlay:
            return _plain_host(files, ids, self.privileged, only_id)
        if not self.privileged:
            _refuse("root: a writable /usr", "run as root, or leave out overlay=True")
        for tree in files.trees:
            self._check_tree(tree)
        return Host(files, tuple((tree, submounts(tree)) for tree in files.trees), ids, self.privileged, only_id)

    def _check_tree(self, tree: str) -> None:
        fd = os.open(tree, _PATH)
        try:
            if not self._can_map(fd):
                _refuse(f"root: a writable {tree}", "leave out overlay=True")
        finally:
            os.close(fd)

    def _root(self, directory: Directory | Layers) -> Source:
        fd = self._keep(_ROOT_SOURCE, _open_source(directory.path, what="root", kinds=(stat.S_IFDIR,)))
        if self.privileged and not self._can_map(fd):
            _refuse(f"root: {directory.path!r}", "copy it to ext4, xfs, btrfs or (from Linux 6.3 on) tmpfs")
        return self._source(_ROOT_SOURCE, id_map=True, etc=self._etc(directory, fd) if self.privileged else None)

    def _etc(self, directory: Directory | Layers, fd: int) -> tuple[int, int, int] | None:
        if isinstance(directory, Layers):
            return remembered(_look_at_layered_etc, fd, directory.names)
        self.etc = state = state_of("etc", fd)
        if state not in _etcs:  # it changes with its mode, its owner, and its access control list
            if len(_etcs) >= _MOST_REMEMBERED:
                _etcs.clear()
            _etcs[state] = found = _look_at_etc(fd)
            return found
        return _etcs[state]

    def _disk(self, base: str) -> Source:
        self.scratch = make_scratch(base, self.announce)
        fd = self._keep("fs.src.scratch", os.open(".", _PATH | os.O_DIRECTORY, dir_fd=self.scratch.fd))
        if self.privileged and not self._can_map(fd):
            _refuse(f"scratch: {base!r}", "use ext4, xfs, btrfs or (from Linux 6.3 on) tmpfs, or a scratch layer in memory")
        return self._source("fs.src.scratch", id_map=True)

    def _mount(self, mount: Mount, index: int) -> Source | None:
        if isinstance(mount, Tmpfs):
            return None
        slot = f"fs.mount{index}"
        if isinstance(mount, Volume):
            use = self._use(mount)
            fd, what = self._keep(slot, use.take()), f"volume {mount.name!r}"
            if use.is_mount:  # of ext4, which can be id-mapped wherever the kernel knows of that
                return self._own_mount(slot, what, read_only=mount.read_only)
        else:
            fd, what = self._keep(slot, _open_source(mount.source, what="mounts", kinds=(stat.S_IFDIR, stat.S_IFREG))), repr(mount.source)
        id_map = self.privileged and self._can_map(fd)
        if self.privileged and not id_map and not mount.read_only:
            _refuse(f"mounts: writing to {what}", "pass read_only=True, or use ext4, xfs, btrfs or (from Linux 6.3 on) tmpfs")
        return self._source(slot, id_map=id_map)

    def _own_mount(self, slot: Slot, what: str, *, read_only: bool) -> Source:
        id_map = self.id_mapping is not False and features.idmapped_mounts()
        if not id_map and not read_only:
            _refuse(f"mounts: writing to {what}", f"pass read_only=True, or boot {_IDMAPPED} or later")
        return Source(slot, id_map=id_map, is_mount=True)

    def _use(self, volume: Volume) -> VolumeUse:
        from sandbox.fs._volume_content import Content  # needed by few, as what follows
        from sandbox.fs.volumes import VolumeStore

        store = VolumeStore() if self.volumes is None else self.volumes
        root = self.fds.get(_ROOT_SOURCE)
        content = None if volume.nocopy or root is None else Content(root, volume.target, self.layers)
        use = store.use(volume.name, subpath=volume.subpath, content=content, announce=self.announce, size=volume.size)
        self.uses.append(use)
        return use

    def _keep(self, slot: Slot, fd: int) -> int:
        self.fds[slot] = fd
        return fd

    def _source(self, slot: Slot, *, id_map: bool, etc: tuple[int, int, int] | None = None) -> Source:
        if self.privileged:
            return _source(slot, id_map, etc)
        # Init opens it again, in its own mount namespace, and compares: a path alone proves nothing.
        return Source(slot, os.readlink(f"/proc/self/fd/{self.fds[slot]}"))

    def _can_map(self, fd: int) -> bool:
        return self.id_mapping(fd) if callable(self.id_mapping) else self.id_mapping


def _refuse(what: str, remedy: str) -> None:
    if not features.mount_setattr():  # with which they came: no file system has them
        remedy = f"boot {_IDMAPPED} or later, or run as an ordinary user, whose one id is the same outside"
    raise UnsupportedError(f"{what} needs id-mapped mounts, which are not to be had there", feature="idmapped-mounts", remedy=remedy)


def _open_source(path: str, *, what: str, kinds: tuple[int, ...]) -> int:
    """Open a path of the host with the caller's rights, following links; the descriptor pins what was found."""
    try:
        fd = os.open(path, _PATH)
    except OSError as error:
        raise UsageError(f"{what}: {path!r}: {error.strerror}; give a path that exists and that you may reach") from error
    if stat.S_IFMT(os.fstat(fd).st_mode) in kinds:
        return fd
    os.close(fd)
    wanted = "a directory" if len(kinds) == 1 else "a directory or regular file"
    raise UsageError(f"{what}: {path!r} is not {wanted}")


def _check_nested(mounts: tuple[Mount, ...], sources: tuple[Source | None, ...], fds: dict[Slot, int]) -> None:
    """Refuse a mount inside a `Bind` that has no place for it: making one would write to the caller's directory."""
    for index, inner in enumerate(mounts):
        # Sorted by components: the last one before it that contains it is the innermost.
        for outer, source in zip(reversed(mounts[:index]), reversed(sources[:index]), strict=True):
            if not inner.target.startswith(f"{outer.target}/"):
                continue
            if isinstance(outer, Bind) and source is not None and not _has(fds[source.slot], inner.target[len(outer.target) + 1 :]):
                raise UsageError(f"mounts: {inner.target!r} lies in the bind on {outer.target!r}, but {outer.source!r} has no such place; make it")
            break


def _has(directory: int, path: str) -> bool:
    try:
        os.stat(path, dir_fd=directory, follow_symlinks=False)
    except OSError:
        return False
    return True


def _look_at_layered_etc(root: int, names: tuple[str, ...]) -> tuple[int, int, int] | None:
    highest = highest_with(root, names, "etc")
    if highest is None:
        return None
    layer = os.open(highest, _PATH | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=root)
    try:
        return _look_at_etc(layer)
    finally:
        os.close(layer)


def _look_at_etc(root: int) -> tuple[int, int, int] | None:
    """Mode, uid and gid of the directory /etc below *root*; None when there is none, or its owner is no id of a container."""
    try:
        status = os.stat("etc", dir_fd=root, follow_symlinks=False)
    except OSError:
        return None
    if not stat.S_ISDIR(status.st_mode) or max(status.st_uid, status.st_gid) >= _IDS:
        return None
    mode = stat.S_IMODE(status.st_mode)
    return mode & ~0o070 | _group_bits(root, mode), status.st_uid, status.st_gid


def _group_bits(root: int, mode: int) -> int:
    """What the owning group of /etc may do: with an access control list, the mode shows its mask instead (acl(5))."""
    try:
        raw = os.getxattr(f"/proc/self/fd/{root}/etc", "system.posix_acl_access", follow_symlinks=False)
    except OSError:
        return mode & 0o070
    entries = [struct.unpack_from("<HH", raw, at) for at in range(4, len(raw) - 7, 8)]  # posix_acl_xattr.h: tag, permissions, id
    of_group = [permissions for tag, permissions in entries if tag == _ACL_GROUP_OBJ]
    return (of_group[0] << 3) & mode & 0o070 if of_group else 0
