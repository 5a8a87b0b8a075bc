"""A registry on loopback that does what it should, but for the faults that a test plans: one thread a connection, everything in memory.

    with FaultyRegistry() as registry:
        registry.plan("GET", "/blobs/", truncated(100), status(503))   # the next two requests for blobs
        image = registry.put_image("app", "1", layers=[...])

`registry.requests` is what it was asked, in order. A second one at another address of loopback (``FaultyRegistry("127.0.0.2")``) is another host.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import re
import socketserver
import tarfile
import threading
from collections.abc import Callable, Iterable
from http.server import BaseHTTPRequestHandler
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

from attrs import define, field, frozen

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
Action = Callable[["Handler"], object]


def digest_of(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


@frozen
class Asked:
    """One request."""

    method: str
    path: str
    headers: dict[str, str]  # names in lower case
    body: bytes

    @property
    def secret(self) -> str | None:
        return self.headers.get("authorization")


@define
class Planned:
    method: str
    path: re.Pattern[str]
    actions: list[Action]
    forever: bool


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    registry: FaultyRegistry

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no news."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # one packet an answer: two would wait for each other (Nagle)
    server: Server

    def log_message(self, *args: object) -> None:
        """Say nothing."""

    def setup(self) -> None:
        super().setup()
        self.registry = self.server.registry
        self.registry.connections += 1

    def handle_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.asked = Asked(self.command, self.path, {name.lower(): value for name, value in self.headers.items()}, body)
        self.registry.requests.append(self.asked)
        action = self.registry.next_action(self.asked)
        if action is not None:
            action(self)
            return
        self.serve()

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = handle_any  # noqa: N815 - http.server's names

    def serve(self) -> None:
        """What a registry should do."""
        challenge = self.registry.challenge(self.asked)
        if challenge is not None:
            self.reply(401, json.dumps({"errors": [{"code": "UNAUTHORIZED", "message": "who are you"}]}).encode(), {"WWW-Authenticate": challenge})
            return
        self.registry.serve(self)

    def reply(self, code: int, body: bytes = b"", headers: dict[str, str] | None = None, *, promise: int | None = None) -> None:
        """Answer; *promise* another length than the body has."""
        self.send_response(code)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if "Content-Length" not in (headers or {}):
            self.send_header("Content-Length", str(len(body) if promise is None else promise))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        if promise is not None:
            self.wfile.flush()
            self.close_connection = True


# ---- Faults ----


def status(code: int, body: bytes = b"", **headers: str) -> Action:
    return lambda handler: handler.reply(code, body, {name.replace("_", "-"): value for name, value in headers.items()})


def redirect(url: str, code: int = 307) -> Action:
    """To *url*, or to the same path at *url* if that ends with a slash."""
    return lambda handler: handler.reply(code, b"", {"Location": url[:-1] + handler.path if url.endswith("/") else url})


def truncated(count: int) -> Action:
    """The right answer, broken off after *count* bytes of the body."""

    def act(handler: Handler) -> None:
        full, handler.wfile = handler.wfile, io.BytesIO()
        handler.serve()
        head, _, body = handler.wfile.getvalue().partition(b"\r\n\r\n")
        handler.wfile = full
        handler.wfile.write(head + b"\r\n\r\n" + body[:count])
        handler.close_connection = True

    return act


def closed(handler: Handler) -> None:
    """No answer at all."""
    handler.close_connection = True


def served(handler: Handler) -> None:
    handler.serve()


def changed(change: Callable[[bytes], bytes]) -> Action:
    """The right answer with another body of whatever length."""

    def act(handler: Handler) -> None:
        full, handler.wfile = handler.wfile, io.BytesIO()
        handler.serve()
        _, _, body = handler.wfile.getvalue().partition(b"\r\n\r\n")
        handler.wfile = full
        handler.reply(200, change(body))

    return act


def raw(head: bytes, then: Iterable[bytes] = ()) -> Action:
    """These bytes, and then more until the client has had enough of it."""

    def act(handler: Handler) -> None:
        handler.close_connection = True
        handler.wfile.write(head)
        for data in then:
            if handler.registry.closing.is_set():
                return
            handler.wfile.write(data)
            handler.wfile.flush()

    return act


def dripping(data: bytes, registry: FaultyRegistry) -> Iterable[bytes]:
    """*data* again and again, ten times a second."""
    while not registry.closing.wait(0.1):
        yield data


# ---- The registry ----


@define(eq=False)
class FaultyRegistry:
    address: str = "127.0.0.1"
    require: str = ""  # "basic", "bearer"
    users: dict[str, str] = field(factory=lambda: {"user": "secret"})
    realm: str = ""  # of tokens; "": this server
    anonymous: bool = False  # tokens for everybody
    ranges: bool = True
    token_life: int = 300
    blobs: dict[str, bytes] = field(factory=dict)
    manifests: dict[str, tuple[bytes, str]] = field(factory=dict)  # "repository:tag" or "repository@digest"
    repository_blobs: dict[str, set[str]] = field(factory=dict)
    uploads: dict[str, bytearray] = field(factory=dict)
    tokens: dict[str, list[str]] = field(factory=dict)  # token: scopes
    requests: list[Asked] = field(factory=list)
    planned: list[Planned] = field(factory=list)
    connections: int = 0
    closing: threading.Event = field(factory=threading.Event)
    server: Server = field(init=False)
    thread: threading.Thread = field(init=False)

    def __enter__(self) -> Self:
        self.server = Server((self.address, 0), Handler)
        self.server.registry = self
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.closing.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    @property
    def host(self) -> str:
        return f"{self.address}:{self.server.server_address[1]}"

    @property
    def url(self) -> str:
        return f"http://{self.host}"

    def plan(self, method: str, path: str, *actions: Action, forever: bool = False) -> None:
        """The next requests that match get these, one each; with *forever*, the last one again and again."""
        self.planned.append(Planned(method, re.compile(path), list(actions), forever))

    def next_action(self, asked: Asked) -> Action | None:
        for planned in self.planned:
            if planned.method == asked.method and planned.actions and planned.path.search(asked.path):
                return planned.actions[0] if planned.forever and len(planned.actions) == 1 else planned.actions.pop(0)
        return None

    def asked(self, method: str, path: str) -> list[Asked]:
        return [each for each in self.requests if each.method == method and re.search(path, each.path)]

    # ---- Content ----

    def put_blob(self, data: bytes, repository: str = "app") -> dict[str, Any]:
        self.blobs[digest_of(data)] = data
        self.repository_blobs.setdefault(repository, set()).add(digest_of(data))
        return {"digest": digest_of(data), "size": len(data)}

    def put_manifest(self, repository: str, tag: str, document: dict[str, Any] | bytes, kind: str = MANIFEST) -> str:
        data = document if isinstance(document, bytes) else json.dumps(document).encode()
        self.manifests[f"{repository}:{tag}"] = self.manifests[f"{repository}@{digest_of(data)}"] = (data, kind)
        return digest_of(data)

    def put_image(self, repository: str = "app", tag: str = "1", layers: Iterable[bytes] = (), *, level: int = 1, **config: Any) -> str:
        """An image of *layers*, plain tars; its manifest's digest."""
        layers = list(layers)
        document = {"architecture": "amd64", "os": "linux", "config": {}, **config}
        document["rootfs"] = {"type": "layers", "diff_ids": [digest_of(layer) for layer in layers]}
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {"mediaType": CONFIG, **self.put_blob(json.dumps(document).encode(), repository)},
            "layers": [{"mediaType": LAYER, **self.put_blob(gzip.compress(layer, level, mtime=0), repository)} for layer in layers],
        }
        return self.put_manifest(repository, tag, manifest)

    # ---- Rights ----

    def challenge(self, asked: Asked) -> str | None:
        """What a request lacks; None if it may go on."""
        if not self.require or asked.path.startswith("/token"):
            return None
        if self.require == "basic":
            return None if self._user_of(asked) is not None else 'Basic realm="faulty"'
        kind, _, token = (asked.secret or "").partition(" ")
        repository = self._repository(asked.path)
        actions = {"GET": "pull", "HEAD": "pull"}.get(asked.method, "push")
        scopes = self.tokens.get(token) if kind == "Bearer" else None
        if scopes is not None and (not repository or any(self._covers(scope, repository, actions) for scope in scopes)):
            return None
        realm = self.realm or f"{self.url}/token"
        scope = f',scope="repository:{repository}:{actions}"' if repository else ""
        return f'Bearer realm="{realm}",service="faulty"{scope}'

    @staticmethod
    def _covers(scope: str, repository: str, action: str) -> bool:
        kind, name, actions = scope.split(":")
        return kind == "repository" and name == repository and action in actions.split(",")

    @staticmethod
    def _repository(path: str) -> str:
        match = re.match(r"/v2/(.+)/(?:manifests|blobs|tags)/", path)
        return match[1] if match else ""

    def _user_of(self, asked: Asked) -> str | None:
        return next((user for user, password in self.users.items() if asked.secret == basic(user, password)), None)

    def _serve_token(self, handler: Handler) -> None:
        asked = handler.asked
        query = parse_qs(urlsplit(asked.path).query if asked.method == "GET" else asked.body.decode())
        user = self._user_of(asked) or (query.get("refresh_token") == ["identity"] and "identity") or None
        if user is None and (not self.anonymous or asked.secret is not None):
            handler.reply(401, b"{}")
            return
        token = f"token-{len(self.tokens)}"
        self.tokens[token] = [scope for scopes in query.get("scope", []) for scope in scopes.split()]
        answer = {"token": token, "expires_in": self.token_life}
        handler.reply(200, json.dumps(answer).encode())

    # ---- Service ----

    def serve(self, handler: Handler) -> None:
        asked = handler.asked
        path = urlsplit(asked.path).path
        if path == "/v2/":
            handler.reply(200, b"{}")
        elif path == "/token":
            self._serve_token(handler)
        elif match := re.fullmatch(r"/v2/(.+)/manifests/([^/]+)", path):
            self._serve_manifest(handler, match[1], match[2])
        elif match := re.fullmatch(r"/v2/(.+)/blobs/(sha256:[^/]+)", path):
            self._serve_blob(handler, match[1], match[2])
        elif match := re.fullmatch(r"/v2/(.+)/blobs/uploads/([^/]*)", path):
            self._serve_upload(handler, match[1], match[2])
        elif match := re.fullmatch(r"/v2/(.+)/tags/list", path):
            tags = [name.rpartition(":")[2] for name in self.manifests if name.startswith(f"{match[1]}:")]
            handler.reply(200, json.dumps({"name": match[1], "tags": tags}).encode())
        else:
            handler.reply(404)

    def _serve_manifest(self, handler: Handler, repository: str, what: str) -> None:
        name = f"{repository}@{what}" if ":" in what else f"{repository}:{what}"
        if handler.command == "PUT":
            self.put_manifest(repository, what, handler.asked.body, handler.asked.headers["content-type"])
            handler.reply(201, b"", {"Docker-Content-Digest": digest_of(handler.asked.body)})
        elif name in self.manifests:
            data, kind = self.manifests[name]
            handler.reply(200, data, {"Content-Type": kind, "Docker-Content-Digest": digest_of(data)})
        else:
            handler.reply(404, b'{"errors":[{"code":"MANIFEST_UNKNOWN","message":"unknown"}]}')

    def _serve_blob(self, handler: Handler, repository: str, digest: str) -> None:
        data = self.blobs.get(digest)
        if data is None or digest not in self.repository_blobs.get(repository, ()):
            handler.reply(404)
            return
        match = re.fullmatch(r"bytes=(\d+)-(\d+)?", handler.asked.headers.get("range", ""))
        if match and self.ranges:
            start, end = int(match[1]), int(match[2] or len(data) - 1)
            handler.reply(206, data[start : end + 1], {"Content-Range": f"bytes {start}-{end}/{len(data)}"})
        else:
            handler.reply(200, data)

    def _serve_upload(self, handler: Handler, repository: str, session: str) -> None:
        query = {name: values[0] for name, values in parse_qs(urlsplit(handler.path).query).items()}
        mine = f"/v2/{repository}/blobs/uploads/{session}"
        if handler.command == "POST":
            mounted = query.get("mount")
            if mounted in self.repository_blobs.get(query.get("from", ""), ()):
                self.repository_blobs.setdefault(repository, set()).add(str(mounted))
                handler.reply(201)
                return
            session = f"u{len(self.uploads)}"
            self.uploads[session] = bytearray()
            handler.reply(202, b"", {"Location": f"/v2/{repository}/blobs/uploads/{session}?state=x", "Range": "0-0"})
            return
        data = self.uploads.get(session)
        if data is None:
            handler.reply(404)
            return
        data += handler.asked.body
        if handler.command == "PUT":
            if digest_of(bytes(data)) != query.get("digest"):
                handler.reply(400, b'{"errors":[{"code":"DIGEST_INVALID","message":"other content"}]}')
                return
            self.put_blob(bytes(data), repository)
            handler.reply(201)
        else:
            handler.reply(204 if handler.command == "GET" else 202, b"", {"Location": f"{mine}?state=y", "Range": f"0-{max(len(data) - 1, 0)}"})


def tar_of(files: dict[str, bytes]) -> bytes:
    """A plain tar of regular files."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()
