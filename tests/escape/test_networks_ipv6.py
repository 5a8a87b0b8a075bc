"""Attacks on networks with IPv6: forged sources, routers and neighbours, detours past walls and lists, and the host's ``::1``."""

from __future__ import annotations

import shlex
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from attrs import frozen

import sandbox
from sandbox import PIPE, Container, Network
from tests.escape.networks import FORGER, PORT, answers, container, mac_of, said_by, started
from tests.netns import HOST6, PYTHON, WORLD6, alone, said, world
from tests.support import needs

pytestmark = [needs("root", "userns", "program:ip", "program:nft")]


@frozen
class Scene:
    """A network with an attacker, whoever it wants to cheat, and whom it plays."""

    net: Network
    attacker: Container
    victim: Container
    sister: Container

    def address(self, who: Container) -> str:
        found = who.endpoints[self.net.name].address6
        assert found is not None
        return found

    @property
    def parties(self) -> dict[str, Any]:
        found = {name: [mac_of(self.net, c), self.address(c)] for name, c in (("me", self.attacker), ("victim", self.victim), ("sister", self.sister))}
        gateway = ":".join(f"{octet:02x}" for octet in (2, 0x42, *map(int, self.net.gateway.split("."))))
        return found | {"gateway": [gateway, self.net.gateway6]}

    def routes(self, who: Container) -> str:
        return who.exec(["sh", "-c", "ip -6 route; ip -6 -oneline address; ip -6 neigh"], text=True, check=True).stdout


@pytest.fixture
def scene() -> Iterator[Scene]:
    with ExitStack() as stack:
        net = stack.enter_context(Network(internal=True, ipv6=True))
        yield Scene(net, *(stack.enter_context(container(net, security=FORGER)) for _ in range(3)))


def honest(scene: Scene, seen: str) -> list[str]:
    """The lines that tell of what nobody is, or of what nobody has to say to others."""
    good = {f"ipv6 {mac} {address} udp{PORT}" for mac, address in scene.parties.values()}
    good.add(f"ipv6 {scene.parties['gateway'][0]} :: next0")  # the bridge's own kernel says which groups it hears (MLD)
    return [line for line in seen.splitlines() if line.removeprefix("saw ") not in good]


def test_nothing_forged_reaches_another(scene: Scene) -> None:
    """Sources, router and neighbour advertisements, redirects, also behind extension headers, in fragments and behind tags."""
    with started(scene.victim, "sniff") as sniffer:
        told = answers(scene.attacker, "forge6", scene.parties)
        seen = said_by(sniffer)
    assert sum(answer == "ALLOWED" for answer in told.values()) > 40, told  # all are sent; nobody gets them
    assert f"saw ipv6 {mac_of(scene.net, scene.attacker)} {scene.address(scene.attacker)} udp{PORT}" in seen  # but for the last one, which is honest
    assert honest(scene, seen) == []


def test_without_the_guard_what_is_forged_arrives_and_still_nobody_believes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The attacks can succeed: it is the guard that stops them. Behind it, nobody listens to routers, or asks who a neighbour is."""
    monkeypatch.setattr("sandbox._networks.guard.is_forger", lambda spec: False)
    monkeypatch.setattr("sandbox._networks.guard.Guard.fence", lambda *_, **__: None)
    with ExitStack() as stack:
        net = stack.enter_context(Network(internal=True, ipv6=True))
        here = Scene(net, *(stack.enter_context(container(net, security=FORGER)) for _ in range(3)))
        before = here.routes(here.victim)
        assert here.address(here.sister) in before
        with started(here.victim, "sniff") as sniffer:
            answers(here.attacker, "forge6", here.parties)
            seen = said_by(sniffer)
        assert len(honest(here, seen)) > 20
        assert "icmp134" in seen
        assert "icmp136" in seen
        states = ("STALE", "REACHABLE", "DELAY", "PROBE", "INCOMPLETE", "FAILED")  # of neighbours that it has asked for itself
        after = {line for line in here.routes(here.victim).splitlines() if not any(state in line for state in states)}
        assert after == set(before.splitlines())


@pytest.mark.parametrize("options", [{"user": "1000:1000"}, {}])
def test_without_rights_no_program_has_anothers_address(options: dict[str, Any]) -> None:
    """Unlike IPv4, IPv6 sends what IPV6_FREEBIND lets anybody bind; the port of the switch does not take it."""
    with Network(internal=True, ipv6=True) as net, container(net) as victim, container(net) as sister, container(net, **options) as attacker:
        here = Scene(net, attacker, victim, sister)
        with started(victim, "watch6") as watcher:
            told = answers(attacker, "pretend6", here.parties)
            heard = said_by(watcher)
    assert len(told) >= 6, told
    assert {name for name, answer in told.items() if answer == "ALLOWED"} <= {"freebind"}
    assert heard == ""


def test_without_the_ports_rule_a_source_that_anybody_may_bind_arrives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sandbox._networks.guard.Guard.fence", lambda *_, **__: None)
    with Network(internal=True, ipv6=True) as net, container(net) as victim, container(net) as sister, container(net) as attacker:
        here = Scene(net, attacker, victim, sister)
        with started(victim, "watch6") as watcher:
            answers(attacker, "pretend6", here.parties)
            assert said_by(watcher) == f"from {here.address(sister)}\n"


def test_the_rule_comes_with_the_container_and_goes_with_it() -> None:
    with Network(internal=True, ipv6=True) as net, Network(internal=True) as other, container(other) as late:
        inside = ["nsenter", "-t", str(net.live.switch.pid), "-n", "nft", "list", "ruleset"]
        with container(net) as one:
            late.connect(net)
            rules = said(*inside)
            for member in (one, late):
                assert f"ip6 saddr != {member.endpoints[net.name].address6} drop" in rules
            late.disconnect(net)
        assert "chain" not in said(*inside)
        assert said("nsenter", "-t", str(other.live.switch.pid), "-n", "nft", "list", "ruleset") == ""


# ---- Outside ----

# Says what comes by UDP, until it is told to end.
LISTEN = f"""
import socket
s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
s.bind(("::", {PORT}))
print("up", flush=True)
while (said := s.recv(100)) != b"the end":
    print(said.decode(), flush=True)
