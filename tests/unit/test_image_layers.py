"""Layers there and back: what is packed is unpacked, and is the same; what overlay notes in a directory is what layers say of it."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import stat
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sandbox.errors import ImageError, UsageError
from sandbox.image.compression import KINDS, compress, decompress
from sandbox.image.pack import pack
from sandbox.image.unpack import unpack
from tests.support import needs, repeats
from tests.tars import archive, directory, file, hard_link, header, pax, symlink, unpacked

pytestmark = pytest.mark.unprivileged
MIB = 1 << 20
ROOT = os.geteuid() == 0


@pytest.fixture(autouse=True)
def holes_in_small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in files with very many zeros, so that trees of tests can be small."""
    monkeypatch.setattr(sys.modules["sandbox.image.pack"], "_MOST_ZEROS", 1 << 17)


def packed(path: Path, **options) -> bytes:
    pieces: list[bytes] = []
    fd = os.open(path, os.O_RDONLY)
    try:
        digest = pack(fd, pieces.append, **{"owner": None if ROOT else (0, 0), **options})
    finally:
        os.close(fd)
    data = b"".join(pieces)
    assert digest.hex == hashlib.sha256(data).hexdigest()
    return data


def described(path: Path) -> dict[str, object]:
    """All that a layer keeps of a tree."""
    found: dict[str, object] = {}
    for entry in [path, *sorted(path.rglob("*"))]:
        status = entry.lstat()
        kind = stat.S_IFMT(status.st_mode)
        if kind == stat.S_IFCHR:
            found[str(entry.relative_to(path))] = status.st_rdev  # a whiteout has nothing else
            continue
        content: object = os.readlink(entry) if kind == stat.S_IFLNK else entry.read_bytes() if kind == stat.S_IFREG else status.st_rdev
        xattrs = {key: os.getxattr(entry, key, follow_symlinks=False) for key in sorted(os.listxattr(entry, follow_symlinks=False))}
        links = status.st_nlink if kind != stat.S_IFDIR else 0
        found[str(entry.relative_to(path))] = (status.st_mode, status.st_uid, status.st_gid, int(status.st_mtime), links, content, xattrs)
    return found


# --- real directories


