"""Names in allow-lists: what a container reaches by them, and what neither it, nor the owner of a name, nor the name server can make of that.

The host of these tests is a network namespace of their own, another one is the world; the host's name server is a thread here.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import dnslib
import pytest

from sandbox import Container, Network
from sandbox._networks import names as names_module
from sandbox._networks.switch import Switch
from sandbox.net import allow_rules, openings
from sandbox.net.allow import to_allow
from sandbox.net.allow_rules import allowing
from sandbox.net.nft import IPV4, IPV6, PORT, Set
from sandbox.net.openings import KNOCK_PORT, MOST_ADDRESSES, knock
from tests.leak.snapshot import descendants
from tests.live.test_network_names import Upstream
from tests.live.test_network_outlet import in_world, outside
from tests.netns import ASK, HOST, HOST6, PYTHON, TCP_PORT, WORLD, WORLD6, alone, world
from tests.support import needs, patience

pytestmark = pytest.mark.usefixtures("no_leftovers")
UPSTREAM = "127.77.53.1"
REFUSED = "OSError [Errno 113] No route to host"
NOBODY, NO_ADDRESS = "gaierror [Errno -2] Name or service not known", "gaierror [Errno -5] No address associated with hostname"
OPENED = Set(allow_rules.TABLE, "opened4", (IPV4, PORT), timeouts=True, dynamic=True)


class Owner(Upstream):
    """Answers with what *zone* says: records in the form of zone files, for each name."""

    def __init__(self, zone: dict[str, list[str]]) -> None:
        self.zone = zone
        super().__init__(UPSTREAM)

    def _answer(self, packet: bytes, *, over_tcp: bool) -> bytes:
        query = dnslib.DNSRecord.parse(packet)
        name = str(query.q.qname).rstrip(".").lower()
        self.asked.append(name)
        reply = query.reply()
        lines = self.zone.get(name, [])
        if len(lines) > 20 and not over_tcp:
            reply.header.tc, lines = 1, []
        for line in lines:
            kind = openings.AAAA if ":" in line else openings.A
            if query.q.qtype == kind:
                reply.add_answer(*dnslib.RR.fromZone(line if " " in line else f"{name}. 0 {dnslib.QTYPE[kind]} {line}"))
        return bytes(reply.pack())


@pytest.fixture
def upstream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have the library ask `Owner`."""
    file = tmp_path / "resolv.conf"
    file.write_text(f"nameserver {UPSTREAM}\n")
    monkeypatch.setattr(names_module, "RESOLV_CONF", str(file))
    names_module._server.close()
    yield
    names_module._server.close()


def ask(container: Container, host: str, port: int = TCP_PORT, kind: str = "tcp") -> str:
    return container.exec([PYTHON, "-c", ASK, kind, host, str(port), "5"], text=True).stdout.strip()


def elements(net: Network, where: Set = OPENED) -> list[bytes]:
    with net.live.switch.filters() as kernel:
        return kernel.elements(where)


@needs("root", "userns", "program:ip")
@pytest.mark.usefixtures("upstream")
@alone
def test_a_name_opens_its_port_of_what_it_leads_to_and_nothing_else_is_asked_or_reached() -> None:
    with world() as there:
        assert there.run("ip address add 203.0.113.3/24 dev eth0") == (0, "")
        zone = {
            "web.example.org": [WORLD], "other.org": [WORLD], "udp.org": [WORLD],
            "www.org": ["www.org. 300 CNAME cdn.net.", "cdn.net. 5 A 203.0.113.3", "evil.net. 5 A 203.0.113.2"], "cdn.net": ["203.0.113.3"],
        }  # fmt: skip
        allow = [f"*.example.org:{TCP_PORT}", f"udp.org:{TCP_PORT}/udp", f"www.org:{TCP_PORT}", "secret.org:1"]
        elsewhere = Network(allow=[f"other.org:{TCP_PORT}"])
        with Owner(zone) as owner, Network(allow=allow) as net, Container(net=net) as c, elsewhere as far, Container(net=far) as d:
            assert ask(c, WORLD) == REFUSED  # nobody has asked for a name
            assert ask(c, "www.org") == HOST
            assert ask(c, "203.0.113.3") == HOST
            assert ask(c, WORLD) == REFUSED  # what was beside the alias
            assert ask(c, "web.example.org") == HOST
            for port, kind in ((TCP_PORT + 1, "tcp"), (TCP_PORT, "udp")):
                assert ask(c, "web.example.org", port, kind) == REFUSED
            assert ask(c, "udp.org", kind="udp") == HOST
            for name in ("cdn.net", "other.org", "example.org", "a.secret.org", "data.evil.com"):
                assert ask(c, name) == NOBODY
            assert ask(d, WORLD) == REFUSED  # one network's names are not another's
            assert ask(d, "other.org") == HOST
            assert set(owner.asked) == {"web.example.org", "www.org", "udp.org", "other.org"}


