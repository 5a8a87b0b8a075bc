"""Removing, pruning, verifying, counting: what is needed stays, what is not goes, and what is wrong is told."""

from __future__ import annotations

import gzip
import io
import os
import stat
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from sandbox.errors import ImageInUseError, ImageNotFoundError
from sandbox.image import Digest, Image, Reference, Step, Store
from sandbox.image._removal import empty
from tests.images import Layer, files_of, layer, layers, make, put

pytestmark = pytest.mark.unprivileged


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def left(store: Store) -> list[str]:
    """What is in a store beside its frame."""
    return [name for name in files_of(store) if name not in ("lock", "version")]


def test_the_last_name_takes_the_image_along_and_leaves_nothing(store: Store) -> None:
    image = make(store, "app:1")
    store.tag("app:1", "app:2")
    first = store.remove("app:1")
    assert (first.untagged, first.deleted, first.freed) == (("docker.io/library/app:1",), (), 0)
    second = store.remove("app:2")
    assert second.deleted == (image.id,)
    assert second.freed > 0
    assert left(store) == []


def test_what_another_image_needs_stays(store: Store) -> None:
    shared = layers("shared", 2)
    with store.lease() as lease:
        put(store, lease, [*shared, *layers("a", 1)], ["a"])
        kept = put(store, lease, [*shared, *layers("b", 1)], ["b"])
    before = set(files_of(store))
    store.remove("a")
    assert store.get("b") == kept
    assert store.verify() == []
    assert len(before) > len(files_of(store))
    store.remove("b")
    assert left(store) == []


def test_by_its_id_an_image_goes_with_all_names_of_one_repository(store: Store) -> None:
    image = make(store, "app:1")
    store.tag("app:1", "app:2")
    assert store.remove(image.id).untagged == ("docker.io/library/app:1", "docker.io/library/app:2")
    assert left(store) == []


def test_names_in_several_repositories_want_force(store: Store) -> None:
    image = make(store, "app:1")
    store.tag("app:1", "other:1")
    with pytest.raises(ImageInUseError, match="several repositories"):
        store.remove(image.id.short)
    assert len(store.get(image.id).names) == 2
    assert store.remove(image.id.short, force=True).deleted == (image.id,)


def test_the_last_tag_takes_names_by_digest_of_its_repository_along(store: Store) -> None:
    with store.lease() as lease:
        image = put(store, lease, layers("x"), ["app:1", f"app@{Digest.of(b'an index')}"])
    assert store.get(f"app@{Digest.of(b'an index')}") == image
    assert len(store.remove("app:1").untagged) == 2
    assert left(store) == []


def test_an_image_in_use_stays_unless_forced_and_then_its_layers_do(store: Store) -> None:
    image = make(store, "app")
    with store.use(image):
        with pytest.raises(ImageInUseError, match="container"):
            store.remove("app")
        with pytest.raises(ImageInUseError, match="container"):
            store.remove(image.id)
        assert store.prune(all=True).deleted == ()
        assert store.get("app") == image
        assert store.remove("app", force=True).deleted == (image.id,)
        assert all(os.path.isdir(path) for path in image.layers)
        store.prune(all=True)
        assert all(os.path.isdir(path) for path in image.layers)
        with pytest.raises(ImageNotFoundError):
            store.use(image)
    assert store.prune().freed > 0
    assert left(store) == []


def test_layers_are_looked_for_once_and_one_that_goes_is_missed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sandbox.image._catalog._SETTLED_NS", -(10**12))
    image = make(store, "app")
    store.use(image).close()
    with monkeypatch.context() as patched:
        patched.setattr("sandbox.image._layers.has", lambda *_: pytest.fail("looked for again"))
        store.use(image).close()
    os.rename(os.path.dirname(image.layers[0]), f"{image.store}/away")
    with pytest.raises(ImageNotFoundError, match="layer"):
        store.use(image)


def test_a_name_of_an_image_in_use_can_go_while_there_is_another(store: Store) -> None:
    image = make(store, "app:1")
    store.tag("app:1", "app:2")
    with store.use(image):
        store.remove("app:1")
        assert store.get("app:2").id == image.id


def test_prune_takes_what_has_no_name_and_all_takes_what_nobody_uses(store: Store) -> None:
    old, new = make(store, "app", "old"), make(store, "app", "new")
    done = store.prune()
    assert (done.deleted, done.untagged) == ((old.id,), ())
    assert store.images() == [new]
    assert store.prune(all=True).untagged == new.names
    assert left(store) == []


def test_prune_leaves_what_is_younger(store: Store) -> None:
    image = make(store, "app")
    assert store.prune(all=True, older_s=3600).deleted == ()
    os.utime(f"{store.path}/images/{image.id.hex}", (1, 1))
    assert store.prune(all=True, older_s=3600).deleted == (image.id,)


