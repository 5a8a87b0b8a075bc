"""A container's places in networks, on the real kernel: several at once, chosen addresses, coming and going, and IPv6."""

from __future__ import annotations

import json
import os
import threading
import time
from contextlib import ExitStack
from typing import Any

import pytest

import sandbox
from sandbox import ClosedError, Container, Join, Network, SetupError, UsageError
from sandbox._networks import membership
from sandbox._networks.membership import Arrival
from sandbox._networks.naming import key_of
from sandbox.net.rtnetlink import Templates
from tests.live.test_network import addresses_of, ask, serving
from tests.netns import alone, world
from tests.support import needs, patience

pytestmark = [needs("root", "userns", "program:ip"), pytest.mark.usefixtures("no_leftovers")]

LOOPBACK = ["127.0.0.1", "::1"]


def own_addresses(container: Container) -> list[str]:
    return [address for address in addresses_of(container) if address not in LOOPBACK]


def hosts_of(container: Container) -> list[str]:
    return [line.split()[0] for line in container.read_bytes("/etc/hosts").decode().splitlines() if line.split()[1] == container.spec.hostname]


def links_of(container: Container) -> dict[str, dict[str, Any]]:
    found = json.loads(container.exec(["ip", "-json", "-details", "link"], check=True).stdout)
    return {link["ifname"]: link for link in found if link["ifname"] != "lo"}


def default_of(container: Container, version: int = 4) -> list[tuple[str, str]]:
    found = json.loads(container.exec(["ip", f"-{version}", "-json", "route", "show", "default"], check=True).stdout or b"[]")
    return [(route["gateway"], route["dev"]) for route in found]


def test_a_container_in_several_networks_reaches_the_others_of_each() -> None:
    with ExitStack() as stack:
        nets = [stack.enter_context(Network(f"n{number}", internal=True)) for number in range(3)]
        both = stack.enter_context(Container(net=nets, hostname="both"))
        others = [stack.enter_context(Container(net=net)) for net in nets]
        assert [*both.endpoints] == ["n0", "n1", "n2"]
        assert [place.interface for place in both.endpoints.values()] == ["eth0", "eth1", "eth2"]
        assert own_addresses(both) == [place.address for place in both.endpoints.values()] == hosts_of(both)
        links = links_of(both)
        assert [*links] == ["eth0", "eth1", "eth2"]
        assert len({link["ifindex"] for link in links.values()}) == 3
        assert [link["address"] for link in links.values()] == [place.mac for place in both.endpoints.values()]
        with serving(both):
            for other, place in zip(others, both.endpoints.values(), strict=True):
                assert ask(other, place.address).exit_code == 0
        with serving(others[1]):
            assert ask(others[0], str(others[1].address)).exit_code == 1  # who is in two networks is no way from one to the other
            assert ask(both, str(others[1].address)).exit_code == 0


def test_a_container_gets_the_address_and_the_mac_that_it_wants() -> None:
    with Network(internal=True, subnet="10.77.3.0/24") as net:
        join = Join(net, address="10.77.3.77", mac="02:00:00:00:00:77", aliases=["db"])
        with Container(net=join) as c, Container(net=net) as other, serving(c):
            (place,) = net.containers[:1]
            assert (place.address, place.mac, place.aliases) == ("10.77.3.77", "02:00:00:00:00:77", ("db",))
            assert own_addresses(c) == ["10.77.3.77"]
            assert links_of(c)["eth0"]["address"] == "02:00:00:00:00:77"
            assert ask(other, "10.77.3.77").exit_code == 0
            for wrong, why in (
                (Join(net, address="10.77.3.77"), "taken"),
                (Join(net, address="10.77.3.1"), "gateway"),
                (Join(net, address="10.77.4.2"), "not an address of a host"),
                (Join(net, address="10.77.3.255"), "not an address of a host"),
                (Join(net, address6="fd00::2"), "ipv6=True"),
                (Join(net, mac="02:00:00:00:00:77"), "mac"),
            ):
                with pytest.raises(UsageError, match=why), Container(net=wrong):
                    pass
            assert [found.address for found in net.containers] == ["10.77.3.77", other.address]
        for _ in range(3):  # one that comes again with the same address and MAC is found at once
            with Container(net=join) as c, Container(net=net) as other, serving(c):
                assert ask(other, "10.77.3.77", timeout_s=2.0).exit_code == 0


