"""How fast bytes go through a published port, beside the same over a bridge and a veth pair made by hand: ``python -m benchmarks.published``.

As root. The host's part is played by a namespace of its own (``unshare --net``), another host's by one more; nothing of the machine's is touched.
Each round sends to all goals, one after the other, in another order each time: by two programs of a few lines, in short transfers, or with iperf3.
What is compared is what two goals of one round got, and, as that depends on who else wants the processors, bytes for each second of CPU time that
sender and receiver took.
On a machine with other work, ``chrt -f 5`` in front of it shows differences that are lost otherwise.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Final

from attrs import frozen

from benchmarks.bridge import SERVE, await_listening
from sandbox import PIPE, Container, Network, NetworkStore, features

# Of a namespace beside this one: our address there, and its own; by version of IP.
WAN: Final = {4: ("203.0.113.1/24", "203.0.113.2/24"), 6: ("2001:db8:1::1/64", "2001:db8:1::2/64")}
HAND: Final = {4: ("192.0.2.1/24", "192.0.2.2/24"), 6: ("2001:db8:2::1/64", "2001:db8:2::2/64")}
LOOPBACK: Final = {4: "127.0.0.1", 6: "::1"}
PORT: Final = 5201
PYTHON: Final = "/usr/bin/python3"
RECEIVER: Final = f"""
import socket, threading, time
server = socket.create_server(("::", {PORT}), family=socket.AF_INET6, dualstack_ipv6=True)
print("listening", flush=True)
def take(peer):
    room = bytearray(1 << 20)
    while peer.recv_into(room):
        pass
    peer.sendall(str(time.thread_time()).encode())
    peer.close()
while True:
    threading.Thread(target=take, args=(server.accept()[0],), daemon=True).start()
"""
# Prints bits a second of wall clock, and of CPU time.
SENDER: Final = """
import socket, sys, time
with socket.create_connection((sys.argv[1], int(sys.argv[2]))) as sock:
    data, sent, began, used = bytes(1 << 20), 0, time.perf_counter(), time.thread_time()
    while time.perf_counter() - began < float(sys.argv[3]):
        sock.sendall(data)
        sent += len(data)
    sock.shutdown(socket.SHUT_WR)
    theirs = float(sock.recv(100))
    print(8 * sent / (time.perf_counter() - began), 8 * sent / (theirs + time.thread_time() - used))
"""


@frozen
class Pair:
    """The program that receives, with what it prints when it does, and what sends: to an address, a port, for so many seconds."""

    receive: Sequence[str]
    send: Callable[[Sequence[str], str, int, float], tuple[float, float]]
    """Gives bits a second of wall clock, and of CPU time."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.published", description="How fast bytes go through a published port.")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=0.25, help="of each transfer; whole ones for iperf3")
    parser.add_argument("--iperf3", action="store_true", help="send with iperf3")
    parser.add_argument("--long-way", action="store_true", help="beside it the same as where no programs of BPF can be loaded")
    parser.add_argument("--ipv6", action="store_true", help="by IPv6")
    parser.add_argument("--kept", action="store_true", help="in networks that are kept, of a store of its own")
    options = parser.parse_args()
    if options.iperf3 and shutil.which("iperf3") is None:
        parser.error("--iperf3: there is no iperf3; install it (Debian: iperf3)")
    if os.environ.get("_PUBLISHED_ALONE") is None:
        os.environ["_PUBLISHED_ALONE"] = "1"
        os.execvp("unshare", ["unshare", "--net", sys.executable, "-m", "benchmarks.published", *sys.argv[1:]])
    with ExitStack() as stack:
        version = 6 if options.ipv6 else 4
        other, hand = stack.enter_context(_namespace("wan", WAN[version])), stack.enter_context(_namespace("hand", HAND[version], bridge=True))
        host, by_hand = WAN[version][0].partition("/")[0], HAND[version][1].partition("/")[0]
        pair = IPERF3 if options.iperf3 else OWN
        _serve(stack, ["nsenter", f"--net=/proc/{hand}/ns/net", *pair.receive])
        ways = {"": PORT} | ({", the long way": PORT + 1} if options.long_way else {})
        store = NetworkStore(stack.enter_context(tempfile.TemporaryDirectory(dir="/run")) + "/networks") if options.kept else None
        for port in ways.values():
            _publish(stack, port, pair, store, ipv6=options.ipv6)
        away = ["nsenter", f"--net=/proc/{other}/ns/net"]
        goals: dict[str, tuple[list[str], str, int]] = {"from the host, by hand": ([], by_hand, PORT)}
        for way, port in ways.items():
            goals |= {f"from the host, {LOOPBACK[version]}{way}": ([], LOOPBACK[version], port), f"from the host, its address{way}": ([], host, port)}
        goals["from another host, by hand"] = away, by_hand, PORT
        goals |= {f"from another host{way}": (away, host, port) for way, port in ways.items()}
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in goals}
        for _ in range(options.rounds):
            for name, goal in random.sample([*goals.items()], len(goals)):
                found[name].append(pair.send(*goal, options.seconds))
    _print(found)
    return 0


