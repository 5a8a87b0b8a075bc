"""Layers unpacked into a directory, on descriptors: whatever an archive says, nothing outside that directory is touched.

Theory of operation: a layer is unpacked alone, into an empty directory that nobody else can reach. Each path of it is taken apart into the
directory it lies in and a last component. `Directories` opens the former below the root with ``openat2(RESOLVE_BENEATH |
RESOLVE_NO_SYMLINKS | RESOLVE_NO_XDEV)``, makes what is missing, and keeps some of them open; the latter is made by system calls that follow
no link (``O_EXCL``, ``*at`` with ``AT_SYMLINK_NOFOLLOW``). So the kernel itself holds every path inside; our own handling of names only
decides what is told as an error.

A symbolic link of the layer that stands where a directory is needed is followed as Docker's chroot does: absolute targets and ``..``
begin and end at the root of the layer. It is read and resolved here, and the outcome is opened as above.

Directories are 0700 until the end; then they get their modes and times, the deepest first. Everything else is complete when the next member comes.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable, Iterator
from typing import Final, Protocol

from attrs import define, field, frozen

from sandbox.errors import ImageError, SandboxError, SetupError, UnsupportedError, UsageError
from sandbox.image._directories import Directories, join, shown
from sandbox.image._hints import hint_of
from sandbox.image.digest import Digest
from sandbox.image.tar import DEVICE, DIRECTORY, FIFO, FILE, HARD_LINK, SYMLINK, Member, Reader, UnpackLimits

__all__ = ["UnpackLimits", "Unpacked", "read_chunks", "unpack"]

_CHUNK: Final = 1 << 18
_MAX_ID: Final = 65535  # of a container's range; see docs/design/images.md
_WHITEOUT: Final = b".wh."
_AUFS: Final = b".wh..wh."
_OPAQUE: Final = b".wh..wh..opq"
_CAPABILITY: Final = b"security.capability"
# <linux/capability.h>: the revision (2, or 3 with a root's id) stands in the highest byte of a little-endian word. The kernel takes others, and then
# cannot give them back.
_CAPABILITIES: Final = {(b"\2", 20), (b"\3", 24)}
_EARLIEST: Final = -(1 << 31) * 1_000_000_000
_LATEST: Final = (1 << 34) * 1_000_000_000  # what ext4 can note, about the year 2514
_GRAIN: Final = 1 << 16
_ZEROS: Final = bytes(_GRAIN)
_NEW_FILE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


@frozen
class Unpacked:
    """What was unpacked: the digest and size of the tar, how many entries, roughly how much of the disk they take, and what was left out."""

    diff_id: Digest
    size: int
    entries: int
    bytes_on_disk: int
    dropped_devices: int = 0
    dropped_xattrs: int = 0


def read_chunks(fd: int) -> Iterator[bytes]:
    """Read *fd* to its end; it stays the caller's. Raises: OSError."""
    while chunk := os.read(fd, _CHUNK):
        yield chunk


def unpack(
    chunks: Iterable[bytes] | int, directory: int, *, limits: UnpackLimits | None = None, keep_owners: bool, rootfs: bool = False
) -> Unpacked:
    """Unpack a plain tar into the empty directory behind the descriptor *directory*, and hash it on the way.

    *keep_owners*: files get the owners (0 to 65535) and set-id bits that the archive names, which takes root; without, all is the
    caller's own. *rootfs*: it is a whole root file system, no layer: names of whiteouts are refused. When it fails, what was made so far lies
    there still: *directory* is the caller's to remove. Blocks; uses no state outside its arguments, so threads may unpack at once.

    Raises: ImageError: no tar, beyond *limits*, or not fit for a layer. SetupError: this host could not write it (no space ...).
        UnsupportedError: opaque directories on a file system without ``user.*`` attributes. What *chunks* raises.
    """
    digest = hashlib.sha256()
    source = hashed(read_chunks(chunks) if isinstance(chunks, int) else chunks, digest)
    return unpack_hashed(source, digest, directory, limits=limits or UnpackLimits(), keep_owners=keep_owners, rootfs=rootfs)


class Hash(Protocol):
    def update(self, data: bytes, /) -> None: ...
    def hexdigest(self) -> str: ...


def hashed(chunks: Iterable[bytes], digest: Hash) -> Iterator[bytes]:
    """Hash *chunks* on their way."""
    for chunk in chunks:
        digest.update(chunk)
        yield chunk


