"""Layers whose names and links lead out: whatever a layer says, nothing but its own directory changes."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from sandbox.errors import ImageError
from tests.escape.canary import Canary
from tests.support import needs
from tests.tars import archive, directory, file, hard_link, header, pax, symlink, unpacked

pytestmark = pytest.mark.unprivileged


def outcome(data: bytes, path: Path, **options) -> str:
    """Unpack *data*; why it was refused, or ""."""
    try:
        unpacked(data, path, **options)
    except ImageError as error:
        return str(error)
    return ""


def names(path: Path) -> set[str]:
    return {str(found.relative_to(path)) for found in path.rglob("*")}


@pytest.fixture
def layer(canary: Canary) -> Path:
    """Where a layer is to be unpacked: two levels below what the canary lies in."""
    store = canary.path.parent / "store"
    store.mkdir()
    return store / "layer"


# --- names


@pytest.mark.parametrize("name", ["../escaped", "a/../../escaped", "../../host/file", "./../escaped", "a/..", "..", "/..", "/../escaped", "a/b/../../../x"])
@pytest.mark.parametrize("long", [False, True], ids=["plain", "long"])
def test_dots_in_names_are_refused(layer: Path, name: str, long: bool) -> None:
    """CVE-2018-15664's kin, and what every naive extractor falls for. A long name goes by another header, and to the same check."""
    raw = name.encode()
    for member in (file(raw, b"owned"), directory(raw), symlink(raw, b"/"), header(raw, b"6")):
        data = archive(pax({b"path": raw}) if long else b"", member)
        assert "'..'" in outcome(data, layer)
        layer.rmdir()
    assert names(layer.parent) == set()


def test_absolute_names_begin_at_the_root_of_the_layer(layer: Path, canary: Canary) -> None:
    inside = str(canary.path).encode()
    assert outcome(archive(file(inside + b"/file", b"owned"), file(b"//etc//passwd", b"x"), directory(b"/"), symlink(b"/link", b"/etc")), layer) == ""
    assert (layer / "etc" / "passwd").read_bytes() == b"x"
    assert (layer / inside.decode().lstrip("/") / "file").read_bytes() == b"owned"


@pytest.mark.parametrize("name", [b"", b"\xff\xfe", b"a" * 256, b"/".join([b"d"] * 300), b"n" * 100 + b"/" + b"x" * 5000])
def test_names_that_no_file_has_are_refused_or_made_as_they_are(layer: Path, name: bytes) -> None:
    why = outcome(archive(pax({b"path": name}) if name else b"", file(name or b"", b"x")), layer)
    assert why or name == b"\xff\xfe"


# --- symbolic links


@pytest.mark.parametrize("absolute", [True, False], ids=["absolute", "relative"])
def test_a_link_as_a_parent_leads_to_nothing_outside(layer: Path, canary: Canary, absolute: bool) -> None:
    """Docker's chroot makes of an absolute target one below the layer's root; so do we, and the canary's twin is made there."""
    target = str(canary.path) if absolute else "../../../../../../../../.." + str(canary.path)
    data = archive(
        symlink(b"link", target.encode()),
        file(b"link/file", b"owned"),
        file(b"link/directory/below/file", b"owned"),
        directory(b"link/new", 0o700),
        hard_link(b"stolen", b"link/file"),
        symlink(b"link/directory/set-ids", b"x"),
        header(b"link/.wh.secret"),
        header(b"link/.wh..wh..opq"),
        directory(b"link/directory", 0o777),
    )
    assert outcome(data, layer) == ""
    twin = layer / str(canary.path).lstrip("/")
    assert (twin / "file").read_bytes() == b"owned"
    assert (layer / "stolen").samefile(twin / "file")
    assert stat.S_IMODE((twin / "directory").stat().st_mode) == 0o777
    assert os.readlink(layer / "link") == target


def test_chains_of_links_lead_to_nothing_outside(layer: Path, canary: Canary) -> None:
    """CVE-2019-14271's and CVE-2021-30465's material: each step looks harmless, the whole climbs."""
    up = b"../" * 12
    data = archive(
        directory(b"a"),
        symlink(b"a/up", b".."),
        symlink(b"a/upup", b"up/.."),
        symlink(b"a/out", b"upup/" + up + str(canary.path).encode().lstrip(b"/")),
        file(b"a/out/file", b"owned"),
        file(b"a/upup/" + b"sibling", b"x"),
        symlink(b"1", b"2"),
        symlink(b"2", b"3/.."),
        symlink(b"3", b"/a/out"),
        file(b"1/directory/below/file", b"owned"),
    )
    outcome(data, layer)
    assert names(layer.parent) == {"layer", *(f"layer/{name}" for name in names(layer))}


def test_links_in_a_ring_end(layer: Path) -> None:
    ring = archive(symlink(b"a", b"b"), symlink(b"b", b"a"), file(b"a/x", b"x"))
    assert "links" in outcome(ring, layer)