def _publish(stack: ExitStack, port: int, pair: Pair, store: NetworkStore | None, *, ipv6: bool) -> None:
    """Have a receiver in a container be reached at that port; at another than `PORT` by the long way."""
    network = Network(ipv6=ipv6) if store is None else _kept(stack, store, f"of-{port}", ipv6=ipv6)
    with features.pretend(packet_programs=features.packet_programs() and port == PORT):
        c = stack.enter_context(Container(net=stack.enter_context(network), ports=[f"{port}:{PORT}"]))
    server = stack.enter_context(c.popen(pair.receive, stdout=PIPE))
    stack.callback(server.kill)
    await_listening(server.stdout)


def _kept(stack: ExitStack, store: NetworkStore, name: str, *, ipv6: bool) -> Network:
    store.create(name, ipv6=ipv6)
    stack.callback(store.remove, name)
    return store.open(name)


def _send(prefix: Sequence[str], address: str, port: int, seconds: float) -> tuple[float, float]:
    said = subprocess.run([*prefix, PYTHON, "-c", SENDER, address, str(port), str(seconds)], capture_output=True, text=True, check=True).stdout
    wall, cpu = map(float, said.split())
    return wall, cpu


def _send_by_iperf3(prefix: Sequence[str], address: str, port: int, seconds: float) -> tuple[float, float]:
    command = [*prefix, "iperf3", "--json", "--client", address, "--port", str(port), "--time", str(math.ceil(seconds))]
    end = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)["end"]
    rate, used = end["sum_received"]["bits_per_second"], end["cpu_utilization_percent"]
    return rate, 100 * rate / (used["host_total"] + used["remote_total"])


OWN: Final = Pair([PYTHON, "-c", RECEIVER], _send)
IPERF3: Final = Pair([*SERVE, "--port", str(PORT)], _send_by_iperf3)


def _serve(stack: ExitStack, command: Sequence[str]) -> None:
    process = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE))
    stack.callback(process.kill)
    await_listening(process.stdout)


@contextmanager
def _namespace(name: str, addresses: tuple[str, str], *, bridge: bool = False) -> Generator[int]:
    """Another namespace, behind a veth pair or, with *bridge*, a bridge and a pair; gives the pid of who keeps it."""
    with subprocess.Popen(["unshare", "--net", "sh", "-c", "echo; exec sleep 100000"], stdout=subprocess.PIPE) as keeper:
        assert keeper.stdout is not None
        keeper.stdout.readline()
        inside = ["nsenter", f"--net=/proc/{keeper.pid}/ns/net", "ip"]
        port = f"{name}-port" if bridge else name
        ours, theirs = addresses
        is_six, own = ":" in ours, ours.partition("/")[0]
        at_once = ["nodad"] if is_six else []
        try:
            _ip("link", "set", "lo", "up")
            _ip("link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", str(keeper.pid))
            if bridge:
                _ip("link", "add", name, "type", "bridge")
                _ip("link", "set", port, "master", name, "up")
            _ip("address", "add", ours, "dev", name, *at_once)
            _ip("link", "set", name, "up")
            route = [*(["-6"] if is_six else []), "route", "add", "default", "via", own]
            for words in (["address", "add", theirs, "dev", "eth0", *at_once], ["link", "set", "eth0", "up"], route):
                subprocess.run([*inside, *words], check=True)
            for switch in ("ipv4/ip_forward", *(["ipv6/conf/all/forwarding"] if is_six else [])):
                with open(f"/proc/sys/net/{switch}", "w", encoding="ascii") as file:
                    file.write("1\n")
            yield keeper.pid
        finally:
            keeper.kill()


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


def _print(found: dict[str, list[tuple[float, float]]]) -> None:
    print("| | Gbit/s | Gbit for a second of CPU | ratio | ratio by CPU |\n| --- | --- | --- | --- | --- |")
    base: list[tuple[float, float]] = []
    for name, pairs in found.items():
        base = pairs if name.endswith("by hand") else base
        medians = [statistics.median(pair[at] for pair in pairs) / 1e9 for at in (0, 1)]
        ratios = [statistics.median(pair[at] / before[at] for pair, before in zip(pairs, base, strict=True)) for at in (0, 1)]
        print(f"| {name} | {medians[0]:.1f} | {medians[1]:.1f} | {ratios[0]:.2f} | {ratios[1]:.2f} |")
    print(f"\nmedians of {len(base)} rounds; load {os.getloadavg()[0]:.1f}, {time.strftime('%Y-%m-%d')}")


if __name__ == "__main__":
    sys.exit(main())
