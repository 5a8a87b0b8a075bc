"""Networks of an ordinary user: the same as root's, of user namespaces that have no rights over one another."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from pathlib import Path

import attr
import pytest

import sandbox
from sandbox import PIPE, STDOUT, Bind, Container, Network, Result, Security
from sandbox._networks.switch import namespace_of
from sandbox.errors import SetupError
from tests.leak.killed import run_and_kill
from tests.support import known, needs, patience

pytestmark = [needs("userns", "program:ip"), pytest.mark.unprivileged, pytest.mark.usefixtures("no_leftovers")]

PYTHON = "/usr/bin/python3"
SERVER = "import socket; s = socket.create_server(('', 8080)); print('up', flush=True)\nwhile True: p, a = s.accept(); p.sendall(a[0].encode()); p.close()"
CLIENT = "import socket, sys; print(socket.create_connection((sys.argv[1], 8080), timeout=5).recv(99).decode())"
# What a process in a user namespace of its own has: root's number, and one id; no right to give containers ranges of ids.
NESTED = ("unshare", "--user", "--map-root-user", "--")
REACH = f"""
from sandbox import PIPE, Container, Network
with Network(internal=True) as net, Container(net=net) as one, Container(net=net) as two:
    with one.popen([{PYTHON!r}, "-c", {SERVER!r}], stdout=PIPE) as process:
        process.stdout.readline()
        print(two.exec([{PYTHON!r}, "-c", {CLIENT!r}, one.address], text=True).stdout, two.address)
        process.kill()
"""


def ask(client: Container, address: str | None) -> Result:
    return client.exec([PYTHON, "-c", CLIENT, str(address)], text=True)


def addresses_of(container: Container) -> list[str]:
    said = container.exec(["ip", "-json", "address"], text=True, check=True).stdout
    return [info["local"] for link in json.loads(said) for info in link["addr_info"]]


def run_nested(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*NESTED, sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=patience(60))


def test_containers_of_one_network_reach_each_other_and_not_those_of_another() -> None:
    with Network(internal=True) as net, Network(internal=True) as other, Container(net=net) as one, Container(net=net) as two, Container(net=other) as far:
        assert addresses_of(one) == ["127.0.0.1", "::1", one.address]
        with one.popen([PYTHON, "-c", SERVER], stdout=PIPE, stderr=STDOUT) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"up\n"
            assert ask(two, one.address).stdout == f"{two.address}\n"
            assert "unreachable" in ask(far, one.address).stderr
            process.kill()


def test_a_container_gives_itself_no_address() -> None:
    with Network(internal=True) as net, Container(net=net, user=0) as c:
        for command in (["ip", "address", "add", "10.77.1.9/24", "dev", "eth0"], ["ip", "link", "set", "eth0", "address", "02:00:00:00:00:01"]):
            assert b"not permitted" in c.exec(command).stderr
        assert c.exec(["cat", "/proc/sys/net/ipv6/conf/eth0/disable_ipv6"]).stdout == b"1\n"


@pytest.mark.parametrize("security", ["default", "strict"])
def test_every_profile_lets_a_container_join(security: str) -> None:
    with Network(internal=True) as net, Container(net=net, security=security) as c:
        assert c.address is not None
        assert c.exec(["true"]).ok
        assert len(net.containers) == 1


def test_threads_join_one_network_at_once() -> None:
    found: list[bool] = []

    def join(net: Network) -> None:
        for _ in range(3):
            with Container(net=net) as c:
                found.append(addresses_of(c)[-1] == c.address)

    with Network(internal=True) as net:
        threads = [threading.Thread(target=join, args=(net,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert net.containers == ()
    assert found == [True] * 12


def test_nothing_outlives_a_killed_process() -> None:
    code = (
        "import signal\n"
        "from sandbox import Container, Network\n"
        "nets = [Network(internal=True).create() for _ in range(2)]\n"
        "all = [Container(net=net).create() for net in nets for _ in range(3)]\n"
        "for c in all: c.popen(['sleep', '1000'])\n"
        "print('ready', flush=True)\n"
        "signal.pause()\n"
    )
    assert run_and_kill(code, patience_s=2.0) == []


def test_a_user_namespace_around_us_is_no_obstacle() -> None:
    done = run_nested(REACH)
    assert done.returncode == 0, done.stderr
    said, address = done.stdout.split()
    assert said == address


@pytest.mark.parametrize(
    ("security", "words"),
    [
        (Security(), ("UnsupportedError", "nesting=True")),
        (Security(nesting=True), ("UnsupportedError", "read-only here", "masks=False")),
        (Security(nesting=True, masks=False), ("works",)),
    ],
)
def test_in_a_container_networks_work_or_the_error_says_what_helps(security: Security, words: tuple[str, ...]) -> None:
    code = (
        "from sandbox import Container, Network, SandboxError\n"
        "try:\n"
        "    with Network(internal=True) as net, Container(net=net) as c: print('works' if c.address else 'no address')\n"
        "except SandboxError as error: print(type(error).__name__, error)\n"
    )
    mounts = [Bind(Path(known(module.__file__)).parents[1], f"/opt/{module.__name__}", read_only=True) for module in (attr, sandbox)]
    with Container(mounts=mounts, env={"PYTHONPATH": "/opt/sandbox:/opt/attr"}, security=security) as c:
        said = c.exec([PYTHON, "-c", code], text=True).stdout
    assert all(word in said for word in words), said


def test_containers_find_one_another_by_name() -> None:
    with Network(internal=True) as net, Container(net=net, hostname="one"), Container(net=net, hostname="two") as two:
        assert two.exec(["getent", "hosts", "one"], text=True).stdout.split()[1:] == ["one"]


@needs("user")
def test_a_socket_of_the_hosts_does_not_pass_for_the_containers(monkeypatch: pytest.MonkeyPatch) -> None:
    """An init that was taken over can answer with any socket it has; one of the host's leads nowhere."""
    with Container() as c:
        session = c._live().session  # pyright: ignore[reportPrivateUsage]
        monkeypatch.setattr(session, "request", lambda *_, **__: [socket.socket(socket.AF_UNIX).detach()])
        with pytest.raises(SetupError, match="EPERM"):
            namespace_of(session)
