"""Members of a tar archive, read from bytes that come in pieces of any size: no I/O, and nothing believed.

Theory of operation: `Reader.feed` takes bytes and gives events. A `Member` says what comes; after it come views of its content (as stored:
a sparse file's data without the holes, which `Member.extents` places), in all as many bytes as `Member.stored` says. `Reader.finish` refuses an
archive that was cut off.

The archive is a stranger's. What is gathered (names, PAX records, maps of sparse files) is bounded before it is gathered, a number is digits
and nothing else, and content is handed on as views of what was fed, never collected. Read are ustar, GNU (long names, base-256 numbers, old
sparse files), PAX, and GNU's three ways of sparse files in PAX; `sandbox.image._pax` reads the records.

Where programs differ, this one reads as Go's archive/tar does, as that is what made most images and reads them everywhere: links,
directories and devices have no content whatever their size says, global PAX headers change nothing, the archive ends at two
blocks of zeros (or with the input), and what follows is not looked at.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Final

from attrs import define, field, frozen

from sandbox.errors import ImageError
from sandbox.image._pax import Extents, MapReader, Records, check_extents, nanoseconds, parse_records, sparse_map

BLOCK: Final = 512
_ZEROS: Final = bytes(BLOCK)
# name, (mode, uid, gid), size, mtime, checksum, type, link's target; magic with version; skipped: names of owner, device; prefix.
_HEADER: Final = struct.Struct("100s24s12s12s8sc100s8s80x155s12x")
_OLD_SPARSE: Final = struct.Struct("12s12s")
_MOST_CACHED: Final = 1024
_NEVER: Final = 1 << 63  # more than is ever fed at once

FILE: Final = "file"
HARD_LINK: Final = "hard link"
SYMLINK: Final = "symlink"
DIRECTORY: Final = "directory"
FIFO: Final = "fifo"
DEVICE: Final = "device"
_KINDS: Final = {
    b"0": FILE, b"\0": FILE, b"7": FILE, b"S": FILE,
    b"1": HARD_LINK, b"2": SYMLINK, b"3": DEVICE, b"4": DEVICE, b"5": DIRECTORY, b"6": FIFO,
}  # fmt: skip


@frozen
class UnpackLimits:
    """What a layer may cost; the defaults are far beyond any real one, and finite.

    *size*: bytes of the tar, and of all its sparse files with their holes. *entries*: headers, and directories that are made for members.
    *depth*: of directories. *name*: bytes of a path. *pax*: bytes of the extended header of one member. *names*: bytes of the paths of
    all directories, which are kept to the end.
    """

    size: int = 256 << 30
    entries: int = 2_000_000
    depth: int = 256
    name: int = 4095  # the kernel's PATH_MAX, with its NUL
    pax: int = 1 << 20
    names: int = 256 << 20


@define(eq=False)
class Member:
    """One entry. *size* is the file's with its holes, *stored* what of it follows; *extents* says where that belongs (None: all of it)."""

    kind: str
    name: bytes
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    size: int
    stored: int
    target: bytes
    xattrs: dict[bytes, bytes] | None = None
    extents: Extents | None = None


@define(eq=False)
class _Pending:
    """What headers before a member said of it."""

    name: bytes | None = None
    target: bytes | None = None
    records: Records | None = None


