"""Archives of images: what we write we read, what others write we read, and what a stranger writes leads nowhere."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import tarfile
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.errors import ImageError, ImageNotFoundError, LimitError, UsageError
from sandbox.image import Digest, Image, Store, load, save
from sandbox.image._members import checked_name
from sandbox.image.archives import parse_manifest_file
from tests.archives import Entry, archive, blob, docker_entries, layout_entries, member, two_layers
from tests.images import make
from tests.support import known

pytestmark = pytest.mark.unprivileged
SECRET = b"never seen"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def words(image: Image) -> dict[str, bytes]:
    """The files of all layers."""
    return {str(path.relative_to(tree)): path.read_bytes() for tree in map(Path, image.layers) for path in tree.rglob("*") if path.is_file()}


def refuse(store: Store, data: bytes, match: str) -> None:
    with pytest.raises(ImageError, match=match):
        load(io.BytesIO(data), store=store)
    assert store.images() == []


# ---- Right ones ----


def test_an_old_archive_of_docker_is_loaded_with_its_names(store: Store):
    (image,) = load(io.BytesIO(archive(docker_entries(two_layers(), ["app:1", "registry.example:5000/team/app:2"]))), store=store)
    assert image.names == ("docker.io/library/app:1", "registry.example:5000/team/app:2")
    assert words(image) == {"etc/word": b"lower", "etc/other": b"upper"}
    assert not image.built_here


def test_a_layer_that_is_a_link_to_that_of_another_image_is_found(store: Store):
    parts = two_layers()
    entries = [entry for entry in docker_entries(parts, ["app:1"]) if entry[0] != "1/layer.tar"]
    linked: list[Entry] = [("elsewhere/layer.tar", parts[1].tar), ("", member("1/layer.tar", tarfile.SYMTYPE, "../elsewhere/layer.tar"))]
    (image,) = load(io.BytesIO(archive([*entries, *linked])), store=store)
    assert words(image)["etc/other"] == b"upper"


def test_a_hard_link_in_an_archive_is_another_name_of_its_member(store: Store):
    parts = two_layers()
    entries = [entry for entry in docker_entries(parts, ["app:1"]) if entry[0] != "1/layer.tar"]
    linked: list[Entry] = [("elsewhere", parts[1].tar), ("", member("1/layer.tar", tarfile.LNKTYPE, "elsewhere"))]
    (image,) = load(io.BytesIO(archive([*entries, *linked])), store=store)
    assert words(image)["etc/other"] == b"upper"


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress, bytes], ids=["gzip", "bzip2", "xz", "plain"])
def test_archives_and_layers_are_taken_compressed_or_not(store: Store, compress):
    entries = [(name, compress(data) if name.endswith("layer.tar") else data) for name, data in docker_entries(two_layers(), ["app:1"])]
    (image,) = load(io.BytesIO(compress(archive(entries))), store=store)
    assert words(image) == {"etc/word": b"lower", "etc/other": b"upper"}


def test_an_archive_comes_through_a_pipe(store: Store):
    data = archive(docker_entries(two_layers(), ["app:1"]))
    reader, writer = os.pipe()

    def feed() -> None:
        with open(writer, "wb") as file:
            file.write(data)

    thread = threading.Thread(target=feed)
    thread.start()
    try:
        (image,) = load(reader, store=store)
    finally:
        os.close(reader)
        thread.join()
    assert image.names == ("docker.io/library/app:1",)


def test_what_is_spooled_is_bounded(store: Store):
    data = gzip.compress(archive([("zeros", bytes(1 << 20))]))
    with pytest.raises(LimitError, match="max_size"):
        load(io.BytesIO(data), store=store, max_size="64k")


@pytest.mark.parametrize("form", ["docker", "oci", "oci-dir"])
def test_what_is_saved_is_loaded_as_it_was(tmp_path: Path, store: Store, form: str):
    first, second = make(store, "app:1"), make(store, "other:1", count=3)
    store.tag("app:1", "app:2")
    save(["app:1", "other:1", "app:2"], tmp_path / "out", format=form, store=store)
    there = Store(tmp_path / "there")
    loaded = {image.id: image for image in load(tmp_path / "out", store=there)}
    assert loaded[first.id].names == ("docker.io/library/app:1", "docker.io/library/app:2")
    assert loaded[second.id].names == ("docker.io/library/other:1",)
    assert (loaded[first.id].manifest, loaded[second.id].manifest) == (first.manifest, second.manifest)
    assert words(loaded[first.id]) == words(first)


def test_layers_of_zstd_are_in_an_archive_of_docker_plain_too(tmp_path: Path, store: Store):
    zstandard = pytest.importorskip("zstandard")
    parts = two_layers()
    entries = [(name, zstandard.compress(data) if name == "1/layer.tar" else data) for name, data in docker_entries(parts, ["app:1"])]
    (image,) = load(io.BytesIO(archive(entries)), store=store)
    save([image], tmp_path / "saved", store=store)
    with tarfile.open(tmp_path / "saved") as tar:
        found = {info.name: known(tar.extractfile(info)).read() for info in tar}
    (listed,) = json.loads(found["manifest.json"])
    assert [found[name] for name in listed["Layers"]] == [part.tar for part in parts]
    assert load(tmp_path / "saved", store=Store(tmp_path / "there"))[0].manifest == image.manifest
    kept = [(name, data) for name, data in found.items() if name not in ("oci-layout", "index.json")]
    assert load(io.BytesIO(archive(kept)), store=Store(tmp_path / "docker"))[0].id == image.id


def test_the_same_images_give_the_same_bytes(store: Store):
    make(store, "app:1")
    first, second = io.BytesIO(), io.BytesIO()
    save(["app:1"], first, store=store)
    save(["app:1"], second, store=store)
    assert first.getvalue() == second.getvalue()


def test_an_id_is_saved_without_a_name_and_loaded_with_the_callers(tmp_path: Path, store: Store):
    image = make(store, "app:1")
    save([str(image.id)], tmp_path / "a", store=store)
    assert load(tmp_path / "a", store=Store(tmp_path / "b"))[0].names == ()
    assert load(tmp_path / "a", store=Store(tmp_path / "c"), name="given:3")[0].names == ("docker.io/library/given:3",)
    save([image], tmp_path / "d", store=store)
    assert load(tmp_path / "d", store=Store(tmp_path / "e"))[0].names == image.names


def test_a_layout_inside_an_archive_counts_before_its_manifest_json(store: Store):
    annotation = {"io.containerd.image.name": "docker.io/library/app:1"}
    entries = [*layout_entries(two_layers(), annotation), *docker_entries(two_layers("another"), ["liar:1"])]
    (image,) = load(io.BytesIO(archive(entries)), store=store)
    assert image.names == ("docker.io/library/app:1",)


# ---- Names and links that lead out ----

OUTSIDE = ["/etc/shadow", "../../etc/shadow", "a/../../etc/shadow", "..", "", ".", "a/\0b", "x" * 5000, None, 3, ["x"]]


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_manifest_that_names_a_file_outside_is_refused(store: Store, name: object):
    refuse(store, archive(docker_entries(two_layers(), ["app:1"], Config=name)), "Config")
    refuse(store, archive(docker_entries(two_layers(), ["app:1"], Layers=[name, "1/layer.tar"])), "Layers")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
@pytest.mark.parametrize("target", ["/etc/passwd", "../../etc/passwd", "/proc/self/environ"])
def test_a_link_that_leads_out_of_the_archive_is_refused(store: Store, kind: bytes, target: str):
    entries = [entry for entry in docker_entries(two_layers(), ["app:1"]) if entry[0] != "0/layer.tar"]
    refuse(store, archive([("", member("0/layer.tar", kind, target)), *entries]), "leads out")


def test_links_in_a_circle_are_refused(store: Store):
    entries = [entry for entry in docker_entries(two_layers(), ["app:1"]) if entry[0] != "0/layer.tar"]
    circle = [("", member("0/layer.tar", tarfile.SYMTYPE, "../b")), ("", member("b", tarfile.SYMTYPE, "0/layer.tar"))]
    refuse(store, archive([*entries, *circle]), "a link to a link")


def test_a_link_to_nothing_or_to_a_directory_is_a_layer_that_is_missing(store: Store):
    entries = [entry for entry in docker_entries(two_layers(), ["app:1"]) if entry[0] != "0/layer.tar"]
    refuse(store, archive([*entries, ("", member("0/layer.tar", tarfile.SYMTYPE, "nothing"))]), "missing")
    refuse(store, archive([*entries, ("", member("d", tarfile.DIRTYPE)), ("", member("0/layer.tar", tarfile.SYMTYPE, "../d"))]), "missing")


@pytest.mark.parametrize("kind", [tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE])
def test_members_that_are_no_files_are_refused(store: Store, kind: bytes):
    refuse(store, archive([*docker_entries(two_layers(), ["app:1"]), ("", member("odd", kind))]), "odd is a")


@pytest.mark.parametrize("name", ["/absolute", "../climbs", "a/../../climbs"])
def test_members_with_names_that_lead_out_are_refused(store: Store, name: str):
    refuse(store, archive([*docker_entries(two_layers(), ["app:1"]), (name, SECRET)]), "leads out")


def test_a_name_that_is_there_twice_is_refused(store: Store):
    entries = docker_entries(two_layers(), ["app:1"])
    refuse(store, archive([*entries, ("./0//layer.tar", SECRET)]), "twice")


# ---- Documents and content that lie ----


def test_a_layer_that_is_not_what_the_configuration_says_is_refused(store: Store):
    other = two_layers("another")[0].tar
    for content in (other, gzip.compress(other), bz2.compress(other)):
        entries = [(name, content if name == "0/layer.tar" else data) for name, data in docker_entries(two_layers(), ["app:1"])]
        refuse(store, archive(entries), "damaged or exchanged|promises")


def test_a_configuration_that_is_not_what_it_is_called_is_refused(store: Store):
    entries = docker_entries(two_layers(), ["app:1"])
    refuse(store, archive([(name, b"{}" if name.endswith(".json") and name != "manifest.json" else data) for name, data in entries]), "exchanged")


def test_more_or_fewer_layers_than_diff_ids_are_refused(store: Store):
    refuse(store, archive(docker_entries(two_layers(), ["app:1"], Layers=["0/layer.tar"])), "1 layers.*2 diffIDs")


@pytest.mark.parametrize("tags", [["UPPER:1"], ["app:1@sha256:" + "0" * 64], [3], "app:1", ["../x"], ["app:t/../../x"]])
def test_names_that_are_none_are_refused(store: Store, tags: object):
    refuse(store, archive(docker_entries(two_layers(), RepoTags=tags)), "RepoTags")


@pytest.mark.parametrize(
    "data",
    [b"", b"[]", b"{}", b"3", b"[3]", b"[" * 100_000, b'[{}],"x":[1]', b"\xff", b'[{"Config":"a","Layers":{}}]', b"[" + b"{}," * 2000 + b"{}]"],
)
def test_a_manifest_json_that_is_none_is_refused(data: bytes):
    with pytest.raises(ImageError):
        parse_manifest_file(data)


def test_a_huge_manifest_json_is_not_read(store: Store):
    refuse(store, archive([("manifest.json", b" " * (5 << 20))]), "at most")


def test_a_second_image_that_is_refused_adds_no_first(store: Store):
    entries = docker_entries(two_layers(), ["app:1"])
    document = json.loads(entries[-1][1])
    document.append({"Config": "missing.json", "RepoTags": ["b:1"], "Layers": []})
    refuse(store, archive([*entries[:-1], ("manifest.json", json.dumps(document).encode())]), "missing")


def test_an_archive_that_is_cut_off_is_refused(store: Store):
    data = archive(docker_entries(two_layers(), ["app:1"]))
    for end in (100, 512, 1500, len(data) // 2):
        refuse(store, data[:end], "archive|header|missing|tar")


def test_a_size_that_is_larger_than_the_archive_is_refused(store: Store):
    lying = member("0/layer.tar", tarfile.REGTYPE, size=1 << 40)
    refuse(store, lying.tobuf(tarfile.GNU_FORMAT), "ends")


def test_other_tars_are_named(store: Store):
    refuse(store, archive([("etc/passwd", b"root"), ("bin/sh", b"")]), "sandbox import")
    refuse(store, archive([("repositories", b"{}")]), "before 1.10")
    refuse(store, archive([("x", b"")]), "no archive of images")
    refuse(store, b"no tar at all" * 100, "tar")
    refuse(store, b"", "no archive")


@given(st.text(alphabet="ab./\\\0", max_size=12))
def test_a_checked_name_stays_below(name: str):
    try:
        found = checked_name(name, what="test")
    except ImageError:
        return
    assert os.path.normpath(found) == found
    assert not found.startswith(("/", "../"))
    assert found not in ("..", ".")


# ---- Where to ----


def test_an_archive_is_not_written_to_a_terminal(store: Store):
    make(store, "app:1")
    main, terminal = os.openpty()
    with open(terminal, "wb", buffering=0) as file:
        for target in (terminal, file, os.ttyname(terminal)):
            with pytest.raises(UsageError, match="terminal"):
                save(["app:1"], target, store=store)
    os.close(main)


def test_a_failed_save_leaves_what_was_there(tmp_path: Path, store: Store):
    image = make(store, "app:1")
    target = tmp_path / "out.tar"
    target.write_bytes(b"before")
    manifest = json.loads(store.read_document(image.manifest))
    os.truncate(Path(store.path, "blobs/sha256", Digest.parse(manifest["layers"][0]["digest"]).hex), 3)
    with pytest.raises(ImageError, match="size"):
        save(["app:1"], target, store=store)
    assert target.read_bytes() == b"before"
    assert sorted(os.listdir(tmp_path)) == ["out.tar", "store"]


def test_wrong_calls_of_save_touch_nothing(tmp_path: Path, store: Store):
    make(store, "app:1")
    with pytest.raises(UsageError, match="format"):
        save(["app:1"], tmp_path / "x", format="zip", store=store)
    with pytest.raises(UsageError, match="no image"):
        save([], tmp_path / "x", store=store)
    with pytest.raises(ImageNotFoundError):
        save(["nothing:1"], tmp_path / "x", store=store)
    with pytest.raises(UsageError, match="directory"):
        save(["app:1"], io.BytesIO(), format="oci-dir", store=store)
    with pytest.raises(UsageError):
        save(["app:1"], tmp_path / "no" / "x", store=store)
    assert not (tmp_path / "x").exists()


def test_a_blob_of_a_saved_archive_may_lie_anywhere_but_must_be_itself(store: Store):
    annotation = {"org.opencontainers.image.ref.name": "app:1"}
    entries = layout_entries(two_layers(), annotation)
    changed = [(name, b"other" if name == blob(two_layers()[0].blob)[0] else data) for name, data in entries]
    refuse(store, archive(changed), "promises|exchanged")


@pytest.mark.parametrize("form", ["docker", "oci-dir"])
def test_an_interrupt_right_after_the_end_is_still_one(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    make(store, "app:1")
    rename = os.rename

    def interrupted(source: str, target: str) -> None:
        rename(source, target)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save(["app:1"], tmp_path / "out", format=form, store=store)
    assert not [path for path in tmp_path.rglob("*.partial") if "store" not in path.parts]
