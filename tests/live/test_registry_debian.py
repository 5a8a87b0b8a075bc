"""Against the registry that Debian ships (`docker-registry`), plain, with TLS, with passwords; and with skopeo on the other side."""

from __future__ import annotations

import json
import os
import queue
import re
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final

import pytest

from sandbox.errors import ImageError, RegistryError
from sandbox.image import Credentials, Image, Patience, Store, login, pull, push, tags
from tests.faulty_registry import FaultyRegistry, tar_of
from tests.support import needs, patience

pytestmark = [pytest.mark.unprivileged, needs("program:docker-registry")]
QUICK: Final = Patience(attempts=3, first_delay_s=0.05)
USER: Final = Credentials("user", "secret")
LISTENING: Final = re.compile(rb"listening on (127\.0\.0\.1:[0-9]+)")


@pytest.fixture(autouse=True)
def nobodys_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))


@contextmanager
def serving(directory: Path, **http: Any) -> Iterator[str]:
    """The real registry, with what it keeps below *directory*; its host and port."""
    auth = http.pop("auth", None)
    config = {"version": 0.1, "log": {"level": "info", "accesslog": {"disabled": True}}, "storage": {"filesystem": {"rootdirectory": str(directory / "registry")}}}
    config |= {"http": {"addr": "127.0.0.1:0", **http}} | ({"auth": auth} if auth else {})
    (directory / "config.yml").write_text(json.dumps(config))  # JSON is YAML
    server = subprocess.Popen(["docker-registry", "serve", str(directory / "config.yml")], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    reader = threading.Thread(target=_read, args=(server.stderr, lines))
    reader.start()
    try:
        while not (place := LISTENING.search(line := lines.get(timeout=patience(60)))):
            assert line, "docker-registry has ended"
        yield place[1].decode()
    finally:
        server.kill()
        server.wait()
        reader.join()


def _read(pipe: IO[bytes], lines: queue.SimpleQueue[bytes]) -> None:
    """What it logs, to its end; an empty line is the end."""
    with pipe:
        for line in pipe:
            lines.put(line)
    lines.put(b"")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def image(store: Store) -> Image:
    with FaultyRegistry() as source:
        source.put_image("app", "1", [tar_of({"one": os.urandom(200_000)}), tar_of({"two": b"2"})], config={"Cmd": ["/two"], "Env": ["A=b"]})
        return pull(f"{source.host}/app:1", store=store, platform="linux/amd64")


def other(tmp_path: Path) -> Store:
    return Store(tmp_path / "other")


def test_what_was_pushed_is_pulled_back(tmp_path: Path, store: Store, image: Image) -> None:
    with serving(tmp_path) as host:
        assert push(f"{host}/team/app:1", image=image, store=store, patience=QUICK) == image.manifest
        push(f"{host}/team/app:2", image=image, store=store, patience=QUICK)
        assert sorted(tags(f"{host}/team/app")) == ["1", "2"]
        again = pull(f"{host}/team/app@{image.manifest}", store=other(tmp_path), patience=QUICK, platform="linux/amd64")
    assert (again.id, again.config) == (image.id, image.config)
    assert (Path(again.layers[0]) / "one").read_bytes() == (Path(image.layers[0]) / "one").read_bytes()
    assert other(tmp_path).verify() == []


def test_a_layer_of_another_repository_is_mounted(tmp_path: Path, store: Store, image: Image) -> None:
    with serving(tmp_path) as host:
        push(f"{host}/a:1", image=image, store=store)
        store.tag(image.id, f"{host}/a:1")
        stages: list[str] = []
        push(f"{host}/b/c:1", image=image, store=store, progress=lambda news: stages.append(news.stage))
        assert stages.count("mounted") == 2
        assert pull(f"{host}/b/c:1", store=other(tmp_path), platform="linux/amd64").id == image.id


def test_pieces_are_put_together(tmp_path: Path, store: Store, image: Image, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sandbox.image._upload.Uploader.__init__.__defaults__", (50_000,))
    with serving(tmp_path) as host:
        push(f"{host}/a:1", image=image, store=store, patience=QUICK)
        assert pull(f"{host}/a:1", store=other(tmp_path), platform="linux/amd64").id == image.id


@pytest.fixture
def certificates(tmp_path: Path) -> Path:
    """A CA, and what it has signed for 127.0.0.1."""
    (tmp_path / "san").write_text("subjectAltName=IP:127.0.0.1\n")
    for line in (
        "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout ca.key -out ca.crt -days 2 -subj /CN=test-ca",
        "req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout server.key -out server.csr -subj /CN=127.0.0.1",
        "x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -out server.crt -days 2 -extfile san",
    ):
        subprocess.run(["openssl", *line.split()], cwd=tmp_path, check=True, capture_output=True)
    return tmp_path


@needs("program:openssl")
def test_tls_needs_a_known_authority(tmp_path: Path, store: Store, image: Image, certificates: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tls = {"certificate": str(certificates / "server.crt"), "key": str(certificates / "server.key")}
    with serving(tmp_path, tls=tls) as host:
        with pytest.raises(RegistryError, match=r"not signed by anybody who is trusted here.*ca=FILE"):
            push(f"{host}/a:1", image=image, store=store, patience=QUICK)  # and no plain http instead, though this is loopback
        push(f"{host}/a:1", image=image, store=store, patience=QUICK, ca=certificates / "ca.crt")
        assert pull(f"{host}/a:1", store=other(tmp_path), patience=QUICK, ca=certificates / "ca.crt", platform="linux/amd64").id == image.id
        directory = tmp_path / "certs.d" / host
        directory.mkdir(parents=True)
        (directory / "ca.crt").write_bytes((certificates / "ca.crt").read_bytes())
        monkeypatch.setattr("sandbox.image._http._CERTIFICATES", (str(tmp_path / "certs.d"),))
        assert tags(f"{host}/a") == ["1"]


@needs("program:htpasswd")
def test_a_password_is_asked_for(tmp_path: Path, store: Store, image: Image) -> None:
    line = subprocess.run(["htpasswd", "-nbB", USER.username, USER.password], stdout=subprocess.PIPE, text=True, check=True).stdout
    (tmp_path / "htpasswd").write_text(line)
    with serving(tmp_path, auth={"htpasswd": {"realm": "test", "path": str(tmp_path / "htpasswd")}}) as host:
        with pytest.raises(RegistryError, match=f"sandbox login {host}"):
            push(f"{host}/a:1", image=image, store=store, patience=QUICK)
        with pytest.raises(RegistryError, match="access denied"):
            login(host, USER.username, "wrong", patience=QUICK)
        login(host, USER.username, USER.password, patience=QUICK)
        push(f"{host}/a:1", image=image, store=store, patience=QUICK)
        assert pull(f"{host}/a:1", store=other(tmp_path), platform="linux/amd64").id == image.id


def skopeo(*arguments: str) -> None:
    policy = ["--insecure-policy", "--tmpdir", "/tmp"]
    done = subprocess.run(["skopeo", *policy, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert done.returncode == 0, done.stdout


@needs("program:skopeo")
def test_skopeo_reads_what_we_push_and_we_what_it_pushes(tmp_path: Path, store: Store, image: Image) -> None:
    with serving(tmp_path) as host:
        push(f"{host}/ours:1", image=image, store=store)
        layout = f"oci:{tmp_path}/layout:1"
        skopeo("copy", "--src-tls-verify=false", f"docker://{host}/ours:1", layout)
        skopeo("copy", "--dest-tls-verify=false", "--format", "v2s2", layout, f"docker://{host}/theirs:docker")
        skopeo("copy", "--dest-tls-verify=false", layout, f"docker://{host}/theirs:oci")
        skopeo("copy", "--dest-tls-verify=false", "--dest-compress-format", "zstd", "--dest-compress", f"dir:{_as_directory(tmp_path, layout)}", f"docker://{host}/theirs:zstd")
        for tag in ("docker", "oci", "zstd"):
            found = pull(f"{host}/theirs:{tag}", store=other(tmp_path), platform="linux/amd64")
            assert found.config.diff_ids == image.config.diff_ids, tag
            assert found.settings == image.settings


def _as_directory(tmp_path: Path, layout: str) -> Path:
    """Uncompressed, so that it is compressed anew."""
    skopeo("copy", "--dest-decompress", layout, f"dir:{tmp_path}/plain")
    return tmp_path / "plain"


def test_a_registry_that_is_not_there_is_told(tmp_path: Path, store: Store) -> None:
    with socket.socket() as held:  # a port that nobody else gets, and where nobody listens
        held.bind(("127.0.0.1", 0))
        with pytest.raises(ImageError, match="refused"):
            pull(f"127.0.0.1:{held.getsockname()[1]}/a:1", store=store, patience=QUICK)
