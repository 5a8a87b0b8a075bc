"""The reader of tar archives: what others write it reads, what is wrong it refuses, and it keeps nothing unbounded."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandbox.errors import ImageError
from sandbox.image.tar import DEVICE, DIRECTORY, FIFO, FILE, HARD_LINK, SYMLINK, Member, Reader, UnpackLimits, number
from tests.support import needs
from tests.tars import END, archive, directory, file, hard_link, header, long_name, padded, pax, read, record, symlink

pytestmark = pytest.mark.unprivileged

KINDS = {
    tarfile.REGTYPE: FILE, tarfile.LNKTYPE: HARD_LINK, tarfile.SYMTYPE: SYMLINK, tarfile.CHRTYPE: DEVICE,
    tarfile.BLKTYPE: DEVICE, tarfile.DIRTYPE: DIRECTORY, tarfile.FIFOTYPE: FIFO,
}  # fmt: skip
COMPONENT = st.text(st.characters(blacklist_characters="/\0", blacklist_categories=("Cs",)), min_size=1, max_size=60).filter(lambda name: name not in (".", ".."))
NAMES = st.lists(COMPONENT, min_size=1, max_size=6).map("/".join)
CONTENT = st.one_of(st.binary(max_size=40), st.integers(500, 1500).map(os.urandom))


@st.composite
def members(draw: st.DrawFn) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(draw(NAMES))
    info.type = draw(st.sampled_from(list(KINDS)))
    info.mode = draw(st.integers(0, 0o7777))
    info.uid, info.gid = draw(st.integers(0, 1 << 30)), draw(st.integers(0, 65535))
    info.mtime = draw(st.integers(0, 1 << 34))
    content = draw(CONTENT) if info.isreg() else b""
    info.size = len(content)
    if info.issym() or info.islnk():
        info.linkname = draw(NAMES)
    return info, content


@given(st.lists(members(), max_size=5), st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]), st.sampled_from([1, 511, 512, 700, 1 << 20]))
@settings(max_examples=150, deadline=None)
def test_what_tarfile_writes_is_read(wanted: list[tuple[tarfile.TarInfo, bytes]], kind: int, piece: int) -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=kind) as tar:
        for info, content in wanted:
            tar.addfile(info, io.BytesIO(content))
    found = read(stream.getvalue(), piece)
    assert [(member.kind, member.name.rstrip(b"/"), member.target, content) for member, content in found] == [
        (KINDS[info.type], info.name.encode().rstrip(b"/"), info.linkname.encode(), content) for info, content in wanted
    ]
    assert [(member.mode, member.uid, member.gid, member.mtime_ns, member.size) for member, _ in found] == [
        (info.mode, info.uid, info.gid, info.mtime * 10**9, info.size) for info, _ in wanted
    ]


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_damage_is_an_image_error_or_goes_unnoticed(data: st.DataObject) -> None:
    """Whatever is written over an archive of all kinds: nothing but ImageError comes out, and no more bytes than went in."""
    raw = bytearray(ALL_KINDS)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(raw) - 1))
        put = data.draw(st.one_of(st.binary(min_size=1, max_size=12), st.sampled_from([b"\x80", b"\xff" * 12, b"9", b"-1", b"\0", b"/", b"77777777777"])))
        raw[at : at + len(put)] = put
    blocks = [bytes(raw[at : at + 512]) for at in range(0, len(raw) // 512 * 512, 512)]
    # With its checksum made right again, half of the time, it comes further than to the checksum.
    fixed = [block[:148] + b"%06o\0 " % (sum(block) - sum(block[148:156]) + 256) + block[156:] if block[257:262] == b"ustar" else block for block in blocks]
    chosen = b"".join(fixed if data.draw(st.booleans()) else blocks)
    try:
        found = read(chosen, data.draw(st.sampled_from([512, 1000, 1 << 20])))
    except ImageError:
        return
    assert sum(len(content) for _, content in found) <= len(chosen)


ALL_KINDS = archive(
    file(b"plain", b"x" * 700),
    directory(b"d/"),
    symlink(b"s", b"plain"),
    hard_link(b"h", b"plain"),
    long_name(b"l" * 300),
    file(b"short", b"y"),
    pax({b"path": b"p" * 200, b"mtime": b"12.5", b"SCHILY.xattr.user.a": b"1", b"uid": b"5", b"size": b"3"}),
    header(b"q") + padded(b"abc"),
    pax([(b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.name", b"sp"), (b"GNU.sparse.realsize", b"9000")]),
    header(b"z", size=1024) + padded(b"2\n512\n512\n9000\n0\n") + bytes(512),
    header(b"old", b"S", size=512, magic=b"ustar  \0", rest=bytes(41) + b"%011o\0%011o\0" % (1024, 512) + bytes(73) + b"%011o\0" % 2048) + bytes(512),
)


def test_all_kinds_in_one_archive_are_read() -> None:
    found = {member.name: member for member, _ in read(ALL_KINDS)}
    assert list(found) == [b"plain", b"d/", b"s", b"h", b"l" * 300, b"p" * 200, b"sp", b"old"]
    extended = found[b"p" * 200]
    assert (extended.mtime_ns, extended.xattrs, extended.uid, extended.size) == (12_500_000_000, {b"user.a": b"1"}, 5, 3)
    assert (found[b"sp"].extents, found[b"sp"].size, found[b"old"].extents, found[b"old"].size) == (((512, 512),), 9000, ((1024, 512),), 2048)


# --- GNU tar as the writer


@needs("program:tar")
@pytest.mark.parametrize(
    "options",
    [["--format=gnu"], ["--format=posix", "--sparse-version=0.0"], ["--format=posix", "--sparse-version=0.1"], ["--format=posix", "--sparse-version=1.0"]],
    ids=["old", "0.0", "0.1", "1.0"],
)
@pytest.mark.parametrize("islands", [0, 1, 3, 5, 60])
def test_sparse_files_of_gnu_tar_are_read(tmp_path: Path, options: list[str], islands: int) -> None:
    path = tmp_path / ("name" * 20) / ("more" * 20)
    path.parent.mkdir()
    size = 200_000 * (islands + 1) + 77
    with path.open("wb") as stream:
        stream.truncate(size)
        for island in range(islands):
            stream.seek(200_000 * (island + 1))
            stream.write(b"%d" % island * 3000)
    raw = subprocess.run(["tar", "-C", tmp_path, "-cS", *options, "."], stdout=subprocess.PIPE, check=True).stdout
    assert len(raw) < size
    for piece in (100, 512, 1 << 20):
        member, stored = read(raw, piece)[-1]
        content = bytearray(member.size)
        for offset, length in member.extents or ():
            content[offset : offset + length], stored = stored[:length], stored[length:]
        assert bytes(content) == path.read_bytes()
        assert member.name == b"./" + str(path.relative_to(tmp_path)).encode()


@needs("program:tar")
@pytest.mark.parametrize("form", ["gnu", "oldgnu", "posix", "ustar", "v7"])
def test_every_format_of_gnu_tar_is_read(tmp_path: Path, form: str) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "file").write_bytes(b"content")
    (tmp_path / "d" / "link").symlink_to("file")
    os.utime(tmp_path / "d" / "file", ns=(5, 1_600_000_000_500_000_000))
    raw = subprocess.run(["tar", "-C", tmp_path, "-c", f"--format={form}", "d"], stdout=subprocess.PIPE, check=True).stdout
    found = {member.name: (member, content) for member, content in read(raw)}
    assert {name.rstrip(b"/"): member.kind for name, (member, _) in found.items()} == {b"d": DIRECTORY, b"d/file": FILE, b"d/link": SYMLINK}
    member, content = found[b"d/file"]
    assert content == b"content"
    assert member.mtime_ns == 1_600_000_000_500_000_000 if form == "posix" else 1_600_000_000 * 10**9
    assert (member.uid, member.gid) == (os.getuid(), os.getgid())


# --- rules


def test_what_is_no_archive_is_told_as_such() -> None:
    for text in (b"root:x:0:0:root:/root:/bin/bash\n" * 20, b"\x7fELF" * 128, b"!" * 512):
        with pytest.raises(ImageError, match="no tar archive"):
            read(text)


def test_an_archive_may_end_without_its_end() -> None:
    """Go's reader takes that, and so do GNU tar and Python."""
    assert [member.name for member, _ in read(file(b"a", b"x"))] == [b"a"]
    assert read(b"") == []
    assert [member.name for member, _ in read(file(b"a") + bytes(512))] == [b"a"]


