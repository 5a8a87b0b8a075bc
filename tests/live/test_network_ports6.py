"""Ports published at addresses of IPv6: as in `test_network_ports`, and ::1, for which the kernel has no switch."""

from __future__ import annotations

import os
import socket
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from ipaddress import ip_address, ip_network

import pytest

import sandbox
from sandbox import PIPE, Container, Network, PortInUseError, UnsupportedError, UsageError
from sandbox._networks import loopback6
from sandbox.net import HostPort
from sandbox.net.conntrack import Direction, Flows
from tests.live.test_network_ports import ask, ask_inside, fail, forget_nothing, listed
from tests.netns import HOST, HOST6, PYTHON, WORLD6, alone, world
from tests.support import needs

pytestmark = [needs("root", "userns", "program:ip", "program:nft"), pytest.mark.usefixtures("no_leftovers")]

# Says its name, and who asks, by IPv6 and, as it is of both versions, by IPv4; and how much it was sent.
SERVER = """
import select, socket, sys
name = sys.argv[1]
tcp = socket.create_server(("::", 8080), family=socket.AF_INET6, dualstack_ipv6=True)
udp = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
udp.bind(("::", 8080))
print("up", flush=True)
while True:
    for sock in select.select([tcp, udp], [], [])[0]:
        if sock is tcp:
            peer, address = sock.accept()
            peer.sendall(f"{name} {address[0]}".encode())
            peer.close()
        else:
            data, address = sock.recvfrom(70000)
            sock.sendto(f"{name} {address[0]} {len(data)}".encode(), address)
"""


@contextmanager
def serving(container: Container, name: str) -> Generator[None]:
    with container.popen([PYTHON, "-c", SERVER, name], stdout=PIPE, stderr=sandbox.STDOUT) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        yield
        process.kill()


BOTH = ["8080:8080", "8080:8080/udp"]


@alone
def test_a_port_without_an_address_is_of_both_versions_and_reached_from_everywhere() -> None:
    with world(ipv6=True) as there, Network(ipv6=True) as net, Container(net=net, ports=BOTH) as c, Container(net=net) as sister, serving(c, "web"):
        places = (HostPort("0.0.0.0", 8080), HostPort("::", 8080))
        assert c.ports == {"8080/tcp": places, "8080/udp": places}
        for kind in ("tcp", "udp"):
            assert ask(HOST6, 8080, kind).split()[:2] == ["web", HOST6]
            assert ask("127.0.0.1", 8080, kind).startswith("web ::ffff:10.")
            name, seen = ask("::1", 8080, kind).split()[:2]
            assert (name, ip_address(seen) in ip_network("fd00::/8")) == ("web", True)
            assert there.ask(HOST6, 8080, kind=kind, timeout_s=5)[1].split()[:2] == ["web", WORLD6]
            for client in (c, sister):
                assert ask_inside(client, HOST6, 8080, kind).startswith("web fd")
                assert ask_inside(client, WORLD6, 8000, kind) == HOST6  # the way out is as it was


@alone
def test_a_network_without_ipv6_publishes_at_ipv4_alone() -> None:
    with world(ipv6=True), Network() as net, Container(net=net, ports=["8080:8080", 81]) as c:
        assert [place.address for places in c.ports.values() for place in places] == ["0.0.0.0"] * 2
        with socket.create_server(("::1", 8080), family=socket.AF_INET6):
            pass
        assert "ip6" not in listed("tables")
        assert "netdev" not in listed("tables")


@alone
def test_a_port_on_one_address_is_on_no_other() -> None:
    ports = ["[::1]:7001:8080", f"[{HOST6}]:7002:8080", "[::]:7003:8080", f"[{HOST6}]:53:8080/udp"]
    with world(ipv6=True) as there, Network(ipv6=True) as net, Container(net=net, ports=ports) as c, serving(c, "web"):
        assert c.ports == {
            "8080/tcp": (HostPort("::1", 7001), HostPort(HOST6, 7002), HostPort("::", 7003)),
            "8080/udp": (HostPort(HOST6, 53),),
        }
        assert ask(HOST6, 53, "udp") == f"web {HOST6} 1"
        reached = {(address, port) for address in ("::1", HOST6, "127.0.0.1", HOST) for port in (7001, 7002, 7003) if ask(address, port).startswith("web")}
        assert reached == {("::1", 7001), (HOST6, 7002), ("::1", 7003), (HOST6, 7003)}
        assert [there.ask(HOST6, port, timeout_s=5)[0] for port in (7001, 7002, 7003)] == [1, 0, 0]
        assert not ask_inside(c, HOST6, 7001, timeout_s=0.3).startswith("web")


