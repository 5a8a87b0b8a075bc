"""Allow-lists of networks: whom containers reach outside, and by which ways they do not reach others. The kernel decides, in the network's switch.

The host of these tests is a network namespace, with another host beside it; an ordinary user works there.
"""

from __future__ import annotations

from typing import Any

import pytest

from sandbox import Network, UsageError
from tests.escape.networks import PAYLOADS
from tests.live.test_network_outlet import OURS, in_world, outside

HELPERS = """
import errno, time
FAILING = '''
import socket, sys, time
began = time.monotonic(); found = []
for _ in range(20):
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM if sys.argv[3] == "tcp" else socket.SOCK_DGRAM) as s:
        s.settimeout(3)
        try:
            s.connect((sys.argv[1], int(sys.argv[2]))); s.send(b"?"); s.recv(9); found.append("reached")
        except OSError as error: found.append(str(error.errno or "timeout"))
print(*sorted(set(found)), time.monotonic() - began < 15)'''
def failing(c, address, port, protocol):
    return c.exec([PYTHON, "-c", FAILING, address, str(port), protocol], text=True).stdout.strip()
"""
REFUSED = "113 True"  # EHOSTUNREACH, which is what ICMP's "administratively prohibited" becomes; 20 times, at once


def run(code: str) -> dict[str, Any]:
    return in_world(HELPERS + code)


@outside
def test_an_allowed_host_and_port_is_reached_and_nothing_else() -> None:
    """Another port, another protocol, another host, the host itself: refused at once, so that programs fail instead of waiting."""
    found = run(
        """
with Network(allow=[f"{THEIRS}:7"]) as net, Container(net=net) as c, Container(net=net) as sister:
    found["allowed"] = ask(c, TCP, THEIRS, 7)
    for place in ((THEIRS, 7, "udp"), (THEIRS, 9, "tcp"), (THEIRS, 9, "udp"), (OURS, 7, "tcp"), ("8.8.8.8", 53, "udp"), ("198.18.255.3", 53, "udp")):
        found[" ".join(map(str, place))] = failing(c, *place)
    with sister.popen([PYTHON, "-c", SERVER], stdout=PIPE) as server:
        server.stdout.readline()
        found["sister"] = ask(c, TCP, sister.address, 8080) == c.address
        server.kill()
"""
    )
    assert found.pop("allowed") == OURS
    assert found.pop("sister")
    assert found == dict.fromkeys(found, REFUSED)
    assert len(found) == 6


@outside
def test_an_empty_list_allows_nothing_but_the_network_itself() -> None:
    """Members, and the network's own name server, which asks nobody outside: a question is a message, too."""
    found = run(
        """
RESOLVE = "import socket, sys; print(socket.gethostbyname(sys.argv[1]))"
with Network(allow=[]) as net, Container(net=net) as c, Container(net=net, hostname="sister") as sister:
    for protocol in ("tcp", "udp"): found[protocol] = failing(c, THEIRS, 7, protocol)
    found["name"] = c.exec([PYTHON, "-c", RESOLVE, "sister"], text=True).stdout.strip() == sister.address
    found["outside"] = c.exec([PYTHON, "-c", RESOLVE, "secret.example.org"], text=True).stderr.strip().splitlines()[-1].partition(":")[0]
"""
    )
    assert found == {"tcp": REFUSED, "udp": REFUSED, "name": True, "outside": "socket.gaierror"}


@outside
def test_networks_ranges_and_protocols_are_what_they_say() -> None:
    found = run(
        """
for number, allow in enumerate((["192.0.2.0/30:7"], ["192.0.2.1:5-8/udp"], ["192.0.2.1/udp"], ["192.0.2.1"], ["0.0.0.0/0:7"], ["192.0.2.1:8-9", "192.0.2.128/25"])):
    with Network(allow=allow) as net, Container(net=net) as c:
        found[str(number)] = [failing(c, THEIRS, 7, protocol) for protocol in ("tcp", "udp")]
"""
    )
    yes, no = "reached True", REFUSED
    assert found == {"0": [yes, no], "1": [no, yes], "2": [no, yes], "3": [yes, yes], "4": [yes, no], "5": [no, no]}


@outside
def test_no_detour_leads_past_the_list() -> None:
    """Fragments, tunnels in ICMP and in other protocols, source routes, a sister's address: also for a root with rights over its own interface."""
    found = run(
        """
from sandbox import Security
FORGE = '''
import socket, sys
sys.argv = ["", *sys.argv[1:]]
sys.path.insert(0, "/payloads")
from network import icmp, ip, udp
theirs, ours, sister = sys.argv[1:]
with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
    for source in (ours, sister):
        ping = icmp(8, 0, bytes(4) + b"tunnel")
        for protocol, body in ((17, udp(b"9999", 9)), (1, ping), (47, b"gre"), (4, ip(ours, theirs, 17, udp(b"9999", 9))), (132, bytes(12))):
            for packet in (ip(source, theirs, protocol, body, number=1), ip(source, theirs, protocol, body, options=bytes([1, 131, 7, 4]) + socket.inet_aton(theirs))):
                try: raw.sendto(packet, (theirs, 0))
                except OSError: pass
        long = udp(b"9999" + bytes(36), 9)
        for fragment, part in ((0x2000, long[:8]), (0x2001, long[8:16]), (2, long[16:])):
            raw.sendto(ip(source, theirs, 17, part, fragment=fragment, number=2), (theirs, 0))
print("sent")'''
def outgoing():
    import subprocess
    text = subprocess.run(["sh", "-c", "grep -E '^(Udp|Icmp):' /proc/net/snmp"], capture_output=True, text=True).stdout.split("\\n")
    return dict(zip(text[2].split()[1:], text[3].split()[1:]))["OutDatagrams"], dict(zip(text[0].split()[1:], text[1].split()[1:]))["OutEchos"]
from sandbox import Bind
with Network(allow=[f"{THEIRS}:7"]) as net, Container(net=net) as sister:
    forger = Security(cap_add=["NET_ADMIN", "NET_RAW"], allow_syscalls=["socket"])
    with Container(net=net, user=0, security=forger, mounts=[Bind(PAYLOADS, "/payloads", read_only=True)]) as c:
        before = outgoing()
        result = c.exec([PYTHON, "-c", FORGE, THEIRS, c.address, sister.address], text=True)
        found["said"] = result.stdout.strip() or result.stderr
        found["rebound"] = failing(c, OURS, 7, "tcp")
        found["allowed"] = ask(c, TCP, THEIRS, 7)
        found["left"] = outgoing() == before
""".replace("PAYLOADS", repr(str(PAYLOADS)))
    )
    assert found == {"said": "sent", "rebound": REFUSED, "allowed": OURS, "left": True}


@pytest.mark.parametrize("allow", ["10.0.0.5", ["10.0.0.5:0"], ["127.0.0.1"], [5]])
def test_a_list_that_is_none_is_refused_before_anything_is_made(allow: object) -> None:
    with pytest.raises(UsageError, match="allow: "):
        Network(allow=allow)  # type: ignore[arg-type]


def test_an_internal_network_has_no_list() -> None:
    with pytest.raises(UsageError, match="internal"):
        Network(internal=True, allow=[])
