"""Names in allow-lists of networks that are kept: what one process has opened, and what others' servers may not take from its containers."""

from __future__ import annotations

import subprocess
import sys

import pytest

from sandbox import Container, NetworkStore
from sandbox._networks import names as names_module
from tests.escape.test_networks_allowed_names import NO_ADDRESS, NOBODY, REFUSED, Owner, ask
from tests.escape.test_networks_allowed_names import upstream as upstream  # noqa: PLC0414 - fixtures
from tests.live.test_network_store import store as store  # noqa: PLC0414
from tests.netns import ASK, HOST, PYTHON, TCP_PORT, WORLD, alone, said, world
from tests.support import needs

pytestmark = [needs("root", "userns", "program:ip", "program:nft"), pytest.mark.usefixtures("no_leftovers", "upstream")]

OTHER = """
import sys
from sandbox import Container
from sandbox._networks import names
python, ask, names.RESOLV_CONF, *hosts = sys.argv[1:]
with Container(net="shop") as c:
    for host in hosts: print(c.exec([python, "-c", ask, "tcp", host, "8000", "5"], text=True).stdout.strip())
"""


@alone
def test_names_open_what_they_lead_to_in_all_processes_and_nothing_else_is_asked(store: NetworkStore) -> None:
    allow = [f"web.org:{TCP_PORT}", f"*.example.org:{TCP_PORT + 1}", f"*.example.org:{TCP_PORT}"]
    zone = {"web.org": [WORLD], "other.org": [WORLD], "a.example.org": ["203.0.113.3"], "inside.example.org": ["10.0.0.1"]}
    with world() as there, Owner(zone) as owner:
        assert there.run("ip address add 203.0.113.3/24 dev eth0") == (0, "")
        store.create("shop", allow=allow)
        assert store.inspect("shop")["Allow"] == allow
        with Container(net="shop") as c:
            assert ask(c, WORLD) == REFUSED
            words = [PYTHON, ASK, names_module.RESOLV_CONF, "203.0.113.3", "a.example.org", "other.org", "inside.example.org"]
            first = subprocess.run([sys.executable, "-c", OTHER, *words], capture_output=True, text=True, check=True).stdout.splitlines()
            assert first == [REFUSED, HOST, NOBODY, NO_ADDRESS]
            assert ask(c, "web.org", TCP_PORT + 1) == REFUSED
            assert ask(c, "web.org") == HOST
            assert ask(c, "other.org") == NOBODY
            assert ask(c, "a.example.org") == HOST
            left = said("nsenter", f"--net={store.path}/shop/namespace", "nft", "list", "set", "inet", "allow", "opened4")
            assert left.count("expires 1h") == 2  # whatever the owner's TTL of 0 says: what others were told is not known here
        assert set(owner.asked) == {"web.org", "a.example.org", "inside.example.org"}
        store.remove("shop")
