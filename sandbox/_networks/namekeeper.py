"""The program that the name server is: a keeper, which sees no packet, and its child, which sees nothing else.

Theory of operation
-------------------
The keeper gets networks over its first descriptor: a byte that says what, eight that number the network, and with ``A`` its descriptors
(see `nameserver`). ``F`` comes first, once: the filter of system calls for the child. When that descriptor ends, everything does.

The child answers. It has been forked with all networks there are; what comes and goes later is passed on. Before the first packet it
has given away what it does not need: the caller's user and rights, new processes, files, all system calls but those on sockets. When
it ends, in whatever way, the keeper forks another one, which finds sockets (with the queries that wait in them) and rosters as they
were. It asks the keeper (``?``) whom the host asks, whenever that matters: it could not read resolv.conf(5) itself.
"""

from __future__ import annotations

import contextlib
import os
import resource
import select
import socket
import time
from typing import Final, NoReturn

from sandbox._networks.nameserver import Server
from sandbox._sys import calls
from sandbox._sys.constants import PR_SET_NO_NEW_PRIVS
from sandbox.net.dns import servers_in

_MOST_MESSAGE: Final = 1 << 16
_MOST_FDS: Final = 5  # of a message
_NOBODY: Final = 65534
_MOST_FILE: Final = 1 << 16
_MOST_MEMORY: Final = 512 << 20
_PAUSE_S: Final = 0.5  # between two children, if the first one has not lived longer than that
_READ: Final = select.EPOLLIN


class Keeper:
    """The process that is left when the child is not."""

    def __init__(self, control: socket.socket, resolv_conf: str) -> None:
        self._control, self._resolv_conf = control, resolv_conf
        self._networks: dict[int, list[int]] = {}
        self._filter = b""
        self._child: socket.socket | None = None
        self._pid = 0
        self._born = -_PAUSE_S

    def run(self) -> None:
        """Until the control socket ends."""
        while self._take():
            while self._filter:
                if self._child is None:
                    time.sleep(max(0.0, self._born + _PAUSE_S - time.monotonic()))
                    self._fork()
                poll = select.poll()
                for sock in filter(None, (self._control, self._child)):
                    poll.register(sock.fileno(), select.POLLIN)
                ready = dict(poll.poll())
                if self._child is not None and self._child.fileno() in ready:
                    self._hear()
                if self._control.fileno() in ready:
                    break

    def _take(self) -> bool:
        """One message of the embedding process; False: it has ended."""
        message, fds, _, _ = socket.recv_fds(self._control, _MOST_MESSAGE, _MOST_FDS)
        kind, number = message[:1], int.from_bytes(message[1:9], "little")
        if kind == b"F":
            self._filter = message[9:]
        elif kind == b"A":
            self._drop(number)
            self._networks[number] = fds
            self._tell(message, fds)
        elif kind == b"D":
            self._drop(number)
            self._tell(message, [])
        return bool(message)

    def _drop(self, number: int) -> None:
        for fd in self._networks.pop(number, ()):
            os.close(fd)

    def _tell(self, message: bytes, fds: list[int]) -> None:
        if self._child is not None:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the next child has it from the start
                socket.send_fds(self._child, [message], fds)

    def _hear(self) -> None:
        """The child asks, or has ended."""
        assert self._child is not None  # noqa: S101 - the caller has looked
        try:
            asks = self._child.recv(1)
        except ConnectionResetError:
            asks = b""
        if asks:
            self._tell(b"R" + bytes(8) + " ".join(self._servers()).encode(), [])
            return
        self._child.close()
        self._child = None
        os.waitpid(self._pid, 0)

    def _servers(self) -> tuple[str, ...]:
        try:
            fd = os.open(self._resolv_conf, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:  # the host asks nobody
            return ()
        try:
            return servers_in(os.read(fd, _MOST_FILE).decode("ascii", "replace"))
        except OSError:
            return ()
        finally:
            os.close(fd)

    def _fork(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._born = time.monotonic()
        self._pid = os.fork()
        if not self._pid:
            try:
                ours.close()
                self._control.close()
                serve(theirs, self._networks, self._filter)
            finally:
                os._exit(1)
        theirs.close()
        self._child = ours


def serve(keeper: socket.socket, networks: dict[int, list[int]], program: bytes) -> NoReturn:
    """Be the child."""
    server = Server(lambda: keeper.send(b"?"))
    for number, fds in networks.items():
        server.add(number, fds)

    def on_keeper(_: int) -> None:
        message, fds, _, _ = socket.recv_fds(keeper, _MOST_MESSAGE, _MOST_FDS)
        kind, number = message[:1], int.from_bytes(message[1:9], "little")
        if kind == b"A":
            server.add(number, fds)
        elif kind == b"D":
            server.drop(number)
        elif kind == b"R":
            server.set_host_servers(tuple(message[9:].decode().split()))
        else:
            os._exit(0)

    server.loop.watch(keeper.fileno(), _READ, on_keeper)
    give_up_rights(program)
    while True:
        server.loop.turn()


def give_up_rights(program: bytes) -> None:
    """For good. *program*: the filter."""
    for limit, value in (
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_AS, _MOST_MEMORY),
    ):
        resource.setrlimit(limit, (value, value))
    calls.prctl(PR_SET_NO_NEW_PRIVS, 1)  # first: it loads what may lie where nobody can read (a Python below /root)
    if _has_all_ids():
        os.setgroups([])
        os.setresgid(_NOBODY, _NOBODY, _NOBODY)
        os.setresuid(_NOBODY, _NOBODY, _NOBODY)  # and with it all capabilities
    calls.seccomp_set_filter(program)


def _has_all_ids() -> bool:
    """Whether this is root, and not an ordinary user, who is nobody but itself in a user namespace of its own."""
    with open("/proc/self/uid_map", encoding="ascii") as file:
        return os.geteuid() == 0 and int(file.read().split()[2]) > _NOBODY


def main(control: int, resolv_conf: str) -> NoReturn:
    """Be the keeper."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with contextlib.suppress(OSError), open("/proc/self/comm", "w", encoding="ascii") as file:  # for who looks at the list of processes
        file.write("sandbox-names")
    Keeper(socket.socket(fileno=control), resolv_conf).run()
    os._exit(0)