def test_wrong_places_are_refused_before_a_container_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    def no(*_: object, **__: object) -> None:
        raise AssertionError("something was started")

    with Network(internal=True, subnet="10.77.4.0/24") as net:
        monkeypatch.setattr("sandbox._start.start_steps", no)
        for join in (Join(net, address="10.77.4.1"), Join(net, address="10.9.9.9")):
            with pytest.raises(UsageError), Container(net=join):
                pass
        with pytest.raises(ClosedError, match="not created"), Container(net=[net, Network(internal=True)]):
            pass
        monkeypatch.undo()


def test_a_running_container_is_connected_and_disconnected() -> None:
    with Network("one", internal=True) as one, Network("two", internal=True) as two, Container(hostname="late") as c, Container(net=two) as other:
        assert (c.endpoints, c.address, own_addresses(c)) == ({}, None, [])
        assert c.connect(one) == c.endpoints["one"]
        assert c.connect(Join(two, aliases=["late2"])).interface == "eth1"
        assert own_addresses(c) == [place.address for place in c.endpoints.values()] == hosts_of(c)
        with serving(c):
            assert ask(other, c.endpoints["two"].address).exit_code == 0
        with pytest.raises(UsageError, match="already"):
            c.connect(one)
        c.disconnect(one)
        assert [*c.endpoints] == ["two"]
        assert [*links_of(c)] == ["eth1"]
        assert one.containers == ()
        assert hosts_of(c) == [c.address]
        with pytest.raises(UsageError, match="not in 'one'"):
            c.disconnect(one)
        assert c.connect(one).interface == "eth0"
        for net in (one, two):
            c.disconnect(net)
        assert (own_addresses(c), links_of(c), hosts_of(c)) == ([], {}, ["127.0.1.1"])
        c.connect(two)
        assert len(two.containers) == 2


def test_what_shares_a_network_cannot_be_connected() -> None:
    with Network(internal=True) as net, Container(net="host") as host, Container(net=net) as c, Container(net=c) as shared:
        for whose in (host, shared):
            for change in (whose.connect, whose.disconnect):
                with pytest.raises(UsageError, match="shares the network"):
                    change(net)
    with pytest.raises(ClosedError):
        Container().connect(net)
    with Container() as alone:
        with pytest.raises(ClosedError):
            alone.connect(net)
        with pytest.raises(UsageError, match="neither a Network"):
            alone.connect(7)  # type: ignore[arg-type]
    with pytest.raises(ClosedError):
        alone.connect(net)


def test_a_closed_network_takes_its_interfaces_at_once() -> None:
    with Network("stays", internal=True) as stays, Container(net=stays) as c:
        for _ in range(3):
            with Network("goes", internal=True) as goes:
                assert c.connect(goes).interface == "eth1"
            assert [*links_of(c)] == ["eth0"]
            assert [*c.endpoints] == ["stays"]
            assert hosts_of(c) == [c.address]