def test_a_link_in_the_place_of_a_file_is_replaced_not_followed(layer: Path, canary: Canary) -> None:
    """The final component: what lies behind the link is neither written nor chmod-ed nor given another time."""
    secret = str(canary.path / "file").encode()
    data = archive(
        *(symlink(name, secret) for name in (b"file", b"fifo", b"link", b"hard", b"dir")),
        file(b"target", b"x"),
        file(b"file", b"owned", mode=0o777, mtime=7),
        header(b"fifo", b"6", mode=0o777, mtime=7),
        symlink(b"link", b"elsewhere"),
        hard_link(b"hard", b"target"),
        directory(b"dir", 0o777),
        file(b"dir/x", b"x"),
    )
    assert outcome(data, layer) == ""
    assert (layer / "file").read_bytes() == b"owned"
    assert (layer / "dir" / "x").is_file()
    assert not (layer / "dir").is_symlink()


def test_a_directory_that_becomes_a_link_is_not_followed_when_modes_are_set(layer: Path, canary: Canary) -> None:
    """Directories get their modes and times at the end: whatever stands at their names by then."""
    data = archive(
        directory(b"d/below", 0o777, mtime=7), directory(b"d", 0o777, mtime=7), symlink(b"d", str(canary.path).encode()), directory(b"e", 0o700), symlink(b"e", b"..")
    )
    assert outcome(data, layer) == ""
    assert os.readlink(layer / "d") == str(canary.path)


def test_a_directory_that_became_a_link_is_not_kept_open(layer: Path, canary: Canary) -> None:
    target = str(canary.path).encode()
    data = archive(directory(b"d"), file(b"d/one", b"x"), symlink(b"d", target), file(b"d/two", b"x"))
    assert outcome(data, layer) == ""
    assert not (canary.path / "two").exists()
    assert (layer / target.decode().lstrip("/") / "two").is_file()


# --- hard links


@pytest.mark.parametrize("to", ["{canary}/secret", "../../host/secret", "link/secret", "link", "chain", "nothing", "dir", "", ".", ".wh.x", "gone"])
def test_hard_links_lead_to_files_of_the_layer_only(layer: Path, canary: Canary, to: str) -> None:
    """The classic: a hard link to a file of the host, and then a write, chmod or chown through it."""
    name = to.format(canary=canary.path).encode()
    data = archive(
        symlink(b"link", str(canary.path).encode()),
        symlink(b"to-secret", str(canary.path / "secret").encode()),
        hard_link(b"chain", b"to-secret"),
        directory(b"dir"),
        header(b".wh.gone"),
        hard_link(b"stolen", name),
        file(b"stolen", b"owned", mode=0o777),
    )
    why = outcome(data, layer)
    assert not why if to in ("chain", "link") else why
    assert not (layer / "stolen").exists() or (layer / "stolen").read_bytes() == b"owned"


def test_a_hard_link_to_a_link_is_the_link_itself(layer: Path, canary: Canary) -> None:
    data = archive(symlink(b"link", str(canary.path / "secret").encode()), hard_link(b"again", b"link"), file(b"link", b"x"))
    assert outcome(data, layer) == ""
    assert os.readlink(layer / "again") == str(canary.path / "secret")


def test_what_replaces_a_hard_link_s_name_leaves_the_others_alone(layer: Path) -> None:
    data = archive(file(b"a", b"first"), hard_link(b"b", b"a"), hard_link(b"c", b"b"), file(b"b", b"second"))
    assert outcome(data, layer) == ""
    assert [(layer / name).read_bytes() for name in "abc"] == [b"first", b"second", b"first"]


@pytest.mark.parametrize(("name", "to"), [(b"a", b"a"), (b"d", b"d/f"), (b"./a", b"/a")])
def test_a_hard_link_that_would_remove_its_own_target_is_refused(layer: Path, name: bytes, to: bytes) -> None:
    assert "hard link" in outcome(archive(file(b"a", b"x"), file(b"d/f", b"x"), hard_link(name, to)), layer)


# --- whiteouts


@pytest.mark.parametrize("name", [b".wh.", b".wh..", b".wh...", b"a/.wh...", b".wh.x/y", b".wh.x/.wh.y"])
def test_whiteouts_of_nothing_are_refused(layer: Path, name: bytes) -> None:
    assert outcome(archive(file(name)), layer) != ""


def test_whiteouts_go_through_no_link(layer: Path, canary: Canary) -> None:
    """Neither is what a link leads to hidden, nor the link's own target removed, in the host or in the layer."""
    data = archive(
        symlink(b"out", str(canary.path).encode()),
        symlink(b"secret", str(canary.path / "secret").encode()),
        file(b"out/.wh.file"),
        file(b"out/.wh..wh..opq"),
        file(b".wh.secret"),
        file(b"a/.wh..wh..opq", b"with content that is nobody's"),
    )
    assert outcome(data, layer) == ""
    twin = layer / str(canary.path).lstrip("/")
    assert stat.S_ISCHR((twin / "file").lstat().st_mode)
    assert os.getxattr(twin, "user.overlay.opaque") == b"y"
    assert (layer / "secret").is_symlink(), "a whiteout is for lower layers"
    assert os.listdir(layer / "a") == []


