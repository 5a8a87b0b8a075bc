"""What a network is told, what is refused, who gets which address, and what is sent to the kernel."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv4Network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox import Container, Network, Pool
from sandbox.errors import ClosedError, UnsupportedError, UsageError
from sandbox.net import mac_of
from sandbox.net.rtnetlink import bridge, routes, templates
from sandbox.net.spec import Addresses, Subnets

SUBNET = IPv4Network("10.1.2.0/24")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"name": "a b"}, "name"),
        ({"name": ""}, "name"),
        ({"name": "-a"}, "name"),
        ({"name": 3}, "name"),
        ({"name": "a" * 64}, "name"),
        ({"subnet": "10.1.2.3/24"}, "subnet"),
        ({"subnet": "10.1.2.0/31"}, "subnet"),
        ({"gateway": "10.1.2.1"}, "subnet="),
        ({"subnet": "10.1.2.0/24", "gateway": "10.1.3.1"}, "gateway"),
        ({"subnet": "10.1.2.0/24", "gateway": "10.1.2.255"}, "gateway"),
        ({"internal": 1}, "internal"),
        ({"mtu": 100}, "mtu"),
        ({"mtu": 65536}, "mtu"),
        ({"mtu": True}, "mtu"),
        ({"labels": {"a": 1}}, "labels"),
        ({"labels": ["a"]}, "labels"),
    ],
)
def test_what_is_no_network_is_refused_before_anything_is_touched(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Network(**options)


def test_ipv6_is_refused_by_its_name() -> None:
    with pytest.raises(UnsupportedError, match="IPv4 only"):
        Network(subnet="fd00:1::/64")


def test_a_network_that_reaches_outside_is_refused_in_words() -> None:
    with pytest.raises(UnsupportedError, match="internal=True"):
        Network().create()


def test_a_pool_refuses_networks() -> None:
    net = Network(internal=True)
    with pytest.raises(UsageError, match="net=None"):
        Pool(net=net)
    with pytest.raises(UsageError, match="net=None"):
        Pool(Container(net=net))


def test_what_was_not_created_has_no_subnet() -> None:
    network = Network("x", internal=True, labels={"a": "b"})
    assert (network.name, network.is_internal, dict(network.labels)) == ("x", True, {"a": "b"})
    with pytest.raises(ClosedError, match="not created"):
        _ = network.subnet
    network.close()
    with pytest.raises(ClosedError, match="was closed"):
        network.create()


@given(st.lists(st.booleans(), max_size=60))
def test_no_two_hold_the_same_address_at_a_time(steps: list[bool]) -> None:
    addresses = Addresses(IPv4Network("10.1.2.0/27"), IPv4Address("10.1.2.1"))
    held: list[IPv4Address] = []
    for takes in steps:
        if takes and len(held) < 29:
            held.append(addresses.take())
        elif held:
            addresses.release(held.pop(0))
        assert len({*held, addresses.gateway}) == len(held) + 1


def test_a_full_network_says_so() -> None:
    addresses = Addresses(IPv4Network("10.1.2.0/29"), IPv4Address("10.1.2.1"))
    held = [addresses.take() for _ in range(5)]
    with pytest.raises(UsageError, match="larger subnet"):
        addresses.take()
    addresses.release(held[2])
    assert addresses.take() == held[2]


def test_a_chosen_subnet_overlaps_with_no_route_of_the_host_and_no_other_network() -> None:
    subnets, found = Subnets(), list[IPv4Network]()
    for _ in range(5):
        found.append(subnets.take(None))
    others = [net for net in routes() if net.prefixlen]
    assert not [(a, b) for at, a in enumerate(found) for b in [*found[:at], *others] if a.overlaps(b)]
    with pytest.raises(UsageError, match="another network"):
        subnets.take(found[1])
    subnets.release(found[1])
    assert subnets.take(found[1]) == found[1]


def test_the_hosts_own_loopback_is_among_its_routes() -> None:
    assert IPv4Network("127.0.0.0/8") in routes()


@given(st.integers(0, 253), st.integers(1002, 2**31 - 1), st.integers(0, 2**20))
def test_a_template_is_filled_with_what_is_asked_and_nothing_else_moves(host: int, port: int, fd: int) -> None:
    made = templates(SUBNET, mtu=1500)
    address = SUBNET.network_address + host
    link = made.link_of(port=port, mac=mac_of(address), namespace=fd)
    assert len(link) == len(made.link) == struct.unpack_from("=I", link)[0]
    assert bytes.fromhex(mac_of(address).replace(":", "")) in link
    assert struct.pack("=HHI", 8, 28, fd) in link  # IFLA_NET_NS_FD
    assert struct.unpack_from("=I", link, 20)[0] == port
    assert made.address_of(address).count(address.packed) >= 2


def test_a_bridge_is_one_link_and_one_address() -> None:
    link, address = bridge(IPv4Address("10.1.2.1"), SUBNET, mac="02:42:0a:01:02:01", mtu=9000)
    assert b"bridge\0" in link
    assert struct.pack("=HHI", 8, 4, 9000) in link
    assert IPv4Address("10.1.2.255").packed in address
