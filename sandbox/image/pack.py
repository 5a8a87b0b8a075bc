"""A directory as the tar of a layer: the same bytes for the same files, whoever packs them, wherever they lie.

Theory of operation: the tree is walked on descriptors, names in the order of their bytes, a directory before what is in it. No link is followed;
what is no directory, file, link or FIFO when it is looked at is left out or refused, never opened. What the kernel's overlay notes in an
upper directory is turned into what layers say: a device 0:0 into ``.wh.NAME``, an opaque directory into one that contains ``.wh..wh..opq``.

Headers are ustar; a PAX header stands before a member only where ustar has no room for something: long or non-ASCII names, large
sizes, extended attributes, holes. Times are whole seconds, owners are numbers. Blocks of zeros become holes when there are many,
whether the file system stores them or not: what is packed depends on content alone. Memory is bounded by the number
of files with several names that are not all inside.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import struct
from collections.abc import Callable, Collection, Iterator
from typing import Final

from attrs import define, field

from sandbox.errors import ImageError
from sandbox.image._directories import shown
from sandbox.image.digest import Digest
from sandbox.image.unpack import Hash

__all__ = ["pack"]

_BLOCK: Final = 512
_RECORD: Final = 10240  # POSIX: archives are written in records of 20 blocks
_PIECE: Final = 1 << 18
_GRAIN: Final = 1 << 16  # a hole is this long at least, and aligned to it
_ZEROS: Final = bytes(_GRAIN)
# A file with fewer zeros is packed whole: Docker and podman cannot put a layer with a sparse file together again, to save or to push it (their
# tar-split notes headers, and writes content by the size of the file: "could not verify layer data"). Beyond that, a hole of a petabyte is cheaper.
_MOST_ZEROS: Final = 64 << 20
_MOST_HOLES: Final = 10_000  # a file with more of them is packed whole
_MAX_ID: Final = 65535
_HEADER: Final = struct.Struct("100s8s8s8s12s12s8sc100s8s32s32s8s8s155s12x")
_OPEN: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN_DIRECTORY: Final = _OPEN | os.O_DIRECTORY
_OPEN_FILE: Final = _OPEN | os.O_NONBLOCK | os.O_NOCTTY  # should it have become a FIFO
_OVERLAY: Final = ("user.overlay.", "trusted.overlay.")
_REDIRECTS: Final = ("redirect", "metacopy")  # of overlay: the content lies elsewhere
_EMPTY_NAME: Final = b"PaxHeader"  # shown by programs that know nothing of PAX


def pack(
    directory: int,
    write: Callable[[bytes], object],
    *,
    shift: int = 0,
    clamp_mtime: int | None = None,
    whiteouts: bool = True,
    owner: tuple[int, int] | None = None,
    leave_out: Collection[bytes] = (),
) -> Digest:
    """Write the tree behind the descriptor *directory* as a tar, in pieces, to *write*; its digest is the layer's diffID.

    *shift* is taken off all owners; *owner* stands for all of them instead (what an ordinary user packs is root's in the layer). *clamp_mtime*:
    no time is later than that, in seconds since the epoch (SOURCE_DATE_EPOCH). *whiteouts*: the tree is an overlay's upper layer; without, it is
    a whole root file system, and a device 0:0 is a device, which like all devices and sockets is left out. *leave_out*: paths, without a slash
    at the beginning, that are not looked at, with what is in them. The tree should be at rest: a
    file that becomes shorter while it is read is an error.

    Raises: ImageError: the tree cannot be a layer. OSError: it cannot be read. What *write* raises.
    """
    packer = _Packer(write, shift=shift, clamp_mtime=clamp_mtime, whiteouts=whiteouts, owner=owner, leave_out=frozenset(leave_out))
    packer.tree(directory)
    return packer.finish()


@define(eq=False)
class _Level:
    """A directory on the way down: what is left to pack of it."""

    fd: int
    path: bytes
    names: list[bytes]  # the last one first


@define(eq=False)
class _Packer:
    _write: Callable[[bytes], object]
    shift: int = field(kw_only=True)
    clamp_mtime: int | None = field(kw_only=True)
    whiteouts: bool = field(kw_only=True)
    owner: tuple[int, int] | None = field(kw_only=True)
    leave_out: frozenset[bytes] = field(kw_only=True)
    _hash: Hash = field(factory=hashlib.sha256)
    _size: int = 0
    _linked: dict[tuple[int, int], tuple[bytes, int]] = field(factory=dict[tuple[int, int], tuple[bytes, int]])  # its first name, names to come

    def tree(self, root: int) -> None:
        stack = [self._enter(os.open(".", _OPEN_DIRECTORY, dir_fd=root), b"")]
        try:
            while stack:
                level = stack[-1]
                if level.names:
                    if (below := self._entry(level, level.names.pop())) is not None:
                        stack.append(below)
                else:
                    os.close(stack.pop().fd)
        finally:
            for level in stack:
                os.close(level.fd)

    def finish(self) -> Digest:
        self._put(bytes(2 * _BLOCK))
        self._put(bytes(-self._size % _RECORD))
        return Digest("sha256", self._hash.hexdigest())

    def _put(self, data: bytes) -> None:
        self._hash.update(data)
        self._size += len(data)
        self._write(data)

    # --- the walk

    def _enter(self, fd: int, path: bytes) -> _Level:
        """Pack the directory behind *fd*, which the level owns from now on."""
        try:
            xattrs, opaque = self._xattrs(fd, path)
            self._member(path + b"/" if path else b"./", b"5", os.fstat(fd), xattrs=xattrs)
            if opaque and self.whiteouts:
                self._whiteout((path + b"/" if path else b"") + b".wh..wh..opq")
            return _Level(fd, path, sorted(map(os.fsencode, os.listdir(fd)), reverse=True))
        except BaseException:
            os.close(fd)
            raise

    def _entry(self, level: _Level, name: bytes) -> _Level | None:
        path = level.path + b"/" + name if level.path else name
        if path in self.leave_out:
            return None
        if name.startswith(b".wh."):
            raise ImageError(f"{shown(path)}: a layer cannot have this name, which would hide another file")
        status = os.stat(name, dir_fd=level.fd, follow_symlinks=False)
        mode = status.st_mode
        if stat.S_ISDIR(mode):
            return self._enter(os.open(name, _OPEN_DIRECTORY, dir_fd=level.fd), path)
        if stat.S_ISCHR(mode) and status.st_rdev == 0 and self.whiteouts:
            self._whiteout((level.path + b"/" if level.path else b"") + b".wh." + name)
        elif (stat.S_ISREG(mode) or stat.S_ISLNK(mode) or stat.S_ISFIFO(mode)) and not self._is_linked(path, status):
            self._leaf(level.fd, name, path, status)
        return None

    def _leaf(self, at: int, name: bytes, path: bytes, status: os.stat_result) -> None:
        if stat.S_ISREG(status.st_mode):
            fd = _open_file(at, name)
            try:
                self._file(fd, path)
            finally:
                os.close(fd)
        elif stat.S_ISLNK(status.st_mode):
            self._member(path, b"2", status, target=os.readlink(name, dir_fd=at))
        else:
            self._member(path, b"6", status)

    def _is_linked(self, path: bytes, status: os.stat_result) -> bool:
        """Pack another name of a file that was packed; whether it was."""
        if status.st_nlink == 1:
            return False
        key = status.st_dev, status.st_ino
        first, left = self._linked.get(key, (b"", status.st_nlink))
        self._linked[key] = first or path, left - 1
        if left == 1:
            del self._linked[key]
        if not first:
            return False
        self._member(path, b"1", status, target=first)
        return True

    def _whiteout(self, path: bytes) -> None:
        self._header(path, b"0", mode=0, owner=(0, 0), size=0, mtime=0, target=b"", records=[])

    # --- members

    def _member(
        self, path: bytes, kind: bytes, status: os.stat_result, *, size: int = 0, target: bytes = b"", xattrs: dict[str, bytes] | None = None
    ) -> None:
        records = [(b"SCHILY.xattr." + os.fsencode(key), value) for key, value in sorted((xattrs or {}).items())]
        self._header(
            path,
            kind,
            mode=stat.S_IMODE(status.st_mode),
            owner=self._owner(path, status),
            size=size,
            mtime=self._mtime(status),
            target=target,
            records=records,
        )

    def _owner(self, path: bytes, status: os.stat_result) -> tuple[int, int]:
        uid, gid = self.owner or (status.st_uid - self.shift, status.st_gid - self.shift)
        if not (0 <= uid <= _MAX_ID and 0 <= gid <= _MAX_ID):
            raise ImageError(f"{shown(path)}: owned by {status.st_uid}:{status.st_gid}, who is nobody of the container")
        return uid, gid

    def _mtime(self, status: os.stat_result) -> int:
        seconds = status.st_mtime_ns // 1_000_000_000
        return seconds if self.clamp_mtime is None else min(seconds, self.clamp_mtime)

    def _file(self, fd: int, path: bytes) -> None:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise ImageError(f"{shown(path)}: changed while it was packed")
        xattrs, _ = self._xattrs(fd, path)
        size = status.st_size
        extents = _extents(fd, size) if size >= _MOST_ZEROS else None
        if extents is None:
            self._member(path, b"0", status, size=size, xattrs=xattrs)
            self._content(fd, path, 0, size)
        else:
            self._sparse(fd, path, status, xattrs, extents)

    def _sparse(self, fd: int, path: bytes, status: os.stat_result, xattrs: dict[str, bytes], extents: list[tuple[int, int]]) -> None:
        """A file with holes in GNU's PAX format 1.0: the map stands before the data."""
        numbers = [len(extents), *(number for extent in extents for number in extent)]
        table = b"".join(b"%d\n" % number for number in numbers)
        table += bytes(-len(table) % _BLOCK)
        stored = sum(length for _, length in extents)
        records = [
            (b"GNU.sparse.major", b"1"),
            (b"GNU.sparse.minor", b"0"),
            (b"GNU.sparse.name", path),
            (b"GNU.sparse.realsize", b"%d" % status.st_size),
            *((b"SCHILY.xattr." + os.fsencode(key), value) for key, value in sorted(xattrs.items())),
        ]
        self._header(
            b"GNUSparseFile.0/" + path,
            b"0",
            mode=stat.S_IMODE(status.st_mode),
            owner=self._owner(path, status),
            size=len(table) + stored,
            mtime=self._mtime(status),
            target=b"",
            records=records,
        )
        self._put(table)
        for offset, length in extents:
            self._content(fd, path, offset, length, pad=False)
        self._put(bytes(-stored % _BLOCK))

    def _content(self, fd: int, path: bytes, offset: int, length: int, *, pad: bool = True) -> None:
        end = offset + length
        while offset < end:
            piece = os.pread(fd, min(_PIECE, end - offset), offset)
            if not piece:
                raise ImageError(f"{shown(path)}: became shorter while it was packed")
            self._put(piece)
            offset += len(piece)
        if pad and length % _BLOCK:
            self._put(bytes(-length % _BLOCK))

    def _xattrs(self, fd: int, path: bytes) -> tuple[dict[str, bytes], bool]:
        """The attributes that a layer keeps, and whether the directory is opaque."""
        kept, opaque = dict[str, bytes](), False
        for key in _list_xattrs(fd):
            prefix = next((prefix for prefix in _OVERLAY if key.startswith(prefix)), None)
            if prefix is None:
                if key.startswith("user.") or key == "security.capability":
                    kept[key] = os.getxattr(fd, key)
            elif key == f"{prefix}opaque":
                opaque = opaque or os.getxattr(fd, key) == b"y"
            elif key[len(prefix) :] in _REDIRECTS:
                raise ImageError(f"{shown(path)}: an overlay with {key}, whose content lies elsewhere")
        return kept, opaque

    # --- headers

    def _header(
        self,
        path: bytes,
        kind: bytes,
        *,
        mode: int,
        owner: tuple[int, int],
        size: int,
        mtime: int,
        target: bytes,
        records: list[tuple[bytes, bytes]],
    ) -> None:
        prefix, name = _split(path)
        extra = list(records)
        if name is None:
            prefix, name = b"", path[:100]
            if not any(key == b"GNU.sparse.name" for key, _ in records):
                extra.append((b"path", path))
        if len(target) > 100 or not target.isascii():
            extra.append((b"linkpath", target))
        if size >> 33:  # 11 octal digits
            extra.append((b"size", b"%d" % size))
        if not 0 <= mtime < 1 << 33:
            extra.append((b"mtime", b"%d" % mtime))
        if extra:
            data = b"".join(sorted(_record(key, value) for key, value in extra))
            self._put(_block(b"x", _EMPTY_NAME, b"", mode=0o644, owner=(0, 0), size=len(data), mtime=0, target=b""))
            self._put(data + bytes(-len(data) % _BLOCK))
        size, mtime = size if not size >> 33 else 0, mtime if 0 <= mtime < 1 << 33 else 0
        self._put(_block(kind, name, prefix, mode=mode, owner=owner, size=size, mtime=mtime, target=target[:100]))


def _open_file(at: int, name: bytes) -> int:
    """Open a file to read it; an ordinary user's own one also when its mode forbids that (Fedora's /etc/shadow is 0000)."""
    try:
        return os.open(name, _OPEN_FILE, dir_fd=at)
    except PermissionError:
        path = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at)
    try:
        # By the descriptor, so that it is this very file whose mode changes, whatever stands at its name by now.
        itself, status = f"/proc/self/fd/{path}", os.fstat(path)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), os.fsdecode(name))
        os.chmod(itself, stat.S_IMODE(status.st_mode) | stat.S_IRUSR)
        try:
            return os.open(itself, os.O_RDONLY | os.O_CLOEXEC)
        finally:
            os.chmod(itself, stat.S_IMODE(status.st_mode))
    finally:
        os.close(path)


