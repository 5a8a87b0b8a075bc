"""Where kept networks are written down: a directory each, and the locks on them. See `store` for what stands in one.

Locks are flock(2)'s on the directory itself, by a descriptor of the moment, so that threads exclude one another as processes do, and so that they
end with their owner. Whoever lets go says LOCK_UN, which counts for all copies: one may be in a child that was forked by another thread a moment
ago. Such a child closes its own.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Generator
from ipaddress import IPv4Network
from typing import Final, Protocol, Self

from attrs import frozen

from sandbox import _plan as plan
from sandbox._launch import wire
from sandbox._spawner import start_helper
from sandbox._sys.constants import CLONE_NEWPID
from sandbox._sys.fds import Fd
from sandbox._sys.procfs import parse_stat, read_text
from sandbox.errors import NetworkNotFoundError, UnsupportedError, UsageError
from sandbox.net.kept import MAX_DOCUMENT, MAX_STATE, NetworkInfo, State, decode_info, decode_state, encode_state

NEW: Final = ".new-"
GONE: Final = ".gone-"
DOCUMENT: Final = "network.json"
NAMESPACE: Final = "namespace"
_STATE: Final = "state.json"
_NEXT_STATE: Final = "state.new"
_SYSTEM_STORE: Final = "/run/sandbox/networks"
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
_held = set[int]()


def default_store() -> str:
    """Return where kept networks are: $SANDBOX_NETWORKS, or /run/sandbox/networks for root, else below $XDG_RUNTIME_DIR. Raises: UsageError."""
    told = os.environ.get("SANDBOX_NETWORKS", "")
    if told and not told.startswith("/"):
        raise UsageError(f"SANDBOX_NETWORKS: {told!r} is relative; give an absolute path")
    if told:
        return told
    if os.geteuid() == 0:
        return _SYSTEM_STORE
    return f"{os.environ.get('XDG_RUNTIME_DIR') or f'/run/user/{os.geteuid()}'}/sandbox/networks"


def names(store: int) -> list[str]:
    """The networks of an open store, sorted."""
    return sorted(name for name in os.listdir(store) if not name.startswith("."))


def subnets(store: int, path: str) -> dict[str, IPv4Network]:
    """The subnets of the networks of the store at *path*, by their names."""
    found: dict[str, IPv4Network] = {}
    for name in names(store):
        with contextlib.suppress(UsageError), Directory.open(store, path, name) as directory:  # damaged, or just removed: nobody can join it
            found[name] = IPv4Network(directory.info().subnet)
    return found


def kept_subnets() -> list[IPv4Network]:
    """Those of the default store."""
    path = default_store()
    try:
        store = open_store(path, make=False)
    except (OSError, UsageError):  # there is none, or it is none of ours
        return []
    try:
        return [*subnets(store, path).values()]
    finally:
        os.close(store)


@contextlib.contextmanager
def locked(directory: int) -> Generator[None]:
    """Hold the lock of a directory, for moments."""
    fd = os.open(".", _DIRECTORY, dir_fd=directory)
    _held.add(fd)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        _held.discard(fd)
        try:
            fcntl.flock(fd, fcntl.LOCK_UN)
        finally:
            os.close(fd)


def open_store(path: str, *, make: bool) -> int:
    """Open the directory of a store. Raises: FileNotFoundError; UsageError: others can look into it."""
    if make:
        try:
            os.makedirs(os.path.dirname(path) or "/", mode=0o700, exist_ok=True)
            with contextlib.suppress(FileExistsError):
                os.mkdir(path, 0o700)
        except OSError as error:  # most often: the directory above is another user's, or read-only
            words = f"network store: {path}: {error.strerror}; log in so that there is an XDG_RUNTIME_DIR, or set SANDBOX_NETWORKS"
            raise UsageError(words) from error
    store = os.open(path, _DIRECTORY)
    status = os.fstat(store)
    if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o077:
        os.close(store)
        raise UsageError(f"network store: {path!r} is open to other users; make it yours alone (chown, chmod 0700)")
    return store


@frozen
class Directory:
    """The directory of one kept network, open; *path* is its own. Closed with ``with``."""

    name: str
    path: str
    fd: int

    @classmethod
    def open(cls, store: int, path: str, name: str) -> Directory:
        """Open that of the network *name* of the store at *path*. Raises: NetworkNotFoundError."""
        try:
            return cls(name, f"{path}/{name}", os.open(name, _DIRECTORY, dir_fd=store))
        except (FileNotFoundError, NotADirectoryError):
            raise not_found(name, path) from None
        except OSError as error:
            raise UsageError(f"network: {path}/{name} is no network ({error.strerror}); remove it") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self.fd)

    def info(self) -> NetworkInfo:
        """What it is. Raises: NetworkNotFoundError: it has just gone; UsageError: it is damaged."""
        try:
            return decode_info(_read(self.fd, DOCUMENT, MAX_DOCUMENT))
        except FileNotFoundError:
            raise not_found(self.name, os.path.dirname(self.path)) from None
        except (OSError, ValueError) as error:
            raise UsageError(f"network: the document of {self.name!r} is damaged ({error}); remove it with force") from error

    def state(self) -> State:
        """Who is in it, without those that have ended. Raises: as `info`."""
        return self.written_state().swept(is_alive)

    def written_state(self) -> State:
        """The same with those that have ended, whose ports nobody has cut off yet: what is to be changed. Raises: as `info`."""
        try:
            return decode_state(_read(self.fd, _STATE, MAX_STATE))
        except FileNotFoundError:
            raise not_found(self.name, os.path.dirname(self.path)) from None
        except (OSError, ValueError) as error:
            raise UsageError(f"network: what is known of who is in {self.name!r} is damaged ({error}); remove it with force") from error

    def write_state(self, state: State) -> None:
        """Put it in the place of the last one, at once; the caller has the lock. It lives in memory, as the network: nothing is synced to a disk."""
        fd = os.open(_NEXT_STATE, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=self.fd)
        with open(fd, "wb") as file:
            file.write(encode_state(state))
        os.rename(_NEXT_STATE, _STATE, src_dir_fd=self.fd, dst_dir_fd=self.fd)

    @contextlib.contextmanager
    def held(self) -> Generator[None]:
        """Hold its lock while it is looked at and changed. Raises: NetworkNotFoundError: it was removed."""
        with locked(self.fd):
            self.check()
            yield

    def check(self) -> None:
        """Raises: NetworkNotFoundError: it was removed."""
        if not self.is_there:
            raise not_found(self.name, os.path.dirname(self.path))

    @property
    def is_there(self) -> bool:
        """Whether its name still is this directory's."""
        with contextlib.suppress(FileNotFoundError):
            return os.path.samestat(os.stat(self.path, follow_symlinks=False), os.fstat(self.fd))
        return False

    @property
    def is_pinned(self) -> bool:
        """Whether its namespace is there, as this process sees the host's mounts: then the file is of another file system, nsfs."""
        try:
            return os.stat(NAMESPACE, dir_fd=self.fd, follow_symlinks=False).st_dev != os.fstat(self.fd).st_dev
        except FileNotFoundError:
            return False

    def namespace(self) -> Fd:
        """Its namespace; the descriptor is the caller's. Raises: NetworkNotFoundError; UnsupportedError: this process does not see it."""
        self.check_pinned()
        return Fd.open(NAMESPACE, _FILE, dir_fd=self.fd)

    def check_pinned(self) -> None:
        """Raises: as `namespace`."""
        if not self.is_pinned:
            self.check()
            raise UnsupportedError(
                f"network: the namespace of {self.name!r} is not mounted where this process could see it",
                feature="mount namespace",
                remedy="use it from the mount namespace in which it was made, or remove it with force",
            )

    def pin(self, namespace: int) -> None:
        """Keep the namespace behind a descriptor. Raises: SetupError."""
        os.close(os.open(NAMESPACE, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=self.fd))
        bind = plan.BindMount("kept", f"{self.path}/{NAMESPACE}")
        _carry_out(plan.Plan(clone_flags=CLONE_NEWPID, host_ops=(bind,), fds={"kept": namespace}))

    def write_document(self, raw: bytes) -> None:
        """Write down what it is, once."""
        fd = os.open(DOCUMENT, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=self.fd)
        with open(fd, "wb") as file:
            file.write(raw)


