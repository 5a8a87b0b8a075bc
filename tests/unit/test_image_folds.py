"""Folded layers: they show what their layers show, they are made and removed with them, and nothing needs them."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sandbox.image import Digest, Image, Store, _layers
from sandbox.image._disk import Disk, Root
from sandbox.image._folding import fold
from sandbox.image._folds import ENOUGH, MOST, choose, digest_of, stack
from sandbox.image._layers import Facts
from sandbox.image._merged import write_merged
from tests.images import files_of, layer, layer_of, layers, make, put
from tests.support import repeats
from tests.tars import archive, directory, file, hard_link, header, pax, symlink

pytestmark = pytest.mark.unprivileged
Tree = dict[bytes, "bytes | Tree"]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


# ---- What is folded ----

SMALL, LARGE = Facts(size=2048, entries=1, disk=4096), Facts(size=8 << 20, entries=1, disk=8 << 20)


@pytest.mark.parametrize(
    ("known", "spans"),
    [
        ([SMALL] * ENOUGH, []),
        ([SMALL] * 120, [(first, MOST) for first in range(0, 112, MOST)]),
        ([LARGE] * 120, []),
        ([LARGE, *[SMALL] * 5, LARGE, *[SMALL] * 3, LARGE, *[SMALL] * 16], [(1, 5), (11, 16)]),
        ([SMALL] * 3 + [LARGE] + [SMALL] * 15, []),
        ([Facts(size=1 << 20, entries=200, disk=4096)] * 20, [(0, 5), (5, 5), (10, 5)]),
        ([Facts(size=1 << 20, entries=1, disk=900 << 10)] * 20, [(0, 4), (4, 4), (8, 4), (12, 4)]),
    ],
)
def test_runs_of_small_layers_are_folded_until_they_are_full(known: list[Facts], spans: list[tuple[int, int]]) -> None:
    assert list(choose(known)) == spans


@given(st.lists(st.sampled_from([SMALL, LARGE, Facts(size=4096, entries=250, disk=1 << 20)]), max_size=60), st.integers(1, 20))
def test_what_begins_alike_has_the_same_folds(known: list[Facts], more: int) -> None:
    spans = list(choose(known))
    assert all(4 <= count <= MOST for _, count in spans)
    assert all(first + count <= after for (first, count), (after, _) in zip(spans, spans[1:], strict=False))
    assert set(spans) <= set(choose([*known, *[SMALL] * more]))
    names = [Digest.of(str(number).encode()) for number in range(len(known))]
    assert len(stack(names, spans)) == len(names) - sum(count - 1 for _, count in spans)
    assert stack(names, ()) == tuple(names)


# ---- What a fold shows ----


def leaves() -> st.SearchStrategy[bytes]:
    return st.sampled_from([b"one", b"two", b"link", b"fifo", b"same", b"gone"])


def trees() -> st.SearchStrategy[Tree]:
    """Directories of two names or so, three deep; what begins with a capital O is opaque."""
    names = st.sampled_from([b"a", b"b", b"c", b"O"])
    return st.recursive(st.dictionaries(names, leaves(), max_size=4), lambda below: st.dictionaries(names, leaves() | below, max_size=4), max_leaves=8)


def members(tree: Tree, at: bytes = b"", first: list[bytes] | None = None) -> list[bytes]:
    """The members of a tar that has *tree*."""
    found: list[bytes] = []
    first = [] if first is None else first
    for name, content in tree.items():
        path = at + name
        if name == b"O":  # the mark itself: this directory hides what is below
            found += [file(at + b".wh..wh..opq")] if at else []
        elif isinstance(content, dict):
            found += [directory(path, 0o700 + len(content), mtime=len(content)), *members(content, path + b"/", first)]
        elif content == b"gone":
            found.append(file(at + b".wh." + name))
        elif content == b"link":
            found.append(symlink(path, b"../elsewhere"))
        elif content == b"fifo":
            found.append(header(path, b"6", mode=0o622, mtime=9))
        elif content == b"same" and first:
            found.append(hard_link(path, first[0]))
        else:
            first.append(path)
            found += [pax({b"SCHILY.xattr.user.note": b"n"}), file(path, content, mode=0o640, mtime=7)]
    return found


def shown(paths: Sequence[str]) -> list[tuple[object, ...]]:
    """What layers show together, with all that is known of it."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        write_merged(paths, tar)
    buffer.seek(0)
    found: list[tuple[object, ...]] = []
    with tarfile.open(fileobj=buffer) as tar:
        for one in tar:
            content = tar.extractfile(one) if one.isreg() else None
            data = content.read() if content else b""
            found.append((one.name, one.type, one.mode, one.uid, one.gid, one.mtime, one.linkname, one.pax_headers, data))
    return found


