"""Containers that outlive their command, in networks that are kept: connected, found by name, linked to, published."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Generator
from pathlib import Path

import pytest

from sandbox import NetworkStore, PortInUseError, UsageError, keep
from tests.live.test_keep import COMMAND, Cli, remove_all
from tests.live.test_keep import cli as cli  # noqa: PLC0414 - fixtures
from tests.live.test_keep import store as store  # noqa: PLC0414
from tests.netns import alone, world
from tests.support import needs

pytestmark = [needs("root", "userns")]

SERVER = "import socket; s = socket.create_server(('', 8000)); print('up', flush=True)\nwhile True: s.accept()[0].sendall(b'hello')"
ASK = "import socket, sys; print(socket.create_connection((sys.argv[1], 8000), 5).recv(9).decode())"


@pytest.fixture(autouse=True)
def networks(no_leftovers: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[NetworkStore]:
    monkeypatch.setenv("SANDBOX_NETWORKS", str(tmp_path / "networks"))
    store = NetworkStore()
    yield store
    remove_all()
    store.prune()
    assert store.names() == []


def test_a_container_is_connected_found_linked_and_disconnected(cli: Cli, networks: NetworkStore) -> None:
    cli("network", "create", "--internal", "shop")
    cli("run", "-d", "--name", "db", "--network", "shop", "--", "/usr/bin/python3", "-c", SERVER)
    for record in keep.find("db").records(follow=True):
        if b"up" in record.data:
            break
    (told,) = json.loads(cli("inspect", "db"))
    address = told["NetworkSettings"]["Networks"]["shop"]["IPAddress"]
    assert address == networks.containers("shop")[0].address
    assert cli("run", "--network", "shop", "--link", "db:store", "--", "/usr/bin/python3", "-c", ASK, "store") == "hello\n"
    assert "STORE_NAME=/sandbox/store" in cli("run", "--network", "shop", "--link", "db:store", "--", "env")
    assert cli("run", "--network", "container:db", "--", "/usr/bin/python3", "-c", ASK, "127.0.0.1") == "hello\n"
    assert "none of this one's networks" in cli("run", "--link", "db", "--", "true", code=125)

    cli("network", "create", "--internal", "home")
    cli("run", "-d", "--name", "app", "--network", "home", "--", "sleep", "1000")
    assert cli("network", "connect", "--alias", "front", "--link", "db:store", "shop", "app") == ""
    assert cli("exec", "app", "/usr/bin/python3", "-c", ASK, address) == "hello\n"
    assert cli("exec", "app", "/usr/bin/python3", "-c", ASK, "store") == "hello\n"  # which it alone knows
    assert cli("exec", "db", "getent", "hosts", "app").split()[0] == cli("exec", "db", "getent", "hosts", "front").split()[0]
    assert cli("exec", "db", "getent", "hosts", "store", code=2) == ""
    assert "no container 'nobody', and nobody" in cli("network", "connect", "--link", "nobody", "shop", "app", code=1)
    assert "NAME:ALIAS" in cli("network", "connect", "--link", "db:", "shop", "app", code=1)
    assert set(json.loads(cli("inspect", "app"))[0]["NetworkSettings"]["Networks"]) == {"home", "shop"}
    assert "in use" in cli("network", "rm", "shop", code=1)
    assert "already" in cli("network", "connect", "shop", "app", code=1) or "in there" in cli("network", "connect", "shop", "app", code=1)
    cli("network", "disconnect", "shop", "app")
    assert "unreachable" in cli("exec", "app", "/usr/bin/python3", "-c", ASK, address, code=1)
    cli("rm", "-f", "app", "db")
    cli("network", "rm", "shop")


def test_a_link_follows_the_container_and_is_found_before_that_is_there(cli: Cli, networks: NetworkStore) -> None:
    networks.create("shop", internal=True, ipv6=True, subnet="10.77.6.0/24", subnet6="fd00:77:6::/64")
    networks.create("home", internal=True)
    for name in ("db", "app"):
        cli("run", "-d", "--name", name, "--network", "home", "--", "sleep", "1000")
    cli("network", "connect", "--alias", "front", "--link", "db:store", "--ip", "10.77.6.9", "--ip6", "fd00:77:6::99", "shop", "app")
    told = json.loads(cli("network", "inspect", "shop"))[0]["Containers"].values()
    assert [(one["IPv4Address"], one["IPv6Address"]) for one in told] == [("10.77.6.9/24", "fd00:77:6::99/64")]
    assert cli("exec", "app", "getent", "ahostsv4", "store", code=2) == ""
    for address in ("10.77.6.20", "10.77.6.30"):
        cli("network", "connect", "--ip", address, "shop", "db")
        assert cli("exec", "app", "getent", "ahostsv4", "store").split()[0] == address
        assert cli("exec", "db", "getent", "ahostsv4", "front").split()[0] == "10.77.6.9"
        cli("network", "disconnect", "shop", "db")
    assert "is not an address of IPv6" in cli("network", "connect", "--ip6", "10.1.1.1", "shop", "db", code=1)
    assert cli("run", "--network", "shop", "--ip6", "fd00:77:6::5", "--", "ip", "-6", "-o", "address", "show", "eth0").split()[3] == "fd00:77:6::5/64"


def test_two_that_outlive_their_commands_share_one_network_namespace(cli: Cli) -> None:
    cli("run", "-d", "--name", "db", "--", "/usr/bin/python3", "-c", SERVER)
    for record in keep.find("db").records(follow=True):
        if b"up" in record.data:
            break
    cli("run", "-d", "--name", "beside", "--network", "container:db", "--", "sleep", "1000")
    assert cli("exec", "beside", "/usr/bin/python3", "-c", ASK, "127.0.0.1") == "hello\n"
    keep.find("db").remove(force=True)
    assert "refused" in cli("exec", "beside", "/usr/bin/python3", "-c", ASK, "127.0.0.1", code=1)
    with pytest.raises(UsageError, match="goes with no other"):
        keep.start(["true"], network=["new", "container:beside"])


@pytest.mark.needs("program:ip")
@alone
def test_a_port_is_published_as_long_as_the_container_is_there(cli: Cli) -> None:
    with world():
        cli("run", "-d", "--name", "web", "-p", "127.0.0.1::8000", "--", "/usr/bin/python3", "-c", SERVER)
        assert keep.find("web").config.options["network"] == ["new"]
        for record in keep.find("web").records(follow=True):
            if b"up" in record.data:
                break
        said = cli("port", "web", "8000").strip()
        assert cli("port", "web") == f"8000/tcp -> {said}\n"
        assert f"{said}->8000/tcp" in cli("ps")
        host, _, port = said.rpartition(":")
        with socket.create_connection((host, int(port)), 5) as client:
            assert client.recv(9) == b"hello"
        wanted = ("--network", "new", "-p", f"127.0.0.1:{port}:8000", "--", "true")
        taken = f"taken by container 'web' (pid {keep.find('web').config.keeper});"
        beside = subprocess.run([*COMMAND, "run", *wanted], capture_output=True, text=True, check=False)  # in this thread it could handle no signals
        assert (beside.returncode, taken in beside.stderr) == (125, True), beside.stderr
        assert taken in cli("run", "-d", "--name", "second", *wanted, code=125)
        with pytest.raises(PortInUseError, match="taken by container 'web'") as caught:
            keep.start(["true"], network="new", ports=[f"127.0.0.1:{port}:8000"])
        assert caught.value.owner == "container 'web'"
        cli("rm", "-f", "web")
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((host, int(port)), 5)
