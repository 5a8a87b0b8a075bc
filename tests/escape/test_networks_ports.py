"""Published ports: what is published at one address of the host is nowhere else, and loopback stays out of reach, in both directions."""

from __future__ import annotations

import json
import os
import shlex
import socket
import struct
import subprocess
from contextlib import ExitStack

import pytest

import sandbox
from sandbox import PIPE, Container, Network, Process
from sandbox._sys.calls import setns
from sandbox._sys.constants import CLONE_NEWNET
from sandbox.net.nft import Chain, Transaction
from tests.escape.networks import FORGER, PORT, container, mac_of
from tests.netns import HOST, PYTHON, WORLD, World, alone, said, world
from tests.support import needs

pytestmark = [needs("root", "userns", "program:ip", "program:nft")]

# Says what comes by UDP, until it is told to end.
LISTEN = f"""
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(("", {PORT}))
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
    data = words.encode()
    udp = struct.pack(">HHHH", 40000, port, 8 + len(data), 0) + data  # without a checksum, which IPv4 allows
    head = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 1, 0, 64, 17, 0, socket.inet_aton(source), socket.inet_aton(destination))
    total = sum(struct.unpack(">10H", head))
    total = (total & 0xFFFF) + (total >> 16)
    head = head[:10] + struct.pack(">H", ~(total + (total >> 16)) & 0xFFFF) + head[12:]
    return (bytes.fromhex(to.replace(":", "")) + bytes.fromhex("020000000001") + b"\x08\x00" + head + udp).hex()


def mac(interface: str) -> str:
    found: str = json.loads(said("ip", "-json", "link", "show", interface))[0]["address"]
    return found


def listening(stack: ExitStack, c: Container) -> Process:
    process = stack.enter_context(c.popen([PYTHON, "-c", LISTEN], stdout=PIPE, stderr=sandbox.STDOUT))
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    return process


def heard(process: Process, port: int, *, last: str) -> list[str]:
    """What came until *last* did; *port* is where the host's loopback leads to it."""
    assert process.stdout is not None
    found = [""]
    while found[-1] != last and (line := process.stdout.readline()):
        found.append(line.decode().strip())
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.sendto(b"the end", ("127.0.0.1", port))
    return found[1:] + process.stdout.read().decode().split()


def forge(there: World, *frames: str) -> None:
    assert there.run(f"{PYTHON} -c {shlex.quote(f'exec({FORGE!r})')} eth0 {' '.join(frames)}") == (0, "")


@alone
def test_a_port_published_on_loopback_is_not_reached_from_another_host() -> None:
    """Not with frames that nobody should send: to 127.0.0.1, or past the host's address to where its port leads."""
    with ExitStack() as stack:
        publish_and_attack(stack)


def publish_and_attack(stack: ExitStack) -> None:
    there = stack.enter_context(world())
    net = stack.enter_context(Network())
    c = stack.enter_context(Container(net=net, ports=[f"127.0.0.1::{PORT}/udp", f"{HOST}::{PORT}/udp"]))
    process = listening(stack, c)
    local, wan = (place.port for place in c.ports[f"{PORT}/udp"])
    link = net.live.uplink
    assert link is not None
    inner = range(1, 4)
    tried = [("127.0.0.1", local), (HOST, local), ("127.0.0.2", local), ("255.255.255.255", local), ("203.0.113.255", local)]
    tried += [(str(link.there), port) for port in (*inner, local, PORT)] + [(str(c.address), PORT), (net.gateway, PORT)]
    to = mac("wan")
    forge(there, *(frame(to, WORLD, address, port, f"{address}/{port}") for address, port in tried))
    # As if it came from this host: its answer would go nowhere, but the datagram would be there.
    forge(there, *(frame(to, source, "127.0.0.1", local, f"from-{source}") for source in ("127.0.0.1", HOST)))
    forge(there, frame(to, WORLD, HOST, wan, "published"))  # which shows that frames of this kind arrive
    assert heard(process, local, last="published") == ["published"]


@alone
def test_loopback_of_the_host_is_not_reached_through_an_uplink_that_carries_its_addresses() -> None:
    with ExitStack() as stack:
        attack_loopback(stack)


def attack_loopback(stack: ExitStack) -> None:
    stack.enter_context(world())
    net = stack.enter_context(Network())
    attacker = stack.enter_context(container(net, security=FORGER, ports=[f"127.0.0.1::{PORT}/udp"]))
    canary = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    canary.bind(("127.0.0.1", 0))
    canary.setblocking(False)
    port = canary.getsockname()[1]
    link = net.live.uplink
    assert link is not None
    assert attacker.address is not None
    gateway = json.loads(attacker.exec(["ip", "-json", "neigh"], check=True).stdout)
    macs = {entry["lladdr"] for entry in gateway if entry["dst"] == net.gateway and "lladdr" in entry}
    sources = (attacker.address, "127.0.0.1", net.gateway, str(link.here))
    frames = [frame(to, source, "127.0.0.1", port, "inside") for to in macs or {mac_of(net, attacker)} for source in sources]
    attacker.exec([PYTHON, "-c", FORGE, "eth0", *frames], check=True)
    # And from the switch, had somebody taken that over: what the host lets in from there is the host's business.
    by_switch = [frame(mac(link.name), source, "127.0.0.1", port, "switch") for source in (str(link.there), "127.0.0.1", attacker.address)]
    in_switch(net, by_switch)
    with pytest.raises(BlockingIOError):
        canary.recv(100)
    # Two walls of the host's hold them: without either they do arrive.
    walls = Transaction()
    for name in ("published-guard", "input"):
        walls.flush(Chain(link.host.table, name))
    link.host.commit(walls)
    in_switch(net, by_switch)
    canary.settimeout(5)
    assert canary.recv(100) == b"switch"


def in_switch(net: Network, frames: list[str]) -> None:
    """Put frames on the uplink, in the switch."""
    fd = os.dup(net.live.switch.fileno())
    try:
        subprocess.run([PYTHON, "-c", FORGE, "uplink", *frames], check=True, preexec_fn=lambda: setns(fd, CLONE_NEWNET), pass_fds=[fd])
    finally:
        os.close(fd)
