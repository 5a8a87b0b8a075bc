"""Allow-lists as values: what is read, what is refused, and which addresses a name opens."""

from __future__ import annotations

import ipaddress
import string
from ipaddress import IPv4Network, IPv6Network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.errors import UsageError
from sandbox.net.allow import MOST_ENTRIES, Allowed, groups_of, parse_allowed, to_allow


def entry(network: str | None = None, *, name: str = "", wild: bool = False, protocol: str | None = None, first: int | None = None, last: int | None = None) -> Allowed:
    found = None if network is None else ipaddress.ip_network(network)
    return Allowed(found, name, wild, protocol=protocol, first=first, last=first if last is None else last)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10.0.0.5:5432", entry("10.0.0.5/32", protocol="tcp", first=5432)),
        ("10.0.0.5", entry("10.0.0.5/32")),
        ("10.1.0.0/16", entry("10.1.0.0/16")),
        ("10.1.0.0/16:443", entry("10.1.0.0/16", protocol="tcp", first=443)),
        ("10.1.0.0/16/udp", entry("10.1.0.0/16", protocol="udp")),
        ("1.1.1.1:53/udp", entry("1.1.1.1/32", protocol="udp", first=53)),
        ("1.1.1.1:53/tcp", entry("1.1.1.1/32", protocol="tcp", first=53)),
        ("[fd00::1]:80", entry("fd00::1/128", protocol="tcp", first=80)),
        ("[fd00::/64]:80-90/udp", entry("fd00::/64", protocol="udp", first=80, last=90)),
        ("[fd00::1]", entry("fd00::1/128")),
        ("fd00::1", entry("fd00::1/128")),
        ("fd00::/8", entry("fd00::/8")),
        ("example.org:443", entry(name="example.org", protocol="tcp", first=443)),
        ("Example.ORG.:443", entry(name="example.org", protocol="tcp", first=443)),
        ("*.example.org:8000-8010", entry(name="example.org", wild=True, protocol="tcp", first=8000, last=8010)),
        ("registry", entry(name="registry")),
        ("xn--bcher-kva.example", entry(name="xn--bcher-kva.example")),
        ("0.0.0.0/0:443", entry("0.0.0.0/0", protocol="tcp", first=443)),
        ("::/0", entry("::/0")),
        ("169.254.169.254:80", entry("169.254.169.254/32", protocol="tcp", first=80)),
    ],
)
def test_an_entry_is_read(text: str, expected: Allowed) -> None:
    assert parse_allowed(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "", "*", "*.", "*:443", ":443", "example.org:", "example.org:0", "example.org:65536", "example.org:90-80", "example.org:http", "example.org:+1",
        "10.0.0.5/8", "10.0.0.256", "10.0.0.5:1:2", "10.0.0.5/33", "10.0.0", "127.1", "0x7f.1", "0x7f000001", "2130706433", "1.2.3.4.5", "017700000001",
        "127.0.0.1:80", "[::1]:80", "224.0.0.1", "ff02::1", "0.0.0.0", "0.0.0.0:80", "[::]:80", "::ffff:10.0.0.1", "fe80::1%eth0",
        "[10.0.0.5]:80", "[example.org]:80", "[fd00::1", "fd00::1]:80", "[fd00::1]80", "[fd00::1]:", "fd00::g",
        "example.org/icmp", "example.org:53/UDP", "example.org/24", "https://example.org", "user@example.org", "example..org", ".example.org",
        "-a.example", "a-.example", "a b", "exa*mple.org", "a.*.org", "*.*.org", "bücher.example", "example.org\n", "example.org:80\n", "example.org:\uff18\uff10",
        "a" * 64, ".".join(["a" * 63] * 4), "example.org\0", None, 443, b"example.org", ("10.0.0.5", 443), True,
    ],
)  # fmt: skip
def test_what_is_no_entry_is_refused_in_words(text: object) -> None:
    with pytest.raises(UsageError, match="allow: "):
        parse_allowed(text)


