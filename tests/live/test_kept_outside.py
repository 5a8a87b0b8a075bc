"""Networks that are kept and reach outside: what leads there, what is published in them, and whom they may reach; across processes that are killed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sandbox import Container, Join, NetworkStore, PortInUseError, UnsupportedError, UsageError
from tests.live.test_network_outside import REFUSED, closed, links, tables, wait_until_gone
from tests.live.test_network_outside import ask as ask_from
from tests.live.test_network_ports import SERVER, ask, ask_inside, serving
from tests.live.test_network_store import await_true
from tests.live.test_network_store import store as store  # noqa: PLC0414 - a fixture
from tests.netns import HOST, PYTHON, WORLD, alone, said, world
from tests.support import needs

pytestmark = [needs("root", "userns", "program:ip", "program:nft"), pytest.mark.usefixtures("no_leftovers")]

# A container of another process, which serves at 8080 as NAME; it runs what it reads.
MEMBER = """
import sys
from sandbox import PIPE, Container
python, server, name, *ports = sys.argv[1:]
with Container(net="shop", name=name, ports=ports) as c, c.popen([python, "-uc", server, name, "8080"], stdout=PIPE) as process:
    process.stdout.readline()
    print(c.address, flush=True)
    for line in sys.stdin:
        print(c.exec(line.split(), text=True, timeout=30).stdout.strip(), flush=True)
