"""What a network is told, what is refused, who gets which address, and what is sent to the kernel."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv4Network, IPv6Network
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from sandbox import Container, Network, Pool, _host
from sandbox.errors import ClosedError, UnsupportedError, UsageError
from sandbox.net import mac_of
from sandbox.net.rtnetlink import Batch, bridge, bridge_address, routes, templates
from sandbox.net.spec import Addresses, Subnets

SUBNET = IPv4Network("10.1.2.0/24")
SUBNET6 = IPv6Network("fd00:1:2:3::/64")


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
        ({"ipv6": 1}, "ipv6"),
        ({"subnet": "fd00:1::/64"}, "subnet6="),
        ({"subnet6": "fd00:1::/64"}, "ipv6=True"),
        ({"subnet6": "10.1.2.0/24", "ipv6": True}, "not of IPv6"),
        ({"mtu": 1279, "ipv6": True}, "1280"),
    ],
)
def test_what_is_no_network_is_refused_before_anything_is_touched(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Network(**options)


def test_an_ordinary_user_has_no_network_that_the_host_forwards_for(monkeypatch: pytest.MonkeyPatch) -> None:
    known = attrs.evolve(_host.host(), privileged=False)
    monkeypatch.setattr("sandbox.network._host.host", lambda: known)
    with pytest.raises(UnsupportedError, match="internal=True"):
        Network(uplink="kernel").create()


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
    made = templates(SUBNET, SUBNET6, mtu=1500, number=3)
    address = SUBNET.network_address + host
    message = made.link_of(port=port, mac=mac_of(address))
    link = Batch.of(message).naming(fd)
    assert len(link) == len(message) == len(made.link) == struct.unpack_from("=I", link)[0]
    assert bytes.fromhex(mac_of(address).replace(":", "")) in link
    assert struct.pack("=HHI", 8, 28, fd) in link  # IFLA_NET_NS_FD
    assert struct.unpack_from("=I", link, 20)[0] == port
    assert (made.interface, made.index) == ("eth3", 1004)
    address6 = SUBNET6.network_address + host
    first, up, second = made.addresses_of(address, address6, mac_of(address))
    assert first.count(address.packed) >= 2
    assert struct.unpack_from("=I", up, 20)[0] == 1004
    assert second.count(address6.packed) >= 2
    neighbour = made.neighbour_of(port=port, mac=mac_of(address))
    assert neighbour.endswith(bytes.fromhex(mac_of(address).replace(":", "")) + b"\0\0")


def test_a_network_without_ipv6_has_no_message_of_it() -> None:
    assert len(templates(SUBNET, None, mtu=1500, number=0).addresses_of(IPv4Address("10.1.2.3"), None, mac_of(IPv4Address("10.1.2.3")))) == 2


def test_a_bridge_is_one_link_and_an_address_of_each_version() -> None:
    link = bridge("02:42:0a:01:02:01", 9000)
    assert b"bridge\0" in link
    assert struct.pack("=HHI", 8, 4, 9000) in link
    assert IPv4Address("10.1.2.255").packed in bridge_address(IPv4Address("10.1.2.1"), SUBNET)
    assert (SUBNET6.network_address + 1).packed in bridge_address(SUBNET6.network_address + 1, SUBNET6)


def test_a_wanted_address_is_an_address_of_a_host_that_nobody_has() -> None:
    addresses = Addresses(IPv4Network("10.1.2.0/29"), IPv4Address("10.1.2.1"))
    for wrong in ("10.1.2.0", "10.1.2.7", "10.1.3.1", "10.1.2.1"):
        with pytest.raises(UsageError, match="address: "):
            addresses.take(IPv4Address(wrong))
    mine = addresses.take(IPv4Address("10.1.2.2"))
    with pytest.raises(UsageError, match="taken"):
        addresses.check(mine)
    assert addresses.take(rather=mine) != mine
    assert addresses.take(rather=IPv4Address("10.1.2.6")) == IPv4Address("10.1.2.6")


SUBNET_OF_RULES = IPv4Network("10.1.2.0/28")


class AddressRules(RuleBasedStateMachine):
    """Whoever takes and gives back, in whatever order and by whatever wish: nobody's is given out, and none is lost."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses = Addresses(SUBNET_OF_RULES, IPv4Address("10.1.2.1"))
        self.held: list[IPv4Address] = []
        self.lent: list[IPv4Address] = []  # which are free for whoever has need of them

    def hold(self, address: IPv4Address) -> None:
        self.held.append(address)
        if address in self.lent:
            self.lent.remove(address)
            assert not self.addresses.claim(address)

    def free(self) -> set[IPv4Address]:
        return {*SUBNET_OF_RULES.hosts()} - {*self.held, self.addresses.gateway}

    @rule(rather=st.none() | st.integers(0, 15))
    def take(self, rather: int | None) -> None:
        free = self.free()
        wish = None if rather is None else SUBNET_OF_RULES.network_address + rather
        if not free:
            with pytest.raises(UsageError, match="larger subnet"):
                self.addresses.take(rather=wish)
            return
        found = self.addresses.take(rather=wish)
        assert found in free
        assert wish not in free or wish in self.lent or found == wish
        assert found not in self.lent or {*self.lent} == free
        self.hold(found)

    @rule(number=st.integers(0, 15))
    def want(self, number: int) -> None:
        wanted = SUBNET_OF_RULES.network_address + number
        if wanted in self.free():
            self.hold(self.addresses.take(wanted))
        else:
            with pytest.raises(UsageError, match="address"):
                self.addresses.take(wanted)

    @rule(at=st.integers(0, 15))
    def give_back(self, at: int) -> None:
        if self.held:
            self.addresses.release(self.held.pop(at % len(self.held)))

    @rule(rather=st.none() | st.integers(0, 15))
    def lend(self, rather: int | None) -> None:
        found = self.addresses.lend(rather=None if rather is None else SUBNET_OF_RULES.network_address + rather)
        if found is not None:  # nobody has it, nor was it lent
            assert found in self.free()
            assert found not in self.lent
            self.lent.append(found)
        assert found is not None or 2 * len(self.lent) >= len(self.free())

    @rule(at=st.integers(0, 15), takes=st.booleans())
    def claim_or_give_back_what_was_lent(self, at: int, takes: bool) -> None:
        if self.lent:
            lent = self.lent.pop(at % len(self.lent))
            if takes:
                assert self.addresses.claim(lent)
                self.held.append(lent)
            else:
                self.addresses.give_back(lent)
            assert not self.addresses.claim(lent)

    @invariant()
    def nobody_shares(self) -> None:
        assert len({*self.held}) == len(self.held)


TestAddresses = AddressRules.TestCase


def test_subnets_of_ipv6_are_of_nobody_else() -> None:
    subnets = Subnets()
    found = [subnets.take6(None) for _ in range(4)]
    assert len({*found}) == 4
    assert all(net.prefixlen == 64 and net.subnet_of(IPv6Network("fd00::/8")) for net in found)
    with pytest.raises(UsageError, match="another network"):
        subnets.take6(found[0])
    subnets.release(found[0])
    assert subnets.take6(found[0]) == found[0]
