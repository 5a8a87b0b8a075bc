"""Published ports on the real kernel: the host's part is played by a namespace of the test's own, another host's by one more."""

from __future__ import annotations

import errno
import os
import shlex
import socket
import subprocess
import threading
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

import sandbox
from sandbox import PIPE, Container, Network, PortInUseError, UsageError
from sandbox._sys.calls import setns
from sandbox._sys.constants import CLONE_NEWNET
from sandbox.image import Store
from sandbox.net import HostPort, Port
from sandbox.net.conntrack import Direction, Flows
from sandbox.pytest_plugin import ServiceContainer
from tests.leak.killed import run_and_kill
from tests.netns import ASK, HOST, PYTHON, TCP_PORT, UDP_PORT, WORLD, alone, said, world
from tests.support import needs, patience

pytestmark = [needs("root", "userns", "program:ip", "program:nft"), pytest.mark.usefixtures("no_leftovers")]

# Says its name, and who asks.
SERVER = """
import select, socket, sys
name, ports = sys.argv[1], list(map(int, sys.argv[2:]))
tcp = [socket.create_server(("", port)) for port in ports]
udp = []
for port in ports:
    udp.append(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    udp[-1].bind(("", port))
print("up", flush=True)
while True:
    for sock in select.select([*tcp, *udp], [], [])[0]:
        if sock in tcp:
            peer, address = sock.accept()
            peer.sendall(f"{name}:{sock.getsockname()[1]} {address[0]}".encode())
            peer.close()
        else:
            _, address = sock.recvfrom(100)
            sock.sendto(f"{name}:{sock.getsockname()[1]} {address[0]}".encode(), address)
"""


# Answers one datagram, and says of what size the next one may be, once a router has said that.
PATIENT = """
import socket, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
    s.bind(("", 8080))
    s.setsockopt(socket.IPPROTO_IP, 10, 2)  # IP_MTU_DISCOVER, IP_PMTUDISC_DO
    print("up", flush=True)
    _, address = s.recvfrom(100)
    s.connect(address)
    s.send(b"answer")
    s.settimeout(5)
    try:
        s.recv(100)
    except OSError as error:
        print(type(error).__name__, error.errno, s.getsockopt(socket.IPPROTO_IP, 14))  # IP_MTU
"""
# Asks, and then plays a router between: "that answer was too large for my next link, which takes 1,000 bytes" (RFC 1191).
ROUTER = """
import socket, struct, sys
def summed(data):
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    return ~(total + (total >> 16)) & 0xFFFF
host, port = sys.argv[1], int(sys.argv[2])
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s, socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as raw:
    s.settimeout(5)
    s.connect((host, port))
    s.send(b"?")
    answer = s.recv(100)
    mine, number = s.getsockname()
    head = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 28 + len(answer), 1, 0x4000, 64, 17, 0, socket.inet_aton(host), socket.inet_aton(mine))
    head = head[:10] + struct.pack(">H", summed(head)) + head[12:]
    body = head + struct.pack(">HHHH", port, number, 8 + len(answer), 0)
    raw.sendto(struct.pack(">BBHHH", 3, 4, summed(struct.pack(">BBHHH", 3, 4, 0, 0, 1000) + body), 0, 1000) + body, (host, 0))
"""


PORT_OF = {"tcp": TCP_PORT, "udp": UDP_PORT}  # of the world


@contextmanager
def serving(container: Container, name: str, *ports: int) -> Generator[None]:
    with container.popen([PYTHON, "-c", SERVER, name, *map(str, ports or (8080,))], stdout=PIPE, stderr=sandbox.STDOUT) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        yield
        process.kill()


def ask(address: str, port: int, kind: str = "tcp", *, timeout_s: float = 5.0) -> str:
    """From the host."""
    asked = subprocess.run([PYTHON, "-c", ASK, kind, address, str(port), str(timeout_s)], capture_output=True, text=True, check=False)
    return asked.stdout.strip()


