"""Layers that are small on their way and large when they are unpacked: each is stopped at a limit, in little memory."""

from __future__ import annotations

import bz2
import itertools
import lzma
import os
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sandbox.errors import ImageError
from sandbox.image.compression import decompress
from sandbox.image.tar import UnpackLimits
from tests.support import patience
from tests.tars import archive, directory, file, hard_link, header, padded, pax, symlink, unpacked

pytestmark = pytest.mark.unprivileged
MIB = 1 << 20


def refused(data: bytes, path: Path, limit: str, **limits: int) -> None:
    began = time.monotonic()
    with pytest.raises(ImageError, match=rf"limits\.{limit}"):
        unpacked(data, path, limits=UnpackLimits(**limits))
    assert time.monotonic() - began < patience(10)


# --- compression


def zeros_of(kind: str) -> Iterator[bytes]:
    """256 MiB of zeros, compressed, a piece at a time."""
    piece = bytes(MIB)
    if kind == "zstd":
        import zstandard

        compressor: Any = zstandard.ZstdCompressor().compressobj()
    else:
        compressor = {"gzip": lambda: zlib.compressobj(1, wbits=31), "xz": lambda: lzma.LZMACompressor(preset=1), "bzip2": bz2.BZ2Compressor}[kind]()
    for _ in range(256):
        yield compressor.compress(piece)
    yield compressor.flush()


@pytest.mark.parametrize("kind", ["gzip", "zstd", "xz", "bzip2"])
def test_a_compression_bomb_grows_in_pieces_of_a_megabyte(kind: str) -> None:
    data = b"".join(zeros_of(kind))
    assert len(data) < 2 * MIB
    largest = total = 0
    for piece in itertools.islice(decompress([data]), 100):
        largest, total = max(largest, len(piece)), total + len(piece)
    assert 0 < largest <= MIB
    assert total >= 10 * MIB


def test_a_window_that_takes_gigabytes_is_refused() -> None:
    """A zstd frame says how much memory its reader needs; RFC 8878 allows 3.75 TiB."""
    for exponent in (18, 31):  # 2 ** (10 + exponent)
        with pytest.raises(ImageError, match="zstd"):
            list(decompress([b"\x28\xb5\x2f\xfd\x00" + bytes([exponent << 3]) + b"\x01\x00\x00"]))


def test_a_dictionary_that_takes_gigabytes_is_refused() -> None:
    data = lzma.compress(b"x" * 1000, format=lzma.FORMAT_XZ, filters=[{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 20}])
    # The header's property of the dictionary's size (xz-file-format, 5.3.1), and the header's checksum.
    at = data.index(b"\x21\x01") + 2
    block = bytearray(data)
    block[at] = 39  # 3 GiB
    end = 12 + (block[12] + 1) * 4
    block[end - 4 : end] = zlib.crc32(block[12 : end - 4]).to_bytes(4, "little")
    with pytest.raises(ImageError, match="xz"):
        list(decompress([bytes(block)]))


# --- archives


def test_a_bomb_is_stopped_when_it_has_grown_to_the_limit(tmp_path: Path) -> None:
    refused(header(b"a", size=1 << 30) + bytes(4 * MIB), tmp_path / "layer", "size", size=2 * MIB)


def test_files_of_holes_are_counted_with_their_holes(tmp_path: Path) -> None:
    sparse = pax({b"GNU.sparse.major": b"1", b"GNU.sparse.minor": b"0", b"GNU.sparse.realsize": b"%d" % (1 << 34)}) + header(b"a", size=512) + padded(b"0\n")
    refused(sparse * 20, tmp_path / "layer", "size")


def test_many_entries_are_stopped(tmp_path: Path) -> None:
    data = b"".join(hard_link(b"%d" % number, b"a") for number in range(3000))
    refused(file(b"a") + data, tmp_path / "layer", "entries", entries=2000)