@define(eq=False)
class Reader:
    """Turns bytes into members and views of their content. One archive; not thread-safe."""

    limits: UnpackLimits = field(factory=UnpackLimits)
    size: int = field(default=0, init=False)  # bytes fed
    entries: int = field(default=0, init=False)  # headers seen
    _rest: list[bytes] = field(factory=list[bytes], init=False)  # what is less than `_want`, in pieces
    _gathered: int = field(default=0, init=False)  # bytes of it
    _left: int = field(default=0, init=False)  # of the content of the member at hand
    _skip: int = field(default=0, init=False)  # padding
    _want: int = field(default=BLOCK, init=False)  # what `_then` needs in one piece
    _then: Callable[[bytes], Member | None] = field(init=False)
    _ended: bool = field(default=False, init=False)
    _zeros: bool = field(default=False, init=False)
    _pending: _Pending = field(factory=_Pending, init=False)
    _plain: bool = field(default=True, init=False)  # nothing is pending
    _real: int = field(default=0, init=False)  # sizes of sparse files
    _owners: dict[bytes, tuple[int, int, int]] = field(factory=dict[bytes, tuple[int, int, int]], init=False)

    def __attrs_post_init__(self) -> None:
        self._then = self._on_header

    def feed(self, data: bytes) -> Iterator[Member | memoryview]:
        """Take the next bytes; the events must be taken before more is fed.

        Raises: ImageError: no tar archive, or beyond a limit.
        """
        self.size += len(data)
        if self.size > self.limits.size:
            raise ImageError(f"tar: more than {self.limits.size} bytes (limits.size)")
        whole = None if self._ended else self._joined(data)
        if whole is None:
            return
        data = whole
        view, at, end = memoryview(data), 0, len(data)
        while True:
            if self._left:
                if at == end:
                    return
                stop = min(end, at + self._left)
                self._left -= stop - at
                yield view[at:stop]
                at = stop
            elif self._skip:
                step = min(end - at, self._skip)
                at += step
                self._skip -= step
                if self._skip:
                    return
            elif end - at < self._want:
                self._rest = [data[at:]] if at < end and not self._ended else []
                self._gathered = end - at
                return
            else:
                at += self._want
                if (member := self._then(data[at - self._want : at])) is not None:
                    yield member

    def _joined(self, data: bytes) -> bytes | None:
        """What was left, and *data*; None while that is less than what is needed.

        It is joined once: pieces of a byte each (a gzip member may hold no more) must not cost the square of their number.
        """
        if not self._rest:
            return data
        self._rest.append(data)
        self._gathered += len(data)
        if self._gathered < self._want:
            return None
        whole = b"".join(self._rest)
        self._rest.clear()
        return whole

    def finish(self) -> None:
        """Say that there is no more. Raises: ImageError: the archive was cut off."""
        if self._ended:
            return
        if self._rest or self._left or self._skip or not self._plain or self._then != self._on_header:
            raise ImageError("tar: the archive ends in the middle of a member")

    # --- headers

    def _on_header(self, block: bytes) -> Member | None:
        if not block[0] and block == _ZEROS:
            self._ended, self._zeros = self._zeros, True
            self._want = _NEVER if self._ended else BLOCK
            return None
        if self._zeros:
            raise ImageError("tar: a header follows a block of zeros")
        name, owners, size_field, mtime_field, checksum, kind, target, magic, prefix = _HEADER.unpack(block)
        if not _sums_up(block, checksum):
            raise ImageError("tar: a header's checksum is wrong; this is no tar archive, or it was damaged")
        self.entries += 1
        if self.entries > self.limits.entries:
            raise ImageError(f"tar: more than {self.limits.entries} entries (limits.entries)")
        size = number(size_field, "size")
        if kind not in _KINDS:
            self._on_extension(kind, size)
            return None
        name = name.partition(b"\0")[0]
        # Only POSIX's own format has a prefix: GNU's keeps times in its place.
        if magic[:6] == b"ustar\0" and prefix[0]:
            name = prefix.partition(b"\0")[0] + b"/" + name
        mode, uid, gid = self._owners.get(owners) or self._read_owners(owners)
        mtime_ns = number(mtime_field, "mtime", signed=True) * 1_000_000_000
        member = Member(_KINDS[kind], name, mode, uid, gid, mtime_ns, size, size, target.partition(b"\0")[0])
        if self._plain and kind != b"S":
            return self._begin(member, kind)
        return self._on_extended(member, kind, block)

    def _read_owners(self, fields: bytes) -> tuple[int, int, int]:
        """Read mode, uid and gid: few kinds of them stand in an archive, so they are read once."""
        found = number(fields[:8], "mode") & 0o7777, number(fields[8:16], "uid"), number(fields[16:], "gid")
        if len(self._owners) < _MOST_CACHED:
            self._owners[fields] = found
        return found

    def _begin(self, member: Member, kind: bytes) -> Member:
        """Announce *member*, whose content comes next; all that is known of it is known now."""
        self._then, self._want = self._on_header, BLOCK
        if kind == b"\0" and member.name.endswith(b"/"):
            member.kind = DIRECTORY  # before POSIX there was no other sign
        if member.kind != FILE:
            member.size = member.stored = 0
        self._left, self._skip = member.stored, -member.stored % BLOCK
        return member

    # --- what comes before a member

    def _on_extension(self, kind: bytes, size: int) -> None:
        if kind not in b"LKxXg":
            raise ImageError(f"tar: entries of type {kind!r} are not known")
        most = self.limits.name + 1 if kind in b"LK" else self.limits.pax
        if size > most:
            what = "name" if kind in b"LK" else "pax"
            raise ImageError(f"tar: an extended header of {size} bytes; at most {most} are taken (limits.{what})")
        self._plain = False

        def take(data: bytes) -> None:
            self._then, self._want = self._on_header, BLOCK
            if kind == b"L":
                self._pending.name = data[:size].partition(b"\0")[0]
            elif kind == b"K":
                self._pending.target = data[:size].partition(b"\0")[0]
            elif kind != b"g":
                self._pending.records = parse_records(data[:size])
            self._plain = self._pending.name is None and self._pending.target is None and self._pending.records is None

        self._then, self._want = take, size + -size % BLOCK

    def _on_extended(self, member: Member, kind: bytes, block: bytes) -> Member | None:
        pending, self._pending, self._plain = self._pending, _Pending(), True
        member.name = member.name if pending.name is None else pending.name
        member.target = member.target if pending.target is None else pending.target
        records = pending.records or Records()
        _apply(member, records)
        if kind == b"S":
            member.size = number(block[483:495], "size of a sparse file")
            return self._on_old_sparse(member, block[386:482], bool(block[482]), [])
        if member.kind == FILE and records.sparse:
            return self._on_pax_sparse(member, records)
        return self._begin(member, kind)

    # --- sparse files

    def _on_old_sparse(self, member: Member, table: bytes, more: bool, found: list[tuple[int, int]]) -> Member | None:
        for offset, size in _OLD_SPARSE.iter_unpack(table):
            if offset[0]:
                found.append((number(offset, "offset"), number(size, "size")))
        if not more:
            return self._begin_sparse(member, found, member.stored)
        if len(found) * 24 > self.limits.pax:
            raise ImageError("tar: the map of a sparse file is too long (limits.pax)")
        # 21 more of them in a block of its own.
        self._then, self._want = lambda block: self._on_old_sparse(member, block[:504], bool(block[504]), found), BLOCK
        return None

    def _on_pax_sparse(self, member: Member, records: Records) -> Member | None:
        if (size := records.sparse_size) is not None:
            member.size = size
        if records.sparse_version != (1, 0):
            return self._begin_sparse(member, sparse_map(records), member.stored)
        reader = MapReader()

        def take(block: bytes) -> Member | None:
            found = reader.feed(block)
            if len(reader.gathered) > min(member.stored, self.limits.pax):
                raise ImageError("tar: the map of a sparse file is too long (limits.pax)")
            return None if found is None else self._begin_sparse(member, found, member.stored - len(reader.gathered))

        self._then, self._want = take, BLOCK
        return None

    def _begin_sparse(self, member: Member, extents: list[tuple[int, int]], stored: int) -> Member:
        member.extents = check_extents(extents, stored=stored, size=member.size)
        member.stored = stored
        self._real += member.size
        if self._real > self.limits.size:
            raise ImageError(f"tar: sparse files of more than {self.limits.size} bytes (limits.size)")
        return self._begin(member, b"0")


