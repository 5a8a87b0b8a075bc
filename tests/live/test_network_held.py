"""Namespaces that somebody else holds when a container has ended: its network has nothing to do with them any more."""

from __future__ import annotations

import errno
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from sandbox import Bind, Container, Join, Network, NetworkStore, Security
from tests.live.test_network import PYTHON, serving
from tests.live.test_network_store import another_process, await_true, ports_of, store
from tests.support import needs

__all__ = ["store"]
pytestmark = [needs("root", "userns", "program:ip"), pytest.mark.usefixtures("no_leftovers")]

TRY = "import socket, sys; print(socket.create_connection((sys.argv[1], 8080), float(sys.argv[2])).recv(5))"
PASS_ON = """
import socket
way = socket.socket(socket.AF_UNIX)
way.connect("/x/way")
sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
sock.bind(("eth0", 0))
socket.send_fds(way, [b"x"], [sock.fileno()])
"""


def reaches(container: Container, address: str | None, *, timeout_s: float = 20.0) -> bool:
    return container.exec([PYTHON, "-c", TRY, str(address), str(timeout_s)]).exit_code == 0


@pytest.fixture(params=["of one process", "kept"])
def make(request: pytest.FixtureRequest, store: NetworkStore) -> Callable[[], Network]:
    """Makes a network of either kind."""

    def make() -> Network:
        if request.param == "kept":
            store.create("shop", internal=True)
            return store.open("shop")
        return Network(internal=True)

    return make


def test_who_shares_the_network_of_one_that_has_ended_is_cut_off(make: Callable[[], Network]) -> None:
    with make() as net, Container(net=net) as other, serving(other):
        with Container(net=net) as first:
            last = Container(net=first)
            last.create()
            assert reaches(last, other.address)
            address = str(first.address)
        with last:
            assert not reaches(last, other.address, timeout_s=0.3)
            with Container(net=Join(net, address=address)) as heir, serving(heir):
                assert not reaches(last, other.address, timeout_s=0.3)
                assert reaches(other, heir.address)


def test_a_socket_that_was_passed_on_sends_nothing_for_one_that_has_ended(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    forger = Security(cap_add=["NET_RAW"], allow_syscalls=["socket"])
    with socket.socket(socket.AF_UNIX) as way, Network(internal=True) as net, Container(net=net) as other:
        way.bind(str(tmp_path / "way"))
        (tmp_path / "way").chmod(0o777)
        way.listen()
        with Container(net=net, mounts=[Bind(tmp_path, "/x")], security=forger, user=0) as c:
            c.exec([PYTHON, "-c", PASS_ON], check=True)
            with way.accept()[0] as asked:
                (fd,) = socket.recv_fds(asked, 1, 1)[1]
        (place,) = net.containers
        assert place.address == other.address
        frame = bytes.fromhex(place.mac.replace(":", "")) + b"\2dummy" + bytes(60)
        with socket.socket(fileno=fd) as sock:
            before = net.stats()
            for _ in range(3):
                try:
                    sock.send(frame)
                except OSError as error:  # the kernel says so where the other end is gone already, and takes it for lost before
                    assert error.errno in (errno.ENOBUFS, errno.ENETDOWN, errno.ENXIO)
            assert net.stats() == before


def test_a_killed_process_leaves_neither_ports_nor_walls_to_who_holds_a_namespace(store: NetworkStore) -> None:
    store.create("shop", internal=True, ipv6=True)  # where each port has walls
    with another_process() as (process, address, pid):
        held = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
        try:
            process.send_signal(signal.SIGKILL)
            process.wait()
            await_true(lambda: store.containers("shop") == ())
            assert len(ports_of(store, "shop")) == 1
            net = store.open("shop")
            with net, Container(net=Join(net, address=address)):
                assert len(ports_of(store, "shop")) == 1
                with net.live.switch.filters() as kernel:
                    assert [chain.name for chain in kernel.chains() if chain.table == "guard"] == ports_of(store, "shop")
        finally:
            os.close(held)