def ask_inside(container: Container, address: str, port: int, kind: str = "tcp", *, timeout_s: float = 5.0) -> str:
    return container.exec([PYTHON, "-c", ASK, kind, address, str(port), str(timeout_s)], text=True).stdout.strip()


def port_of(container: Container, name: str = "8080/tcp") -> int:
    return container.ports[name][0].port


def here(net: Network) -> str:
    """The host's end of a network's uplink."""
    link = net.live.uplink
    assert link is not None
    return str(link.here)


def listed(*command: str) -> str:
    return said("nft", "list", *command)


@alone
def test_a_published_port_is_reached_from_the_host_from_loopback_and_from_others() -> None:
    ports = ["8080:8080", "8080:8080/udp"]
    with world() as there, Network() as net, Container(net=net, ports=ports) as c, serving(c, "web"):
        assert c.ports == {"8080/tcp": (HostPort("0.0.0.0", 8080),), "8080/udp": (HostPort("0.0.0.0", 8080),)}
        for kind in ("tcp", "udp"):
            assert ask("127.0.0.1", 8080, kind) == f"web:8080 {here(net)}"
            assert ask(HOST, 8080, kind) == f"web:8080 {HOST}"
            assert there.ask(HOST, 8080, kind=kind, timeout_s=5) == (0, f"web:8080 {WORLD}\n")
            assert c.exec([PYTHON, "-c", ASK, kind, WORLD, str(PORT_OF[kind]), "5"], text=True).ok  # its way out is as it was


@alone
def test_a_container_reaches_a_published_port_by_the_hosts_address_its_own_as_well() -> None:
    ports = ["8080:8080", "8080:8080/udp"]
    with world(), Network() as net, Network() as beside, ExitStack() as stack:
        one, sister, other = (stack.enter_context(Container(net=where, ports=published)) for where, published in ((net, ports), (net, ()), (beside, ())))
        with serving(one, "one"):
            for client, seen in ((one, net), (sister, net), (other, beside)):
                for kind in ("tcp", "udp"):
                    assert ask_inside(client, HOST, 8080, kind).startswith("one:8080 "), (client, seen, kind)


@alone
def test_a_port_on_one_address_is_on_no_other() -> None:
    with world() as there, Network() as net, Container(net=net, ports=["127.0.0.1::8080", f"{HOST}::8081"]) as c, serving(c, "web", 8080, 8081):
        (local,), (wan,) = c.ports["8080/tcp"], c.ports["8081/tcp"]
        assert (local.address, wan.address) == ("127.0.0.1", HOST)
        assert ask("127.0.0.1", local.port) == f"web:8080 {here(net)}"
        assert ask(HOST, wan.port) == f"web:8081 {HOST}"
        assert there.ask(HOST, wan.port, timeout_s=5) == (0, f"web:8081 {WORLD}\n")
        for address in (HOST, "127.0.0.2"):
            assert "refused" in ask(address, local.port)
        assert "refused" in ask("127.0.0.1", wan.port)
        assert there.ask(HOST, local.port)[0] == 1
        assert not ask_inside(c, HOST, local.port, timeout_s=0.3).startswith("web")


@alone
def test_free_ports_are_chosen_and_ranges_are_a_port_each() -> None:
    ports: list[int | str | Port] = [8000, 8000, "0:8001", "9000-9002:8000-8002", "9000-9010:8003", Port(8000, "udp")]
    with world(), Network() as net, Container(net=net, ports=ports) as c, serving(c, "web", *range(8000, 8004)):
        assert {name: len(found) for name, found in c.ports.items()} == {"8000/tcp": 3, "8001/tcp": 2, "8002/tcp": 1, "8003/tcp": 1, "8000/udp": 1}
        assert c.ports["8003/tcp"] == (HostPort("0.0.0.0", 9003),)
        for name, found in c.ports.items():
            number, kind = name.split("/")
            assert len({place.port for place in found}) == len(found)
            for place in found:
                assert ask(HOST, place.port, kind) == f"web:{number} {HOST}"


