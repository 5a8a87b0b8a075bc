"""Layers there and back: what is packed is unpacked, and is the same."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sandbox.image.compression import KINDS, compress, decompress
from sandbox.image.pack import pack
from sandbox.image.unpack import Unpacked, unpack

pytestmark = pytest.mark.unprivileged


def packed(path: Path, **options) -> bytes:
    pieces: list[bytes] = []
    fd = os.open(path, os.O_RDONLY)
    try:
        pack(fd, pieces.append, owner=(0, 0), **options)
    finally:
        os.close(fd)
    return b"".join(pieces)


def unpacked(data: bytes, path: Path) -> Unpacked:
    path.mkdir(exist_ok=True)
    fd = os.open(path, os.O_RDONLY)
    try:
        return unpack([data], fd, keep_owners=False)
    finally:
        os.close(fd)


def test_a_tree_is_packed_and_unpacked_as_it_was(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "a" / "b").mkdir(parents=True)
    (source / "a" / "b" / "file").write_bytes(b"content")
    os.link(source / "a" / "b" / "file", source / "a" / "again")
    (source / "link").symlink_to("a/b")
    first = packed(source)
    unpacked(first, tmp_path / "out")
    assert packed(tmp_path / "out") == first
    assert (tmp_path / "out" / "a" / "again").samefile(tmp_path / "out" / "a" / "b" / "file")


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_compressed_is_decompressed(kind: str) -> None:
    data = os.urandom(300_000) + bytes(3_000_000)
    assert b"".join(decompress(compress([data, data], kind))) == data + data