@needs("root", "userns", "program:ip")
@pytest.mark.usefixtures("upstream")
@alone
def test_connections_to_allowed_names_work_at_the_first_try() -> None:
    code = f"""
import socket
for number in range(60):
    with socket.create_connection((f"h{{number}}.example.org", {TCP_PORT}), 5) as s: s.recv(100)
print("all")"""
    with world() as there:
        more = "; ".join(f"ip address add 203.0.113.{number}/24 dev eth0" for number in range(100, 160))
        assert there.run(more) == (0, "")
        zone = {f"h{number}.example.org": [f"203.0.113.{100 + number}"] for number in range(60)}
        with Owner(zone), Network(allow=[f"*.example.org:{TCP_PORT}"]) as net, Container(net=net) as c:
            result = c.exec([PYTHON, "-c", code], text=True)
            assert (result.stdout, result.stderr) == ("all\n", "")
            assert len(elements(net)) == 60


@needs("root", "userns", "program:ip")
@pytest.mark.usefixtures("upstream")
@alone
def test_no_answer_leads_inside() -> None:
    """Rebinding: the network's own, its gateway, private ones, metadata, the host's own, also one that it has had for a moment only."""
    with world(), Network(allow=["*.example.org"]) as net, Container(net=net) as c, socket.create_server((HOST, 0)) as here:
        link = net.live.uplink
        assert link is not None
        inside = ["127.0.0.1", net.gateway, str(link.here), str(link.there), "169.254.169.254", "10.1.1.1", "192.168.0.1", "0.0.0.0", "224.0.0.1", HOST, "203.0.113.255"]
        with Owner({f"n{number}.example.org": [address] for number, address in enumerate(inside)} | {"mixed.example.org": [*inside, WORLD]}):
            for number in range(len(inside)):
                assert ask(c, f"n{number}.example.org", here.getsockname()[1]) == NO_ADDRESS
            assert ask(c, "mixed.example.org") == HOST
        assert elements(net) == [socket.inet_aton(WORLD) + bytes(4)]


@needs("root", "userns")
@alone
def test_a_name_server_that_was_taken_over_opens_nothing_inside_and_no_more_than_there_is_room_for() -> None:
    """What it can do is knock; the kernel decides. Names that lead to an address that was listed do no harm to that."""
    switch = Switch()
    with switch.filters() as kernel, socket.socket(fileno=switch.socket(domain=socket.AF_INET, kind=socket.SOCK_DGRAM, protocol=0)) as sock:
        kernel.commit(allowing(to_allow(["a.org:443", "10.0.0.0/8"]) or (), ipv6=True))
        sock.connect(("127.0.0.1", KNOCK_PORT))

        def opens(address: str, number: int = 0) -> bool:
            try:
                sock.send(knock(socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address), 0, number))
            except PermissionError:
                return False
            return True

        for address in ("10.1.1.1", "127.0.0.1", "169.254.169.254", "198.18.255.2", "224.0.0.1", "::1", "fe80::1", "::ffff:8.8.8.8", "64:ff9b::7f00:1"):
            assert not opens(address)
        assert not opens("8.8.8.8", 7)  # a time that there is not
        for rubbish in (b"", b"\4", b"\4\0\0\0", b"\4\0\0\0\x08\x08\x08", b"\5\0\0\0\x08\x08\x08\x08"):
            with pytest.raises(PermissionError):
                sock.send(rubbish)
        assert opens("8.8.8.8")
        assert opens("2606::1", 6)
        opened6 = Set(allow_rules.TABLE, "opened6", (IPV6, PORT))
        assert [kernel.elements(OPENED), kernel.elements(opened6)] == [[b"\x08\x08\x08\x08" + bytes(4)], [socket.inet_pton(socket.AF_INET6, "2606::1") + bytes(4)]]
        room = sum(opens(f"9.{number >> 16}.{number >> 8 & 255}.{number & 255}") for number in range(allow_rules.MOST_OPEN + 50))
        assert room == allow_rules.MOST_OPEN - 1
        assert opens("8.8.8.8")  # what is there has its time anew
        assert len(kernel.elements(OPENED)) == allow_rules.MOST_OPEN
    switch.close()