def unpack_hashed(
    chunks: Iterable[bytes], digest: Hash, directory: int, *, limits: UnpackLimits, keep_owners: bool, rootfs: bool
) -> Unpacked:
    """`unpack` chunks that are hashed elsewhere, by the sha256 *digest*, which has seen them all when the last of them has come."""
    with os.scandir(directory) as found:
        if any(found):
            raise UsageError("unpack: the directory is not empty")
    reader = Reader(limits)
    extractor = _Extractor(directory, limits=limits, keep_owners=keep_owners, rootfs=rootfs)
    try:
        for chunk in chunks:
            extractor.take(reader.feed(chunk))
        reader.finish()
        extractor.finish()
    finally:
        extractor.close()
    return Unpacked(
        Digest("sha256", digest.hexdigest()), reader.size, extractor.entries, extractor.bytes_on_disk, extractor.devices, extractor.xattrs
    )


@define(eq=False)
class _File:
    """The file that is being written: *left* bytes are to come; *extents* are where, the last one first (None: one after another)."""

    fd: int
    member: Member
    left: int
    extents: list[tuple[int, int]] | None
    holes: int = 0  # made where the archive has zeros


@define(eq=False)
class _Extractor:
    _root: int
    limits: UnpackLimits = field(kw_only=True)
    keep_owners: bool = field(kw_only=True)
    rootfs: bool = field(kw_only=True)
    entries: int = 0
    bytes_on_disk: int = 0
    devices: int = 0
    xattrs: int = 0
    _directories: Directories = field(init=False)
    _file: _File | None = None
    _name: bytes = b""
    _own: tuple[int, int] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._directories = Directories(self._root, limits=self.limits, keep_owners=self.keep_owners)
        # A directory with the set-group-id bit hands its group down: then nothing is right by itself.
        inherits = os.fstat(self._root).st_mode & stat.S_ISGID
        self._own = (-1, -1) if inherits else (os.geteuid(), os.getegid())

    def take(self, events: Iterable[Member | memoryview]) -> None:
        try:
            for event in events:
                if isinstance(event, Member):
                    self._name = event.name
                    self._begin(event)
                else:
                    self._write(event)
        except OSError as error:
            raise self._failure(error) from error

    def finish(self) -> None:
        try:
            self._directories.finish()
        except OSError as error:
            raise self._failure(error) from error

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file.fd)
            self._file = None
        self._directories.close()

    def _failure(self, error: OSError) -> SandboxError:
        return error if isinstance(error, SandboxError) else _refused(f"unpack {shown(self._name)}", error)

    # --- members

    def _begin(self, member: Member) -> None:
        self.entries += 1
        if self.keep_owners and not (member.uid <= _MAX_ID and member.gid <= _MAX_ID):
            raise ImageError(f"{shown(member.name)}: owned by {member.uid}:{member.gid}; layers may have owners from 0 to {_MAX_ID}")
        path = self._directories.clean(member.name)
        parent, _, name = path.rpartition(b"/")
        if _WHITEOUT in path and self._is_whiteout(parent, name):
            return
        if member.kind == DEVICE:
            self.devices += 1
        elif not path:
            self._root_directory(member)
        else:
            at, parent = self._directories.parent(parent, mtime_ns=member.mtime_ns)
            self._make(member, at, parent, name)

    def _make(self, member: Member, at: int, parent: bytes, name: bytes) -> None:
        kind = member.kind
        if kind == FILE:
            self._regular(member, at, parent, name)
        elif kind == DIRECTORY:
            self._directory(member, at, parent, name)
        elif kind == SYMLINK:
            self._symlink(member, at, parent, name)
        elif kind == HARD_LINK:
            self._hard_link(member, at, parent, name)
        elif kind == FIFO:
            self._fifo(member, at, parent, name)
        else:  # pragma: no cover
            raise AssertionError(kind)

    def _root_directory(self, member: Member) -> None:
        if member.kind != DIRECTORY:
            raise ImageError(f"the root of the layer is a {member.kind}")
        self._directories.note(b"", self._mode(member), _time(member))
        self._own_by_fd(member, self._root)

    def _directory(self, member: Member, at: int, parent: bytes, name: bytes) -> None:
        path = self._directories.make(at, parent, name)
        self._directories.note(path, self._mode(member), _time(member))
        if (member.uid, member.gid) != self._own and self.keep_owners:
            os.chown(name, member.uid, member.gid, dir_fd=at, follow_symlinks=False)
        if member.xattrs:
            self._set_xattrs(self._directories.open(path), member.xattrs)
        self.bytes_on_disk += 4096

    def _regular(self, member: Member, at: int, parent: bytes, name: bytes) -> None:
        try:
            fd = os.open(name, _NEW_FILE, 0o600, dir_fd=at)
        except FileExistsError:
            self._directories.remove(at, parent, name)
            fd = os.open(name, _NEW_FILE, 0o600, dir_fd=at)
        extents = None if member.extents is None else list(reversed(member.extents))
        self._file = _File(fd, member, member.stored, extents)
        self.bytes_on_disk += member.stored + -member.stored % 4096
        if not member.stored:
            self._end_file(self._file)

    def _write(self, data: memoryview) -> None:
        file = self._file
        if file is None:
            return  # of a whiteout, which should have none
        file.left -= len(data)
        if file.extents is None and len(data) < _GRAIN:
            _write_all(file.fd, data)
        elif file.extents is None:
            file.holes += _write_with_holes(file.fd, data)
        else:
            _write_extents(file.fd, file.extents, data)
        if not file.left:
            self._end_file(file)

    def _end_file(self, file: _File) -> None:
        fd, member = file.fd, file.member
        if file.holes:
            self.bytes_on_disk -= file.holes
        if file.holes or member.extents is not None:
            os.ftruncate(fd, member.size)
        self._own_by_fd(member, fd)
        os.fchmod(fd, self._mode(member))
        time = _time(member)
        os.utime(fd, ns=(time, time))
        self._file = None
        os.close(fd)

    def _symlink(self, member: Member, at: int, parent: bytes, name: bytes) -> None:
        if not 0 < len(member.target) < 4096:
            raise ImageError(f"{shown(member.name)}: a symbolic link to {shown(member.target)}")
        try:
            os.symlink(member.target, name, dir_fd=at)
        except FileExistsError:
            self._directories.remove(at, parent, name)
            os.symlink(member.target, name, dir_fd=at)
        self._finish_by_name(member, at, name)

    def _fifo(self, member: Member, at: int, parent: bytes, name: bytes) -> None:
        try:
            os.mkfifo(name, 0o600, dir_fd=at)
        except FileExistsError:
            self._directories.remove(at, parent, name)
            os.mkfifo(name, 0o600, dir_fd=at)
        self._finish_by_name(member, at, name)
        os.chmod(name, self._mode(member), dir_fd=at)

    def _hard_link(self, member: Member, at: int, parent: bytes, name: bytes) -> None:
        source = self._directories.clean(member.target)
        source_parent, _, source_name = source.rpartition(b"/")
        found = self._directories.find(source_parent) if source_name else None
        if found is None:
            raise _no_target(member)
        source_at, source_parent = found
        target, path = join(source_parent, source_name), join(parent, name)
        if target == path or target.startswith(path + b"/"):  # what is there is removed first
            raise ImageError(f"{shown(member.name)}: a hard link in the place of its own target")
        at, _ = self._directories.parent(parent)
        if not _can_be_linked(source_name, source_at):
            raise _no_target(member)
        try:
            _link(source_at, source_name, at, name)
        except FileExistsError:
            self._directories.remove(at, parent, name)
            _link(source_at, source_name, at, name)

    # --- whiteouts

    def _is_whiteout(self, parent: bytes, name: bytes) -> bool:
        """Deal with names that are no names but say what to do; whether *name* was one."""
        components = parent.split(b"/")
        if any(component.startswith(_AUFS) for component in components):
            return True
        special = name.startswith(_WHITEOUT)
        if self.rootfs and special:
            raise ImageError(f"{shown(self._name)}: a root file system has no whiteouts")
        if any(component.startswith(_WHITEOUT) for component in components):
            raise ImageError(f"{shown(self._name)}: a directory whose name is a whiteout's")
        if name == _OPAQUE:
            self._directories.make_opaque(self._directories.parent(parent)[1])
        elif special and not name.startswith(_AUFS):
            hidden = name[len(_WHITEOUT) :]
            if hidden in (b"", b".", b".."):
                raise ImageError(f"{shown(self._name)}: a whiteout of nothing")
            at, parent = self._directories.parent(parent)
            self._directories.white_out(at, parent, hidden)
        return special

    # --- owners, modes, times, attributes

    def _mode(self, member: Member) -> int:
        return member.mode if self.keep_owners else member.mode & 0o1777

    def _own_by_fd(self, member: Member, fd: int) -> None:
        if self.keep_owners and (member.uid, member.gid) != self._own:
            os.fchown(fd, member.uid, member.gid)
        if member.xattrs:
            self._set_xattrs(fd, member.xattrs)

    def _finish_by_name(self, member: Member, at: int, name: bytes) -> None:
        if self.keep_owners and (member.uid, member.gid) != self._own:
            os.chown(name, member.uid, member.gid, dir_fd=at, follow_symlinks=False)
        self.xattrs += len(member.xattrs or ())  # user.* exists on files and directories only
        time = _time(member)
        os.utime(name, ns=(time, time), dir_fd=at, follow_symlinks=False)

    def _set_xattrs(self, fd: int, xattrs: dict[bytes, bytes]) -> None:
        for key, value in xattrs.items():
            if not self._is_kept(key):
                self.xattrs += 1
                continue
            if key == _CAPABILITY and (value[3:4], len(value)) not in _CAPABILITIES:
                raise ImageError(f"{shown(self._name)}: malformed {key.decode()}")
            try:
                os.setxattr(fd, key, value)
            except OSError as error:
                raise _xattr_failure(self._name, key, error) from error

    def _is_kept(self, key: bytes) -> bool:
        if b"\0" in key:
            raise ImageError(f"{shown(self._name)}: an extended attribute with a NUL in its name")
        if key == _CAPABILITY:
            return self.keep_owners
        return key.startswith(b"user.") and not key.startswith(b"user.overlay.")


