"""The short way of published ports on the real kernel: it is taken, ends when it must, and where there is none all is as before."""

from __future__ import annotations

import shlex
import socket
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from ipaddress import IPv4Address
from pathlib import Path
from typing import Literal

import pytest
from attrs import frozen

from sandbox import PIPE, STDOUT, Container, Join, Network, Shape, features
from sandbox._networks import published
from sandbox._networks.switch import Switch
from sandbox.errors import SetupError
from sandbox.net import shortcut
from sandbox.net.nft import Chain, Nftables, Table, Transaction, counter, iifname, l4proto, oifname, rule
from tests.leak.killed import run_and_kill
from tests.live.test_net_measuring import read_pcap
from tests.live.test_network_ports import send_until_told
from tests.live.test_network_store import await_true
from tests.netns import HOST, PYTHON, World, alone, world
from tests.programs_of_bpf import keys, ours, remaining, written
from tests.support import needs, patience

OF_ONE = {"sandbox_slots", "sandbox_flows", "sandbox_inward", "sandbox_outward", "sandbox_learner"}
pytestmark = [needs("root", "userns", "program:ip", "program:nft", "bpf"), pytest.mark.usefixtures("no_leftovers")]

PORT = 8080
CHUNK = 60_000
ECHO = """
import socket, sys, threading
def answer(peer):
    with peer:
        while data := peer.recv(1 << 16):
            peer.sendall(data)
server = socket.create_server(("", int(sys.argv[1])))
print("up", flush=True)
while True:
    threading.Thread(target=answer, args=(server.accept()[0],), daemon=True).start()
"""
TALK = f"""
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2]))) as s:
    for number in range(50):
        data = bytes([number]) * {CHUNK}
        s.sendall(data)
        assert s.recv({CHUNK}, socket.MSG_WAITALL) == data
"""


@frozen
class Long:
    """Counts the packets of TCP that take the long way through a switch: into the network, and out of it."""

    filters: Nftables
    chain: Chain

    def count(self) -> tuple[int, int]:
        first, second = self.filters.rules(self.chain)
        return first.packets, second.packets


@contextmanager
def watched(net: Network, family: Literal["ip", "ip6"] = "ip") -> Generator[Long]:
    with net.live.switch.filters() as filters:
        chain = Chain(Table(family, "watch"), "watch", hook="forward", priority=5)
        work = Transaction().add(chain.table).add(chain)
        for side in (iifname, oifname):
            work.add(rule(chain, [side("uplink"), l4proto("tcp"), counter()]))
        filters.commit(work)
        try:
            yield Long(filters, chain)
        finally:
            filters.commit(Transaction().delete(chain.table))


@contextmanager
def echoing(c: Container, port: int = PORT, code: str = ECHO) -> Generator[None]:
    with c.popen([PYTHON, "-c", code, str(port)], stdout=PIPE, stderr=STDOUT) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        yield
        process.kill()


def client_of(address: str = HOST, port: int = PORT) -> socket.socket:
    return socket.create_connection((address, port), timeout=patience(5))


def talked(net: Network, *socks: socket.socket, version: int = 4) -> None:
    """Have the flows of these be known."""
    net.live.shortcut.settle()
    for sock in socks:
        exchange(sock, 5)
    assert len(keys_of(net, version)) == 2 * len(socks)


def exchange(sock: socket.socket, rounds: int = 1, size: int = CHUNK) -> None:
    """Have so much come back."""
    for number in range(rounds):
        data = bytes([number % 256]) * size
        sock.sendall(data)
        answer = bytearray()
        while len(answer) < size:
            answer += sock.recv(size - len(answer)) or pytest.fail("it was closed")
        assert answer == data


def passed(c: Container) -> tuple[int, int]:
    (stats,) = c.net_stats().values()
    return stats.received_packets, stats.sent_packets


def share(net: Network, c: Container, talk: Callable[[], None], family: Literal["ip", "ip6"] = "ip") -> tuple[float, float]:
    """What part of the packets to and from a container takes the long way while they talk."""
    net.live.shortcut.settle()
    with watched(net, family) as long:
        before = passed(c)
        talk()
        every = [now - then for now, then in zip(passed(c), before, strict=True)]
        assert min(every) >= 20
        to, back = long.count()
        return to / every[0], back / every[1]


