"""Reaching outside by IPv6 without the host's forwarding: by slirp4netns and pasta, in the world of `test_network_outlet`."""

from __future__ import annotations

from typing import Any

import pytest

from sandbox import Network, UsageError
from tests.live.test_kept_users_outside import BEGIN, END
from tests.live.test_network_outlet import OURS, OURS6, THEIRS6, in_world, outside
from tests.support import needs

pytestmark = [pytest.mark.usefixtures("no_leftovers"), outside]

# The other host says by IPv6 too who asks.
BEYOND = """
import socket, threading
tcp6 = socket.create_server(("::", 7), family=socket.AF_INET6)
udp6 = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM); udp6.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1); udp6.bind(("::", 7))
def six():
    while True:
        peer, address = tcp6.accept(); peer.sendall(address[0].encode()); peer.close()
def six_udp():
    while True:
        data, address = udp6.recvfrom(9000); udp6.sendto(address[0].encode(), address)
for one in (six, six_udp): threading.Thread(target=one, daemon=True).start()
"""
ASK = f"""
THEIRS6, OURS6 = {THEIRS6!r}, {OURS6!r}
UDP6 = UDP.replace("AF_INET,", "AF_INET6,")
SOON = TCP.replace("timeout=3", "timeout=0.4")
"""
# A datagram of IPv6 as a frame, from a container's own address and to its network's bridge: whatever it is for, the kernel has no say.
FORGE = """
import socket, struct, sys
from ipaddress import IPv6Address as A
own, target, port, mac, gateway_mac = A(sys.argv[1]), A(sys.argv[2]), int(sys.argv[3]), *(bytes.fromhex(m.replace(":", "")) for m in sys.argv[4:6])
def checksum(data):
    total = sum(struct.unpack("!%dH" % (len(data) // 2), data))
    while total >> 16: total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF or 0xFFFF
pseudo = own.packed + target.packed + struct.pack("!II", 12, 17)
udp = struct.pack("!HHHH", 5000, port, 12, checksum(pseudo + struct.pack("!HHHH", 5000, port, 12, 0) + b"HACK")) + b"HACK"
frame = gateway_mac + mac + b"\\x86\\xdd" + struct.pack("!IHBB", 6 << 28, 12, 17, 64) + own.packed + target.packed + udp
answers = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM); answers.settimeout(float(sys.argv[6]) if len(sys.argv) > 6 else 0); answers.bind(("::", 5000))
packets = socket.socket(socket.AF_PACKET, socket.SOCK_RAW); packets.bind(("eth0", 0)); packets.send(frame)
"""
HERE = """
def listening():
    found = []
    for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        one = socket.socket(family, socket.SOCK_DGRAM); one.settimeout(0); one.bind((address, 9999)); found.append(one)
    return found
def heard(sockets):
    found = []
    for one in sockets:
        try: found.append(one.recv(9).decode())
        except BlockingIOError: pass
    return found
"""


def test_containers_of_an_ordinary_user_reach_other_hosts_by_ipv6_and_nothing_that_is_this_hosts_alone() -> None:
    found = in_world(
        ASK
        + """
with socket.create_server(("::1", 0), family=socket.AF_INET6) as alone, Network(ipv6=True) as net, Container(net=net) as c, Container(net=net) as d:
    port = alone.getsockname()[1]
    found["program"] = open(f"/proc/{net.live.outlet.pid}/comm").read().strip()
    found["by six"] = ask(c, TCP, THEIRS6, 7), ask(d, UDP6, THEIRS6, 7)
    found["by four"] = ask(c, TCP, "192.0.2.1", 7), ask(d, UDP, "192.0.2.1", 7)
    found["default"] = c.exec(["ip", "-6", "route", "show", "default"], text=True).stdout.split()[:3] == ["default", "via", net.gateway6]
    found["refused"] = ask(c, TCP, THEIRS6, 9)
    for address in ("::1", net.gateway6, "fd00::2", "fd00::3", "fd00::77", "fd00::100", "::", OURS6):
        found[address] = ask(c, SOON, address, port)
    alone.setblocking(False)
    try: alone.accept(); found["accepted"] = True
    except BlockingIOError: found["accepted"] = False
""",
        beyond=BEYOND,
        ipv6=True,
    )
    assert found.pop("program") == "slirp4netns"
    assert found.pop("by six") == [OURS6] * 2
    assert found.pop("by four") == [OURS] * 2
    assert found.pop("default")
    assert found.pop("refused") == "ConnectionRefusedError"
    assert not found.pop("accepted")
    assert len(found) == 8
    assert set(found.values()) <= {"ConnectionRefusedError", "TimeoutError", "OSError"}


@pytest.mark.parametrize("uplink", ["slirp4netns", "pasta"])
def test_no_forged_packet_of_ipv6_comes_to_this_hosts_loopback(uplink: str) -> None:
    """To a socket of theirs, ::ffff:127.0.0.1 and :: are this host, and all of fd00::/64 and fe80::/10 is to slirp4netns."""
    found = in_world(
        ASK + HERE + f"FORGE, uplink = {FORGE!r}, {uplink!r}\n" + """
from sandbox import Security
from ipaddress import IPv6Address
sockets = listening()
with Network(ipv6=True, uplink=uplink) as net, Container(net=net, user=0, security=Security(cap_add=["NET_RAW"], allow_syscalls=["socket"])) as c:
    place = c.endpoints[net.name]
    gateway = "".join(c.exec(["ip", "neigh", "show", net.gateway], text=True).stdout.split("lladdr ")[1].split()[:1])
    def forge(target, wait=()):
        code = FORGE + ("print(answers.recv(99).decode())" if wait else "")
        return c.exec([PYTHON, "-c", code, place.address6, target, "7" if wait else "9999", place.mac, gateway, *wait], text=True)
    found["control"] = forge(THEIRS6, ["5"]).stdout.strip()
    for target in ("::", "::1", "::ffff:127.0.0.1", "::127.0.0.1", "fd00::2", "fd00::3", "fd00::77", "fe80::2", "fec0::2", "ff02::1", "ff05::1"):
        done = forge(target)
        if done.returncode: found[target] = done.stderr
    found["after"] = forge(THEIRS6, ["5"]).stdout.strip()  # what was sent before has come by then
    found["heard"] = heard(sockets)
""",
        beyond=BEYOND,
        ipv6=True,
    )
    assert found == {"control": OURS6, "after": OURS6, "heard": []}


