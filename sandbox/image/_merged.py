"""The root that layers make together, as a tar, without mounting it.

Each directory is looked at in all layers that have it, the uppermost first, as the kernel's overlay does: the first entry of a name counts, a
whiteout (a device 0:0) hides what is below it, directories merge until one is opaque or is none. Layers are the store's own, and what
is in them is a stranger's: no link is followed, and nothing is opened that is not a regular file or a directory.
"""

from __future__ import annotations

import errno
import os
import stat
import tarfile
from collections.abc import Sequence
from contextlib import ExitStack

from attrs import define, field, frozen

from sandbox._sys.calls import openat2
from sandbox._sys.constants import RESOLVE_BENEATH, RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS

DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
RESOLVE = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS
_OVERLAY = ("user.overlay.", "trusted.overlay.")


@define
class _Found:
    """A name in a merged directory: where its entry is, and for a directory, the layers that have a part in it."""

    layer: int
    status: os.stat_result
    layers: list[int] = field(factory=list[int])
    closed: bool = True  # nothing below has a part in it


@frozen
class Directory:
    """A directory that some of the layers have."""

    path: str  # "" is the root
    layers: tuple[int, ...]  # positions in the list of layers, the uppermost first


def write_merged(
    layers: Sequence[str], tar: tarfile.TarFile, *, owner: tuple[int, int] | None = None, upper: int | None = None, shift: int = 0
) -> None:
    """Write the root that *layers* (paths, the lowest first) make into *tar*; *owner* stands for all owners (None: as they are).

    *upper*: a descriptor of one more layer above them, from whose owners *shift* is taken off.
    """
    with ExitStack() as stack:
        roots: list[int] = [] if upper is None else [upper]
        for path in reversed(layers):
            roots.append(os.open(path, DIRECTORY))
            stack.callback(os.close, roots[-1])
        writer = _Writer(tar, owner, shift=0 if upper is None else shift)
        pending = [Directory("", tuple(range(len(roots))))] if roots else []
        while pending:
            directory = pending.pop()
            pending += reversed(_visit(roots, directory, writer))


def _visit(roots: Sequence[int], directory: Directory, writer: _Writer) -> list[Directory]:
    """Write *directory* and what is in it but its directories, which are given back."""
    with ExitStack() as stack:
        fds: dict[int, int] = {}
        for layer in directory.layers:
            fds[layer] = openat2(directory.path or ".", DIRECTORY, dir_fd=roots[layer], resolve=RESOLVE)
            stack.callback(os.close, fds[layer])
        writer.directory(directory.path, fds[directory.layers[0]], directory.layers[0])
        found = merge(fds)
        below: list[Directory] = []
        for name in sorted(found):
            entry, path = found[name], f"{directory.path}/{name}" if directory.path else name
            if stat.S_ISDIR(entry.status.st_mode):
                below.append(Directory(path, tuple(entry.layers)))
            elif not is_whiteout(entry.status):
                writer.leaf(path, name, fds[entry.layer], entry)
        return below


def merge(fds: dict[int, int]) -> dict[str, _Found]:
    """What the directories *fds*, the uppermost first, have together: whiteouts too, for there may be more layers below."""
    found: dict[str, _Found] = {}
    for layer, fd in fds.items():
        for name in os.listdir(fd):
            before = found.get(name)
            if before is not None and before.closed:
                continue
            status = os.stat(name, dir_fd=fd, follow_symlinks=False)
            if not stat.S_ISDIR(status.st_mode):
                if before is None:
                    found[name] = _Found(layer, status)
                else:
                    before.closed = True  # a directory above hides it, and with it all that is below
                continue
            entry = found.setdefault(name, _Found(layer, status))
            entry.layers.append(layer)
            entry.closed = is_opaque(fd, name)
    return found


def is_whiteout(status: os.stat_result) -> bool:
    """Whether it stands for a name that is gone."""
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def is_opaque(parent: int, name: str) -> bool:
    """Whether the directory *name* in *parent* hides what is below it."""
    fd = os.open(name, DIRECTORY, dir_fd=parent)
    try:
        names = xattr_names(fd)
        return any(f"{prefix}opaque" in names and os.getxattr(fd, f"{prefix}opaque") == b"y" for prefix in _OVERLAY)
    finally:
        os.close(fd)


def xattr_names(fd: int) -> list[str]:
    """The names of its extended attributes."""
    try:
        return os.listxattr(fd)
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:  # a file system without
            return []
        raise


@define
class _Writer:
    """Turns files into members; a second name of a file of one layer becomes a hard link."""

    tar: tarfile.TarFile
    owner: tuple[int, int] | None
    shift: int = 0  # of the uppermost layer's owners
    first_names: dict[tuple[int, int], str] = field(factory=dict[tuple[int, int], str])

    def directory(self, path: str, fd: int, layer: int) -> None:
        """Write a directory."""
        info = self._info(f"{path}/" if path else "./", os.fstat(fd), tarfile.DIRTYPE, layer)
        info.pax_headers = _kept_xattrs(fd)
        self.tar.addfile(info)

    def leaf(self, path: str, name: str, parent: int, found: _Found) -> None:
        """Write what is no directory. Devices are never in a store, and neither are sockets."""
        status = found.status
        key = status.st_dev, status.st_ino
        if status.st_nlink > 1 and key in self.first_names:
            info = self._info(path, status, tarfile.LNKTYPE, found.layer)
            info.linkname = self.first_names[key]
            self.tar.addfile(info)
            return
        self.first_names[key] = path
        if stat.S_ISLNK(status.st_mode):
            info = self._info(path, status, tarfile.SYMTYPE, found.layer)
            info.linkname = os.readlink(name, dir_fd=parent)
            self.tar.addfile(info)
        elif stat.S_ISFIFO(status.st_mode):
            self.tar.addfile(self._info(path, status, tarfile.FIFOTYPE, found.layer))
        elif stat.S_ISREG(status.st_mode):
            with open(os.open(name, FILE, dir_fd=parent), "rb") as file:
                info = self._info(path, status, tarfile.REGTYPE, found.layer)
                info.size = status.st_size
                info.pax_headers = _kept_xattrs(file.fileno())
                self.tar.addfile(info, file)

    def _info(self, path: str, status: os.stat_result, kind: bytes, layer: int) -> tarfile.TarInfo:
        info = tarfile.TarInfo(path)
        info.type, info.mode, info.mtime = kind, stat.S_IMODE(status.st_mode), int(status.st_mtime)
        shift = 0 if layer else self.shift
        info.uid, info.gid = self.owner or (status.st_uid - shift, status.st_gid - shift)
        return info


def _kept_xattrs(fd: int) -> dict[str, str]:
    names = [name for name in xattr_names(fd) if name == "security.capability" or (name.startswith("user.") and not name.startswith(_OVERLAY))]
    return {f"SCHILY.xattr.{name}": os.getxattr(fd, name).decode("utf-8", "surrogateescape") for name in sorted(names)}
