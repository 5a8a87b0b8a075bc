"""What the host knows of names is read bounded, and what is no name or address is left out."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox import Container
from sandbox.fs import Resolver, host_resolver, name_ops


def of(tmp_path: Path, resolv: str | bytes = "", hosts: str | bytes = "") -> Resolver:
    (tmp_path / "etc").mkdir(exist_ok=True)
    for name, text in (("resolv.conf", resolv), ("hosts", hosts)):
        (tmp_path / "etc" / name).write_bytes(text.encode() if isinstance(text, str) else text)
    return host_resolver(str(tmp_path))


def test_servers_domains_and_names_are_read(tmp_path: Path) -> None:
    found = of(
        tmp_path,
        "# made by hand\nnameserver 192.0.2.1\nnameserver 2001:db8::1\nsearch a.example b.example # both\noptions ndots:1\n",
        "127.0.0.1 localhost\n192.0.2.7\tdb.example db\n::1 ip6-localhost\n",
    )
    assert found == Resolver(("192.0.2.1", "2001:db8::1"), ("a.example", "b.example"), (("192.0.2.7", "db.example"), ("192.0.2.7", "db")))


@pytest.mark.parametrize("line", ["nameserver", "nameserver x", "nameserver fe80::1%eth0", "nameserver 1.2.3.4\\nsearch", "search -", "search a..b", "\0", "domain"])
def test_what_says_nothing_is_left_out(tmp_path: Path, line: str) -> None:
    assert of(tmp_path, line + "\n") == Resolver()


def test_no_more_servers_than_the_c_library_asks(tmp_path: Path) -> None:
    assert len(of(tmp_path, "".join(f"nameserver 192.0.2.{number}\n" for number in range(9))).nameservers) == 3


def test_a_host_without_the_files_finds_nobody(tmp_path: Path) -> None:
    assert host_resolver(str(tmp_path)) == Resolver()


def test_a_huge_file_is_read_to_its_bound(tmp_path: Path) -> None:
    found = of(tmp_path, hosts="".join(f"10.{n >> 16 & 255}.{n >> 8 & 255}.{n & 255} host{n}\n" for n in range(100_000)))
    assert 0 < len(found.hosts) <= 512


@given(st.binary(max_size=200), st.binary(max_size=200))
def test_whatever_stands_there_can_be_written(tmp_path_factory: pytest.TempPathFactory, resolv: bytes, hosts: bytes) -> None:
    found = of(tmp_path_factory.mktemp("host"), resolv, hosts)
    name_ops("box", hosts=found.hosts, nameservers=found.nameservers, search=found.search)


def test_only_the_hosts_network_brings_the_hosts_names() -> None:
    assert Container(net="host").spec.resolver == host_resolver()
    assert Container().spec.resolver == Resolver()
