"""Networks that are kept and reach outside by IPv6, and ports that are published in them by several processes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager

import pytest

from sandbox import Container, Join, NetworkStore, UnsupportedError, UsageError
from tests.live.test_network_outside import ask as ask_from
from tests.live.test_network_outside import links, tables, wait_until_gone
from tests.live.test_network_ports import ask, ask_inside
from tests.live.test_network_ports6 import SERVER, serving
from tests.live.test_network_store import await_true
from tests.live.test_network_store import store as store  # noqa: PLC0414 - a fixture
from tests.netns import HOST6, PYTHON, WORLD, WORLD6, alone, said, world
from tests.support import known, needs

pytestmark = [needs("root", "userns", "program:ip", "program:nft"), pytest.mark.usefixtures("no_leftovers")]

MEMBER = """
import sys
from sandbox import PIPE, Container
python, server, *ports = sys.argv[1:]
with Container(net="shop", ports=ports) as c, c.popen([python, "-uc", server, "other"], stdout=PIPE) as process:
    process.stdout.readline()
    print(c.endpoints["shop"].address6, flush=True)
    sys.stdin.read()
"""


@contextmanager
def another(*ports: str) -> Generator[tuple[subprocess.Popen[str], str]]:
    command = [sys.executable, "-c", MEMBER, PYTHON, SERVER, *ports]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process, known(process.stdout).readline().strip()
        finally:
            process.kill()


@alone
def test_containers_of_all_processes_reach_the_world_and_are_reached_by_ipv6(store: NetworkStore) -> None:
    with world(ipv6=True) as there:
        store.create("shop", ipv6=True)
        with another("8081:8080", "[::1]:8082:8080", "8081:8080/udp") as (other, address), Container(net="shop", ports=["8080:8080"]) as c, serving(c, "mine"):
            assert [one.address for one in c.ports["8080/tcp"]] == ["0.0.0.0", "::"]
            for kind in ("tcp", "udp"):
                assert ask_from(c, WORLD6, kind=kind).stdout == f"{HOST6}\n"
            assert ask_inside(c, address, 8080).startswith("other ")
            assert there.ask(HOST6, 8080, timeout_s=5) == (0, f"mine {WORLD6}\n")
            assert there.ask(HOST6, 8081, timeout_s=5) == (0, f"other {WORLD6}\n")
            assert ask("::1", 8080).startswith("mine ")
            assert ask("::1", 8082).startswith("other ")
            assert ask(HOST6, 8081, "udp").startswith("other ")
            assert ask("127.0.0.1", 8081).startswith("other ")
            shown = [place["Ports"] for place in store.inspect("shop")["Containers"].values() if place["IPv6Address"] == f"{address}/64"]
            assert [one["HostIp"] for one in shown[0]["8080/tcp"]] == ["0.0.0.0", "::", "::1"]
            assert set(store.inspect("shop")["Uplink"]) == {"Interface", "HostAddress", "Address", "HostAddress6", "Address6"}
            other.kill()
            other.wait()
            await_true(lambda: len(store.containers("shop")) == 1)
            for where in (HOST6, "::1"):
                assert "refused" in ask(where, 8081)
            assert ask("::1", 8080).startswith("mine ")
            with Container(net=Join("shop", address6=address)) as d, serving(d, "late"):
                assert ask(HOST6, 8081, "udp", timeout_s=0.3).partition(" ")[0] != "late"
                assert ask_from(d, WORLD6).stdout == f"{HOST6}\n"
                assert ask_inside(d, HOST6, 8080).startswith("mine ")  # a published port, and by it alone
                assert ask_from(d, HOST6, 22).stdout.startswith("ConnectionRefusedError")
        assert (len(links()), tables()) == (1, [])
        store.remove("shop")
        assert links() == []
    wait_until_gone()


@alone
def test_what_is_in_the_way_of_ipv6_is_told_and_nothing_stays(store: NetworkStore) -> None:
    with world(ipv6=True):
        said("sysctl", "-qw", "net.ipv6.conf.all.forwarding=0")
        with pytest.raises(UnsupportedError, match="does not forward IPv6"):
            store.create("shop", ipv6=True)
        assert (links(), tables(), store.names()) == ([], [], [])
        store.create("shop", allow=[f"{WORLD}:8000"])
        with Container(net="shop") as c:
            assert ask_from(c, WORLD).ok
        with pytest.raises(UsageError, match="by IPv6"):
            Container(net="shop", ports=["[::1]:8080:80"]).create()
        store.remove("shop")
    wait_until_gone()
