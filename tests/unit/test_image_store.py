"""The store: what is put into it is there, as it was, and nothing else."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from sandbox.errors import ClosedError, ImageError, ImageNotFoundError, SetupError, UsageError
from sandbox.image import Digest, Reference, Store
from tests.images import files_of, layers, make, put

pytestmark = pytest.mark.unprivileged


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def test_nothing_is_made_before_the_first_use(store: Store) -> None:
    assert store.images() == []
    assert not store.has_blob(Digest.of(b""))
    assert not store.has_layer(Digest.of(b""))
    assert not os.path.exists(store.path)


def test_a_store_that_cannot_be_looked_into_is_not_taken_for_none(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="is not a directory"):
        Store(tmp_path / "file").images()
    (tmp_path / "link").symlink_to("link")
    with pytest.raises(SetupError, match="ELOOP"):
        Store(tmp_path / "link").images()


@pytest.mark.skipif(os.geteuid() != 0, reason="it becomes another user")
def test_somebody_else_s_store_is_refused(tmp_path: Path) -> None:
    make(store := Store(tmp_path / "store"), "a:1")
    os.chown(store.path, 12345, 12345)
    with pytest.raises(UsageError, match="is user 12345's; choose"):
        store.images()


def test_a_store_that_is_closed_to_us_is_told(tmp_path: Path) -> None:
    make(store := Store(tmp_path / "store"), "a:1")
    os.chmod(store.path, 0)
    script = f"import os; from sandbox.image import Store; os.geteuid() or os.setuid(65534); Store({store.path!r}).images()"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    os.chmod(store.path, 0o700)
    assert "EACCES" in done.stderr, done.stderr


def test_an_image_that_was_put_in_is_found_by_each_of_its_names(store: Store) -> None:
    image = make(store, "debian:12")
    found = [
        store.get(name)
        for name in ("debian:12", Reference.parse("debian:12"), image.id, str(image.id), image.id.hex, image.id.short, image.id.hex[:4])
    ]
    assert found == [image] * 7
    assert image.names == ("docker.io/library/debian:12",)
    assert store.get(image.manifest) == image
    assert store.get(f"debian@{image.manifest}") == image
    assert store.images() == [image]


def test_the_layers_of_an_image_are_directories_with_its_files(store: Store) -> None:
    image = make(store, "app", count=3)
    assert [sorted(os.listdir(f"{path}/d")) for path in image.layers] == [["0"], ["1"], ["2"]]
    assert [os.path.realpath(f"{image.short}/{name}") for name in image.links] == [os.path.realpath(path) for path in image.layers]
    assert {len(name) for name in image.links} == {12}


def test_a_name_without_an_image_is_not_found(store: Store) -> None:
    make(store, "debian:12")
    for name in ("debian:11", "deadbeef", str(Digest.of(b"")), f"debian@{Digest.of(b'')}"):
        with pytest.raises(ImageNotFoundError):
            store.get(name)


@pytest.mark.parametrize("name", ["", "../x", "Debian", "a b", "sha256:../../x", "x" * 300, "a\0b"])
def test_what_is_no_name_is_refused(store: Store, name: str) -> None:
    make(store, "debian:12")
    before = files_of(store)
    with pytest.raises(UsageError):
        store.get(name)
    with pytest.raises(UsageError):
        store.tag("debian:12", name)
    assert files_of(store) == before


def test_a_name_moves_to_another_image_and_the_old_image_stays(store: Store) -> None:
    old = make(store, "app:1", "old")
    new = make(store, "app:1", "new")
    assert store.get("app:1").id == new.id
    assert store.get(old.id).names == ()
    assert [image.id for image in store.images()] == [new.id, old.id]


def test_an_image_takes_a_second_name_and_loses_the_first(store: Store) -> None:
    image = make(store, "app:1")
    assert store.tag("app:1", "localhost:5000/team/app:2").names == ("docker.io/library/app:1", "localhost:5000/team/app:2")
    store.untag("app:1")
    assert store.get(image.id).names == ("localhost:5000/team/app:2",)
    with pytest.raises(ImageNotFoundError):
        store.untag("app:1")
    with pytest.raises(UsageError, match="digest"):
        store.tag(image.id, f"app@{image.manifest}")


def test_a_blob_is_what_its_digest_says_or_is_refused(store: Store) -> None:
    with store.lease() as lease:
        with store.write_blob(lease, Digest.of(b"good"), 4) as writer:
            writer.write(b"evil")
            with pytest.raises(ImageError, match="damaged or exchanged"):
                writer.commit()
        assert not store.has_blob(Digest.of(b"good"))
        with store.write_blob(lease, Digest.of(b"good"), 4) as writer:
            assert writer.offset == 0, "what was wrong is not taken up again"
            with pytest.raises(ImageError, match="more than the 4 bytes"):
                writer.write(b"good and more")


def test_a_blob_without_a_digest_is_given_one(store: Store) -> None:
    with store.lease() as lease, store.write_blob(lease) as writer:
        writer.write(b"made ")
        writer.write(b"here")
        assert writer.commit() == Digest.of(b"made here")
        with pytest.raises(ClosedError):
            writer.commit()
        with pytest.raises(ClosedError):
            writer.write(b"more")
    fd = store.open_blob(Digest.of(b"made here"))
    with open(fd, "rb") as file:
        assert file.read() == b"made here"
    assert store.blob_size(Digest.of(b"made here")) == 9


def test_a_blob_that_was_left_is_taken_up_where_it_ended(store: Store) -> None:
    digest = Digest.of(b"first second")
    with store.lease() as lease:
        with store.write_blob(lease, digest, 12) as writer:
            writer.write(b"first ")
        assert not store.has_blob(digest)
        with store.write_blob(lease, digest, 12) as writer:
            assert writer.offset == 6
            writer.write(b"second")
            assert writer.commit() == digest
        with store.write_blob(lease, digest, 12) as writer:
            assert writer.is_complete
            assert writer.offset == 12
            assert writer.commit() == digest
            with pytest.raises(ClosedError, match="already"):
                writer.write(b"x")


def test_a_blob_can_begin_anew(store: Store) -> None:
    with store.lease() as lease:
        with store.write_blob(lease, Digest.of(b"content"), 7) as writer:
            writer.write(b"con")
        with store.write_blob(lease, Digest.of(b"content"), 7) as writer:
            writer.restart()
            writer.write(b"content")
            writer.commit()
    assert store.read_document(Digest.of(b"content")) == b"content"


def test_a_layer_that_is_another_is_refused_and_nothing_stays(store: Store) -> None:
    one, other = layers("x")
    with store.lease() as lease, pytest.raises(ImageError, match="damaged or exchanged"):
        store.unpack_layer(lease, one.diff_id, [other.blob])
    assert not store.has_layer(one.diff_id)
    assert os.listdir(f"{store.path}/staging") == []
    with pytest.raises(ImageError):
        store.layer_path(one.diff_id)


def test_an_image_that_lacks_something_is_refused(store: Store) -> None:
    one = layers("x", 1)[0]
    with store.lease() as lease:
        image = put(store, lease, [one], ["app"])
        os.unlink(f"{store.path}/blobs/sha256/{one.descriptor.digest.hex}")
        with pytest.raises(ImageError, match="not in the store"):
            store.add_image(lease, image.manifest)


def test_a_damaged_document_is_refused(store: Store) -> None:
    image = make(store, "app")
    Path(f"{store.path}/blobs/sha256/{image.manifest.hex}").write_bytes(b"{}")
    with pytest.raises(ImageError, match="damaged"):
        store.get("app")


def test_the_store_is_closed_to_others_whatever_the_umask(tmp_path: Path) -> None:
    store = Store(tmp_path / "deep" / "store")
    before = os.umask(0)
    try:
        make(store, "app")
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.stat(store.path).st_mode) == 0o700
    os.umask(0o077)
    try:
        make(store, "other")
    finally:
        os.umask(before)
    assert len(store.images()) == 2


@pytest.mark.parametrize("mode", [0o750, 0o701, 0o777])
def test_a_store_that_is_open_to_others_is_refused(store: Store, mode: int) -> None:
    make(store, "app")
    os.chmod(store.path, mode)
    with pytest.raises(UsageError, match="0700"):
        store.get("app")


def test_a_directory_that_is_no_store_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("kept")
    os.chmod(tmp_path, 0o700)
    with pytest.raises(UsageError, match="no store"):
        Store(tmp_path).lease()
    assert os.listdir(tmp_path) == ["mine"]


def test_a_store_of_another_version_is_refused(store: Store) -> None:
    make(store, "app")
    Path(f"{store.path}/version").write_text("2\n")
    with pytest.raises(ImageError, match="version"):
        store.images()


def test_no_descriptor_stays_open(store: Store) -> None:
    before = os.listdir("/proc/self/fd")
    image = make(store, "app")
    with store.use(image):
        store.get("app")
    store.tag("app", "other")
    assert os.listdir("/proc/self/fd") == before
