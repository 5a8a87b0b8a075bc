"""An archive that comes a byte at a time: what is gathered of it is copied once."""

from __future__ import annotations

import tarfile
import time

import pytest

from sandbox.image.tar import Reader

pytestmark = pytest.mark.unprivileged


def cpu_s(size: int) -> float:
    """What it takes to read a PAX header of *size* bytes that comes a byte at a time, as from gzip members of one byte each."""
    header = tarfile.TarInfo("x")
    header.type, header.size = b"x", size
    reader = Reader()
    assert list(reader.feed(header.tobuf(tarfile.USTAR_FORMAT)[:512])) == []
    record = b"%d comment=" % size
    began = time.process_time()
    for byte in record + b"x" * (size - len(record) - 1):
        for _ in reader.feed(b"%c" % byte):
            raise AssertionError("the header is not whole")
    return time.process_time() - began


def test_a_header_in_pieces_of_a_byte_costs_no_more_than_its_length() -> None:
    cpu_s(1 << 12)
    small, large = min(cpu_s(1 << 15) for _ in range(3)), min(cpu_s(1 << 18) for _ in range(2))
    assert large < 25 * small, "eight times the length costs the square of that"
