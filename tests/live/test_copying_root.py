"""A directory as the root where users may mount no overlay: a copy of it in memory, bounded by the scratch layer."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path

import pytest

import sandbox
from sandbox import Container, Scratch, SetupError, UnsupportedError, UsageError, features
from tests.escape.targets import make_root
from tests.support import needs

pytestmark = [needs("userns", "program:busybox"), pytest.mark.unprivileged, pytest.mark.usefixtures("no_leftovers")]
COPY = Scratch("32M", copy=True)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    tmp_path.chmod(0o755)
    return make_root(tmp_path / "root")


def listing(path: Path) -> list[tuple[str, int, float]]:
    return sorted((str(each), os.lstat(each).st_mode, os.lstat(each).st_mtime) for each in path.rglob("*"))


def test_a_copied_directory_is_written_to_and_stays_as_it_was(root: Path) -> None:
    before = listing(root)
    with features.pretend(overlay=False), Container(root, scratch=COPY) as c:
        assert c.exec(["sh", "-c", "echo y >/new && rm /bin/wc && echo z >>/etc/passwd && cat /new"]).stdout == b"y\n"
        assert c.degraded == () or "landlock" in c.degraded[0]
    assert listing(root) == before


def test_modes_times_links_and_names_are_kept(root: Path) -> None:
    deep = root / "srv/a b/c"
    deep.mkdir(parents=True)
    (deep / "tool").write_bytes(bytes(range(256)) * 5000)
    (deep / "tool").chmod(0o751)
    (deep / "link").symlink_to("../nowhere")
    os.mkfifo(deep / "fifo", 0o640)
    os.utime(deep / "tool", (1, 987654321))
    deep.chmod(0o711)
    with Container(root, scratch="copy") as c:
        told = c.exec(["sh", "-c", "cd '/srv/a b/c'; stat -c '%A %s %Y' tool; stat -c %A . fifo; readlink link; cat tool"]).stdout
    first, rest = told.split(b"\n", 1)
    assert first == b"-rwxr-x--x 1280000 987654321"
    assert rest == b"drwx--x--x\nprw-r-----\n../nowhere\n" + bytes(range(256)) * 5000


def test_our_own_files_cover_the_directorys(root: Path) -> None:
    (root / "etc/hostname").mkdir()
    (root / "etc/hosts").symlink_to("/etc/passwd")
    shutil.rmtree(root / "proc")
    (root / "proc").symlink_to("/etc")
    with Container(root, scratch=COPY, hostname="box") as c:
        assert c.exec(["cat", "/etc/hostname"]).stdout == b"box\n"
        assert c.exec(["readlink", "/etc/hosts"]).exit_code == 1
        assert c.exec(["cat", "/proc/self/comm"]).stdout == b"cat\n"


def test_sockets_are_left_out_and_links_lead_nowhere_else(root: Path) -> None:
    (root / "secret").symlink_to("/usr")
    with socket.socket(socket.AF_UNIX) as s:
        here = os.getcwd()
        os.chdir(root)
        try:
            s.bind("socket")
        finally:
            os.chdir(here)
        with Container(root, scratch=COPY) as c:
            assert c.exec(["sh", "-c", "ls /socket 2>/dev/null; ls /usr 2>/dev/null; readlink /secret"]).stdout == b"/usr\n"


@pytest.mark.parametrize("scratch", [Scratch("4M", copy=True), Scratch("32M", inodes=200, copy=True)], ids=["bytes", "inodes"])
def test_what_does_not_fit_is_refused_with_the_remedy(root: Path, scratch: Scratch) -> None:
    for number in range(300):
        (root / f"file{number}").write_bytes(bytes(16384))
    with pytest.raises(SetupError, match="does not fit into the scratch layer") as caught:
        Container(root, scratch=scratch).create()
    assert "copy=True" in caught.value.hint


def test_a_directory_that_is_too_deep_is_refused(root: Path) -> None:
    deep = root
    for _ in range(120):
        deep /= "d"
    deep.mkdir(parents=True)
    with pytest.raises(SetupError, match="levels deep"):
        Container(root, scratch=COPY).create()


@needs("user")
def test_what_may_not_be_read_is_refused() -> None:
    # Its own files init may read, whatever their modes say; /etc/shadow is somebody else's.
    with pytest.raises(SetupError, match="right to read all"):
        Container("/etc", scratch=COPY).create()


@pytest.mark.parametrize("probe", ["overlay", "overlay_in_userns"])
def test_without_overlay_the_error_names_the_copy_and_strict_false_makes_it(root: Path, probe: str) -> None:
    with features.pretend(**{probe: False}):
        with pytest.raises(UnsupportedError, match="scratch='copy'"):
            Container(root).create()
        with pytest.raises(UnsupportedError, match="overlay"):
            Container(root, read_only=True, strict=False).create()
        with Container(root, strict=False) as c:
            assert [line for line in c.degraded if line.startswith("overlay (the directory is copied into memory instead): ")]
            assert c.exec(["sh", "-c", "echo y >/new && cat /new"]).stdout == b"y\n"


def test_a_later_container_sees_what_has_changed_in_the_directory(root: Path) -> None:
    (root / "srv").mkdir()
    for number in range(4):
        (root / "srv/file").write_text(str(number))
        with Container(root, scratch=COPY) as c:
            assert c.exec(["cat", "/srv/file"]).stdout == str(number).encode()


def test_what_makes_no_sense_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="in memory"):
        Scratch(disk=str(tmp_path), copy=True)
    with pytest.raises(UsageError, match="view of the host"):
        Container(scratch="copy")
    with pytest.raises(UsageError, match="read_only"):
        Container(str(tmp_path), scratch="copy", read_only=True)


@needs("root")
def test_owners_are_kept_where_the_container_has_them(root: Path) -> None:
    (root / "theirs").touch()
    os.chown(root / "theirs", 33, 34)
    with Container(root, scratch=COPY) as c:
        assert c.exec(["stat", "-c", "%u:%g", "/theirs", "/bin"]).stdout == b"33:34\n0:0\n"
    assert sandbox.run(["true"]).ok