@alone
def test_loopback_carries_much_and_large_datagrams() -> None:
    take = "import socket; s = socket.create_server(('::', 8081), family=socket.AF_INET6); print('up', flush=True); c = s.accept()[0]; n = 0\n"
    take += "while d := c.recv(1 << 16): n += len(d)\nc.sendall(b'%d' % n)"
    with world(ipv6=True), Network(ipv6=True) as net, Container(net=net, ports=["[::1]:8080:8080/udp", "[::1]:8081:8081"]) as c, serving(c, "web"):
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as client:
            client.settimeout(5)
            client.connect(("::1", 8080))
            for size in (1400, 3000, 60000):
                client.send(bytes(size))
                assert client.recv(100).split()[2] == b"%d" % size
        with c.popen([PYTHON, "-c", take], stdout=PIPE) as server, socket.socket(socket.AF_INET6) as client:
            assert server.stdout is not None
            assert server.stdout.readline() == b"up\n"
            client.settimeout(20)
            client.connect(("::1", 8081))
            client.sendall(bytes(32 << 20))
            client.shutdown(socket.SHUT_WR)
            assert client.recv(100) == b"%d" % (32 << 20)


@alone
def test_a_clash_is_refused_before_anything_is_touched() -> None:
    with world(ipv6=True), Network(ipv6=True) as net, Container(net=net, ports=["[::]:8080:80"], hostname="first"), ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("::1", 0), family=socket.AF_INET6))
        taken = server.getsockname()[1]
        places = net.containers
        for port, owner, pid in (
            (f"{taken}:80", "this process", os.getpid()),
            (f"[::1]:{taken}:80", "this process", os.getpid()),
            ("[::1]:8080:81", "container 'first' of this process", os.getpid()),
            ("8080:81", "container 'first' of this process", os.getpid()),
        ):
            refused = Container(net=net, ports=["7000:70", port])
            with pytest.raises(PortInUseError, match=owner) as raised, refused:
                pass
            assert raised.value.pid == pid
            assert raised.value.port.startswith("[::")
        assert net.containers == places
        with Container(net=net, ports=["7000:70", "0.0.0.0:8080:81"]):  # it was let go of, and the other version is free
            pass


@alone
def test_what_cannot_be_published_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    near = HOST6.replace("2001:db8:77", "2001:db8:78")
    with world(ipv6=True), Network() as old, Network(ipv6=True) as net, Network(ipv6=True, internal=True) as inside:
        for where, port, words in (
            (old, "[::1]:8080:80", "none of the container's networks reaches outside by IPv6"),
            ([inside, old], "[::]:8080:80", "none of the container's networks reaches outside by IPv6"),
            (inside, "[::1]:8080:80", "internal"),
            (net, f"[{near}]:8080:80", "not an address of this host"),
            (net, "[fe80::1]:8080:80", "address of the link"),
        ):
            with pytest.raises(UsageError, match=words), Container(net=where, ports=[port]):
                pass
        # A kernel that cannot hand packets to `lo`.
        monkeypatch.setattr(loopback6, "forward", lambda _: sandbox.net.nft.Statement((sandbox.net.nft.Expression("no-such"),)))
        for port in ("[::1]:8080:80", "8080:80"):
            with pytest.raises(UnsupportedError, match=r"cannot lead the host's ::1.*0\.0\.0\.0:8080:80") as raised, Container(net=net, ports=[port]):
                pass
            assert raised.value.feature == "nft_fwd_netdev"
        with Container(net=net, ports=["0.0.0.0:8080:80", f"[{HOST6}]:8080:80"]) as c:
            assert len(c.ports["80/tcp"]) == 2
        monkeypatch.undo()
        with Container(net=net, ports=["[::1]:8080:8080"]) as c, serving(c, "web"):
            assert ask("::1", 8080).startswith("web")


@alone
def test_ports_follow_the_container_and_those_of_ipv6_only_where_it_is() -> None:
    with world(ipv6=True), Network("one", ipv6=True) as one, Network("old") as old, Network("two", ipv6=True) as two, ExitStack() as stack:
        c = stack.enter_context(Container(net=one, ports=[8080]))
        with serving(c, "web"):
            before, port = c.ports, c.ports["8080/tcp"][0].port
            c.connect(old)
            c.disconnect(one)
            assert [place.address for place in c.ports["8080/tcp"]] == ["0.0.0.0"]
            assert ask(HOST, port).startswith("web")
            assert not ask(HOST6, port, timeout_s=0.2).startswith("web")
            c.connect(two)
            assert c.ports == before
            for address in (HOST, HOST6, "::1"):
                assert ask(address, port).startswith("web"), address


