"""Where mount_setattr(2) and CLOSE_RANGE_CLOEXEC are missing, as on Linux 5.10: every container is the same as with them."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
from collections.abc import Generator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

import sandbox
from sandbox import Bind, Container, Scratch, Tmpfs, UnsupportedError, Volume, _host, features
from sandbox._sys.constants import CLOSE_RANGE_CLOEXEC
from sandbox.fs import VolumeStore
from sandbox.sec import eq
from tests.refused import python_without
from tests.support import needs

pytestmark = [needs("userns"), pytest.mark.unprivileged, pytest.mark.usefixtures("no_leftovers")]


def mounts_of(**options: Any) -> list[str]:
    """What a program sees mounted, each with its attributes: without numbers and ids, and whether it is id-mapped."""
    with Container(**options) as c:
        lines = c.exec(["cat", "/proc/self/mountinfo"], check=True).stdout.decode(errors="replace").splitlines()
    return [re.sub(r"^\d+ \d+ \d+:\d+|(?<=[ug]id=)\d+|(?<=scratch-)[0-9a-f]+|(?<=/fd/)\d+|,idmapped", "", line) for line in lines]


def same_without(**options: Any) -> list[str]:
    """The mounts of a container made by mount_setattr, which are those of one made without it."""
    with features.pretend(idmapped_mounts=False):  # which not every file system has
        usual = mounts_of(**options)
    with old():
        assert mounts_of(**options) == usual
    return usual


def old(*, idmapped: bool = False) -> AbstractContextManager[None]:
    return features.pretend(mount_setattr=False, idmapped_mounts=idmapped)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"read_only": True},
        {"image": None, "mounts": [Tmpfs("/data", size="1M"), Tmpfs("/data/below", size="1M"), Tmpfs("/dev/shm", size="1M")]},
        {"security": sandbox.Security(masks=False)},
    ],
    ids=["view", "read-only", "tmpfs", "no masks"],
)
def test_a_view_of_the_host_has_the_same_mounts(options: dict[str, Any]) -> None:
    assert same_without(**options)


@pytest.mark.parametrize("options", [{}, {"scratch": None}, {"scratch": "disk"}, {"scratch": "copy"}], ids=str)
@needs("kernel:5.12", "program:busybox")
def test_a_directory_has_the_same_mounts(options: dict[str, Any], tmp_path: Path) -> None:
    """As root all but the id-mapped ones are made by mount(2) here; before Linux 5.12 root is refused."""
    root = tmp_path / "root"
    for name in ("bin", "etc", "proc", "dev", "tmp"):
        (root / name).mkdir(parents=True)
    (root / "bin" / "cat").write_bytes(Path("/bin/busybox").read_bytes())
    (root / "bin" / "cat").chmod(0o755)
    tmp_path.chmod(0o755)
    if options.get("scratch") == "disk":
        (tmp_path / "disk").mkdir()
        options = {"scratch": Scratch(disk=str(tmp_path / "disk"))}
    usual = mounts_of(image=root, **options)
    with old(idmapped=True):
        assert mounts_of(image=root, **options) == usual


@needs("root")
def test_what_is_written_to_is_refused_as_root_where_there_are_no_id_mapped_mounts(tmp_path: Path) -> None:
    for options in ({"image": tmp_path}, {"mounts": [Bind(tmp_path, "/data")]}):
        with old(), pytest.raises(UnsupportedError, match=r"boot Linux 5\.12") as caught:
            Container(**options).create()
        assert caught.value.feature == "idmapped-mounts"


def test_binds_have_the_same_attributes(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    tmp_path.chmod(0o755)
    (tmp_path / "sub").mkdir()
    mounts = [Bind(tmp_path, "/data", read_only=True), Bind(tmp_path / "file", "/file", read_only=True), Bind(tmp_path / "sub", "/data/sub", read_only=True)]
    assert len([line for line in same_without(mounts=mounts) if "/data" in line or "/file" in line]) == 3


def test_a_volume_that_is_read_only_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path.chmod(0o755)
    store = VolumeStore(str(tmp_path / "volumes"))
    volume = store.create("v")
    Path(volume.mountpoint, "file").write_text("text")
    readers = [Volume("v", "/data", read_only=True)]
    monkeypatch.setenv("SANDBOX_VOLUMES", str(tmp_path / "volumes"))
    with old(), Container(mounts=readers) as c:
        assert c.exec(["cat", "/data/file"]).stdout == b"text"
        assert b"Read-only file system" in c.exec(["sh", "-c", "echo >/data/file"]).stderr + c.exec(["touch", "/data/new"]).stderr


# --- what is mounted below a bind


@pytest.fixture
def mounted(tmp_path: Path) -> Generator[Path]:
    """A directory with mounts below it: of names that mountinfo escapes, one below another, and some that allow more than a container may."""
    places = ["plain", "plain/inner", "with blank", "with\ttab\nand line", "back\\slash", "ümlaut\udcff", "exec"]
    top = tmp_path / "top"
    top.mkdir()
    made: list[bytes] = []
    try:
        for number, name in enumerate(places):
            path = os.fsencode(top / name)
            os.mkdir(path)
            options = "noexec,noatime" if name == "plain" else f"size={number + 1}M"
            subprocess.run(["mount", "-t", "tmpfs", "-o", options, f"t{number}", path], check=True)
            made.append(path)
            os.chmod(path, 0o777)
            canary = Path(os.fsdecode(path), "canary")
            canary.write_text(name, errors="surrogateescape")
            canary.chmod(0o666)
        tmp_path.chmod(0o755)
        yield top
    finally:
        for path in reversed(made):
            subprocess.run(["umount", path], check=True)


@needs("root", "idmap")
def test_all_below_a_recursive_bind_has_its_attributes(mounted: Path) -> None:
    seen = [line for line in same_without(mounts=[Bind(mounted, "/data", read_only=True)]) if " /data" in line]
    assert len(seen) == 8
    for line in seen:
        assert {"nosuid", "nodev", "ro"} <= set(line.split(" ")[3].split(",")), line


@needs("root", "idmap")
def test_nothing_below_a_read_only_bind_can_be_written_to(mounted: Path) -> None:
    with old(), Container(mounts=[Bind(mounted, "/data", read_only=True)]) as c:
        told = c.exec(["find", "/data", "-type", "f", "-print0"], check=True).stdout.split(b"\0")[:-1]
        assert len(told) == 7
        for path in told:
            assert b"Read-only file system" in c.exec([b"touch", path]).stderr, path


@needs("root", "idmap", "program:busybox")
def test_so_it_is_before_the_containers_root_is_the_root(mounted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over a directory mounts are made before pivot_root: the paths that mountinfo tells are not those of the container then."""
    root = tmp_path / "rootfs"
    for name in ("bin", "etc", "proc", "dev", "tmp"):
        (root / name).mkdir(parents=True)
    (root / "bin" / "busybox").write_bytes(Path("/bin/busybox").read_bytes())
    (root / "bin" / "busybox").chmod(0o755)
    can_map = _host.can_map
    monkeypatch.setattr(_host, "can_map", lambda fd: os.readlink(f"/proc/self/fd/{fd}") == str(root) and can_map(fd))
    with old(idmapped=True), Container(root, mounts=[Bind(mounted, "/data", read_only=True)]) as c:
        lines = c.exec(["/bin/busybox", "cat", "/proc/self/mountinfo"], check=True).stdout.decode(errors="replace").splitlines()
    seen = [line for line in lines if " /data" in line]
    assert len(seen) == 8
    assert all({"nosuid", "nodev", "ro"} <= set(line.split(" ")[5].split(",")) for line in seen), seen


