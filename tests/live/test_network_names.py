"""Containers find one another by name, in the networks they are in, as long as they are there; and what a name server must not do."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Self

import dnslib
import pytest

import sandbox
from sandbox import PIPE, Bind, ClosedError, Container, Join, Network, UsageError
from sandbox._networks import names as names_module
from sandbox.sec import Security
from tests.leak.killed import run_and_kill
from tests.leak.snapshot import descendants
from tests.netns import alone, said
from tests.rootfs import busybox
from tests.support import needs, patience

pytestmark = [needs("root", "userns"), pytest.mark.usefixtures("no_leftovers")]

PYTHON = "/usr/bin/python3"
# Sends what it is given in hex, each as a datagram or all over TCP, and prints as many answers; "-": none within the time.
RAW = """
import socket, sys
kind, server, wait, *packets = sys.argv[1:]
data = [bytes.fromhex(packet) for packet in packets]
with socket.socket(socket.AF_INET, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM) as s:
    s.settimeout(float(wait))
    s.connect((server, 53))
    if kind == "tcp":
        s.sendall(b"".join(len(d).to_bytes(2, "big") + d for d in data))
        f = s.makefile("rb")
    else:
        for d in data:
            s.send(d)
    for _ in data:
        try:
            print((f.read(int.from_bytes(f.read(2), "big")) if kind == "tcp" else s.recv(65535)).hex())
        except TimeoutError:
            print("-")
"""
# Looks up each name that it reads, as programs do.
LOOKER = """
import socket, sys
for line in sys.stdin:
    try:
        print(socket.getaddrinfo(line.strip(), 80, socket.AF_INET, socket.SOCK_STREAM)[0][4][0], flush=True)
    except OSError as error:
        print(error.errno, flush=True)
"""
NOT_KNOWN = str(socket.EAI_NONAME)
UPSTREAMS = ("127.77.53.1", "127.77.53.2")


def getent(container: Container, name: str) -> list[str]:
    """Which addresses a name has, as the C library finds them."""
    said = container.exec(["getent", "ahostsv4", name], text=True, timeout=30).stdout
    return sorted({line.split()[0] for line in said.splitlines()})


def question(name: str, kind: str = "A") -> bytes:
    return bytes(dnslib.DNSRecord.question(name, kind).pack())


def raw(container: Container, server: str, *packets: bytes, kind: str = "udp", wait_s: float = 20.0) -> list[dnslib.DNSRecord | None]:
    """What a server answers to packets."""
    argv = [PYTHON, "-c", RAW, kind, server, str(wait_s), *(packet.hex() for packet in packets)]
    said = container.exec(argv, text=True, check=True).stdout.split()
    return [None if word == "-" else dnslib.DNSRecord.parse(bytes.fromhex(word)) for word in said]


def addresses(record: dnslib.DNSRecord | None) -> list[str]:
    assert record is not None
    return [str(rr.rdata) for rr in record.rr]


@contextmanager
def looking(container: Container) -> Generator[Callable[[str], str]]:
    """A program in *container* that looks up names, one after the other."""
    with container.popen([PYTHON, "-uc", LOOKER], stdin=PIPE, stdout=PIPE, text=True) as process:

        assert process.stdin is not None
        assert process.stdout is not None
        stdin, stdout = process.stdin, process.stdout

        def look(name: str) -> str:
            stdin.write(f"{name}\n")
            stdin.flush()
            return str(stdout.readline()).strip()

        yield look
        process.kill()


class Upstream:
    """A name server of the test's on the host's loopback: 192.0.2.7 is everybody's address, 300 have ``many.example``, and nobody ``no.example``."""

    def __init__(self, address: str) -> None:
        self.asked: list[str] = []
        self._udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._udp.bind((address, 53))
        self._tcp = socket.create_server((address, 53))
        self._threads = [threading.Thread(target=run) for run in (self._datagrams, self._connections)]
        for thread in self._threads:
            thread.start()

    def _answer(self, packet: bytes, *, over_tcp: bool) -> bytes:
        query = dnslib.DNSRecord.parse(packet)
        name = str(query.q.qname).rstrip(".").lower()
        self.asked.append(name)
        reply = query.reply()
        if name == "no.example":
            reply.header.rcode = 3
        elif name == "many.example" and not over_tcp:
            reply.header.tc = 1
        elif query.q.qtype == 1:
            for number in range(300 if name == "many.example" else 1):
                reply.add_answer(dnslib.RR(query.q.qname, 1, rdata=dnslib.A(f"192.0.{2 + number // 200}.{7 + number % 200}"), ttl=5))
        return bytes(reply.pack())

    def _datagrams(self) -> None:
        while True:
            packet, source = self._udp.recvfrom(4096)
            if not packet:
                return
            self._udp.sendto(self._answer(packet, over_tcp=False), source)

    def _connections(self) -> None:
        while True:
            with self._tcp.accept()[0] as peer, peer.makefile("rb") as file:
                packet = file.read(int.from_bytes(file.read(2), "big"))
                if not packet:
                    return
                answer = self._answer(packet, over_tcp=True)
                peer.sendall(len(answer).to_bytes(2, "big") + answer)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()  # where it was begun, or it would not wake up

    def close(self) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.sendto(b"", self._udp.getsockname())
        socket.create_connection(self._tcp.getsockname()).close()
        for thread in self._threads:
            thread.join()
        self._udp.close()
        self._tcp.close()


@pytest.fixture
def asks_upstream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The host asks the first of `UPSTREAMS`, in this test."""
    file = tmp_path / "resolv.conf"
    file.write_text(f"nameserver {UPSTREAMS[0]}\n")
    monkeypatch.setattr(names_module, "RESOLV_CONF", str(file))
    names_module._server.close()
    yield
    names_module._server.close()


@contextmanager
def upstreams() -> Generator[tuple[Upstream, Upstream]]:
    """Both of them: in a namespace of its own, as somebody may have the addresses of the host."""
    said("ip", "link", "set", "lo", "up")
    Path("/proc/sys/net/ipv4/conf/all/forwarding").write_text("1", encoding="ascii")
    with Upstream(UPSTREAMS[0]) as first, Upstream(UPSTREAMS[1]) as second:
        yield first, second


def test_names_hostnames_and_aliases_are_found_both_ways() -> None:
    with Network("shop", internal=True) as net, Container(net=Join(net, aliases=["db", "sql.local"]), name="one", hostname="first") as one, Container(net=net, name="Two") as two:
        for name in ("one", "first", "db", "sql.local", "ONE", "one.shop"):
            assert getent(two, name) == [one.address], name
        assert getent(one, "two") == [two.address]
        assert getent(two, "sandbox") == [two.address]  # everybody's default is nobody's name but in its own file
        assert two.exec(["getent", "hosts", str(one.address)], text=True).stdout.split() == [one.address, "one"]
        assert one.exec(["cat", "/etc/resolv.conf"]).stdout == f"nameserver {net.gateway}\noptions ndots:0\n".encode()
        assert one.exec(["cat", "/etc/hostname"]).stdout == b"first\n"
        assert (one.name, two.name) == ("one", "Two")


def test_they_are_there_at_once_and_gone_at_once_a_hundred_times() -> None:
    with Network(internal=True) as net, Container(net=net) as asking, looking(asking) as look:
        for number in range(100):
            with Container(net=net, name=f"c{number % 3}", read_only=True) as c:
                assert look(f"c{number % 3}") == c.address
            assert look(f"c{number % 3}") == NOT_KNOWN


def test_a_shared_alias_is_all_of_them_in_turn() -> None:
    with Network(internal=True) as net, ExitStack() as stack:
        web = [stack.enter_context(Container(net=Join(net, aliases=["web"]))) for _ in range(3)]
        everybody = sorted(str(c.address) for c in web)
        assert getent(web[0], "web") == everybody
        firsts = {addresses(raw(web[0], net.gateway, question("web"))[0])[0] for _ in range(3)}
        assert sorted(firsts) == everybody


def test_a_link_is_a_name_and_dockers_variables() -> None:
    with Network(internal=True) as net, Container(net=net, env={"MODE": "x", "HOME": "/h"}, hostname="store") as db, Container(
        net=net, name="app", links={"my-db": db}, env={"MY_DB_ENV_MODE": "mine"}
    ) as app:
        assert getent(app, "my-db") == [db.address]
        assert getent(db, "app") == [app.address]
        assert getent(db, "my-db") == []
        env = dict(line.split("=", 1) for line in app.exec(["env"], text=True).stdout.splitlines())
        assert env["MY_DB_NAME"] == "/app/my-db"
        assert env["MY_DB_ENV_MODE"] == "mine"
        assert "MY_DB_ENV_HOME" not in env
        db.close()
        assert getent(app, "my-db") == []


def test_a_link_to_nobody_is_refused_before_anything_is_touched() -> None:
    with Network(internal=True) as net, Network(internal=True) as other, Container(net=other) as far:
        for target, why in ((far, "none of this one's networks"), (Container(net=net), "does not run")):
            with pytest.raises(UsageError, match=why), Container(net=net, links={"db": target}):
                pass
        assert net.containers == ()


def test_two_networks_have_the_same_names_each_for_itself_and_one_in_both_finds_both() -> None:
    with ExitStack() as stack:
        left, right = (stack.enter_context(Network(name, internal=True)) for name in ("left", "right"))
        with Container(net=left, name="web") as a, Container(net=right, name="web") as b, Container(net=left) as c, Container(net=right) as d:
            assert (getent(c, "web"), getent(d, "web")) == ([a.address], [b.address])
            with Container(net=right, name="only") as e, Container(net=[left, right]) as both:
                assert getent(both, "web") == [a.address]
                assert getent(both, "web.right") == [b.address]
                assert getent(both, "only") == [e.address]
                assert getent(c, "only") == []
                both.disconnect(left)
                assert getent(both, "web") == [b.address]
                c.connect(right)
                assert getent(c, "only") == [e.address]


def test_a_root_that_nobody_can_write_to_has_names_too_and_a_mounted_file_stays_the_callers(tmp_path: Path) -> None:
    mine = tmp_path / "resolv.conf"
    mine.write_text("nameserver 192.0.2.1\n")
    mine.chmod(0o666)
    with Network(internal=True) as net, Container(net=net, name="web") as web, Container(net=net, read_only=True) as c:
        assert getent(c, "web") == [web.address]
        with Container(net=net, mounts=[Bind(str(mine), "/etc/resolv.conf")]) as own:
            assert own.exec(["cat", "/etc/resolv.conf"]).stdout == b"nameserver 192.0.2.1\n"
    assert mine.read_text() == "nameserver 192.0.2.1\n"
    assert sandbox.run(["cat", "/etc/resolv.conf"]).stdout == b""


@pytest.mark.parametrize("security", [Security(), Security(landlock=False)], ids=["walls", "no landlock"])
def test_a_root_that_nobody_can_write_to_learns_of_a_network_that_it_joins_later(security: Security, tmp_path: Path) -> None:
    files = ("/etc/hosts", "/etc/resolv.conf")
    wish = ["/bin/sh", "-c", "for file in /etc/hosts /etc/resolv.conf; do (echo mine >>$file); done; cat /etc/hosts; getent ahosts web"]
    for image in (None, busybox(tmp_path / "root")):
        options = {"read_only": True, "hostname": "box", "security": security, "user": "root"}
        with Network(internal=True) as net, Container(net=net, name="web") as web, Container(image, **options) as c:
            before = [c.read_bytes(path) for path in files]
            place = c.connect(net)
            now = [c.read_bytes(path) for path in files]
            assert f"{place.address}\tbox\n".encode() in now[0]
            assert now[1] == f"nameserver {net.gateway}\noptions ndots:0\n".encode()
            said = c.exec(wish)
            assert now[0] in said.stdout  # to its programs it is what it was
            assert image or str(web.address).encode() in said.stdout
            c.disconnect(net)
            assert [c.read_bytes(path) for path in files] == before


def test_extra_hosts_and_search_domains_hold_in_networks() -> None:
    options = {"dns": ["192.0.2.53"], "dns_search": ["example.org", "shop"], "extra_hosts": {"gate": "192.0.2.9"}}
    for read_only in (False, True):
        with Network("shop", internal=True) as net, Container(net=net, name="web") as web, Container(net=net, read_only=read_only, **options) as c:
            assert getent(c, "gate") == ["192.0.2.9"]
            said = c.exec(["cat", "/etc/resolv.conf"], text=True).stdout.splitlines()
            assert said == [f"nameserver {net.gateway}", "search example.org shop", "options ndots:0"]
            assert getent(c, "web") == [web.address]


def test_many_of_one_name_come_over_tcp_and_questions_may_come_at_once() -> None:
    with Network(internal=True) as net, ExitStack() as stack:
        web = [stack.enter_context(Container(net=Join(net, aliases=["web"]))) for _ in range(35)]
        assert len(getent(web[0], "web")) == 35
        cut, whole = raw(web[0], net.gateway, question("web"))[0], raw(web[0], net.gateway, question("web"), kind="tcp")[0]
        assert cut is not None
        assert (cut.header.tc, len(set(addresses(whole)))) == (1, 35)
        # As musl does: both kinds at once, from one socket.
        both = raw(web[0], net.gateway, question("web"), question("web", "AAAA"), question("nobody"))
        assert sorted(len(record.rr) > 0 for record in both if record is not None) == [False, False, True]


@needs("program:ip")
@pytest.mark.usefixtures("asks_upstream")
@alone
def test_strangers_are_asked_for_of_the_hosts_servers_as_they_are_now(tmp_path: Path) -> None:
    with (
        upstreams() as (first, second),
        open_network() as net,
        Container(net=net, name="web") as web,
        Container(net=net, dns=[UPSTREAMS[1]]) as own,
    ):
        assert getent(web, "good.example") == ["192.0.2.7"]
        assert len(getent(web, "many.example")) == 300
        assert getent(web, "no.example") == []
        assert (set(first.asked), second.asked) == ({"good.example", "many.example", "no.example"}, [])
        assert getent(own, "own.example") == ["192.0.2.7"]
        assert getent(own, "web") == [web.address]
        (tmp_path / "resolv.conf").write_text(f"nameserver {UPSTREAMS[1]}\n")
        assert getent(web, "later.example") == ["192.0.2.7"]
        assert {"own.example", "later.example"} <= set(second.asked)
        assert not {"own.example", "later.example", "web"} & set(first.asked)


@contextmanager
def open_network() -> Generator[Network]:
    """One that is not internal. Nothing has to be reachable from inside, on whatever host this runs: it is the host that asks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Network, "_check", lambda _: None)
        with Network() as net:
            yield net


