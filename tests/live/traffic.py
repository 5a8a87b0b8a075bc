"""Traffic between containers, for tests: who sends, who listens, and how much passes."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager

from sandbox import PIPE, STDOUT, Container
from tests.support import patience

PYTHON = "/usr/bin/python3"
SINK = """
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(("", 9000))
print("up", flush=True)
while True:
    s.recv(65536)
"""
# Frames of 42 bytes of heads, and what is said here.
SEND = """
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for number in range(int(sys.argv[2])):
    s.sendto(b"%06d" % number + b"x" * (int(sys.argv[3]) - 6), (sys.argv[1], 9000))
"""
FLOOD = """
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.connect((sys.argv[1], 9000))
print("up", flush=True)
while True:
    try:
        s.send(b"x" * int(sys.argv[2]))
    except OSError:
        pass
"""
HEADS = 42  # Ethernet, IPv4, UDP


@contextmanager
def running(container: Container, code: str, *args: str) -> Generator[None]:
    with container.popen([PYTHON, "-c", code, *args], stdout=PIPE, stderr=STDOUT) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n", process.stdout.read()
        yield
        process.kill()


def send(container: Container, to: Container, number: int, size: int = 100) -> None:
    container.exec([PYTHON, "-c", SEND, str(to.address), str(number), str(size)], check=True)


def meet(container: Container, to: Container) -> None:
    """Have packets pass: the first ones are lost where the kernel has not yet begun with an interface that has just come up."""
    deadline = time.monotonic() + patience(10)
    before = received(to)
    while received(to) < before + 3:
        send(container, to, 3)
        assert time.monotonic() < deadline


def received(container: Container) -> int:
    return sum(stats.received_packets for stats in container.net_stats().values())


def rate(sender: Container, receiver: Container, octets: int) -> float:
    """Bits per second of whole frames that come while *sender* sends as fast as it can, over the time in which *octets* bytes come."""
    with running(receiver, SINK), running(sender, FLOOD, str(receiver.address), "1400"):
        first = octets_received(receiver)
        while (before := octets_received(receiver)) < first + octets // 10:  # what may pass at once has passed
            pass
        began = time.monotonic()  # and then look again, as it may take a while until this process has the CPU: no rate is too high for that
        before = octets_received(receiver)
        while (after := octets_received(receiver)) < before + octets:
            pass
        return (after - before) * 8 / (time.monotonic() - began)


def best_rate(sender: Container, receiver: Container, octets: int, least: float) -> float:
    """The first of five rates that is higher than *least*, or the highest: of one, a busy machine may be the reason."""
    rates: list[float] = []
    while len(rates) < 5 and (not rates or rates[-1] <= least):
        rates.append(rate(sender, receiver, octets))
    return max(rates)


def octets_received(container: Container) -> int:
    return sum(stats.received_bytes for stats in container.net_stats().values())
