"""The files of an archive or of a layout directory, by name: one way to read both, which never leaves them.

Nothing is unpacked to find a file. A directory is read below its descriptor, through no link; a tar is walked once, and what is in it is known by
offset. So a name that an archive gives can lead to another file of the same archive, and to nothing else: a link in it is a second name of a
member (`docker save` writes a layer that two images share so), and has no meaning outside.
"""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from collections.abc import Iterator, Mapping
from typing import Final, Protocol

from attrs import frozen

from sandbox._sys.calls import openat2
from sandbox._sys.constants import O_PATH, RESOLVE_BENEATH, RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS
from sandbox._types import Size, StrPath, to_size
from sandbox.errors import ImageError, LimitError, SetupError, UsageError
from sandbox.image import tar
from sandbox.image.compression import decompress
from sandbox.image.documents import MAX_DOCUMENT

CHUNK: Final = 1 << 20
MAX_SPOOL: Final = 64 << 30  # what comes from a pipe, or has to be decompressed, before it is looked at
MAX_MEMBERS: Final = 100_000  # a layer, its directory and two documents each, of a thousand images of a hundred layers: far below that
_MAX_HOPS: Final = 8
_WITHOUT_LINKS: Final = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS
_MAX_NAME: Final = 4096


def checked_name(name: object, *, what: str) -> str:
    """Bring the *name* of a member into its one form. Raises: ImageError: it is absolute, climbs, or is none."""
    if not isinstance(name, str) or not name or len(name) > _MAX_NAME or "\0" in name:
        raise ImageError(f"{what}: {repr(name)[:100]} is not the name of a file")
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or ".." in parts or not parts:
        raise ImageError(f"{what}: {name[:100]!r} leads out of the archive; it is refused")
    return "/".join(parts)


class Members(Protocol):
    """Files by name, which `checked_name` has brought into their form."""

    def size(self, name: str) -> int | None:
        """Its size in bytes; None: there is none of this name. Raises: ImageError: there is, and it is no regular file."""
        ...

    def chunks(self, name: str) -> Iterator[bytes]:
        """Its content. Raises: ImageError: it is not there, no regular file, or shorter than it should be."""
        ...

    def close(self) -> None:
        """Let go of what it reads from."""
        ...


def read(members: Members, name: str, *, what: str = "") -> bytes:
    """Read a document whole. Raises: ImageError: it is missing, or larger than a document may be."""
    size = members.size(name)
    if size is None:
        raise ImageError(f"{what or name}: {name} is missing")
    if size > MAX_DOCUMENT:
        raise ImageError(f"{what or name}: {size} bytes; at most {MAX_DOCUMENT} are taken")
    return b"".join(members.chunks(name))


# ---- A directory ----


