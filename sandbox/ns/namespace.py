"""`Namespace`: one namespace, held open by a descriptor; and the list of those of a process, as /proc/PID/ns shows it."""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from contextlib import ExitStack
from errno import EINVAL, EIO, ENOTTY, EPERM
from typing import TYPE_CHECKING, Final, Self

from attrs import define, field

from sandbox._sys import calls
from sandbox._sys import constants as sys
from sandbox._sys.fds import Fd
from sandbox.errors import SetupError, UnsupportedError, UsageError, raise_shortage
from sandbox.ns._handle import Handle

if TYPE_CHECKING:
    from sandbox.ns.entry import Entered

__all__ = ["FLAGS", "KINDS", "NETNS", "Namespace", "file_of", "list_namespaces"]

FLAGS: Final[Mapping[str, int]] = {
    "cgroup": sys.CLONE_NEWCGROUP,
    "ipc": sys.CLONE_NEWIPC,
    "mount": sys.CLONE_NEWNS,
    "net": sys.CLONE_NEWNET,
    "pid": sys.CLONE_NEWPID,
    "time": sys.CLONE_NEWTIME,
    "user": sys.CLONE_NEWUSER,
    "uts": sys.CLONE_NEWUTS,
}
KINDS: Final = tuple(FLAGS)
NETNS: Final = "/run/netns"  # NETNS_RUN_DIR of iproute2, which says /var/run/netns; /var/run is a link to /run
_KIND_OF_FLAG: Final = {flag: kind for kind, flag in FLAGS.items()}
_FILES: Final = {**{kind: kind for kind in KINDS}, "mount": "mnt", "mnt": "mnt"} | {name: name for name in ("pid_for_children", "time_for_children")}
_CLOSED: Final = (
    "it takes ptrace rights over the process: the same user, if it is dumpable, or root; of a container of yours "
    "Container.namespaces() and Container.namespace(kind) tell without"
)
_ID: Final = struct.Struct("=I")


@define(eq=False, repr=False)
class Namespace(Handle):
    """A namespace that lives at least as long as this handle is open: until `close`, the end of ``with``, or nobody refers to it.

    Equal to another handle of the same namespace. Belongs to no thread: use it from any.
    """

    kind: str
    id: int  # the inode number that /proc/PID/ns shows: net:[4026531840]
    _device: int
    _fd: Fd = field(alias="fd")

    @classmethod
    def adopt(cls, fd: int) -> Self:
        """Take over *fd*, an open /proc/PID/ns file; it is closed when it is none.

        Raises: UsageError for a descriptor of anything else.
        """
        with ExitStack() as stack:
            owned = stack.enter_context(Fd(fd))
            kind = _kind_of(owned.fileno())
            found = os.fstat(owned.fileno())
            stack.pop_all()
            return cls(kind, found.st_ino, found.st_dev, owned)
        raise AssertionError("unreachable")

    @classmethod
    def of(cls, pid: int, kind: str) -> Self:
        """Open the namespace of *kind* that process *pid* (a number in our pid namespace) is in.

        *kind* is one of `KINDS`, or ``pid_for_children``, ``time_for_children``: those that the process's next children get.

        Raises: UsageError: no such kind, no such process; UnsupportedError: the kernel has no such namespaces;
            SetupError: EACCES without ptrace rights over the process.
        """
        name = file_of(kind)
        with Fd(open_process(pid)) as held:
            pidfd = held.fileno()
            try:
                fd = _open_of(pid, name)
            except SetupError:  # of one that has just ended, the kernel says EACCES too
                _check_alive(pidfd, pid)
                raise
            try:
                # The process is still there, so its number was not given to another one while we opened.
                _check_alive(pidfd, pid)
            except BaseException:
                os.close(fd)
                raise
        return cls.adopt(fd)

    @classmethod
    def own(cls, kind: str) -> Self:
        """Open the namespace of *kind* that the calling process itself is in."""
        return cls.of(os.getpid(), kind)

    @classmethod
    def named(cls, kind: str, name: str) -> Self:
        """Open the network namespace that was kept as *name* (by `keep`, or ``ip netns add``).

        Raises: UsageError for another kind, a name that cannot be one, or an unknown name.
        """
        path = named_path(kind, name)
        try:
            fd = os.open(path, os.O_RDONLY | sys.O_NOFOLLOW)
        except FileNotFoundError:
            raise UsageError(f"name: no network namespace is kept as {name!r}; `ip netns list` shows those that are") from None
        except OSError as error:
            raise SetupError(f"open {path}", error.errno or 0) from error
        try:
            return cls.adopt(fd)
        except UsageError:
            raise UsageError(f"name: {path} is a leftover, not a namespace; remove it with forget({name!r})") from None

    @classmethod
    def create(cls, kind: str) -> Self:
        """Make a new namespace of *kind* with nobody in it. It ends with its last handle, name and process.

        A new network namespace has its loopback up. A helper of the launcher makes it; the calling process stays where it is.

        Raises: UsageError: pid namespaces cannot be made ahead: without a first process nothing can run in them.
        """
        from sandbox.ns.entry import create

        return create(kind, cls.adopt)

    def enter(self) -> Entered:
        """Get a handle that runs programs inside this namespace, in children of the launcher; the caller stays where it is."""
        from sandbox.ns.entry import enter

        return enter(self)

    def fileno(self) -> int:
        """The descriptor; it stays this handle's. Raises: ClosedError."""
        return self._fd.fileno()

    @property
    def closed(self) -> bool:
        return self._fd.closed

    def user(self) -> Namespace | None:
        """The user namespace that owns this one; None when it lies outside our own and is hidden from us."""
        return self._related(sys.NS_GET_USERNS)

    def parent(self) -> Namespace | None:
        """The namespace around this one (kinds user and pid); None when it is the first, or outside our own and hidden from us.

        Raises: UsageError for the other kinds, which do not nest.
        """
        if self.kind not in ("user", "pid"):
            raise UsageError(f"parent: namespaces of kind {self.kind!r} do not nest; only user and pid do")
        return self._related(sys.NS_GET_PARENT)

    def owner_uid(self) -> int | None:
        """Who made the user namespace that owns this one (for kind user: this one), as a uid of ours; None when it is hidden from us."""
        if self.kind != "user":
            owner = self.user()
            if owner is None:
                return None
            with owner:
                return owner.owner_uid()
        from fcntl import ioctl

        return int(_ID.unpack(ioctl(self.fileno(), sys.NS_GET_OWNER_UID, _ID.pack(0)))[0])

    def _related(self, request: int) -> Namespace | None:
        from fcntl import ioctl

        try:
            return Namespace.adopt(ioctl(self.fileno(), request))
        except OSError as error:
            if error.errno == EPERM:  # ioctl_ns(2): outside the caller's namespaces, or there is none
                return None
            raise

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Namespace) and (self._device, self.id) == (other._device, other.id)

    def __hash__(self) -> int:
        return hash((self._device, self.id))

    def __repr__(self) -> str:
        return f"<Namespace {self.kind}:[{self.id}]{' closed' if self.closed else ''}>"


