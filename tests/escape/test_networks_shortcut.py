"""The short way of published ports, attacked from inside by who has all rights over its interface: it says nothing there that it could not say elsewhere."""

from __future__ import annotations

import socket
import struct
import subprocess
import time
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from attrs import frozen

from sandbox import Container, Network, NetworkStore
from sandbox.net import shortcut
from sandbox.net.addresses import mac_of as made_mac
from tests.escape.networks import FORGER, container
from tests.escape.test_networks_ports import FORGE
from tests.live.test_network_shortcut import client_of, echoing, exchange, keys_of, talked
from tests.live.test_network_shortcut6 import ECHO6
from tests.live.test_network_store import store as store  # noqa: PLC0414 - a fixture
from tests.netns import HOST, HOST6, PYTHON, WORLD, alone, world
from tests.programs_of_bpf import corrects_ipv6
from tests.support import needs, patience
from tests.tcp_frames import ACK, PSH, packet

pytestmark = [needs("root", "userns", "program:ip", "program:nft", "bpf")]

PORT, OTHER_PORT = 8080, 8081
INSIDE = 8080
CLIENT = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2]))) as s:
    s.sendall(b"hello")
    sys.stdin.read()
"""
# As many connections at once.
FILL = """
import socket, sys
socks = [socket.create_connection((sys.argv[1], int(sys.argv[2]))) for _ in range(200)]
for _ in range(3):
    for sock in socks:
        sock.sendall(b"?")
        assert sock.recv(1) == b"?"
print(len(socks))
"""


@frozen
class Seen:
    """A packet of TCP with something in it."""

    source: str
    to: int
    numbers: tuple[int, int]
    data: bytes


class Eavesdropper:
    """Hears what comes by an interface of the host's."""

    def __init__(self, interface: str) -> None:
        self._sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.htons(3))
        self._sock.bind((interface, 0))

    def heard(self) -> list[Seen]:
        found: list[Seen] = []
        while True:
            try:
                frame = self._sock.recv(1 << 17)
            except BlockingIOError:
                return found
            if frame[12:14] == b"\x08\x00" and frame[23] == socket.IPPROTO_TCP:
                found.append(self._seen(frame, str(IPv4Address(frame[26:30])), 34, 14 + int.from_bytes(frame[16:18], "big")))
            elif frame[12:14] == b"\x86\xdd" and frame[20] == socket.IPPROTO_TCP:
                found.append(self._seen(frame, str(IPv6Address(frame[22:38])), 54, 54 + int.from_bytes(frame[18:20], "big")))

    @staticmethod
    def _seen(frame: bytes, source: str, tcp: int, end: int) -> Seen:
        _, to, *numbers = struct.unpack_from(">HHII", frame, tcp)
        return Seen(source, to, (numbers[0], numbers[1]), frame[tcp + 4 * (frame[tcp + 12] >> 4) : end])

    def until(self, data: bytes, source: str = "") -> list[Seen]:
        """All up to a packet with *data* in it, from *source*."""
        found: list[Seen] = []
        end = time.monotonic() + patience(5)
        while not any(data in one.data and one.source.startswith(source) for one in found):
            assert time.monotonic() < end, (data, found)
            found += self.heard()
        return found

    def close(self) -> None:
        self._sock.close()


@contextmanager
def hearing(interface: str) -> Generator[Eavesdropper]:
    ear = Eavesdropper(interface)
    try:
        yield ear
    finally:
        ear.close()


def uplink_of(net: Network, version: int = 4) -> tuple[str, str, str]:
    found = net.live.uplink
    assert found is not None
    way = found if version == 4 else found.six
    assert way is not None
    return found.name, str(way.here), str(way.there)


def forged(net: Network, source: Container, port: int, client: tuple[str, int], *, numbers: tuple[int, int], data: bytes) -> str:
    """What *source* would answer, as hex."""
    macs = bytes.fromhex((made_mac(IPv4Address(net.gateway)) + made_mac(IPv4Address(source.address))).replace(":", ""))
    to = ip_address(client[0])
    (place,) = source.endpoints.values()
    own = ip_address((place.address6 or "") if to.version == 6 else place.address)
    return packet((own, port), (to, client[1]), macs=macs, flags=ACK | PSH, numbers=numbers, data=data).hex()


def forge(attacker: Container, *frames: str) -> None:
    assert attacker.exec([PYTHON, "-c", FORGE, "eth0", *frames], text=True).ok


@contextmanager
def network_of(version: int, store: NetworkStore | None) -> Generator[Network]:
    """In a world of its own; kept, if there is a store."""
    with world(ipv6=version == 6), ExitStack() as stack:
        if store is not None:
            store.create("shop", ipv6=version == 6)
        yield stack.enter_context(Network(ipv6=version == 6) if store is None else store.open("shop"))


