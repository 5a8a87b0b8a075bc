"""Layers that a generator made up, of few names so that they meet: nothing outside the directory changes, nothing hangs, only ImageError comes out."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from sandbox.errors import ImageError
from sandbox.image.pack import pack
from sandbox.image.unpack import UnpackLimits, unpack
from tests.escape.canary import Canary
from tests.support import repeats
from tests.tars import archive, header, padded, pax

pytestmark = pytest.mark.unprivileged

CANARY = b"CANARY"  # stands for the canary's absolute path
PARTS = [b"a", b"b", b"c", b"a", b"b", b"..", b".", b"", b".wh.a", b".wh.b", b".wh..wh..opq", b".wh..wh.plnk", b"host", b"file", b"secret", b"directory", CANARY]
PATHS = st.lists(st.sampled_from(PARTS), min_size=1, max_size=5).map(b"/".join)
ODD = st.one_of(PATHS, PATHS.map(lambda path: b"/" + path), st.binary(max_size=300).filter(lambda name: b"\0" not in name))
KINDS = st.sampled_from([b"0", b"0", b"5", b"5", b"2", b"2", b"2", b"1", b"1", b"6", b"3", b"4", b"\0", b"7"])
KEYS = st.sampled_from([b"user.a", b"user.overlay.opaque", b"trusted.overlay.opaque", b"security.capability", b"user.overlay.redirect", b""])


@st.composite
def members(draw: st.DrawFn) -> tuple[dict[bytes, bytes], bytes]:
    """PAX records, for names of any length, and the member without its name."""
    kind = draw(KINDS)
    content = draw(st.binary(max_size=30)) if kind in b"07\0" else b""
    records = {b"path": draw(ODD)}
    if kind in b"12":
        records[b"linkpath"] = draw(ODD)
    if draw(st.integers(0, 9)) == 0:
        records[b"SCHILY.xattr." + draw(KEYS)] = draw(st.binary(max_size=9))
    mode, uid = draw(st.sampled_from([0, 0o644, 0o777, 0o6755, 0o7777])), draw(st.sampled_from([0, 0, 5, 65535, 65536]))
    return records, header(b"", kind, size=len(content), mode=mode, uid=uid, mtime=draw(st.integers(0, (1 << 33) - 1))) + (padded(content) if content else b"")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Canary]]:
    """A directory in which layers are unpacked two levels down, and a canary in it."""
    path = tmp_path_factory.mktemp("generated")
    canary = Canary.make(path / "host")
    (path / "store").mkdir()
    yield path, canary
    assert canary.changes() == []


def made(chosen: list[tuple[dict[bytes, bytes], bytes]], canary: Canary) -> bytes:
    to = str(canary.path).encode()
    return archive(*(pax({key: value.replace(CANARY, to) if key in (b"path", b"linkpath") else value for key, value in records.items()}) + block for records, block in chosen))


@given(st.lists(members(), min_size=1, max_size=8), st.sampled_from([100, 1 << 20]))
@example([({b"path": b"a", b"linkpath": CANARY}, header(b"", b"2")), ({b"path": b"a/file"}, header(b"", b"0", mode=0o777))], 1 << 20)
@example([({b"path": b"a", b"linkpath": b"../../host"}, header(b"", b"2")), ({b"path": b"b", b"linkpath": b"a/secret"}, header(b"", b"1")), ({b"path": b"b"}, header(b"", b"0"))], 100)
@example([({b"path": b"a"}, header(b"", b"5", mode=0o644)), ({b"path": b"a/a"}, header(b"", b"0"))], 100)
@example([({b"path": b".wh.b"}, header(b"", b"0")), ({b"path": b"b/a"}, header(b"", b"0"))], 100)
@settings(max_examples=repeats(300), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_whatever_a_layer_says_it_stays_inside(place: tuple[Path, Canary], chosen: list[tuple[dict[bytes, bytes], bytes]], piece: int) -> None:
    path, canary = place
    data, layer = made(chosen, canary), path / "store" / "layer"
    layer.mkdir()
    before = set(os.listdir("/proc/self/fd"))
    fd = os.open(layer, os.O_RDONLY)
    try:
        with contextlib.suppress(ImageError):
            unpack((data[at : at + piece] for at in range(0, len(data), piece)), fd, keep_owners=os.geteuid() == 0, limits=UnpackLimits(depth=20))
            if os.geteuid() != 0:  # who may not look into a directory of mode 0644
                open_directories(layer)
            assert_harmless(layer)
    finally:
        os.close(fd)
        remove(layer)
    assert canary.changes() == []
    assert os.listdir(path / "store") == []
    assert set(os.listdir("/proc/self/fd")) == before


def assert_harmless(layer: Path) -> None:
    """What was unpacked has no device but whiteouts, no attribute of an overlay's but opaque ones, and can be packed again."""
    for found in [layer, *layer.rglob("*")]:
        status = found.lstat()
        assert not stat.S_ISBLK(status.st_mode)
        assert not stat.S_ISCHR(status.st_mode) or status.st_rdev == 0
        keys = set(os.listxattr(found, follow_symlinks=False)) - {"user.a", "security.capability"}
        assert keys <= {"user.overlay.opaque"}
        assert not keys or stat.S_ISDIR(status.st_mode)
    if os.geteuid() == 0:  # an ordinary user cannot open a file of mode 0
        fd = os.open(layer, os.O_RDONLY)
        try:
            pack(fd, bytes)
        finally:
            os.close(fd)


def remove(layer: Path) -> None:
    open_directories(layer)
    shutil.rmtree(layer)


def open_directories(layer: Path) -> None:
    """Let the owner into each directory, whatever mode the layer gave it; the root too."""
    layer.chmod(0o700)
    for directory, folders, _ in os.walk(layer):
        for folder in folders:
            if not os.path.islink(os.path.join(directory, folder)):
                os.chmod(os.path.join(directory, folder), 0o700)