def test_a_lease_keeps_what_is_being_put_together(store: Store) -> None:
    parts = layers("x")
    with store.lease() as lease:
        for part in parts:
            with store.write_blob(lease, part.descriptor.digest) as writer:
                writer.write(part.blob)
                writer.commit()
            store.unpack_layer(lease, part.diff_id, [part.blob])
        store.prune(all=True)
        assert put(store, lease, parts, ["app"]).names
        store.prune(all=True)
        assert store.get("app").names
    store.prune(all=True)
    assert left(store) == []


def test_pieces_of_blobs_outlive_a_sweep_and_not_a_prune(store: Store) -> None:
    digest = Digest.of(b"first second")
    with store.lease() as lease, store.write_blob(lease, digest, 12) as writer:
        writer.write(b"first ")
    make(store, "app")
    store.remove("app")
    assert left(store) == [f"staging/blob-sha256-{digest.hex}/data"]
    assert store.usage().staging == 6
    store.prune()
    assert left(store) == []


def test_the_build_cache_keeps_steps_until_they_are_pruned(store: Store) -> None:
    part = layers("step", 1)[0]
    with store.lease() as lease:
        image = put(store, lease, [part], ["built"], built_here=True)
        step = Step(config=image.id, layer=part.descriptor, diff_id=part.diff_id)
        store.remember(lease, "RUN make", step)
    assert image.built_here
    store.remove("built")
    with store.lease() as lease:
        assert store.cached(lease, "RUN make") == step
        assert store.cached(lease, "RUN other") is None
    store.prune()
    usage = store.usage()
    assert (usage.cache_entries, usage.images) == (1, ())
    assert usage.cache == usage.layers + usage.blobs > 0
    assert store.verify() == []
    assert store.prune(build_cache=True, older_s=100).cache_entries == 0
    assert store.prune(build_cache=True).cache_entries == 1
    assert left(store) == []


def test_a_step_that_lost_something_is_no_hit(store: Store) -> None:
    part = layers("step", 1)[0]
    with store.lease() as lease:
        image = put(store, lease, [part], ["built"])
        store.remember(lease, "key", Step(image.id, part.descriptor, part.diff_id))
        os.unlink(f"{store.path}/blobs/sha256/{part.descriptor.digest.hex}")
        assert store.cached(lease, "key") is None


def test_usage_counts_shared_layers_once(store: Store) -> None:
    shared = layer({"big": b"x" * 50_000})
    with store.lease() as lease:
        images = [put(store, lease, [shared, *layers(name, 1)], [name]) for name in ("a", "b")]
    with store.use(images[0]):
        usage = store.usage()
    assert [row.containers for row in usage.images] == [1, 0]
    assert usage.images[0].shared == usage.images[1].shared >= 50_000
    assert usage.layers == usage.images[0].shared + sum(row.unique for row in usage.images)
    assert images[0].size == usage.images[0].shared + usage.images[0].unique
    assert 0 < usage.reclaimable < usage.layers + usage.blobs
    assert store.usage().reclaimable == usage.layers + usage.blobs


# ---- Verifying ----


def spoil_content(image: Image) -> None:
    path = f"{image.layers[0]}/d/0"
    size = os.stat(path)
    Path(path).write_bytes(b"y" * size.st_size)


def spoil_mode(image: Image) -> None:
    os.chmod(f"{image.layers[0]}/d/0", 0o600)


def spoil_missing(image: Image) -> None:
    os.unlink(f"{image.layers[0]}/d/0")


def spoil_extra(image: Image) -> None:
    Path(f"{image.layers[0]}/d/more").touch()


def spoil_link(image: Image) -> None:
    os.unlink(f"{image.layers[0]}/d/0")
    os.symlink("/etc/passwd", f"{image.layers[0]}/d/0")


def spoil_blob(image: Image) -> None:
    blob = next(path for path in Path(f"{image.store}/blobs/sha256").iterdir() if path.read_bytes()[:2] == b"\x1f\x8b")
    blob.write_bytes(blob.read_bytes()[:-1] + b"!")


def spoil_manifest(image: Image) -> None:
    Path(f"{image.store}/blobs/sha256/{image.manifest.hex}").write_bytes(b"{}")


def spoil_record(image: Image) -> None:
    os.unlink(f"{image.store}/images/{image.id.hex}")


def spoil_short(image: Image) -> None:
    os.unlink(f"{image.short}/{image.links[0]}")


def spoil_facts(image: Image) -> None:
    Path(f"{image.layers[0]}/../facts").write_bytes(b"")


SPOILS: dict[Callable[[Image], None], str] = {
    spoil_content: "layer",
    spoil_mode: "layer",
    spoil_missing: "layer",
    spoil_extra: "layer",
    spoil_link: "layer",
    spoil_blob: "blob",
    spoil_manifest: "image",
    spoil_record: "name",
    spoil_short: "layer",
    spoil_facts: "layer",
}