@alone
def test_most_packets_take_the_short_way_whoever_asks() -> None:
    with world() as there, Network() as net, Container(net=net, ports=[f"{PORT}:{PORT}"]) as c, echoing(c):
        for address in (HOST, "127.0.0.1"):
            with client_of(address) as client:
                assert max(share(net, c, lambda client=client: exchange(client, 50))) < 0.3  # type: ignore[misc]
        assert max(share(net, c, lambda: run_outside(there))) < 0.3


def run_outside(there: World) -> None:
    assert there.run(f"{PYTHON} -c {repr_of(TALK)} {HOST} {PORT}") == (0, "")


def repr_of(code: str) -> str:
    return shlex.quote(f"exec({code!r})")


@alone
def test_a_flow_that_lasts_is_asked_about_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shortcut, "LIFE_NS", 20_000_000)
    with world(), Network() as net, Container(net=net, ports=[f"{PORT}:{PORT}"]) as c, echoing(c), client_of() as client, watched(net) as long:
        exchange(client)
        end = time.monotonic() + patience(10)
        before = long.count()[0]
        while long.count()[0] < before + 5:
            exchange(client, size=100)
            assert time.monotonic() < end


def pretended_off(stack: ExitStack, _: pytest.MonkeyPatch) -> None:
    stack.enter_context(features.pretend(packet_programs=False))


