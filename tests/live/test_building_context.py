"""Contexts that are a tar: a file, a stream, standard input; and what a hostile one cannot reach."""

from __future__ import annotations

import gzip
import io
import subprocess
import sys
from pathlib import Path

import pytest

from sandbox.builder import build
from sandbox.builder._tree import Tree
from sandbox.errors import ImageError, UnsupportedError, UsageError
from sandbox.image import Image, Store
from tests.support import import_path, needs
from tests.tars import archive, directory, file, hard_link, symlink

pytestmark = [needs("overlay"), pytest.mark.unprivileged]
DOCKERFILE = b"FROM scratch\nCOPY src /src\nCOPY . /all/\n"
PARTS = (file(b"Dockerfile", DOCKERFILE), directory(b"src"), file(b"src/f", b"data\n", mode=0o755, uid=70_000), file(b".dockerignore", b"hidden\n"))
TAR = archive(*PARTS, file(b"hidden", b"no"), symlink(b"src/out", b"/etc/passwd"))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def check(image: Image, store: Store) -> None:
    tree = Tree(list(image.layers), layered=True)
    assert tree.read("src/f", 100) == b"data\n"
    assert tree.find("all/src/out", follow=False) is not None
    assert tree.find("all/hidden") is None
    assert not list(Path(store.path, "builds").iterdir())


@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_a_tar_is_a_context(store: Store, tmp_path: Path, compress) -> None:
    data = compress(TAR)
    (tmp_path / "context.tar").write_bytes(data)
    first = build(tmp_path / "context.tar", store=store)
    check(first, store)
    assert build(io.BytesIO(data), store=store).id == first.id
    (tmp_path / "same").mkdir()
    subprocess.run(["tar", "-xf", tmp_path / "context.tar", "-C", tmp_path / "same", "--no-same-owner"], check=True)
    assert build(tmp_path / "same", store=store).config.diff_ids == first.config.diff_ids


def test_another_dockerfile_of_the_tar_and_one_given_besides(store: Store) -> None:
    data = archive(*PARTS, directory(b"d"), file(b"d/Other", b"FROM scratch\nCOPY src/f /g\n"))
    assert Tree(list(build(io.BytesIO(data), dockerfile="d/Other", store=store).layers), layered=True).read("g", 9) == b"data\n"
    assert Tree(list(build(io.BytesIO(data), dockerfile=b"FROM scratch\nCOPY src/f /h", store=store).layers), layered=True).read("h", 9) == b"data\n"
    with pytest.raises(UsageError, match="no 'No' in the context"):
        build(io.BytesIO(data), dockerfile="No", store=store)


def test_on_standard_input_is_a_tar_or_a_dockerfile(store: Store) -> None:
    env = {"SANDBOX_IMAGES": store.path, "PATH": "/usr/bin", "PYTHONPATH": import_path()}

    def told(given: bytes, *options: str) -> str:
        command = [sys.executable, "-m", "sandbox", "build", "-q", *options, "-"]
        done = subprocess.run(command, input=given, capture_output=True, check=True, env=env)
        return done.stdout.decode().strip()

    check(store.get(told(gzip.compress(TAR))), store)
    assert told(TAR, "-f", "Dockerfile") == told(TAR)
    assert store.get(told(b"FROM scratch\nLABEL a=b\n")).settings.labels == (("a", "b"),)
    with pytest.raises(UsageError, match="one of the two"):
        build(io.BytesIO(b"FROM scratch\n"), dockerfile="Dockerfile", store=store)


@pytest.mark.parametrize(
    "parts",
    [
        (symlink(b"Dockerfile", b"/etc/passwd"),),
        (symlink(b"Dockerfile", b"../../../../../../../etc/passwd"),),
        (symlink(b"d", b"/etc"), symlink(b"Dockerfile", b"d/passwd")),
    ],
)
def test_a_dockerfile_that_is_a_link_leads_nowhere_outside(store: Store, parts: tuple[bytes, ...]) -> None:
    with pytest.raises(UsageError, match="no 'Dockerfile' in the context"):
        build(io.BytesIO(archive(*parts)), store=store)


def test_patterns_that_are_a_link_are_those_of_the_context_itself(store: Store) -> None:
    parts = (file(b"Dockerfile", b"FROM scratch\nCOPY . /"), symlink(b".dockerignore", b"/etc/passwd"), file(b"f"))
    assert Tree(list(build(io.BytesIO(archive(*parts)), store=store).layers), layered=True).find("f")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (archive(file(b"../x")), r"context: .*\.\."),
        (archive(hard_link(b"x", b"/etc/passwd")), "context: "),
        (archive(file(b".wh.x")), "context: "),
        (gzip.compress(TAR)[:-30], "context: "),
        (TAR[:1800], "context: "),
        (gzip.compress(b"no tar at all" * 100), "context: "),
    ],
    ids=["above", "link", "whiteout", "torn-gzip", "torn", "no-tar"],
)
def test_what_is_no_context_is_refused_and_leaves_nothing(store: Store, data: bytes, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        build(io.BytesIO(data), store=store)
    assert not list(Path(store.path, "builds").iterdir())


def test_a_tar_of_nothing_is_a_tar(store: Store) -> None:
    with pytest.raises(UsageError, match="there is no 'Dockerfile' in the context"):
        build(io.BytesIO(bytes(10240)), store=store)


@pytest.mark.parametrize("place", ["https://example.com/a.tar.gz", "git@example.com:a/b.git", "https://example.com/a.git#main", "ssh://x/y"])
def test_what_is_elsewhere_is_not_fetched(store: Store, place: str) -> None:
    with pytest.raises(UnsupportedError, match="clone or download"):
        build(place, store=store)
    assert not Path(store.path).exists()


def test_text_is_no_context(store: Store) -> None:
    with pytest.raises(UsageError, match="binary"):
        build(io.StringIO("FROM scratch"), store=store)  # type: ignore[arg-type]