def list_namespaces(pid: int | None = None) -> Mapping[str, int]:
    """The namespaces of a process (None: of the caller) as /proc/PID/ns lists them: ``mnt``, ``net``, ``pid_for_children``... to their ids.

    Raises: UsageError when there is no such process; SetupError: EACCES without ptrace rights over it.
    """
    folder = f"/proc/{'self' if pid is None else pid}/ns"
    try:
        links = {name: os.readlink(f"{folder}/{name}") for name in sorted(os.listdir(folder))}
    except (FileNotFoundError, ProcessLookupError):
        raise UsageError(f"pid: there is no process {pid!r} (or only its zombie)") from None
    except OSError as error:
        raise SetupError(f"read {folder}", error.errno or 0, hint=_CLOSED) from error
    return {name: int(link.partition("[")[2].rstrip("]")) for name, link in links.items()}


def named_path(kind: str, name: str) -> str:
    """The file that keeps a network namespace under *name*, for iproute2 as well.

    Raises: UsageError for another kind, and for a name that would leave the directory.
    """
    if kind != "net":
        raise UsageError(f"kind: {kind!r} namespaces have no common place for names; only 'net' has (/run/netns)")
    if not isinstance(name, str) or not name or name in (".", "..") or "/" in name or "\0" in name or len(os.fsencode(name)) > 255:
        raise UsageError(f"name: {name!r} is not a file name")
    return f"{NETNS}/{name}"


def file_of(kind: str) -> str:
    """The name of *kind* in /proc/PID/ns. Raises: UsageError: there is no such kind."""
    if kind not in _FILES:
        raise UsageError(f"kind: {kind!r} is none of {', '.join(KINDS)}")
    return _FILES[kind]


def open_process(pid: int) -> int:
    """A pidfd, the caller's. Raises: UsageError: there is no such process; SetupError: no descriptor is to be had, say."""
    try:
        return calls.pidfd_open(pid)
    except (ProcessLookupError, TypeError, OverflowError) as error:
        raise UsageError(f"pid: there is no process {pid!r}") from error
    except OSError as error:
        if pid <= 0:
            raise UsageError(f"pid: there is no process {pid!r}") from error
        raise_shortage(error, f"open process {pid}")
        raise SetupError(f"open process {pid}", error.errno or EIO) from error


def _open_of(pid: int, name: str) -> int:
    path = f"/proc/{pid}/ns/{name}"
    try:
        return os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        if not os.path.lexists(f"/proc/self/ns/{name}"):
            raise UnsupportedError(f"no {name} namespaces", feature=f"{name} namespaces", remedy="use a kernel that has them") from None
        # Also for *_for_children of a pid namespace whose first process has not been started.
        raise UsageError(f"pid: process {pid} has no {name} namespace to open (it has ended)") from None
    except ProcessLookupError:
        raise UsageError(f"pid: process {pid} has ended") from None
    except OSError as error:
        raise SetupError(f"open {path}", error.errno or 0, hint=_CLOSED) from error


def _check_alive(pidfd: int, pid: int) -> None:
    try:
        calls.pidfd_send_signal(pidfd, 0)
    except ProcessLookupError:
        raise UsageError(f"pid: process {pid} has ended") from None
    except PermissionError:
        return  # alive, and not ours


def _kind_of(fd: int) -> str:
    from fcntl import ioctl

    try:
        flag = ioctl(fd, sys.NS_GET_NSTYPE)
    except OSError as error:
        if error.errno in (ENOTTY, EINVAL, EPERM):
            raise UsageError("this descriptor is not a namespace's") from error
        raise
    if flag not in _KIND_OF_FLAG:
        raise UnsupportedError(f"a kind of namespace that is not known here ({flag:#x})", feature="namespaces", remedy="use a newer release")
    return _KIND_OF_FLAG[flag]
