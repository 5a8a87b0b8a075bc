"""A layer unpacked by a process of its own: it says what it did, ends with its caller, and minds no host's way with children."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox.errors import BrokenError, ImageError, SetupError
from sandbox.image._worker import unpack_in_process
from sandbox.image.compression import compress
from sandbox.image.digest import Digest
from sandbox.image.tar import UnpackLimits
from sandbox.image.unpack import Unpacked
from tests.support import patience
from tests.tars import archive, file, header

pytestmark = pytest.mark.unprivileged
LAYER = archive(*(file(b"%d" % number, os.urandom(1000)) for number in range(300)))
ZIPPED = b"".join(compress([LAYER], "gzip"))


def unpack(source: int | Iterator[bytes], path: Path, **options) -> Unpacked:
    path.mkdir()
    fd = os.open(path, os.O_RDONLY)
    try:
        return unpack_in_process(source, fd, keep_owners=False, **options)
    finally:
        os.close(fd)


def unpack_file(data: bytes, path: Path, **options) -> Unpacked:
    source = path.with_suffix(".tar")
    source.write_bytes(data)
    with source.open("rb", buffering=0) as stream:
        return unpack(stream.fileno(), path, **options)


def test_a_file_and_chunks_are_unpacked(tmp_path: Path) -> None:
    assert len(ZIPPED) > 1 << 17, "a small one would not take a process"
    one = unpack_file(ZIPPED, tmp_path / "one", media_type="application/vnd.oci.image.layer.v1.tar+gzip")
    two = unpack(iter([ZIPPED[:1000], ZIPPED[1000:]]), tmp_path / "two")
    small = unpack_file(b"".join(compress([archive(file(b"a"))], "gzip")), tmp_path / "small")
    assert one == two
    assert (one.diff_id, one.entries, one.size, small.entries) == (Digest.of(LAYER), 300, len(LAYER), 1)
    assert len(os.listdir(tmp_path / "one")) == len(os.listdir(tmp_path / "two")) == 300


def test_errors_come_back_as_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"limits\.entries"):
        unpack_file(ZIPPED, tmp_path / "limited", limits=UnpackLimits(entries=5))
    with pytest.raises(ImageError, match="ends too early"):
        unpack(iter([ZIPPED[:-100]]), tmp_path / "cut")
    with pytest.raises(ImageError, match=r"'\.\.'"):
        unpack(iter([archive(file(b"../x")), os.urandom(1 << 24)]), tmp_path / "dots")
    (tmp_path / "directory").mkdir()
    fd = os.open(tmp_path / "directory", os.O_RDONLY)
    try:
        with pytest.raises(SetupError, match="EISDIR"):
            unpack(fd, tmp_path / "no-file")
    finally:
        os.close(fd)


def test_what_the_source_raises_ends_the_worker(tmp_path: Path) -> None:
    def source() -> Iterator[bytes]:
        yield header(b"a", size=1 << 30)
        raise ConnectionResetError("by the registry")

    with pytest.raises(ConnectionResetError, match="by the registry"):
        unpack(source(), tmp_path / "out")


def test_a_worker_that_is_killed_is_a_broken_error(tmp_path: Path) -> None:
    def source() -> Iterator[bytes]:
        yield header(b"a", size=1 << 30)
        os.kill(child_of(os.getpid()), signal.SIGKILL)
        while True:
            yield bytes(1 << 16)

    with pytest.raises(BrokenError, match="killed"):
        unpack(source(), tmp_path / "out")


def child_of(pid: int) -> int:
    """The worker among the children of *pid*; there is one, but the kernel shows its arguments a moment after it was started."""
    deadline = time.monotonic() + patience(20)
    while time.monotonic() < deadline:
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):  # a thread or a child that has just ended
                for child in (task / "children").read_text().split():
                    if b"_worker" in Path(f"/proc/{child}/cmdline").read_bytes():
                        return int(child)
    raise AssertionError("no worker")


def test_many_threads_unpack_at_once(tmp_path: Path) -> None:
    done: list[Unpacked] = []
    threads = [threading.Thread(target=lambda number=number: done.append(unpack(iter([ZIPPED]), tmp_path / f"{number}"))) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [unpacked.diff_id for unpacked in done] == [Digest.of(LAYER)] * 4


HOST = """
import os, signal, sys
sys.path.insert(0, {root!r})
from sandbox.image._worker import unpack_in_process
{before}
with open(sys.argv[1], "rb", buffering=0) as stream:
    print(unpack_in_process(stream.fileno(), os.open(sys.argv[2], os.O_RDONLY), keep_owners=False).entries)
"""
HOSTS = {
    "ignores": "signal.signal(signal.SIGCHLD, signal.SIG_IGN)",
    "reaps": """
def reap(*_):
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return
signal.signal(signal.SIGCHLD, reap)""",
    "dies of SIGPIPE": "signal.signal(signal.SIGPIPE, signal.SIG_DFL)",
    "has no streams": "[os.close(fd) for fd in (0, 2)]",
    "is embedded": "sys.executable = '/usr/sbin/uwsgi'",
    "has no umask": "os.umask(0o777)",
}


@pytest.mark.parametrize("host", HOSTS)
def test_whatever_a_host_does_a_layer_is_unpacked(tmp_path: Path, host: str) -> None:
    (tmp_path / "layer.tar").write_bytes(ZIPPED)
    (tmp_path / "out").mkdir()
    script = HOST.format(root=str(Path(__file__).parents[2]), before=HOSTS[host])
    done = subprocess.run([sys.executable, "-c", script, tmp_path / "layer.tar", tmp_path / "out"], stdout=subprocess.PIPE, check=True, cwd=tmp_path)
    assert done.stdout == b"300\n"
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "out").iterdir()} == {0o644}


def test_the_worker_dies_with_its_host(tmp_path: Path) -> None:
    """kill -9 of the host while the worker waits for more: it ends although its source does not."""
    (tmp_path / "out").mkdir()
    read, write = os.pipe()
    script = HOST.format(root=str(Path(__file__).parents[2]), before=f"open_ = open; open = lambda *_, **__: open_({read}, 'rb', buffering=0)")
    host = subprocess.Popen([sys.executable, "-c", script, "unused", tmp_path / "out"], pass_fds=[read], cwd=tmp_path)
    try:
        os.write(write, header(b"a", size=1 << 30) + bytes(1 << 15))
        deadline = time.monotonic() + patience(20)
        while not os.listdir(tmp_path / "out"):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        pidfd = os.pidfd_open(child_of(host.pid))
    finally:
        host.kill()
        host.wait()
    try:
        import select

        assert select.select([pidfd], [], [], patience(20))[0]
    finally:
        for fd in (pidfd, read, write):
            os.close(fd)
