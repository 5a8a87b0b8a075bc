"""Reaching what listens inside: a container has a network of its own, with nothing but loopback.

Whether somebody listens is read from /proc/PID/net of the container's init: the kernel's own words, for any image, without a
program inside and without a connection that the service would see. A connection takes a socket that was made inside;
it stays there, whoever holds it. As root, a helper of the launcher makes it, in the network namespace and otherwise in our own. An
ordinary user may not open the namespaces of init: there a Python inside makes it and hands it out.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from sandbox import BrokenError, UnsupportedError, UsageError, ns

if TYPE_CHECKING:
    from sandbox import Container

__all__ = ["connect", "is_listening", "loopback_of", "make_sockets", "to_port"]

_LISTEN: Final = "0A"  # TCP_LISTEN, include/net/tcp_states.h
_MAX_TABLE: Final = 4 << 20  # bytes of /proc/PID/net/tcp; what has more sockets is not looked through
_BATCH: Final = 4
_TIMEOUT_S: Final = 30.0
_FAMILIES: Final = {"127.0.0.1": socket.AF_INET, "localhost": socket.AF_INET, "::1": socket.AF_INET6}
_MAKE_SOCKETS: Final = (
    "import array, socket, sys; "
    "made = [socket.socket(int(sys.argv[1]), socket.SOCK_STREAM) for _ in range(int(sys.argv[2]))]; "
    "socket.socket(fileno=0).sendmsg([b'.'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', [each.fileno() for each in made]))])"
)


def to_port(value: object) -> int:
    """Check a port's number. Raises: UsageError."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 65536:
        raise UsageError(f"port: {value!r} is not the number of a port, 1 to 65535")
    return value


def loopback_of(host: str) -> socket.AddressFamily:
    """The family of a name of loopback. Raises: UsageError: nothing else is reached from here."""
    if host not in _FAMILIES:
        raise UsageError(f"host: {host!r} is not the container's own loopback; give one of {', '.join(_FAMILIES)}")
    return _FAMILIES[host]


def is_listening(pid: int, port: int) -> bool:
    """Whether a TCP socket of any address listens on *port* in the network namespace that process *pid* is in."""
    return any(port == found for name in ("tcp", "tcp6") for found in _listening(f"/proc/{pid}/net/{name}"))


def _listening(path: str) -> Iterator[int]:
    try:
        with open(path, encoding="ascii") as table:
            lines = table.read(_MAX_TABLE).splitlines()[1:]
    except (FileNotFoundError, ProcessLookupError):  # no IPv6 here, or the container has ended
        return
    for line in lines:
        # sl local_address rem_address st ...: proc(5), /proc/net/tcp
        fields = line.split(maxsplit=4)
        if len(fields) > 3 and fields[3] == _LISTEN:
            yield int(fields[1].rpartition(":")[2], 16)


def connect(sock: socket.socket, host: str, port: int, timeout: float) -> None:
    """Connect a socket of the container's to its loopback. Raises: OSError, TimeoutError."""
    sock.settimeout(timeout)
    sock.connect(("::1" if loopback_of(host) == socket.AF_INET6 else "127.0.0.1", port))


def make_sockets(container: Container, family: socket.AddressFamily) -> list[socket.socket]:
    """Make some TCP sockets inside the container's network; making one takes as long as making several.

    Raises: UnsupportedError: as an ordinary user, without python3 inside.
    """
    if container.spec.net == "host":
        return [socket.socket(family, socket.SOCK_STREAM)]
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            _send_sockets(container, ["-I", "-S", "-c", _MAKE_SOCKETS, str(int(family)), str(_BATCH)], theirs)
        ours.setblocking(False)
        return _receive(ours, family)


def _send_sockets(container: Container, arguments: list[str], channel: socket.socket) -> None:
    if os.geteuid() == 0:
        with ns.Namespace.of(container.pid, "net") as network:
            if not container.is_running:  # its pid may have been another process's, then
                raise BrokenError("the container has ended")
            network.enter().run([sys.executable, *arguments], stdin=channel, check=True, timeout=_TIMEOUT_S)
        return
    # Not `ServiceContainer.exec`: it is nobody's program, and belongs into no report.
    from sandbox import Container, ProgramNotFoundError

    try:
        Container.exec(container, ["python3", *arguments], stdin=channel, check=True, timeout=_TIMEOUT_S)
    except ProgramNotFoundError as error:
        raise UnsupportedError(
            "connect: an ordinary user reaches a container's network through a Python inside, and there is none",
            feature="python3 in the container",
            remedy="use an image that has it, run as root, or wait for port= or command=, which do without",
        ) from error


def _receive(channel: socket.socket, family: socket.AddressFamily) -> list[socket.socket]:
    # Its sender may be a program inside: whatever else it sends is closed.
    fds: list[int] = []
    with contextlib.suppress(BlockingIOError):
        _, fds, _, _ = socket.recv_fds(channel, 1, _BATCH, socket.MSG_CMSG_CLOEXEC)
    sockets: list[socket.socket] = []
    for fd in fds:
        try:
            sockets.append(socket.socket(fileno=fd))
        except OSError:
            os.close(fd)
    if len(sockets) != _BATCH or any(made.family != family or made.type != socket.SOCK_STREAM for made in sockets):
        for made in sockets:
            made.close()
        raise UnsupportedError("connect: no sockets came out of the container", feature="python3 in the container", remedy="use one that works")
    return sockets