"""
# Puts frames (in hex) on an interface.
FORGE = """
import socket, sys
with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as s:
    s.bind((sys.argv[1], 0))
    for frame in sys.argv[2:]:
        s.send(bytes.fromhex(frame))
"""


def frame(to: str, source: str, destination: str, port: int, words: str) -> str:
    """A datagram in a frame, as hex. to: a MAC."""
    ends = b"".join(socket.inet_pton(socket.AF_INET6, address) for address in (source, destination))
    data = words.encode() + bytes(len(words) % 2)
    udp = b"".join(number.to_bytes(2, "big") for number in (40000, port, 8 + len(data), 0)) + data
    total = sum(int.from_bytes((ends + udp)[at : at + 2], "big") for at in range(0, len(ends + udp), 2)) + len(udp) + 17
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    udp = udp[:6] + ((~total & 0xFFFF) or 0xFFFF).to_bytes(2, "big") + udp[8:]
    head = b"\x60\0\0\0" + len(udp).to_bytes(2, "big") + bytes([17, 64]) + ends
    return (bytes.fromhex(to.replace(":", "")) + bytes.fromhex("020000000001") + b"\x86\xdd" + head + udp).hex()


def mac_at(interface: str) -> str:
    return said("ip", "-oneline", "link", "show", interface).partition("link/ether ")[2].split()[0]


@alone
def test_a_port_published_on_loopback_is_not_reached_from_another_host() -> None:
    """Not with frames that nobody should send: to ::1, or past the host's address to where its port leads."""
    ports = [f"[::1]::{PORT}/udp", f"[{HOST6}]::{PORT}/udp"]
    with world(ipv6=True) as there, Network(ipv6=True) as net, Container(net=net, ports=ports) as c:
        link = net.live.uplink
        assert link is not None
        assert link.six is not None
        strays = next(rule for rule in said("nft", "list", "ruleset").splitlines() if 'iifname "lo" ip6 daddr' in rule).split()[4]
        with c.popen([PYTHON, "-c", LISTEN], stdout=PIPE, stderr=sandbox.STDOUT) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"up\n"
            local, wan = (place.port for place in c.ports[f"{PORT}/udp"])
            place = c.endpoints[net.name].address6
            tried = [("::1", local), (HOST6, local), ("ff02::1", local), (str(net.gateway6), PORT), (str(place), PORT), (strays, local)]
            tried += [(str(link.six.there), port) for port in (1, 2, 3, local, PORT)] + [(str(link.six.here), local)]
            to = mac_at("wan")
            frames = [frame(to, WORLD6, address, port, f"{address}/{port}") for address, port in tried]
            frames += [frame(to, source, "::1", local, f"from-{source}") for source in ("::1", HOST6)]
            frames.append(frame(to, WORLD6, HOST6, wan, "published"))  # which shows that frames of this kind arrive
            assert there.run(f"{PYTHON} -c {shlex.quote(f'exec({FORGE!r})')} eth0 {' '.join(frames)}") == (0, "")
            assert process.stdout.readline().strip(b"\0\n") == b"published"  # the last one; what had come through before would be told first
            with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as client:
                client.sendto(b"the end", ("::1", local))
            assert process.stdout.read() == b""