@alone
def test_a_clash_is_refused_before_anything_is_touched() -> None:
    with world(), Network() as net, socket.create_server(("127.0.0.1", 0)) as server, Container(net=net, ports=["8080:80"], hostname="first"):
        taken = server.getsockname()[1]
        rules, places = listed("ruleset"), net.containers
        for port, owner, pid in ((f"{taken}:80", "this process", os.getpid()), ("127.0.0.1:8080:81", "container 'first' of this process", os.getpid())):
            refused = Container(net=net, ports=["7000:70", port])
            with pytest.raises(PortInUseError, match=owner) as raised, refused:
                pass
            assert raised.value.pid == pid
            assert not refused.is_running
        assert (listed("ruleset"), net.containers) == (rules, places)
        with Container(net=net, ports=["7000:70"]):  # it was let go of
            pass


@alone
def test_what_cannot_be_published_is_refused() -> None:
    with world(), Network() as net, Network(internal=True) as inside:
        for options, error, words in (
            ({"net": inside, "ports": [80]}, UsageError, "internal"),
            ({"net": net, "ports": ["[::1]:8080:80"]}, UsageError, "none of the container.s networks reaches outside by IPv6"),
            ({"net": net, "ports": ["192.0.2.1:8080:80"]}, UsageError, "not an address of this host"),
        ):
            with pytest.raises(error, match=words), Container(**options):  # type: ignore[arg-type]
                pass
        assert net.containers == ()


def test_publishing_all_takes_an_image_and_a_network() -> None:
    for options in ({}, {"net": Network()}, {"net": "host"}, {"publish_all": 1}):
        with pytest.raises(UsageError, match="publish_all"):
            Container(**{"publish_all": True, **options})  # type: ignore[arg-type]


@alone
def test_what_an_image_exposes_is_published_on_request(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "Dockerfile").write_text("FROM scratch\nCOPY root /\nEXPOSE 80 53/udp 8000-8001\n")
    store = Store(tmp_path / "store")
    image = sandbox.build(tmp_path, store=store)
    with world(), Network() as net:
        with Container(image, store=store, net=net, ports=["8080:80"], publish_all=True) as c:
            assert {*c.ports} == {"80/tcp", "53/udp", "8000/tcp", "8001/tcp"}
            assert c.ports["80/tcp"] == (HostPort("0.0.0.0", 8080),)
        with Container(image, store=store, net=net) as c:
            assert c.ports == {}


@alone
def test_a_client_of_udp_gets_whoever_has_the_port_now() -> None:
    """It asks from one port all the time, so that for conntrack it is one flow."""
    with world(), Network() as net, Network() as beside, ExitStack() as stack:
        for address in ("127.0.0.1", HOST):
            client = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            client.settimeout(5)
            client.connect((address, 8053))

            def said_to(client: socket.socket) -> str:
                try:
                    client.send(b"?")
                    return client.recv(100).decode().partition(" ")[0]
                except ConnectionRefusedError:
                    return "refused"

            assert said_to(client) == "refused"
            for number, where in enumerate((net, net, beside)):
                with Container(net=where, ports=["8053:8080/udp"]) as c, serving(c, f"c{number}"):
                    assert said_to(client) == f"c{number}:8080"
                assert said_to(client) == "refused"