def test_headers_without_members_are_entries_too(tmp_path: Path) -> None:
    refused(pax({b"path": b"a"}) * 3000, tmp_path / "layer", "entries", entries=2000)


def test_directories_that_are_made_on_the_way_are_counted(tmp_path: Path) -> None:
    data = b"".join(pax({b"path": b"%d/" % number + b"/".join([b"d"] * 100)}) + file(b"", b"") for number in range(100))
    refused(data, tmp_path / "layer", "entries", entries=2000)


def test_giant_pax_headers_are_refused_unread(tmp_path: Path) -> None:
    refused(header(b"x", b"x", size=1 << 32), tmp_path / "a", "pax")
    refused(header(b"x", b"g", size=1 << 32), tmp_path / "b", "pax")
    refused(header(b"x", b"L", size=1 << 32), tmp_path / "c", "name")


def test_deep_directories_are_refused(tmp_path: Path) -> None:
    refused(pax({b"path": b"/".join([b"d"] * 300)}) + directory(b""), tmp_path / "a", "depth")
    # Step by step, through links: the path that counts is the one without them.
    steps = [directory(b"/".join([b"d"] * 10)), symlink(b"/".join([b"d"] * 10) + b"/l", b"/")]
    climbing = [pax({b"path": b"x/" * 30 + b"f"}) + file(b"", b"")]
    refused(archive(*steps, *climbing), tmp_path / "b", "depth", depth=15)


def test_names_of_directories_are_bounded_in_all(tmp_path: Path) -> None:
    refused(b"".join(directory(b"%050d" % number) for number in range(100)), tmp_path / "layer", "names", names=2000)


def test_links_that_take_long_to_follow_are_refused(tmp_path: Path) -> None:
    """Each target is 2,000 components of no effect, in a chain of 39: the kernel would walk it for each entry, and so would we."""
    long = b"./" * 1990
    links = [pax({b"linkpath": long + b"%d" % (number + 1)}) + symlink(b"%d" % number, b"") for number in range(38)]
    entries = [file(b"0/%d/x" % number) for number in range(100)]
    began = time.monotonic()
    with pytest.raises(ImageError, match="too many links"):
        unpacked(archive(*links, *entries), tmp_path / "layer")
    assert time.monotonic() - began < patience(20)


def test_replacing_a_large_directory_again_and_again_ends(tmp_path: Path) -> None:
    one = [file(b"d/%d" % number) for number in range(200)] + [file(b"d")]
    began = time.monotonic()
    unpacked(archive(*[*one, directory(b"d")] * 20), tmp_path / "layer")
    assert time.monotonic() - began < patience(20)


def test_memory_stays_flat_whatever_a_layer_contains(tmp_path: Path) -> None:
    """A gigabyte of zeros in gzip, a file of 10,000 extents, attributes of a megabyte: in a process that is measured."""
    (layer := tmp_path / "layer").mkdir()
    script = f"""
import os, sys, zlib
sys.path.insert(0, {os.getcwd()!r})
from sandbox.errors import ImageError
from sandbox.image.compression import decompress
from sandbox.image.unpack import UnpackLimits, unpack
from tests.tars import header, pax
def source():
    compressor = zlib.compressobj(1, wbits=31)
    yield compressor.compress(pax({{b"SCHILY.xattr.trusted.x": bytes(1000)}}) * 1000 + header(b"a", size=1 << 31))
    for _ in range(1024):
        yield compressor.compress(bytes(1 << 20))
    yield compressor.flush()
fd = os.open({str(layer)!r}, os.O_RDONLY)
try:
    unpack(decompress(source()), fd, keep_owners=False, limits=UnpackLimits(size=300 << 20))
except ImageError as error:
    assert "limits.size" in str(error), error
else:
    raise AssertionError
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM:")))
"""
    used = int(subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, check=True).stdout)  # not ru_maxrss, which execve hands down
    assert used * 1024 < 100 * MIB
