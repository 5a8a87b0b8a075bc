"""The short way of published ports in a network that is kept: each process that shares it has its own, until it ends in whatever way."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from attrs import evolve

from sandbox import Container, Join, Network, NetworkStore, Shape, features
from sandbox._networks.kept import KeptNetwork
from sandbox._networks.switch import Switch
from sandbox.errors import SetupError
from sandbox.net import shortcut
from tests.leak.killed import run_and_kill
from tests.live.test_network_ports import send_until_told
from tests.live.test_network_shortcut import (
    ECHO,
    OF_ONE,
    PORT,
    assert_answers_go_to_whom_they_are_for,
    assert_withdrawal_refuses,
    client_of,
    echoing,
    exchange,
    keys_of,
    passed,
    run_outside,
    share,
    talked,
    watched,
)
from tests.live.test_network_store import await_true
from tests.live.test_network_store import store as store  # noqa: PLC0414 - a fixture
from tests.netns import HOST, PYTHON, alone, world
from tests.programs_of_bpf import ours, remaining, written
from tests.support import needs

pytestmark = [needs("root", "userns", "program:ip", "program:nft", "bpf", "tcx"), pytest.mark.usefixtures("no_leftovers")]

OTHER_PORT = PORT + 1
PUBLISH = """
import sys
from sandbox import PIPE, Container
python, port, echo = sys.argv[1:]
with Container(net="shop", ports=[f"{port}:8080"]) as c:
    process = c.popen([python, "-c", echo, "8080"], stdout=PIPE)
    process.stdout.readline()
    c.network.live.shortcut.settle()
    print(c.address, flush=True)
    sys.stdin.read()
