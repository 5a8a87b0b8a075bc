"""PAX records, and the maps of sparse files: text that a stranger wrote, read strictly."""

from __future__ import annotations

import binascii
import re
from collections.abc import Iterator, Sequence
from typing import Final
from urllib.parse import unquote_to_bytes

from attrs import define, field

from sandbox.errors import ImageError

Extents = tuple[tuple[int, int], ...]
_TIME: Final = re.compile(rb"(-?)(\d{1,19})(?:\.(\d*))?", re.ASCII)
_XATTR: Final = b"SCHILY.xattr."
_ENCODED_XATTR: Final = b"LIBARCHIVE.xattr."
_SPARSE: Final = b"GNU.sparse."
_LONGEST_NUMBER: Final = 19  # of 63 bits


@define(eq=False)
class Records:
    """What the records before a member say of it; None: nothing."""

    path: bytes | None = None
    linkpath: bytes | None = None
    size: int | None = None
    uid: int | None = None
    gid: int | None = None
    mtime: bytes | None = None
    xattrs: dict[bytes, bytes] = field(factory=dict[bytes, bytes])
    sparse: dict[bytes, bytes] = field(factory=dict[bytes, bytes])
    sparse_pairs: list[bytes] = field(factory=list[bytes])  # of version 0.0, whose keys come again and again

    @property
    def sparse_version(self) -> tuple[int, int]:
        return to_int(self.sparse.get(b"major", b"0"), "version"), to_int(self.sparse.get(b"minor", b"0"), "version")

    @property
    def sparse_size(self) -> int | None:
        text = self.sparse.get(b"realsize", self.sparse.get(b"size"))
        return None if text is None else to_int(text, "size of a sparse file")


def parse_records(data: bytes) -> Records:
    r"""Read ``LENGTH KEY=VALUE\n`` again and again; what we do not use is checked for its form only. An empty value unsets.

    Raises: ImageError.
    """
    records = Records()
    for key, value in _pairs(data):
        if key in (b"path", b"linkpath"):
            if b"\0" in value:
                raise ImageError(f"tar: a PAX {key.decode()} contains a NUL")
            setattr(records, key.decode(), value or None)
        elif key in (b"size", b"uid", b"gid"):
            setattr(records, key.decode(), to_int(value, key.decode()) if value else None)
        elif key == b"mtime":
            records.mtime = value or None
        elif key.startswith(_XATTR):
            records.xattrs[key[len(_XATTR) :]] = value
        elif key.startswith(_ENCODED_XATTR):
            # star's form of the same attribute goes first: it needs no decoding.
            records.xattrs.setdefault(unquote_to_bytes(key[len(_ENCODED_XATTR) :]), _decoded(value))
        elif key.startswith(_SPARSE):
            _take_sparse(records, key[len(_SPARSE) :], value)
    if b"name" in records.sparse:
        records.path = records.sparse[b"name"]  # what `path` says then is a made-up name for programs that know nothing of this
    return records


def _pairs(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    at, end = 0, len(data)
    while at < end:
        blank = data.find(b" ", at, at + 21)
        length = to_int(data[at:blank], "length of a PAX record") if blank > 0 else 0
        record = data[blank + 1 : at + length]
        key, equals, value = record[:-1].partition(b"=")
        if at + length > end or not record.endswith(b"\n") or not equals or not key or b"\0" in key:
            raise ImageError("tar: a PAX record is malformed")
        yield key, value
        at += length


def _take_sparse(records: Records, key: bytes, value: bytes) -> None:
    if key in (b"offset", b"numbytes"):
        # The two come in turns; anything else is no map.
        if (len(records.sparse_pairs) % 2 == 0) != (key == b"offset"):
            raise ImageError("tar: the map of a sparse file is malformed")
        records.sparse_pairs.append(value)
    elif key == b"name" and (not value or b"\0" in value):
        raise ImageError("tar: the name of a sparse file is malformed")
    else:
        records.sparse[key] = value


def _decoded(value: bytes) -> bytes:
    try:
        return binascii.a2b_base64(value + b"=" * (-len(value) % 4))
    except binascii.Error:
        raise ImageError("tar: an extended attribute is no base64") from None


def to_int(text: bytes | bytearray, what: str) -> int:
    """Read a number that is digits and nothing else. Raises: ImageError."""
    if not text.isdigit() or len(text) > _LONGEST_NUMBER:
        raise ImageError(f"tar: {bytes(text[:40])!r} is no {what}")
    return int(text)


def nanoseconds(text: bytes) -> int:
    """Read a time in seconds, of any number of decimals. Raises: ImageError."""
    match = _TIME.fullmatch(text[:100])
    if match is None:
        raise ImageError(f"tar: {text[:40]!r} is no time")
    value = int(match[2]) * 1_000_000_000 + int((match[3] or b"")[:9].ljust(9, b"0"))
    return -value if match[1] else value


def sparse_map(records: Records) -> list[tuple[int, int]]:
    """The map of versions 0.0 and 0.1. Raises: ImageError."""
    text = records.sparse.get(b"map", b"")
    numbers = [to_int(part, "offset") for part in (text.split(b",") if text else records.sparse_pairs)]
    return list(_in_pairs(numbers))


@define(eq=False)
class MapReader:
    """The map of version 1.0, which stands before the data: how many extents, and their numbers, one a line; blocks of it come one by one."""

    gathered: bytearray = field(factory=bytearray)
    _lines: int = 0
    _count: int = -1

    def feed(self, block: bytes) -> list[tuple[int, int]] | None:
        """Take a block; the map when it is complete. Raises: ImageError."""
        self.gathered += block
        self._lines += block.count(b"\n")
        if self._count < 0:
            first, newline, _ = block.partition(b"\n")
            self._count = to_int(first if newline else b"", "number of extents")
        if self._lines < self._count * 2 + 1:
            return None
        lines = self.gathered.split(b"\n", self._count * 2 + 1)
        return list(_in_pairs([to_int(line, "offset") for line in lines[1 : self._count * 2 + 1]]))


def _in_pairs(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    if len(numbers) % 2:
        raise ImageError("tar: the map of a sparse file is malformed")
    return zip(numbers[::2], numbers[1::2], strict=True)


def check_extents(extents: list[tuple[int, int]], *, stored: int, size: int) -> Extents:
    """Hand *extents* back without empty ones. Raises: ImageError: not in order, beyond *size*, or not as much as is *stored*."""
    end = total = 0
    for offset, length in extents:
        if offset < end or offset + length > size:
            raise ImageError("tar: the extents of a sparse file overlap, or leave it")
        end, total = offset + length, total + length
    if total != stored:
        raise ImageError(f"tar: a sparse file's map tells of {total} bytes, and {stored} are there")
    return tuple((offset, length) for offset, length in extents if length)
