"""Forging in a network: who has rights over its own interface may change that, and takes nobody's address, answers for nobody, hears nobody else."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from ipaddress import IPv4Address
from typing import Any

import pytest
from attrs import frozen

from sandbox import Container, Network, Security
from sandbox.net.addresses import mac_of as made_mac
from tests.escape.canary import Canary
from tests.escape.networks import FORGER, PORT, TOOL, answers, container, mac_of, said_by, started
from tests.support import needs, patience

pytestmark = [needs("root", "userns", "program:ip", "program:nft")]
FLOOD = 3000


@frozen
class Scene:
    """A network with an attacker, whoever it wants to cheat, and whom it plays. All have what it takes to look after their own interfaces."""

    net: Network
    attacker: Container
    victim: Container
    sister: Container

    @property
    def parties(self) -> dict[str, Any]:
        found = {name: [mac_of(self.net, c), c.address] for name, c in (("me", self.attacker), ("victim", self.victim), ("sister", self.sister))}
        return found | {"gateway": [self.gateway_mac, self.net.gateway]}

    @property
    def gateway_mac(self) -> str:
        return made_mac(IPv4Address(self.net.gateway))

    def bridge_table(self) -> set[str]:
        """The addresses that the bridge has learned."""
        pid = self.net.live.switch.pid
        said = subprocess.run(["nsenter", "-t", str(pid), "-n", "bridge", "fdb", "show"], capture_output=True, text=True, check=True).stdout
        return {line.split()[0] for line in said.splitlines() if "permanent" not in line and "static" not in line}


@pytest.fixture
def scene() -> Iterator[Callable[..., Scene]]:
    with ExitStack() as stack:

        def make(**options: Any) -> Scene:
            net = stack.enter_context(Network(internal=True, **options))
            return Scene(net, *(stack.enter_context(container(net, security=FORGER)) for _ in range(3)))

        yield make


# --- without rights ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"user": "1000:1000"}, {}, {"security": Security(cap_add=["NET_BIND_SERVICE", "CHOWN", "SETUID", "DAC_OVERRIDE"])}])
def test_without_rights_no_program_has_anothers_address(options: dict[str, Any]) -> None:
    """IP_FREEBIND takes no rights, IP_PKTINFO names a source: neither may make one up."""
    with Network(internal=True) as net, container(net) as victim, container(net) as sister, container(net, **options) as attacker:
        parties = {"victim": [mac_of(net, victim), victim.address], "sister": [mac_of(net, sister), sister.address]}
        with started(victim, "watch") as watcher:
            told = answers(attacker, "pretend", parties)
            heard = said_by(watcher)
    assert len(told) >= 12, told
    assert [name for name, answer in told.items() if answer == "ALLOWED"] == []
    assert heard == ""


def test_rights_over_a_namespace_of_ones_own_are_none_over_the_network() -> None:
    with Network(internal=True) as net, container(net, security=Security(nesting=True, seccomp=False)) as attacker:
        told = answers(attacker, "nested", {})
    assert len(told) == 3, told
    assert [name for name, answer in told.items() if answer == "ALLOWED"] == []


def test_who_shares_anothers_network_has_no_rights_over_it() -> None:
    """It has its own user namespace, to which its capabilities belong; the network is the other's."""
    with Network(internal=True) as net, container(net) as victim, container(net) as one, container(one, security=FORGER) as beside:
        parties = {"victim": [mac_of(net, victim), victim.address], "sister": [made_mac(IPv4Address(net.gateway)), net.gateway]}
        with started(victim, "watch") as watcher:
            told = answers(beside, "pretend", parties)
            said_by(watcher)
    assert len(told) >= 12, told
    assert [name for name, answer in told.items() if answer == "ALLOWED"] == []


# --- with rights over its own interface -------------------------------------------------------------------------------


def honest(scene: Scene, seen: str) -> list[str]:
    """The lines that tell of what nobody is, or of what nobody has to say to others."""
    known = {f"{mac} {address}" for mac, address in scene.parties.values()}
    good = {f"ip {who} udp{PORT}" for who in known} | {f"arp {who.split()[0]} {who}" for who in known}
    return [line for line in seen.splitlines() if line.removeprefix("saw ") not in good]


def test_nothing_forged_reaches_another(scene: Callable[..., Scene]) -> None:
    """Sources of IP, ARP and Ethernet, tags, fragments, redirects, router and neighbour advertisements, DHCP, spanning tree, LLDP."""
    here = scene()
    with started(here.victim, "sniff") as sniffer:
        told = answers(here.attacker, "forge", here.parties | {"flood": FLOOD})
        seen = said_by(sniffer)
    assert len(told) > 60
    assert sum(answer == "ALLOWED" for answer in told.values()) > 60  # all are sent; nobody gets them
    assert f"saw ip {mac_of(here.net, here.attacker)} {here.attacker.address} udp{PORT}" in seen  # but for the last one, which is honest
    assert honest(here, seen) == []
    assert here.bridge_table() == set()


def test_without_the_guard_what_is_forged_does_arrive(scene: Callable[..., Scene], monkeypatch: pytest.MonkeyPatch) -> None:
    """The attacks can succeed: it is the guard that stops them."""
    monkeypatch.setattr("sandbox._networks.guard.is_forger", lambda spec: False)
    here = scene()
    with started(here.victim, "sniff") as sniffer:
        answers(here.attacker, "forge", here.parties | {"flood": 40})
        seen = said_by(sniffer)
    assert len(honest(here, seen)) > 30
    assert len(here.bridge_table()) > 20


