"""Ways to Debian's registry that take more than an address: a proxy, and certificates of the client's own."""

from __future__ import annotations

import base64
import contextlib
import select
import socket
import socketserver
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import pytest

from sandbox.errors import RegistryError
from sandbox.image import Image, Store, pull, push, tags
from tests.live.test_registry_debian import QUICK, image, nobodys_files, other, serving, store
from tests.support import needs

__all__ = ["image", "nobodys_files", "store"]
pytestmark = [pytest.mark.unprivileged, needs("program:docker-registry", "program:openssl")]
NAME = "registry.example"  # which nobody but the proxy finds


Pushed = Callable[..., str]


class Tunnel(socketserver.StreamRequestHandler):
    """CONNECT, and nothing else."""

    server: Proxy

    def handle(self) -> None:
        method, target, _ = self.rfile.readline().decode().split()
        headers = dict(iter(self._header, None))
        self.server.asked.append(f"{method} {target}")
        if self.server.password is not None and headers.get("proxy-authorization") != self.server.password:
            self.wfile.write(b"HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic\r\nContent-Length: 0\r\n\r\n")
        elif method != "CONNECT" or not target.startswith(f"{NAME}:"):
            self.wfile.write(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
        else:
            with socket.create_connection(("127.0.0.1", int(target.rpartition(":")[2]))) as there:
                self.wfile.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
                self._pass_on(there)

    def _header(self) -> tuple[str, str] | None:
        name, _, value = self.rfile.readline().decode().strip().partition(": ")
        return (name.lower(), value) if name else None

    def _pass_on(self, there: socket.socket) -> None:
        other_end = {self.connection: there, there: self.connection}
        with contextlib.suppress(ConnectionError):
            while True:
                for sock in select.select(list(other_end), [], [])[0]:
                    if not (data := sock.recv(1 << 16)):
                        return
                    other_end[sock].sendall(data)


class Proxy(socketserver.ThreadingTCPServer):
    daemon_threads = True

    def __init__(self, password: str | None = None) -> None:
        super().__init__(("127.0.0.1", 0), Tunnel)
        self.asked: list[str] = []
        self.password = None if password is None else "Basic " + base64.b64encode(password.encode()).decode()
        self.thread = threading.Thread(target=self.serve_forever, args=(0.01,))

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}"

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.shutdown()
        self.thread.join()
        self.server_close()


@pytest.fixture
def certificates(tmp_path: Path) -> Path:
    """An authority, and what it has signed: for the registry, by both its names, and for a client."""
    (tmp_path / "san").write_text(f"subjectAltName=IP:127.0.0.1,DNS:{NAME}\n")
    new = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes"
    for line in (
        f"req -x509 {new} -keyout ca.key -out ca.crt -days 2 -subj /CN=test-ca",
        f"req {new} -keyout server.key -out server.csr -subj /CN=registry",
        "x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -out server.crt -days 2 -extfile san",
        f"req {new} -keyout client.key -out client.csr -subj /CN=client",
        "x509 -req -in client.csr -CA ca.crt -CAkey ca.key -CAcreateserial -out client.crt -days 2",
    ):
        subprocess.run(["openssl", *line.split()], cwd=tmp_path, check=True, capture_output=True)
    return tmp_path


@pytest.fixture
def pushed(store: Store, image: Image) -> Pushed:
    """What pushes the image to a place."""
    return lambda place, **more: str(push(place, image=image, store=store, patience=QUICK, **more))


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "no_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where certificates of hosts lie, as Docker has them."""
    monkeypatch.setattr("sandbox.image._http._CERTIFICATES", (str(tmp_path / "certs.d"),))
    return tmp_path / "certs.d"


def keep(directory: Path, certificates: Path, *, client: str = "", key: str = "client.key") -> None:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "ca.crt").write_bytes((certificates / "ca.crt").read_bytes())
    if client:
        (directory / "client.cert").write_bytes((certificates / client).read_bytes())
        (directory / "client.key").write_bytes((certificates / key).read_bytes())


@contextlib.contextmanager
def tls(tmp_path: Path, **more: Any) -> Iterator[str]:
    with serving(tmp_path, tls={"certificate": str(tmp_path / "server.crt"), "key": str(tmp_path / "server.key"), **more}) as host:
        yield host