@pytest.mark.parametrize("value", ["10.0.0.5", b"10.0.0.5", 5, True, int])
def test_what_is_no_list_is_refused(value: object) -> None:
    with pytest.raises(UsageError, match="is no list"):
        to_allow(value)


def test_none_is_everything_and_an_empty_list_is_nothing() -> None:
    assert to_allow(None) is None
    assert to_allow([]) == ()
    assert to_allow(()) == ()


def test_what_is_said_twice_counts_once_and_there_is_a_bound() -> None:
    many = [f"10.0.{n // 256}.{n % 256}" for n in range(MOST_ENTRIES)]
    assert len(to_allow([*many, *many]) or ()) == MOST_ENTRIES
    with pytest.raises(UsageError, match="more than"):
        to_allow([*many, "example.org"])


def _entries() -> st.SearchStrategy[Allowed]:
    ports = st.none() | st.tuples(st.integers(1, 65535), st.integers(1, 65535)).map(lambda pair: (min(pair), max(pair)))

    def make(place: dict[str, Any], port: tuple[int, int] | None, protocol: str | None) -> Allowed:
        first, last = port or (None, None)
        return Allowed(**place, protocol=protocol or ("tcp" if port else None), first=first, last=last)

    usable = st.one_of(
        st.tuples(st.integers(1, 126), st.integers(8, 32)).map(lambda pair: IPv4Network(((pair[0] << 24 | 0x010203), pair[1]), strict=False)),
        st.tuples(st.integers(0, 2**64 - 1), st.integers(16, 128)).map(lambda pair: IPv6Network(((0xFD00 << 112) + pair[0], pair[1]), strict=False)),
    )
    label = st.text(string.ascii_lowercase + string.digits, min_size=1, max_size=10).map(lambda text: f"x{text}")
    names = st.tuples(st.lists(label, min_size=1, max_size=4).map(".".join), st.booleans())
    places = usable.map(lambda net: {"network": net}) | names.map(lambda pair: {"name": pair[0], "is_wild": pair[1]})
    return st.builds(make, places, ports, st.sampled_from([None, "tcp", "udp"]))


@given(_entries())
def test_what_is_shown_is_read_as_the_same(allowed: Allowed) -> None:
    assert parse_allowed(str(allowed)) == allowed


@given(st.text(max_size=40) | st.from_regex(r"[\[\]0-9a-fx.:/*-]{1,30}", fullmatch=True))
def test_any_text_is_an_entry_that_shows_itself_or_an_error_of_usage(text: str) -> None:
    try:
        found = parse_allowed(text)
    except UsageError:
        return
    assert parse_allowed(str(found)) == found
    assert (found.network is None) == bool(found.name)
    assert (found.first is None) == (found.last is None)


def test_names_that_open_the_same_ports_are_one_group() -> None:
    entries = to_allow(["a.org:443", "10.0.0.1:443", "b.org:443", "a.org:80", "b.org:80", "*.A.org:443", "c.org", "d.org:53/udp", "c.org:1-9"])
    patterns, ports = groups_of(entries or ())
    assert patterns == {"a.org": 0, "b.org": 0, "*.a.org": 1, "c.org": 2, "d.org": 3}
    assert [set(group) for group in ports] == [
        {("tcp", 443, 443), ("tcp", 80, 80)}, {("tcp", 443, 443)}, {(None, None, None), ("tcp", 1, 9)}, {("udp", 53, 53)},
    ]  # fmt: skip
    assert groups_of(to_allow(["10.0.0.1"]) or ()) == ({}, [])


@given(st.lists(_entries(), max_size=20))
def test_each_name_has_the_ports_of_its_entries_and_no_others(entries: list[Allowed]) -> None:
    patterns, ports = groups_of(entries)
    for entry in entries:
        if entry.network is None:
            assert (entry.protocol, entry.first, entry.last) in ports[patterns[entry.pattern]]
    for pattern, number in patterns.items():
        theirs = {(entry.protocol, entry.first, entry.last) for entry in entries if entry.pattern == pattern}
        assert set(ports[number]) == theirs
