"""Networks that reach outside, on the real kernel: the host's part is played by a namespace of the test's own, the world's by another."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
import time
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from ipaddress import ip_network

import pytest

import sandbox
from sandbox import PIPE, Container, Network, SetupError, UnsupportedError
from sandbox._networks import uplink
from sandbox.net.nft import Nftables
from tests.leak.killed import run_and_kill
from tests.netns import ASK, HOST, PYTHON, TCP_PORT, WORLD, alone, said, world
from tests.support import needs, patience

pytestmark = [needs("root", "userns", "program:ip", "program:nft"), pytest.mark.usefixtures("no_leftovers")]

REFUSED = "No route to host"  # what a rejection by ICMP comes to


def ask(container: Container, address: str, port: int = TCP_PORT, *, kind: str = "tcp", timeout_s: float = 5.0) -> sandbox.Result:
    return container.exec([PYTHON, "-c", ASK, kind, address, str(port), str(timeout_s)], text=True)


def links() -> list[str]:
    """Ours among the interfaces of the calling thread's namespace."""
    return [name for _, name in socket.if_nameindex() if name.startswith("sandbox")]


def tables() -> list[str]:
    with Nftables.here() as kernel:
        return [table.name for table in kernel.tables()]


def wait_until_gone(patience_s: float = 2.0) -> None:
    """The kernel frees a namespace, and the pair that ends in it, at its leisure."""
    deadline = time.monotonic() + patience(patience_s)
    while (links() or tables()) and time.monotonic() < deadline:
        pass
    assert (links(), tables()) == ([], [])


def closed(chain: str, rule: str = "", *, policy: str = "accept") -> None:
    """Somebody else's chain of the forward hook."""
    family, table, _ = chain.split()
    made = f"add table {family} {table}; add chain {chain} {{ type filter hook forward priority 5; policy {policy}; }}"
    said("nft", f"{made}; add rule {chain} {rule}" if rule else made)


