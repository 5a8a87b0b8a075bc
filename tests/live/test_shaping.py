"""Shapes of containers' packets on the real kernel: rates in both directions, delay and loss where the kernel has them, and nothing left."""

from __future__ import annotations

import statistics
import time
from collections.abc import Generator
from pathlib import Path

import pytest

import sandbox
from sandbox import ClosedError, Container, Join, Network, Security, Shape, UnsupportedError, UsageError
from sandbox.net import nft
from tests.leak.killed import run_and_kill
from tests.live.traffic import FLOOD, SINK, best_rate, meet, octets_received, rate, running
from tests.support import needs, slowness, why_not

pytestmark = [needs("root", "userns", "program:ip", "qdisc:tbf"), pytest.mark.usefixtures("no_leftovers")]

PYTHON = "/usr/bin/python3"
RATE = 8_000_000
OCTETS = 400_000  # 0.4 s of it
ECHO = """
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(("", 9000))
print("up", flush=True)
while True:
    data, peer = s.recvfrom(65536)
    s.sendto(data, peer)
"""
# Says how long each of *n* questions took; "-" for one without an answer, and in the end how many answers came twice.
ASK = """
import select, socket, sys, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
twice, seen = 0, set()
for number in range(int(sys.argv[2])):
    began = time.monotonic()
    s.sendto(b"%d" % number, (sys.argv[1], 9000))
    took = "-"
    while took == "-" and select.select([s], [], [], float(sys.argv[3]))[0]:
        answer = int(s.recv(100))
        twice += answer in seen
        seen.add(answer)
        if answer == number:
            took = time.monotonic() - began
    print(took)
while select.select([s], [], [], float(sys.argv[3]))[0]:
    answer = int(s.recv(100))
    twice += answer in seen
print(twice)
"""


def ask(client: Container, server: Container, number: int, patience_s: float) -> tuple[list[float], int, int]:
    """Times of the answers, how many did not come, and how many came twice."""
    *took, twice = client.exec([PYTHON, "-c", ASK, str(server.address), str(number), str(patience_s)], text=True, check=True).stdout.split()
    return [float(one) for one in took if one != "-"], took.count("-"), int(twice)


@pytest.fixture
def net() -> Generator[Network]:
    with Network("shaped", internal=True) as network:
        yield network


# ---- Rates ----


def unshaped(sender: Container, receiver: Container) -> bool:
    return best_rate(sender, receiver, OCTETS, least := 3 * RATE / slowness()) > least


def test_a_rate_holds_in_both_directions_and_for_nobody_else(net: Network) -> None:
    with Container(net=Join(net, shape=Shape("8M"))) as slow, Container(net=net) as two, Container(net=net) as three:
        for sender, receiver in ((slow, two), (two, slow)):
            least = 0.7 * RATE / slowness()
            assert least < best_rate(sender, receiver, OCTETS, least) < 1.1 * RATE
        assert unshaped(two, three)
        stats = slow.net_stats()["shaped"]
        assert stats.sent_dropped > 10
        assert stats.received_dropped > 10
        assert two.net_stats()["shaped"].sent_dropped == 0


def test_a_network_has_a_shape_for_all_and_a_container_its_own() -> None:
    with (
        Network(internal=True, shape=Shape(RATE)) as net,
        Container(net=net) as one,
        Container(net=Join(net, shape=Shape())) as free,
        Container(net=Join(net, shape=Shape())) as other,
    ):
        assert rate(free, one, OCTETS) < 1.1 * RATE
        assert unshaped(free, other)


