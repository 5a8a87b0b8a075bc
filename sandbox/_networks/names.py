"""Names in networks, as the embedding process has them: the rosters it writes, and the name server, which it starts with the first network.

Theory of operation
-------------------
The name server is a program beside this process (`namekeeper`), below a helper of the launcher's: so it is no child of ours, and ends with us
in whatever way we end. It is one for all networks, and stays until the launcher ends. Its sockets are opened in a network's namespace
and bound to the gateway's address before it is told of them, and a container's names are written into the network's roster, which it reads:
nobody waits for it, neither when it starts nor when containers come and go. Should it have ended, the next container that
comes or goes starts another one, which is told everything again.
"""

from __future__ import annotations

import itertools
import json
import os
import select
import socket
import sys
import threading
import weakref
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import TYPE_CHECKING, Final, NamedTuple

from sandbox import _start
from sandbox._launch import codec, wire
from sandbox._launch.driver import Channel
from sandbox._networks.switch import helper_of
from sandbox._run import Spec, start_error
from sandbox._session import Session
from sandbox._spawner import start_beside
from sandbox.errors import SandboxError, SetupError, raise_shortage
from sandbox.net.openings import KNOCK_PORT
from sandbox.net.roster import Member, Writer
from sandbox.sec.compiler import compile_policy
from sandbox.sec.policy import ALLOW, Policy, fail, rule
from sandbox.sec.syscalls import Arch

if TYPE_CHECKING:
    from sandbox.net.shared_roster import SharedWriter

PORT: Final = 53
RESOLV_CONF: Final = "/etc/resolv.conf"
_CONTROL: Final = 3
_SO_BINDTOIFINDEX: Final = 62  # <asm-generic/socket.h>, Linux 5.0
_LOOPBACK: Final = 1  # the number of ``lo``, in every namespace
_BACKLOG: Final = 64
_PACKAGE: Final = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
# Without the packages' own `__init__`, which load what the name server does not need: most of the time that it would take to start.
_BOOT: Final = """
import json, sys, types
sys.path[:] = json.loads(sys.argv[1])
for name, path in json.loads(sys.argv[2]):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [path]
from sandbox._networks.namekeeper import main
main(int(sys.argv[3]), sys.argv[4])
"""
# Of the process that sees packets. Beside sockets: what the interpreter does by itself.
_CALLS: Final = """
read write close recvfrom recvmsg sendto sendmsg socket connect accept accept4 getsockname getpeername getsockopt setsockopt shutdown fcntl ioctl
epoll_wait epoll_pwait epoll_ctl poll ppoll pread64 fstat newfstatat lseek getrandom clock_gettime clock_nanosleep gettimeofday nanosleep time
brk mmap munmap mremap madvise mprotect futex rt_sigaction rt_sigprocmask rt_sigreturn sigaltstack sched_yield getpid gettid exit exit_group
restart_syscall
"""
_EPERM: Final = 1
_PATIENCE_S: Final = 5.0  # with a name server that does not take what it is told
_numbers: Final = itertools.count(1)


class NetworkNames:
    """The names of one network, from its making to its end. Thread-safe.

    sockets: UDP and TCP, of IPv4, opened inside the network's namespace, and this object's from now on; a third one, of UDP, is to knock by
    (`sandbox.net.allow_rules`). interface: the number of the one
    that its containers are behind; others are not heard. The rest is as `sandbox.net.roster.Writer` has it.
    Raises: SetupError.
    """

    def __init__(
        self,
        name: str,
        subnets: Iterable[str],
        sockets: Sequence[int],
        gateway: str,
        interface: int,
        *,
        forwards: bool,
        servers: Iterable[str] = (),
        only: Mapping[str, int] | None = None,
    ) -> None:
        found = [socket.socket(fileno=fd) for fd in sockets]
        try:
            listen(found[:2], gateway, interface, PORT)
            for sock in found[2:]:
                be_heard_knocking(sock)
            roster = Writer(name, subnets, forwards=forwards, servers=servers, only=only)
        except BaseException:
            for sock in found:
                sock.close()
            raise
        self._begin(found, roster)

    def _begin(self, sockets: list[socket.socket], roster: Writer | SharedWriter) -> None:
        """Have the server answer there; all of it is this object's from now on."""
        self._sockets, self._roster = sockets, roster
        self._lock = threading.Lock()
        self._number = next(_numbers)
        self._is_open = True
        try:
            _server.add(self._number, self)
        except BaseException:
            self.close()
            raise

    @property
    def fds(self) -> list[int]:
        """What the name server has of it: they stay this object's."""
        return [self._roster.fd, *(sock.fileno() for sock in self._sockets)]

    def join(self, member: Member) -> None:
        """A container came, or has other names from now on."""
        with self._lock:
            if self._is_open:
                self._roster.join(member)
        _server.check()

    def leave(self, key: str) -> None:
        """A container went."""
        with self._lock:
            if self._is_open:
                self._roster.leave(key)

    def close(self) -> None:
        """Nobody is answered any more."""
        with self._lock:
            was_open, self._is_open = self._is_open, False
        if was_open:
            _server.drop(self._number)
            self.abandon()

    def abandon(self) -> None:
        """Close this process's copies."""
        self._is_open = False
        for sock in self._sockets:
            sock.close()
        self._roster.close()


