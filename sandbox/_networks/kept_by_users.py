"""The switch of an ordinary user's kept network, which is there while somebody is in it.

Theory of operation
-------------------
Root keeps a network namespace by a mount of it. An ordinary user has nothing that keeps one but processes. So what is kept is what is written
down (subnet, gateway, allow-list, roster, leases), and of the namespace there is as much as anybody could notice: whoever is the first in the
network makes it, as it is written, and it ends with the last. Each process that is in it holds a descriptor of it, and says which, in the file
``holders``, under the lock of the network's directory: others of the same user come in by /proc/PID/fd/N, and hold it themselves from then on.
What is found there must be that namespace (its number is beside it), and the process that one (its start), so that nothing else is ever taken for it.
Each has a way outside of its own (`kept_outlet`), whose number is written down, too: what a killed one leaves of it in the switch, the next removes.

Refused: a process that holds it, as podman's pause: a daemon, which whoever ends all processes of a user's ends (systemd, with the session), and
which `kill -9` of everybody else leaves behind.
"""

from __future__ import annotations

import contextlib
import os
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final, NamedTuple

from attrs import evolve

from sandbox._networks import kept_names
from sandbox._networks.directories import is_alive
from sandbox._networks.kept_outlet import forget, number_of, wall_off
from sandbox._networks.live import Live
from sandbox._networks.switch import Switch
from sandbox._sys.fds import Fd
from sandbox._sys.procfs import read_start_time
from sandbox.errors import NetworkNotFoundError, UnsupportedError, UsageError
from sandbox.net.rtnetlink import Requests
from sandbox.net.spec import Subnets

if TYPE_CHECKING:
    from sandbox._networks.directories import Directory
    from sandbox.net.kept import NetworkInfo
    from sandbox.net.spec import NetworkSpec

_FILE: Final = "holders"
_NEXT: Final = "holders.new"
_MOST: Final = 1 << 20


class Holder(NamedTuple):
    """A process, its start, its descriptor of the namespace, and that one's number. *outlet*: that of its way outside; 0: the network is internal."""

    pid: int
    start: int
    fd: int
    inode: int
    outlet: int = 0


def user_namespace() -> int:
    """Which user namespace we are in: who is in another one has no rights over what was made here."""
    return os.stat("/proc/thread-self/ns/user").st_ino


def check(info: NetworkInfo) -> None:
    """Raises: UnsupportedError: the network is of another user namespace."""
    if info.users != user_namespace():
        raise UnsupportedError(
            f"network: {info.name!r} was made in another user namespace",
            feature="user namespace",
            remedy="use it from there, or make a network of its own here: NetworkStore(path).create(...)",
        )


def enter(info: NetworkInfo, spec: NetworkSpec, directory: Directory, stack: ExitStack) -> tuple[Switch, int]:
    """Have a helper in the switch, which is made if nobody is in it, and the number of a way outside; *stack* takes it back.

    Raises: NetworkNotFoundError, UnsupportedError, UsageError (it is damaged), SetupError.
    """
    check(info)
    number = 0
    with directory.held():
        holders = _read(directory)
        found = _open_any(info, holders)
        if found is None:
            # Each process makes a way outside of its own, later.
            switch = Live.make(evolve(spec, internal=True), Subnets(), stack, named=False).switch
            kept_names.lead(info, switch)
            if not info.internal:
                wall_off(switch, ipv6=spec.ipv6)
        else:
            with found:
                switch = Switch(found)
            stack.callback(switch.close)
            _forget(switch, [holder.outlet for holder in holders if holder.outlet and not is_alive(holder)])
        if not info.internal:
            number = number_of(directory)
        mine = Holder(os.getpid(), read_start_time(os.getpid()), switch.fileno(), os.fstat(switch.fileno()).st_ino, number)
        # Before it is closed: whoever comes then makes another one, and nobody is in this one any more.
        stack.callback(_withdraw, directory, mine)
        _write(directory, [*filter(is_alive, holders), mine])
    return switch, number


def _forget(switch: Switch, outlets: list[int]) -> None:
    if outlets:
        requests = Requests(switch.socket())
        try:
            for number in outlets:
                forget(requests, number)
        finally:
            requests.close()


def _withdraw(directory: Directory, mine: Holder) -> None:
    with contextlib.suppress(NetworkNotFoundError), directory.held():  # it was removed
        _write(directory, [holder for holder in _read(directory) if holder != mine])


def _open_any(info: NetworkInfo, holders: list[Holder]) -> Fd | None:
    """The namespace, by whoever has it; None: nobody has. The caller has the lock. Raises: UnsupportedError."""
    closed: list[int] = []
    for holder in filter(is_alive, holders):
        try:
            found = Fd(os.open(f"/proc/{holder.pid}/fd/{holder.fd}", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY))
        except (FileNotFoundError, ProcessLookupError):  # it has just ended
            continue
        except PermissionError:
            closed.append(holder.pid)
            continue
        status = os.fstat(found.fileno())
        if (status.st_dev, status.st_ino) == (os.stat("/proc/self/ns/net").st_dev, holder.inode):
            return found
        found.close()
    if closed:
        raise UnsupportedError(
            f"network: {info.name!r} is held by the process {closed[0]}, whose files in /proc are closed to this one",
            feature="/proc/PID/fd",
            remedy="have that process start as this user (by execve, which makes it dumpable), or end it",
        )
    return None


def _read(directory: Directory) -> list[Holder]:
    try:
        with open(os.open(_FILE, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory.fd), "rb") as file:
            lines = file.read(_MOST).decode("ascii").splitlines()
    except FileNotFoundError:  # nobody has been in it so far
        return []
    except ValueError:
        lines = ["damaged"]
    try:
        return [Holder(*map(int, line.split(" "))) for line in lines]
    except (ValueError, TypeError):
        raise UsageError(f"network: what is known of who holds {directory.name!r} is damaged; remove it, and make it again") from None


def _write(directory: Directory, holders: list[Holder]) -> None:
    fd = os.open(_NEXT, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=directory.fd)
    with open(fd, "w", encoding="ascii") as file:
        file.writelines(" ".join(map(str, holder)) + "\n" for holder in holders)
    os.rename(_NEXT, _FILE, src_dir_fd=directory.fd, dst_dir_fd=directory.fd)
