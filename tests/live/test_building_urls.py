"""ADD of URLs, against a server: what it gives is what is kept, bounded and checked; nothing is asked without a network."""

from __future__ import annotations

import functools
import hashlib
import io
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from sandbox.builder import _fetch, build
from sandbox.builder._tree import Tree
from sandbox.errors import DockerfileError
from sandbox.image import Store

pytestmark = pytest.mark.unprivileged
CONTENT = b"fetched\n"
MODIFIED = ("Last-Modified", "Tue, 01 Jan 2019 00:00:00 GMT")


@functools.cache  # it has the time in it
def archive() -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as tar:
        info = tarfile.TarInfo("dir/inside")
        info.size = len(CONTENT)
        tar.addfile(info, io.BytesIO(CONTENT))
    return data.getvalue()


class Handler(BaseHTTPRequestHandler):
    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        pages = {"/file.txt": CONTENT, "/a.tar.gz": archive(), "/": CONTENT, "/sp%20ace": CONTENT, "/long": b"x" * (3 << 20)}
        if self.path == "/moved":
            self.answer(302, b"", ("Location", "/file.txt"))
        elif self.path == "/file":
            self.answer(302, b"", ("Location", "file:///etc/passwd"))
        elif self.path == "/round":
            self.answer(302, b"", ("Location", "/round"))
        elif self.path == "/short":
            self.answer(200, CONTENT, MODIFIED, length=len(CONTENT) + 5)
            self.close_connection = True
        elif self.path in pages:
            self.answer(200, pages[self.path], MODIFIED)
        else:
            self.answer(404, b"")

    def answer(self, status: int, body: bytes, *headers: tuple[str, str], length: int | None = None) -> None:
        self.send_response(status)
        for name, value in (("Content-Length", str(len(body) if length is None else length)), *headers):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
        """Say nothing."""


@pytest.fixture
def server() -> Iterator[tuple[str, list[str]]]:
    asked: list[str] = []
    with ThreadingHTTPServer(("127.0.0.1", 0), type("Asked", (Handler,), {"asked": asked})) as http:
        thread = threading.Thread(target=http.serve_forever, args=(0.05,))
        thread.start()
        yield f"http://127.0.0.1:{http.server_address[1]}", asked
        http.shutdown()
        thread.join()


@pytest.fixture
def make(tmp_path):
    store = Store(tmp_path / "store")
    (tmp_path / "context").mkdir()

    def made(text: str, network: str | None = "host") -> Tree:
        image = build(tmp_path / "context", dockerfile=f"FROM scratch\n{text}\n".encode(), store=store, network=network)
        return Tree(list(image.layers), layered=True)

    return made


def test_a_url_is_a_file_that_only_root_may_read_with_the_servers_time(server, make) -> None:
    url, _ = server
    tree = make(f"ADD {url}/file.txt {url}/sp%20ace /in/\nADD {url}/moved /other\nADD --chmod=644 {url}/file.txt /open")
    assert tree.read("/in/file.txt", 100) == tree.read("/in/sp ace", 100) == tree.read("/other", 100) == CONTENT
    found = [entry.status for path in ("/in/file.txt", "/open") if (entry := tree.find(path)) is not None]
    assert [(status.st_mode & 0o777, int(status.st_mtime)) for status in found] == [(0o600, 1546300800), (0o644, 1546300800)]


def test_a_checksum_is_checked(server, make) -> None:
    url, _ = server
    good = hashlib.sha256(CONTENT).hexdigest()
    assert make(f"ADD --checksum=sha256:{good} {url}/file.txt /f").read("/f", 100) == CONTENT
    with pytest.raises(DockerfileError, match=f"sha256:{good}, not sha256:{'0' * 64}"):
        make(f"ADD --checksum=sha256:{'0' * 64} {url}/file.txt /f")
    with pytest.raises(DockerfileError, match="64 digits"):
        make(f"ADD --checksum=md5:1 {url}/file.txt /f")


def test_an_archive_is_unpacked_only_where_that_is_asked(server, make) -> None:
    url, _ = server
    tree = make(f"ADD {url}/a.tar.gz /kept/\nADD --unpack=true {url}/a.tar.gz /out/")
    assert tree.read("/kept/a.tar.gz", 10_000) == archive()
    assert tree.read("/out/dir/inside", 100) == CONTENT
    with pytest.raises(DockerfileError):
        make(f"ADD --unpack=true {url}/file.txt /f")


@pytest.mark.parametrize(
    ("path", "words"), [("missing", "404"), ("round", "more than 5 redirections"), ("file", "not fetched"), ("short", "IncompleteRead|incomplete|bytes read"), ("", "ends in no file name")]
)
def test_what_cannot_be_had_is_told_at_its_line(server, make, path: str, words: str) -> None:
    url, _ = server
    with pytest.raises(DockerfileError, match=words) as told:
        make(f"ADD {url}/{path} /d/")
    assert told.value.line == 2


def test_nobody_is_asked_without_a_network(server, make) -> None:
    url, asked = server
    with pytest.raises(DockerfileError, match="no network"):
        make(f"ADD {url}/file.txt /f", network=None)
    assert asked == []


def test_more_than_the_bound_is_not_kept(server, make, monkeypatch) -> None:
    url, _ = server
    monkeypatch.setattr(_fetch, "MAX_FETCHED", 2 << 20)
    with pytest.raises(DockerfileError, match="more than 2 MiB"):
        make(f"ADD {url}/long /f")


def test_the_same_content_makes_the_same_layer(server, make) -> None:
    url, asked = server
    make(f"ADD {url}/file.txt /f")
    make(f"ADD {url}/file.txt /f")
    assert asked == ["/file.txt"] * 2  # what a server says may have changed