def test_without_a_way_outside_by_ipv6_programs_fail_at_once() -> None:
    """They take IPv4 then."""
    found = in_world(
        ASK
        + """
with Network(ipv6=True) as net, Container(net=net) as c, Container(net=net) as d:
    found["default"] = c.exec(["ip", "-6", "route", "show", "default"], text=True).stdout
    found["reached"] = ask(c, TCP, THEIRS6, 7), ask(c, TCP, "192.0.2.1", 7)
    found["one another"] = ask(c, TCP, d.endpoints[net.name].address6, 7)
"""
    )
    assert found == {"default": "", "reached": ["OSError", OURS], "one another": "ConnectionRefusedError"}


@needs("program:pasta")
def test_pasta_reaches_outside_by_ipv6() -> None:
    found = in_world(
        ASK
        + """
with socket.create_server(("::1", 0), family=socket.AF_INET6) as alone, Network(uplink="pasta", ipv6=True) as net, Container(net=net) as c:
    found["six"] = ask(c, TCP, THEIRS6, 7), ask(c, UDP6, THEIRS6, 7)
    found["four"] = ask(c, TCP, "192.0.2.1", 7), ask(c, UDP, "192.0.2.1", 7)
    for address in ("::1", "fd00::2", OURS6): found[address] = ask(c, SOON, address, alone.getsockname()[1])
""",
        beyond=BEYOND,
        ipv6=True,
    )
    assert (found.pop("six"), found.pop("four")) == ([OURS6] * 2, [OURS] * 2)
    assert len(found) == 3
    assert set(found.values()) <= {"ConnectionRefusedError", "TimeoutError", "OSError"}


def test_an_allow_list_holds_by_ipv6_and_ports_are_of_ipv4_alone() -> None:
    found = in_world(
        ASK
        + """
with Network(ipv6=True, allow=[f"[{THEIRS6}]:7/tcp"]) as net, Container(net=net, ports=["20080:8080"]) as c:
    found["allowed"] = ask(c, TCP, THEIRS6, 7)
    found["four"] = ask(c, TCP, "192.0.2.1", 7)
    with_errors = UDP6.replace("s.sendto(b", "s.connect((sys.argv[1], int(sys.argv[2]))); s.send(b").replace(", (sys.argv[1], int(sys.argv[2])))", ")")
    found["udp"] = ask(c, with_errors, THEIRS6, 7)
    with c.popen([PYTHON, "-c", SERVER], stdout=PIPE) as process:
        process.stdout.readline()
        found["published"] = {name: [str(port) for port in ports] for name, ports in c.ports.items()}, from_there(20080)
        process.kill()
    try: Container(net=net, ports=["[::]:20081:8080"]).create()
    except Exception as error: found["error"] = type(error).__name__, "uplink='kernel'" in error.remedy
""",
        beyond=BEYOND,
        ipv6=True,
    )
    assert found.pop("published") == [{"8080/tcp": ["0.0.0.0:20080"]}, "192.0.2.1"]
    assert found.pop("error") == ["UnsupportedError", True]
    assert found.pop("allowed") == OURS6
    assert found == {"udp": found["udp"], "four": "OSError"}
    assert found["udp"] in {"PermissionError", "OSError"}  # at once


def test_kept_networks_reach_outside_by_ipv6_in_each_process() -> None:
    found = in_world(
        BEGIN
        + ASK
        + """
store.create("shop", ipv6=True)
with Container(net="shop") as c:
    found["mine"] = ask(c, TCP, THEIRS6, 7), ask(c, UDP6, THEIRS6, 7), ask(c, TCP, "192.0.2.1", 7)
    other = Other()
    found["other"] = other.ask(TCP, THEIRS6, 7), other.ask(UDP6, THEIRS6, 7)
    def rules6(): return in_switch(c, "ip", "-6", "rule").count("fwmark")
    found["rules"] = rules6()
    other.kill()
    found["others"] = ask(c, TCP, THEIRS6, 7)
    next_one = Other()
    found["next"] = next_one.ask(TCP, THEIRS6, 7), rules6()
    next_one.end()
    found["left"] = ask(c, TCP, THEIRS6, 7), rules6()
    for address in ("fd00::2", OURS6): found[address] = ask(c, SOON, address, 9)
"""
        + END,
        beyond=BEYOND,
        ipv6=True,
    )
    assert {found.pop(address) for address in ("fd00::2", OURS6)} <= {"ConnectionRefusedError", "TimeoutError", "OSError"}
    assert found == {
        "mine": [OURS6, OURS6, OURS], "other": [OURS6] * 2, "rules": 2, "others": OURS6, "next": [OURS6, 2], "left": [OURS6, 1],
    }  # fmt: skip


def test_the_programs_own_subnet_is_refused() -> None:
    wrong: dict[str, Any] = {"uplink": "slirp4netns", "ipv6": True, "subnet6": "fd00::/64"}
    with pytest.raises(UsageError, match="fd00::/64"):
        Network(**wrong).create()
    with Network(**{**wrong, "uplink": None}, internal=True) as net:
        assert net.subnet6 == "fd00::/64"