def _time(member: Member) -> int:
    time = member.mtime_ns
    return time if 0 <= time <= _LATEST else min(max(time, _EARLIEST), _LATEST)


def _write_all(fd: int, data: memoryview) -> None:
    while (count := os.write(fd, data)) < len(data):
        data = data[count:]


def _write_with_holes(fd: int, data: memoryview) -> int:
    """Write *data*, but for long runs of zeros, which become holes; how many bytes of them.

    Looking costs a hundredth of writing: nearly always a grain's first or last byte tells.
    """
    begin = holes = 0
    for at in range(0, len(data) - _GRAIN + 1, _GRAIN):
        end = at + _GRAIN
        if data[at] or data[end - 1] or data[at:end].tobytes() != _ZEROS:
            continue
        if begin < at:
            _write_all(fd, data[begin:at])
        os.lseek(fd, _GRAIN, os.SEEK_CUR)
        begin, holes = end, holes + _GRAIN
    if begin < len(data):
        _write_all(fd, data[begin:])
    return holes


def _write_extents(fd: int, extents: list[tuple[int, int]], data: memoryview) -> None:
    while data:
        offset, length = extents.pop()
        count = os.pwrite(fd, data[:length], offset)
        data = data[count:]
        if count < length:
            extents.append((offset + count, length - count))


