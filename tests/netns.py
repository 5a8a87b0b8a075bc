"""Run a test's body in a network namespace of its own: a thread goes there, and ends there. What it starts is there too. And a world outside."""

from __future__ import annotations

import ast
import functools
import shlex
import subprocess
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import ParamSpec

from sandbox._sys.calls import unshare
from sandbox._sys.constants import CLONE_NEWNET

P = ParamSpec("P")


def alone(body: Callable[P, None]) -> Callable[P, None]:
    """Decorate a test: what it raises comes out as usual."""

    @functools.wraps(body)
    def test(*args: P.args, **kwargs: P.kwargs) -> None:
        raised: list[BaseException] = []

        def work() -> None:
            try:
                unshare(CLONE_NEWNET)
                body(*args, **kwargs)
            except BaseException as error:
                raised.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        if raised:
            raise raised[0]

    return test


def said(*argv: str) -> str:
    """What a program says, run where the calling thread is."""
    return subprocess.run(argv, capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL).stdout


PYTHON = "/usr/bin/python3"
HOST, WORLD = "203.0.113.1", "203.0.113.2"
HOST6, WORLD6 = "2001:db8:77::1", "2001:db8:77::2"  # of a world with IPv6
TCP_PORT = UDP_PORT = 8000
# Tells whoever asks, by TCP or UDP, from where it was asked; runs what it is told by its standard input.
_SERVER = f"""
import os, selectors, socket, subprocess, sys
tcp = socket.create_server(("", {TCP_PORT}))
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.bind(("", {UDP_PORT}))
tcp6 = socket.create_server(("::", {TCP_PORT}), family=socket.AF_INET6)
udp6 = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
udp6.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
udp6.bind(("::", {UDP_PORT}))
print("up", flush=True)
ready = selectors.DefaultSelector()
for what in (tcp, udp, tcp6, udp6, sys.stdin):
    ready.register(what, selectors.EVENT_READ)
while True:
    for key, _ in ready.select():
        if key.fileobj in (tcp, tcp6):
            peer, address = key.fileobj.accept()
            peer.sendall(address[0].encode())
            peer.close()
        elif key.fileobj in (udp, udp6):
            _, address = key.fileobj.recvfrom(100)
            key.fileobj.sendto(address[0].encode(), address)
        else:
            line = sys.stdin.readline()
            if not line:
                sys.exit()
            done = subprocess.run(line, shell=True, capture_output=True, text=True)
            print(repr((done.returncode, done.stdout + done.stderr)), flush=True)
"""
# What a client says: the answer, or the error.
ASK = """
import socket, sys
kind, address, port, timeout = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
try:
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM) as s:
        s.settimeout(timeout)
        s.connect((address, port))
        if kind == "udp":
            s.send(b"?")
        print(s.recv(100).decode())
except OSError as error:
    print(type(error).__name__, error)
    sys.exit(1)
"""


class World:
    """What is outside: another namespace, with a server of TCP and of UDP at 203.0.113.2; here we are 203.0.113.1, by interface ``wan``."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    @property
    def pid(self) -> int:
        """Of its server."""
        return self._process.pid

    def run(self, command: str) -> tuple[int, str]:
        """Run a line of shell there."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(command.replace("\n", " ") + "\n")
        self._process.stdin.flush()
        status, output = ast.literal_eval(self._process.stdout.readline())
        return status, output

    def ask(self, address: str, port: int, *, kind: str = "tcp", timeout_s: float = 0.3) -> tuple[int, str]:
        """Whether it reaches somebody."""
        return self.run(f"{PYTHON} -c {shlex.quote(f'exec({ASK!r})')} {kind} {address} {port} {timeout_s}")


@contextmanager
def world(*, forwards: bool = True, is_default: bool = True, ipv6: bool = False) -> Generator[World]:
    """Give the namespace of the calling thread a neighbour."""
    said("ip", "link", "set", "lo", "up")
    for what in ("all", "default"):
        Path(f"/proc/sys/net/ipv4/conf/{what}/forwarding").write_text("1" if forwards else "0", encoding="ascii")
    command = ["unshare", "--net", PYTHON, "-u", "-c", _SERVER]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        there = World(process)
        said("ip", "link", "add", "wan", "type", "veth", "peer", "name", "eth0", "netns", str(process.pid))
        said("ip", "address", "add", f"{HOST}/24", "dev", "wan")
        said("ip", "link", "set", "wan", "up")
        assert there.run(f"ip link set lo up; ip address add {WORLD}/24 dev eth0; ip link set eth0 up") == (0, "")
        if ipv6:
            _lead_to_by_ipv6(there, forwards=forwards)
        if is_default:
            said("ip", "route", "add", "default", "via", WORLD)
        try:
            yield there
        finally:
            process.kill()  # not by the end of its input, which a forked child may have a copy of


def _lead_to_by_ipv6(there: World, *, forwards: bool) -> None:
    Path("/proc/sys/net/ipv6/conf/all/forwarding").write_text("1" if forwards else "0", encoding="ascii")
    said("ip", "address", "add", f"{HOST6}/64", "dev", "wan", "nodad")
    assert there.run(f"ip address add {WORLD6}/64 dev eth0 nodad") == (0, "")
    said("ip", "route", "add", "default", "via", WORLD6)