def on_an_older_kernel(stack: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    """5.11 to 5.13 load the programs, and have no such setting."""
    monkeypatch.setattr("sandbox._sys.features.IGNORE_INVALID_RST", "/proc/sys/net/netfilter/none")
    features.packet_programs.forget()
    stack.callback(features.packet_programs.forget)


def without_settings(_: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(*_: object) -> None:
        raise SetupError("write", 2, step="network")

    monkeypatch.setattr(Switch, "write", write)


def without_filters(_: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sandbox.net.qdisc._BPF_FD", 60)  # an attribute that the kernel does not know


@alone
@pytest.mark.parametrize("how", [pretended_off, on_an_older_kernel, without_settings, without_filters])
def test_without_the_short_way_all_take_the_long_one(how: Callable[[ExitStack, pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    with world(), ExitStack() as stack:
        how(stack, monkeypatch)
        net = stack.enter_context(Network())
        c = stack.enter_context(Container(net=net, ports=[f"{PORT}:{PORT}"]))
        stack.enter_context(echoing(c))
        assert net.live.shortcut.flows() is None
        client = stack.enter_context(client_of())
        assert min(share(net, c, lambda: exchange(client, 20))) > 0.9


@alone
def test_a_port_that_is_withdrawn_refuses_the_next_packet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shortcut, "LIFE_NS", 2_000_000_000)
    with world(), Network() as net, Container(net=net, ports=[f"{PORT}:{PORT}"]) as c, echoing(c), client_of() as client:
        talked(net, client)
        assert_withdrawal_refuses(c, client)


def assert_withdrawal_refuses(c: Container, client: socket.socket, *, publications: int = 1) -> None:
    """Once all that is published is withdrawn, the next packet is refused, and does not arrive."""
    found = [*published._publications]
    assert len(found) == publications
    for publication in found:
        publication.withdraw()
    received = passed(c)[0]
    client.send(b"?")
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    assert passed(c)[0] == received


def keys_of(net: Network, version: int = 4) -> list[bytes]:
    flows = net.live.shortcut.flows(version)
    assert flows is not None
    return keys(flows.fileno(), shortcut.FAMILIES[version].flow.size)


@alone
def test_a_flow_that_is_known_does_not_reach_who_has_the_address_now(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shortcut, "LIFE_NS", 2_000_000_000)
    address = "10.77.4.2"
    with world(), Network(subnet="10.77.4.0/29") as net, ExitStack() as stack:
        with Container(net=Join(net, address=address), ports=[f"{PORT}:{PORT}"]) as first, echoing(first):
            client = stack.enter_context(client_of())
            talked(net, client)
            number = client.getsockname()[1].to_bytes(2, "big")
        # Another one with the address, which publishes another port.
        second = stack.enter_context(Container(net=Join(net, address=address), ports=[f"{PORT + 1}:{PORT}"]))
        stack.enter_context(echoing(second))
        with second.capture(tmp_path / "packets"):
            with pytest.raises((ConnectionResetError, BrokenPipeError)):
                send_until_told(client)
            with client_of(port=PORT + 1) as other:
                exchange(other)
        packets = [data for _, data, _ in read_pcap(tmp_path / "packets") if data[12:14] == b"\x08\x00" and data[23] == socket.IPPROTO_TCP]
        assert packets
        assert not [data for data in packets if number in (data[34:36], data[36:38])]


@alone
def test_two_ports_that_lead_to_one_are_kept_apart_for_a_client_with_one_port(monkeypatch: pytest.MonkeyPatch) -> None:
    """To the container both would come from the same address and port, so the switch gives one another port: that one is not known."""
    monkeypatch.setattr(shortcut, "LIFE_NS", 2_000_000_000)
    ports = [f"{PORT}:{PORT}", f"{PORT + 1}:{PORT}"]
    with world(), Network() as net, Container(net=net, ports=ports) as c, echoing(c), client_of() as one, socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.settimeout(patience(5))
        other.bind(one.getsockname())
        other.connect((HOST, PORT + 1))
        net.live.shortcut.settle()
        assert_answers_go_to_whom_they_are_for(one, other)
        assert len(keys_of(net)) == 2


def assert_answers_go_to_whom_they_are_for(one: socket.socket, other: socket.socket) -> None:
    for number in range(3):
        one.sendall(b"one%d" % number)
        other.sendall(b"two%d" % number)
        assert (one.recv(100), other.recv(100)) == (b"one%d" % number, b"two%d" % number)


@alone
def test_what_is_shaped_takes_the_long_way_and_no_other() -> None:
    ports = [f"{PORT}:{PORT}"]
    with world():
        with Network() as net, Container(net=net, ports=ports) as c, echoing(c), client_of() as client:
            exchange(client)
            for shape in (Shape("1G"), Shape("2G")):
                c.shape(net, shape)
                assert min(share(net, c, lambda: exchange(client, 20))) > 0.9
            c.shape(net, None)
            assert max(share(net, c, lambda: exchange(client, 50))) < 0.3
        with Network(shape=Shape("1G")) as net, Container(net=net, ports=ports) as c, echoing(c), client_of() as client:
            assert min(share(net, c, lambda: exchange(client, 20))) > 0.9


@alone
def test_counters_and_captures_see_what_takes_the_short_way(tmp_path: Path) -> None:
    with world(), Network() as net, Container(net=net, ports=[f"{PORT}:{PORT}"]) as c, echoing(c), client_of() as client:
        talked(net, client)
        before = c.net_stats()[net.name]
        with c.capture(tmp_path / "packets") as capture, watched(net) as long:
            exchange(client, 20)
            took_long = sum(long.count())
        assert took_long < capture.packets / 3
        after = c.net_stats()[net.name]
        for counted in (after.received_bytes - before.received_bytes, after.sent_bytes - before.sent_bytes):
            assert 20 * CHUNK < counted < 24 * CHUNK
        # What is sent anew, as the machine was slow, counts once: a mark for each octet of the stream.
        streams: dict[str, tuple[int, bytearray]] = {}
        for _, data, length in read_pcap(tmp_path / "packets"):
            if data[12:14] == b"\x08\x00" and data[23] == 6:
                way = "to" if IPv4Address(data[30:34]) == IPv4Address(c.address) else "from"
                if size := length - 14 - 20 - 4 * (data[46] >> 4):
                    number = int.from_bytes(data[38:42], "big")
                    first, marks = streams.setdefault(way, (number, bytearray(20 * CHUNK)))
                    if (at := (number - first) % (1 << 32)) < len(marks):
                        marks[at : at + size] = b"\1" * size
        assert {way: sum(marks) for way, (_, marks) in streams.items()} == {"to": 20 * CHUNK, "from": 20 * CHUNK}


@alone
def test_programs_and_maps_go_with_the_network_and_with_who_is_killed(tmp_path: Path) -> None:
    code = (
        "import signal\n"
        "from sandbox import Container, Network\n"
        "from tests.programs_of_bpf import write_ours\n"
        "net = Network().create()\n"
        "c = Container(net=net, ports=['8080:80']).create()\n"
        "assert net.live.shortcut.flows() is not None\n"
        f"write_ours({str(tmp_path / 'made')!r})\n"
        "print('ready', flush=True)\n"
        "signal.pause()\n"
    )
    before = ours()
    with world():
        with Network() as net, Container(net=net, ports=[f"{PORT}:{PORT}"]):
            made = ours() - before
            assert {one.name for one in made} == OF_ONE
        assert run_and_kill(code, patience_s=2.0) == []
    killed = written(tmp_path / "made")
    assert {one.name for one in killed} == OF_ONE
    await_true(lambda: not remaining(made | killed))  # namespaces are taken down by a thread of the kernel's
