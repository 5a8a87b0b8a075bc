"""The registry client against a registry that errs and lies: who gets a secret, what is tried again, what has an end."""

from __future__ import annotations

import itertools
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sandbox.errors import ImageError, RegistryError, UsageError
from sandbox.image import Credentials, Digest
from sandbox.image._access import Access
from sandbox.image._http import BrokenTransferError, Patience
from sandbox.image.registry import Registry
from tests.faulty_registry import MANIFEST, FaultyRegistry, basic, changed, closed, digest_of, dripping, raw, redirect, served, status, truncated
from tests.support import patience

QUICK = Patience(connect_s=5, answer_s=5.0, stall_s=5.0, attempts=4, first_delay_s=0.001, most_delay_s=0.002, most_asked_s=2)
USER = Credentials("user", "secret")
BLOB = bytes(range(256)) * 1000
DIGEST = Digest.of(BLOB)


@pytest.fixture(autouse=True)
def nobodys_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))


@pytest.fixture
def server() -> Iterator[FaultyRegistry]:
    with FaultyRegistry() as registry:
        registry.put_blob(BLOB)
        registry.put_image("app", "1")
        yield registry


@pytest.fixture
def elsewhere() -> Iterator[FaultyRegistry]:
    with FaultyRegistry("127.0.0.2") as registry:
        registry.put_blob(BLOB)
        yield registry


def connect(server: FaultyRegistry, **options: Any) -> Registry:
    return Registry.open(server.host, Access(**{"patience": QUICK, **options}))


def fetch(registry: Registry, start: int = 0) -> bytes:
    with registry.blob("app", DIGEST, len(BLOB), start=start) as chunks:
        return b"".join(chunks)


# ---- Who we are ----


def test_basic_is_given_when_it_is_asked_for(server: FaultyRegistry) -> None:
    server.require = "basic"
    with connect(server, credentials=USER) as registry:
        registry.manifest("app", "1")
        fetch(registry)
    assert [each.secret for each in server.requests] == [None, basic("user", "secret"), basic("user", "secret")]


def test_a_wrong_password_is_tried_once(server: FaultyRegistry) -> None:
    server.require = "basic"
    with connect(server, credentials=Credentials("user", "wrong")) as registry, pytest.raises(RegistryError, match="access denied") as caught:
        registry.manifest("app", "1")
    assert caught.value.status == 401
    assert len(server.asked("GET", "manifests")) == 1
    assert "wrong" not in str(caught.value)


def test_without_credentials_the_error_says_how_to_log_in(server: FaultyRegistry) -> None:
    server.require = "basic"
    with connect(server) as registry, pytest.raises(RegistryError, match=f"who are you.*sandbox login {server.host}"):
        registry.manifest("app", "1")


def test_a_token_is_fetched_once_for_each_scope(server: FaultyRegistry) -> None:
    server.require = "bearer"
    with connect(server, credentials=USER) as registry:
        for _ in range(3):
            registry.manifest("app", "1")
            fetch(registry)
    (asked,) = server.asked("GET", "^/token")
    assert "scope=repository%3Aapp%3Apull" in asked.path
    assert "service=faulty" in asked.path
    assert asked.secret == basic("user", "secret")
    assert {each.secret for each in server.requests if each is not asked} == {None, "Bearer token-0"}


def test_a_token_for_everybody_needs_no_credentials(server: FaultyRegistry) -> None:
    server.require, server.anonymous = "bearer", True
    with connect(server) as registry:
        registry.manifest("app", "1")
    assert all(each.secret is None for each in server.asked("GET", "^/token"))


def test_an_identity_token_is_given_by_post(server: FaultyRegistry) -> None:
    server.require = "bearer"
    with connect(server, credentials=Credentials("user", identity_token="identity")) as registry:
        registry.manifest("app", "1")
    (asked,) = server.asked("POST", "^/token")
    assert b"refresh_token=identity" in asked.body
    assert asked.secret is None


def test_a_token_that_was_taken_back_is_replaced(server: FaultyRegistry) -> None:
    server.require = "bearer"
    with connect(server, credentials=USER) as registry:
        registry.manifest("app", "1")
        server.tokens.clear()
        server.tokens["unused"] = []
        registry.manifest("app", "1")
    assert len(server.asked("GET", "^/token")) == 2


def test_a_registry_that_takes_no_token_ends_it(server: FaultyRegistry) -> None:
    server.require = "bearer"
    server.plan("GET", "manifests", status(401, WWW_Authenticate=f'Bearer realm="{server.url}/token"'), forever=True)
    with connect(server, credentials=USER) as registry, pytest.raises(RegistryError, match="access denied"):
        registry.manifest("app", "1")
    assert len(server.requests) < 10


