"""The blocking driver: starts the launcher of this process, and talks to it and to inits over channels.

Theory of operation
-------------------
One launcher per embedding process, started at the first use from a sealed memfd (nobody can change what runs), and
nobody's child: it starts itself again and its first process ends at once. A forked child of this process closes what
it inherited and starts a launcher of its own when it needs one.

A `Channel` is one end of a SOCK_SEQPACKET pair; the other end is with the launcher and the container's init. Each
datagram is one message, so threads may send to the launcher without a lock.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import os
import struct
import threading
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import TYPE_CHECKING, ClassVar, Final

from sandbox._launch import codec, wire
from sandbox._sys.fds import close_all, write_memory
from sandbox.errors import BrokenError, ClosedError, SandboxError, SetupError, UnsupportedError, raise_shortage, shortages

if TYPE_CHECKING:
    import socket

    from sandbox._launch.codec import Event

_BINARY: Final = os.path.join(os.path.dirname(__file__), "launcher")
_LAUNCHER_FD: Final = 3
_NOT_SET_UP: Final = 3  # exit code: wire.md
_MFD_EXEC: Final = 0x10  # <linux/memfd.h>, since v6.3: states that this memfd is to be executed
_F_ADD_SEALS: Final = 1033
_ALL_SEALS: Final = 0x1F  # seal, shrink, grow, write, future write
_RECEIVE: Final = 4096
_EXPECTED_FDS: Final = 16
_LEAVE_S: Final = 10.0
_MSG_PEEK, _MSG_CTRUNC, _MSG_DONTWAIT = 0x02, 0x08, 0x40  # <linux/socket.h>
_SOL_SOCKET, _SCM_RIGHTS = 1, 1  # <asm-generic/socket.h>, <linux/socket.h>: `socket` itself is imported late
LOOK_S: Final = 0.001  # how long a caller looks for an answer before it sleeps; measured: docs/design/architecture.md
LOOKS: Final = 64
MOST_PAUSE: Final = 64 * LOOKS
DEAR_S: Final = 0.00015
_ints: Final = struct.Struct("=i")  # most messages have one descriptor at most
Poll = Callable[..., list[tuple[int, int]]]  # select.poll's, in milliseconds


class Channel:
    """One conversation with an init (or, while it is being created, with the launcher). Not for two threads at once."""

    __slots__ = ("_ancillary", "_flags", "_has_slept", "_pause", "_poll", "last", "looks", "sock")
    first_looks: ClassVar[int] = 0  # what the last sleep in any channel has taught

    def __init__(self, sock: socket.socket) -> None:
        import select
        import socket as socket_module

        self.sock = sock
        self.looks = Channel.first_looks  # how many waits are to look for the answer before they sleep; below 0: how many teach nothing
        self._pause = LOOKS
        #: the last message, as it came: what an interrupt has kept somebody from taking note of
        self.last = b""
        self._has_slept = False
        self._flags = socket_module.MSG_CMSG_CLOEXEC
        self._ancillary = socket_module.CMSG_SPACE(4 * _EXPECTED_FDS)
        self._poll = select.poll()
        self._poll.register(sock.fileno(), select.POLLIN)

    @classmethod
    def pair(cls) -> tuple[Channel, int]:
        """Make a channel and the descriptor of its other end, which the caller hands over and then closes."""
        import socket as socket_module

        ours, theirs = socket_module.socketpair(socket_module.AF_UNIX, socket_module.SOCK_SEQPACKET)
        return cls(ours), theirs.detach()

    def fileno(self) -> int:
        """The descriptor, to poll for the next event."""
        return self.sock.fileno()

    def send(self, kind: wire.Msg, body: bytes, fds: Sequence[int] = ()) -> None:
        """Send one message; descriptors are copied, not consumed.

        Raises: BrokenError when the other side has gone.
        """
        try:
            send_message(self.sock, kind, body, fds)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise BrokenError("the container has ended; start another one") from error
        except OSError as error:
            if self.sock.fileno() >= 0:
                raise
            raise ClosedError("the container was closed meanwhile") from error  # by another thread

    def receive(self, timeout: float | None = None) -> tuple[Event, list[int]] | None:
        """The next event and its descriptors (the caller's to close); None when the other side has closed.

        Raises: TimeoutError after *timeout* seconds; ProtocolError for anything but a message of wire.md; SetupError (EMFILE): this process
        had no room for its descriptors.
        """
        if timeout is not None and not self._poll.poll(max(0.0, timeout * 1000)):
            raise TimeoutError
        try:
            self.last, ancillary, flags, _ = self.sock.recvmsg(_RECEIVE, self._ancillary, self._flags)
        except ConnectionResetError:
            return None
        raw = self.last
        fds = unpack_fds(ancillary) if ancillary else []
        if not raw:
            return None
        if flags & _MSG_CTRUNC and len(fds) < _EXPECTED_FDS:
            close_all(fds)
            raise_shortage(OSError(errno.EMFILE, os.strerror(errno.EMFILE)), "take the descriptors of an answer")
        try:
            event = codec.decode(raw)
        except BaseException:
            close_all(fds)
            raise
        if fds and not isinstance(event, codec.CARRIERS):
            close_all(fds)
            fds = []
        return event, fds

    def receive_alone(self, timeout: float | None = None) -> Event | None:
        """As `receive`, for who expects no descriptors: the kernel drops any that come."""
        if timeout is not None and not self._poll.poll(max(0.0, timeout * 1000)):
            raise TimeoutError
        try:
            self.last = raw = self.sock.recv(_RECEIVE)
        except ConnectionResetError:
            return None
        return codec.decode(raw) if raw else None

    def heard_end(self) -> codec.End | None:
        """The END that came last on it, if one did; clear `last` before the program is asked for."""
        event = codec.decode(self.last) if self.last else None
        return event if isinstance(event, codec.End) else None

    def wait(self, timeout: float | None) -> bool:
        """Wait at most *timeout* seconds until `receive` has something to give; whether it has, or can be left to wait by itself."""
        if timeout is None and self.looks <= 0:
            self._has_slept = True
            return True
        return bool(self.await_events(self._poll.poll, None if timeout is None else max(0.0, timeout * 1000)))

    def await_events(self, poll: Poll, timeout_ms: float | None) -> list[tuple[int, int]]:
        """What *poll*, of something that watches this channel too, has within *timeout_ms*; empty: nothing.

        Where sleep has turned out to be dear (`learn`), it looks again and again for a while before it goes to sleep.
        """
        if self.looks > 0:
            begin = perf_counter()
            while not (events := poll(0)) and perf_counter() - begin < LOOK_S:
                pass  # without sched_yield(2): who competes with us for this CPU would keep it for milliseconds
            if events:
                self._pause = LOOKS
                return events
            first, self.looks = self.looks == LOOKS, 0
            if first:  # what we wait for takes long, or needs the CPU that we kept
                self.looks = Channel.first_looks = -self._pause
                self._pause = min(2 * self._pause, MOST_PAUSE)
        self._has_slept = True
        return poll(timeout_ms)

    def learn(self, took_s: float, busy_s: float) -> None:
        """Take note that an answer took *took_s* seconds, *busy_s* of them for what init did.

        A CPU that went to sleep with us may take long to wake up (on virtual machines, longer than a short program takes). Then, and while
        answers come soon, the next waits look before they sleep; every so often one sleeps, to see what it costs by now. Where the
        first look is in vain (the kernel may leave init and its program on our CPU), none follows for a while, each time for a longer one.
        """
        if not self._has_slept:
            self.looks -= self.looks > 0
            return
        self._has_slept = False
        if self.looks < 0:
            self.looks += 1
            return
        if took_s < 2 * LOOK_S:
            is_dear = took_s - busy_s > DEAR_S and len(os.sched_getaffinity(0)) > 1
            self.looks = Channel.first_looks = LOOKS if is_dear else 0

    def has_event(self) -> bool:
        """Whether `receive` would not wait."""
        return bool(self._poll.poll(0))

    def is_writable(self) -> bool:
        """Whether `send` would not wait for the other side to read."""
        import select

        poll = select.poll()
        poll.register(self.sock.fileno(), select.POLLOUT)
        return bool(poll.poll(0))

    def close(self) -> None:
        """Close this end; a program that runs on this channel is killed, and with the first channel the container ends."""
        self.sock.close()


def unpack_fds(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    """The descriptors that came with a message."""
    fds: list[int] = []
    for _, _, data in ancillary:
        fds += memoryview(data)[: len(data) // 4 * 4].cast("i")
    return fds


def send_message(sock: socket.socket, kind: wire.Msg, body: bytes, fds: Sequence[int]) -> None:
    """One datagram; a large body goes through a sealed memfd, as the last descriptor."""
    if len(body) <= wire.INLINE:
        head = wire.HEAD.pack(kind, 0, len(body))
        if not fds:
            sock.send(head + body)
            return
        rights = _ints.pack(*fds) if len(fds) == 1 else struct.pack(f"={len(fds)}i", *fds)
        sock.sendmsg((head, body), ((_SOL_SOCKET, _SCM_RIGHTS, rights),))
        return
    memfd = os.memfd_create("sandbox-message", os.MFD_CLOEXEC)
    try:
        write_memory(memfd, body, what="send a large request")
        rights = struct.pack(f"={len(fds) + 1}i", *fds, memfd)
        sock.sendmsg((wire.HEAD.pack(kind, wire.HEAD_MEMFD, len(body)),), ((_SOL_SOCKET, _SCM_RIGHTS, rights),))
    finally:
        os.close(memfd)


class Launcher:
    """The launcher process of this process."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.pid = os.getpid()
        self._own_pid = 0
        self._lock = threading.Lock()

    @property
    def own_pid(self) -> int:
        """The launcher's own pid, which it tells once.

        Raises: BrokenError when it died before that.
        """
        with self._lock:
            if not self._own_pid:
                said = self._sock.recv(4, _MSG_PEEK)  # whoever is interrupted here can ask again
                if len(said) != 4:
                    raise BrokenError("the launcher of this process died at its start")
                self._own_pid = int.from_bytes(said, "little")
            return self._own_pid

    @classmethod
    def start(cls) -> Launcher:
        """Start it. Takes about 2 ms, once per process.

        Raises: UnsupportedError when the binary is missing or memfds may not be executed; SetupError.
        """
        import socket as socket_module

        ours, theirs = socket_module.socketpair(socket_module.AF_UNIX, socket_module.SOCK_SEQPACKET)
        try:
            binary = _sealed_binary()
            try:
                _spawn(binary, theirs.fileno())
            finally:
                os.close(binary)
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        return cls(ours)

    def create(self, body: bytes, fds: Sequence[int]) -> Channel:
        """Ask for a clone; the answers come on the returned channel. *fds* fill the slots from 1 on (copied)."""
        channel, theirs = Channel.pair()
        try:
            send_message(self._sock, wire.Msg.CREATE, body, [theirs, *fds])
        except OSError as error:
            channel.close()
            raise self._refusal("ask the launcher to create a container", error) from error
        finally:
            os.close(theirs)
        return channel

    def _refusal(self, what: str, error: OSError) -> SandboxError:
        """Words for what could not be said to the launcher; when it has died, the next container gets a new one."""
        if isinstance(error, (BrokenPipeError, ConnectionResetError)) or self._sock.fileno() < 0:  # the latter: another thread has noticed
            _forget(self)
            return BrokenError("the launcher of this process has died; its containers went with it, new ones get a new launcher")
        return SetupError(what, error.errno or 0, step="request")

    def fileno(self) -> int:
        """The descriptor of the socket; it is writable while requests do not wait for one another."""
        return self._sock.fileno()

    def complete(self, body: bytes, fds: Sequence[int]) -> None:
        """Have a prepared container completed; the answers come on its channel. *fds* fill the slots from 1 on (copied).

        Raises: BrokenError when the launcher has died.
        """
        try:
            send_message(self._sock, wire.Msg.COMPLETE, body, fds)
        except OSError as error:
            raise BrokenError("the launcher of this process has died; its containers went with it") from error

    def change_groups(self, body: bytes, deliver: int) -> None:
        """Have steps taken with a container's control groups, when there is nothing else to do; see `codec.encode_groups`.

        What they open comes to the other end of the socket *deliver* (copied).
        Nobody waits for it: a launcher that does not listen (it was stopped, say) does not hear of it.
        Raises: BrokenError when the launcher has died. ValueError: *body* is larger than a datagram.
        """
        if len(body) > wire.INLINE:
            raise ValueError(f"{len(body)} bytes of steps with control groups; {wire.INLINE} are a datagram's")
        try:
            rights = ((_SOL_SOCKET, _SCM_RIGHTS, _ints.pack(deliver)),)
            self._sock.sendmsg((wire.HEAD.pack(wire.Msg.GROUPS, 0, len(body)), body), rights, _MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError as error:
            raise BrokenError("the launcher of this process has died; its containers went with it") from error

    def finish(self, body: bytes) -> bool:
        """Have a container ended; see `codec.encode_finish`. Does not wait; False: the launcher does not listen (it was stopped, or has died)."""
        try:
            self._sock.sendmsg((wire.HEAD.pack(wire.Msg.FINISH, 0, len(body)), body), (), _MSG_DONTWAIT)
        except OSError:
            return False
        return True

    def set_cleanup(self, groups: tuple[bytes, ...], trees: tuple[bytes, ...] = ()) -> None:
        """Name the control groups, and the directories with all that is in them, to remove when this process has ended.

        Raises: BrokenError when the launcher has died; SetupError.
        """
        try:
            send_message(self._sock, wire.Msg.CLEANUP, codec.encode_paths(groups) + codec.encode_paths(trees), ())
        except OSError as error:
            raise self._refusal("tell the launcher what to remove when this process has ended", error) from error

    def close(self) -> None:
        """End it, and with it every container of this process; wait until it has removed them and has gone."""
        import socket as socket_module

        with contextlib.suppress(OSError):  # it has gone already
            self._sock.shutdown(socket_module.SHUT_WR)
            self._sock.settimeout(_LEAVE_S)
            while self._sock.recv(4):  # what it said at its start, if nobody has asked
                pass
        self.drop()

    def retire(self) -> None:
        """Close the socket as soon as nobody has this any more.

        Not at once: another thread may be about to send on it, and by then its number would be somebody else's descriptor.
        """
        import weakref

        weakref.finalize(self, self._sock.close)

    def drop(self) -> None:
        """Let go of this process's copy of the socket only: in a forked child, the launcher is still the parent's."""
        self._sock.close()


def _sealed_binary() -> int:
    """The launcher's program in a memfd that nobody can change."""
    import fcntl

    try:
        with open(_BINARY, "rb") as file:
            program = file.read()
    except OSError as error:
        raise_shortage(error, "start the launcher")
        raise UnsupportedError(
            f"the launcher is missing at {_BINARY}", feature="launcher", remedy="install the package with pip, which compiles it"
        ) from error
    fd = _executable_memfd()
    try:
        write_memory(fd, program, what="start the launcher")
        fcntl.fcntl(fd, _F_ADD_SEALS, _ALL_SEALS)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _executable_memfd() -> int:
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        return os.memfd_create("sandbox-launcher", flags | _MFD_EXEC)
    except OSError:
        return os.memfd_create("sandbox-launcher", flags)  # a kernel before 6.3 knows no MFD_EXEC, and needs none


def _spawn(binary: int, sock: int) -> None:
    """posix_spawn it with the socket as descriptor 3, and wait for its first process, which ends at once."""
    import fcntl

    # Neither may be 3 already, as in a process that has closed its standard streams: the dup2 would leave close-on-exec set on
    # the one, and replace the other.
    high = fcntl.fcntl(sock, fcntl.F_DUPFD_CLOEXEC, _LAUNCHER_FD + 1)
    try:
        program = fcntl.fcntl(binary, fcntl.F_DUPFD_CLOEXEC, _LAUNCHER_FD + 1)
    except BaseException:
        os.close(high)
        raise
    try:
        actions = [(os.POSIX_SPAWN_DUP2, high, _LAUNCHER_FD)]
        pid = os.posix_spawn(f"/proc/self/fd/{program}", ["sandbox-launcher", str(os.getpid())], {}, file_actions=actions)
    except OSError as error:
        few = error.errno == errno.EAGAIN
        hint = "a limit on processes is reached (RLIMIT_NPROC, pids.max)" if few else "/proc must be mounted, and memfds executable"
        raise SetupError("start the launcher", error.errno or 0, step="launcher", hint=hint) from error
    finally:
        os.close(high)
        os.close(program)
    try:
        _, status = os.waitpid(pid, 0)
    except ChildProcessError:
        return  # the host program ignores or reaps SIGCHLD itself; a launcher that failed shows at the first request
    if status:
        code = os.waitstatus_to_exitcode(status)
        hint = ": it could not set itself up; descriptors, memory or processes may be short" if code == _NOT_SET_UP else ""
        raise BrokenError(f"the launcher ended at once with status {code}{hint}")


_lock = threading.Lock()
_current: Launcher | None = None


def current() -> Launcher:
    """The launcher of this process, started at the first call. Safe in threads and after fork."""
    global _current
    launcher = _current
    if launcher is not None:
        return launcher
    with _lock:
        if _current is None:
            with shortages("start the launcher"):
                _current = Launcher.start()
            atexit.register(_at_exit)
        return _current


def known() -> Launcher | None:
    """The launcher of this process, if there is one."""
    return _current


def _forget(launcher: Launcher) -> None:
    """The next container gets a new launcher."""
    global _current
    with _lock:
        if _current is launcher:
            _current = None
            launcher.retire()


def shut_down() -> None:
    """End the launcher of this process, if there is one, and all its containers; a later use starts a new one."""
    global _current
    with _lock:
        if _current is not None:
            _current.close()
            _current = None
            atexit.unregister(_at_exit)


def _after_fork_in_child() -> None:
    """The launcher, the lock and the containers stay the parent's."""
    global _current, _lock
    _lock = threading.Lock()
    if _current is not None:
        _current.drop()
        _current = None


os.register_at_fork(after_in_child=_after_fork_in_child)


def _at_exit() -> None:
    """Close the socket: the launcher then ends, and the interpreter has nothing to warn of. Whoever comes after this gets a new one."""
    global _current
    found, _current = _current, None
    if found is not None and found.pid == os.getpid():
        found.drop()


def check_owner(pid: int) -> None:
    """Raise ClosedError in a forked child that uses what belongs to its parent."""
    if pid != os.getpid():
        raise ClosedError(f"it belongs to process {pid}, which forked this one; create your own here")
