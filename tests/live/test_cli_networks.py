"""``sandbox network`` and ``sandbox run --network``: commands that meet in one network."""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Generator
from pathlib import Path

import pytest

from sandbox import Container, NetworkStore
from sandbox.cli import main
from tests.live.test_network import PYTHON, addresses_of
from tests.live.test_network_modes import name as name  # noqa: PLC0414 - a fixture
from tests.netns import HOST, alone, world
from tests.support import needs, patience

pytestmark = [needs("root", "userns", "program:ip"), pytest.mark.usefixtures("no_leftovers")]

SANDBOX = (sys.executable, "-m", "sandbox")


@pytest.fixture(autouse=True)
def store(no_leftovers: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[NetworkStore]:
    monkeypatch.setenv("SANDBOX_NETWORKS", str(tmp_path / "networks"))
    store = NetworkStore()
    yield store
    store.prune()
    assert store.names() == []


def say(*words: str, code: int = 0) -> str:
    done = subprocess.run([*SANDBOX, *words], capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


def test_a_network_is_made_listed_inspected_and_removed(capsys: pytest.CaptureFixture[str]) -> None:
    def run(*words: str, code: int = 0) -> str:
        assert main(["network", *words]) == code
        said = capsys.readouterr()
        return said.out + said.err

    options = ("--subnet", "10.77.5.0/24", "--gateway", "10.77.5.9", "--internal", "--label", "app=shop", "--opt", "mtu=1400")
    number = run("create", *options, "shop").strip()
    assert len(number) == 64
    assert "exists" in run("create", "--internal", "shop", code=1)
    other = run("create", "--internal", "--ipv6", "--subnet", "fd00:77::/64", "other").strip()
    (found,) = json.loads(run("inspect", "shop"))
    assert found["IPAM"]["Config"] == [{"Subnet": "10.77.5.0/24", "Gateway": "10.77.5.9"}]
    assert (found["Id"], found["Labels"], found["Options"], found["Internal"]) == (
        number, {"app": "shop"}, {"com.docker.network.driver.mtu": "1400"}, True,
    )  # fmt: skip
    assert json.loads(run("inspect", other[:6]))[0]["IPAM"]["Config"][1] == {"Subnet": "fd00:77::/64", "Gateway": "fd00:77::1"}
    assert run("ls").splitlines()[1].split() == [other[:12], "other", "bridge", "local"]
    (row,) = map(json.loads, run("ls", "--format", "json", "--no-trunc", "--filter", "label=app").splitlines())
    assert (row["ID"], row["Name"], row["Internal"], row["IPv6"], row["Subnet"]) == (number, "shop", "true", "false", "10.77.5.0/24")
    with Container(net="shop"):
        for filters, names in (
            (["name=o"], "other shop"), ([f"id={other[:9]}"], "other"), (["label=app=x"], ""), (["dangling=true"], "other"), (["dangling=0"], "shop"),
            (["driver=bridge", "scope=local", "type=custom"], "other shop"), (["type=builtin"], ""), (["name=shop", "name=other"], "other shop"),
        ):  # fmt: skip
            said = run("ls", "--format", "json", *(word for each in filters for word in ("--filter", each)))
            assert " ".join(json.loads(line)["Name"] for line in said.splitlines()) == names
        said = run("rm", "shop", "none", other, code=1)
        assert said.startswith(f"{other}\n")
        assert "'shop' is in use by sandbox (10.77.5." in said
        assert "no network 'none'" in said
        assert run("prune", "-f") == ""
    assert run("prune", "-f", "--filter", "until=1h") == run("prune", "-f", "--filter", "label=b") == ""
    assert run("prune", "-f", "--filter", "label=app") == "Deleted Networks:\nshop\n\n"


def test_commands_meet_in_a_network_that_is_kept() -> None:
    say("network", "create", "--internal", "--subnet", "10.77.6.0/24", "shop")
    serve = "import socket; s = socket.create_server(('', 8080)); print('up', flush=True); s.accept()[0].sendall(b'hello')"
    place = ("--network", "shop", "--ip", "10.77.6.20", "--mac-address", "02:00:00:00:06:20", "--network-alias", "db", "--hostname", "server")
    with subprocess.Popen([*SANDBOX, "run", *place, "--", PYTHON, "-c", serve], stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == b"up\n"
        (found,) = json.loads(say("network", "inspect", "shop"))[0]["Containers"].values()
        assert (found["Name"], found["IPv4Address"], found["MacAddress"], found["Aliases"]) == ("server", "10.77.6.20/24", "02:00:00:00:06:20", ["db"])
        ask = "import socket; print(socket.create_connection(('db', 8080), 5).recv(9))"
        assert say("run", "--network", "shop", "--add-host", "db:10.77.6.20", "--", PYTHON, "-c", ask) == "b'hello'\n"
        assert server.wait(10) == 0
    assert json.loads(say("network", "inspect", "shop"))[0]["Containers"] == {}
    assert say("network", "rm", "shop") == "shop\n"


def test_a_program_runs_in_several_networks_and_in_a_namespace_that_is_kept(store: NetworkStore, name: str) -> None:
    for network in ("a", "b"):
        store.create(network, internal=True)
    said = say("run", "--network", "a", "--network", "name=b,alias=x", "--", "ip", "-brief", "link")
    assert [line.partition(" ")[0].partition("@")[0] for line in said.splitlines()] == ["lo", "eth0", "eth1"]
    assert "192.0.2.7" in say("run", "--network", f"netns:{name}", "--", "ip", "address")
    assert "no network namespace is kept" in say("run", "--network", "netns:sandbox-none", "--", "true", code=125)
    assert "no network 'c'" in say("run", "--network", "c", "--", "true", code=125)
    assert "not an address of a host" in say("run", "--network", "a", "--ip", "192.0.2.1", "--", "true", code=125)


def test_a_command_that_is_killed_leaves_the_network_free(store: NetworkStore) -> None:
    store.create("shop", internal=True)
    with subprocess.Popen([*SANDBOX, "run", "--network", "shop", "--", "sh", "-c", "echo up; exec sleep 1000"], stdout=subprocess.PIPE) as command:
        assert command.stdout is not None
        assert command.stdout.readline() == b"up\n"
        assert len(store.containers("shop")) == 1
        pidfd = os.pidfd_open(store.containers("shop")[0].pid)
        command.kill()
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    assert poll.poll(10_000)
    os.close(pidfd)
    assert store.containers("shop") == ()
    with Container(net="shop") as c:
        assert addresses_of(c)[-1] == c.address
    store.remove("shop")


@alone
def test_ports_of_the_kernels_choice_are_told_before_the_program_runs() -> None:
    serve = "import socket; s = socket.create_server(('', 8080)); s.accept()[0].sendall(b'hello')"
    words = ("run", "-p", "8080", "-p", "127.0.0.1:8053:53/udp", "--", PYTHON, "-c", serve)
    with world(), subprocess.Popen([*SANDBOX, *words], stderr=subprocess.PIPE, text=True) as command:
        assert command.stderr is not None
        told = command.stderr.readline()
        assert told.startswith("sandbox run: 8080/tcp -> 0.0.0.0:")
        place = (HOST, int(told.rpartition(":")[2]))
        assert until_it_answers(place) == b"hello"
        assert command.stderr.read() == ""  # nothing of what the command line said itself
        assert command.wait(10) == 0


def until_it_answers(place: tuple[str, int]) -> bytes:
    """The port is there before the server is, and is refused until then."""
    deadline = time.monotonic() + patience(20.0)
    while True:
        try:
            with socket.create_connection(place, 5) as sock:
                return sock.recv(9)
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise
