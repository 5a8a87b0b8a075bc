"""Attacks on the kernel's table of neighbours, which all network namespaces share, the host's among them: by programs without any rights."""

from __future__ import annotations

import errno

import pytest

from sandbox import Container, Network
from tests.netns import PYTHON
from tests.support import needs

pytestmark = [needs("root", "userns"), pytest.mark.usefixtures("no_leftovers")]

# The kernel keeps 1,024 that it has asked for, unless the machine's owner says more (gc_thresh3). Each is sent to from a socket of its own:
# what waits for an answer counts against the sender's buffer.
MANY = 3000
FLOOD = f"""
import ipaddress, socket, sys
net = ipaddress.ip_network(sys.argv[1])
first = int(net.network_address) + 1000
refused = 0
for number in range({MANY}):
    with socket.socket(socket.AF_INET6 if net.version == 6 else socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.sendto(b"x", (str(ipaddress.ip_address(first + number)), 9))
        except OSError:
            refused += 1
print(refused)
"""
ASK = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], 9), 60)
except OSError as error:
    print(error.errno)
"""


@pytest.mark.parametrize("version", [4, 6])
def test_who_sends_to_nobody_takes_no_place_in_the_table_from_others(version: int) -> None:
    with Network(internal=True, ipv6=version == 6, subnet="10.213.64.0/20") as net, Container(net=net) as attacker, Container(net=net) as sister:
        subnet = str(net.subnet6 if version == 6 else net.subnet)
        for _ in range(2):  # the kernel would give up after 3 s: what was not found then is in nobody's way
            # Full it is for moments only: of each, 1,024 would have passed, and then none.
            assert int(attacker.exec([PYTHON, "-c", FLOOD, subnet], check=True).stdout) < MANY // 3
        nobody = subnet.replace("0/20", "99").replace("/64", "ffff")
        assert int(sister.exec([PYTHON, "-c", ASK, nobody], check=True).stdout) == errno.EHOSTUNREACH