def test_a_client_shows_its_certificate(tmp_path: Path, store: Store, image: Image, certificates: Path, known: Path) -> None:
    with tls(tmp_path, clientcas=[str(certificates / "ca.crt")]) as host:
        keep(known / host, certificates)
        with pytest.raises(RegistryError, match="certificate"):
            push(f"{host}/a:1", image=image, store=store, patience=QUICK)
        keep(known / host, certificates, client="client.crt")
        push(f"{host}/a:1", image=image, store=store, patience=QUICK)
        assert pull(f"{host}/a:1", store=other(tmp_path), patience=QUICK, platform="linux/amd64").id == image.id
        assert other(tmp_path).verify() == []


def test_a_pair_that_is_none_is_told(certificates: Path, known: Path) -> None:
    keep(known / "127.0.0.1:1", certificates, client="client.crt", key="server.key")
    with pytest.raises(ValueError, match=r"client\.cert"):
        tags("127.0.0.1:1/a", patience=QUICK)
    (known / "127.0.0.1:1" / "client.key").unlink()
    with pytest.raises(ValueError, match=r"client\.(cert|key)"):
        tags("127.0.0.1:1/a", patience=QUICK)


@pytest.mark.parametrize(
    ("password", "form"), [(None, "http://{}"), (None, "{}"), ("user:pass word", "http://user:pass%20word@{}"), ("user:p", "user:p@{}")]
)
def test_a_proxy_leads_there(pushed: Pushed, certificates: Path, monkeypatch: pytest.MonkeyPatch, password: str | None, form: str) -> None:
    ca, tmp_path = certificates / "ca.crt", certificates
    with tls(tmp_path) as host, Proxy(password) as proxy:
        port = host.rpartition(":")[2]
        monkeypatch.setenv("https_proxy", form.format(proxy.address))
        manifest = pushed(f"{NAME}:{port}/a:1", ca=ca)
        assert str(pull(f"{NAME}:{port}/a:1", store=other(tmp_path), patience=QUICK, ca=ca, platform="linux/amd64").manifest) == manifest
        assert set(proxy.asked) == {f"CONNECT {NAME}:{port}"}
        asked = len(proxy.asked)
        assert tags(f"{host}/a", patience=QUICK, ca=ca) == ["1"]
        assert len(proxy.asked) == asked, "nothing goes through it to this machine"


def test_a_client_shows_its_certificate_through_a_proxy(pushed: Pushed, certificates: Path, known: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tls(certificates, clientcas=[str(certificates / "ca.crt")]) as host, Proxy() as proxy:
        name = f"{NAME}:{host.rpartition(':')[2]}"
        keep(known / name, certificates, client="client.crt")
        monkeypatch.setenv("HTTPS_PROXY", f"http://{proxy.address}")
        pushed(f"{name}/a:1")
        assert tags(f"{name}/a", patience=QUICK) == ["1"]


def test_a_proxy_that_refuses_is_told_without_its_password(tmp_path: Path, certificates: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Proxy("user:right") as proxy:
        monkeypatch.setenv("https_proxy", f"http://user:wrong@{proxy.address}")
        with pytest.raises(RegistryError, match=r"proxy.*407") as caught:
            tags(f"{NAME}:5000/a", patience=QUICK, ca=certificates / "ca.crt")
        assert "wrong" not in str(caught.value)
    with pytest.raises(RegistryError, match="proxy"):
        tags(f"{NAME}:5000/a", patience=QUICK, ca=certificates / "ca.crt")
    monkeypatch.setenv("https_proxy", "socks5://127.0.0.1:1")
    with pytest.raises(ValueError, match="proxy"):
        tags(f"{NAME}:5000/a", patience=QUICK, ca=certificates / "ca.crt")


def test_no_proxy_is_for_whom_it_names(certificates: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Proxy() as proxy:
        monkeypatch.setenv("https_proxy", f"http://{proxy.address}")
        monkeypatch.setenv("no_proxy", f".example,{NAME}")
        with pytest.raises(RegistryError):
            tags(f"{NAME}:5000/a", patience=QUICK, ca=certificates / "ca.crt")
        assert proxy.asked == []