class DirectoryMembers:
    """The files below a directory; links and what is no regular file are refused, whoever put them there."""

    def __init__(self, path: StrPath) -> None:
        self._directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def close(self) -> None:
        """Let go of the directory."""
        os.close(self._directory)

    def size(self, name: str) -> int | None:
        """See `Members`."""
        fd = self._open(name)
        if fd is None:
            return None
        try:
            return os.fstat(fd).st_size
        finally:
            os.close(fd)

    def chunks(self, name: str) -> Iterator[bytes]:
        """See `Members`."""
        fd = self._open(name)
        if fd is None:
            raise ImageError(f"{name} is missing")
        with open(fd, "rb", buffering=0) as file:
            left = os.fstat(fd).st_size  # who goes on writing to it feeds nobody for ever
            while left and (chunk := file.read(min(CHUNK, left))):
                left -= len(chunk)
                yield chunk

    def _open(self, name: str) -> int | None:
        try:
            # First the place alone: to open a FIFO or a device for reading has effects.
            place = openat2(name, O_PATH | os.O_NOFOLLOW, dir_fd=self._directory, resolve=_WITHOUT_LINKS)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise ImageError(f"{name}: a link, or it leads out of the directory ({error.strerror}); it is refused") from None
        try:
            if not stat.S_ISREG(os.fstat(place).st_mode):
                raise ImageError(f"{name}: not a regular file; it is refused")
            return os.open(f"/proc/self/fd/{place}", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            os.close(place)


# ---- A tar archive ----


@frozen
class Extent:
    """Where a regular file of an archive lies in it."""

    offset: int
    size: int


@frozen
class Link:
    """A second name of the member *target*."""

    target: str


class TarMembers:
    """The files of a tar that can seek; it owns the descriptor from now on."""

    def __init__(self, fd: int, entries: Mapping[str, Extent | Link]) -> None:
        self._fd = fd
        self._entries = entries

    def close(self) -> None:
        """Let go of the archive."""
        os.close(self._fd)

    def size(self, name: str) -> int | None:
        """See `Members`."""
        found = self._find(name)
        return None if found is None else found.size

    def chunks(self, name: str) -> Iterator[bytes]:
        """See `Members`."""
        found = self._find(name)
        if found is None:
            raise ImageError(f"{name} is missing")
        offset, end = found.offset, found.offset + found.size
        while offset < end:
            chunk = os.pread(self._fd, min(CHUNK, end - offset), offset)
            if not chunk:
                raise ImageError(f"{name}: the archive ends before its {found.size} bytes")
            offset += len(chunk)
            yield chunk

    def _find(self, name: str) -> Extent | None:
        for _ in range(_MAX_HOPS):
            found = self._entries.get(name)
            if not isinstance(found, Link):
                return found
            name = found.target
        raise ImageError(f"{name}: a link to a link, and so on; it is refused")


def index_of(fd: int, *, limits: tar.UnpackLimits | None = None) -> dict[str, Extent | Link]:
    """Walk the tar in *fd*, from its beginning. Raises: ImageError: it is none, or names a file twice.

    One header is fed at a time, so that it is known where what follows it begins.
    """
    reader = tar.Reader(limits or tar.UnpackLimits(entries=MAX_MEMBERS))
    found: dict[str, Extent | Link] = {}
    position, zeros = 0, 0
    while zeros < 2 and (block := os.pread(fd, tar.BLOCK, position)):
        position += len(block)
        zeros = 0 if any(block) else zeros + 1  # two of them end it; what follows is not looked at
        for event in reader.feed(block):
            if isinstance(event, tar.Member):
                _enter(found, event, position)
                position = _pass_content(fd, reader, position, event.stored)
    reader.finish()
    return found


def _enter(found: dict[str, Extent | Link], member: tar.Member, position: int) -> None:
    if member.kind == tar.DIRECTORY:
        return
    name = checked_name(os.fsdecode(member.name), what="archive")
    if name in found:
        raise ImageError(f"archive: {name} is in it twice, and which one counts would be the reader's choice; it is refused")
    if member.kind == tar.FILE and member.extents is None:
        found[name] = Extent(position, member.stored)
    elif member.kind in (tar.SYMLINK, tar.HARD_LINK):
        found[name] = Link(_target(name, member))
    else:
        raise ImageError(f"archive: {name} is a {'sparse file' if member.kind == tar.FILE else member.kind}; it is refused")


def _target(name: str, member: tar.Member) -> str:
    """The member that a link means: a symbolic one from where it stands, a hard one from the top."""
    target = os.fsdecode(member.target)
    parts = name.split("/")[:-1] if member.kind == tar.SYMLINK else []
    for part in target.split("/"):
        if part == ".." and not parts:
            target = "/"  # above the top
        elif part == "..":
            parts.pop()
        elif part not in ("", "."):
            parts.append(part)
    if target.startswith("/"):
        raise ImageError(f"archive: {name} is a link that leads out of the archive; it is refused")
    return "/".join(parts)


def _pass_content(fd: int, reader: tar.Reader, position: int, size: int) -> int:
    """Feed the content that follows a header, and what pads it; give the position after it."""
    end = position + size + -size % tar.BLOCK
    while position < end and (chunk := os.pread(fd, min(CHUNK, end - position), position)):
        position += len(chunk)
        for _ in reader.feed(chunk):
            pass
    return position


# ---- Whatever a caller has ----


class Readable(Protocol):
    """Something to read bytes from, such as an open file."""

    def read(self, size: int, /) -> bytes:
        """At most *size* bytes; none at the end."""
        ...


Source = StrPath | int | Readable  # an int is a descriptor, which stays the caller's


def open_members(source: Source, *, max_size: Size = MAX_SPOOL) -> DirectoryMembers | TarMembers:
    """Open a layout's directory, or an archive, compressed or not; the caller closes what it gets.

    What is compressed, or cannot seek, is first written into a file without a name, in $TMPDIR or /var/tmp, of at most *max_size* bytes.
    Raises: UsageError: it cannot be opened; LimitError: it is larger than *max_size*; ImageError: it is no archive.
    """
    if isinstance(source, (str, os.PathLike)) and os.path.isdir(source):
        return DirectoryMembers(source)
    fd = _seekable(source, to_size(max_size, what="max_size"))
    try:
        return TarMembers(fd, index_of(fd))
    except BaseException:
        os.close(fd)
        raise


def chunks_of(source: Source) -> Iterator[bytes]:
    """What is to be read from *source*, from where it stands. Raises: UsageError: it cannot be opened."""
    if isinstance(source, (str, os.PathLike)):
        source = os.fspath(source)
        try:
            file = open(source, "rb", buffering=0)  # noqa: SIM115  # the error of opening is the caller's, others are not
        except OSError as error:
            raise UsageError(f"{source}: {error.strerror}") from None
        with file:
            yield from iter(lambda: file.read(CHUNK), b"")
    elif isinstance(source, int):
        yield from iter(lambda: os.read(source, CHUNK), b"")
    else:
        yield from iter(lambda: source.read(CHUNK), b"")


def _seekable(source: Source, max_size: int) -> int:
    """A descriptor, the caller's, of *source* as a tar that can be read at any place."""
    if isinstance(source, (str, os.PathLike)):
        try:
            fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise UsageError(f"{os.fspath(source)}: {error.strerror}") from None
    elif isinstance(source, int):
        fd = os.dup(source)
    else:
        return _spool(chunks_of(source), max_size)
    if _is_plain(fd):
        return fd
    try:
        return _spool(chunks_of(fd), max_size)
    finally:
        os.close(fd)


def _is_plain(fd: int) -> bool:
    """Whether it is a regular file, read from its beginning, and not compressed: a tar says so in its first header."""
    if not stat.S_ISREG(os.fstat(fd).st_mode) or os.lseek(fd, 0, os.SEEK_CUR) != 0:
        return False
    head = os.pread(fd, tar.BLOCK, 0)
    return head[257:262] == b"ustar" or not head or not any(head)


def _spool(chunks: Iterator[bytes], max_size: int) -> int:
    directory = os.environ.get("TMPDIR") or "/var/tmp"  # noqa: S108  # /tmp is often memory
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(tempfile.TemporaryFile(dir=directory, buffering=0))
            size = 0
            for chunk in decompress(chunks):
                size += len(chunk)
                if size > max_size:
                    raise LimitError(f"the archive is larger than {max_size} bytes (max_size)", limit="max_size")
                write_all(file.fileno(), chunk)
        except OSError as error:
            hint = "TMPDIR names a directory with more room"
            raise SetupError(f"write the archive to {directory}", error.errno or 0, step="spool", hint=hint) from error
        return os.dup(file.fileno())


def write_all(fd: int, data: bytes) -> None:
    """Write all of *data*, in as many calls as it takes."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
