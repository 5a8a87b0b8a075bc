"""Root file systems: imported from directories and tars, exported as the layers together make them."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import stat
import tarfile
from pathlib import Path

import pytest

from sandbox.errors import ImageError, ImageNotFoundError, LimitError, UsageError
from sandbox.image import Platform, Settings, Store, export, import_rootfs
from tests.archives import archive, member
from tests.images import Layer, put
from tests.support import known

pytestmark = pytest.mark.unprivileged


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def tree_of(root: Path) -> dict[str, object]:
    """What is in a directory: content, or where a link leads."""
    return {
        str(path.relative_to(root)): os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None
        for path in root.rglob("*")
    }


def exported(store: Store, name: str) -> tarfile.TarFile:
    buffer = io.BytesIO()
    export(name, buffer, store=store)
    buffer.seek(0)
    return tarfile.open(fileobj=buffer)


def names(tar: tarfile.TarFile) -> list[str]:
    return sorted(tar.getnames())


def layered(store: Store, *layers: list[tuple[str, bytes | tarfile.TarInfo]]) -> None:
    """Make image ``app:1`` of tars."""
    parts = [Layer(tar, gzip.compress(tar)) for tar in map(archive, layers)]
    with store.lease() as lease:
        put(store, lease, parts, ["app:1"])


def directory(name: str) -> tuple[str, tarfile.TarInfo]:
    found = member(name, tarfile.DIRTYPE)
    found.mode = 0o755
    return "", found


# ---- Import ----


def test_a_directory_becomes_an_image_of_one_layer(tmp_path: Path, store: Store):
    root = tmp_path / "root"
    (root / "bin").mkdir(parents=True)
    (root / "bin/true").write_bytes(b"#!")
    (root / "bin/true").chmod(0o755)
    (root / "bin/sh").symlink_to("/bin/true")
    settings = Settings(cmd=("sh",), env=("A=b",))
    image = import_rootfs(root, "app:1", settings=settings, message="made by hand", author="us", store=store)
    assert tree_of(Path(image.layers[0])) == {"bin": None, "bin/true": b"#!", "bin/sh": "/bin/true"}
    assert stat.S_IMODE(os.stat(f"{image.layers[0]}/bin/true").st_mode) == 0o755
    assert (image.settings, image.config.author, image.config.history[0].comment) == (settings, "us", "made by hand")
    assert image.config.platform == Platform.of_this_machine()
    assert store.get("app:1") == image


@pytest.mark.parametrize("compress", [bytes, gzip.compress, bz2.compress, lzma.compress], ids=["plain", "gzip", "bzip2", "xz"])
def test_a_tar_becomes_the_same_image_however_it_is_compressed(tmp_path: Path, store: Store, monkeypatch, compress):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    data = archive([("etc/os-release", b"ID=x")])
    plain = import_rootfs(io.BytesIO(data), store=store)
    (tmp_path / "root.tar").write_bytes(compress(data))
    image = import_rootfs(tmp_path / "root.tar", store=store)
    assert image.id == plain.id
    assert image.config.created == "2023-11-14T22:13:20Z"
    assert tree_of(Path(image.layers[0]))["etc/os-release"] == b"ID=x"


def test_devices_and_sockets_are_left_out(store: Store):
    image = import_rootfs(io.BytesIO(archive([("a", b"x"), ("", member("dev/null", tarfile.CHRTYPE))])), store=store)
    assert tree_of(Path(image.layers[0])) == {"a": b"x", "dev": None} or tree_of(Path(image.layers[0])) == {"a": b"x"}


@pytest.mark.parametrize("name", [".wh.passwd", "etc/.wh..wh..opq", "../x"])
def test_what_is_no_root_file_system_is_refused(store: Store, name: str):
    with pytest.raises(ImageError):
        import_rootfs(io.BytesIO(archive([(name, b"")])), "app:1", store=store)
    assert store.images() == []


def test_what_is_no_tar_and_what_is_too_large_is_refused(store: Store, tmp_path: Path):
    with pytest.raises(ImageError):
        import_rootfs(io.BytesIO(b"no tar" * 1000), store=store)
    with pytest.raises(LimitError):
        import_rootfs(io.BytesIO(gzip.compress(bytes(1 << 20))), max_size="64k", store=store)
    with pytest.raises(UsageError):
        import_rootfs(tmp_path / "nothing", store=store)
    with pytest.raises(UsageError):
        import_rootfs(tmp_path, "No Name", store=store)
    assert store.images() == []


def test_only_files_with_many_zeros_are_packed_as_sparse_ones(tmp_path: Path, store: Store):
    (tmp_path / "root").mkdir()
    for name, size in (("some", 1 << 20), ("many", 1 << 30)):
        with open(tmp_path / "root" / name, "wb") as file:
            file.truncate(size)
    image = import_rootfs(tmp_path / "root", store=store)
    assert os.path.getsize(f"{image.layers[0]}/many") == 1 << 30
    with tarfile.open(Path(store.path, "blobs/sha256", image.config.diff_ids[0].hex)) as tar:
        assert {info.name: info.issparse() for info in tar if info.isreg()} == {"some": False, "many": True}


def test_an_odd_source_date_epoch_is_refused(store: Store, monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "tomorrow")
    with pytest.raises(UsageError, match="SOURCE_DATE_EPOCH"):
        import_rootfs(io.BytesIO(archive([("a", b"")])), store=store)


# ---- Export ----


def test_layers_are_merged_as_overlay_does(store: Store):
    layered(
        store,
        [directory("d"), ("d/hidden", b"1"), ("d/kept", b"1"), directory("o"), ("o/old", b"1"), ("replaced", b"1"), directory("gone"), ("gone/x", b"1")],
        [("d/.wh.hidden", b""), ("d/new", b"2"), directory("o"), ("o/.wh..wh..opq", b""), ("o/fresh", b"2"), ("replaced", b"2"), (".wh.gone", b"")],
        [directory("gone"), ("gone/again", b"3")],
    )
    tar = exported(store, "app:1")
    assert names(tar) == [".", "d", "d/kept", "d/new", "gone", "gone/again", "o", "o/fresh", "replaced"]
    assert known(tar.extractfile("replaced")).read() == b"2"


def test_a_file_and_a_directory_replace_each_other(store: Store):
    layered(
        store,
        [directory("a"), ("a/x", b"1"), ("b", b"1"), directory("c"), ("c/x", b"1")],
        [("a", b"2"), directory("b"), ("b/y", b"2"), ("c", b"2")],
        [directory("c"), ("c/z", b"3")],
    )
    assert names(exported(store, "app:1")) == [".", "a", "b", "b/y", "c", "c/z"]


def test_links_of_any_kind_stay_what_they_are(store: Store):
    layered(store, [("a", b"data"), ("", member("hard", tarfile.LNKTYPE, "a")), ("", member("soft", tarfile.SYMTYPE, "/etc/passwd"))])
    tar = exported(store, "app:1")
    kinds = {info.name: (info.type, info.linkname) for info in tar if info.name != "."}
    assert kinds == {"a": (tarfile.REGTYPE, ""), "hard": (tarfile.LNKTYPE, "a"), "soft": (tarfile.SYMTYPE, "/etc/passwd")}


def test_a_directory_that_a_link_below_it_hides_is_not_entered(store: Store, tmp_path: Path):
    (tmp_path / "host").mkdir()
    (tmp_path / "host/secret").write_text("x")
    layered(store, [directory("d"), ("d/lower", b"1")], [("", member("d", tarfile.SYMTYPE, str(tmp_path / "host")))], [directory("d"), ("d/top", b"3")])
    assert names(exported(store, "app:1")) == [".", "d", "d/top"]


def test_what_is_exported_can_be_imported(store: Store, tmp_path: Path):
    layered(store, [("bin/\u00e9" + "x" * 200, b"1"), ("a", b"2")])
    export("app:1", tmp_path / "root.tar", store=store)
    image = import_rootfs(tmp_path / "root.tar", "again:1", store=store)
    assert tree_of(Path(image.layers[0])) == tree_of(Path(store.get("app:1").layers[0]))


def test_an_image_that_is_not_there_is_not_exported(store: Store, tmp_path: Path):
    with pytest.raises(ImageNotFoundError):
        export("app:1", tmp_path / "root.tar", store=store)
    assert not (tmp_path / "root.tar").exists()
