"""Archives for tests, header by header: also such as no program would write."""

from __future__ import annotations

import os
from pathlib import Path

from sandbox.image.tar import Member, Reader, UnpackLimits
from sandbox.image.unpack import Unpacked, unpack

BLOCK = 512
END = bytes(2 * BLOCK)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % BLOCK)


def header(
    name: bytes,
    kind: bytes = b"0",
    *,
    size: int = 0,
    mode: int = 0o644,
    uid: int = 0,
    gid: int = 0,
    mtime: int = 0,
    target: bytes = b"",
    device: tuple[int, int] = (0, 0),
    raw_size: bytes | None = None,
    magic: bytes = b"ustar\x0000",
    rest: bytes = b"",
) -> bytes:
    """One block. *rest* stands from byte 345 on."""
    fields = [
        name[:100].ljust(100, b"\0"), b"%07o\0" % mode, b"%07o\0" % uid, b"%07o\0" % gid, (raw_size or b"%011o\0" % size), b"%011o\0" % mtime,
        b" " * 8, kind, target[:100].ljust(100, b"\0"), magic, bytes(64), b"%07o\0%07o\0" % device, rest.ljust(167, b"\0"),
    ]  # fmt: skip
    block = b"".join(fields)
    assert len(block) == BLOCK
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def pax(records: dict[bytes, bytes] | list[tuple[bytes, bytes]]) -> bytes:
    """An extended header with *records*."""
    data = b"".join(record(key, value) for key, value in (records.items() if isinstance(records, dict) else records))
    return header(b"pax", b"x", size=len(data)) + padded(data)


def record(key: bytes, value: bytes) -> bytes:
    body = b" " + key + b"=" + value + b"\n"
    length = len(body) + len(str(len(body)))
    length = len(body) + len(str(length))
    return str(length).encode() + body


def file(name: bytes, content: bytes = b"", **fields) -> bytes:
    return _long(name) + header(name, size=len(content), **fields) + padded(content)


def directory(name: bytes, mode: int = 0o755, **fields) -> bytes:
    return _long(name) + header(name, b"5", mode=mode, **fields)


def symlink(name: bytes, target: bytes) -> bytes:
    return _long(name, target) + header(name, b"2", target=target, mode=0o777)


def hard_link(name: bytes, target: bytes) -> bytes:
    return _long(name, target) + header(name, b"1", target=target)


def _long(name: bytes, target: bytes = b"") -> bytes:
    """What has no room in a header stands before it."""
    records = {key: value for key, value in ((b"path", name), (b"linkpath", target)) if len(value) > 100}
    return pax(records) if records else b""


def long_name(name: bytes) -> bytes:
    """GNU's way to say that the next member is called *name*."""
    return header(b"././@LongLink", b"L", size=len(name) + 1, magic=b"ustar  \0") + padded(name + b"\0")


def archive(*parts: bytes) -> bytes:
    return b"".join(parts) + END


def read(data: bytes, piece: int = 1 << 20, limits: UnpackLimits | None = None) -> list[tuple[Member, bytes]]:
    """All members of *data*, fed in pieces of *piece* bytes, with their content as it is stored."""
    reader = Reader(limits or UnpackLimits())
    found: list[tuple[Member, bytearray]] = []
    for at in range(0, len(data), piece):
        for event in reader.feed(data[at : at + piece]):
            if isinstance(event, Member):
                found.append((event, bytearray()))
            else:
                found[-1][1].extend(event)
    reader.finish()
    return [(member, bytes(content)) for member, content in found]


def unpacked(data: bytes, path: Path, *, keep_owners: bool | None = None, limits: UnpackLimits | None = None, rootfs: bool = False) -> Unpacked:
    """Unpack *data* into the new directory *path*; owners are kept where we may."""
    path.mkdir()
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        keep = os.geteuid() == 0 if keep_owners is None else keep_owners
        return unpack([data], fd, keep_owners=keep, limits=limits, rootfs=rootfs)
    finally:
        os.close(fd)
