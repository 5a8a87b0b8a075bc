"""Pulling into a store from a registry that errs and lies: what comes is whole and what was asked for, or nothing comes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sandbox.errors import ImageError, ImageNotFoundError, RegistryError, UsageError
from sandbox.image import Digest, Patience, Progress, Stage, Store, pull
from tests.faulty_registry import (
    CONFIG,
    INDEX,
    LAYER,
    MANIFEST,
    FaultyRegistry,
    Handler,
    changed,
    digest_of,
    redirect,
    served,
    status,
    tar_of,
    truncated,
)

pytestmark = pytest.mark.unprivileged
QUICK = Patience(connect_s=5, answer_s=20, stall_s=20, attempts=4, first_delay_s=0.001, most_delay_s=0.002)
ONE, TWO = tar_of({"one": os.urandom(300_000)}), tar_of({"two": b"2", "etc/x": b"y"})


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
        registry.put_image("app", "1", [ONE, TWO])
        yield registry


def get(server: FaultyRegistry, store: Store, name: str = "app:1", **options: Any) -> Any:
    return pull(f"{server.host}/{name}", store=store, **{"patience": QUICK, "platform": "linux/amd64", **options})


def blobs(server: FaultyRegistry) -> list[str]:
    return [each.path.rpartition("/")[2] for each in server.asked("GET", "/blobs/")]


def entry(server: FaultyRegistry, tag: str, **more: Any) -> dict[str, Any]:
    data, kind = server.manifests[f"app:{tag}"]
    return {"mediaType": kind, "digest": digest_of(data), "size": len(data), **more}


def index(*manifests: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"schemaVersion": 2, "mediaType": INDEX, "manifests": list(manifests), **more}


def on(architecture: str, **more: Any) -> dict[str, Any]:
    return {"platform": {"os": "linux", "architecture": architecture, **more}}


def test_an_image_is_pulled_and_unpacked(server: FaultyRegistry, store: Store) -> None:
    image = get(server, store)
    assert image.names == (f"{server.host}/app:1",)
    assert [sorted(os.listdir(layer)) for layer in image.layers] == [["one"], ["etc", "two"]]
    assert Path(image.layers[0], "one").stat().st_size == 300_000
    assert store.get(f"{server.host}/app:1") == image
    assert store.verify() == []


def test_what_is_there_is_not_fetched_again(server: FaultyRegistry, store: Store) -> None:
    get(server, store)
    server.put_image("app", "2", [ONE, tar_of({"three": b"3"})])
    before = len(blobs(server))
    get(server, store)
    assert len(blobs(server)) == before
    get(server, store, "app:2")
    assert len(blobs(server)) == before + 2  # a layer and a configuration


def test_a_digest_needs_no_network_when_it_is_there(server: FaultyRegistry, store: Store) -> None:
    image = get(server, store)
    before = len(server.requests)
    assert get(server, store, f"app@{image.manifest}").id == image.id
    assert len(server.requests) == before


def test_a_digest_is_that_image_or_none(server: FaultyRegistry, store: Store) -> None:
    one = Digest.parse(server.put_image("app", "2", [ONE]))
    assert get(server, store, f"app:1@{one}").manifest == one
    wrong = Digest.of(b"x")
    with pytest.raises(ImageNotFoundError):
        get(server, store, f"app@{wrong}")
    server.manifests[f"app@{wrong}"] = server.manifests["app:1"]
    with pytest.raises(ImageError, match="has sent something else"):
        get(server, store, f"app@{wrong}")


def test_what_is_not_there_is_told(server: FaultyRegistry, store: Store) -> None:
    with pytest.raises(ImageNotFoundError, match="app:none"):
        get(server, store, "app:none")
    with pytest.raises(UsageError):
        pull("no//name", store=store)
    assert not os.path.exists(store.path) or store.images() == []


# ---- Platforms ----


def test_of_an_index_our_platform_is_taken(server: FaultyRegistry, store: Store) -> None:
    server.put_image("app", "arm", [TWO], architecture="arm64")
    attestation = entry(server, "1", annotations={"vnd.docker.reference.type": "attestation-manifest"}, **on("amd64"))
    pinned = server.put_manifest("app", "multi", index(attestation, entry(server, "arm", **on("arm64", variant="v8")), entry(server, "1", **on("amd64"))), INDEX)
    assert len(get(server, store, "app:multi").layers) == 2
    assert get(server, store, "app:multi", platform="linux/arm64").config.platform.architecture == "arm64"
    with pytest.raises(ImageError, match="not built for linux/s390x"):
        get(server, store, "app:multi", platform="linux/s390x")
    image = get(server, store, f"app@{pinned}")
    assert store.get(f"{server.host}/app@{pinned}") == image


def test_an_image_of_another_platform_is_refused(server: FaultyRegistry, store: Store) -> None:
    with pytest.raises(ImageError, match="it is for linux/amd64, not linux/arm64"):
        get(server, store, platform="linux/arm64")
    server.put_manifest("app", "lies", index(entry(server, "1", **on("arm64"))), INDEX)
    with pytest.raises(ImageError, match="it is for linux/amd64"):
        get(server, store, "app:lies", platform="linux/arm64")


def test_an_index_within_an_index_is_followed_a_little(server: FaultyRegistry, store: Store) -> None:
    server.put_manifest("app", "a", index(entry(server, "1", **on("amd64"))), INDEX)
    server.put_manifest("app", "b", index(entry(server, "a", **on("amd64"))), INDEX)
    server.put_manifest("app", "c", index(entry(server, "b", **on("amd64"))), INDEX)
    assert get(server, store, "app:b").layers
    with pytest.raises(ImageError, match="indexes in indexes"):
        get(server, store, "app:c")


# ---- What lies ----


def manifest_of(server: FaultyRegistry, **changes: Any) -> dict[str, Any]:
    return {**json.loads(server.manifests["app:1"][0]), **changes}


def test_a_manifest_that_is_an_index_too_is_refused(server: FaultyRegistry, store: Store) -> None:
    """CVE-2021-41190."""
    server.put_manifest("app", "both", manifest_of(server, manifests=[entry(server, "1")]))
    with pytest.raises(ImageError, match="manifest and as an index"):
        get(server, store, "app:both")
    server.put_manifest("app", "other", manifest_of(server), INDEX)
    with pytest.raises(ImageError, match="it came as"):
        get(server, store, "app:other")


@pytest.mark.parametrize("digest", ["sha256:../../x", "sha256:" + "a" * 63, "md5:" + "a" * 32, "sha256:" + "A" * 64, "", None, 3, "/etc/passwd", "sha256:" + "a" * 64 + "\n"])
def test_what_is_no_digest_is_refused(server: FaultyRegistry, store: Store, digest: object) -> None:
    layer = {"mediaType": LAYER, "size": 1, "digest": digest}
    server.put_manifest("app", "bad", manifest_of(server, layers=[layer]))
    with pytest.raises(ImageError):
        get(server, store, "app:bad")
    server.put_manifest("app", "bad", index({**layer, "mediaType": MANIFEST, **on("amd64")}), INDEX)
    with pytest.raises(ImageError):
        get(server, store, "app:bad")
    assert all("passwd" not in each.path and ".." not in each.path for each in server.requests)


@pytest.mark.parametrize("change", [lambda body: body[:-1] + b"x", lambda body: body + b"x", lambda body: body[:-1], lambda body: b""])
@pytest.mark.parametrize("what", ["layer", "configuration"])
def test_other_content_than_promised_is_refused(server: FaultyRegistry, store: Store, change: Any, what: str) -> None:
    document = manifest_of(server)
    digest = document["config"]["digest"] if what == "configuration" else document["layers"][0]["digest"]
    server.plan("GET", digest, changed(change), forever=True)
    with pytest.raises(ImageError):
        get(server, store)
    assert store.images() == []
    assert not store.has_blob(Digest.parse(digest))


def test_a_wrong_diff_id_is_refused(server: FaultyRegistry, store: Store) -> None:
    document = {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [digest_of(TWO), digest_of(ONE)]}}
    config = {"mediaType": CONFIG, **server.put_blob(json.dumps(document).encode())}
    server.put_manifest("app", "swapped", manifest_of(server, config=config))
    with pytest.raises(ImageError, match="unpacked, it is"):
        get(server, store, "app:swapped")
    assert store.images() == []


@pytest.mark.parametrize(
    ("changes", "why"),
    [({"layers": []}, "0 layers"), ({"config": {"mediaType": "application/vnd.cncf.helm.config.v1+json", "size": 2, "digest": digest_of(b"{}")}}, "no image"),
     ({"config": {"mediaType": CONFIG, "size": 5 << 20, "digest": digest_of(b"{}")}}, "configuration of 5242880 bytes"),
     ({"layers": [{"mediaType": "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", "size": 1, "digest": digest_of(b"")}] * 2}, "cannot be|can be"),
     ({"layers": [{"mediaType": LAYER, "size": size, "digest": digest_of(b"")} for size in (1, 2)]}, "two sizes"), ({"schemaVersion": 1}, "schema version")],
)  # fmt: skip
def test_manifests_that_make_no_sense_are_refused(server: FaultyRegistry, store: Store, changes: dict[str, Any], why: str) -> None:
    server.put_manifest("app", "bad", manifest_of(server, **changes))
    with pytest.raises(ImageError, match=why):
        get(server, store, "app:bad")


def test_foreign_urls_of_layers_are_not_followed(server: FaultyRegistry, store: Store) -> None:
    """CVE-2020-15157: `urls` of a layer would have us ask any host."""
    document = manifest_of(server)
    document["layers"][0]["urls"] = [f"http://127.0.0.2:{server.host.rpartition(':')[2]}/x"]
    server.put_manifest("app", "urls", document)
    assert get(server, store, "app:urls")
    assert all(each.path.startswith("/v2/") for each in server.requests)


def test_empty_and_repeated_layers_are_layers(server: FaultyRegistry, store: Store) -> None:
    empty = tar_of({})
    server.put_image("app", "same", [empty, ONE, empty, ONE, TWO])
    image = get(server, store, "app:same")
    assert len(image.layers) == 5
    assert len(set(image.layers)) == 3
    assert len(blobs(server)) == 4


# ---- What breaks ----


def test_a_truncated_layer_is_gone_on_with(server: FaultyRegistry, store: Store) -> None:
    server.plan("GET", "/blobs/", served, *[truncated(100_000)] * 3)
    news: list[Progress] = []
    image = get(server, store, progress=news.append)
    assert Path(image.layers[0], "one").stat().st_size == 300_000
    ranges = [each.headers["range"] for each in server.asked("GET", "/blobs/") if "range" in each.headers]
    assert ranges
    assert all(int(text.partition("=")[2].partition("-")[0]) > 0 for text in ranges)
    assert any(each.stage is Stage.RETRYING for each in news)


def test_a_server_without_parts_gets_there_too(server: FaultyRegistry, store: Store) -> None:
    server.ranges = False
    server.plan("GET", "/blobs/", served, truncated(100_000), truncated(200_000))
    assert get(server, store).layers


def test_a_broken_pull_is_taken_up_by_the_next(server: FaultyRegistry, store: Store) -> None:
    layer = manifest_of(server)["layers"][0]["digest"]
    server.plan("GET", layer, truncated(200_000), *[status(404)])
    with pytest.raises(RegistryError):
        get(server, store, connections=1)
    assert store.images() == []
    get(server, store)
    assert server.asked("GET", layer)[-1].headers["range"] == "bytes=200000-" + str(manifest_of(server)["layers"][0]["size"] - 1)


def test_a_part_that_was_no_good_is_fetched_anew(server: FaultyRegistry, store: Store) -> None:
    layer = manifest_of(server)["layers"][0]["digest"]
    size = manifest_of(server)["layers"][0]["size"]
    server.plan("GET", layer, lambda handler: handler.reply(200, b"x" * 1000, promise=size))
    assert get(server, store).layers
    assert [each.headers.get("range", "").partition("-")[0] for each in server.asked("GET", layer)] == ["", "bytes=1000", ""]


def test_a_blob_may_be_on_another_host(server: FaultyRegistry, store: Store) -> None:
    with FaultyRegistry("127.0.0.2") as elsewhere:
        elsewhere.blobs, elsewhere.repository_blobs = server.blobs, server.repository_blobs
        server.require, server.anonymous = "bearer", True
        server.plan("GET", "/blobs/", redirect(f"{elsewhere.url}/"), forever=True)
        elsewhere.plan("GET", "/blobs/", served, truncated(1000))
        assert get(server, store).layers
        assert len(elsewhere.requests) >= 3
        assert all(each.secret is None for each in elsewhere.requests)


def test_the_first_failure_ends_all(server: FaultyRegistry, store: Store) -> None:
    server.put_image("app", "many", [tar_of({f"f{number}": os.urandom(1000)}) for number in range(30)])
    server.plan("GET", "/blobs/", served, status(403), forever=True)
    with pytest.raises(RegistryError, match="access denied"):
        get(server, store, "app:many")
    assert len(blobs(server)) < 20
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("sandbox-pull", "sandbox-unpack"))]


def test_what_progress_raises_ends_it(server: FaultyRegistry, store: Store) -> None:
    def stop(news: Progress) -> None:
        if news.stage is Stage.DOWNLOADING and news.done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        get(server, store, progress=stop)
    assert store.images() == []
    assert get(server, store).layers


def test_progress_tells_of_each_layer(server: FaultyRegistry, store: Store) -> None:
    news: list[Progress] = []
    image = get(server, store, progress=news.append)
    assert news[0] == Progress(Stage.RESOLVED, image.manifest, 0, len(server.manifests["app:1"][0]))
    for layer in manifest_of(server)["layers"]:
        mine = [each for each in news if each.digest == Digest.parse(layer["digest"])]
        assert [each.stage for each in mine if each.stage is not Stage.DOWNLOADING] == [Stage.DOWNLOADED, Stage.UNPACKING, Stage.UNPACKED]
        assert max(each.done for each in mine) == layer["size"] == mine[0].total
    again: list[Progress] = []
    get(server, store, progress=again.append)
    assert {each.stage for each in again} == {Stage.RESOLVED, Stage.PRESENT}


def test_several_pulls_at_once_fetch_each_blob_once(server: FaultyRegistry, tmp_path: Path) -> None:
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(get(server, Store(tmp_path / "store")))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1
    assert len(found) == 6
    assert len(blobs(server)) == 3


# ---- Mirrors ----


def test_a_mirror_is_asked_first(server: FaultyRegistry, store: Store) -> None:
    with FaultyRegistry() as mirror:
        mirror.put_image("app", "1", [ONE, TWO])
        image = get(server, store, mirrors=[mirror.host])
        assert image.names == (f"{server.host}/app:1",)
        assert blobs(mirror)
    assert not server.requests


def test_what_a_mirror_lacks_comes_from_the_registry(server: FaultyRegistry, store: Store) -> None:
    with FaultyRegistry() as mirror:
        mirror.put_image("app", "1", [ONE, TWO])
        mirror.repository_blobs["app"].clear()
        assert get(server, store, mirrors=[mirror.host]).layers
    assert len(blobs(server)) == 3


def test_a_mirror_that_is_down_is_asked_once(server: FaultyRegistry, store: Store) -> None:
    news: list[Progress] = []
    with socket.socket() as held:  # a port that nobody else gets, and where nobody listens
        held.bind(("127.0.0.1", 0))
        assert get(server, store, mirrors=[f"127.0.0.1:{held.getsockname()[1]}"], progress=news.append).layers
    assert len([each for each in news if each.stage is Stage.RETRYING]) == 1


def test_a_mirror_cannot_change_what_a_digest_names(server: FaultyRegistry, store: Store) -> None:
    pinned = digest_of(server.manifests["app:1"][0])
    with FaultyRegistry() as mirror:
        mirror.manifests[f"app@{pinned}"] = (b"{}", MANIFEST)
        assert str(get(server, store, f"app@{pinned}", mirrors=[mirror.host]).manifest) == pinned


PULLING = """
import resource, sys
from sandbox.image import Store, pull
pull(sys.argv[1], store=Store(sys.argv[2]), platform="linux/amd64")
own = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))  # getrusage tells of the time before execve, too
print(int(own.split()[1]) >> 10, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss >> 10)
"""


def test_memory_stays_flat(server: FaultyRegistry, store: Store) -> None:
    """Of a layer of 120 MiB and a small one: what comes is passed on in pieces."""
    server.put_image("app", "big", [tar_of({"big": bytes(120 << 20)}), ONE], level=0)
    done = subprocess.run([sys.executable, "-c", PULLING, f"{server.host}/app:big", store.path], stdout=subprocess.PIPE, text=True, check=True)
    ours, workers = map(int, done.stdout.split())
    assert ours < 100
    assert workers < 100


def test_whoever_is_killed_while_pulling_leaves_a_store_that_is_whole(server: FaultyRegistry, store: Store) -> None:
    """At requests and within blobs; the next pull goes on, the last one ends it."""
    server.put_image("app", "many", [tar_of({f"f{number}": os.urandom(200_000)}) for number in range(6)])
    clients: list[subprocess.Popen[bytes]] = []

    def kill_after(count: int) -> Callable[[Handler], None]:
        def act(handler: Handler) -> None:
            truncated(count)(handler)
            handler.wfile.flush()
            clients[-1].kill()

        return act

    for count in (0, 65_536, 190_000):
        server.plan("GET", "/blobs/", served, kill_after(count))
        clients.append(subprocess.Popen([sys.executable, "-c", PULLING, f"{server.host}/app:many", store.path], stdout=subprocess.DEVNULL))
        assert clients[-1].wait() == -signal.SIGKILL
        assert store.verify() == []
        assert store.images() == []
    image = get(server, store, "app:many")
    assert len(image.layers) == 6
    assert store.verify() == []