@alone
def test_a_client_of_udp_gets_whoever_has_the_port_now() -> None:
    with world(ipv6=True), Network(ipv6=True) as net, ExitStack() as stack:
        for address in ("::1", HOST6):
            client = stack.enter_context(socket.socket(socket.AF_INET6, socket.SOCK_DGRAM))
            client.settimeout(5)
            client.connect((address, 8053))
            for number in range(2):
                with Container(net=net, ports=["8053:8080/udp"]) as c, serving(c, f"c{number}"):
                    client.send(b"?")
                    assert client.recv(100).startswith(b"c%d " % number)
                client.send(b"?")
                with pytest.raises(ConnectionRefusedError):
                    client.recv(100)


@alone
def test_a_flow_to_a_container_that_has_gone_does_not_reach_the_one_that_has_its_address(monkeypatch: pytest.MonkeyPatch) -> None:
    with world(ipv6=True), Network(subnet="10.77.3.0/29", ipv6=True) as net, socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as client:
        link = net.live.uplink
        assert link is not None
        assert link.six is not None
        with Container(net=net, ports=[f"[{HOST6}]:8053:8080/udp"]) as c, serving(c, "first"):
            first = c.endpoints[net.name].address6
            client.settimeout(5)
            client.connect((HOST6, 8053))
            client.send(b"?")
            assert client.recv(100).startswith(b"first")
            monkeypatch.setattr("sandbox._networks.published._forget", forget_nothing)
        with ExitStack() as stack, Flows() as flows:
            others = [stack.enter_context(Container(net=net)) for _ in range(5)]
            second = next(other for other in others if other.endpoints[net.name].address6 == first)
            stack.enter_context(serving(second, "second"))
            assert flows.find(reply=Direction(socket.IPPROTO_UDP, source=link.six.there), version=6)  # it is there
            client.send(b"?")
            with pytest.raises(ConnectionRefusedError):
                client.recv(100)


@alone
def test_what_is_published_is_gone_with_its_container_and_its_network(monkeypatch: pytest.MonkeyPatch) -> None:
    with world(ipv6=True), Network(ipv6=True) as keeper:
        link = keeper.live.uplink
        assert link is not None
        assert link.six is not None
        table = link.six.host.table.name
        for _ in range(2):
            with Network(ipv6=True) as net:
                with Container(net=net, ports=["8080:8080", "[::1]:8081:8080/udp"]):
                    assert ". 8080 :" in listed("map", "ip6", table, "published-all")
                    assert "::1 . udp . 8081 :" in listed("map", "ip6", table, "published-one")
                for name in ("published-all", "published-one"):
                    assert "elements" not in listed("map", "ip6", table, name)
                assert "fwd" in listed("table", "netdev", table)
            assert "chain" not in listed("table", "netdev", table)
        monkeypatch.setattr("sandbox._networks.published._forget", fail)
        with pytest.raises(ZeroDivisionError), Container(net=keeper, ports=["8080:80/udp"]):
            pass
        monkeypatch.undo()
        assert "elements" not in listed("map", "ip6", table, "published-all")
        with Container(net=keeper, ports=["8080:80/udp"]):
            pass


@alone
def test_a_forked_child_does_not_keep_what_leads_to_loopback() -> None:
    with world(ipv6=True):
        ours, theirs = socket.socketpair()
        with ExitStack() as stack:
            stack.callback(ours.close)
            with Network(ipv6=True) as net, Container(net=net, ports=["[::1]:8080:8080"]):
                child = os.fork()
                if not child:
                    ours.close()
                    theirs.send(b"x")  # it has let go of what was its parent's
                    theirs.recv(1)
                    os._exit(0)
                theirs.close()
                assert ours.recv(1) == b"x"
            assert "table" not in listed("tables")
        assert os.waitpid(child, 0)[1] == 0


@alone
@needs("program:slirp4netns")
@pytest.mark.skipif(not os.access("/dev/net/tun", os.R_OK | os.W_OK), reason="/dev/net/tun is not there")
def test_beside_slirp4netns_ports_are_of_ipv4_alone() -> None:
    with world(), Network(uplink="slirp4netns", ipv6=True) as net:
        with pytest.raises(UnsupportedError, match="slirp4netns publishes at addresses of IPv4 only"), Container(net=net, ports=["[::1]:8080:80"]):
            pass
        with Container(net=net, ports=["8080:80"]) as c:
            assert c.ports == {"80/tcp": (HostPort("0.0.0.0", 8080),)}
