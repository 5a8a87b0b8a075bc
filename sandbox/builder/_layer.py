"""A layer that a step makes of files, with no container: a list of items, the key that names their content, and the tar of them.

The key covers names, kinds, modes, owners, links, capabilities and content, and no times: it says all that the layer is, so whoever has the same
key has the same layer, whatever image it lies on.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Final

from attrs import define, evolve, field, frozen

from sandbox.builder._hashes import Hashes
from sandbox.builder._tree import Entry, Tree
from sandbox.errors import ImageError

if TYPE_CHECKING:
    import tarfile

CHUNK: Final = 1 << 20
MAX_ITEMS: Final = 2_000_000
MAX_ID: Final = 65535  # the ids of a container
_CAPABILITY: Final = "security.capability"
_GNU_FORMAT: Final = 1  # tarfile.GNU_FORMAT
_PAX_FORMAT: Final = 2
_RECORD: Final = 10240  # tar archives end in whole records of 20 blocks


@frozen(eq=False, repr=False)
class Item:
    """One file, directory or link of a layer; *path* has no slash at either end."""

    path: str
    mode: int  # with the file type
    uid: int
    gid: int
    mtime: int
    link: str = ""
    data: bytes | None = None  # content that is here already
    tree: Tree | None = None  # else where it is read from
    entry: Entry | None = None
    capability: bytes = b""
    twin: str = ""  # the path of an item that is the same file: a hard link

    @property
    def kind(self) -> int:
        """The file type."""
        return stat.S_IFMT(self.mode)


@define(eq=False, repr=False)
class Layer:
    """Items by path: a later one takes the place of an earlier one."""

    items: dict[str, Item] = field(factory=dict[str, Item])

    def add(self, item: Item) -> None:
        """Put *item* in. Raises: ImageError: too many of them."""
        if len(self.items) >= MAX_ITEMS:
            raise ImageError(f"a step that copies more than {MAX_ITEMS} files")
        self.items[item.path] = item

    def ordered(self) -> list[Item]:
        """Directories before what they hold; files that are one where they come from stay one."""
        first: dict[tuple[int, ...], str] = {}
        return [_linked(self.items[path], first) for path in sorted(self.items, key=lambda path: path.split("/"))]


def _linked(item: Item, first: dict[tuple[int, ...], str]) -> Item:
    if item.kind != stat.S_IFREG or item.entry is None or item.entry.status.st_nlink < 2:
        return item
    status = item.entry.status
    twin = first.setdefault((id(item.tree), status.st_dev, status.st_ino, item.mode, item.uid, item.gid), item.path)
    return item if twin == item.path else evolve(item, twin=twin)


def item_of(tree: Tree, entry: Entry, path: str, *, uid: int, gid: int, mode: int | None = None) -> Item:
    """Make an item of what is in a tree. Raises: ImageError: no image holds such."""
    status = entry.status
    kind = stat.S_IFMT(status.st_mode)
    if kind not in (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO):
        raise ImageError(f"{entry.path!r} is a device or socket, which an image cannot hold")
    bits = stat.S_IMODE(status.st_mode) if mode is None or kind == stat.S_IFLNK else mode
    capability = _capability(tree, entry) if kind == stat.S_IFREG else b""
    return Item(path, kind | bits, uid, gid, int(status.st_mtime), entry.link, tree=tree, entry=entry, capability=capability)


def _capability(tree: Tree, entry: Entry) -> bytes:
    """The file capabilities of what lies in an image; those of the host's own files stay here."""
    if not tree.layered:
        return b""
    fd = tree.open(entry)
    try:
        return os.getxattr(fd, _CAPABILITY)
    except OSError:
        return b""
    finally:
        os.close(fd)


def key_of(items: Iterable[Item], hashes: Hashes) -> str:
    """Name what *items* are; reads the content of all files, as far as *hashes* does not know it."""
    digest = hashlib.sha256(b"sandbox layer 1\0")
    for item in items:
        content = ""
        if item.data is not None:
            content = hashlib.sha256(item.data).hexdigest()
        elif item.kind == stat.S_IFREG and item.tree is not None and item.entry is not None:
            content = hashes.of(item.tree, item.entry)
        fields = (os.fsencode(item.path).hex(), item.mode, item.uid, item.gid, os.fsencode(item.link).hex(), content, item.capability.hex())
        more = (os.fsencode(item.twin).hex(),) if item.twin else ()
        digest.update(json.dumps(fields + more).encode() + b"\n")
    return digest.hexdigest()


def write_tar(items: Iterable[Item], write: Callable[[bytes], object], *, clamp: int | None) -> None:
    """Write the tar of *items*. *clamp*: no time is later than this, in seconds. Raises: ImageError: a file changed meanwhile."""
    size = 0
    for item in items:
        for chunk in _member(item, clamp):
            size += len(chunk)
            write(chunk)
    write(bytes(1024 + -(size + 1024) % _RECORD))


def _member(item: Item, clamp: int | None) -> Iterator[bytes]:
    import tarfile  # needed by what is not in the cache

    info = tarfile.TarInfo(item.path)
    info.mode, info.uid, info.gid = stat.S_IMODE(item.mode), item.uid, item.gid
    info.mtime = max(0, item.mtime if clamp is None else min(item.mtime, clamp))
    kinds = {stat.S_IFREG: tarfile.REGTYPE, stat.S_IFDIR: tarfile.DIRTYPE, stat.S_IFLNK: tarfile.SYMTYPE, stat.S_IFIFO: tarfile.FIFOTYPE}
    info.type = kinds[item.kind]
    info.linkname = item.link
    if item.twin:
        info.type, info.linkname = tarfile.LNKTYPE, item.twin
        yield _header(info, b"")
        return
    fd = _open(item)
    try:
        info.size = _size(item, fd)
        yield _header(info, item.capability)
        if item.data is not None:
            yield item.data
        elif fd is not None:
            yield from _content(fd, info.size, item.path)
        yield bytes(-info.size % 512)
    finally:
        if fd is not None:
            os.close(fd)


def _open(item: Item) -> int | None:
    if item.kind != stat.S_IFREG or item.data is not None or item.tree is None or item.entry is None:
        return None
    return item.tree.open(item.entry)


def _size(item: Item, fd: int | None) -> int:
    if fd is None or item.entry is None:
        return len(item.data or b"")
    found, expected = os.fstat(fd), item.entry.status
    if (found.st_ino, found.st_size, found.st_mtime_ns) != (expected.st_ino, expected.st_size, expected.st_mtime_ns):
        raise ImageError(f"{item.entry.path!r} was changed while it was read; build again")
    return found.st_size


def _header(info: tarfile.TarInfo, capability: bytes) -> bytes:
    if not capability:
        return info.tobuf(_GNU_FORMAT, "utf-8", "surrogateescape")
    # Binary values have a place in PAX headers only, in these words of star's, which tar and Docker share.
    info.pax_headers = {f"SCHILY.xattr.{_CAPABILITY}": capability.decode("utf-8", "surrogateescape")}
    return info.tobuf(_PAX_FORMAT, "utf-8", "surrogateescape")


def _content(fd: int, size: int, path: str) -> Iterator[bytes]:
    left = size
    while left:
        chunk = os.read(fd, min(left, CHUNK))
        if not chunk:
            raise ImageError(f"{path!r} became shorter while it was read; build again")
        left -= len(chunk)
        yield chunk
