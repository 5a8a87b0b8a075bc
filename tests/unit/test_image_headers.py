"""What registries say in headers, read with bounds."""

from __future__ import annotations

import time
from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.errors import RegistryError
from sandbox.image._auth import is_related
from sandbox.image._headers import (
    MAX_CHALLENGES,
    Challenge,
    is_loopback,
    origin_of,
    parse_challenges,
    parse_content_range,
    parse_next,
    parse_retry_after,
    parse_uploaded,
    resolve,
)

pytestmark = pytest.mark.unprivileged
WORDS = st.text(st.sampled_from("abcdefghijklmnopqrstuvwxyzABCXYZ0189!#$%&'*+-.^_`|~"), min_size=1, max_size=12)
TEXTS = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=20)


def quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


@pytest.mark.parametrize(
    ("header", "found"),
    [
        ('Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push"',
         [Challenge("bearer", (("realm", "https://auth.docker.io/token"), ("service", "registry.docker.io"), ("scope", "repository:a/b:pull,push")))]),
        ('Basic realm="x", Bearer realm=y', [Challenge("basic", (("realm", "x"),)), Challenge("bearer", (("realm", "y"),))]),
        ('BASIC Realm = "a \\"b\\""', [Challenge("basic", (("realm", 'a "b"'),))]),
        ("Negotiate, Basic realm=x", [Challenge("negotiate"), Challenge("basic", (("realm", "x"),))]),
        ('Bearer realm="open', [Challenge("bearer")]),
        ("", []), (",,,", []), ('"', []), ("=", []),
    ],
)  # fmt: skip
def test_challenges_are_read(header: str, found: list[Challenge]) -> None:
    assert parse_challenges([header]) == found


@given(st.lists(st.tuples(WORDS, st.lists(st.tuples(WORDS, TEXTS), min_size=1, max_size=4)), min_size=1, max_size=4))
def test_challenges_that_are_well_formed_come_back(challenges: list[tuple[str, list[tuple[str, str]]]]) -> None:
    header = ", ".join(f"{scheme} " + ", ".join(f"{name}={quoted(value)}" for name, value in parameters) for scheme, parameters in challenges)
    found = parse_challenges([header])
    assert found == [Challenge(scheme.lower(), tuple((name.lower(), value) for name, value in parameters)) for scheme, parameters in challenges]


@given(st.lists(st.text(max_size=200), max_size=5))
def test_challenges_of_any_text_are_bounded(headers: list[str]) -> None:
    assert len(parse_challenges(headers)) <= MAX_CHALLENGES


@pytest.mark.parametrize("header", ["a," * 100_000, 'Bearer a="' + "\\" * 100_000, "Bearer " + 'a="b",' * 50_000, " " * 100_000, "Bearer a=b" + " ," * 50_000])
def test_hostile_challenges_take_no_time(header: str) -> None:
    began = time.process_time()
    parse_challenges([header] * 20)
    assert time.process_time() - began < 2


@pytest.mark.parametrize(("value", "seconds"), [("0", 0.0), ("120", 120.0), (" 7 ", 7.0), ("-1", None), ("1.5", None), ("x", None), (None, None), ("9" * 50, None)])
def test_retry_after_in_seconds(value: str | None, seconds: float | None) -> None:
    assert parse_retry_after(value) == seconds


def test_retry_after_by_a_date() -> None:
    assert parse_retry_after(formatdate(1_000_030, usegmt=True), now=1_000_000) == 30
    assert parse_retry_after(formatdate(999_000, usegmt=True), now=1_000_000) == 0


@given(st.text(max_size=60))
def test_no_header_of_one_value_breaks_a_parser(text: str) -> None:
    wait = parse_retry_after(text)
    assert wait is None or wait >= 0
    part = parse_content_range(text)
    assert part is None or 0 <= part[0] <= part[1]
    assert parse_uploaded(text) >= 0
    parse_next([text])