def test_a_shape_changes_while_packets_pass(net: Network) -> None:
    with Container(net=net) as one, Container(net=net) as two:
        one.shape(net, Shape("8M"))
        assert rate(one, two, OCTETS) < 1.1 * RATE
        dropped = one.net_stats()["shaped"].sent_dropped
        one.shape(net, Shape("2M"))
        least = 0.7 * RATE / 4 / slowness()
        assert least < best_rate(one, two, OCTETS // 4, least) < 1.1 * RATE / 4
        one.shape(net, None)
        assert unshaped(one, two)
        one.shape(net, None)
        assert dropped > 10


def test_a_burst_passes_at_once(net: Network) -> None:
    with Container(net=Join(net, shape=Shape("1M", burst="1500k"))) as one, Container(net=net) as two:
        with running(two, SINK):
            meet(one, two)
            before, began = octets_received(two), time.monotonic()
            with running(one, FLOOD, str(two.address), "1000"):
                while octets_received(two) < before + 1_250_000:  # would take ten seconds at 1 Mbit/s
                    pass
            assert time.monotonic() - began < 7.5 * slowness()
        one.shape(net, Shape("1M"))
        assert rate(one, two, 30_000) < 1.2e6


def test_root_with_all_rights_over_its_interface_cannot_take_a_shape_away(net: Network) -> None:
    rights = Security(cap_add=["NET_ADMIN", "NET_RAW"], allow_syscalls=["socket"])
    with Container(net=Join(net, shape=Shape("8M")), user=0, security=rights) as one, Container(net=net) as two:
        assert one.exec(["ip", "link", "set", "eth0", "txqueuelen", "500"]).ok
        for command in ("tc qdisc del dev eth0 root", "tc qdisc add dev eth0 root tbf rate 1gbit burst 100000 limit 1000000"):
            one.exec(["sh", "-c", command])
        assert "ifb" not in one.exec(["ip", "-d", "link"], text=True).stdout
        assert rate(one, two, OCTETS) < 1.1 * RATE
        assert rate(two, one, OCTETS) < 1.1 * RATE


FORGE = """
import socket, sys
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
s.bind(("eth0", 0))
for source in sys.argv[1:]:
    for _ in range(5):
        s.send(b"\\xff" * 6 + bytes.fromhex(source) + b"\\x12\\x34" + b"FORGED" * 10)
"""


def test_a_shape_is_no_way_around_the_walls_of_a_port(net: Network, tmp_path: Path) -> None:
    rights = Security(cap_add=["NET_ADMIN", "NET_RAW"], allow_syscalls=["socket"])
    with Container(net=net, user=0, security=rights) as one, Container(net=net) as two:
        for shape in (None, Shape("8M")):
            one.shape(net, shape)
            mac, others = (c.endpoints[net.name].mac.replace(":", "") for c in (one, two))
            path = tmp_path / "seen"
            with two.capture(path):
                one.exec([PYTHON, "-c", FORGE, others, mac], check=True)
            # Of a type that is no protocol of ours: neither with another's address nor with its own does it come through.
            assert b"FORGED" not in path.read_bytes()


def test_what_cannot_be_is_refused_before_anything_is_touched(net: Network) -> None:
    with pytest.raises(UsageError, match="1514"):
        Network(internal=True, shape=Shape("1M", burst=1000))
    for wrong in ("10M", 10**7, {"rate": "10M"}):
        with pytest.raises(UsageError, match="shape"):
            Network(shape=wrong)  # type: ignore[arg-type]
        with pytest.raises(UsageError, match="shape"):
            Join(net, shape=wrong)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="1514"), Container(net=Join(net, shape=Shape("1M", burst=1000))):
        pass
    assert net.containers == ()
    with Network("other", internal=True) as other, Container(net=net) as c, Container(net=c) as beside:
        with pytest.raises(UsageError, match="another container"):
            beside.shape(net, None)
        with pytest.raises(UsageError, match="no network that"):
            c.shape(other, Shape("1M"))
        with pytest.raises(UsageError, match="1514"):
            c.shape(net, Shape("1M", burst=1000))
        with pytest.raises(UsageError, match="is not a Shape"):
            c.shape(net, "1M")  # type: ignore[arg-type]
    with pytest.raises(ClosedError):
        c.shape(net, None)