@alone
def test_loopback_of_the_host_is_not_reached_by_what_carries_its_answers() -> None:
    """What has that address of ours which stands for ::1 is handed to `lo`: answers only come through, from whomever."""
    with world(ipv6=True), Network(ipv6=True) as net, ExitStack() as stack:
        attacker = stack.enter_context(container(net, security=FORGER, ports=[f"[::1]::{PORT}/udp"]))
        canaries = [stack.enter_context(socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)) for _ in range(2)]
        for canary, address in zip(canaries, ("::1", "::"), strict=True):
            canary.bind((address, 0))
            canary.setblocking(False)
        link = net.live.uplink
        assert link is not None
        assert link.six is not None
        rules = said("nft", "list", "ruleset").splitlines()
        ours = next(rule for rule in rules if 'iifname "lo" ip6 daddr' in rule).split()[4]
        place = attacker.endpoints[net.name].address6
        numbers = [canary.getsockname()[1] for canary in canaries]
        gateway = ":".join(f"{octet:02x}" for octet in (2, 0x42, *map(int, net.gateway.split("."))))
        frames = [
            frame(gateway, source, target, number, "x")
            for source in (str(place), "::1", str(net.gateway6), str(link.six.here))
            for target in (ours, "::1", HOST6, str(link.six.here))
            for number in numbers
        ]
        attacker.exec([PYTHON, "-c", FORGE, "eth0", *frames], check=True)
        # And from the switch, had somebody taken that over.
        by_switch = [
            frame(mac_at(link.name), source, target, number, "y")
            for source in (str(link.six.there), "::1", str(place), str(link.six.here))
            for target in (ours, "::1", HOST6, str(link.six.here))
            for number in numbers
        ]
        inside = ["nsenter", f"--net=/proc/{net.live.switch.pid}/ns/net", PYTHON, "-c", FORGE, "uplink", *by_switch]
        subprocess.run(inside, check=True)
        for canary in canaries:
            with pytest.raises(BlockingIOError):
                canary.recv(100)
        before = said("nft", "list", "ruleset")
        assert "fwd to" in before  # it was there to be attacked


@alone
def test_no_detour_leads_past_an_allow_list() -> None:
    """Extension headers, fragments, tunnels, a routing header, a sister's address: also for a root with rights over its own interface."""
    with world(ipv6=True) as there, Network(ipv6=True, allow=[f"[{WORLD6}]:8000"]) as net, ExitStack() as stack:
        scene = Scene(net, *(stack.enter_context(container(net, security=FORGER)) for _ in range(3)))
        counting = "add table ip6 t; add chain ip6 t c { type filter hook input priority -400; }; add rule ip6 t c meta l4proto != ipv6-icmp counter"
        assert there.run(f"nft {shlex.quote(counting)}") == (0, "")
        told = answers(scene.attacker, "detour6", scene.parties | {"outside": [scene.parties["gateway"][0], WORLD6]})
        assert sum(answer == "ALLOWED" for answer in told.values()) > 10, told
        assert "packets 0 bytes 0" in there.run("nft list table ip6 t")[1]
        refused = scene.attacker.exec([PYTHON, "-c", REFUSED, WORLD6, "9"], text=True, check=True).stdout.split()
        assert refused == ["111", "True"]  # 20 times, at once
        assert scene.attacker.exec([PYTHON, "-c", REFUSED, WORLD6, "8000"], text=True, check=True).stdout.split()[0] == "reached"


@alone
def test_nothing_leaves_with_an_address_of_a_container() -> None:
    """What conntrack takes for invalid is not translated: answers to nothing, of TCP."""
    with world(ipv6=True) as there, Network(ipv6=True) as net, ExitStack() as stack:
        scene = Scene(net, *(stack.enter_context(container(net, security=FORGER)) for _ in range(3)))
        counting = "add table ip6 t; add chain ip6 t c { type filter hook input priority -400; }; "
        counting += f"add rule ip6 t c ip6 saddr != {{ {HOST6}, fe80::/10, :: }} counter"
        assert there.run(f"nft {shlex.quote(counting)}") == (0, "")
        answers(scene.attacker, "invalid6", scene.parties | {"outside": [scene.parties["gateway"][0], WORLD6]})
        assert scene.attacker.exec([PYTHON, "-c", REFUSED, WORLD6, "8000"], text=True, check=True).stdout.split()[0] == "reached"
        assert "packets 0 bytes 0" in there.run("nft list table ip6 t")[1]


REFUSED = """
import socket, sys, time
began = time.monotonic(); found = set()
for _ in range(20):
    with socket.socket(socket.AF_INET6) as s:
        s.settimeout(3)
        try:
            s.connect((sys.argv[1], int(sys.argv[2]))); found.add("reached")
        except OSError as error: found.add(str(error.errno or "timeout"))
print(*sorted(found), time.monotonic() - began < 15)
"""