@needs("root", "userns", "program:ip")
@pytest.mark.usefixtures("upstream")
@alone
def test_containers_cannot_knock_themselves() -> None:
    code = """
import socket, sys
packet = b"\\4\\6\\0\\0" + socket.inet_aton(sys.argv[2])
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
    for address in (sys.argv[1], "127.0.0.1", sys.argv[2], sys.argv[3]):
        for port in (9, 53):
            try: s.sendto(packet, (address, port))
            except OSError: pass
print("sent")"""
    with world(), Network(allow=[f"example.org:{TCP_PORT}"]) as net, Container(net=net) as c:
        assert c.exec([PYTHON, "-c", code, net.gateway, WORLD, str(net.live.addresses.subnet.broadcast_address)], text=True).stdout == "sent\n"
        assert elements(net) == []
        assert ask(c, WORLD) == REFUSED


@needs("root", "userns", "program:ip")
@pytest.mark.usefixtures("upstream")
@alone
def test_huge_answers_open_so_many_and_many_names_only_until_the_room_of_one_container_is_taken() -> None:
    code = """
import socket, sys
for number in range(int(sys.argv[1]), 34):
    try: print(len({place[4][0] for place in socket.getaddrinfo(f"h{number}.example.org", 80)}))
    except socket.gaierror as error: print(error.errno)"""
    with world():
        zone = {f"h{number}.example.org": [f"9.9.{number}.{one}" for one in range(200)] for number in range(34)}
        with Owner(zone), Network(allow=["*.example.org"]) as net, Container(net=net) as c, Container(net=net) as sister:
            said = c.exec([PYTHON, "-c", code, "0"], text=True).stdout.split()
            assert said == [str(MOST_ADDRESSES)] * 32 + [str(socket.EAI_AGAIN)] * 2
            assert len(elements(net)) == 32 * MOST_ADDRESSES
            assert sister.exec([PYTHON, "-c", code, "33"], text=True).stdout.split() == [str(MOST_ADDRESSES)]


@needs("root", "userns", "program:ip")
@pytest.mark.usefixtures("upstream")
@alone
def test_an_address_is_open_for_its_time_and_while_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openings, "TIMES_S", (5.0,) * 7)

    def wait(net: Network) -> None:
        deadline = time.monotonic() + patience(60)
        while elements(net):
            assert time.monotonic() < deadline
            time.sleep(0.05)

    with world():
        zone = {"example.org": [WORLD]}
        with Owner(zone), Network(allow=[f"example.org:{TCP_PORT}"]) as net, Container(net=net) as c:
            assert c.exec(["getent", "hosts", "example.org"], text=True).stdout.split()[0] == WORLD
            assert elements(net)
            wait(net)
            assert ask(c, WORLD) == REFUSED
            assert ask(c, "example.org") == HOST
            wait(net)
            assert ask(c, WORLD) == HOST


@needs("root", "userns", "program:ip")
@pytest.mark.usefixtures("upstream")
@alone
def test_a_name_server_that_was_killed_comes_again_and_opens() -> None:
    with world():
        zone = {"example.org": [WORLD]}
        with Owner(zone), Network(allow=[f"example.org:{TCP_PORT}"]) as net, Container(net=net) as c:
            init = names_module._server.pid
            assert init is not None
            assert ask(c, "example.org") == HOST
            for pid in descendants(init)[1:]:
                os.kill(pid, signal.SIGKILL)
            c.exec([PYTHON, "-c", "pass"])
            assert ask(c, "example.org") == HOST