@alone
@pytest.mark.parametrize(
    ("version", "is_kept"),
    [(4, False), (6, False), pytest.param(4, True, marks=pytest.mark.needs("tcx")), pytest.param(6, True, marks=pytest.mark.needs("tcx"))],
)
def test_nobody_answers_for_a_sister(store: NetworkStore, version: int, is_kept: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if version == 6 and not corrects_ipv6():
        pytest.skip("a program cannot correct sums of IPv6 (Linux 6.16)")
    monkeypatch.setattr(shortcut, "LIFE_NS", 2_000_000_000)
    host = HOST if version == 4 else HOST6
    with network_of(version, store if is_kept else None) as net, ExitStack() as stack:
        attacker = stack.enter_context(container(net, security=FORGER, ports=[f"{OTHER_PORT}:{INSIDE}"]))
        victim = stack.enter_context(Container(net=net, ports=[f"{PORT}:{INSIDE}"]))
        for one in (attacker, victim):
            stack.enter_context(echoing(one, INSIDE, ECHO6))
        name, _, there = uplink_of(net, version)
        with hearing(name) as ear, client_of(host, OTHER_PORT) as own, client_of(host, PORT) as sisters:
            talked(net, own, sisters, version=version)
            ear.heard()
            mine, hers = (sock.getsockname()[:2] for sock in (own, sisters))
            frames = [
                forged(net, victim, INSIDE, hers, numbers=(1, 1), data=b"as the sister"),
                forged(net, victim, INSIDE, mine, numbers=(1, 1), data=b"as the sister to mine"),
                forged(net, attacker, INSIDE, hers, numbers=(1, 1), data=b"as me to hers"),
                forged(net, attacker, INSIDE, mine, numbers=(1, 1), data=b"as me to mine"),
            ]
            forge(attacker, *frames)
            heard = ear.until(b"as me to mine")
            assert not [one for one in heard if b"as the sister" in one.data]
            assert {one.source for one in heard} <= {str(there), host}
            exchange(sisters)


@alone
def test_what_conntrack_cannot_follow_does_not_leave_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its sequence number is far out of the window: the switch does not look, and the host would not translate it."""
    monkeypatch.setattr(shortcut, "LIFE_NS", 2_000_000_000)
    with world() as there, Network() as net, ExitStack() as stack:
        attacker = stack.enter_context(container(net, security=FORGER, ports=[f"{PORT}:{INSIDE}"]))
        stack.enter_context(echoing(attacker, INSIDE))
        name, _, _ = uplink_of(net)
        net.live.shortcut.settle()
        command = ["nsenter", f"--net=/proc/{there.pid}/ns/net", PYTHON, "-c", CLIENT, HOST, str(PORT)]
        with hearing("wan") as outside, hearing(name) as inside, subprocess.Popen(command, stdin=subprocess.PIPE) as process:
            stack.callback(process.kill)
            (hello,) = [one for one in outside.until(b"hello", HOST) if one.data == b"hello" and one.source == HOST]
            assert len(keys_of(net)) == 2
            following = (hello.numbers[0] + 5) % (1 << 32), hello.numbers[1]
            far = (following[0] + (1 << 30)) % (1 << 32), following[1]
            client = WORLD, hello.to
            frames = [
                forged(net, attacker, INSIDE, client, numbers=numbers, data=data)
                for numbers, data in ((far, b"far out"), (following, b"what follows"))
            ]
            forge(attacker, *frames)
            assert any(b"far out" in one.data for one in inside.until(b"what follows"))
            heard = outside.until(b"what follows")
            assert not any(b"far out" in one.data for one in heard)
            assert {one.source for one in heard} <= {HOST, WORLD}
            process.communicate(b"end", timeout=patience(5))


@alone
def test_who_fills_the_map_of_flows_slows_others_down_and_breaks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shortcut, "FLOWS", 64)
    with world(), Network() as net, ExitStack() as stack:
        attacker = stack.enter_context(container(net, ports=[f"{OTHER_PORT}:{INSIDE}"]))
        victim = stack.enter_context(Container(net=net, ports=[f"{PORT}:{INSIDE}"]))
        for one in (attacker, victim):
            stack.enter_context(echoing(one, INSIDE))
        client = stack.enter_context(client_of(port=PORT))
        talked(net, client)
        assert attacker.exec([PYTHON, "-c", FILL, HOST, str(OTHER_PORT)], text=True).stdout == "200\n"
        assert len(keys_of(net)) <= 64
        exchange(client, 5)
