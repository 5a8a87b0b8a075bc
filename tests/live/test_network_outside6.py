"""Networks that reach outside by IPv6: as in `test_network_outside`, with what IPv6 has of its own."""

from __future__ import annotations

import json
import shlex
import subprocess
import time
from contextlib import ExitStack
from ipaddress import ip_address
from pathlib import Path

import pytest

from sandbox import Container, Network, UnsupportedError
from sandbox._networks import uplink6
from sandbox.cli.doctor import networks
from tests.leak.killed import run_and_kill
from tests.live.test_network_outside import ask, by_hand_s, closed, links, tables, wait_until_gone
from tests.netns import ASK, HOST, HOST6, PYTHON, WORLD, WORLD6, alone, said, world
from tests.support import needs, patience

pytestmark = [needs("root", "userns", "program:ip", "program:nft"), pytest.mark.usefixtures("no_leftovers")]

CONF = Path("/proc/sys/net/ipv6/conf")
forcing = pytest.mark.skipif(not (CONF / "all/force_forwarding").exists(), reason="this kernel forwards IPv6 on all interfaces or none (before 6.17)")
# Tells all hosts near that it is a router, by which they may go outside.
ADVERTISE = """
import socket, struct
with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as s:
    s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
    s.bind(("fe80::2", 0, 0, socket.if_nametoindex("eth0")))
    s.sendto(struct.pack("!BBHBBHII", 134, 0, 0, 64, 0, 1800, 0, 0), ("ff02::1", 0, 0, socket.if_nametoindex("eth0")))
"""


def ends(net: Network) -> tuple[str, str]:
    link = net.live.uplink
    assert link is not None
    assert link.six is not None
    return str(link.six.here), str(link.six.there)


@alone
def test_containers_reach_the_world_which_sees_the_hosts_address() -> None:
    with world(ipv6=True), Network(ipv6=True) as net, Container(net=net) as one, Container(net=net) as two:
        for container in (one, two):
            for kind in ("tcp", "udp"):
                assert ask(container, WORLD6, kind=kind).stdout == f"{HOST6}\n"
                assert ask(container, WORLD, kind=kind).stdout == f"{HOST}\n"
        assert len(links()) == 1
    wait_until_gone()


@alone
def test_by_ipv6_goes_outside_who_is_in_a_network_that_does() -> None:
    """An internal one, or one without IPv6, offers no route: programs fail at once."""
    with world(ipv6=True), Network(ipv6=True, internal=True) as inside, Network("plain") as plain, Container(net=[inside, plain]) as c:
        assert "unreachable" in ask(c, WORLD6, timeout_s=1).stdout
        with Network("both", ipv6=True) as both:
            c.connect(both)
            assert ask(c, WORLD6).stdout == f"{HOST6}\n"
            c.disconnect(both)
            assert "unreachable" in ask(c, WORLD6, timeout_s=1).stdout
            assert ask(c, WORLD).ok


@alone
def test_an_ipv4_network_has_nothing_of_it() -> None:
    with world(ipv6=True), Network() as net, Container(net=net):
        (link,) = links()
        assert (CONF / link / "disable_ipv6").read_text().strip() == "1"
        assert "ip6" not in said("nft", "list", "tables")


@alone
def test_an_allow_list_holds_for_ipv6_as_well() -> None:
    allow = [f"[{WORLD6}]:8000", "2001:db8:99::/48"]
    with world(ipv6=True) as there, Network(ipv6=True, allow=allow) as net, Network(ipv6=True, allow=[]) as shut:
        assert there.run("ip address add 2001:db8:99::1/128 dev lo") == (0, "")
        with Container(net=net) as c, Container(net=shut) as d:
            assert ask(c, WORLD6).stdout == f"{HOST6}\n"
            assert ask(c, "2001:db8:99::1").ok
            for container, address, kind in ((c, WORLD6, "udp"), (c, WORLD, "tcp"), (d, WORLD6, "tcp"), (d, WORLD6, "udp")):
                said_to = ask(container, address, kind=kind).stdout
                assert {(6, "tcp"): "refused", (6, "udp"): "Permission denied"}.get((ip_address(address).version, kind), "No route") in said_to


@alone
def test_containers_do_not_reach_the_host_or_another_network() -> None:
    listen = "import socket; s = socket.create_server(('::', 8080), family=socket.AF_INET6); print('up', flush=True); s.accept()"
    with world(ipv6=True), Network("left", ipv6=True) as left, Network("right", ipv6=True) as right, ExitStack() as stack:
        a, b = (stack.enter_context(Container(net=net)) for net in (left, right))
        with b.popen([PYTHON, "-c", listen], stdout=-1) as server:
            assert server.stdout is not None
            assert server.stdout.readline() == b"up\n"
            with subprocess.Popen([PYTHON, "-c", listen], stdout=-1, text=True) as host:
                assert host.stdout is not None
                assert host.stdout.readline() == "up\n"
                near = next(found["local"] for found in addresses("wan") if ip_address(found["local"]).is_link_local)
                for address in (HOST6, ends(left)[0], ends(right)[0], ends(right)[1], near, str(left.gateway6), "::1", str(b.endpoints["right"].address6)):
                    assert not ask(a, address, 8080, timeout_s=0.3).ok, address
                assert host.poll() is None
                host.kill()
            assert server.poll() is None
            server.kill()