@given(seed=st.integers(0, 1 << 32))
@settings(max_examples=repeats(40), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_what_is_packed_is_unpacked_as_it_was(tmp_path: Path, seed: int) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    try:
        grow(source, random.Random(seed))
        first = packed(source)
        unpacked(first, out)
        assert described(out) == described(source)
        assert packed(out) == first
    finally:
        for path in (source, out):
            shutil.rmtree(path, ignore_errors=True)


def grow(path: Path, chance: random.Random) -> None:
    """Make a tree of all that a layer may have, an overlay's whiteouts among it."""
    places, files = [path], [path / "first"]
    files[0].write_bytes(b"first")
    names = ["a", "ü", "n" * 120, "v" * 250, "with blank", "new\nline", ".hidden", "b", "c"]
    for number in range(chance.randint(1, 25)):
        plant(chance.choice(places) / f"{number}{chance.choice(names)}"[:120], chance, places, files)
    for at in files:
        at.chmod(chance.choice([0o644, 0o755, 0o600]))
        if chance.random() < 0.3:
            os.setxattr(at, "user.key", chance.randbytes(chance.choice([0, 3, 200])))
    for found in [path, *path.rglob("*")]:
        if ROOT and not stat.S_ISCHR(found.lstat().st_mode):
            os.chown(found, chance.choice([0, 7, 65535]), chance.choice([0, 1000]), follow_symlinks=False)
            if found in files and chance.random() < 0.3:
                found.chmod(0o6755)
    for found in sorted(path.rglob("*"), reverse=True):
        os.utime(found, (1, chance.choice([0, 1, 1_600_000_000, (1 << 33) + 5])), follow_symlinks=False)
    os.utime(path, (5, 5))


def plant(at: Path, chance: random.Random, places: list[Path], files: list[Path]) -> None:
    what = chance.randrange(8)
    if what <= 1:
        at.mkdir()
        places.append(at)
        if what and chance.random() < 0.3:
            os.setxattr(at, "user.overlay.opaque", b"y")
    elif what <= 3:
        at.write_bytes(chance.randbytes(chance.choice([0, 1, 511, 512, 70_000])) + bytes(chance.choice([0, 0, 300_000])) + b"end" * chance.randint(0, 1))
        files.append(at)
    elif what == 4:
        at.symlink_to(chance.choice(["x", "/etc/passwd", "t" * 150, "ü"]))
    elif what == 5:
        os.link(chance.choice(files), at)
    elif what == 6:
        os.mkfifo(at)
    else:
        os.mknod(at, stat.S_IFCHR | 0o600, 0)


def test_what_is_packed_is_read_by_others(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    grow(source, random.Random(7))
    (tmp_path / "layer.tar").write_bytes(packed(source, whiteouts=False))
    with tarfile.open(tmp_path / "layer.tar") as tar:
        theirs = {member.name.removeprefix("./").rstrip("/") or ".": member for member in tar}
    kept = {name for name in described(source) if not stat.S_ISCHR((source / name).lstat().st_mode)}
    assert set(theirs) - {".wh..wh..opq"} >= kept
    listed = subprocess.run(["tar", "-tf", tmp_path / "layer.tar"], stdout=subprocess.PIPE, check=True)
    assert listed.stdout.count(b"\n") == len(theirs)


def test_packing_depends_on_content_alone(tmp_path: Path) -> None:
    """Neither the order in which names were made, nor where the tree lies, nor whether zeros are stored as holes."""
    trees = [tmp_path / "one", tmp_path / "another" / "place"]
    for tree, names, holes in zip(trees, ("abc", "cba"), (False, True), strict=True):
        tree.mkdir(parents=True)
        for name in names:
            with (tree / name).open("wb") as stream:
                stream.write(b"x" * MIB)
                _ = stream.seek(MIB, os.SEEK_CUR) if holes else stream.write(bytes(MIB))
                stream.write(b"y")
            os.utime(tree / name, (1, 1))
        os.utime(tree, (1, 1))
    assert packed(trees[0]) == packed(trees[1])
    assert len(packed(trees[0])) < 4 * MIB


def test_times_are_clamped_and_owners_shifted(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    os.utime(tmp_path / "file", (9, 9))
    (tmp_path / "old").write_bytes(b"x")
    os.utime(tmp_path / "old", (3, 3))
    status = tmp_path.stat()
    data = packed(tmp_path, clamp_mtime=5, owner=None, shift=min(status.st_uid, status.st_gid))
    unpacked(data, tmp_path.with_name("out"), keep_owners=False)
    assert [int((tmp_path.with_name("out") / name).stat().st_mtime) for name in ("file", "old")] == [5, 3]
    with pytest.raises(ImageError, match="nobody of the container"):
        packed(tmp_path, owner=None, shift=status.st_uid + 1)


def test_an_own_file_that_nobody_may_read_is_packed(tmp_path: Path) -> None:
    (tmp_path / "shadow").write_bytes(b"secret")
    (tmp_path / "shadow").chmod(0)
    assert b"secret" in packed(tmp_path)
    assert stat.S_IMODE((tmp_path / "shadow").stat().st_mode) == 0


def test_sockets_are_left_out(tmp_path: Path) -> None:
    import socket

    with socket.socket(socket.AF_UNIX) as made:
        (tmp_path / "in").mkdir()
        fd = os.open(tmp_path / "in", os.O_RDONLY)
        made.bind(f"/proc/self/fd/{fd}/socket")
        os.close(fd)
        data = packed(tmp_path / "in")
    unpacked(data, tmp_path / "out")
    assert os.listdir(tmp_path / "out") == []


def test_a_name_that_would_be_a_whiteout_cannot_be_packed(tmp_path: Path) -> None:
    """A program in a container may make it; pushed, it would hide a file of a layer below."""
    (tmp_path / ".wh.passwd").write_bytes(b"")
    with pytest.raises(ImageError, match="would hide"):
        packed(tmp_path)


@pytest.mark.parametrize("key", ["user.overlay.redirect", "user.overlay.metacopy"])
def test_what_an_overlay_keeps_elsewhere_cannot_be_packed(tmp_path: Path, key: str) -> None:
    (tmp_path / "d").mkdir()
    os.setxattr(tmp_path / "d", key, b"/etc")
    with pytest.raises(ImageError, match="lies elsewhere"):
        packed(tmp_path)


# --- whiteouts


def test_overlay_s_notes_become_whiteouts_and_back(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "opaque").mkdir(parents=True)
    os.setxattr(source / "opaque", "user.overlay.opaque", b"y")
    os.setxattr(source / "opaque", "user.overlay.origin", b"\0")
    (source / "opaque" / "kept").write_bytes(b"x")
    os.mknod(source / "gone", stat.S_IFCHR, 0)
    data = packed(source)
    (tmp_path / "layer.tar").write_bytes(data)
    with tarfile.open(tmp_path / "layer.tar") as tar:
        assert tar.getnames() == [".", ".wh.gone", "opaque", "opaque/.wh..wh..opq", "opaque/kept"]
    unpacked(data, tmp_path / "out")
    assert stat.S_ISCHR((tmp_path / "out" / "gone").lstat().st_mode)
    assert os.getxattr(tmp_path / "out" / "opaque", "user.overlay.opaque") == b"y"
    assert os.listxattr(tmp_path / "out" / "opaque") == ["user.overlay.opaque"]


@pytest.mark.parametrize("order", [1, -1], ids=["whiteout first", "whiteout last"])
def test_a_whiteout_hides_what_lies_below_not_what_its_own_layer_has(tmp_path: Path, order: int) -> None:
    """image-spec, layer.md: in whatever order the two stand. A directory of that name begins empty: it is opaque."""
    whiteouts = [file(b".wh.file"), file(b".wh.dir"), file(b".wh.made")]
    things = [file(b"file", b"new"), directory(b"dir"), file(b"made/inside", b"new")]
    unpacked(archive(*(whiteouts + things if order == 1 else things + whiteouts)), tmp_path / "out")
    assert (tmp_path / "out" / "file").read_bytes() == b"new"
    assert [os.getxattr(tmp_path / "out" / name, "user.overlay.opaque") for name in ("dir", "made")] == [b"y", b"y"]


# --- unpacking


def test_later_entries_replace_earlier_ones(tmp_path: Path) -> None:
    data = archive(
        file(b"a", b"first"), file(b"a", b"second"), directory(b"d", 0o700), file(b"d/x", b"x"), directory(b"d", 0o711, mtime=5),
        directory(b"to-file"), file(b"to-file/x"), file(b"to-file", b"now"), file(b"to-dir"), directory(b"to-dir"), symlink(b"l", b"a"), file(b"l", b"own"),
        header(b"p", b"6"), hard_link(b"p", b"a"),
    )  # fmt: skip
    unpacked(data, tmp_path / "out")
    out = tmp_path / "out"
    assert [(out / name).read_bytes() for name in ("a", "d/x", "to-file", "l", "p")] == [b"second", b"x", b"now", b"own", b"second"]
    assert (stat.S_IMODE((out / "d").stat().st_mode), (out / "d").stat().st_mtime) == (0o711, 5)
    assert (out / "to-dir").is_dir()


def test_missing_directories_are_made_and_get_their_own_entry_s_mode_later(tmp_path: Path) -> None:
    unpacked(archive(file(b"a/b/c", b"x", mtime=9), directory(b"a/b", 0o500, mtime=7), directory(b"./", 0o751, mtime=3)), tmp_path / "out")
    found = {name: ((tmp_path / "out" / name).stat().st_mode & 0o7777, int((tmp_path / "out" / name).stat().st_mtime)) for name in (".", "a", "a/b")}
    assert found == {".": (0o751, 3), "a": (0o755, 9), "a/b": (0o500, 7)}
    (tmp_path / "out" / "a" / "b").chmod(0o700)


def test_holes_stay_holes_and_long_runs_of_zeros_become_some(tmp_path: Path) -> None:
    sparse = pax([(b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.name", b"s"), (b"GNU.sparse.realsize", b"%d" % (8 * MIB))])
    table = b"1\n4194304\n512\n"
    content = b"a" * 100 + bytes(4 * MIB) + b"b" + bytes(3 * MIB)
    data = archive(sparse, header(b"x", size=1024), table + bytes(512 - len(table)), b"z" * 512, file(b"zeros", content), file(b"all", bytes(2 * MIB)))
    done = unpacked(data, tmp_path / "out")
    found = {path.name: path.stat() for path in (tmp_path / "out").iterdir()}
    assert [found[name].st_size for name in ("s", "zeros", "all")] == [8 * MIB, len(content), 2 * MIB]
    assert (tmp_path / "out" / "zeros").read_bytes() == content
    assert (tmp_path / "out" / "s").read_bytes() == bytes(4 * MIB) + b"z" * 512 + bytes(4 * MIB - 512)
    assert all(status.st_blocks * 512 < 512 * 1024 for status in found.values())
    assert done.bytes_on_disk < MIB


def test_a_directory_that_is_not_empty_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").touch()
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(UsageError, match="not empty"):
            unpack([archive(file(b"a"))], fd, keep_owners=False)
    finally:
        os.close(fd)


@needs("root")
def test_root_keeps_owners_and_set_id_bits(tmp_path: Path) -> None:
    data = archive(file(b"f", b"x", mode=0o6755, uid=5, gid=6), directory(b"d", 0o2775, uid=7), symlink(b"l", b"x"), header(b"p", b"6", uid=65535, mode=0o622))
    unpacked(data, tmp_path / "out")
    found = {path.name: (path.lstat().st_mode & 0o7777, path.lstat().st_uid, path.lstat().st_gid) for path in (tmp_path / "out").iterdir()}
    assert found == {"f": (0o6755, 5, 6), "d": (0o2775, 7, 0), "l": (0o777, 0, 0), "p": (0o622, 65535, 0)}


# --- compression


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("piece", [1, 7777, 1 << 22])
def test_what_is_compressed_is_decompressed(kind: str, piece: int) -> None:
    data = os.urandom(3000) + bytes(5000) if piece == 1 else os.urandom(300_000) + bytes(3_000_000)
    whole = b"".join(compress([data], kind))
    assert whole == b"".join(compress([data], kind)), "the same bytes each time"
    assert unzipped(whole, piece) == data
    if kind == "none":
        return
    assert unzipped(whole + whole + bytes(1000), piece) == data + data, "several in a row, and padding"
    for bad in (whole[:-1], whole[: len(whole) // 2], whole + b"x", whole + b"\0\0x", whole[:1000] + b"xxxxx" + whole[1005:]):
        with pytest.raises(ImageError):
            unzipped(bad, piece)


def unzipped(data: bytes, piece: int, media_type: str = "") -> bytes:
    return b"".join(decompress((data[at : at + piece] for at in range(0, len(data), piece)), media_type=media_type))


def test_what_a_media_type_says_must_be_so() -> None:
    data = b"".join(compress([b"x" * 100], "gzip"))
    for good in ("", "application/vnd.oci.image.layer.v1.tar+gzip", "application/vnd.docker.image.rootfs.diff.tar.gzip", "application/octet-stream"):
        assert unzipped(data, 10, good) == b"x" * 100
    for bad in ("application/vnd.oci.image.layer.v1.tar", "application/vnd.oci.image.layer.v1.tar+zstd"):
        with pytest.raises(ImageError, match="compressed as gzip"):
            unzipped(data, 10, bad)


def test_skippable_frames_of_zstd_are_skipped() -> None:
    """zstd:chunked has its table of contents there."""
    frame = b"".join(compress([b"content"], "zstd"))
    skippable = (0x184D2A5E).to_bytes(4, "little") + (5).to_bytes(4, "little") + b"12345"
    assert unzipped(skippable + frame + skippable, 3) == b"content"


@pytest.mark.parametrize(("kind", "level"), [("gzip", 77), ("zstd", 99), ("bzip2", 0), ("xz", 77), ("lz4", None)])
def test_levels_and_kinds_that_do_not_exist_are_refused(kind: str, level: int | None) -> None:
    with pytest.raises(UsageError, match="compression"):
        list(compress([b"x"], kind, level))


@given(kind=st.sampled_from([kind for kind in KINDS if kind != "none"]), damage=st.lists(st.tuples(st.integers(0, 4000), st.binary(min_size=1, max_size=4)), max_size=3), cut=st.integers(0, 30))
@settings(max_examples=repeats(200), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_damaged_compression_is_an_image_error_or_all_the_content(kind: str, damage: list[tuple[int, bytes]], cut: int) -> None:
    whole = bytearray(b"".join(compress([CONTENT], kind)))
    for at, put in damage:
        whole[at % len(whole) : at % len(whole) + len(put)] = put
    data = bytes(whole[: len(whole) - cut])
    try:
        found = unzipped(data, 100)
    except ImageError:
        return
    # Checksums cover content, not headers; without the magic number it is a plain file.
    assert found in (CONTENT, data)


CONTENT = random.Random(1).randbytes(2000) + bytes(20_000)