def _can_be_linked(name: bytes, at: int) -> bool:
    """Whether a hard link may lead there: not to a whiteout that was made here, which would hide one more file."""
    try:
        mode = os.stat(name, dir_fd=at, follow_symlinks=False).st_mode
    except FileNotFoundError:
        return False
    return not (stat.S_ISCHR(mode) or stat.S_ISDIR(mode))


def _link(source_at: int, source: bytes, at: int, name: bytes) -> None:
    # Python's own default is AT_SYMLINK_FOLLOW.
    os.link(source, name, src_dir_fd=source_at, dst_dir_fd=at, follow_symlinks=False)


def _no_target(member: Member) -> ImageError:
    return ImageError(f"{shown(member.name)}: a hard link to {shown(member.target)}, which is no file of this layer")


def _xattr_failure(name: bytes, key: bytes, error: OSError) -> SandboxError:
    import errno

    what = f"{shown(name)}: extended attribute {shown(key)}"
    if error.errno in (errno.EINVAL, errno.E2BIG, errno.ERANGE, errno.ENOSPC):  # ENOSPC: ext4 has one block for all of a file's
        return ImageError(f"{what}: {error.strerror}")
    if error.errno == errno.EOPNOTSUPP:
        return UnsupportedError(
            f"{what}: the file system has none", feature="user xattrs", remedy="put the store on ext4, xfs, btrfs or a tmpfs of Linux 6.6"
        )
    return _refused(what, error)


def _refused(what: str, error: OSError) -> SetupError:
    return SetupError(what, error.errno or 0, step="host", hint=hint_of(error))
