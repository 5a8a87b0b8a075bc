"""Ports, subnets and addresses: what is read, what is refused, and that no choice overlaps with what others have."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.errors import UnsupportedError, UsageError
from sandbox.net import Port, choose_address, choose_subnet, mac_of, parse_port, to_gateway, to_mac, to_ports, to_subnet

V4, V6 = ipaddress.ip_address("127.0.0.1"), ipaddress.ip_address("::1")


@pytest.mark.parametrize(
    ("text", "ports"),
    [
        (80, [Port(80)]),
        ("80", [Port(80)]),
        ("80/udp", [Port(80, "udp")]),
        ("8080:80", [Port(80, "tcp", 8080, 8080)]),
        ("0:80", [Port(80)]),
        ("127.0.0.1:53:53/udp", [Port(53, "udp", 53, 53, V4)]),
        ("127.0.0.1::80", [Port(80, "tcp", 0, 0, V4)]),
        ("127.0.0.1:0:80", [Port(80, "tcp", 0, 0, V4)]),
        ("[::1]:8080:80/tcp", [Port(80, "tcp", 8080, 8080, V6)]),
        ("[::1]::80", [Port(80, "tcp", 0, 0, V6)]),
        ("8000-8001:9000-9001", [Port(9000, "tcp", 8000, 8000), Port(9001, "tcp", 8001, 8001)]),
        ("8000-8010:80", [Port(80, "tcp", 8000, 8010)]),
        ("7000-7001", [Port(7000), Port(7001)]),
    ],
)
def test_dockers_forms_are_read(text: int | str, ports: list[Port]) -> None:
    assert parse_port(text) == ports


@pytest.mark.parametrize(
    "text",
    [
        0, -1, 65536, True, None, 1.5, b"80", "", ":", ":80", "80:", "a:b", "80:80:80", "1.2.3:80:80", "::1:80:80", "[127.0.0.1]:80:80", "80/sctp", "80/", "/udp",
        "8000-8001:80-82", "81-80", "80-", "-80", "99999", "٨٠", "8080 :80", "[fe80::1%eth0]:80:80", "224.0.0.1:80:80", "[::1]80:80", "127.0.0.1:80", "+80", "8_0",
    ],
)  # fmt: skip
def test_anything_else_is_refused_in_words(text: object) -> None:
    with pytest.raises(UsageError, match="ports"):
        parse_port(text)  # type: ignore[arg-type]


@given(st.text(alphabet="0123456789:[]./-udptcp x", max_size=24))
def test_no_text_is_anything_but_read_or_refused(text: str) -> None:
    try:
        ports = parse_port(text)
    except UsageError:
        return
    assert ports
    assert all(1 <= port.number <= 65535 and 0 <= port.first <= port.last <= 65535 for port in ports)


PORTS = st.builds(
    lambda number, protocol, host, address: Port(number, protocol, host, host, address),
    st.integers(1, 65535),
    st.sampled_from(["tcp", "udp"]),
    st.integers(0, 65535),
    st.none() | st.ip_addresses(v=4).filter(lambda a: not a.is_multicast) | st.ip_addresses(v=6).filter(lambda a: not a.is_multicast),
)


@given(PORTS)
def test_a_port_reads_back_what_it_shows(port: Port) -> None:
    assert parse_port(str(port)) == [port]


@pytest.mark.parametrize(
    ("ports", "clash"),
    [
        (["80:80", "80:81"], True),
        (["80:80", "127.0.0.1:80:81"], True),
        (["127.0.0.1:80:80", "127.0.0.2:80:80"], False),
        (["0.0.0.0:80:80", "127.0.0.2:80:80"], True),
        (["0.0.0.0:80:80", "[::1]:80:80"], False),
        (["80:80", "80:80/udp"], False),
        ([80, 80], False),
        (["8000-8010:80", "8000-8010:81"], False),
    ],
)
def test_two_that_want_one_port_of_the_host_are_refused(ports: list[str | int], clash: bool) -> None:
    if not clash:
        assert len(to_ports(ports)) == 2
        return
    with pytest.raises(UsageError, match="want the same port"):
        to_ports(ports)


def test_one_string_is_no_list_of_ports() -> None:
    with pytest.raises(UsageError, match="give a list"):
        to_ports("80:80")


def test_a_flood_of_ports_is_refused() -> None:
    with pytest.raises(UsageError, match="more than"):
        to_ports(["1-65535", "1-65535:1-65535"])


@pytest.mark.parametrize("text", ["10.1.2.0/24", "10.0.0.0/8", "fd00:1::/64", "192.0.2.0/29"])
def test_subnets_are_read(text: str) -> None:
    assert str(to_subnet(text)) == text


@pytest.mark.parametrize("text", ["10.1.2.3/24", "10.1.2.0", "0.0.0.0/0", "10.0.0.0/30", "127.0.0.0/8", "224.0.0.0/8", "169.254.0.0/16", "::/64", "x", 5, b"\0\0\0\0", None, "0.0.0.0/8"])
def test_what_is_no_subnet_is_refused(text: object) -> None:
    with pytest.raises(UsageError, match="subnet"):
        to_subnet(text)


@pytest.mark.parametrize("text", ["10.1.2.0", "10.1.2.255", "10.1.3.1", "fd00::1", "x", 1.5])
def test_a_gateway_is_a_host_of_its_subnet(text: object) -> None:
    with pytest.raises(UsageError, match="gateway"):
        to_gateway(text, to_subnet("10.1.2.0/24"))


def test_the_first_address_is_the_gateway_unless_it_is_said() -> None:
    assert str(to_gateway(None, to_subnet("10.1.2.0/24"))) == "10.1.2.1"
    assert str(to_gateway("10.1.2.254", to_subnet("10.1.2.0/24"))) == "10.1.2.254"


NETS = st.builds(lambda value, prefix: ipaddress.ip_network((value, prefix), strict=False), st.integers(0, (1 << 32) - 1), st.integers(0, 32))
CLOSE = st.builds(lambda value, prefix: ipaddress.ip_network((0x0A590000 + value, prefix), strict=False), st.integers(0, 0xFFFF), st.integers(17, 32))


@given(st.lists(NETS | CLOSE, max_size=30))
def test_a_chosen_subnet_overlaps_with_nothing(taken: list[ipaddress.IPv4Network]) -> None:
    try:
        found = choose_subnet(taken)
    except UnsupportedError:
        return
    assert found.prefixlen == 24
    assert found.is_private
    assert not any(found.overlaps(net) for net in taken if net.prefixlen)


def test_one_after_the_other_all_of_a_pool_is_given_out_and_then_none() -> None:
    pool = ipaddress.IPv4Network("10.89.0.0/22")
    taken: list[ipaddress.IPv4Network] = []
    for _ in range(4):
        taken.append(choose_subnet(taken, pools=[pool]))
    assert sorted(taken) == list(pool.subnets(new_prefix=24))
    with pytest.raises(UnsupportedError, match="subnet="):
        choose_subnet(taken, pools=[pool])


def test_addresses_go_round_and_end() -> None:
    subnet = to_subnet("192.0.2.0/29")
    taken = {to_gateway(None, subnet)}
    last = None
    for _ in range(5):
        last = choose_address(subnet, taken, after=last)
        taken.add(last)
    assert {str(address) for address in taken} == {f"192.0.2.{number}" for number in range(1, 7)}
    with pytest.raises(UsageError, match="larger subnet"):
        choose_address(subnet, taken, after=last)
    freed = ipaddress.ip_address("192.0.2.3")
    assert choose_address(subnet, taken - {freed}, after=last) == freed


def test_a_freed_address_rests_while_there_are_others() -> None:
    subnet = to_subnet("10.1.2.0/24")
    first = choose_address(subnet, set())
    assert choose_address(subnet, set(), after=first) != first


@given(st.ip_addresses(v=4))
def test_each_address_has_a_mac_of_its_own(address: ipaddress.IPv4Address) -> None:
    assert to_mac(mac_of(address)) == mac_of(address)
    assert bytes.fromhex(mac_of(address).replace(":", ""))[2:] == address.packed


@pytest.mark.parametrize("text", ["", "02:42:0a:59:00", "02:42:0a:59:00:2", "03:42:0a:59:00:02", "00:00:00:00:00:00", "02-42-0a-59-00-02", "0x:42:0a:59:00:02", "+2:42:0a:59:00:02", None, 5])
def test_what_is_no_mac_is_refused(text: object) -> None:
    with pytest.raises(UsageError, match="mac"):
        to_mac(text)
