"""Waiting for a keeper's answers, for as long as it lives and can give some; and ending one that cannot.

Theory of operation
-------------------
Some answers take as long as a program runs, so a time alone says nothing. Who has waited for a while looks whether the keeper was stopped
(SIGSTOP), and otherwise asks it a second time, on a connection of its own, for nothing (``ping``): what is not answered at all within ANSWER_S comes
from a keeper that is frozen or hangs. From then on every command says so instead of waiting, and a removal by force kills the keeper, by a
descriptor of it; its launcher's janitor removes the container, as whenever a keeper dies. Looking costs the more seldom the longer an answer takes.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import socket
import struct
import time
from collections.abc import Callable
from typing import Any, Final

from attrs import define

from sandbox import BrokenError
from sandbox.keep._store import LOCK, Place
from sandbox.keep._wire import MAX_MESSAGE, decode, encode, request

CONNECT_S: Final = 10
FIRST_LOOK_S: Final = 2.0
LOOKS_S: Final = 60.0  # the longest time between two
ANSWER_S: Final = 10.0
LEAVING_S: Final = 1.0
END_S: Final = 10.0  # for a keeper that was killed; what it has in memory is to be freed
_TIMEVAL: Final = struct.Struct("@ll")
_CREDENTIALS: Final = struct.Struct("iII")


def connect(place: Place) -> socket.socket:
    """A connection to the keeper of the container in *place*. Raises: BrokenError: it has ended, or takes none."""
    client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _TIMEVAL.pack(CONNECT_S, 0))
        client.connect(place.address)
    except (ConnectionRefusedError, FileNotFoundError, BlockingIOError) as error:
        client.close()
        if isinstance(error, BlockingIOError):
            raise _silent(place.id, None) from None
        raise BrokenError(f"container {place.id[:12]}: its keeper has ended; remove the container") from None
    except BaseException:
        client.close()
        raise
    return client


@define
class Line:
    """A connection to a keeper, and how to make another one."""

    client: socket.socket
    again: Callable[[], socket.socket]
    ident: str

    def receive(self, most_fds: int = 0) -> tuple[dict[str, Any] | None, list[int]]:
        """The next message, and the descriptors with it; None: the connection has ended. Raises: BrokenError: the keeper answers nothing any more."""
        self._wait()
        try:
            raw, fds, _, _ = socket.recv_fds(self.client, MAX_MESSAGE + 1, most_fds, socket.MSG_CMSG_CLOEXEC)
        except ConnectionResetError:
            raw, fds = b"", []
        return (decode(raw) if raw else None), fds

    def _wait(self) -> None:
        pause = FIRST_LOOK_S
        while not is_readable(self.client, pause):
            self.check()
            pause = min(pause * 2, LOOKS_S)

    def check(self) -> None:
        """Ask whether it is there. Raises: BrokenError: it is not, and has said nothing."""
        pid = keeper_of(self.client)
        if not self._answers(pid) and not is_readable(self.client, 0.0):
            raise _silent(self.ident, pid)

    def _answers(self, pid: int) -> bool:
        """Whether the keeper says anything; that it closes the connection, as it has too many, is an answer, too."""
        if is_stopped(pid):
            return False
        try:
            with self.again() as client:
                client.send(encode(request("ping")), socket.MSG_NOSIGNAL)
                return is_readable(client, ANSWER_S)
        except BrokenError:
            return not keeper_lives(pid)  # then our own connection ends, too
        except OSError:
            return True


def keeper_of(client: socket.socket) -> int:
    """The process that listens at the other end, as this one's namespace calls it (0: not at all)."""
    return int(_CREDENTIALS.unpack(client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))[0])


def keeper_lives(pid: int) -> bool:
    """Whether there is such a process."""
    return pid > 0 and os.path.exists(f"/proc/{pid}")


def is_stopped(pid: int) -> bool:
    """Whether somebody has stopped it by a signal."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[:1] == [b"T"]
    except OSError:
        return False


def is_readable(client: socket.socket | int, timeout: float) -> bool:
    """Whether something comes, or the end."""
    poll = select.poll()
    poll.register(client, select.POLLIN)
    return bool(poll.poll(timeout * 1000))


def end_keeper(place: Place) -> None:
    """Kill the keeper of the container in *place*, if it lives, and wait for its end. Raises: BrokenError: it cannot be killed."""
    pid = _pid_of_keeper(place)
    fd = _opened(pid)
    if fd >= 0:
        try:
            if not place.is_kept:  # it has ended before we had the descriptor, which may be another process's
                return
            with contextlib.suppress(OSError):
                os.killpg(pid, signal.SIGCONT)  # its launcher, if all were stopped: that is to remove the container
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(fd, signal.SIGKILL)
            is_readable(fd, END_S)
        finally:
            os.close(fd)
    end = time.monotonic() + LEAVING_S  # who is on his way out has no files any more, and yet the lock for a moment
    while place.is_kept and time.monotonic() < end:
        time.sleep(0.002)
    if place.is_kept:
        raise BrokenError(f"container {place.id[:12]}: its keeper cannot be killed; is it in uninterruptible sleep, or in another pid namespace?")


def _opened(pid: int) -> int:
    """A descriptor of a process; -1: there is none."""
    try:
        return os.pidfd_open(pid) if pid > 0 else -1
    except OSError as error:
        if error.errno not in (errno.ESRCH, errno.EINVAL):  # EINVAL: before Linux 6.16, when others are left in the group that it led
            raise
        return -1


def _pid_of_keeper(place: Place) -> int:
    try:
        with connect(place) as client:
            return keeper_of(client)
    except BrokenError:  # it takes no more connections
        return _who_has_the_lock(place)


def _who_has_the_lock(place: Place) -> int:
    """The keeper by what is written down, which is its own number for itself: where it is in another pid namespace, an innocent one's (then 0)."""
    pid = place.config().keeper
    with contextlib.suppress(OSError):
        lock = os.stat(LOCK, dir_fd=place.fd, follow_symlinks=False)
        for fd in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.stat(f"/proc/{pid}/fd/{fd}"), lock):
                    return pid
    return 0


def _silent(ident: str, pid: int | None) -> BrokenError:
    who = f"its keeper (pid {pid})" if pid else "its keeper"
    what = "is stopped; let it go on (kill -CONT), or" if pid and is_stopped(pid) else "does not answer;"
    return BrokenError(f"container {ident[:12]}: {who} {what} remove the container by force (rm -f)")