@needs("program:ip")
@pytest.mark.usefixtures("asks_upstream")
@alone
def test_an_internal_network_does_not_leak_through_names() -> None:
    with upstreams() as asked, Network(internal=True) as net, Container(net=net, dns=[UPSTREAMS[0]], name="web") as c:
        secret = question("c2VjcmV0.evil.example", "TXT")
        for kind in ("udp", "tcp"):
            record = raw(c, net.gateway, secret, kind=kind)[0]
            assert record is not None
            assert record.header.rcode == 3
        assert getent(c, "good.example") == []
        raw(c, net.gateway, question("4.3.2.1.in-addr.arpa", "PTR"), question("web", "TXT"))
        for address in UPSTREAMS:
            assert c.exec([PYTHON, "-c", RAW, "udp", address, "0.2", secret.hex()], text=True).stdout in ("", "-\n")
        assert [upstream.asked for upstream in asked] == [[], []]


def test_a_server_that_is_killed_is_there_again(no_leftovers: None) -> None:
    with Network(internal=True) as net, Container(net=net, name="web") as web, Container(net=net) as c:
        assert getent(c, "web") == [web.address]
        above = names_module._server.pid
        assert above is not None
        keeper, child = [pid for pid in descendants(above) if Path(f"/proc/{pid}/comm").read_text() == "sandbox-names\n"]
        for _ in range(2):
            os.kill(child, signal.SIGKILL)
            assert getent(c, "web") == [web.address]
            (child,) = descendants(keeper)
        os.kill(keeper, signal.SIGKILL)  # it sees no packet: only somebody on the host can do so
        deadline = time.monotonic() + patience(5)
        while any(Path(f"/proc/{pid}/comm").exists() for pid in (keeper, child)) and time.monotonic() < deadline:
            pass
        with Container(net=net, name="new") as new:
            assert getent(c, "new") == [new.address]
            assert getent(new, "web") == [web.address]