def _split(path: bytes) -> tuple[bytes, bytes | None]:
    """Divide *path* between ustar's two fields; None: it does not fit."""
    if not path.isascii():
        return b"", None
    if len(path) <= 100:
        return b"", path
    at = path.find(b"/", len(path) - 101)
    if 0 < at <= 155 and at + 1 < len(path):
        return path[:at], path[at + 1 :]
    return b"", None


def _block(
    kind: bytes, name: bytes, prefix: bytes, *, mode: int, owner: tuple[int, int], size: int, mtime: int, target: bytes
) -> bytes:
    fields = (
        name, b"%07o" % mode, b"%07o" % owner[0], b"%07o" % owner[1], b"%011o" % size, b"%011o" % mtime, b" " * 8, kind, target,
        b"ustar\00000", b"", b"", b"%07o" % 0, b"%07o" % 0, prefix,
    )  # fmt: skip
    raw = _HEADER.pack(*fields)
    return raw[:148] + b"%06o\0 " % sum(raw) + raw[156:]


def _record(key: bytes, value: bytes) -> bytes:
    """A PAX record, which begins with its own length in decimal."""
    rest = len(key) + len(value) + 3
    length = rest + len(str(rest))
    length = rest + len(str(length))
    return b"%d %s=%s\n" % (length, key, value)