def test_parts_are_read() -> None:
    assert parse_content_range("bytes 5-9/10") == (5, 9, 10)
    assert parse_content_range("bytes 5-9/*") == (5, 9, None)
    assert parse_content_range("bytes 9-5/10") is None
    assert parse_content_range("bytes */10") is None
    assert [parse_uploaded(text) for text in ("0-99", "bytes=0-99", "0-0", None, "5-9", "0--1")] == [100, 100, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("header", "url"),
    [
        ('</v2/a/tags/list?n=2&last=x>; rel="next"', "/v2/a/tags/list?n=2&last=x"),
        ("<https://h/x>;rel=next", "https://h/x"),
        ('</x>; rel="prev"', None),
        ('</x>; title="rel=next"', None),
        ("/x; rel=next", None),
        ('<<x>>; rel="next"', None),
    ],
)
def test_the_next_page_is_read(header: str, url: str | None) -> None:
    assert parse_next([header]) == url


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.255.0.9", "::1"])
def test_this_machine_is_known_by_its_names(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host",
    ["127.1", "127.0.0.1.evil.example", "localhost.evil.example", "0x7f.0.0.1", "2130706433", "0.0.0.0", "::", "::ffff:127.0.0.1", "::1%lo",
     "10.0.0.1", "localhost4", "", "xn--localhost", "127.0.0.01"],
)  # fmt: skip
def test_nothing_else_is_this_machine(host: str) -> None:
    assert not is_loopback(host)


@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1@evil.example/", "http://a:b@evil.example/", "ftp://h/", "file:///etc/passwd", "//h/x", "/x", "http://", "http:///x", "http://h\\@x/",
     "http://h:99999/", "http://h:x/", "http://[::1/", "http://h /", "http://h\r\nX: y/", "http://é/", "http://h/\0", "x" * 10_000, "javascript:alert(1)"],
)  # fmt: skip
def test_what_is_no_plain_address_is_refused(url: str) -> None:
    with pytest.raises(RegistryError):
        origin_of(url)


def test_addresses_have_one_form() -> None:
    assert str(origin_of("https://Example.COM:443/x")) == "https://example.com"
    assert str(origin_of("http://[::1]:5000")) == "http://[::1]:5000"
    assert origin_of("https://h") == origin_of("https://h:443/a?b#c")


@given(st.text(max_size=80))
def test_what_a_server_names_is_an_address_or_refused(location: str) -> None:
    try:
        url = resolve("https://h/v2/x", location, what="test")
    except RegistryError:
        return
    assert origin_of(url).scheme in ("http", "https")


@pytest.mark.parametrize(
    ("registry", "service"),
    [("ghcr.io", "ghcr.io"), ("registry-1.docker.io", "auth.docker.io"), ("registry.gitlab.com", "gitlab.com"), ("registry.example.com", "login.example.com"),
     ("registry.example.co.uk", "login.example.co.uk"), ("a.b.example.com", "example.com"), ("127.0.0.1", "localhost")],
)  # fmt: skip
def test_a_service_below_the_same_domain_may_have_the_password(registry: str, service: str) -> None:
    assert is_related(registry, service)


@pytest.mark.parametrize(
    ("registry", "service"),
    [("ghcr.io", "evil.io"), ("ghcr.io", "io"), ("registry.example.com", "example.com.evil.net"), ("a.co.uk", "b.co.uk"), ("example.com", "evil.com"),
     ("registry.example.com", "com"), ("10.0.0.1", "10.0.0.2"), ("1.2.3.4", "9.2.3.4"), ("example.com", "127.0.0.1"), ("localhost", "example.com"),
     ("xexample.com", "example.com"), ("a.com.au", "com.au"), ("fe80::1", "fe80::2")],
)  # fmt: skip
def test_any_other_service_may_not(registry: str, service: str) -> None:
    assert not is_related(registry, service)