def test_an_eavesdropper_hears_nothing_of_others(scene: Callable[..., Scene], canary: Canary) -> None:
    """A bridge whose table is full, or that was told where others are, sends what is for them to everybody."""
    here = scene()
    with started(here.sister, "watch") as watcher, started(here.attacker, "record") as recorder:
        with started(here.victim, "sniff") as sniffer:
            answers(here.attacker, "forge", here.parties | {"flood": FLOOD})
            said_by(sniffer)
        send = f"import socket; s = socket.socket(2, 2); [s.sendto(d, ({here.sister.address!r}, {PORT})) for d in ({canary.secret.encode()!r}, b'done')]"
        here.victim.exec([TOOL[0], "-c", send], check=True)
        assert said_by(watcher) == f"from {here.victim.address}\n"
        assert recorder.stdin is not None
        recorder.stdin.close()
        assert recorder.stdout is not None
        recorded = recorder.stdout.read()
    assert recorded  # it hears what is for all: questions for addresses
    assert not canary.is_told_by(recorded)


TAKE_OVER = """
set -e
ip address add {sister}/24 dev eth0
ip address add {gateway}/24 dev eth0
{more}
for to in {victim} {gateway}; do ip neigh replace $to lladdr {victim_mac} dev eth0; done
"""


@pytest.mark.parametrize("more", ["", "ip link set eth0 address {sister_mac}", "ip link set eth0 down; ip link set eth0 address {gateway_mac}; ip link set eth0 up"])
def test_who_takes_anothers_address_gets_nothing_that_is_for_the_other(scene: Callable[..., Scene], canary: Canary, more: str) -> None:
    """By the means of its own kernel: the address, the MAC, and answers to whoever asks for them."""
    here = scene()
    named = {"sister": here.sister.address, "gateway": here.net.gateway, "victim": here.victim.address, "victim_mac": mac_of(here.net, here.victim)}
    named |= {"sister_mac": mac_of(here.net, here.sister), "gateway_mac": here.gateway_mac}
    script = TAKE_OVER.format(more=more.format(**named), **named)
    assert here.attacker.exec(["sh", "-c", script], text=True, timeout=patience(20)).stderr == ""
    send = f"import socket; s = socket.socket(2, 2); [s.sendto(d, ({here.sister.address!r}, {PORT})) for d in ({canary.secret.encode()!r}, b'done')]"
    with started(here.attacker, "record") as recorder, started(here.sister, "watch") as watcher:
        here.victim.exec(["ip", "neigh", "flush", "dev", "eth0"], check=True)
        here.victim.exec([TOOL[0], "-c", send], check=True)
        assert said_by(watcher) == f"from {here.victim.address}\n"
        neighbours = here.victim.exec(["ip", "neigh"], text=True, check=True).stdout
        assert f"{here.sister.address} dev eth0 lladdr {named['sister_mac']}" in neighbours
        assert recorder.stdin is not None
        recorder.stdin.close()
        assert recorder.stdout is not None
        assert not canary.is_told_by(recorder.stdout.read())


def test_a_guarded_container_is_a_good_member(scene: Callable[..., Scene]) -> None:
    """It reaches others and is reached, by TCP, UDP and ping, with packets of any size."""
    here = scene()
    script = "import socket; s = socket.create_server(('', 7000)); print('up', flush=True); c = s.accept()[0]; n = 0\nwhile d := c.recv(1 << 16): n += len(d)\nprint(n)"
    send = f"import socket; s = socket.create_connection(({here.sister.address!r}, 7000)); s.sendall(bytes(8 << 20))"
    for server, client in ((here.sister, here.attacker), (here.sister, here.victim)):
        with server.popen([TOOL[0], "-c", script], stdout=-1) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"up\n"
            client.exec([TOOL[0], "-c", send], check=True)
            assert process.stdout.read() == b"%d\n" % (8 << 20)
    with started(here.victim, "watch") as watcher:
        big = f"import socket; s = socket.socket(2, 2); [s.sendto(d, ({here.victim.address!r}, {PORT})) for d in (bytes(20000), b'done')]"
        here.attacker.exec([TOOL[0], "-c", big], check=True)
        assert said_by(watcher) == f"from {here.attacker.address}\n"


def test_rules_come_and_go_with_those_whom_they_hold() -> None:
    """Those who have no such rights need none; a container that connects while it runs has them before its interface is up."""
    with Network(internal=True) as net, Network(internal=True) as other, container(other, security=FORGER) as late:
        with container(net) as plain, container(net, security=FORGER), container(net, security=Security(cap_add=["NET_RAW"])):
            late.connect(net)
            rules = subprocess.run(["nsenter", "-t", str(net.live.switch.pid), "-n", "nft", "list", "ruleset"], capture_output=True, text=True, check=True).stdout
            assert rules.count("type filter hook ingress") == 3
            assert str(plain.address) not in rules
            late.disconnect(net)
        after = subprocess.run(["nsenter", "-t", str(net.live.switch.pid), "-n", "nft", "list", "ruleset"], capture_output=True, text=True, check=True).stdout
        assert "chain" not in after
