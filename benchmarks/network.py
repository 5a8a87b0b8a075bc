"""Throughput of a network that reaches outside, beside the same made by hand: ``python -m benchmarks.network``, as root, with iperf3.

A namespace plays the world, with an iperf3 server. The rivals send to it in turns, so that whatever else the machine does falls on both:

- ours: a container of ``Network()``;
- by hand: a namespace behind a bridge, which the host masquerades for by one rule of nft. One hop less than ours, whose bridge has a
  namespace of its own, and which is translated twice.

All of it takes place in a namespace of its own; the host's links, rules and settings are not touched.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack

from sandbox import Container, Network

WORLD, HOST = "203.0.113.2", "203.0.113.1"
_BY_HAND = """
ip link add br0 type bridge && ip address add 10.99.0.1/24 dev br0 && ip link set br0 up
ip link add h0 type veth peer name eth0 netns {pid} && ip link set h0 master br0 up
nsenter --net=/proc/{pid}/ns/net sh -c 'ip link set lo up; ip address add 10.99.0.2/24 dev eth0; ip link set eth0 up'
nsenter --net=/proc/{pid}/ns/net ip route add default via 10.99.0.1
nft 'add table ip hand; add chain ip hand post {{ type nat hook postrouting priority 100; }}'
nft 'add rule ip hand post ip saddr 10.99.0.0/24 oifname wan masquerade'
"""
_OUTSIDE = """
ip link set lo up && sysctl -qw net.ipv4.ip_forward=1
ip link add wan type veth peer name eth0 netns {pid} && ip address add 203.0.113.1/24 dev wan && ip link set wan up
nsenter --net=/proc/{pid}/ns/net sh -c 'ip link set lo up; ip address add 203.0.113.2/24 dev eth0; ip link set eth0 up'
ip route add default via 203.0.113.2
"""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.network", description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=3, help="of each transfer")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)  # of the namespace that the rest takes place in
    options = parser.parse_args()
    if not options.inside:
        return subprocess.call(["unshare", "--net", sys.executable, "-m", "benchmarks.network", "--inside", *sys.argv[1:]])
    with ExitStack() as stack:
        server = _namespace(stack, ["iperf3", "--server", "--forceflush"])
        _shell(_OUTSIDE.format(pid=server))
        plain = _namespace(stack, ["sleep", "infinity"])
        _shell(_BY_HAND.format(pid=plain))
        container = stack.enter_context(Container(net=stack.enter_context(Network())))
        ask = ["iperf3", "--client", WORLD, "--json", "--time", str(options.seconds)]
        rivals: dict[str, Callable[[list[str]], str]] = {
            "ours": lambda more: container.exec([*ask, *more], text=True, check=True).stdout,
            "by hand": lambda more: _said(["nsenter", f"--net=/proc/{plain}/ns/net", *ask, *more]),
        }
        for name, more in (("to the world", []), ("from the world", ["--reverse"])):
            _compare(name, {rival: lambda send=send, more=more: send(more) for rival, send in rivals.items()}, options.rounds)
    return 0


def _compare(name: str, rivals: dict[str, Callable[[], str]], rounds: int) -> None:
    found: dict[str, list[float]] = {rival: [] for rival in rivals}
    for turn in range(rounds):
        for rival in sorted(rivals, reverse=bool(turn % 2)):
            found[rival].append(json.loads(rivals[rival]())["end"]["sum_received"]["bits_per_second"] / 1e9)
    ratios = [ours / by_hand for ours, by_hand in zip(found["ours"], found["by hand"], strict=True)]
    for rival, rates in found.items():
        print(f"{name}, {rival}: {statistics.median(rates):.2f} Gbit/s (of {', '.join(f'{rate:.2f}' for rate in rates)})")
    print(f"{name}: ours / by hand, median of pairs: {statistics.median(ratios):.2f}", flush=True)


def _namespace(stack: ExitStack, command: list[str]) -> int:
    """Start *command* in a namespace of its own, and wait until it is there."""
    process = subprocess.Popen(["unshare", "--net", "sh", "-c", 'echo; exec "$@"', "sh", *command], stdout=subprocess.PIPE)
    assert process.stdout is not None
    stack.callback(process.wait)
    stack.callback(process.kill)
    process.stdout.readline()
    return process.pid


def _shell(script: str) -> None:
    subprocess.run(["sh", "-ec", script], check=True)


def _said(command: list[str]) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    sys.exit(main())
