"""Image layouts: names in their words, indexes in one another, and a directory that is somebody else's."""

from __future__ import annotations

import io
import json
import os
import threading
from pathlib import Path

import pytest

from sandbox.errors import ImageError, UsageError
from sandbox.image import Descriptor, Digest, Index, MediaType, Platform, Reference, Store, load, save
from tests.archives import archive, blob, config_of, head, layout_entries, manifest_of, two_layers, write_directory
from tests.images import make

pytestmark = pytest.mark.unprivileged
REF = "org.opencontainers.image.ref.name"
FULL = "io.containerd.image.name"
SECRET = b"the secret of the host"
OTHER = Platform("linux", "s390x")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def refuse(store: Store, source: object, match: str) -> None:
    with pytest.raises(ImageError, match=match):
        load(source, store=store)
    assert store.images() == []


def pack(index: object, *blobs: bytes) -> io.BytesIO:
    data = index if isinstance(index, bytes) else index.encode()
    return io.BytesIO(archive([*head(data), *map(blob, blobs)]))


def pointer(data: bytes, kind: str = MediaType.OCI_MANIFEST, platform: Platform | None = None, **names: str) -> Descriptor:
    annotations = tuple({{"ref": REF, "full": FULL}[key]: value for key, value in names.items()}.items())
    return Descriptor(kind, Digest.of(data), len(data), platform, annotations)


# ---- Names ----


@pytest.mark.parametrize(
    ("annotations", "name", "expected"),
    [
        ({REF: "12"}, None, ()),
        ({REF: "12"}, "debian", ("docker.io/library/debian:12",)),
        ({REF: "localhost/app:1"}, None, ("localhost/app:1",)),
        ({REF: "team/app"}, None, ("docker.io/team/app:latest",)),
        ({FULL: "docker.io/library/debian:12", REF: "12"}, "other", ("docker.io/library/debian:12",)),
        ({}, None, ()),
        ({}, "app:3", ("docker.io/library/app:3",)),
    ],
)
def test_names_are_read_as_each_program_writes_them(store: Store, annotations, name, expected):
    (image,) = load(io.BytesIO(archive(layout_entries(two_layers(), annotations))), store=store, name=name)
    assert image.names == expected


def test_an_image_with_several_names_is_one_image(store: Store):
    (image,) = load(io.BytesIO(archive(layout_entries(two_layers(), {REF: "a:1"}, {REF: "a:2"}, {REF: "a:1"}))), store=store)
    assert image.names == ("docker.io/library/a:1", "docker.io/library/a:2")


@pytest.mark.parametrize("text", ["UPPER:1", "a b", "../x:1", "x:" + "t" * 200, "/", "a:b:c@d"])
def test_a_name_that_is_none_is_refused(store: Store, text: str):
    refuse(store, io.BytesIO(archive(layout_entries(two_layers(), {FULL: text}))), "name")


def test_tags_that_two_images_have_are_written_with_their_repositories(tmp_path: Path, store: Store):
    make(store, "one:1"), make(store, "two:1"), make(store, "three:3")
    save(["one:1", "two:1", "three:3"], tmp_path / "dir", format="oci-dir", store=store)
    found = json.loads((tmp_path / "dir/index.json").read_bytes())["manifests"]
    assert [entry["annotations"][REF] for entry in found] == ["docker.io/library/one:1", "docker.io/library/two:1", "3"]


# ---- Indexes ----


def test_the_manifest_for_this_machine_is_chosen_in_nested_indexes(store: Store):
    parts, own = two_layers(), Platform.of_this_machine()
    config = config_of(parts)
    manifest = manifest_of(parts, config)
    inner = Index((pointer(b"not there", platform=OTHER), pointer(manifest, platform=own))).encode()
    top = Index((pointer(inner, MediaType.OCI_INDEX, full="app:1"),))
    (image,) = load(pack(top, inner, manifest, config, *(part.blob for part in parts)), store=store)
    assert image.manifest == Digest.of(manifest)
    with pytest.raises(ImageError, match="missing"):
        load(pack(top, inner, manifest, config, *(part.blob for part in parts)), store=store, platform=OTHER)


def test_entries_for_other_platforms_without_a_name_are_passed_over(store: Store):
    parts, own = two_layers(), Platform.of_this_machine()
    config = config_of(parts)
    manifest = manifest_of(parts, config)
    top = Index((pointer(b"not there", platform=OTHER), pointer(manifest, platform=own)))
    assert len(load(pack(top, manifest, config, *(part.blob for part in parts)), store=store)) == 1


def test_an_image_for_no_such_machine_names_those_that_there_are(store: Store):
    refuse(store, pack(Index((pointer(b"x", platform=OTHER),))), "linux/s390x")


def test_indexes_deeper_than_the_bound_are_refused(store: Store):
    inner = Index((pointer(b"x"),)).encode()
    blobs = [inner]
    for _ in range(10):
        inner = Index((pointer(inner, MediaType.OCI_INDEX),)).encode()
        blobs.append(inner)
    refuse(store, pack(inner, *blobs), "in one another")


def test_an_index_that_is_said_to_be_in_itself_is_refused(store: Store):
    # A digest cannot be in what it is of; who claims so is caught by the digest.
    claim = Descriptor(MediaType.OCI_INDEX, Digest("sha256", "0" * 64), 100)
    index = Index((claim,)).encode()
    entries = [*head(index), (f"blobs/sha256/{'0' * 64}", index)]
    refuse(store, io.BytesIO(archive(entries)), "promises|exchanged")


def test_an_entry_a_thousand_times_is_taken_once(store: Store):
    parts = two_layers()
    assert len(load(io.BytesIO(archive(layout_entries(parts, *([{}] * 1000)))), store=store)) == 1
    with pytest.raises(ImageError, match="at most"):
        load(io.BytesIO(archive(layout_entries(parts, *([{}] * 1001)))), store=store)


@pytest.mark.parametrize(
    "digest", ["sha256:../../x", "sha256:" + "A" * 64, "md5:" + "0" * 32, "sha256:" + "0" * 63, "../../etc/shadow", "", 3, None]
)
def test_a_digest_that_is_none_is_refused(store: Store, digest: object):
    index = {"schemaVersion": 2, "manifests": [{"mediaType": MediaType.OCI_MANIFEST, "digest": digest, "size": 3}]}
    refuse(store, pack(json.dumps(index).encode()), "digest")


@pytest.mark.parametrize(
    ("index", "match"),
    [
        (b"{}", "schema"),
        (b"[]", "list"),
        (b"\0", "JSON"),
        (b'{"schemaVersion":2,"manifests":[]}', "no image"),
        (b'{"schemaVersion":2,"manifests":[],"layers":[]}', "refused"),
        (b'{"schemaVersion":2,"manifests":' + b"[" * 100_000, "JSON"),
        (b'{"schemaVersion":2,"x":"' + b" " * (5 << 20) + b'","manifests":[]}', "at most"),
    ],
)
def test_an_index_that_is_none_is_refused(store: Store, index: bytes, match: str):
    refuse(store, pack(index), match)


def test_another_version_of_layouts_is_refused(store: Store):
    refuse(store, io.BytesIO(archive([("oci-layout", b'{"imageLayoutVersion":"2.0.0"}'), ("index.json", b"{}")])), "version")


def test_what_is_no_image_is_refused(store: Store):
    config = b'{"artifact":1}'
    manifest = json.dumps(
        {"schemaVersion": 2, "layers": [], "config": {"mediaType": "application/x", "digest": str(Digest.of(config)), "size": len(config)}}
    ).encode()
    refuse(store, pack(Index((pointer(manifest),)), manifest, config), "no image")


# ---- Sizes and blobs ----


@pytest.mark.parametrize("number", range(4))
def test_a_blob_that_is_missing_is_refused(store: Store, number: int):
    entries = layout_entries(two_layers(), {REF: "a:1"})
    refuse(store, io.BytesIO(archive([*entries[:2], *(entry for at, entry in enumerate(entries[2:]) if at != number)])), "missing")


@pytest.mark.parametrize("by", [-1, 1, 1 << 40])
def test_a_size_that_lies_is_refused(store: Store, by: int):
    entries = layout_entries(two_layers(), {REF: "a:1"})
    index = json.loads(dict(entries)["index.json"])
    index["manifests"][0]["size"] += by
    entries[1] = ("index.json", json.dumps(index).encode())
    refuse(store, io.BytesIO(archive(entries)), "promises")


