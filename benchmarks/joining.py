"""What being in a network adds to a container's life, beside docker run: ``python -m benchmarks.joining``, as root, with dockerd.

Each rival runs a program with and without a network in turns; what counts is the difference. All of it takes place in a network namespace of its
own, where Docker's bridge and rules disturb nobody.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack

from benchmarks import docker
from benchmarks.programs import compiled
from sandbox import Container, Network

_INSIDE = "SANDBOX_BENCHMARK_INSIDE"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.joining", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=10, help="of docker; four times as many of ours")
    options = parser.parse_args()
    if _INSIDE not in os.environ:
        command = ["unshare", "--net", "--mount", "--propagation", "private", sys.executable, "-m", "benchmarks.joining", *sys.argv[1:]]
        return subprocess.call(command, env={**os.environ, _INSIDE: "1"})
    with ExitStack() as stack:
        programs = stack.enter_context(compiled())
        client = docker.with_network(programs, stack)
        net = stack.enter_context(Network(internal=True))
        theirs = _difference("docker run", options.rounds, _docker(client, "none"), _docker(client, "bridge"))
        ours = _difference("ours", options.rounds * 4, lambda: _life(None), lambda: _life(net))
    print(f"docker / ours: {theirs / ours:.0f}")
    return 0


def _docker(client: list[str], network: str) -> Callable[[], object]:
    command = [*client, "run", "--rm", "--network", network, docker.IMAGE, "/true"]
    return lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def _life(net: Network | None) -> None:
    with Container(net=net) as container:
        container.exec(["true"], check=True)


def _difference(name: str, rounds: int, alone: Callable[[], object], joined: Callable[[], object]) -> float:
    pairs: list[tuple[float, float]] = []
    for turn in range(rounds + 2):
        pair = (_timed(alone), _timed(joined))
        if turn >= 2:  # what is loaded is loaded
            pairs.append(pair)
    first, second = (statistics.median(column) for column in zip(*pairs, strict=True))
    found = statistics.median(after - before for before, after in pairs)
    print(f"{name}: {first:.2f} ms without, {second:.2f} ms with a network; median of the differences {found:.2f} ms", flush=True)
    return found


def _timed(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return (time.perf_counter() - begin) * 1000


if __name__ == "__main__":
    sys.exit(main())