"""


def opened(store: NetworkStore) -> KeptNetwork:
    """A network that is kept, and which this process is ready for."""
    store.create("shop")
    network = store.open("shop")
    assert isinstance(network, KeptNetwork)
    return network


@contextmanager
def another_process(port: int = OTHER_PORT) -> Generator[tuple[subprocess.Popen[str], str]]:
    """A process whose container in the network ``shop`` sends back what comes to that port of the host's; and the container's address."""
    command = [sys.executable, "-c", PUBLISH, PYTHON, str(port), ECHO]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process, process.stdout.readline().strip()
        finally:
            process.kill()


def part(net: Network, talk: Callable[[], None]) -> tuple[float, float]:
    """As `share`, of the packets of all containers in it."""
    with watched(net) as long:
        before = net.stats()
        talk()
        after = net.stats()
        to, back = long.count()
    every = after.received_packets - before.received_packets, after.sent_packets - before.sent_packets
    assert min(every) >= 20
    return to / every[0], back / every[1]


@alone
def test_most_packets_take_the_short_way_whoever_asks(store: NetworkStore) -> None:
    with world() as there, opened(store) as net, Container(net=net, ports=[f"{PORT}:{PORT}"]) as c, echoing(c):
        for address in (HOST, "127.0.0.1"):
            with client_of(address) as client:
                assert max(share(net, c, lambda client=client: exchange(client, 50))) < 0.3  # type: ignore[misc]
        assert max(share(net, c, lambda: run_outside(there))) < 0.3


@alone
def test_each_process_has_its_own_and_who_is_killed_takes_it_along(store: NetworkStore) -> None:
    before = ours()
    with world(), opened(store) as net, another_process() as (process, _), ExitStack() as stack:
        others = ours() - before
        c = stack.enter_context(Container(net=net, ports=[f"{PORT}:{PORT}"]))
        stack.enter_context(echoing(c))
        net.live.shortcut.settle()
        own = ours() - before - others
        assert {one.name for one in others} == {one.name for one in own} == OF_ONE
        with client_of() as mine, client_of(port=OTHER_PORT) as theirs:
            for sock in (mine, theirs):
                assert max(part(net, lambda sock=sock: exchange(sock, 50))) < 0.3  # type: ignore[misc]
            process.send_signal(signal.SIGKILL)
            process.wait()
            await_true(lambda: "sandbox_inward" not in {one.name for one in remaining(others)})
            await_true(lambda: len(store.containers("shop")) == 1)
            assert remaining(own) == own
            assert max(share(net, c, lambda: exchange(mine, 50))) < 0.3
            with Container(net=net):  # an answer that nobody takes kept the dead container's port, with its programs, until somebody joins
                await_true(lambda: not remaining(others))
        with pytest.raises(ConnectionRefusedError):
            client_of(port=OTHER_PORT)


@alone
def test_a_port_that_is_withdrawn_refuses_the_next_packet(store: NetworkStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shortcut, "LIFE_NS", 2_000_000_000)
    with world(), opened(store) as net, Container(net=net, ports=[f"{PORT}:{PORT}"]) as c, echoing(c), client_of() as client:
        talked(net, client)
        assert_withdrawal_refuses(c, client)


@alone
def test_a_container_that_leaves_takes_its_flows_along_and_may_come_again(store: NetworkStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shortcut, "LIFE_NS", 2_000_000_000)
    with world(), opened(store) as net, Container(net=net, ports=[f"{PORT}:{PORT}"]) as c, echoing(c):
        with client_of() as client:
            talked(net, client)
            c.disconnect(net)
            with pytest.raises((ConnectionResetError, BrokenPipeError)):
                send_until_told(client)
        c.connect(net)  # the rules are made anew, as nothing was published meanwhile
        with client_of() as client:
            assert max(share(net, c, lambda: exchange(client, 50))) < 0.3


@alone
def test_a_killed_process_s_flow_does_not_reach_who_has_the_address_now(store: NetworkStore) -> None:
    with world(), opened(store) as net, another_process() as (process, address), client_of(port=OTHER_PORT) as client, ExitStack() as stack:
        exchange(client, 5)
        process.send_signal(signal.SIGKILL)
        process.wait()
        await_true(lambda: store.containers("shop") == ())
        c = stack.enter_context(Container(net=Join(net, address=address), ports=[f"{PORT}:{PORT}"]))
        stack.enter_context(echoing(c))
        before = passed(c)[0]
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            send_until_told(client)
        assert passed(c)[0] == before
        with client_of() as other:
            exchange(other)


@alone
@pytest.mark.parametrize("first", [1, 256])  # what the rules of a kept network mark packets with means, as a port, 256
def test_two_ports_that_lead_to_one_are_kept_apart_for_a_client_with_one_port(store: NetworkStore, first: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shortcut, "LIFE_NS", 2_000_000_000)
    with world(), opened(store) as net, ExitStack() as stack:
        with net.directory.held():
            net.directory.write_state(evolve(net.directory.written_state(), inner=first - 1))
        c = stack.enter_context(Container(net=net, ports=[f"{PORT}:{PORT}", f"{OTHER_PORT}:{PORT}"]))
        stack.enter_context(echoing(c))
        with client_of() as one, socket.socket() as other:
            for sock in (one, other):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            other.settimeout(one.gettimeout())
            other.bind(one.getsockname())
            other.connect((HOST, OTHER_PORT))
            net.live.shortcut.settle()
            assert_answers_go_to_whom_they_are_for(one, other)
            assert len(keys_of(net)) == 2


@alone
def test_what_is_shaped_takes_the_long_way(store: NetworkStore) -> None:
    with world(), opened(store) as net, Container(net=net, ports=[f"{PORT}:{PORT}"]) as c, echoing(c), client_of() as client:
        exchange(client)
        c.shape(net, Shape("1G"))
        assert min(share(net, c, lambda: exchange(client, 20))) > 0.9
        c.shape(net, None)
        assert max(share(net, c, lambda: exchange(client, 50))) < 0.3


def pretended_off(stack: ExitStack, _: pytest.MonkeyPatch) -> None:
    stack.enter_context(features.pretend(packet_links=False))


def refused(_: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(*_: object) -> None:
        raise SetupError("link a program", 7, step="network")  # E2BIG: 64 others have

    monkeypatch.setattr(Switch, "ask_for_link", ask)


@alone
@pytest.mark.parametrize("how", [pretended_off, refused])
def test_without_links_what_comes_takes_the_long_way(
    store: NetworkStore, how: Callable[[ExitStack, pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    with world(), ExitStack() as stack:
        how(stack, monkeypatch)
        net = stack.enter_context(opened(store))
        c = stack.enter_context(Container(net=net, ports=[f"{PORT}:{PORT}"]))
        stack.enter_context(echoing(c))
        client = stack.enter_context(client_of())
        assert share(net, c, lambda: exchange(client, 20))[0] > 0.9


@alone
def test_programs_and_maps_go_with_the_last_container_and_with_who_is_killed(store: NetworkStore, tmp_path: Path) -> None:
    """Whether or not he has a child that knows nothing of it; another one's network stays."""
    code = (
        "import os, signal\n"
        "from sandbox import Container\n"
        "c = Container(net='shop', ports=['8080:80']).create()\n"
        "c.network.live.shortcut.settle()\n"
        "assert c.network.live.shortcut.flows() is not None\n"
        "from tests.programs_of_bpf import write_ours\n"
        f"write_ours({str(tmp_path / 'made')!r})\n"
        "child = os.fork()\n"
        "if not child:\n"
        "    signal.pause()\n"
        f"open({str(tmp_path / 'child')!r}, 'w').write(str(child))\n"
        "print('ready', flush=True)\n"
        "signal.pause()\n"
    )
    before = ours()
    with world():
        with opened(store) as net, Container(net=net, ports=[f"{PORT}:{PORT}"]):
            net.live.shortcut.settle()
            made = ours() - before
            assert {one.name for one in made} == OF_ONE
        await_true(lambda: not remaining(made))
        left = run_and_kill(code, patience_s=2.0)
        assert [line.split(":")[0] for line in left] == ["processes"]  # the child
        assert (tmp_path / "child").read_text() in left[0]
        killed = written(tmp_path / "made")
        assert {one.name for one in killed} == OF_ONE
        await_true(lambda: not remaining(killed))
        assert store.names() == ["shop"]
        assert os.path.exists(f"{store.path}/shop/namespace")