def test_a_layer_that_is_another_one_than_its_diff_id_is_refused(store: Store):
    parts, others = two_layers(), two_layers("another")
    config = config_of(parts)
    manifest = manifest_of(others, config)
    top = Index((pointer(manifest),))
    refuse(store, pack(top, manifest, config, *(part.blob for part in others)), "unpacked, it is|damaged")


# ---- A directory that is somebody else's ----


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    return write_directory(tmp_path / "layout", layout_entries(two_layers(), {REF: "a:1"}))


def test_a_directory_is_loaded(store: Store, layout: Path):
    assert load(layout, store=store)[0].names == ("docker.io/library/a:1",)


@pytest.mark.parametrize("which", ["index.json", "oci-layout", "blobs", "blobs/sha256", "a blob"])
def test_links_in_a_directory_are_refused_wherever_they_lead(store: Store, layout: Path, tmp_path: Path, which: str):
    victim = layout / which if which != "a blob" else max((layout / "blobs/sha256").iterdir(), key=lambda path: path.stat().st_size)
    victim.rename(tmp_path / "outside")
    victim.symlink_to(tmp_path / "outside")
    refuse(store, layout, "a link|not a regular file")


def test_a_fifo_or_a_directory_in_place_of_a_blob_is_refused_without_waiting(store: Store, layout: Path):
    for make_other in (os.mkfifo, os.mkdir):
        victim = next(path for path in (layout / "blobs/sha256").iterdir() if path.is_file())
        content = victim.read_bytes()
        victim.unlink()
        make_other(victim)
        refuse(store, layout, "not a regular file")
        victim.rmdir() if victim.is_dir() else victim.unlink()
        victim.write_bytes(content)


def test_a_blob_that_is_exchanged_while_it_is_read_is_refused_or_whole(store: Store, layout: Path):
    victim = max((layout / "blobs/sha256").iterdir(), key=lambda path: path.stat().st_size)
    content, stop = victim.read_bytes(), threading.Event()

    def exchange() -> None:
        while not stop.is_set():
            for data in (SECRET * 10, content):
                other = victim.with_suffix(".new")
                other.write_bytes(data)
                other.rename(victim)

    thread = threading.Thread(target=exchange)
    thread.start()
    try:
        for _ in range(20):
            try:
                load(layout, store=store)
            except ImageError:
                continue
    finally:
        stop.set()
        thread.join()
    kept = [path.read_bytes() for path in Path(store.path).rglob("*") if path.is_file()]
    assert not any(SECRET in data for data in kept if not data.startswith(b"{"))


# ---- Writing into directories ----


def test_a_layout_keeps_what_others_have_put_into_it(tmp_path: Path, store: Store):
    odd = {"mediaType": "application/x", "digest": "sha256:" + "1" * 64, "size": 3, "artifactType": "y", "annotations": {REF: "kept"}}
    for name, data in head(json.dumps({"schemaVersion": 2, "manifests": [odd]}).encode()):
        (tmp_path / name).write_bytes(data)
    first, second = make(store, "app:1"), make(store, "app:2", "another")
    save(["app:1"], tmp_path, format="oci-dir", store=store)
    store.tag(second.id, "app:1")
    save(["app:1"], tmp_path, format="oci-dir", store=store)
    entries = json.loads((tmp_path / "index.json").read_bytes())["manifests"]
    assert entries[0] == odd
    assert [entry["digest"] for entry in entries[1:]] == [str(second.manifest)]
    assert (tmp_path / f"blobs/sha256/{first.manifest.hex}").exists()


def test_other_directories_are_left_alone(tmp_path: Path, store: Store):
    make(store, "app:1")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/file").write_text("x")
    with pytest.raises(UsageError, match="no image layout"):
        save(["app:1"], tmp_path / "mine", format="oci-dir", store=store)
    with pytest.raises(UsageError):
        save(["app:1"], tmp_path / "mine/file", format="oci-dir", store=store)
    assert os.listdir(tmp_path / "mine") == ["file"]


def test_a_name_without_a_tag_in_the_store_is_its_latest(tmp_path: Path, store: Store):
    make(store, "app:latest")
    save([Reference.parse("app")], tmp_path / "out", format="oci", store=store)
    assert load(tmp_path / "out", store=Store(tmp_path / "b"))[0].names == ("docker.io/library/app:latest",)