def _apply(member: Member, records: Records) -> None:
    """Put what PAX records say in the place of what the header says."""
    if records.path is not None:
        member.name = records.path
    if records.linkpath is not None:
        member.target = records.linkpath
    if records.size is not None:
        member.size = member.stored = records.size
    if records.uid is not None:
        member.uid = records.uid
    if records.gid is not None:
        member.gid = records.gid
    if records.mtime is not None:
        member.mtime_ns = nanoseconds(records.mtime)
    member.xattrs = records.xattrs or None


def _sums_up(block: bytes, checksum: bytes) -> bool:
    """Whether the bytes of *block*, its checksum taken as blanks, sum up to *checksum*."""
    try:
        promised = number(checksum[:7] if checksum[7:] == b" " else checksum, "checksum")  # six digits, a NUL and a blank
    except ImageError:
        return False
    # The low half of Adler-32 is 1 + the sum, modulo 65521, at a tenth of sum()'s price. A checksum tells damage, and protects from nobody.
    if zlib.adler32(block) & 0xFFFF == (promised - 8 * 0x20 + sum(checksum) + 1) % 65521:
        return True
    # Some old programs added signed bytes.
    signed = sum(struct.unpack("512b", block)) - sum(struct.unpack("8b", checksum)) + 256
    return bool(signed == promised)


def number(field: bytes, what: str, *, signed: bool = False) -> int:
    """Read an octal or (GNU) base-256 field. Raises: ImageError."""
    digits = field[:-1]
    if digits.isdigit() and field[-1] in b"\0 " and b"8" not in digits and b"9" not in digits:
        return int(digits, 8)  # nearly all
    if field[0] & 0x80:
        bits = len(field) * 8 - 1
        value = int.from_bytes(field, "big") & ((1 << bits) - 1)
        if value >> (bits - 1):
            value -= 1 << bits
        if value.bit_length() > 63 or (value < 0 and not signed):
            raise ImageError(f"tar: a {what} of {value} makes no sense")
        return value
    # NULs and blanks on either side; what follows a NUL is old memory of whoever wrote it.
    digits = field.lstrip(b" ").partition(b"\0")[0].rstrip(b" ")
    if not digits:
        return 0
    if not digits.isdigit() or b"8" in digits or b"9" in digits:
        raise ImageError(f"tar: {field!r} is no {what}")
    return int(digits, 8)