@pytest.mark.parametrize("realm", ["http://evil.example/token", "https://evil.example/token", "https://127.0.0.1@evil.example/", "ftp://x/", "/token", "\\\\x"])
def test_a_realm_of_another_host_gets_no_password(server: FaultyRegistry, realm: str) -> None:
    server.require, server.realm = "bearer", realm
    with connect(server, credentials=USER) as registry, pytest.raises(RegistryError) as caught:
        registry.manifest("app", "1")
    assert "secret" not in str(caught.value)
    assert all(each.secret is None for each in server.requests)


def test_a_host_that_was_named_may_make_tokens(server: FaultyRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    server.require, server.realm = "bearer", "https://tokens.example/"
    with connect(server, credentials=USER, auth_hosts=("tokens.example",)) as registry:
        auth = registry.auth
        auth._check_realm("https://tokens.example/")
        with pytest.raises(RegistryError, match="name it: auth_hosts="):
            auth._check_realm("https://token.example/")
        with pytest.raises(RegistryError, match="plain http"):
            auth._check_realm("http://tokens.example/")


def test_a_realm_that_redirects_gets_no_further(server: FaultyRegistry, elsewhere: FaultyRegistry) -> None:
    server.require = "bearer"
    server.plan("GET", "^/token", redirect(f"{elsewhere.url}/"))
    with connect(server, credentials=USER) as registry, pytest.raises(RegistryError, match="status 307"):
        registry.manifest("app", "1")
    assert elsewhere.requests == []


@pytest.mark.parametrize(
    "answer",
    [b"", b"[]", b"{}", b'{"token":1}', b'{"token":""}', b'{"token":"a b"}', b'{"token":"a\\r\\nX: y"}', b'{"token":"' + b"a" * 100_000 + b'"}',
     b'{"token":"\\u00e9"}', b"{" * 100_000, b" " * 1_000_000],
    ids=lambda answer: str(answer[:20]),
)  # fmt: skip
def test_what_is_no_token_is_refused(server: FaultyRegistry, answer: bytes) -> None:
    server.require = "bearer"
    server.plan("GET", "^/token", status(200, answer))
    with connect(server, credentials=USER) as registry, pytest.raises(RegistryError):
        registry.manifest("app", "1")


def test_a_challenge_cannot_widen_what_a_token_is_for(server: FaultyRegistry) -> None:
    server.require = "bearer"
    challenge = f'Bearer realm="{server.url}/token",service="faulty",scope="repository:private/other:pull,push,delete aws registry:catalog:*"'
    server.plan("GET", "^/v2/$", status(401, WWW_Authenticate=challenge), forever=True)
    with connect(server, credentials=USER) as registry:
        registry.auth.headers([])
    assert server.tokens == {"token-0": ["aws"]}


# ---- Redirects ----


def test_a_blob_on_another_host_is_fetched_without_our_token(server: FaultyRegistry, elsewhere: FaultyRegistry) -> None:
    server.require = "bearer"
    server.plan("GET", "/blobs/", served, redirect(f"{elsewhere.url}/"))
    with connect(server, credentials=USER) as registry:
        fetch(registry)
        assert fetch(registry) == BLOB
    assert server.requests[-1].secret is not None
    assert [each.secret for each in elsewhere.requests] == [None]


def test_our_password_does_not_come_back_over_another_host(server: FaultyRegistry, elsewhere: FaultyRegistry) -> None:
    server.require = "basic"
    server.plan("GET", "/blobs/", redirect(f"{elsewhere.url}/"), redirect(f"{server.url}/v2/end"))
    elsewhere.plan("GET", "/blobs/", redirect(f"{server.url}/"))
    with connect(server, credentials=USER) as registry, pytest.raises(RegistryError):
        fetch(registry)
    assert [each.secret for each in elsewhere.requests] == [None]
    assert [each.secret for each in server.asked("GET", "/blobs/|/v2/end")] == [basic("user", "secret"), None, None]


def test_a_host_that_was_redirected_to_cannot_ask_for_a_password(server: FaultyRegistry, elsewhere: FaultyRegistry) -> None:
    """CVE-2020-15157."""
    elsewhere.require = "basic"
    server.plan("GET", "/blobs/", redirect(f"{elsewhere.url}/"), forever=True)
    with connect(server, credentials=USER) as registry, pytest.raises(RegistryError, match="access denied"):
        fetch(registry)
    assert [each.secret for each in elsewhere.requests] == [None]


def test_a_redirect_on_the_same_host_keeps_it(server: FaultyRegistry) -> None:
    server.require = "basic"
    server.plan("GET", "/blobs/", redirect(f"/v2/app/blobs/{DIGEST}?again"))
    with connect(server, credentials=USER) as registry:
        assert fetch(registry) == BLOB


@pytest.mark.parametrize(
    "location",
    ["http://evil.example/x", "http://10.0.0.1/x", "http://169.254.169.254/latest", "file:///etc/passwd", "gopher://127.0.0.1/", "http://user@127.0.0.1/x",
     "http://127.0.0.1.evil.example/", "//evil.example/x", "http://[::ffff:127.0.0.1]/", "http://0.0.0.0/", "http://127.1/", "x" * 9000, "\x7f"],
)  # fmt: skip
def test_a_hostile_location_is_not_followed(server: FaultyRegistry, location: str) -> None:
    server.plan("GET", "/blobs/", redirect(location))
    with connect(server) as registry, pytest.raises(RegistryError):
        fetch(registry)
    assert len(server.asked("GET", "/blobs/")) == 1


def test_a_circle_of_redirects_ends(server: FaultyRegistry) -> None:
    server.plan("GET", "/blobs/", redirect(f"/v2/app/blobs/{DIGEST}"), forever=True)
    with connect(server) as registry, pytest.raises(RegistryError, match="redirects, one after the other"):
        fetch(registry)
    assert len(server.asked("GET", "/blobs/")) == 6


def test_another_machine_cannot_send_us_to_this_one() -> None:
    from sandbox.image._headers import origin_of
    from sandbox.image._http import Transport

    transport = Transport()
    for target in ("https://127.0.0.1/", "https://localhost:8443/", "http://[::1]/"):
        with pytest.raises(RegistryError):
            transport.check_hop(origin_of("https://registry.example"), origin_of(target))


# ---- Plain http ----


@pytest.mark.parametrize("name", ["registry.example", "10.1.2.3:5000", "127.0.0.1.example:5000", "[::2]:5000"])
def test_plain_http_is_for_this_machine(name: str) -> None:
    with Registry.open(name, Access(patience=QUICK)) as registry, pytest.raises(RegistryError, match="plain http is spoken with this machine only"):
        registry.transport.send("GET", f"http://{name}/v2/", headers={}, secret={})


def test_or_for_whom_the_caller_names() -> None:
    from sandbox.image._headers import origin_of

    with Registry.open("10.1.2.3:5000", Access(insecure=True)) as registry:
        assert registry.transport.trust.allows_plain(origin_of("http://10.1.2.3:5000"))
        assert not registry.transport.trust.allows_plain(origin_of("http://10.1.2.3:5001"))


# ---- What is tried again ----


@pytest.mark.parametrize("fault", [status(500), status(502), status(503), status(429), status(408), closed, raw(b"nonsense\r\n\r\n")])
def test_what_may_pass_is_tried_again(server: FaultyRegistry, fault: Any) -> None:
    server.plan("GET", "manifests", fault, fault)
    told: list[str] = []
    registry = connect(server)
    registry.on_retry = told.append
    with registry:
        assert b"schemaVersion" in registry.manifest("app", "1").data
    assert len(told) == 2


def test_what_does_not_pass_ends(server: FaultyRegistry) -> None:
    server.plan("GET", "manifests", status(503, b'{"errors":[{"code":"X","message":"tired\\u001b[31m"}]}'), forever=True)
    with connect(server) as registry, pytest.raises(RegistryError, match="given up after 4 tries") as caught:
        registry.manifest("app", "1")
    assert caught.value.status == 503
    assert "\x1b" not in str(caught.value)
    assert len(server.asked("GET", "manifests")) == 4


def test_a_host_that_is_not_there_is_asked_twice() -> None:
    told: list[str] = []
    with socket.socket() as held:  # a port that nobody else gets, and where nobody listens
        held.bind(("127.0.0.1", 0))
        name = f"127.0.0.1:{held.getsockname()[1]}"
        with Registry.open(name, Access(patience=QUICK), on_retry=told.append) as registry, pytest.raises(RegistryError, match="given up after 2 tries"):
            registry.manifest("app", "1")
    assert len(told) == 1


@pytest.mark.parametrize("code", [400, 403, 404, 405, 410, 451])
def test_what_is_final_is_asked_once(server: FaultyRegistry, code: int) -> None:
    server.plan("GET", "manifests", status(code))
    with connect(server) as registry, pytest.raises(RegistryError) as caught:
        registry.manifest("app", "1")
    assert caught.value.status == code
    assert len(server.asked("GET", "manifests")) == 1


def test_retry_after_is_waited_for(server: FaultyRegistry) -> None:
    server.plan("GET", "manifests", status(429, Retry_After="1"))
    began = time.monotonic()
    with connect(server) as registry:
        registry.manifest("app", "1")
    assert time.monotonic() - began >= 1


def test_retry_after_that_is_too_long_is_an_error(server: FaultyRegistry) -> None:
    server.plan("GET", "manifests", status(429, Retry_After="86400"))
    with connect(server) as registry, pytest.raises(RegistryError, match="asks to wait 86400 s"):
        registry.manifest("app", "1")


# ---- Parts of blobs ----


def test_a_blob_goes_on_where_it_stopped(server: FaultyRegistry) -> None:
    with connect(server) as registry:
        assert fetch(registry, 1000) == BLOB[1000:]
        assert server.requests[-1].headers["range"] == f"bytes=1000-{len(BLOB) - 1}"


def test_a_server_without_parts_sends_it_all_again(server: FaultyRegistry) -> None:
    server.ranges = False
    with connect(server) as registry:
        assert fetch(registry, 200_000) == BLOB[200_000:]
        server.plan("GET", "/blobs/", status(416))
        assert fetch(registry, 1000) == BLOB[1000:]


@pytest.mark.parametrize("part", ["bytes 0-9/256000", "bytes 1001-255999/256000", "bytes 1000-255999/9", "x", "bytes 1000-9/256000"])
def test_another_part_than_was_asked_for_is_refused(server: FaultyRegistry, part: str) -> None:
    server.plan("GET", "/blobs/", status(206, BLOB[1000:], Content_Range=part))
    with connect(server) as registry, pytest.raises(RegistryError, match="another part"):
        fetch(registry, 1000)


def test_a_blob_of_another_size_is_refused_before_it_comes(server: FaultyRegistry) -> None:
    server.plan("GET", "/blobs/", changed(lambda body: body + b"x"))
    with connect(server) as registry, pytest.raises(RegistryError, match="256001 bytes"):
        fetch(registry)


def test_a_truncated_blob_is_told_from_a_whole_one(server: FaultyRegistry) -> None:
    server.plan("GET", "/blobs/", truncated(1000))
    with connect(server) as registry, pytest.raises(BrokenTransferError, match="broken off"):
        fetch(registry)


# ---- What has an end ----

ENDLESS = itertools.repeat(b"x" * 65536)


@pytest.mark.timeout(30)
@pytest.mark.parametrize(
    "head",
    [b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n",
     b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n", b"HTTP/1.1 200 OK\r\nX: "],
    ids=["body", "chunk", "length", "negative", "header"],
)  # fmt: skip
def test_endless_answers_end(server: FaultyRegistry, head: bytes) -> None:
    server.plan("GET", "manifests", raw(head, ENDLESS), forever=True)
    with connect(server) as registry, pytest.raises(RegistryError):
        registry.manifest("app", "1")


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("head", "drop"),
    [(b"", b"H"), (b"HTTP/1.1 200 OK\r\n", b"X: y\r\n"), (b"", b"HTTP/1.1 100 Continue\r\n\r\n"), (b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n", b"x"),
     (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"), (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", b"X: y\r\n")],
    ids=["status", "headers", "continue", "body", "chunks", "trailers"],
)  # fmt: skip
def test_an_answer_that_drips_is_given_up(server: FaultyRegistry, head: bytes, drop: bytes) -> None:
    server.plan("GET", "manifests", raw(head, dripping(drop, server)), forever=True)
    began = time.monotonic()
    with connect(server, patience=Patience(answer_s=0.5, attempts=1)) as registry, pytest.raises(RegistryError):
        registry.manifest("app", "1")
    assert time.monotonic() - began < patience(10)


@pytest.mark.timeout(60)
def test_a_blob_that_drips_is_given_up(server: FaultyRegistry) -> None:
    server.plan("GET", "/blobs/", raw(b"HTTP/1.1 200 OK\r\nContent-Length: 256000\r\n\r\n", dripping(b"x", server)))
    with connect(server, patience=Patience(stall_s=0.5)) as registry, pytest.raises(BrokenTransferError, match="too slow"):
        fetch(registry)


@pytest.mark.parametrize("size", [4 << 20, (4 << 20) + 1])
def test_a_giant_manifest_is_refused(server: FaultyRegistry, size: int) -> None:
    server.put_manifest("app", "big", b" " * size)
    with connect(server) as registry:
        if size > 4 << 20:
            with pytest.raises(RegistryError, match="at most 4194304"):
                registry.manifest("app", "big")
        else:
            assert len(registry.manifest("app", "big").data) == size


def test_another_manifest_than_the_digest_names_is_refused(server: FaultyRegistry) -> None:
    wanted = Digest.parse(server.put_manifest("app", "2", {"a": 1}))
    server.manifests[f"app@{wanted}"] = (b"{}", MANIFEST)
    with connect(server) as registry, pytest.raises(ImageError, match="has sent something else"):
        registry.manifest("app", wanted)


def test_a_manifest_that_is_not_what_its_header_says_is_refused(server: FaultyRegistry) -> None:
    server.plan("GET", "manifests", status(200, b"{}", Docker_Content_Digest=digest_of(b"x")))
    with connect(server) as registry, pytest.raises(RegistryError, match="what it has sent"):
        registry.manifest("app", "1")


# ---- Tags ----


def page(names: list[object], link: str = "") -> Any:
    return status(200, json.dumps({"tags": names}).encode(), **({"Link": link} if link else {}))


def test_tags_come_in_pages(server: FaultyRegistry) -> None:
    server.plan("GET", "/tags/", page(["a", "b"], '</v2/app/tags/list?last=b>; rel="next"'), page(["b", "c"]))
    with connect(server) as registry:
        assert registry.tags("app") == ["a", "b", "c"]


@pytest.mark.parametrize(
    "link", ['</v2/app/tags/list?n=1000>; rel="next"', '<https://evil.example/v2/>; rel="next"', "<http://127.0.0.2/>; rel=next", "<file:///x>; rel=next", "<>; rel=next"]
)
def test_hostile_pages_end(server: FaultyRegistry, link: str) -> None:
    server.require = "basic"
    server.plan("GET", "/tags/", page(["a"], link), forever=True)
    with connect(server, credentials=USER) as registry, pytest.raises(RegistryError):
        registry.tags("app")
    assert len(server.asked("GET", "/tags/")) == 1


def test_pages_that_never_end_are_given_up(server: FaultyRegistry) -> None:
    for number in range(1100):
        server.plan("GET", "/tags/", page([f"t{number}"], f'</v2/app/tags/list?last={number}>; rel="next"'))
    with connect(server) as registry, pytest.raises(RegistryError, match="does not end"):
        registry.tags("app")
    assert len(server.asked("GET", "/tags/")) == 1000


def test_what_is_no_tag_is_left_out(server: FaultyRegistry) -> None:
    server.plan("GET", "/tags/", page(["ok", "../x", "", 3, None, "a\x1b[0m", "x" * 129, {"a": 1}]))
    with connect(server) as registry:
        assert registry.tags("app") == ["ok"]


# ---- How it is told ----


def test_settings_come_from_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "registries.toml"
    monkeypatch.setenv("SANDBOX_REGISTRIES", str(file))
    file.write_text('["docker.io"]\nmirrors = ["mirror.example:5000"]\n["mirror.example:5000"]\ninsecure = true\nauth-hosts = ["x.example"]\n')
    access = Access.of("docker.io", credentials=USER)
    assert access.mirrors == ("mirror.example:5000",)
    mirror = access.for_mirror("mirror.example:5000")
    assert mirror.insecure
    assert mirror.auth_hosts == ("x.example",)
    assert mirror.credentials_for("mirror.example:5000") is None  # docker.io's are not for it
    assert Access.of("docker.io", mirrors=[]).mirrors == ()


@pytest.mark.parametrize("text", ["x", "[a]\nx=1", '["h.io"]\ninsecure="yes"', '["h.io"]\nca=1', '["h.io"]\nmirrors="a"', '["h.io"]\nmirrors=["a/b"]', "h=1", "\xff"])
def test_a_file_that_makes_no_sense_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    file = tmp_path / "registries.toml"
    file.write_bytes(text.encode("latin-1"))
    monkeypatch.setenv("SANDBOX_REGISTRIES", str(file))
    with pytest.raises(UsageError):
        Access.of("h.io")


@pytest.mark.parametrize("options", [{"insecure": "yes"}, {"mirrors": "a"}, {"mirrors": [3]}, {"ca": 3}, {"auth_hosts": ["a/b"]}, {"verify": False}])
def test_options_that_make_no_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Access.of("h.io", **options)
