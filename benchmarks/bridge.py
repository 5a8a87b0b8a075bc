"""Throughput between two containers, beside two namespaces on a bridge made by hand: ``python -m benchmarks.bridge``, as root, with iperf3.

The rivals take turns, so that whatever else the machine does falls on both. The one made by hand lives in namespaces of its own: the host's links
are not touched.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from typing import IO

from sandbox import PIPE, Container, Join, Network, Shape

SERVE = ["iperf3", "--server", "--forceflush"]
BY_HAND = """
ip link set lo up && ip link add br0 type bridge && ip link set br0 up
for at in 1:{one} 2:{two}; do
    ip link add p${{at%:*}} type veth peer name eth0 netns ${{at#*:}} && ip link set p${{at%:*}} master br0 up
    nsenter --net=/proc/${{at#*:}}/ns/net sh -c "ip link set lo up; ip address add 10.99.0.${{at%:*}}/24 dev eth0; ip link set eth0 up"
done
"""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bridge", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=int, default=2, help="of each transfer")
    parser.add_argument("--shaped", metavar="RATE", help="one more rival: a sender with this shape")
    options = parser.parse_args()
    ask = ["iperf3", "--json", "--time", str(options.seconds), "--client"]
    with ExitStack() as stack:
        rivals = {"by hand": _by_hand(ask, stack), "ours": _ours(ask, stack, None)}
        if options.shaped:
            rivals["shaped"] = _ours(ask, stack, Shape(options.shaped))
        found: dict[str, list[float]] = {name: [] for name in rivals}
        for turn in range(options.rounds):
            for name in sorted(rivals, reverse=bool(turn % 2)):
                found[name].append(json.loads(rivals[name]())["end"]["sum_received"]["bits_per_second"] / 1e9)
    for name, rates in found.items():
        print(f"{name}: {statistics.median(rates):.3f} Gbit/s (of {', '.join(f'{rate:.3f}' for rate in rates)})")
    ratios = [ours / by_hand for ours, by_hand in zip(found["ours"], found["by hand"], strict=True)]
    medians = statistics.median(found["ours"]) / statistics.median(found["by hand"])
    print(f"ours / by hand: {medians:.2f} of medians, median of pairs {statistics.median(ratios):.2f}")
    return 0


def _ours(ask: list[str], stack: ExitStack, shape: Shape | None) -> Callable[[], str]:
    net = stack.enter_context(Network(internal=True))
    server = stack.enter_context(Container(net=net))
    client = stack.enter_context(Container(net=Join(net, shape=shape)))
    process = stack.enter_context(server.popen(SERVE, stdout=PIPE))
    stack.callback(process.kill)
    await_listening(process.stdout)
    return lambda: client.exec([*ask, str(server.address)], text=True, check=True).stdout


def _by_hand(ask: list[str], stack: ExitStack) -> Callable[[], str]:
    one = _namespace(stack, SERVE)
    two = _namespace(stack, ["sh", "-c", "echo Server listening; exec sleep infinity"])
    _namespace(stack, ["sh", "-ec", BY_HAND.format(one=one, two=two) + "echo listening; exec sleep infinity"])
    return lambda: subprocess.run(["nsenter", f"--net=/proc/{two}/ns/net", *ask, "10.99.0.1"], check=True, capture_output=True, text=True).stdout


def _namespace(stack: ExitStack, command: list[str]) -> int:
    """Start *command* in a namespace of its own, and wait until it says that it listens."""
    process = subprocess.Popen(["unshare", "--net", *command], stdout=subprocess.PIPE)
    stack.callback(process.wait)
    stack.callback(process.kill)
    await_listening(process.stdout)
    return process.pid


def await_listening(stream: IO[bytes] | None) -> None:
    """Read on until the one who prints there says that it listens."""
    assert stream is not None
    for line in iter(stream.readline, b""):
        if b"istening" in line:
            return
    raise RuntimeError("it does not listen")


if __name__ == "__main__":
    sys.exit(main())