@settings(max_examples=repeats(30), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.lists(trees(), min_size=4, max_size=7))
def test_a_fold_shows_what_its_layers_show(tmp_path: Path, grown: list[Tree]) -> None:
    shutil.rmtree(tmp_path / "store", ignore_errors=True)
    store = Store(tmp_path / "store")
    with store.lease() as lease:
        image = put(store, lease, [layer_of(archive(*members(tree))) for tree in grown])
        paths, parts = list(image.layers), image.config.diff_ids[1:-1]
        folded = tmp_path / "store/fold"
        folded.mkdir(mode=0o755)
        tree = os.open(folded, os.O_RDONLY | os.O_DIRECTORY)
        try:
            with Disk(store.path).opened("fold") as root:
                fold(root, image.id, image.config.diff_ids[:1], parts, tree)
        finally:
            os.close(tree)
    for above in ([], paths[-1:]):
        assert shown([paths[0], str(folded), *above]) == shown([*paths[:-1], *above])
    for gone in filter(Path.is_char_device, folded.rglob("*")):  # overlay would list it if there were nothing below
        assert os.path.lexists(Path(paths[0], gone.relative_to(folded)))


def test_holes_stay_holes_and_times_are_kept_to_the_nanosecond(store: Store) -> None:
    with store.lease() as lease:
        image = put(store, lease, layers("a", 4))
        big = Path(image.layers[2], "d/2")
        with big.open("r+b") as opened:
            opened.truncate(1 << 40)
        os.utime(big, ns=(1, 1_700_000_000_123_456_789))
        target = Path(store.path, "fold")
        target.mkdir()
        tree = os.open(target, os.O_RDONLY | os.O_DIRECTORY)
        with Disk(store.path).opened("fold") as root:
            made = fold(root, image.id, (), image.config.diff_ids, tree)
        os.close(tree)
    copied = (target / "d/2").stat()
    assert (copied.st_size, copied.st_mtime_ns) == (1 << 40, 1_700_000_000_123_456_789)
    assert copied.st_blocks * 512 < 1 << 20
    assert made.bytes_on_disk < 1 << 20
    assert made.entries == 5


# ---- In the store ----


def fold_of(image: Image, at: int = 0) -> str:
    """The path of a fold."""
    first, count = image.folds[at]
    return f"{image.store}/layers/{digest_of(image.config.diff_ids[: first + count], first).hex}"


def test_an_image_of_many_layers_is_mounted_as_few_and_keeps_all_of_them(store: Store) -> None:
    image = make(store, "many", count=40)
    assert image.folds == ((0, 16), (16, 16))
    assert len(image.stack) == 10
    assert len(image.layers) == len(image.config.diff_ids) == 40
    assert store.get("many") == image
    assert all(Path(store.path, "layers", digest.hex, "tree").is_dir() for digest in image.stack)
    assert store.verify() == []
    usage = store.usage()
    assert usage.reclaimable == usage.layers + usage.blobs
    with store.use(image):
        assert store.usage().reclaimable == 0