def make(store: int, path: str) -> Directory:
    """Make a directory for a network that is on its way."""
    name = NEW + os.urandom(8).hex()
    os.mkdir(name, 0o700, dir_fd=store)
    return Directory.open(store, path, name)


def clear(store: int, path: str, name: str) -> None:
    """Let go of a network's namespace, and remove its directory. The unlink takes copies of the mount in other mount namespaces off as well."""
    with Directory.open(store, path, name) as place:
        if place.is_pinned:
            _carry_out(plan.Plan(clone_flags=CLONE_NEWPID, host_ops=(plan.Unmount(f"{place.path}/{NAMESPACE}", optional=True),)))
        for entry in os.listdir(place.fd):
            with contextlib.suppress(FileNotFoundError):  # the next state of somebody who was just renaming it
                os.unlink(entry, dir_fd=place.fd)
    os.rmdir(name, dir_fd=store)


def sweep(store: int, path: str) -> None:
    """Remove what those left who died while they made or removed a network, and networks of before a reboot; the caller has the store's lock."""
    for name in os.listdir(store):
        if name.startswith((NEW, GONE)) or _is_of_another_boot(store, path, name):
            clear(store, path, name)


def _is_of_another_boot(store: int, path: str, name: str) -> bool:
    try:
        with Directory.open(store, path, name) as place:
            return place.info().boot != boot_id()
    except UsageError:  # damaged, or no network: whoever asks for it is told
        return False


class Known(Protocol):
    """A process by its pid and its start, so that nobody who has the pid later is taken for it."""

    @property
    def pid(self) -> int: ...
    @property
    def start(self) -> int: ...


def is_alive(process: Known) -> bool:
    """Whether it lives; a zombie has let go of its namespaces and descriptors."""
    try:
        found = parse_stat(read_text(f"/proc/{process.pid}/stat"))
    except (FileNotFoundError, ProcessLookupError):
        return False
    return found.start_time == process.start and found.state not in "ZX"


def boot_id() -> str:
    """Which boot of the machine this is."""
    return read_text("/proc/sys/kernel/random/boot_id").strip()


def pid_namespace() -> int:
    """Which pid namespace pids that we see are of."""
    return os.stat("/proc/self/ns/pid").st_ino


def not_found(name: str, path: str) -> NetworkNotFoundError:
    """The error for a network that is not there."""
    return NetworkNotFoundError(f"network: no network {name!r} in {path}; `sandbox network ls` lists those that are")


def _read(directory: int, name: str, most: int) -> bytes:
    with open(os.open(name, _FILE, dir_fd=directory), "rb") as file:
        raw = file.read(most + 1)
    if len(raw) > most:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
    return raw


def _carry_out(planned: plan.Plan) -> None:
    start_helper(planned, wire.CREATE_DIRECT).close()


def _after_fork_in_child() -> None:
    for fd in _held:
        os.close(fd)
    _held.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)