def listen(sockets: Iterable[socket.socket], gateway: str, interface: int, port: int) -> None:
    """Have sockets, of UDP or TCP, hear what comes to *gateway* by that interface; port 0: one of the kernel's choice. Raises: SetupError."""
    try:
        for sock in sockets:
            if sock.type == socket.SOCK_STREAM:  # of UDP it would share a port with whoever says so, too
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.setsockopt(socket.SOL_SOCKET, _SO_BINDTOIFINDEX, interface)
            sock.bind((gateway, port))
            if sock.type == socket.SOCK_STREAM:
                sock.listen(_BACKLOG)
    except OSError as error:
        raise SetupError(f"listen for names at {gateway}", error.errno or 0, step="network") from error


def be_heard_knocking(sock: socket.socket) -> None:
    """Have what a socket of UDP sends be read as knocks where it was made. Raises: SetupError."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_BINDTOIFINDEX, _LOOPBACK)
        sock.connect(("127.0.0.1", KNOCK_PORT))
    except OSError as error:
        raise SetupError("have addresses of names opened", error.errno or 0, step="network") from error


class _Running(NamedTuple):
    session: Session
    channel: Channel  # on which its end would be told
    spec: Spec
    control: socket.socket

    @property
    def has_ended(self) -> bool:
        """Whether its end of the control socket is closed."""
        poll = select.poll()
        poll.register(self.control.fileno(), 0)
        return bool(poll.poll(0)) or not self.session.is_alive


class NameServer:
    """The program of this process. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # Weak: one that nobody has closed goes with its owner, and its descriptors with it.
        self._networks: weakref.WeakValueDictionary[int, NetworkNames] = weakref.WeakValueDictionary()
        self._told: set[int] = set()
        self._running: _Running | None = None

    @property
    def pid(self) -> int | None:
        """Of the init above it, as this process sees it; None: it does not run."""
        running = self._running
        return None if running is None else running.session.pid

    def add(self, number: int, names: NetworkNames) -> None:
        """A network came. Raises: SetupError: the server does not start."""
        with self._lock:
            self._networks[number] = names
            self._tell()

    def drop(self, number: int) -> None:
        """A network went."""
        with self._lock:
            self._networks.pop(number, None)
            if self._running is not None and not self._running.has_ended:
                self._tell()

    def check(self) -> None:
        """Start it anew if it has ended. Raises: as `add`."""
        with self._lock:
            if not self._networks:
                return
            # What came was told at once: where there are as many, they are the same.
            if self._running is None or len(self._networks) != len(self._told) or self._running.has_ended:
                self._tell()

    def _tell(self) -> None:
        """Have it know of those networks that there are, and no others."""
        if self._running is None or self._running.has_ended:
            self._restart()
        there = dict(self._networks)  # kept meanwhile
        if there.keys() == self._told:
            return
        for number in self._told - there.keys():
            self._told.discard(number)
            self._send(b"D", number, [])
        for number in there.keys() - self._told:
            self._send(b"A", number, there[number].fds)
            self._told.add(number)

    def _restart(self) -> None:
        self._stop()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            ours.settimeout(_PATIENCE_S)
            argv = tuple(map(os.fsencode, (*_command(), str(_CONTROL), RESOLV_CONF)))
            session, channel, spec = start_beside(helper_of(()), argv, {_CONTROL: theirs.fileno()})
        except OSError as error:
            ours.close()
            raise_shortage(error, "start the name server of networks")
            raise
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        self._running = _Running(session, channel, spec, ours)
        self._send(b"F", 0, [], _filter())

    def _send(self, kind: bytes, number: int, fds: list[int], more: bytes = b"") -> None:
        assert self._running is not None  # noqa: S101 - the caller has looked
        running = self._running
        try:
            socket.send_fds(running.control, [kind + number.to_bytes(8, "little") + more], fds)
        except OSError as error:  # it has ended just now, or does not listen: the next call starts another one
            why = _why(running)
            self._stop()
            raise why or SetupError("speak with the name server of networks", error.errno or 0, step="network") from error

    def _stop(self) -> None:
        self._told = set()
        running, self._running = self._running, None
        if running is not None:
            running.control.close()
            running.channel.close()
            with suppress(SandboxError):
                running.session.close()

    def close(self) -> None:
        """End it; the next network starts another one."""
        with self._lock:
            self._stop()

    def abandon(self) -> None:
        """In a forked child: let go of the parent's."""
        self._lock = threading.Lock()
        self._networks, self._told = weakref.WeakValueDictionary(), set()
        running, self._running = self._running, None
        if running is not None:
            running.control.close()
            running.channel.close()
            with suppress(SandboxError):
                running.session.abandon()


def _why(running: _Running) -> Exception | None:
    """Why it has not started, if it has not."""
    with suppress(SandboxError, OSError, TimeoutError, ValueError):
        while got := running.channel.receive(0):
            if isinstance(got[0], codec.End) and got[0].cause == wire.Cause.NOT_STARTED:
                return start_error(running.spec, got[0].status, got[0].detail)
    return None


def _command() -> tuple[str, ...]:
    name = os.path.basename(sys.executable or "")
    # Where Python is embedded, its executable is another program.
    python = sys.executable if name.startswith("python") else f"{sys.base_prefix}/bin/python3"
    path = [entry for entry in sys.path if os.path.isabs(entry)]
    packages = [("sandbox", _PACKAGE), ("sandbox.net", f"{_PACKAGE}/net")]
    return python, "-I", "-S", "-c", _BOOT, json.dumps(path), json.dumps(packages)


@lru_cache(maxsize=1)
def _filter() -> bytes:
    return compile_policy(Policy((rule(_CALLS, ALLOW),), fail(_EPERM)), Arch.here())


_server: Final = NameServer()
_start.at_shut_down.append(_server.close)
os.register_at_fork(after_in_child=_server.abandon)