@needs("root", "idmap")
def test_a_bind_that_is_not_recursive_shows_none_of_them(mounted: Path) -> None:
    assert len([line for line in same_without(mounts=[Bind(mounted, "/data", read_only=True, recursive=False)]) if " /data" in line]) == 1


@needs("root")
def test_what_is_mounted_in_a_container_appears_nowhere_else(mounted: Path) -> None:
    """The copy of a shared mount is its peer until it is attached."""
    subprocess.run(["mount", "--make-rshared", mounted / "plain"], check=True)
    with old(), Container(mounts=[Bind(mounted, "/data", read_only=True)]) as c:
        late = mounted / "exec" / "late"
        late.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "late", late], check=True)
        try:
            lines = c.exec(["cat", "/proc/self/mountinfo"], check=True).stdout.decode(errors="replace")
        finally:
            subprocess.run(["umount", late], check=True)
    assert "/late" not in lines
    assert not [line for line in lines.splitlines() if " /data" in line and "shared:" in line]


@needs("root")
def test_a_mount_that_another_hides_is_an_error(mounted: Path) -> None:
    """mount(2) cannot reach it; nor could a program, but then what is above it would have to stay."""
    subprocess.run(["mount", "-t", "tmpfs", "over", mounted / "plain"], check=True)
    try:
        with old(), pytest.raises(sandbox.SetupError) as caught:
            sandbox.run(["true"], mounts=[Bind(mounted, "/data", read_only=True)])
        assert caught.value.errno in (errno.EBUSY, errno.ENOENT)
    finally:
        subprocess.run(["umount", mounted / "plain"], check=True)


# --- where the kernel does not have them


ASK = """
import json, os, sandbox
given = os.open("/etc/passwd", os.O_RDONLY)
with sandbox.Container() as c:
    beside = c.popen(["sleep", "60"])
    listed = c.exec(["sh", "-c", "ls -l /proc/self/fd | wc -l"], text=True)
    passed = c.exec(["sh", "-c", "ls /proc/self/fd"], text=True, pass_fds=[given])
    flags = c.exec(["sh", "-c", "grep flags: /proc/$$/fdinfo/*"], text=True)
    beside.kill()
print(json.dumps([sandbox.features.mount_setattr(), listed.stdout.strip(), len(passed.stdout.split()), flags.stdout]))
"""


def test_without_mount_setattr_mount_does_it() -> None:
    done = python_without("mount_setattr", ASK)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[0] is False


def test_without_the_flag_of_close_range_a_program_gets_no_descriptor_of_inits() -> None:
    when = [eq(2, CLOSE_RANGE_CLOEXEC, bits=32)]
    usual, without = python_without("mount_setattr", ASK), python_without("close_range", ASK, when=when, error=errno.EINVAL)
    assert without.returncode == 0, without.stderr
    assert json.loads(without.stdout)[1:] == json.loads(usual.stdout)[1:]