@alone
def test_a_flow_to_a_container_that_has_gone_does_not_reach_the_one_that_has_its_address() -> None:
    """In the switch its flow is known still; here nobody forgets it in the host either."""
    with world(), Network(subnet="10.77.3.0/29") as net, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client, ExitStack() as stack:
        link = net.live.uplink
        assert link is not None
        with Container(net=net, ports=["8053:8080/udp", "8080:8080"], hostname="first") as c, serving(c, "first"):
            first = c.address
            client.settimeout(5)
            client.connect((HOST, 8053))
            client.send(b"?")
            assert client.recv(100).startswith(b"first")
            stream = stack.enter_context(socket.create_connection((HOST, 8080), timeout=patience(5)))
            assert stream.recv(100).startswith(b"first")
            monkey = stack.enter_context(pytest.MonkeyPatch.context())
            monkey.setattr("sandbox._networks.published._forget", forget_nothing)
        others = [stack.enter_context(Container(net=net)) for _ in range(5)]
        second = next(other for other in others if other.address == first)
        with serving(second, "second"), Flows() as flows:
            assert flows.find(reply=Direction(socket.IPPROTO_UDP, source=link.there))  # it is there
            client.send(b"?")
            with pytest.raises(ConnectionRefusedError):
                client.recv(100)
            with pytest.raises((ConnectionResetError, BrokenPipeError)):
                send_until_told(stream)


def forget_nothing(*_: object) -> None:
    """In the place of what has conntrack forget flows."""


def fail(*_: object) -> None:
    raise ZeroDivisionError


def send_until_told(stream: socket.socket) -> None:
    while True:
        stream.send(b"?")


@alone
def test_a_container_hears_from_routers_between_it_and_who_asks() -> None:
    """Without that, whatever is larger than the smallest link in between is lost for ever."""
    command = [PYTHON, "-c", PATIENT]
    with world() as there, Network() as net, ExitStack() as stack:
        c = stack.enter_context(Container(net=net, ports=["8053:8080/udp"]))
        process = stack.enter_context(c.popen(command, stdout=PIPE, stderr=sandbox.STDOUT))
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        assert there.run(f"{PYTHON} -c {shlex.quote(f'exec({ROUTER!r})')} {HOST} 8053") == (0, "")
        assert process.stdout.readline().decode() == f"OSError {errno.EMSGSIZE} 1000\n"


@alone
def test_ports_follow_the_container_into_another_network() -> None:
    with world(), Network("one") as one, Network("two") as two, Container(net=one, ports=[8080]) as c, serving(c, "web"):
        before = c.ports
        assert ask(HOST, port_of(c)).startswith("web")
        c.connect(two)
        c.disconnect(one)
        assert c.ports == before
        assert ask(HOST, port_of(c)).startswith("web")
        assert ask("127.0.0.1", port_of(c)) == f"web:8080 {here(two)}"
        c.disconnect(two)
        assert c.ports == {}
        assert "refused" not in ask(HOST, before["8080/tcp"][0].port, timeout_s=0.2)  # it is held all the same
        with pytest.raises(PortInUseError):
            Container(net=one, ports=[f"{before['8080/tcp'][0].port}:80"]).start()
        c.connect(one)
        assert c.ports == before
        assert ask(HOST, port_of(c)).startswith("web")


@alone
def test_a_network_that_is_closed_leaves_its_ports_to_the_next_one() -> None:
    with world(), Network("two") as two, ExitStack() as stack:
        one = stack.enter_context(Network("one"))
        with Container(net=[one, two], ports=[8080]) as c, serving(c, "web"):
            assert ask("127.0.0.1", port_of(c)) == f"web:8080 {here(one)}"
            one.close()
            assert ask("127.0.0.1", port_of(c)) == f"web:8080 {here(two)}"


@alone
def test_what_is_published_is_gone_with_its_container() -> None:
    with world(), Network() as net:
        for _ in range(3):
            with Container(net=net, ports=["8080:8080", "127.0.0.1:8081:8080/udp"]):
                link = net.live.uplink
                assert link is not None
                table = link.host.table.name
                assert ". 8080 :" in listed("map", "ip", table, "published-all")
            for name in ("published-all", "published-one"):
                assert "elements" not in listed("map", "ip", table, name)
            with socket.create_server(("", 8080)):
                assert ask("127.0.0.1", 8080, timeout_s=0.2) != ""


