"""Networks that ordinary users keep: helpers that die, shapes, counters and captures, containers that outlive their command, holders that are closed."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from sandbox import PIPE, Container, Join, NetworkStore, Shape, UnsupportedError
from sandbox._networks.kept import KeptNetwork
from tests.live.test_kept_shaping import LEAST_S, SEND, SINK, seconds
from tests.live.test_network import PYTHON, ask, serving
from tests.live.test_network_store import await_true
from tests.live.test_network_store import store as store  # noqa: PLC0414 - a fixture
from tests.support import known, needs

pytestmark = [needs("user", "userns"), pytest.mark.unprivileged, pytest.mark.usefixtures("no_leftovers")]

MEMBER = """
import ctypes, sys
from sandbox import Container, Join, Shape
rate, dumpable = sys.argv[1:]
with Container(net=Join("shop", shape=Shape(rate) if rate else None), hostname="other") as c:
    if dumpable != "yes": assert ctypes.CDLL(None).prctl(4, 0, 0, 0, 0) == 0  # PR_SET_DUMPABLE
    print(c.address, c.network.live.switch.pid, flush=True)
    for line in sys.stdin:
        if line == "another\\n":
            with Container(net="shop") as d: print(d.address, flush=True)
        else:
            print(c.exec(eval(line), text=True, timeout=60).stdout.strip(), flush=True)
"""


class Other:
    """A process with a container in the network ``shop``."""

    def __init__(self, *, rate: str = "", dumpable: bool = True) -> None:
        command = [sys.executable, "-c", MEMBER, rate, "yes" if dumpable else "no"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.address, pid = self.read().split()
        self.helper = int(pid)

    def read(self) -> str:
        return known(self.process.stdout).readline().strip()

    def begin(self, *words: str) -> None:
        print(list(words) if len(words) > 1 else words[0], file=self.process.stdin, flush=True)

    def run(self, *words: str) -> str:
        self.begin(*words)
        return self.read()


@contextmanager
def another(*, rate: str = "", dumpable: bool = True) -> Generator[Other]:
    other = Other(rate=rate, dumpable=dumpable)
    with other.process:
        try:
            yield other
        finally:
            other.process.kill()


def killed(pid: int) -> None:
    fd = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(fd, signal.SIGKILL)
        select.select([fd], [], [])
    finally:
        os.close(fd)


def helper_of(container: Container) -> int:
    assert isinstance(container.network, KeptNetwork)
    return container.network.live.switch.pid


HELLO = "import socket, sys; print(socket.create_connection((sys.argv[1], 8080), 5).recv(100).decode())"


def test_the_death_of_a_helper_is_nobodys_who_is_in_the_network(store: NetworkStore) -> None:
    store.create("shop", internal=True)
    with another() as other, Container(net="shop", hostname="mine") as c, serving(c):
        killed(other.helper)
        killed(helper_of(c))
        assert other.run(PYTHON, "-c", HELLO, "mine") == other.address
        assert other.run("another").count(".") == 3
        with another() as gone:  # leaves what has to be tidied up, and there is no helper for that
            gone.process.kill()
            gone.process.wait()
        with Container(net="shop") as d, another() as third:
            assert ask(d, "mine").stdout == f"{d.address}\n"
            assert third.run(PYTHON, "-c", HELLO, "mine") == third.address
            third.process.kill()
        other.process.kill()
    with Container(net="shop", hostname="mine") as c, serving(c):
        assert ask(c, "mine").stdout == f"{c.address}\n"


def test_shapes_counters_and_captures_are_of_all_processes(store: NetworkStore, tmp_path: Path) -> None:
    store.create("shop", internal=True)
    with Container(net="shop") as sink, sink.popen([PYTHON, "-c", SINK], stdout=PIPE) as serves:
        assert known(serves.stdout).readline() == b"up\n"
        with another(rate="2M") as other, Container(net=Join("shop", shape=Shape("2M"))) as c:
            path = tmp_path / "packets"
            assert c.address is not None
            assert sink.address is not None
            with c.capture(path) as capture:
                other.begin(PYTHON, "-c", SEND, str(sink.address))
                assert seconds(c, sink) > LEAST_S
                assert float(other.read()) > LEAST_S
            assert capture.dropped == 0
            data, to_sink = path.read_bytes(), IPv4Address(sink.address).packed
            assert data.count(IPv4Address(c.address).packed + to_sink) > 10
            assert len(data) > 250_000
            assert IPv4Address(other.address).packed + to_sink not in data
            assert c.net_stats()["shop"].sent_bytes > 250_000
            assert known(c.network).stats().sent_bytes > 500_000
            assert store.open("shop").stats() == known(c.network).stats()
            c.shape(known(c.network), None)
            assert min(seconds(c, sink) for _ in range(5)) < LEAST_S  # one alone may be slow for other reasons
        serves.kill()


def test_a_container_that_outlives_its_command_is_in_it_and_found(store: NetworkStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SANDBOX_CONTAINERS", str(tmp_path / "containers"))

    def run(*words: str) -> str:
        return subprocess.run([sys.executable, "-m", "sandbox", *words], capture_output=True, text=True, check=True).stdout.strip()

    store.create("shop", internal=True)
    server = "import socket; s = socket.create_server(('', 8080))\nwhile True: s.accept()[0].sendall(b'hello')"
    run("run", "-d", "--name", "db", "--network", "shop", "--", PYTHON, "-c", server)
    with Container(net="shop", hostname="client") as c:
        await_true(lambda: ask(c, "db").stdout == "hello\n")
        assert [place.hostname for place in store.containers("shop")][1] == "client"
        assert c.exec(["getent", "hosts", "db"], text=True).stdout.split()[0] == store.containers("shop")[0].address
    assert run("run", "--rm", "--network", "shop", PYTHON, "-c", HELLO, "db") == "hello"
    run("rm", "-f", "db")
    await_true(lambda: store.containers("shop") == ())


def test_a_holder_whose_files_are_closed_lets_nobody_in_while_it_is_the_only_one(store: NetworkStore) -> None:
    store.create("shop", internal=True)
    with another(dumpable=False) as closed:
        with pytest.raises(UnsupportedError, match=f"held by the process {closed.process.pid}") as caught, Container(net="shop"):
            pass
        assert caught.value.feature == "/proc/PID/fd"
        del caught  # which has the network in its frames
        assert len(store.containers("shop")) == 1
        closed.process.kill()
    with another() as open_, another() as closes, Container(net="shop", hostname="mine") as c, serving(c):
        killed(open_.process.pid)
        assert closes.run(PYTHON, "-c", HELLO, "mine") == closes.address
        assert open_.address not in [place.address for place in store.containers("shop")]
        closes.process.kill()