def test_what_follows_the_end_is_not_looked_at() -> None:
    assert [member.name for member, _ in read(archive(file(b"a")) + file(b"b") + b"garbage")] == [b"a"]


@pytest.mark.parametrize("cut", [1, 511, 513, 600, 1024 + 100])
def test_an_archive_that_was_cut_off_is_refused(cut: int) -> None:
    with pytest.raises(ImageError, match="in the middle"):
        read((pax({b"path": b"p"}) + file(b"a", b"x" * 600))[:-cut])


def test_links_and_directories_have_no_content_whatever_their_size_says() -> None:
    raw = archive(header(b"d", b"5", size=4096), header(b"l", b"2", size=7, target=b"x"), header(b"h", b"1", size=512, target=b"x"), file(b"after"))
    assert [member.name for member, _ in read(raw)] == [b"d", b"l", b"h", b"after"]


def test_a_global_header_changes_nothing() -> None:
    data = record(b"path", b"elsewhere")
    raw = archive(header(b"g", b"g", size=len(data)) + padded(data), file(b"a"))
    assert [member.name for member, _ in read(raw)] == [b"a"]


def test_the_prefix_belongs_to_posix_names_only() -> None:
    raw = archive(header(b"name", rest=b"pre/fix"), header(b"name", magic=b"ustar  \0", rest=b"12345"))
    assert [member.name for member, _ in read(raw)] == [b"pre/fix/name", b"name"]


def test_libarchive_s_attributes_are_decoded() -> None:
    raw = archive(pax({b"LIBARCHIVE.xattr.user.a%3db": b"AAEC"}), file(b"a"))
    assert read(raw)[0][0].xattrs == {b"user.a=b": b"\0\1\2"}


def test_signed_checksums_of_old_programs_are_taken() -> None:
    block = bytearray(header("ü".encode()))
    total = sum(byte - 256 if byte > 127 else byte for byte in block[:148] + block[156:]) + 256
    block[148:156] = b"%06o\0 " % total
    assert [member.name for member, _ in read(archive(bytes(block)))] == ["ü".encode()]


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (header(b"a", raw_size=b"\xff" * 12), "makes no sense"),
        (header(b"a", raw_size=b"\x80" + b"\xff" * 11), "makes no sense"),
        (header(b"a", raw_size=b"-0000000001\0"), "no size"),
        (header(b"a", raw_size=b"0o000000001\0"), "no size"),
        (header(b"a", raw_size=b"00000_00001\0"), "no size"),
        (header(b"a", raw_size=b"00000000008\0"), "no size"),
        (header(b"a", b"V"), "not known"),
        (header(b"a", b"M"), "not known"),
        (header(b"a")[:-1] + b"x", "checksum"),
        (b"x" * 512, "checksum"),
        (file(b"a") + bytes(512) + file(b"b"), "zeros"),
        (pax([(b"path", b"a\0b")]), "NUL"),
        (pax([(b"size", b"-1")]), "no size"),
        (pax([(b"size", b"1e9")]), "no size"),
        (pax([(b"uid", b"99999999999999999999")]), "no uid"),
        (pax([(b"mtime", b"nan")]) + file(b"a"), "no time"),
        (pax([(b"GNU.sparse.numbytes", b"1")]), "malformed"),
        (pax([(b"GNU.sparse.name", b"")]), "malformed"),
        (pax([(b"LIBARCHIVE.xattr.user.a", b"A")]), "base64"),
        (header(b"x", b"x", size=9) + padded(b"9 a=bcdef"), "malformed"),
        (header(b"x", b"x", size=9) + padded(b"99 a=bcd\n"), "malformed"),
        (header(b"x", b"x", size=9) + padded(b"0 a=bcde\n"), "malformed"),
        (header(b"x", b"x", size=6) + padded(b"6 =bc\n"), "malformed"),
        (header(b"x", b"x", size=4) + padded(b"a=b\n"), "malformed"),
    ],
)  # fmt: skip
def test_what_is_malformed_is_refused(raw: bytes, why: str) -> None:
    with pytest.raises(ImageError, match=why):
        read(archive(raw))