@alone
def test_many_publish_at_once() -> None:
    found: list[int] = []
    failed: list[BaseException] = []

    def publish(net: Network) -> None:
        try:
            for _ in range(3):
                with Container(net=net, ports=[8080, "8080/udp"]) as c:
                    found.append(port_of(c))
        except BaseException as error:
            failed.append(error)

    def in_this_namespace(net: Network, fd: int) -> None:
        setns(fd, CLONE_NEWNET)
        publish(net)

    with world(), Network() as net, Network() as beside, open("/proc/thread-self/ns/net", "rb") as file:
        threads = [threading.Thread(target=in_this_namespace, args=(which, file.fileno())) for which in (net, net, beside, beside)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert failed == []
    assert len(found) == 12


@alone
def test_nothing_published_outlives_a_killed_process() -> None:
    code = (
        "import signal\n"
        "from sandbox import Container, Network\n"
        "net = Network().create()\n"
        "all = [Container(net=net, ports=[f'{port}:80', f'127.0.0.1:{port}:80/udp']).create() for port in range(8080, 8084)]\n"
        "print('ready', flush=True)\n"
        "signal.pause()\n"
    )
    with world(), Network() as net:
        assert run_and_kill(code, patience_s=2.0) == []
        assert said("nft", "list", "tables").count("sandbox") == 1
        with Container(net=net, ports=["8080-8083:8080-8083"]) as c, serving(c, "web", 8080):
            assert ask("127.0.0.1", 8080) == f"web:8080 {here(net)}"


@alone
def test_what_fails_half_way_is_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    with world(), Network() as net:
        with Container(net=net, ports=[80]):
            before = listed("ruleset")
            monkeypatch.setattr("sandbox._networks.published._forget", fail)
            with pytest.raises(ZeroDivisionError), Container(net=net, ports=["8080:80/udp"]):
                pass
            monkeypatch.undo()
            assert listed("ruleset") == before
            assert len(net.containers) == 1
        with Container(net=net, ports=["8080:80/udp"]):
            pass


@alone
@needs("program:slirp4netns")
@pytest.mark.skipif(not os.access("/dev/net/tun", os.R_OK | os.W_OK), reason="/dev/net/tun is not there")
def test_a_network_without_the_hosts_forwarding_publishes_too() -> None:
    with world() as there, Network(uplink="slirp4netns") as net, Network("other", uplink="slirp4netns") as other:
        with Container(net=net, ports=[f"{HOST}::8080", "127.0.0.1::8080/udp"]) as c, serving(c, "web"):
            before = c.ports
            assert there.ask(HOST, port_of(c), timeout_s=5) == (0, f"web:8080 {WORLD}\n")
            assert ask("127.0.0.1", port_of(c, "8080/udp"), "udp").startswith("web:8080")
            with pytest.raises(PortInUseError), Container(net=net, ports=[f"{port_of(c)}:80"]):
                pass
            c.disconnect(net)
            assert c.ports == {}
            c.connect(other)
            assert c.ports == before
            assert there.ask(HOST, port_of(c), timeout_s=5) == (0, f"web:8080 {WORLD}\n")
        with Container(net=other, ports=[f"{HOST}:{before['8080/tcp'][0].port}:80"]):
            pass


@alone
def test_a_service_of_a_test_is_waited_for_by_its_own_port_and_reached_by_the_published_one() -> None:
    with world(), Network() as net, ServiceContainer(net=net, ports=[8080]) as c:
        c.serve([PYTHON, "-c", SERVER, "web", "8080"]).wait_for(port=8080)
        assert ask("127.0.0.1", port_of(c)) == f"web:8080 {here(net)}"


@alone
def test_asyncio_publishes_too() -> None:
    import asyncio

    async def main(net: Network) -> None:
        async with sandbox.aio.Container(net=net, ports=["8080:80"]) as c:
            assert c.ports == {"80/tcp": (HostPort("0.0.0.0", 8080),)}

    with world(), Network() as net:
        asyncio.run(main(net))