@needs("root", "userns", "program:ip")
@pytest.mark.usefixtures("upstream")
@alone
def test_names_lead_to_addresses_of_ipv6_too() -> None:
    code = """
import socket, sys
try:
    with socket.create_connection((sys.argv[1], int(sys.argv[2])), 5) as s: print(s.recv(100).decode())
except OSError as error: print(type(error).__name__)"""
    with world(ipv6=True):
        inside = ["::1", "fd00::1", "fe80::1", "::ffff:cb00:7102", "64:ff9b::cb00:7102", HOST6]
        with Owner({"six.org": [WORLD6], "inside.org": inside}) as owner, Network(ipv6=True, allow=[f"*.org:{TCP_PORT}", f"six.org:{TCP_PORT}"]) as net, Container(net=net) as c:
            said = [c.exec([PYTHON, "-c", code, *where], text=True).stdout.strip() for where in (
                (WORLD6, str(TCP_PORT)), ("six.org", str(TCP_PORT)), (WORLD6, str(TCP_PORT)), ("six.org", "9"), ("inside.org", str(TCP_PORT)),
            )]  # fmt: skip
            assert said == ["ConnectionRefusedError", HOST6, HOST6, "ConnectionRefusedError", "gaierror"]
            assert set(owner.asked) == {"six.org", "inside.org"}
            opened6 = Set(allow_rules.TABLE, "opened6", (IPV6, PORT))
            assert {element[:16] for element in elements(net, opened6)} == {socket.inet_pton(socket.AF_INET6, WORLD6)}


# A name server for the host that another one is, and what the library believes to be the host's resolv.conf.
OWNER = """
import sys
sys.path[:0] = PATHS
import dnslib, threading
way = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); way.bind(("", 53))
def owner():
    while True:
        packet, source = way.recvfrom(4096)
        query = dnslib.DNSRecord.parse(packet); reply = query.reply()
        if query.q.qtype == 1:
            for address in {"web.org.": ["192.0.2.1"], "host.org.": ["192.0.2.2", "198.18.255.2", "127.0.0.1"]}.get(str(query.q.qname), []):
                reply.add_answer(dnslib.RR(query.q.qname, 1, rdata=dnslib.A(address)))
        way.sendto(reply.pack(), source)
threading.Thread(target=owner, daemon=True).start()
"""
ORDINARY = """
import tempfile
from sandbox import NetworkStore
from sandbox._networks import names
with tempfile.NamedTemporaryFile("w") as file:
    file.write(f"nameserver {THEIRS}\\n"); file.flush(); os.chmod(file.name, 0o644)
    names.RESOLV_CONF = file.name
    with Network(allow=["web.org:7", "host.org:7"]) as net, Container(net=net) as c:
        for name in (THEIRS, "web.org", "host.org", "other.org", OURS): found[name] = ask(c, TCP, name, 7)
    with tempfile.TemporaryDirectory() as home:  # and in one that is kept
        store = NetworkStore(home + "/networks")
        store.create("shop", allow=["web.org:7", "host.org:7"])
        with Container(net=store.open("shop")) as c: found["kept"] = [ask(c, TCP, name, 7) for name in (THEIRS, "web.org", "host.org", "other.org")]
        store.remove("shop")
"""


@outside
def test_an_ordinary_users_names_are_followed_too() -> None:
    paths = [str(Path(dnslib.__file__).parents[1])]
    found = in_world(ORDINARY, beyond=f"import socket{OWNER}".replace("PATHS", repr(paths)))
    refused, nobody = "OSError", "socket.gaierror"
    assert found.pop("kept") == [refused, "192.0.2.2", nobody, nobody]
    assert found == {"192.0.2.1": refused, "web.org": "192.0.2.2", "host.org": nobody, "other.org": nobody, "192.0.2.2": refused}