"""


class Other:
    """A process with a container in the network ``shop``."""

    def __init__(self, name: str, *ports: str) -> None:
        command = [sys.executable, "-c", MEMBER, PYTHON, SERVER, name, *ports]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().strip()

    def kill(self) -> None:
        """And wait until its container has gone."""
        self.process.kill()
        self.process.wait()
        await_true(lambda: self.address not in [place.address for place in NetworkStore().containers("shop")])


@contextmanager
def another(name: str, *ports: str) -> Generator[Other]:
    other = Other(name, *ports)
    with other.process:
        try:
            yield other
        finally:
            other.kill()


@alone
def test_containers_of_all_processes_reach_the_world_and_not_the_host(store: NetworkStore) -> None:
    with world():
        code = "import os, signal; from sandbox import NetworkStore; NetworkStore().create('shop'); os.kill(os.getpid(), signal.SIGKILL)"
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL
        assert (len(links()), tables()) == (1, [])
        with another("other") as other, Container(net="shop") as c, socket.create_server(("0.0.0.0", 0)) as mine:
            assert len(tables()) == 2  # of each process its own
            for kind in ("tcp", "udp"):
                assert ask_from(c, WORLD, kind=kind).stdout == f"{HOST}\n"
            assert ask_inside(c, other.address, 8080) == f"other:8080 {c.address}"
            said("nft", "flush", "ruleset")
            other.kill()
            assert ask_from(c, WORLD).stdout == f"{HOST}\n"
            assert REFUSED in ask_from(c, HOST, mine.getsockname()[1]).stdout
        assert (len(links()), tables()) == (1, [])
        store.remove("shop")
        assert links() == []
        store.create("shop")
        assert store.prune() == ("shop",)
        assert links() == []


@alone
def test_what_is_in_the_way_is_told_as_of_other_networks_and_nothing_stays(store: NetworkStore) -> None:
    with world(forwards=False):
        with pytest.raises(UnsupportedError, match="does not forward") as caught:
            store.create("shop")
        assert "net.ipv4.ip_forward=1" in str(caught.value)
        assert (links(), tables(), store.names()) == ([], [], [])


@alone
def test_others_closed_chains_are_told_and_a_link_that_was_removed(store: NetworkStore) -> None:
    with world():
        closed("ip filter FORWARD", policy="drop")
        with pytest.raises(UnsupportedError, match="packet filters") as caught:
            store.create("shop")
        assert "nft insert rule ip filter FORWARD" in str(caught.value)
        said("nft", "delete", "table", "ip", "filter")
        wait_until_gone()
        assert os.listdir(store.path) == []
        store.create("shop")
        said("ip", "link", "delete", *links())
        with pytest.raises(UnsupportedError, match="leads outside by the interface sandbox"), Container(net="shop"):
            pass
        assert store.containers("shop") == ()
        store.remove("shop")
    wait_until_gone()


@alone
def test_who_is_killed_while_he_makes_one_leaves_what_is_swept(store: NetworkStore) -> None:
    code = (
        "import os, signal\n"
        "from sandbox import NetworkStore\n"
        "os.rename = lambda *a, **o: os.kill(os.getpid(), signal.SIGKILL) if a[0][0] == '.' else None\n"  # the last step
        "NetworkStore().create('shop')\n"
    )
    with world():
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL
        assert len(links()) == 1
        assert store.prune() == ()
        assert os.listdir(store.path) == []
        wait_until_gone(5)


@alone
def test_published_ports_lead_to_containers_of_any_process_and_end_with_it(store: NetworkStore) -> None:
    with world() as there:
        store.create("shop")
        with another("one", "127.0.0.1:8081:8080", "8082:8080") as one, Container(net="shop", ports=["8080:8080", "0:53/udp"]) as c, serving(c, "mine"):
            assert (c.ports["8080/tcp"][0].port, len(c.ports["53/udp"])) == (8080, 1)
            assert ask("127.0.0.1", 8080).startswith("mine:8080 ")
            assert ask("127.0.0.1", 8081).startswith("one:8080 ")
            assert there.ask(HOST, 8082, timeout_s=5) == (0, f"one:8080 {WORLD}\n")
            assert ask_inside(c, HOST, 8082).startswith("one:8080 ")
            assert ask_inside(c, HOST, 8080).startswith("mine:8080 ")
            found = {place["IPv4Address"]: place["Ports"] for place in store.inspect("shop")["Containers"].values()}
            local, wide = {"HostIp": "127.0.0.1", "HostPort": "8081"}, {"HostIp": "0.0.0.0", "HostPort": "8082"}
            assert found[f"{one.address}/24"] == {"8080/tcp": [local, wide]}
            assert found[f"{c.address}/24"]["8080/tcp"] == [{"HostIp": "0.0.0.0", "HostPort": "8080"}]
            with pytest.raises(PortInUseError), Container(net="shop", ports=["8082:8080"]):
                pass
            one.kill()
            assert "refused" in ask("127.0.0.1", 8081)
            assert ask("127.0.0.1", 8080).startswith("mine:8080 ")
            with Container(net="shop", ports=["8082:8080"]) as two, serving(two, "two"):
                assert there.ask(HOST, 8082, timeout_s=5) == (0, f"two:8080 {WORLD}\n")
            assert there.ask(HOST, 8082)[0] == 1
        assert [place["Ports"] for place in store.inspect("shop")["Containers"].values()] == []
        store.remove("shop")
    wait_until_gone()


@alone
def test_the_uplink_carries_loopback_addresses_only_while_ports_are_published(store: NetworkStore) -> None:
    with world():
        name = store.create("shop").uplink[0]

        def carries() -> bool:
            return Path(f"/proc/sys/net/ipv4/conf/{name}/route_localnet").read_text() == "1\n"

        with store.open("shop"), Container(net="shop"):
            assert not carries()
            with another("one", "127.0.0.1:8081:8080") as one:
                with Container(net="shop", ports=["8080:8080"]):
                    assert carries()
                assert carries()  # for the other one
                one.kill()
            with Container(net="shop", ports=["8080:8080"]) as c, serving(c, "mine"):
                assert ask("127.0.0.1", 8080).startswith("mine:8080 ")
            assert not carries()
        with another("one", "127.0.0.1:8081:8080") as one:
            assert carries()
            one.kill()
        with Container(net="shop"):
            assert not carries()
        store.remove("shop")
    wait_until_gone()


@alone
def test_what_a_client_sends_to_who_was_killed_comes_to_nobody_who_has_its_address(store: NetworkStore) -> None:
    """Conntrack remembers the client's flow in host and switch, and the kept network is still there."""
    with world(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        store.create("shop")
        client.settimeout(5)
        client.connect((HOST, 8080))

        def says() -> str:
            try:
                client.send(b"?")
                return client.recv(100).decode()
            except OSError as error:
                return type(error).__name__

        with another("one", "8080:8080/udp") as one:
            assert says().startswith("one:8080 ")
            one.kill()
            with Container(net=Join("shop", address=one.address)) as c, serving(c, "two"):
                client.settimeout(0.3)
                assert says() in ("ConnectionRefusedError", "TimeoutError")
                assert says() in ("ConnectionRefusedError", "TimeoutError")
                client.settimeout(5)
                with Container(net="shop", ports=["8080:8080/udp"]) as d, serving(d, "three"):
                    await_true(lambda: says().startswith("three:8080 "))
        store.remove("shop")


@alone
def test_allow_lists_are_the_networks_and_hold_for_all_processes(store: NetworkStore) -> None:
    with world():
        store.create("shop", allow=[f"{WORLD}:8000"])
        store.create("nobody", allow=[])
        assert (store.inspect("shop")["Allow"], store.inspect("nobody")["Allow"]) == ([f"{WORLD}:8000"], [])
        with Container(net="shop") as c, Container(net="nobody") as d:
            assert ask_from(c, WORLD).ok
            assert REFUSED in ask_from(c, WORLD, kind="udp").stdout
            assert REFUSED in ask_from(d, WORLD).stdout
        ask_there = f"import socket; print(socket.socket().connect_ex(('{WORLD}', 8001)))"
        code = f"from sandbox import Container\nwith Container(net='shop') as c: print(c.exec([{PYTHON!r}, '-c', {ask_there!r}], text=True).stdout)"
        assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split() == ["113"]  # EHOSTUNREACH
        with pytest.raises(UsageError, match="reaches nobody outside"):
            store.create("c", allow=[], internal=True)
        assert set(store.prune()) == {"shop", "nobody"}
    assert links() == []


@alone
def test_the_command_line_makes_one_publishes_in_it_and_shows_it(store: NetworkStore, capsys: pytest.CaptureFixture[str]) -> None:
    from sandbox.cli import main

    with world():
        assert main(["network", "create", "--allow", f"{WORLD}:8000", "shop"]) == 0
        words = [sys.executable, "-m", "sandbox", "run", "--network", "shop", "-p", "8080:8080", "--", PYTHON, "-uc", SERVER, "web", "8080"]
        with subprocess.Popen(words, stdout=subprocess.PIPE) as command:
            try:
                assert command.stdout is not None
                assert command.stdout.readline() == b"up\n"
                assert ask("127.0.0.1", 8080).startswith("web:8080 ")
                capsys.readouterr()
                assert main(["network", "inspect", "shop"]) == 0
                said_of = capsys.readouterr().out
                for word in ('"HostPort": "8080"', f'"{WORLD}:8000"', '"Interface": "sandbox'):
                    assert word in said_of
            finally:
                command.kill()
        await_true(lambda: "refused" in ask("127.0.0.1", 8080))
        await_true(lambda: main(["network", "rm", "shop"]) == 0)
    assert links() == []