def test_of_what_is_mounted_alone_it_is_asked_whether_it_is_there(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of an image that was made just now, which is not remembered yet."""
    image = make(store, "many", count=40)
    asked: list[Digest] = []
    has = _layers.has

    def ask(root: Root, diff_id: Digest) -> bool:
        asked.append(diff_id)
        return has(root, diff_id)

    monkeypatch.setattr(_layers, "has", ask)
    store.use(image).close()
    assert tuple(asked) == image.stack


def test_a_fold_has_no_whiteout_where_there_is_nothing_to_hide(store: Store) -> None:
    """Overlay would list it. An opaque directory has nothing below either."""
    parts = [archive(directory(b"d"), file(b"d/a"), file(b"d/b"))]
    parts += [archive(directory(b"d"), file(b"d/.wh.a"), directory(b"d/new"), file(b"d/new/f")), archive(file(b"d/new/.wh.f"))]
    parts += [archive(directory(b"e"), file(b"e/f")), archive(file(b"e/.wh..wh..opq"), file(b"e/g")), archive(file(b"e/.wh.g"))]
    with store.lease() as lease:
        image = put(store, lease, [*map(layer_of, parts), *layers("x", 26)])
    (first, second) = (Path(fold_of(image, at), "tree") for at in range(2))
    assert sorted(str(path.relative_to(first)) for path in first.rglob("*") if "d/" not in str(path.relative_to(first))) == ["d", "e"]
    assert {"a", "f"}.isdisjoint(os.listdir(first / "d") + os.listdir(first / "d/new"))
    assert not [path for path in second.rglob("*") if path.is_char_device()]


def test_images_that_begin_alike_share_folds_which_go_with_their_layers(store: Store) -> None:
    common = layers("common", 20)
    with store.lease() as lease:
        one = put(store, lease, [*common, *layers("one", 15)], ["one"])
        two = put(store, lease, [*common, *layers("two", 2)], ["two"])
    assert fold_of(one) == fold_of(two)
    store.remove("one")
    assert os.path.isdir(fold_of(two))
    assert not os.path.exists(fold_of(one, 1))
    assert store.verify() == []
    store.prune()
    assert store.get("two") == two
    store.remove("two")
    assert [name for name in files_of(store) if name not in ("lock", "version")] == []


def test_a_fold_in_use_outlives_its_image(store: Store) -> None:
    image = make(store, "many", count=20)
    use = store.use(image)
    store.remove("many", force=True)
    store.prune(all=True)
    assert os.path.isdir(fold_of(image))
    use.close()
    store.prune(all=True)
    assert not os.path.exists(fold_of(image))


def test_a_fold_that_a_power_cut_has_broken_is_done_without_and_made_anew(store: Store) -> None:
    image = make(store, "many", count=20)
    Path(fold_of(image), "facts").write_bytes(b"")
    found = store.get("many")
    assert found.folds == ()
    assert found.stack == found.config.diff_ids
    with store.use(found):
        assert [fault.kind for fault in store.verify()] == ["layer"]
    assert make(store, "many", count=20) == image
    assert store.verify() == []


def test_verify_tells_of_a_fold_that_shows_something_else(store: Store) -> None:
    image = make(store, "many", count=20)
    changed = Path(fold_of(image), "tree/d/3")
    changed.write_bytes(b"x" * len(changed.read_bytes()))
    (fault,) = store.verify()
    assert (fault.kind, fault.subject) == ("layer", f"sha256:{os.path.basename(fold_of(image))}")
    assert "content" in fault.problem
    for strange in (f"0\n{image.config.diff_ids[0]}\n", "", "0\nx\n"):
        Path(fold_of(image), "folded").write_text(strange)
        (fault,) = store.verify()
        assert "other layers" in fault.problem


def test_what_cannot_be_folded_is_left_as_it_is(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sandbox.image._folding.fold", full)
    image = make(store, "many", count=20)
    assert image.folds == ()
    assert store.verify() == []
    assert os.listdir(f"{store.path}/staging") == []


def test_empty_layers_that_come_again_and_again_fold_to_one(store: Store) -> None:
    with store.lease() as lease:
        image = put(store, lease, [part for one in layers("x", 20) for part in (one, layer({}))])
    assert image.folds == ((0, 16), (16, 16))
    assert shown([f"{store.path}/layers/{digest.hex}/tree" for digest in image.stack]) == shown(
        [f"{store.path}/layers/{digest.hex}/tree" for digest in image.config.diff_ids]
    )