FORGOTTEN = """
import gc
from sandbox import Container, Network
from sandbox._networks import names
with Network(internal=True) as net, Container(net=net, name="web") as web:
    Network(internal=True).create()
    gc.collect()
    names._server.close()  # whoever starts it anew tells it of all that there are
    with Container(net=net, name="new") as new:
        assert new.exec(["getent", "hosts", "web"], text=True).stdout.startswith(web.address)
"""


def test_a_network_that_nobody_closed_is_in_nobodys_way(no_leftovers: None) -> None:
    done = subprocess.run([sys.executable, "-c", FORGOTTEN], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_who_sees_packets_has_no_rights() -> None:
    with Network(internal=True) as net, Container(net=net, name="web") as web:
        assert getent(web, "web") == [web.address]
        above = names_module._server.pid
        assert above is not None
        child = descendants(above)[-1]
        status = dict(line.split(":\t", 1) for line in Path(f"/proc/{child}/status").read_text().splitlines() if ":\t" in line)
        assert status["Uid"].split() == ["65534"] * 4
        assert (status["CapEff"], status["CapPrm"], status["NoNewPrivs"], status["Seccomp"]) == ("0" * 16, "0" * 16, "1", "2")
        assert status["Groups"].strip() == ""


def test_rubbish_from_a_container_neither_ends_nor_blocks_it() -> None:
    flood = (
        "import os, socket, sys\n"
        "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.connect((sys.argv[1], 53))\n"
        "for _ in range(3000):\n"
        "    try: s.send(os.urandom(2) + b'\\1\\0\\0\\1' + bytes(6) + os.urandom(40))\n"
        "    except OSError: pass\n"
        "held = [socket.create_connection((sys.argv[1], 53)) for _ in range(20)]\n"
        "for h in held[:5]: h.sendall(b'\\xff\\xff' + os.urandom(99))\n"
        "print('done', flush=True); sys.stdin.read()\n"
    )
    with Network(internal=True) as net, Container(net=net, name="web") as web, Container(net=net) as c:
        assert getent(c, "web") == [web.address]
        above = names_module._server.pid
        assert above is not None
        before = descendants(above)
        with web.popen([PYTHON, "-c", flood, net.gateway], stdin=PIPE, stdout=PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"done\n"
            assert addresses(raw(c, net.gateway, question("web"), kind="tcp")[0]) == [web.address]
            answer, deadline = None, time.monotonic() + patience(60)
            while answer is None and time.monotonic() < deadline:  # the flood may have filled its socket: programs ask again, too
                answer = raw(c, net.gateway, question("web"), wait_s=5.0)[0]
            assert addresses(answer) == [web.address]
            process.kill()
        assert descendants(above) == before


def test_nothing_of_names_outlives_a_killed_process() -> None:
    code = (
        "import signal\n"
        "from sandbox import Container, Network\n"
        "nets = [Network(internal=True).create() for _ in range(2)]\n"
        "all = [Container(net=net, name=f'c{n}').create() for net in nets for n in range(3)]\n"
        "assert all[0].exec(['getent', 'hosts', 'c1']).ok\n"
        "print('ready', flush=True)\n"
        "signal.pause()\n"
    )
    assert run_and_kill(code, patience_s=2.0) == []


def test_a_closed_network_is_not_answered_and_its_namespace_goes() -> None:
    with Network(internal=True) as stays, Container(net=stays, name="x") as x:
        net = Network(internal=True).create()
        with Container(net=[net, stays], name="web") as c:
            assert getent(c, "x") == [x.address]
            net.close()
            assert getent(c, "x") == [x.address]
            assert getent(x, "web") == [c.endpoints[stays.name].address]
        with pytest.raises(ClosedError), Container(net=net):
            pass


def test_wrong_names_are_refused() -> None:
    for name in ("", "a b", "-a", "a..b", "x" * 64, "a\n", 7):
        with pytest.raises(UsageError, match="name"):
            Container(name=name)