def addresses(interface: str) -> list[dict[str, str]]:
    found: list[dict[str, str]] = json.loads(said("ip", "-json", "-6", "address", "show", "dev", interface))[0]["addr_info"]
    return found


@alone
def test_nobody_reaches_in_from_outside_or_from_the_host() -> None:
    listen = "import socket; s = socket.create_server(('::', 8080), family=socket.AF_INET6); print('up', flush=True); s.accept()"
    with world(ipv6=True) as there, Network(ipv6=True) as net, Container(net=net) as c, c.popen([PYTHON, "-c", listen], stdout=-1) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == b"up\n"
        place = c.endpoints[net.name].address6
        assert place is not None
        here, far = ends(net)
        assert there.run(f"ip route add {net.subnet6} via {HOST6}; ip route add {far} via {HOST6}") == (0, "")
        said("ip", "route", "add", str(net.subnet6), "via", far)
        for address in (place, str(net.gateway6), far, here):
            assert there.ask(address, 8080)[0] == 1
            assert subprocess.run([PYTHON, "-c", ASK, "tcp", address, "8080", "0.3"], capture_output=True, check=False).returncode == 1
        assert server.poll() is None
        server.kill()


# ---- The host's part ----


def forward_ipv4() -> None:
    Path("/proc/sys/net/ipv4/conf/all/forwarding").write_text("1", encoding="ascii")


@alone
@forcing
def test_a_host_that_does_not_forward_is_refused_and_keeps_what_routers_told_it() -> None:
    with world(forwards=False, ipv6=True) as there:
        forward_ipv4()
        there.run("ip address add fe80::2/64 dev eth0 nodad")
        assert there.run(f"{PYTHON} -c {shlex.quote(f'exec({ADVERTISE!r})')}") == (0, "")
        wait = time.monotonic() + patience(30)
        while "proto ra" not in said("ip", "-6", "route") and time.monotonic() < wait:
            pass
        with pytest.raises(UnsupportedError, match=r"does not forward IPv6.*force_forwarding=1") as caught:
            Network(ipv6=True).create()
        assert (links(), tables()) == ([], [])
        told = next(finding for finding in networks.findings() if finding.what == "the host forwards IPv6")
        assert told.remedy == caught.value.remedy
        said("sh", "-c", caught.value.remedy.partition(",")[0])
        assert next(finding for finding in networks.findings() if finding.what == told.what).value == "yes"
        with Network(ipv6=True) as net, Container(net=net) as c:
            assert ask(c, WORLD6).ok
        assert "default via fe80::2 dev wan proto ra" in said("ip", "-6", "route")
        assert [(CONF / name / "forwarding").read_text().strip() for name in ("all", "wan")] == ["0", "0"]


@alone
def test_a_kernel_that_forwards_everywhere_or_nowhere_is_told_with_what_that_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uplink6, "FORCED", "no_such_switch")
    with world(forwards=False, ipv6=True):
        forward_ipv4()
        (CONF / "wan/accept_ra").write_text("1", encoding="ascii")
        with pytest.raises(UnsupportedError, match="would forget the routes that it has from router advertisements") as caught:
            Network(ipv6=True).create()
        assert caught.value.remedy.startswith("sysctl -w net.ipv6.conf.wan.accept_ra=2; sysctl -w net.ipv6.conf.all.forwarding=1,")
        said("sh", "-c", caught.value.remedy.partition(",")[0])
        with Network(ipv6=True) as net, Container(net=net) as c:
            assert ask(c, WORLD6).ok


@alone
def test_a_chain_that_is_closed_to_ipv6_alone_is_told_with_what_opens_it() -> None:
    with world(ipv6=True):
        closed("ip6 walls closed", policy="drop")
        with pytest.raises(UnsupportedError, match="ip6 walls closed: policy drop") as caught:
            Network(ipv6=True).create()
        with Network():  # which it is none of the business of
            pass
        wait_until_gone_but(["walls"])
        said("sh", "-c", caught.value.remedy)
        with Network(ipv6=True) as net, Container(net=net) as c:
            assert ask(c, WORLD6).ok


def wait_until_gone_but(others: list[str]) -> None:
    deadline = time.monotonic() + patience(30)
    while (links() or tables() != others) and time.monotonic() < deadline:
        pass
    assert (links(), tables()) == ([], others)


@alone
def test_nothing_outlives_a_killed_process() -> None:
    code = (
        "import sandbox, signal\n"
        "from sandbox import Container, Network\n"
        "nets = [Network(ipv6=True).create() for _ in range(2)]\n"
        "all = [Container(net=net, ports=['[::]::80']).create() for net in nets for _ in range(2)]\n"
        "print('ready', flush=True)\n"
        "signal.pause()\n"
    )
    with world(ipv6=True):
        assert run_and_kill(code, patience_s=2.0) == []
        assert tables() == []
        wait_until_gone(2.0 + by_hand_s())