def test_a_network_may_be_closed_while_containers_come_and_go() -> None:
    errors: list[BaseException] = []
    deadline = time.monotonic() + patience(60)

    def come_and_go(net: Network) -> None:
        try:
            with Container() as c:
                while time.monotonic() < deadline:
                    c.connect(net)
                    c.disconnect(net)
            errors.append(AssertionError("it was never closed"))
        except ClosedError:
            pass
        except BaseException as error:
            errors.append(error)

    def is_there(net: Network) -> bool:
        return bool(net.containers)

    net = Network(internal=True).create()
    threads = [threading.Thread(target=come_and_go, args=(net,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    while not is_there(net):
        pass
    net.close()
    for thread in threads:
        thread.join()
    assert errors == []


@pytest.mark.parametrize("step", ["link", "address", "hook", "hosts"])
def test_a_failure_at_any_step_takes_everything_back(step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    gone: list[Network] = []

    def fine(arrival: Arrival) -> Any:
        return lambda: gone.append(arrival.network)

    def fail(*_: object, **__: object) -> Any:
        raise SetupError("as planned", 5, step="network")

    places = {"link": (Templates, "link_of"), "address": (Templates, "addresses_of"), "hosts": (membership.Membership, "_write_files")}
    with Network("a", internal=True) as first, Network("b", internal=True) as net, Container(net=first) as c:
        before = c.endpoints
        with monkeypatch.context() as patch:
            patch.setattr(membership, "ON_ARRIVAL", (fine, fail) if step == "hook" else (fine,))
            if step != "hook":
                patch.setattr(*places[step], fail)
            with pytest.raises(SetupError, match="as planned"):
                c.connect(net)
            with pytest.raises(SetupError, match="as planned"), Container(net=[net]):
                pass
        assert gone == ([net, net] if step in ("hook", "hosts") else [])
        assert (c.endpoints, net.containers, [*links_of(c)]) == (before, (), ["eth0"])
        assert c.connect(net).interface == "eth1"
        assert own_addresses(c) == [place.address for place in c.endpoints.values()]


def test_hooks_hear_of_each_that_comes_and_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[tuple[str, str, bool]] = []

    def hook(arrival: Arrival) -> Any:
        heard.append(("comes", arrival.network.name, arrival.is_first))
        return lambda: heard.append(("goes", arrival.network.name, arrival.place.session.is_alive))

    monkeypatch.setattr(membership, "ON_ARRIVAL", (hook,))
    with Network("a", internal=True) as a, Network("b", internal=True) as b, Container(net=[a, b]) as c:
        c.disconnect(a)
        b.close()
        c.connect(a)
    assert heard == [
        ("comes", "a", True), ("comes", "b", False), ("goes", "a", True), ("goes", "b", True), ("comes", "a", True), ("goes", "a", False),
    ]  # fmt: skip


@alone
def test_the_default_route_goes_through_the_first_network_with_a_way_outside() -> None:
    with ExitStack() as stack:
        stack.enter_context(world(ipv6=True))
        inner = stack.enter_context(Network("inner", internal=True))
        out, out6 = (stack.enter_context(Network(f"out{n}", ipv6=n == 6, mtu=1400)) for n in (4, 6))
        c = stack.enter_context(Container(net=[inner, out, out6]))
        assert default_of(c) == [(out.gateway, "eth1")]
        assert default_of(c, 6) == [(out6.gateway6, "eth2")]
        c.disconnect(out)
        assert default_of(c) == [(out6.gateway, "eth2")]
        c.connect(out)
        assert default_of(c) == [(out6.gateway, "eth2")]  # it is the last one now
        out6.close()
        assert default_of(c) == [(out.gateway, "eth1")]
        assert default_of(c, 6) == []
        c.disconnect(out)
        assert default_of(c) == []


def test_a_network_with_ipv6_gives_addresses_of_both() -> None:
    with Network(internal=True, ipv6=True, subnet="10.77.5.0/24", subnet6="fd77:5::/64") as net, Network(internal=True) as old:
        assert (net.subnet6, net.gateway6, old.subnet6) == ("fd77:5::/64", "fd77:5::1", None)
        with Container(net=[net, old], hostname="six") as c, Container(net=Join(net, address6="fd77:5::77")) as other:
            place = c.endpoints[net.name]
            assert (place.address, place.address6) == ("10.77.5.2", "fd77:5::2")
            # Each at once, without asking whether somebody has it; and none that nobody gave.
            assert own_addresses(c) == ["10.77.5.2", "fd77:5::2", c.endpoints[old.name].address]
            assert own_addresses(other) == ["10.77.5.3", "fd77:5::77"]
            said = c.exec(["ip", "-6", "address", "show", "dev", "eth0"], text=True).stdout
            assert "tentative" not in said
            assert c.exec(["ip", "-6", "route"], text=True).stdout.split()[0] == "fd77:5::/64"
            for name, value in (("accept_ra", b"0"), ("disable_ipv6", b"0"), ("accept_dad", b"0")):
                assert c.read_bytes(f"/proc/sys/net/ipv6/conf/eth0/{name}").strip() == value
            assert c.read_bytes("/proc/sys/net/ipv6/conf/eth1/disable_ipv6").strip() == b"1"
            assert b"fd77:5::2\tsix\n" in c.read_bytes("/etc/hosts")
            with pytest.raises(UsageError, match="taken"), Container(net=Join(net, address6="fd77:5::2")):
                pass
            assert c.exec(["python3", "-c", PING6, "fd77:5::77"], text=True).stdout == "('fd77:5::2', 'fd77:5::77')\n"
    with Network(internal=True, ipv6=True) as chosen, Container(net=chosen) as c:
        assert str(chosen.subnet6).startswith("fd")
        assert c.endpoints[chosen.name].address6 in own_addresses(c)


# Neighbour discovery, and no listener: whoever has the address refuses, and tells its own by that.
PING6 = """
import socket, sys
with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as s:
    s.settimeout(10)
    s.connect((sys.argv[1], 9))
    s.send(b"x")
    try:
        s.recv(1)
    except ConnectionRefusedError:
        print((s.getsockname()[0], s.getpeername()[0]))
"""


def test_extra_hosts_stay_beside_the_addresses_of_networks() -> None:
    with Network(internal=True) as net, Container(net=net, hostname="box", extra_hosts={"db": "10.0.0.9"}) as c:
        assert c.read_bytes("/etc/hosts").splitlines()[-2:] == [f"{c.address}\tbox".encode(), b"10.0.0.9\tdb"]


def test_a_thousand_connections_leave_nothing() -> None:
    with Network(internal=True, ipv6=True, subnet="10.77.6.0/28") as net, Container() as c:
        c.connect(net)
        c.disconnect(net)
        before = sorted(os.listdir("/proc/self/fd"))
        for _ in range(1000):
            c.connect(net)
            c.disconnect(net)
        assert (c.endpoints, net.containers, links_of(c)) == ({}, (), {})
        assert len(os.listdir("/proc/self/fd")) <= len(before)
        with ExitStack() as stack:  # no address was lost
            mine = [stack.enter_context(Container(net=net)) for _ in range(13)]
            assert len({one.address for one in mine}) == 13


def test_asyncio_connects_and_disconnects_too() -> None:
    import asyncio

    async def main(net: Network) -> None:
        async with sandbox.aio.Container() as c:
            place = await c.connect(net)
            assert c.endpoints == {net.name: place}
            assert place.address.encode() in (await c.exec(["ip", "-json", "address"])).stdout
            await c.disconnect(net)
            assert c.endpoints == {}
            await c.connect(Join(net, aliases=["db"]))
        assert net.containers == ()

    with Network(internal=True) as net:
        asyncio.run(main(net))


@pytest.mark.parametrize("planted", ["ln -sf /etc/passwd /etc/hosts", "rm /etc/hosts; mkfifo /etc/hosts", "rm -rf /etc"])
def test_what_a_container_makes_of_its_files_keeps_nobody_from_leaving(planted: str) -> None:
    with Container(user=0) as c:
        with Network("one", internal=True) as one, Network("two", internal=True) as two:
            c.connect(one)
            before = c.read_bytes("/etc/passwd")
            c.exec(["sh", "-c", planted])
            c.connect(two)
            c.disconnect(one)
            assert [*c.endpoints] == ["two"]
            if "passwd" in planted:
                assert c.read_bytes("/etc/passwd") == before
        assert [*c.endpoints] == []


def test_no_container_has_a_key_that_another_one_had() -> None:
    with Container() as one:
        first = key_of(one._live().session)
        assert key_of(one._live().session) == first
    with Container() as two:
        assert key_of(two._live().session) != first
