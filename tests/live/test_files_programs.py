"""Programs that are copied into a live container, and run."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sandbox import PIPE, Container, Tmpfs
from tests.support import needs

pytestmark = [needs("userns"), pytest.mark.unprivileged]


@pytest.fixture
def box() -> Iterator[Container]:
    with Container(mounts=[Tmpfs("/work", size="256M", inodes=50_000)]) as c:
        yield c


def sh(c: Container, script: str) -> bytes:
    result = c.exec(["sh", "-c", script], timeout=60)
    assert result.ok, result
    out: bytes = result.stdout
    return out


def test_a_program_that_was_copied_in_runs_at_once(box: Container, tmp_path: Path) -> None:
    """ETXTBSY: never for a program just written, by whatever way, beside other threads that start programs.

    SANDBOX_TESTS_FRESH is how often (10,000 takes a minute).
    """
    shutil.copy("/bin/true", tmp_path / "program")
    rounds = int(os.environ.get("SANDBOX_TESTS_FRESH", "400")) // 4

    def work(thread: int) -> None:
        for number in range(rounds):
            path = f"/work/{thread}"
            if number % 2:
                box.copy_in(tmp_path / "program", path)
            else:
                box.copy_in(tmp_path, path + "-tree")
                path += "-tree/program"
            assert box.exec([path]).ok

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))


def test_a_program_that_runs_is_replaced(box: Container, tmp_path: Path) -> None:
    shutil.copy("/bin/cat", tmp_path / "program")
    box.copy_in(tmp_path / "program", "/work/program")
    with box.popen(["/work/program"], stdin=PIPE, stdout=PIPE) as old:
        box.write_bytes("/work/program", b"#!/bin/sh\necho new\n", mode=0o755)
        box.copy_in(tmp_path / "program", "/work/program")
        box.write_bytes("/work/program", b"#!/bin/sh\necho new\n", mode=0o755)
        assert box.exec(["/work/program"]).stdout == b"new\n"
        assert old.communicate(b"old")[0] == b"old"


def test_a_large_file_keeps_its_set_id_bits(box: Container) -> None:
    box.write_bytes("/work/large", bytes(5_000_000), mode=0o6755)
    assert stat.S_IMODE(box.stat("/work/large").st_mode) == 0o6755
    assert box.stat("/work/large").st_size == 5_000_000