def by_hand_s() -> float:
    """How long the kernel takes just now to free a namespace that was made by hand, with a pair of which one end is here: others' work is before it."""
    with subprocess.Popen(["unshare", "--net", "sh", "-c", "echo up; exec cat"], stdin=PIPE, stdout=PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        said("ip", "link", "add", "hand", "type", "veth", "peer", "name", "made", "netns", str(process.pid))
        process.stdin.close()
    began = time.monotonic()
    while any(name == "hand" for _, name in socket.if_nameindex()):
        pass
    return time.monotonic() - began


@contextmanager
def serving(container: Container, port: int = 8080) -> Generator[None]:
    code = f"import socket; s = socket.create_server(('', {port})); print('up', flush=True)\nwhile True: p, a = s.accept(); p.sendall(a[0].encode()); p.close()"
    with container.popen([PYTHON, "-c", code], stdout=PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        yield
        process.kill()


@alone
def test_containers_reach_the_world_which_sees_the_hosts_address() -> None:
    with world(), Network() as net, Container(net=net) as one, Container(net=net) as two:
        for container in (one, two):
            for kind in ("tcp", "udp"):
                result = ask(container, WORLD, kind=kind)
                assert (result.stdout, result.exit_code) == (f"{HOST}\n", 0)
        with serving(two):
            assert ask(one, str(two.address), 8080).stdout == f"{one.address}\n"  # among themselves, everybody is who he is
    wait_until_gone()


@alone
def test_internal_networks_reach_nothing_outside_beside_one_that_does() -> None:
    with world(), Network(internal=True) as inside, Network() as outside, Container(net=inside) as c, Container(net=outside) as d:
        assert "unreachable" in ask(c, WORLD, timeout_s=1).stdout
        assert ask(d, WORLD).ok
        assert len(links()) == 1


@alone
def test_a_container_in_both_goes_outside_by_the_one_that_leads_there() -> None:
    with world(), Network(internal=True) as inside, Network() as outside, Container(net=[inside, outside]) as c:
        assert ask(c, WORLD).ok
        c.disconnect(outside)
        assert "unreachable" in ask(c, WORLD, timeout_s=1).stdout
        c.connect(outside)
        assert ask(c, WORLD).ok


@alone
def test_containers_do_not_reach_the_host() -> None:
    """Neither its loopback nor its other addresses: whoever wants to offer containers something, puts it into a container."""
    with world(), Network() as net, Container(net=net) as c, socket.create_server(("0.0.0.0", 0)) as tcp, ExitStack() as stack:
        udp = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        udp.bind(("0.0.0.0", tcp.getsockname()[1]))
        link = net.live.uplink
        assert link is not None
        for address in (HOST, str(link.here)):
            for kind in ("tcp", "udp"):
                assert REFUSED in ask(c, address, tcp.getsockname()[1], kind=kind).stdout
        for address in ("127.0.0.1", net.gateway, str(link.there)):
            assert not ask(c, address, tcp.getsockname()[1], timeout_s=0.3).ok
        for listener in (tcp, udp):
            listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            tcp.accept()
        with pytest.raises(BlockingIOError):
            udp.recv(10)


@alone
def test_two_networks_do_not_reach_each_other_by_the_host() -> None:
    with world(), Network() as left, Network() as right, Container(net=left) as a, Container(net=right) as b, serving(b):
        link = right.live.uplink
        assert link is not None
        assert not ask(a, str(b.address), 8080, timeout_s=0.3).ok
        assert REFUSED in ask(a, str(link.there), 8080).stdout
        assert not ask(a, str(link.here), 8080, timeout_s=0.3).ok


@alone
def test_nobody_reaches_in_from_outside_or_from_the_host() -> None:
    with world() as there, Network() as net, Container(net=net) as c, serving(c):
        link = net.live.uplink
        assert link is not None
        assert there.run(f"ip route add {net.subnet} via {HOST}; ip route add {link.there} via {HOST}") == (0, "")
        for address in (str(c.address), net.gateway, str(link.there)):
            assert there.ask(address, 8080)[0] == 1
            asked = subprocess.run([PYTHON, "-c", ASK, "tcp", address, "8080", "0.3"], capture_output=True, text=True, check=False)
            assert asked.returncode == 1
        said("ip", "route", "add", net.subnet, "via", str(link.there))
        assert subprocess.run([PYTHON, "-c", ASK, "tcp", str(c.address), "8080", "0.3"], capture_output=True, check=False).returncode == 1


@alone
def test_nothing_leaves_with_an_address_of_a_container() -> None:
    """What conntrack takes for invalid is not translated: an answer to nothing, by TCP."""
    raw = (
        "import socket, struct, sys\n"
        "s = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP)\n"
        "for flags in (0x10, 0x12, 0x04, 0x11, 0x29):\n"
        f"    s.sendto(struct.pack('!HHIIBBHHH', 1, {TCP_PORT}, 1, 1, 0x50, flags, 100, 0, 0), ('{WORLD}', 0))\n"
    )
    with world() as there, Network() as net, Container(net=net, user=0, security=sandbox.Security(cap_add=["NET_RAW"])) as c:
        assert there.run("nft 'add table ip t; add chain ip t c { type filter hook input priority -400; }; "
                         f"add rule ip t c ip saddr != {HOST} counter'")[0] == 0  # fmt: skip
        assert c.exec([PYTHON, "-c", raw]).ok
        assert ask(c, WORLD).ok
        assert "packets 0 bytes 0" in there.run("nft list table ip t")[1]


# ---- Others' rules ----


@alone
def test_a_flush_by_others_takes_nothing_of_ours() -> None:
    with world(), Network() as net, Container(net=net) as c:
        said("nft", "flush", "ruleset")
        assert len(tables()) == 1
        assert ask(c, WORLD).stdout == f"{HOST}\n"
        assert REFUSED in ask(c, HOST, 22).stdout


@alone
def test_others_rules_and_settings_stay_as_they_are() -> None:
    with world():
        closed("inet theirs c", "ip daddr 192.0.2.9 drop", policy="accept")
        settings = ("sysctl", "net.ipv4.ip_forward", "net.ipv4.conf.wan.forwarding", "net.ipv4.conf.default.forwarding", "net.ipv4.conf.all.rp_filter")
        before = said("nft", "list", "ruleset"), said(*settings), said("ip", "route")
        with Network() as net, Container(net=net) as c:
            assert ask(c, WORLD).ok
            assert said("nft", "list", "table", "inet", "theirs") == before[0]
            assert said(*settings) == before[1]
        wait = time.monotonic() + patience(30)
        while links() and time.monotonic() < wait:
            pass
        assert (said("nft", "list", "ruleset"), said(*settings), said("ip", "route")) == before


@alone
@needs("program:iptables")
def test_dockers_closed_forward_chain_is_told_with_what_opens_it() -> None:
    with world():
        said("sh", "-c", "iptables -P FORWARD DROP; iptables -N DOCKER-USER; iptables -I FORWARD -j DOCKER-USER; iptables -A DOCKER-USER -j RETURN")
        with pytest.raises(UnsupportedError, match=r"drop what containers send outside \(ip filter FORWARD: policy drop\)") as caught:
            Network().create()
        assert caught.value.feature == "forward"
        wait = time.monotonic() + patience(30)
        while links() and time.monotonic() < wait:
            pass
        assert (links(), tables()) == ([], ["filter"])
        said("sh", "-c", caught.value.remedy)
        with Network() as net, Container(net=net) as c:
            assert ask(c, WORLD).ok


@alone
def test_another_firewalls_chain_is_told_with_what_opens_it() -> None:
    with world():
        closed("inet walls closed", policy="drop")
        with pytest.raises(UnsupportedError, match="inet walls closed: policy drop") as caught:
            Network().create()
        said("sh", "-c", caught.value.remedy)
        with Network() as net, Container(net=net) as c:
            assert ask(c, WORLD).ok


@alone
def test_a_rule_that_rejects_is_found_by_trying() -> None:
    """As firewalld's: the policy says nothing."""
    with world():
        closed("inet firewalld FORWARD", "reject with icmpx admin-prohibited")
        with pytest.raises(UnsupportedError, match=r"firewall-cmd --zone=trusted --add-interface=sandbox\+"):
            Network().create()
        said("nft", "flush table inet firewalld")
        with Network() as net, Container(net=net) as c:
            assert ask(c, WORLD).ok


@alone
def test_a_host_that_forbids_addresses_of_no_use_is_no_hindrance() -> None:
    with world():
        closed("ip t c", "ip daddr { 198.51.100.0/24, 192.0.2.0/24 } drop")
        with Network() as net, Container(net=net) as c:
            assert ask(c, WORLD).ok


@alone
def test_a_host_that_does_not_forward_is_refused_and_left_so() -> None:
    with world(forwards=False):
        with pytest.raises(UnsupportedError, match=r"wan.forwarding is 0.*sysctl -w net.ipv4.ip_forward=1") as caught:
            Network().create()
        assert said("sysctl", "-n", "net.ipv4.ip_forward", "net.ipv4.conf.wan.forwarding").split() == ["0", "0"]
        assert (links(), tables()) == ([], [])
        said("sh", "-c", caught.value.remedy.partition(",")[0])
        with Network() as net, Container(net=net) as c:
            assert ask(c, WORLD).ok


@alone
def test_without_a_default_route_what_is_near_is_reached() -> None:
    with world(is_default=False), Network() as net, Container(net=net) as c:
        assert ask(c, WORLD).ok


# ---- Many, and their end ----


@alone
def test_networks_made_at_once_do_not_meet_and_leave_nothing() -> None:
    nets = [Network() for _ in range(12)]
    here = f"/proc/self/task/{threading.get_native_id()}/ns/net"
    with world(), ExitStack() as stack:
        fd = os.open(here, os.O_RDONLY | os.O_CLOEXEC)
        stack.callback(os.close, fd)

        def make(mine: list[Network]) -> None:
            sandbox._sys.calls.setns(fd, 0)  # a new thread is where its maker is; this says so
            for net in mine:
                stack.callback(net.close)
                net.create()

        threads = [threading.Thread(target=make, args=(nets[start::4],)) for start in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        found = [link for net in nets if (link := net.live.uplink) is not None]
        assert len({link.name for link in found}) == len({link.there for link in found}) == 12
        assert len(tables()) == 1  # one of ours, for all
        with Container(net=nets[0]) as c, Container(net=nets[-1]) as d:
            assert ask(c, WORLD).ok
            assert ask(d, WORLD).ok
    wait_until_gone()


@alone
def test_addresses_keep_out_of_the_way_of_routes() -> None:
    with world():
        said("ip", "route", "add", "10.0.0.0/8", "dev", "wan")
        with Network(subnet="192.168.176.0/23") as net, Container(net=net) as c:
            link = net.live.uplink
            assert link is not None
            assert link.there in ip_network("192.168.176.0/20")
            assert link.there not in ip_network("192.168.176.0/23")
            assert ask(c, WORLD).ok


@alone
def test_an_older_kernel_is_told_and_nothing_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise UnsupportedError("no tables with an owner", feature="NFT_TABLE_F_OWNER", remedy="boot Linux 5.12 or later")

    with world():
        monkeypatch.setattr(uplink.HostTable, "make", refuse)
        with pytest.raises(UnsupportedError, match=r"5\.12"):
            Network().create()
        monkeypatch.undo()
        wait_until_gone()
        for step in ("make_walls", "probe", "_set_up"):
            with monkeypatch.context() as patched:
                patched.setattr(uplink, step, lambda *_: (_ for _ in ()).throw(SetupError("this step", 5)))
                with pytest.raises(SetupError, match="this step"):
                    Network().create()
            wait_until_gone()
        with Network() as net, Container(net=net) as c:
            assert ask(c, WORLD).ok


@alone
def test_nothing_outlives_a_killed_process() -> None:
    code = (
        "import sandbox, signal\n"
        "from sandbox import Container, Network\n"
        "nets = [Network().create() for _ in range(4)]\n"
        "all = [Container(net=net).create() for net in nets for _ in range(5)]\n"
        "for c in all: c.popen(['sleep', '1000'])\n"
        "print('ready', flush=True)\n"
        "signal.pause()\n"
    )
    with world():
        assert run_and_kill(code, patience_s=2.0) == []
        assert tables() == []
        wait_until_gone(2.0 + by_hand_s())


@alone
def test_a_forked_child_does_not_keep_the_rules() -> None:
    with world():
        read, write = os.pipe()
        with Network() as net, Container(net=net) as c:
            child = os.fork()
            if not child:
                os.close(write)
                os.read(read, 1)
                os._exit(0)
            assert ask(c, WORLD).ok
        wait_until_gone()
        os.close(write)
        os.close(read)
        assert os.waitpid(child, 0)[1] == 0
