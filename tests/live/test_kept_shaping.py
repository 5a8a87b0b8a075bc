"""Shapes in networks that are kept, where several processes shape."""

from __future__ import annotations

import subprocess
import sys

import pytest

from sandbox import PIPE, Container, Join, NetworkStore, Shape, UsageError
from tests.live.test_network_store import await_true, ports_of
from tests.live.test_network_store import store as store  # noqa: PLC0414 - a fixture
from tests.live.traffic import PYTHON
from tests.support import needs

pytestmark = [needs("root", "userns", "program:ip", "qdisc:tbf"), pytest.mark.usefixtures("no_leftovers")]

SINK = """
import socket
s = socket.create_server(("", 9000))
print("up", flush=True)
while True:
    peer, _ = s.accept()
    size = 0
    while data := peer.recv(65536):
        size += len(data)
    peer.sendall(b"%d" % size)
    peer.close()
"""
SEND = """
import socket, sys, time
with socket.create_connection((sys.argv[1], 9000)) as s:
    began = time.monotonic()
    s.sendall(bytes(250_000))
    s.shutdown(socket.SHUT_WR)
    assert s.recv(100) == b"250000"
    print(time.monotonic() - began)
"""
MEMBER = """
import sys
from sandbox import Container, Join, Shape
with Container(net=Join("shop", shape=Shape("2M"))) as c:
    print(c.endpoints["shop"].address, flush=True)
    for line in sys.stdin:
        print(c.exec([sys.argv[1], "-c", sys.argv[2], line.strip()], text=True, check=True, timeout=60).stdout.strip(), flush=True)
"""
LEAST_S = 0.6  # for 2 Mbit at 2 Mbit/s, with the burst


def blocks(store: NetworkStore) -> list[str]:
    return [name for name in ports_of(store, "shop") if name.startswith("i0")]


def seconds(container: Container, to: Container) -> float:
    return float(container.exec([PYTHON, "-c", SEND, str(to.address)], text=True, check=True, timeout=60).stdout)


def test_containers_of_several_processes_are_shaped_each_by_its_own(store: NetworkStore) -> None:
    store.create("shop", internal=True)
    member = [sys.executable, "-c", MEMBER, PYTHON, SEND]
    with Container(net="shop") as sink, sink.popen([PYTHON, "-c", SINK], stdout=PIPE) as serves, subprocess.Popen(
        member, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:  # fmt: skip
        assert serves.stdout is not None
        assert other.stdin is not None
        assert other.stdout is not None
        assert serves.stdout.readline() == b"up\n"
        address = other.stdout.readline().strip()
        with Container(net=Join("shop", shape=Shape("2M"))) as c:
            assert len(blocks(store)) == 2
            other.stdin.write(f"{sink.address}\n")
            other.stdin.flush()
            assert seconds(c, sink) > LEAST_S
            assert float(other.stdout.readline()) > LEAST_S
            assert store.open("shop").stats().sent_bytes > 500_000  # of both processes' containers
            c.shape(store.open("shop"), None)
            assert min(seconds(c, sink) for _ in range(5)) < LEAST_S  # one alone may be slow for other reasons
            assert len(blocks(store)) == 1
            other.kill()
            other.wait()
            await_true(lambda: address not in [place.address for place in store.containers("shop")])
            c.shape(store.open("shop"), Shape("20M"))  # and sweeps what was left
            assert len(blocks(store)) == 1
        assert blocks(store) == []
        serves.kill()


def test_a_networks_own_shape_is_kept_with_it_and_joins_say_otherwise(store: NetworkStore) -> None:
    store.create("shop", internal=True, shape=Shape("2M", burst=20_000))
    assert store.get("shop").shape == Shape("2M", burst=20_000)
    assert store.inspect("shop")["Shape"]["rate"] == 2_000_000
    code = "from sandbox import *\nwith Container(net='shop') as c: print(len(c.endpoints))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "1\n"
    with Container(net=Join("shop", shape=Shape())) as free, Container(net="shop") as c:
        assert len(blocks(store)) == 1
        with free.popen([PYTHON, "-c", SINK], stdout=PIPE) as serves:
            assert serves.stdout is not None
            assert serves.stdout.readline() == b"up\n"
            assert seconds(c, free) > LEAST_S
            serves.kill()


def test_a_wrong_shape_is_refused_before_the_container_is_made(store: NetworkStore) -> None:
    with pytest.raises(UsageError, match="burst"):
        store.create("shop", internal=True, shape=Shape("1M", burst=100))
    store.create("shop", internal=True)
    with pytest.raises(UsageError, match="burst"), Container(net=Join("shop", shape=Shape("1M", burst=100))):
        pass
    assert (store.containers("shop"), ports_of(store, "shop")) == ((), [])