def _list_xattrs(fd: int) -> list[str]:
    try:
        return sorted(os.listxattr(fd))
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:
            return []
        raise


def _extents(fd: int, size: int) -> list[tuple[int, int]] | None:
    """Where a file has something but zeros; None: not worth a map."""
    found = list[tuple[int, int]]()
    for offset, length in _data(fd, size):
        if found and sum(found[-1]) == offset:
            found[-1] = found[-1][0], found[-1][1] + length
        else:
            found.append((offset, length))
        if len(found) > _MOST_HOLES:
            return None
    if size - sum(length for _, length in found) < _MOST_ZEROS:
        return None
    if not found or sum(found[-1]) < size:
        found.append((size, 0))  # GNU tar's own way to say that a file ends with a hole
    return found


def _data(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """The grains of a file that are not all zeros."""
    offset = 0
    while offset < size:
        offset = _next_data(fd, offset, size)
        piece = os.pread(fd, _PIECE, offset)
        if not piece:
            return
        for at in range(0, len(piece), _GRAIN):
            grain = piece[at : at + _GRAIN]
            if grain != _ZEROS[: len(grain)]:
                yield offset + at, min(len(grain), size - offset - at)
        offset += len(piece)


def _next_data(fd: int, offset: int, size: int) -> int:
    """Skip what the file system knows to be a hole; a multiple of a grain, as *offset* is."""
    try:
        return os.lseek(fd, offset, os.SEEK_DATA) // _GRAIN * _GRAIN
    except OSError as error:
        if error.errno == errno.ENXIO:  # nothing but a hole up to the end
            return size
        raise
