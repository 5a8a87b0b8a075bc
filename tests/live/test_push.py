"""Pushing to a registry that errs: nothing is sent that is there, the manifest comes last, secrets stay at home."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sandbox.errors import ImageError, ImageNotFoundError, RegistryError, UsageError
from sandbox.image import Credentials, Descriptor, Digest, Image, Patience, Progress, Reference, Stage, Store, login, logout, pull, push, tags
from sandbox.image._access import Access
from sandbox.image._upload import Uploader
from sandbox.image.credentials import CredentialStore
from sandbox.image.registry import Registry
from tests.faulty_registry import FaultyRegistry, Handler, closed, redirect, served, status, tar_of

pytestmark = pytest.mark.unprivileged
QUICK = Patience(connect_s=5, answer_s=20, stall_s=20, attempts=4, first_delay_s=0.001, most_delay_s=0.002)
USER = Credentials("user", "secret")
BLOB = bytes(range(256)) * 400  # 100 KiB


@pytest.fixture(autouse=True)
def nobodys_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def server() -> Iterator[FaultyRegistry]:
    with FaultyRegistry() as registry:
        yield registry


@pytest.fixture
def image(store: Store) -> Image:
    """Of two layers, from somewhere else."""
    with FaultyRegistry() as source:
        source.put_image("app", "1", [tar_of({"one": b"1"}), tar_of({"two": b"2"})])
        return pull(f"{source.host}/app:1", store=store, platform="linux/amd64")


def give(server: FaultyRegistry, store: Store, image: Image | None, name: str = "mine/app:1", **options: Any) -> Digest:
    return push(f"{server.host}/{name}", image=image, store=store, **{"patience": QUICK, **options})


def test_what_was_pushed_is_pulled_back(server: FaultyRegistry, store: Store, image: Image, tmp_path: Path) -> None:
    assert give(server, store, image) == image.manifest
    again = pull(f"{server.host}/mine/app:1", store=Store(tmp_path / "other"), platform="linux/amd64")
    assert (again.id, again.manifest) == (image.id, image.manifest)
    assert tags(f"{server.host}/mine/app") == ["1"]


def test_by_default_the_image_of_that_name_is_pushed(server: FaultyRegistry, store: Store, image: Image) -> None:
    with pytest.raises(ImageNotFoundError):
        give(server, store, None)
    store.tag(image.id, f"{server.host}/mine/app:1")
    assert give(server, store, None) == image.manifest


def test_the_manifest_is_sent_last(server: FaultyRegistry, store: Store, image: Image) -> None:
    give(server, store, image)
    assert server.requests[-1].method == "PUT"
    assert "/manifests/" in server.requests[-1].path
    server.requests.clear()
    server.plan("PUT", "/blobs/", status(403), forever=True)
    with pytest.raises(RegistryError):
        give(server, store, image, "other:1")
    assert server.asked("PUT", "/manifests/") == []


def test_what_is_there_is_not_sent(server: FaultyRegistry, store: Store, image: Image) -> None:
    give(server, store, image)
    server.requests.clear()
    news: list[Progress] = []
    give(server, store, image, "mine/app:2", progress=news.append)
    assert server.asked("POST", "") == []
    assert [each.stage for each in news] == [Stage.PRESENT] * 3 + [Stage.UPLOADED]


def test_what_another_repository_has_is_mounted(server: FaultyRegistry, store: Store, image: Image) -> None:
    server.require = "bearer"
    give(server, store, image, credentials=USER)
    store.tag(image.id, f"{server.host}/mine/app:1")
    server.requests.clear()
    news: list[Progress] = []
    give(server, store, image, "new/place:1", credentials=USER, progress=news.append)
    assert [each.stage for each in news if each.stage is Stage.MOUNTED] == [Stage.MOUNTED] * 2
    assert len(server.asked("PUT", "/blobs/")) == 1  # the configuration
    assert any("repository:mine/app:pull" in scopes and "repository:new/place:pull,push" in scopes for scopes in server.tokens.values())


def test_what_cannot_be_mounted_is_sent(server: FaultyRegistry, store: Store, image: Image) -> None:
    store.tag(image.id, f"{server.host}/not/there:1")
    server.plan("POST", "mount=", status(403), served)
    assert give(server, store, image) == image.manifest
    assert len(server.asked("PUT", "/blobs/")) == 3
    assert len(server.asked("POST", "")) == 4  # where a mount failed, its upload is used


def test_a_broken_upload_begins_anew(server: FaultyRegistry, store: Store, image: Image) -> None:
    server.plan("PUT", "/blobs/", closed, status(500), status(502))
    news: list[Progress] = []
    assert give(server, store, image, progress=news.append) == image.manifest
    assert sum(each.stage is Stage.RETRYING for each in news) == 3


def test_an_image_whose_blob_is_gone_is_not_pushed(server: FaultyRegistry, store: Store, image: Image) -> None:
    (layer, *_) = Path(store.path, "blobs/sha256").glob(image.id.hex)
    layer.unlink()
    with pytest.raises(ImageError):
        give(server, store, image)
    assert server.asked("PUT", "") == []


@pytest.mark.parametrize("name", ["mine/app@sha256:" + "a" * 64, "mine/app:1@sha256:" + "a" * 64, "a//b"])
def test_only_tags_can_be_pushed(server: FaultyRegistry, store: Store, image: Image, name: str) -> None:
    with pytest.raises(UsageError):
        give(server, store, image, name)


def test_a_registry_that_keeps_something_else_is_told(server: FaultyRegistry, store: Store, image: Image) -> None:
    server.plan("PUT", "/manifests/", status(201, Docker_Content_Digest="sha256:" + "0" * 64))
    with pytest.raises(RegistryError, match="it was given"):
        give(server, store, image)


# ---- Where it goes ----


def located(location: str) -> Callable[[Handler], object]:
    return status(202, Location=location)


@pytest.mark.parametrize(
    "location", ["http://evil.example/x", "https://user@127.0.0.1/", "file:///x", "//evil.example/x", "http://10.0.0.1/", "", "http://[::1/", "http://\x7f/"]
)
def test_a_hostile_place_for_an_upload_is_refused(server: FaultyRegistry, store: Store, image: Image, location: str) -> None:
    server.require = "basic"
    server.plan("POST", "", located(location), forever=True)
    with pytest.raises(RegistryError):
        give(server, store, image, credentials=USER)
    assert server.asked("PUT", "") == []


def test_another_host_gets_the_blob_without_our_secret(server: FaultyRegistry, store: Store, image: Image) -> None:
    with FaultyRegistry("127.0.0.2") as elsewhere:
        elsewhere.uploads.update({f"u{number}": bytearray() for number in range(3)})
        server.require = "basic"
        for number in range(3):
            server.plan("POST", "", located(f"{elsewhere.url}/v2/x/blobs/uploads/u{number}"))
        give(server, store, image, credentials=USER, connections=1)
        assert len(elsewhere.asked("PUT", "/uploads/")) == 3
        assert all(each.secret is None for each in elsewhere.requests)


def test_an_upload_is_not_redirected(server: FaultyRegistry, store: Store, image: Image) -> None:
    with FaultyRegistry("127.0.0.2") as elsewhere:
        server.plan("PUT", "/blobs/", redirect(f"{elsewhere.url}/"), forever=True)
        with pytest.raises(RegistryError, match="redirects a PUT"):
            give(server, store, image)
        assert elsewhere.requests == []


# ---- In pieces ----


@pytest.fixture
def blob(tmp_path: Path) -> Iterator[tuple[Descriptor, int]]:
    (tmp_path / "blob").write_bytes(BLOB)
    fd = os.open(tmp_path / "blob", os.O_RDONLY)
    yield Descriptor.of("", BLOB), fd
    os.close(fd)


def send(server: FaultyRegistry, blob: tuple[Descriptor, int], piece: int = 30_000) -> list[int]:
    told: list[int] = []
    with Registry.open(server.host, Access(patience=QUICK)) as registry:
        assert Uploader(registry, "app", piece).give(*blob, told=told.append)
    assert server.blobs[str(Digest.of(BLOB))] == BLOB
    return told


def test_a_large_blob_goes_in_pieces(server: FaultyRegistry, blob: tuple[Descriptor, int]) -> None:
    told = send(server, blob)
    assert told[-1] == len(BLOB)
    assert [each.headers["content-range"] for each in server.asked("PATCH", "")] == ["0-29999", "30000-59999", "60000-89999", "90000-102399"]


@pytest.mark.parametrize("fault", [closed, status(500), status(429)])
def test_a_broken_piece_costs_a_piece(server: FaultyRegistry, blob: tuple[Descriptor, int], fault: Any) -> None:
    server.plan("PATCH", "", served, fault, served, fault)
    send(server, blob)
    assert len(server.asked("GET", "/uploads/")) == 2
    assert len(server.asked("PATCH", "")) == 6


def test_a_piece_that_had_arrived_is_not_sent_twice(server: FaultyRegistry, blob: tuple[Descriptor, int]) -> None:
    def taken_then_closed(handler: Handler) -> None:
        server.uploads["u0"] += handler.asked.body[:10_000]
        handler.close_connection = True

    server.plan("PATCH", "", served, taken_then_closed)
    send(server, blob)
    assert server.asked("PATCH", "")[2].headers["content-range"] == "40000-69999"


def test_a_registry_without_pieces_gets_the_whole(server: FaultyRegistry, blob: tuple[Descriptor, int]) -> None:
    server.plan("PATCH", "", status(405), forever=True)
    send(server, blob)
    assert len(server.asked("PATCH", "")) == 1


def test_an_upload_that_was_lost_begins_anew(server: FaultyRegistry, blob: tuple[Descriptor, int]) -> None:
    def lost(handler: Handler) -> None:
        server.uploads.pop("u0")
        handler.close_connection = True

    server.plan("PATCH", "", served, lost)
    send(server, blob)
    assert len(server.asked("POST", "")) == 2


def test_a_registry_that_claims_more_than_it_was_given_is_told(server: FaultyRegistry, blob: tuple[Descriptor, int]) -> None:
    server.plan("PATCH", "", closed)
    server.plan("GET", "/uploads/", status(204, Range="0-999999"))
    with pytest.raises(RegistryError, match="it says that it has 1000000 of"):
        send(server, blob)


# ---- Logging in ----


@pytest.mark.parametrize("require", ["basic", "bearer"])
def test_a_password_is_kept_when_the_registry_takes_it(server: FaultyRegistry, tmp_path: Path, require: str) -> None:
    server.require = require
    keep = CredentialStore(tmp_path / "config.json")
    assert login(server.host, "user", "secret", keep=keep, patience=QUICK) == keep.file
    assert keep.get(server.host) == USER
    assert logout(server.host, keep=keep)
    assert not logout(server.host, keep=keep)


@pytest.mark.parametrize("require", ["basic", "bearer"])
def test_a_wrong_password_is_not_kept(server: FaultyRegistry, tmp_path: Path, require: str) -> None:
    server.require = require
    keep = CredentialStore(tmp_path / "config.json")
    with pytest.raises(RegistryError) as caught:
        login(server.host, "user", "wrong-word", keep=keep, patience=QUICK)
    assert "wrong-word" not in str(caught.value)
    assert not os.path.exists(keep.file)


def test_a_token_that_is_given_for_the_password_is_kept(server: FaultyRegistry, tmp_path: Path) -> None:
    server.require = "bearer"
    server.tokens["t"] = []
    server.plan("GET", "^/token", status(200, b'{"token":"t","refresh_token":"identity"}'))
    keep = CredentialStore(tmp_path / "config.json")
    login(server.host, "user", "secret", keep=keep, patience=QUICK)
    assert keep.get(server.host) == Credentials("user", identity_token="identity")
    assert "c2VjcmV0" not in Path(keep.file).read_text()


@pytest.mark.parametrize(("registry", "user", "password"), [("", "u", "p"), ("a/b", "u", "p"), ("host", "u", "p"), ("h.io", "", "p"), ("h.io", "u", ""), ("h.io", "a:b", "p")])
def test_what_cannot_be_logged_in_is_refused(registry: str, user: str, password: str) -> None:
    with pytest.raises(UsageError):
        login(registry, user, password)


def test_a_reference_may_be_pushed_by_its_parts(server: FaultyRegistry, store: Store, image: Image) -> None:
    assert push(Reference(server.host, "mine/app", "3"), image=image, store=store) == image.manifest
    with pytest.raises(UsageError):
        push(Reference(server.host, "../x", "3"), image=image, store=store)
