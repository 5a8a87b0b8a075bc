"""What an allow-list of names costs a question, beside a network without one: ``python -m benchmarks.names``, as root.

In a network namespace of its own, a server that answers with so many addresses plays the host's. A program in a container of either network asks
it by the network's name server, in turns, and measures.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from sandbox import PIPE, Container, Network
from sandbox._networks import names

_INSIDE = "SANDBOX_BENCHMARK_INSIDE"
_UPSTREAM = "127.77.53.1"
_SET_UP = """
ip link set lo up && ip link add wan type veth peer name far && ip address add 203.0.113.1/24 dev wan && ip link set wan up && ip link set far up &&
ip route add default via 203.0.113.2 && echo 1 > /proc/sys/net/ipv4/conf/all/forwarding && echo 1 > /proc/sys/net/ipv4/conf/default/forwarding
"""
_SERVER = f"""
import socket, sys
count = int(sys.argv[1])
records = b"".join(b"\\xc0\\x0c\\0\\1\\0\\1\\0\\0\\0\\x3c\\0\\4\\x09\\1\\1" + bytes([number]) for number in range(count))
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
    s.bind(("{_UPSTREAM}", 53)); print(flush=True)
    while True:
        packet, source = s.recvfrom(4096)
        s.sendto(packet[:2] + b"\\x81\\x80\\0\\1" + count.to_bytes(2, "big") + bytes(4) + packet[12:] + records, source)
"""
_ASK = """
import socket, sys, time
question = b"\\1\\0\\0\\1" + bytes(6) + b"\\1a\\7example\\3org\\0\\0\\1\\0\\1"
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
    s.connect((sys.argv[1], 53)); s.settimeout(10)
    for line in sys.stdin:
        began = time.perf_counter()
        for number in range(int(line)):
            s.send(number.to_bytes(2, "big") + question); s.recv(4096)
        print((time.perf_counter() - began) / int(line), flush=True)
"""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.names", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--questions", type=int, default=100, help="of each round")
    parser.add_argument("--addresses", type=int, default=4, help="of each answer; at most 28 go into one")
    options = parser.parse_args()
    if _INSIDE not in os.environ:
        command = ["unshare", "--net", "sh", "-c", f'{_SET_UP.strip()} && exec "$@"', "sh", sys.executable, "-m", "benchmarks.names", *sys.argv[1:]]
        return subprocess.call(command, env={**os.environ, _INSIDE: "1"})
    with ExitStack() as stack:
        server = stack.enter_context(subprocess.Popen([sys.executable, "-c", _SERVER, str(options.addresses)], stdout=subprocess.PIPE))
        stack.callback(server.kill)
        assert server.stdout is not None
        server.stdout.readline()
        file = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "resolv.conf"
        file.write_text(f"nameserver {_UPSTREAM}\n", encoding="ascii")
        names.RESOLV_CONF = str(file)
        askers = [stack.enter_context(_Asker(allow)) for allow in (None, ["*.example.org:443"])]
        pairs = [tuple(asker.ask(options.questions) for asker in askers) for _ in range(options.rounds)]
    free, listed = (statistics.median(column) * 1000 for column in zip(*pairs, strict=True))
    more = statistics.median(after - before for before, after in pairs) * 1000
    print(f"a question: {free:.3f} ms without a list, {listed:.3f} ms with one; median of the differences {more:.3f} ms")
    return 0


class _Asker(ExitStack):
    """A program in a container of a network of its own, which asks."""

    def __init__(self, allow: list[str] | None) -> None:
        super().__init__()
        net = self.enter_context(Network(allow=allow))
        container = self.enter_context(Container(net=net))
        self._process = self.enter_context(container.popen(["/usr/bin/python3", "-c", _ASK, net.gateway], stdin=PIPE, stdout=PIPE, text=True))
        self.callback(self._process.kill)
        self.ask(10)

    def ask(self, count: int) -> float:
        """Seconds a question."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{count}\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline())


if __name__ == "__main__":
    sys.exit(main())
