"""What attacks on networks have in common: the attacker's container, its programs, and listeners of the host that would tell."""

from __future__ import annotations

import contextlib
import json
import secrets
import socket
import subprocess
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import sandbox
from sandbox import PIPE, Bind, Container, Network, Process, Security

PAYLOADS = Path(__file__).parent / "payloads"
TOOL = ["/usr/bin/python3", "-I", "/payloads/network.py"]
PORT = 9999  # where the attacker's programs send to, and listen
# What an attacker may be given who is to look after its own interface: root inside, with packet sockets.
FORGER = Security(cap_add=["NET_ADMIN", "NET_RAW"], allow_syscalls=["socket"])


def container(net: Any, *, attacks: Path | None = None, **options: Any) -> Container:
    """One with the attacker's programs, as root inside."""
    mounts = [Bind(PAYLOADS, "/payloads", read_only=True)]
    mounts += [] if attacks is None else [Bind(attacks, "/attacks", read_only=True)]
    return Container(net=net, mounts=mounts, **{"user": 0, **options})


@contextmanager
def started(container: Container, command: str, parties: object = None) -> Generator[Process]:
    """A program of the attacker's that has said that it is up."""
    argv = [*TOOL, command, *([] if parties is None else [json.dumps(parties)])]
    with container.popen(argv, stdin=PIPE, stdout=PIPE, stderr=sandbox.STDOUT) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        yield process


def said_by(process: Process) -> str:
    """All that it writes until its end."""
    assert process.stdout is not None
    return process.stdout.read().decode(errors="replace")


def answers(container: Container, command: str, parties: object = None) -> dict[str, str]:
    """Run a program of the attacker's; what it was told, by what it tried."""
    argv = [*TOOL, command, *([] if parties is None else [json.dumps(parties)])]
    result = container.exec(argv, text=True, check=True)
    return dict(line.rsplit(": ", 1) for line in result.stdout.splitlines() if ": " in line)


def addresses_of_the_host() -> list[str]:
    said = subprocess.run(["ip", "-json", "address"], capture_output=True, check=True).stdout
    return [info["local"] for link in json.loads(said) for info in link["addr_info"] if not info["local"].startswith("fe80:")]


def mac_of(net: Network, container: Container) -> str:
    return next(place.mac for place in net.containers if place.pid == container.pid)


class Listeners:
    """Of the host: whoever reaches one has got out."""

    def __init__(self, stack: ExitStack) -> None:
        self._socks: list[socket.socket] = []
        self._stack = stack
        self.places: list[str] = []
        self.name = f"canary-{secrets.token_hex(8)}"
        for family, addresses in ((socket.AF_INET, ["127.0.0.1"]), (socket.AF_INET6, ["::1"])):
            addresses += [address for address in addresses_of_the_host() if (":" in address) == (family == socket.AF_INET6)]
            for kind, word in ((socket.SOCK_STREAM, "tcp"), (socket.SOCK_DGRAM, "udp")):
                port = self._listen(socket.socket(family, kind), ("", 0))[1]
                self.places += [f"{word}:{address}/{port}" for address in dict.fromkeys(addresses)]
        for word, kind in (("stream", socket.SOCK_STREAM), ("seqpacket", socket.SOCK_SEQPACKET), ("datagram", socket.SOCK_DGRAM)):
            self._listen(socket.socket(socket.AF_UNIX, kind), f"\0{self.name}-{word}")
            self.places.append(f"{word}:{self.name}-{word}")

    def _listen(self, sock: socket.socket, place: object) -> tuple[str, int]:
        self._stack.enter_context(sock)
        if sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(place)  # type: ignore[arg-type]
        if sock.type != socket.SOCK_DGRAM:
            sock.listen()
        sock.setblocking(False)
        self._socks.append(sock)
        found = sock.getsockname()
        return found if isinstance(found, tuple) else ("", 0)

    def heard(self) -> list[str]:
        """Who was reached."""
        found: list[str] = []
        for sock in self._socks:
            with contextlib.suppress(BlockingIOError):
                while True:
                    if sock.type == socket.SOCK_DGRAM:
                        data = sock.recv(100)
                    else:
                        peer, _ = sock.accept()
                        with peer:
                            data = peer.recv(100)
                    found.append(f"{sock.getsockname()!r}: {data!r}")
        return found