@pytest.mark.parametrize("spoil", SPOILS)
def test_verify_tells_what_is_wrong_and_removing_heals(store: Store, spoil: Callable[[Image], None]) -> None:
    other = make(store, "other")
    image = make(store, "app")
    assert store.verify() == []
    spoil(image)
    faults = store.verify()
    assert SPOILS[spoil] in {fault.kind for fault in faults}, faults
    store.remove("app", force=True)
    store.prune()
    assert store.verify() == []
    assert store.images() == [other]
    assert make(store, "app").id == image.id
    assert store.verify() == []


def test_history_names_the_steps_backwards_with_their_sizes(store: Store) -> None:
    image = make(store, "app")
    assert store.history(image) == []
    assert image.inspect()["RootFS"] == {"Type": "layers", "Layers": [str(digest) for digest in image.config.diff_ids]}
    assert image.inspect()["RepoTags"] == ["app:latest"]


# ---- Processes ----


def test_what_a_killed_process_was_using_is_free(store: Store) -> None:
    image = make(store, "app")
    code = f"import sandbox.image as i; s = i.Store({store.path!r}); u = s.use(s.get('app')); print('ready', flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout
        assert other.stdout.readline() == "ready\n"
        with pytest.raises(ImageInUseError):
            store.remove("app")
        other.kill()
        other.wait()
        assert store.remove("app").deleted == (image.id,)
    assert left(store) == []


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_keeps_no_lease_of_its_parent(store: Store) -> None:
    image = make(store, "app")
    use = store.use(image)
    read, write = os.pipe()
    child = os.fork()
    if not child:  # pragma: no cover
        os.close(write)
        os.read(read, 1)
        use.close()
        os._exit(0 if Store(store.path).get("app").names else 1)
    os.close(read)
    use.close()
    assert store.remove("app").deleted == (image.id,)
    make(store, "app")
    os.close(write)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_that_ends_its_copy_leaves_the_parents_lease(store: Store) -> None:
    use = store.use(make(store, "app"))
    child = os.fork()
    if not child:  # pragma: no cover
        use.close()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    with use, pytest.raises(ImageInUseError):
        store.remove("app")


def test_an_image_that_never_was_is_not_removed(store: Store) -> None:
    make(store, "app")
    before = files_of(store)
    for name in ("other", Reference.parse("other:1"), Digest.of(b""), "abcdef"):
        with pytest.raises(ImageNotFoundError):
            store.remove(name)
    assert files_of(store) == before


def test_a_layer_of_all_kinds_verifies_and_goes_without_a_rest(store: Store) -> None:
    """Links, FIFOs, whiteouts, set-id bits, what its owner may not read: as root, and as an ordinary user."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, kind, mode, target in [
            (".", tarfile.DIRTYPE, 0o555, ""),
            ("closed", tarfile.DIRTYPE, 0o000, ""),
            ("closed/file", tarfile.REGTYPE, 0o000, ""),
            ("closed/below", tarfile.DIRTYPE, 0o555, ""),
            ("closed/below/file", tarfile.REGTYPE, 0o6755, ""),
            ("hard", tarfile.LNKTYPE, 0o644, "closed/below/file"),
            ("soft", tarfile.SYMTYPE, 0o777, "/etc/passwd"),
            ("fifo", tarfile.FIFOTYPE, 0o622, ""),
            ("opaque", tarfile.DIRTYPE, 0o755, ""),
            ("opaque/.wh..wh..opq", tarfile.REGTYPE, 0o644, ""),
            (".wh.gone", tarfile.REGTYPE, 0o644, ""),
        ]:
            member = tarfile.TarInfo(name)
            member.type, member.mode, member.linkname = kind, mode, target
            archive.addfile(member)
    part = Layer(buffer.getvalue(), gzip.compress(buffer.getvalue()))
    with store.lease() as lease:
        image = put(store, lease, [part], ["odd"])
    assert stat.S_IMODE(os.stat(image.layers[0]).st_mode) == 0o555
    assert store.verify() == []
    assert store.remove("odd").deleted == (image.id,)
    assert left(store) == []


def test_a_tree_is_removed_however_deep_it_is(tmp_path: Path) -> None:
    """One look at the directory is enough, or what a failed unpacking leaves would be an error of whoever comes next."""
    at = os.open(tmp_path, os.O_RDONLY)
    for number in range(300):
        os.mkdir("d", dir_fd=at)
        os.close(os.open(f"f{number % 7}", os.O_CREAT | os.O_WRONLY, dir_fd=at))
        below = os.open("d", os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = below
    os.close(at)
    top = os.open(tmp_path, os.O_RDONLY)
    empty(top)
    os.close(top)
    assert os.listdir(tmp_path) == []
