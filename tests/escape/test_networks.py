"""Networks: a container reaches those that it shares a network with, and nobody else, whatever it says about itself."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from sandbox import Network, Security
from sandbox.net.addresses import mac_of as made_mac
from tests.escape.networks import FORGER, PORT, Listeners, answers, container, mac_of, said_by, started
from tests.escape.targets import Target
from tests.support import needs, patience

PYTHON = "/usr/bin/python3"
root_only = needs("root", "userns", "program:ip")


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@needs("userns")
@pytest.mark.unprivileged
def test_a_container_on_no_network_reaches_nothing(target: Target, stack: ExitStack) -> None:
    """The host's loopback, its other addresses, and what has a name without a file (abstract Unix sockets: CVE-2020-15257)."""
    host = Listeners(stack)
    outcome = target.run(["/attacks/reach", *host.places])
    assert outcome.lines[-1] == "done: all tried"
    assert len(outcome.lines) == len(host.places) + 1
    assert outcome.successes == []
    assert host.heard() == []


def test_the_listeners_of_the_host_can_be_reached(attacks: Path, stack: ExitStack) -> None:
    """They would tell: the same program reaches all of them from outside."""
    host = Listeners(stack)
    subprocess.run([attacks / "reach", *host.places], check=True, capture_output=True)
    assert len(host.heard()) == len(host.places)


@root_only
def test_a_container_of_a_network_reaches_nothing_of_the_host_either(attacks: Path, stack: ExitStack) -> None:
    host, net = Listeners(stack), stack.enter_context(Network(internal=True))
    for security in (Security(), FORGER):
        with container(net, attacks=attacks, security=security) as c:
            result = c.exec(["/attacks/reach", *host.places], text=True, timeout=patience(60))
        assert result.stdout.endswith("done: all tried\n")
        assert "REACHED" not in result.stdout
        assert host.heard() == []


@root_only
def test_two_networks_do_not_reach_each_other(attacks: Path, stack: ExitStack) -> None:
    """By address, by the gateways, by routes through the switch, with the other's addresses as sources, by link-local ones, by multicast."""
    left, right = (stack.enter_context(Network(internal=True)) for _ in range(2))
    attacker = stack.enter_context(container(left, attacks=attacks, security=FORGER))
    victim = stack.enter_context(container(right, security=FORGER))
    beside = stack.enter_context(container(right))
    direct = [f"{word}:{address}/{PORT}" for address in (victim.address, right.gateway) for word in ("tcp", "udp")]
    many = [f"udp:{address}/{PORT}" for address in ("224.0.0.1", "239.1.2.3", right.subnet.replace(".0/24", ".255"))]
    script = f"""
        set -e
        ip route add default via {left.gateway}
        ip address add {beside.address}/32 dev lo
        /attacks/reach {" ".join(direct)}
        ip address del {beside.address}/32 dev lo
        ip route add {right.subnet} dev eth0
        ip neigh replace {victim.address} lladdr {made_mac(IPv4Address(left.gateway))} dev eth0
        /attacks/reach {" ".join([*direct, *many])}
    """
    with started(victim, "sniff", {"until": "the end"}) as sniffer:
        result = attacker.exec(["sh", "-c", script], text=True, timeout=patience(60))
        assert result.ok, result
        assert result.stdout.count("done: all tried") == 2
        assert "REACHED" not in result.stdout
        beside.exec([PYTHON, "-c", f"import socket; socket.socket(2, 2).sendto(b'the end', ({victim.address!r}, 9))"], check=True)
        seen = said_by(sniffer)
    assert f"saw ip {mac_of(right, beside)} {beside.address} udp" in seen
    known = {mac_of(right, beside), made_mac(IPv4Address(right.gateway))}
    assert {line.split()[2] for line in seen.splitlines()} <= known, seen


@root_only
def test_no_source_route_leads_through_a_switch_or_a_sister(stack: ExitStack) -> None:
    """Loose source routing takes no rights: whoever forwards would carry a datagram from one network into another."""
    left, right = (stack.enter_context(Network(internal=True)) for _ in range(2))
    attacker, sister, victim = (stack.enter_context(container(net)) for net in (left, left, right))
    with started(victim, "watch") as watcher:
        hops = [left.gateway, sister.address, right.gateway]
        told = answers(attacker, "source_route", {"hops": hops, "targets": [victim.address, right.gateway, "127.0.0.1"], "port": PORT})
        assert len(told) == 9
        assert set(told) >= {f"source route by {left.gateway} to {victim.address}"}
        own = stack.enter_context(container(right))
        answers(own, "finish", {"victim": ["", victim.address]})
        assert said_by(watcher) == ""


@root_only
def test_nothing_in_a_network_forwards_or_believes_redirects(stack: ExitStack) -> None:
    """A new namespace takes these from the host, which may well forward (Docker has it do so)."""
    net = stack.enter_context(Network(internal=True))
    inside = stack.enter_context(container(net))
    asked = [f"/proc/sys/net/ipv4/conf/{place}" for place in ("eth0/forwarding", "eth0/accept_redirects", "all/accept_redirects", "all/accept_source_route")]
    assert inside.exec(["cat", *asked], text=True, check=True).stdout.split() == ["0"] * 4