def test_a_root_file_system_has_no_whiteouts(layer: Path) -> None:
    assert "whiteout" in outcome(archive(file(b"a/.wh.b")), layer, rootfs=True)


def test_aufs_s_own_names_are_ignored(layer: Path) -> None:
    data = archive(directory(b".wh..wh.plnk"), file(b".wh..wh.plnk/1.2", b"x"), file(b".wh..wh.aufs"), directory(b"a/.wh..wh.orph"), file(b"b"))
    assert outcome(data, layer) == ""
    assert names(layer) <= {"a", "b"}


# --- devices and attributes


def test_devices_are_never_made_and_counted(layer: Path) -> None:
    """A device 0:0 would be a whiteout that no name tells of; any other would be a disk, were the layer ever mounted without nodev."""
    data = archive(*(header(b"%d-%d" % (kind, number), b"%d" % kind, device=(number, number)) for kind in (3, 4) for number in (0, 1, 8)))
    done = unpacked(data, layer)
    assert (names(layer), done.dropped_devices, done.entries) == (set(), 6, 6)


OVERLAY = ["user.overlay.opaque", "user.overlay.whiteout", "user.overlay.redirect", "user.overlay.metacopy", "trusted.overlay.opaque", "trusted.overlay.redirect"]


@pytest.mark.parametrize("key", [*OVERLAY, "trusted.x", "security.selinux", "security.ima", "system.posix_acl_access", "unknown", ""])
def test_attributes_that_tell_the_kernel_something_are_dropped(layer: Path, key: str) -> None:
    """An overlay's own attributes show what another layer hides, or lead to directories elsewhere (redirect)."""
    records = pax({b"SCHILY.xattr." + key.encode(): b"y", b"SCHILY.xattr.user.kept": b"1"})
    done = unpacked(archive(records, file(b"file"), records, directory(b"dir"), records, directory(b"./"), records, symlink(b"link", b"x")), layer)
    for path in (layer / "file", layer / "dir", layer):
        assert os.listxattr(path) == ["user.kept"]
    assert done.dropped_xattrs == 3 + 2


def test_an_attribute_s_name_with_a_nul_is_refused(layer: Path) -> None:
    assert outcome(archive(pax({b"LIBARCHIVE.xattr.user.a%00b": b"AAEC"}), file(b"a")), layer) != ""


@needs("root")
@pytest.mark.parametrize("value", [b"", b"x", bytes(20), b"\0\0\0\1" + bytes(8), b"\0\0\0\2" + bytes(20), b"\0\0\0\3" + bytes(16)])
def test_malformed_capabilities_are_refused(layer: Path, value: bytes) -> None:
    """The kernel stores them, and whoever reads them gets an error."""
    assert "malformed" in outcome(archive(pax({b"SCHILY.xattr.security.capability": value}), file(b"a")), layer)


@needs("root")
def test_capabilities_are_kept_by_root_only(layer: Path) -> None:
    value = b"\1\0\0\2" + b"\0\4\0\0" + bytes(12)
    data = archive(pax({b"SCHILY.xattr.security.capability": value}), file(b"a", uid=7))
    assert outcome(data, layer) == ""
    assert os.getxattr(layer / "a", "security.capability") == value
    done = unpacked(data, layer.parent / "again", keep_owners=False)
    assert (os.listxattr(layer.parent / "again" / "a"), done.dropped_xattrs) == ([], 1)


def test_attributes_that_the_kernel_refuses_are_an_image_error(layer: Path) -> None:
    assert "attribute" in outcome(archive(pax({b"SCHILY.xattr.user." + b"n" * 300: b""}), file(b"a")), layer)
    os.remove(layer / "a")
    layer.rmdir()
    assert "attribute" in outcome(archive(pax({b"SCHILY.xattr.user.big": b"v" * 70_000}), file(b"a")), layer)


# --- owners and modes


@pytest.mark.parametrize(("uid", "gid"), [(65536, 0), (0, 65536), (1 << 20, 1 << 20)])
def test_owners_beyond_a_container_s_are_refused_where_owners_are_kept(layer: Path, uid: int, gid: int) -> None:
    assert "owned by" in outcome(archive(file(b"a", uid=uid, gid=gid)), layer, keep_owners=True)


def test_set_id_bits_are_an_ordinary_user_s_never(layer: Path) -> None:
    data = archive(file(b"file", b"x", mode=0o6755), directory(b"dir", 0o7777), header(b"fifo", b"6", mode=0o6644))
    assert outcome(data, layer, keep_owners=False) == ""
    assert [stat.S_IMODE((layer / name).stat().st_mode) for name in ("file", "dir", "fifo")] == [0o755, 0o1777, 0o644]


def test_nobody_can_enter_a_directory_before_all_is_done(layer: Path) -> None:
    """A layer that fails half-way leaves directories that only their owner can enter."""
    assert outcome(archive(directory(b"d", 0o777), file(b"d/e/f", b"x"), file(b"..")), layer) != ""
    assert [stat.S_IMODE((layer / name).stat().st_mode) for name in ("d", "d/e")] == [0o700, 0o700]
