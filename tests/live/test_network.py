"""Networks of containers on the real kernel: who reaches whom, who does not, and what is left when they have gone."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

import sandbox
from sandbox import PIPE, ClosedError, Container, Network, SetupError, UsageError
from sandbox._networks.switch import namespace_of
from sandbox.errors import BrokenError
from tests.leak.killed import run_and_kill
from tests.leak.snapshot import Snapshot
from tests.support import needs, patience

pytestmark = [needs("root", "userns", "program:ip"), pytest.mark.usefixtures("no_leftovers")]

SERVER = """
import socket
server = socket.create_server(("", 8080))
print("up", flush=True)
while True:
    peer, address = server.accept()
    peer.sendall(address[0].encode())
    peer.close()
"""
CLIENT = """
import socket, sys
try:
    with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=float(sys.argv[3])) as s:
        print(s.recv(100).decode())
except OSError as error:
    print(type(error).__name__, error)
    sys.exit(1)
"""
PYTHON = "/usr/bin/python3"


@contextmanager
def serving(container: Container) -> Generator[None]:
    with container.popen([PYTHON, "-c", SERVER], stdout=PIPE, stderr=sandbox.STDOUT) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        yield
        process.kill()


def ask(container: Container, address: str, port: int = 8080, timeout_s: float = 10.0) -> sandbox.Result:
    return container.exec([PYTHON, "-c", CLIENT, address, str(port), str(timeout_s)], text=True)


def addresses_of(container: Container) -> list[str]:
    said = container.exec(["ip", "-json", "address"], text=True, check=True).stdout
    return [info["local"] for link in json.loads(said) for info in link["addr_info"]]


def test_two_containers_of_a_network_reach_each_other() -> None:
    with Network(internal=True) as net, Container(net=net) as one, Container(net=net) as two:
        assert one.address != two.address
        for server, client in ((one, two), (two, one)):
            with serving(server):
                result = ask(client, str(server.address))
            assert (result.exit_code, result.stdout) == (0, f"{client.address}\n")


def test_a_container_has_its_address_and_loopback_and_nothing_else() -> None:
    with Network(internal=True, subnet="10.77.1.0/24", mtu=1400) as net, Container(net=net, hostname="web") as c:
        assert addresses_of(c) == ["127.0.0.1", "::1", "10.77.1.2"]
        assert (net.subnet, net.gateway, c.address) == ("10.77.1.0/24", "10.77.1.1", "10.77.1.2")
        assert c.read_bytes("/etc/hosts").splitlines()[-1] == b"10.77.1.2\tweb"
        link = json.loads(c.exec(["ip", "-json", "link", "show", "eth0"]).stdout)[0]
        (endpoint,) = net.containers
        assert (link["mtu"], link["address"]) == (1400, endpoint.mac)
        assert (endpoint.hostname, endpoint.address, endpoint.pid) == ("web", c.address, c.pid)
        assert c.exec(["ip", "route"], text=True).stdout.split()[0] == "10.77.1.0/24"
        assert "default" not in c.exec(["ip", "route"], text=True).stdout


def test_networks_do_not_reach_each_other_nor_the_host() -> None:
    with Network(internal=True) as left, Network(internal=True) as right, Container(net=left) as a, Container(net=right) as b:
        assert left.subnet != right.subnet
        with serving(b), socket.create_server(("0.0.0.0", 0)) as host:
            assert ask(b, "127.0.0.1").exit_code == 0  # it does listen
            assert "unreachable" in ask(a, str(b.address)).stdout
            port = host.getsockname()[1]
            for address in ("127.0.0.1", left.gateway, "192.0.2.1"):
                assert ask(a, address, port).exit_code == 1
            host.setblocking(False)
            with pytest.raises(BlockingIOError):
                host.accept()


def test_the_host_sees_no_interface_no_route_and_no_rule_of_a_network() -> None:
    before = Snapshot.take()
    with Network(internal=True) as net, Container(net=net) as c:
        kinds = {line.partition(":")[0] for line in before.left_behind(Snapshot.take())}
        assert not kinds & {"links", "rules"}
        assert net.subnet not in subprocess.run(["ip", "route"], capture_output=True, text=True, check=True).stdout
        # Whatever way the host has to the address, it is the one to any other.
        ways = [subprocess.run(["ip", "route", "get", to], capture_output=True, text=True, check=False).stdout for to in (str(c.address), "203.0.113.9")]
        assert ways[0].replace(str(c.address), "") == ways[1].replace("203.0.113.9", "")


def test_programs_cannot_give_themselves_an_address() -> None:
    with Network(internal=True) as net, Container(net=net, user=0) as c:
        for command in (["ip", "address", "add", "10.77.1.9/24", "dev", "eth0"], ["ip", "link", "set", "eth0", "address", "02:00:00:00:00:01"]):
            assert b"not permitted" in c.exec(command).stderr
        raw = "import socket; socket.socket(socket.AF_PACKET, socket.SOCK_RAW)"
        assert c.exec([PYTHON, "-c", raw]).exit_code == 1


def test_a_container_that_shares_anothers_network_is_at_its_address() -> None:
    with Network(internal=True) as net, Container(net=net) as one, Container(net=one) as beside, Container(net=net) as other, serving(beside):
        assert ask(other, str(one.address)).exit_code == 0


def test_addresses_are_unique_and_given_back() -> None:
    with Network(internal=True, subnet="10.77.2.0/29") as net:
        with ExitStack() as stack:
            mine = [stack.enter_context(Container(net=net)) for _ in range(5)]
            addresses = {c.address for c in mine}
            assert addresses == {f"10.77.2.{n}" for n in range(2, 7)}
            with pytest.raises(UsageError, match="larger subnet"), Container(net=net):
                pass
        assert net.containers == ()
        with Container(net=net) as again:
            assert again.address in addresses


def test_threads_join_one_network_at_once() -> None:
    found: list[str | None] = []

    def join(net: Network) -> None:
        for _ in range(3):
            with Container(net=net) as c:
                found.append(addresses_of(c)[-1] if addresses_of(c)[-1] == c.address else None)

    with Network(internal=True) as net:
        threads = [threading.Thread(target=join, args=(net,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert net.containers == ()
    assert len(found) == 12
    assert None not in found


def test_the_readonly_root_keeps_its_hosts_file() -> None:
    with Network(internal=True) as net, Container(net=net, read_only=True, hostname="box") as c:
        assert addresses_of(c)[-1] == c.address
        assert b"\tbox" in c.read_bytes("/etc/hosts")


def test_a_closed_network_takes_nobody() -> None:
    net = Network(internal=True)
    with pytest.raises(ClosedError, match="not created"), Container(net=net):
        pass
    with net, Container(net=net) as c:
        net.close()
        net.close()
        assert c.exec(["true"]).ok  # it goes on, alone
        deadline = time.monotonic() + patience(30)
        while len(addresses_of(c)) > 2 and time.monotonic() < deadline:  # the kernel frees a namespace at its leisure
            pass
        assert addresses_of(c) == ["127.0.0.1", "::1"]
    with pytest.raises(ClosedError, match="closed"), Container(net=net):
        pass


def test_what_cannot_be_connected_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with Network(internal=True) as net:
        monkeypatch.setattr("sandbox.net.rtnetlink.Templates.link_of", lambda *_, **__: b"\x10\0\0\0\x10\0\x05\x06" + b"\0" * 8)
        with pytest.raises(SetupError), Container(net=net):
            pass
        monkeypatch.undo()
        assert net.containers == ()
        with Container(net=net) as c:
            assert addresses_of(c)[-1] == c.address


def test_a_hundred_connections_leave_nothing() -> None:
    with Network(internal=True) as net:
        for number in range(105):
            if number == 5:
                before = len(os.listdir("/proc/self/fd"))
            with Container(net=net):
                pass
        assert len(os.listdir("/proc/self/fd")) < before + 20  # spares come and go
        assert net.containers == ()


def test_nothing_outlives_a_killed_process() -> None:
    code = (
        "import sandbox, signal\n"
        "from sandbox import Container, Network\n"
        "nets = [Network(internal=True).create() for _ in range(3)]\n"
        "all = [Container(net=net).create() for net in nets for _ in range(3)]\n"
        "for c in all: c.popen(['sleep', '1000'])\n"
        "print('ready', flush=True)\n"
        "signal.pause()\n"
    )
    assert run_and_kill(code, patience_s=2.0) == []


def test_a_forked_child_does_not_keep_the_namespace() -> None:
    with Network(internal=True) as net, Container(net=net):
        read, write = os.pipe()
        child = os.fork()
        if not child:
            os.close(write)
            mine = {os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if os.path.lexists(f"/proc/self/fd/{fd}")}
            os._exit(any(target.startswith("net:") for target in mine))
        os.close(write)
        os.close(read)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert len(net.containers) == 1


def test_asyncio_joins_a_network_too() -> None:
    import asyncio

    async def main(net: Network) -> None:
        async with sandbox.aio.Container(net=net), sandbox.aio.Container(net=net) as c:
            result = await c.exec(["ip", "-json", "address"])
            assert net.containers[-1].address.encode() in result.stdout

    with Network(internal=True) as net:
        asyncio.run(main(net))
        assert net.containers == ()


@pytest.mark.skipif(not Path("/proc/net/fib_trie").exists(), reason="no IPv4")
def test_a_route_of_the_host_is_not_taken_as_a_subnet() -> None:
    code = "from sandbox.net.spec import Subnets; print(Subnets().take(None))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    script = f"ip link set lo up && ip address add {found.replace('.0/24', '.9/24')} dev lo && exec {sys.executable} -c '{code}'"
    beside = subprocess.run(["unshare", "--net", "sh", "-c", script], capture_output=True, text=True, check=True).stdout.strip()
    assert beside
    assert beside != found


def test_the_namespace_of_a_container_that_has_ended_is_not_taken_from_whoever_has_its_pid() -> None:
    ended = SimpleNamespace(pid=os.getpid(), is_alive=False)
    before = sorted(os.listdir("/proc/self/fd"))
    with pytest.raises(BrokenError, match="ended while it joined"):
        namespace_of(ended)  # type: ignore[arg-type]
    assert sorted(os.listdir("/proc/self/fd")) == before


@pytest.mark.skipif(not Path("/proc/sys/net/bridge").exists(), reason="the kernel's bridges ask no packet filters of IP (no br_netfilter)")
def test_frames_between_containers_are_not_taken_through_the_filters_of_ip() -> None:
    """Where br_netfilter is, each new namespace has it on; the host's own setting is nobody's to change."""
    files = " ".join(f"/proc/sys/net/bridge/bridge-nf-call-{kind}tables" for kind in ("ip", "ip6", "arp"))

    def settings(*where: str) -> list[str]:
        return subprocess.run([*where, "sh", "-c", f"cat {files}"], capture_output=True, text=True, check=True).stdout.split()

    before = settings()
    with Network(internal=True) as net:
        assert settings("nsenter", "--net", f"--target={net.live.switch.pid}") == ["0"] * 3
    assert settings() == before