def test_containers_that_come_and_go_leave_no_rule_and_no_interface(net: Network) -> None:
    with Container(net=net) as stays:
        for _ in range(10):
            with Container(net=Join(net, shape=Shape("8M"))) as c:
                c.shape(net, Shape("4M"))
            stays.shape(net, Shape("1M"))
            stays.disconnect(net)
            stays.connect(Join(net, shape=Shape("2M")))
        live = net.live
        with live.switch.filters() as filters:
            names = [chain.name for chain in filters.chains("netdev") if chain.table == "shaping"]
            assert len(names) == 1
            (rule,) = filters.rules(nft.Chain(nft.Table("netdev", "shaping"), names[0], hook="ingress", device="p"))
            assert rule.expressions == ("immediate", "fwd")
        assert live.shaping.devices == 2  # as many as were shaped at once


def test_nothing_of_shapes_outlives_a_killed_process() -> None:
    code = (
        "import sandbox, signal\n"
        "from sandbox import Container, Network, Shape\n"
        "net = Network(internal=True, shape=Shape('8M')).create()\n"
        "all = [Container(net=net).create() for _ in range(3)]\n"
        "print('ready', flush=True)\n"
        "signal.pause()\n"
    )
    assert run_and_kill(code, patience_s=2.0) == []


def test_asyncio_shapes_and_counts_too() -> None:
    import asyncio

    async def main(net: Network) -> None:
        async with sandbox.aio.Container(net=net) as c:
            await c.shape(net, Shape("8M"))
            assert (await c.net_stats())["async"].received_errors == 0
            assert net.live.shaping.devices == 1

    with Network("async", internal=True) as net:
        asyncio.run(main(net))


# ---- What takes sch_netem ----


@pytest.mark.skipif(why_not("qdisc:netem") == "", reason="the kernel has sch_netem")
def test_without_netem_delay_and_loss_are_refused_with_the_remedy(net: Network) -> None:
    with Container(net=net) as one, Container(net=net) as two:
        one.shape(net, Shape("8M"))
        for shape in (Shape(delay=0.1), Shape("100M", loss=0.1), Shape(duplicate=0.1)):
            with pytest.raises(UnsupportedError, match="modprobe sch_netem") as caught:
                one.shape(net, shape)
            assert caught.value.feature == "sch_netem"
        assert rate(one, two, OCTETS) < 1.1 * RATE, "the shape that it had is not the one that it has"
    for refused in (lambda: Container(net=Join(net, shape=Shape(delay=0.1))), lambda: Network(internal=True, shape=Shape(loss=0.5))):
        with pytest.raises(UnsupportedError), refused():
            pass
    assert net.containers == ()


@needs("qdisc:netem")
@pytest.mark.parametrize("limit", [None, "50M"])
def test_a_delay_is_real_in_each_direction(net: Network, limit: str | None) -> None:
    delay = 0.05 * max(1.0, slowness() / 4)
    with Container(net=net) as one, Container(net=net) as two, running(two, ECHO):
        meet(one, two)
        plain, _, _ = ask(one, two, 10, 5)
        one.shape(net, Shape(limit, delay=delay))
        late, lost, twice = ask(one, two, 10, 5)
        assert (len(late), lost, twice) == (10, 0, 0)
        assert 2 * delay <= min(late)
        assert min(late) < 2 * delay + 2 * statistics.median(plain) + 0.02 * slowness()
        one.shape(net, Shape(limit, delay=delay, jitter=delay))
        varied, _, _ = ask(one, two, 10, 5)
        assert max(varied) - min(varied) > delay / 4


@needs("qdisc:netem")
def test_loss_and_duplication_are_real_and_counted(net: Network) -> None:
    with Container(net=net) as one, Container(net=net) as two, running(two, ECHO):
        meet(one, two)
        one.shape(net, Shape(loss=1.0))
        assert ask(one, two, 3, 0.1) == ([], 3, 0)
        assert one.net_stats()["shaped"].sent_dropped >= 3
        one.shape(net, Shape("50M", loss=0.3))
        got, lost, _ = ask(one, two, 60, 0.2 * slowness())  # of each, 0.49 come back; six times the deviation to each side
        assert 6 < len(got) < 53
        assert lost == 60 - len(got)
        one.shape(net, Shape(duplicate=1.0))
        got, lost, twice = ask(one, two, 10, slowness())
        assert (len(got), lost) == (10, 0)
        assert twice >= 10