SPARSE = [(b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.realsize", b"9000")]


@pytest.mark.parametrize("table", [b"2\n0\n512\n0\n512\n", b"1\n8900\n512\n", b"1\n0\n511\n", b"1\n0\n513\n", b"1\n-1\n512\n", b"x\n", b"1", b"1\n0x1\n512\n", b"99999999999999999999\n"])
def test_maps_of_sparse_files_that_make_no_sense_are_refused(table: bytes) -> None:
    with pytest.raises(ImageError, match=r"sparse|no offset|no number"):
        read(archive(pax(SPARSE), header(b"a", size=1024) + padded(table) + bytes(512)))


# --- limits


def test_gathered_headers_are_bounded_before_they_are_gathered() -> None:
    for kind in b"xgLK":
        reader = Reader(UnpackLimits(pax=1000, name=1000))
        with pytest.raises(ImageError, match="limits"):
            list(reader.feed(header(b"a", bytes([kind]), size=1 << 30)))


def test_a_map_of_a_sparse_file_is_bounded() -> None:
    old = header(b"a", b"S", magic=b"ustar  \0", rest=bytes(137) + b"\1" + b"%011o\0" % (1 << 30))
    more = b"".join(b"%011o\0%011o\0" % (at, 0) for at in range(21)) + b"\1" + bytes(7)
    endless = pax(SPARSE) + header(b"a", size=1 << 30) + padded(b"1000000\n") + b"1\n" * 256 * 1000
    for raw in (old + more * 1000, endless):
        with pytest.raises(ImageError, match=r"limits\.pax"):
            read(raw, limits=UnpackLimits(pax=5000))


def test_sizes_and_entries_are_bounded() -> None:
    for limits, name in ((UnpackLimits(size=2000), "size"), (UnpackLimits(entries=2), "entries")):
        with pytest.raises(ImageError, match=rf"limits\.{name}"):
            read(archive(file(b"a"), file(b"b"), file(b"c")), limits=limits)
    holes = [(b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.realsize", b"%d" % (1 << 40))]
    with pytest.raises(ImageError, match=r"limits\.size"):
        read(archive(pax(holes), header(b"a", size=512) + padded(b"0\n")))


@given(st.integers(-(1 << 62), (1 << 62)))
def test_base_256_numbers_are_read(value: int) -> None:
    raw = (value & ((1 << 95) - 1) | 1 << 95).to_bytes(12, "big")
    assert number(raw, "number", signed=True) == value


def test_content_is_handed_on_as_it_comes() -> None:
    """Of a file of any size nothing is kept."""
    reader = Reader()
    events = list(reader.feed(header(b"a", size=(1 << 33) - 1)))
    assert isinstance(events[0], Member)
    piece = bytes(1 << 16)
    for _ in range(10):
        (view,) = reader.feed(piece)
        assert isinstance(view, memoryview)
        assert view.obj is piece


def test_the_end_is_two_blocks_of_zeros() -> None:
    assert len(END) == 1024
    assert read(END) == []
