"""What a power cut leaves of a store, whose newest files may be empty, short or zeros: the next pull makes it whole, and nothing else goes wrong."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sandbox.errors import ImageError
from sandbox.image import Image, Store, pull
from tests.faulty_registry import FaultyRegistry, tar_of

pytestmark = pytest.mark.unprivileged


@pytest.fixture(autouse=True)
def nobodys_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))


@pytest.fixture
def server() -> Iterator[FaultyRegistry]:
    with FaultyRegistry() as registry:
        registry.put_image("app", "1", [tar_of({"one": os.urandom(100_000)}), tar_of({"two": b"2"})])
        yield registry


def get(server: FaultyRegistry, store: Store) -> Image:
    return pull(f"{server.host}/app:1", store=store, platform="linux/amd64")


def blob(image: Image, digest: str) -> Path:
    return Path(image.store, "blobs", "sha256", digest.removeprefix("sha256:"))


def layer_blob(image: Image, number: int) -> Path:
    manifest = json.loads(blob(image, str(image.manifest)).read_bytes())
    return blob(image, manifest["layers"][number]["digest"])


FILES: dict[str, Callable[[Image], Path]] = {
    "large layer": lambda image: layer_blob(image, 0),
    "small layer": lambda image: layer_blob(image, 1),
    "manifest": lambda image: blob(image, str(image.manifest)),
    "configuration": lambda image: blob(image, str(image.id)),
    "facts": lambda image: Path(image.layers[0]).parent / "facts",
    "name": lambda image: next(Path(image.store, "names").iterdir()),
    "record": lambda image: next(Path(image.store, "images").iterdir()),
}
DAMAGES: dict[str, Callable[[bytes], bytes]] = {"empty": lambda _: b"", "short": lambda data: data[: len(data) // 2], "zeros": lambda data: bytes(len(data))}


# Of zeros in a large layer verify alone tells: nobody hashes hundreds of megabytes at each pull.
SYNCED = ("manifest", "name", "record")  # before they get their names: one damage is enough
CASES = [(file, damage) for file in FILES for damage in DAMAGES if (file, damage) != ("large layer", "zeros") and (file not in SYNCED or damage == "empty")]


@pytest.mark.parametrize(("file", "damage"), CASES)
def test_the_next_pull_makes_it_whole(server: FaultyRegistry, tmp_path: Path, file: str, damage: str) -> None:
    store = Store(tmp_path / "store")
    image = get(server, store)
    path = FILES[file](image)
    path.chmod(0o600)
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    with contextlib.suppress(ImageError):
        store.get(image.names[0])
    with contextlib.suppress(ImageError):
        store.images()
    with contextlib.suppress(ImageError):
        store.use(image).close()
    assert store.verify() != []
    assert get(server, store).id == image.id
    assert store.verify() == []
    assert store.get(image.names[0]).id == image.id
