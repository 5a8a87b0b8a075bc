"""Where containers that outlive their command are written down.

Theory of operation
-------------------
A store is one directory, closed to other users (0700), in memory (/run), that any number of processes use at once:

    <id>            a container: its directory
    name.<NAME>     a symbolic link whose text is the id of the container that has the name
    .new-<id>       a container on its way
    .gone-<id>      one that is being removed
    events.0, .1    what happened to them (`_events`)

and in the directory of a container

    lock            held by its keeper as long as that lives (flock): who gets it knows that the keeper is dead
    config.json     what it is, and state.json, what has become of it (`_record`); each replaced by one rename
    socket          where its keeper listens (`_wire`)
    log.0, log.1    what its program wrote (`_log`)
    keeper.log      what Python says of a keeper that fails, normally nothing

Containers come and go by one rename under the store's lock, and names are given under it. A name whose container is not there is free. So at every
moment at which a process may be killed there is a whole container, or something that the next one sweeps. A container whose keeper is dead is
dead too (the launcher's janitor has seen to that); what is left of it is this directory, until somebody removes it, or at once with ``--rm``.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Callable, Generator, Iterator
from typing import Final, Self, TypeVar

from attrs import field, frozen

from sandbox import ContainerNotFoundError, NameInUseError, UsageError
from sandbox.errors import shortages
from sandbox.keep import _events as events
from sandbox.keep._record import ID, MAX_DOCUMENT, NAME, SHORT_ID, Config, State, decode_config, decode_state, encode, renamed, to_name

NEW: Final = ".new-"
GONE: Final = ".gone-"
NAMED: Final = "name."
LOCK: Final = "lock"
SOCKET: Final = "socket"
ERRORS: Final = "keeper.log"
_CONFIG: Final = "config.json"
_STATE: Final = "state.json"
_SYSTEM: Final = "/run/sandbox/containers"
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
T = TypeVar("T")


def default_path() -> str:
    """Return where they are: $SANDBOX_CONTAINERS, or /run/sandbox/containers for root, else below $XDG_RUNTIME_DIR. Raises: UsageError."""
    told = os.environ.get("SANDBOX_CONTAINERS", "")
    if told and not told.startswith("/"):
        raise UsageError(f"SANDBOX_CONTAINERS: {told!r} is relative; give an absolute path")
    if told:
        return told
    if os.geteuid() == 0:
        return _SYSTEM
    return f"{os.environ.get('XDG_RUNTIME_DIR') or f'/run/user/{os.geteuid()}'}/sandbox/containers"


@frozen
class Place:
    """The directory of one container, open. Closed with ``with``."""

    id: str
    fd: int

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self.fd)

    def config(self) -> Config:
        """What it is. Raises: ContainerNotFoundError: it has just gone; UsageError: it is damaged."""
        return self._document(_CONFIG, decode_config)

    def state(self) -> State:
        """What has become of it. Raises: as `config`."""
        return self._document(_STATE, decode_state)

    def _document(self, name: str, decode: Callable[[bytes], T]) -> T:
        try:
            with open(os.open(name, _FILE, dir_fd=self.fd), "rb") as file:
                raw = file.read(MAX_DOCUMENT + 1)
            return decode(raw)
        except FileNotFoundError:
            raise not_found(self.id) from None
        except (OSError, ValueError) as error:
            raise UsageError(f"container {self.id[:SHORT_ID]}: {name} is damaged ({error}); remove it with force") from error

    def happened(self, action: str, config: Config, **attributes: object) -> None:
        """Write down that something happened to it, for `sandbox.keep.events`."""
        store = os.open("..", _DIRECTORY, dir_fd=self.fd)  # a directory has one parent: the store's, also while this one is on its way
        try:
            events.add(store, action, config, **attributes)
        finally:
            os.close(store)

    def write(self, document: Config | State) -> None:
        """Put a document in the place of the last one, at once."""
        name, raw = _CONFIG if isinstance(document, Config) else _STATE, encode(document)
        if len(raw) > MAX_DOCUMENT:
            raise UsageError(f"what is said of the container takes {len(raw)} bytes; {MAX_DOCUMENT} are the most")
        fd = os.open(f"{name}.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=self.fd)
        with open(fd, "wb") as file:
            file.write(raw)
        os.rename(f"{name}.new", name, src_dir_fd=self.fd, dst_dir_fd=self.fd)

    def hold(self) -> int:
        """Take the keeper's lock, for good; gives the descriptor that has it."""
        fd = os.open(LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=self.fd)
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return fd

    @property
    def is_kept(self) -> bool:
        """Whether its keeper lives."""
        try:
            fd = os.open(LOCK, _FILE, dir_fd=self.fd)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            fcntl.flock(fd, fcntl.LOCK_UN)
        except BlockingIOError:
            return True
        finally:
            os.close(fd)
        return False

    @property
    def address(self) -> str:
        """Of its socket: a path that is short, and cannot be led elsewhere, as it goes through the descriptor. For this process."""
        return f"/proc/self/fd/{self.fd}/{SOCKET}"


@frozen
class ContainerStore:
    """The containers of this user that outlive their commands; *path*: None: the usual place. Any number of processes may use one."""

    path: str = field(factory=default_path)

    def ids(self) -> list[str]:
        """All that are there."""
        with self._opened() as store:
            return [] if store is None else _idents(store)

    def open(self, text: str) -> Place:
        """Find a container by its id, its name, or the first digits of its id. Raises: ContainerNotFoundError; UsageError: several begin so."""
        with self._opened() as store:
            found = None if store is None or not isinstance(text, str) else _find(store, text)  # pyright: ignore[reportUnnecessaryIsInstance]
            if store is None or found is None:
                raise not_found(text)
            return _open(store, found)

    def make(self, config: Config, begin: Callable[[Place], T]) -> tuple[Place, T]:
        """Write a new container down, claim its name, and have *begin* prepare its directory before anybody sees it.

        Raises: NameInUseError; UsageError: others can look into the store.
        """
        self._make_directories()
        with self._locked() as store:
            _sweep(store)
            _check_free(store, config.name)
            way = NEW + config.id
            os.mkdir(way, 0o700, dir_fd=store)
            place = Place(config.id, os.open(way, _DIRECTORY, dir_fd=store))
            try:
                place.write(config)
                place.write(State())
                begun = begin(place)
                _link(store, config.name, config.id)
                os.rename(way, config.id, src_dir_fd=store, dst_dir_fd=store)
            except BaseException:
                place.close()
                _clear(store, way)
                raise
        return place, begun

    def rename(self, place: Place, name: str) -> Config:
        """Give a container another name; gives what it is now. For its keeper. Raises: NameInUseError."""
        with self._locked() as store:
            config = place.config()
            _check_free(store, to_name(name))
            _link(store, name, place.id)
            found = renamed(config, name)
            place.write(found)
            _unlink(store, config.name, place.id)
        return found

    def discard(self, place: Place, *, is_keeper: bool) -> None:
        """Remove what is written down of a container. Raises: UsageError: its keeper lives, and is not the caller."""
        with self._locked() as store:
            if not is_keeper and place.is_kept:
                raise UsageError(f"container {place.id[:SHORT_ID]}: its keeper lives")
            _discard(store, place)

    def events(self, since: float | None, until: float | None, *, ends: bool) -> Iterator[events.Event]:
        """As `sandbox.keep.events`."""
        return events.follow(self._opened, since, until, ends=ends)

    def sweep(self) -> None:
        """Remove what the dead have left of containers that were to be removed at their end, and of those on their way."""
        with self._opened() as store:
            if store is None:
                return
        with self._locked() as store:
            _sweep(store)

    def _make_directories(self) -> None:
        try:
            os.makedirs(os.path.dirname(self.path) or "/", mode=0o700, exist_ok=True)
            with contextlib.suppress(FileExistsError):
                os.mkdir(self.path, 0o700)
        except OSError as error:
            raise UsageError(
                f"container store: {self.path}: {error.strerror}; log in so that there is an XDG_RUNTIME_DIR, or set SANDBOX_CONTAINERS"
            ) from error

    @contextlib.contextmanager
    def _opened(self) -> Generator[int | None]:
        """The store's directory; None: there is none."""
        try:
            store = os.open(self.path, _DIRECTORY)
        except FileNotFoundError:
            yield None
            return
        except OSError as error:
            raise UsageError(f"container store: {self.path}: {error.strerror}; set SANDBOX_CONTAINERS to a directory of yours") from error
        try:
            status = os.fstat(store)
            if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o077:
                raise UsageError(f"container store: {self.path!r} is open to other users; make it yours alone (chown, chmod 0700)")
            yield store
        finally:
            os.close(store)

    @contextlib.contextmanager
    def _locked(self) -> Generator[int]:
        """The store's directory, with its lock, for moments."""
        with self._opened() as store:
            if store is None:
                raise UsageError(f"container store: {self.path} has gone")
            fcntl.flock(store, fcntl.LOCK_EX)
            try:
                yield store
            finally:
                fcntl.flock(store, fcntl.LOCK_UN)  # said, as a child that another thread has just forked has a copy


def not_found(text: object) -> ContainerNotFoundError:
    """The error for a container that is not there."""
    return ContainerNotFoundError(f"no container {text!r}; `sandbox ps -a` lists those that are")


def _idents(store: int) -> list[str]:
    with shortages("list the containers"):
        return [name for name in os.listdir(store) if ID.fullmatch(name)]


def _find(store: int, text: str) -> str | None:
    names = _idents(store)
    if text in names:
        return text
    owner = _owner(store, text) if NAME.fullmatch(text) else None
    if owner is not None:
        return owner
    found = [name for name in names if text and name.startswith(text)]
    if len(found) > 1:
        raise UsageError(f"{text!r} are the first digits of the ids of several containers; give more of them, or a name")
    return found[0] if found else None


def _owner(store: int, name: str) -> str | None:
    """The id of the container that has a name; None: it is free."""
    try:
        found = os.readlink(NAMED + name, dir_fd=store)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.EINVAL):
            raise
        return None
    if not ID.fullmatch(found):
        return None
    try:
        os.stat(found, dir_fd=store, follow_symlinks=False)
    except FileNotFoundError:
        return None
    return found


def _check_free(store: int, name: str) -> None:
    owner = _owner(store, name)
    if owner is not None:
        raise NameInUseError(f"the name {name!r} is taken by container {owner[:SHORT_ID]}; remove or rename that one", name=name, owner=owner)


def _link(store: int, name: str, ident: str) -> None:
    """Give a name that is free; the caller has the lock."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(NAMED + name, dir_fd=store)  # of a container that has gone
    os.symlink(ident, NAMED + name, dir_fd=store)


def _unlink(store: int, name: str, ident: str) -> None:
    with contextlib.suppress(OSError):
        if os.readlink(NAMED + name, dir_fd=store) == ident:
            os.unlink(NAMED + name, dir_fd=store)


def _open(store: int, ident: str) -> Place:
    try:
        return Place(ident, os.open(ident, _DIRECTORY, dir_fd=store))
    except FileNotFoundError:
        raise not_found(ident) from None
    except OSError as error:
        raise UsageError(f"container {ident[:SHORT_ID]}: {error.strerror}; what lies there is none of ours") from error


def _discard(store: int, place: Place) -> None:
    config = None
    with contextlib.suppress(UsageError):  # a damaged one has no name
        config = place.config()
        _unlink(store, config.name, place.id)
    try:
        os.rename(place.id, GONE + place.id, src_dir_fd=store, dst_dir_fd=store)
    except FileNotFoundError:
        raise not_found(place.id) from None
    if config is not None:
        events.add(store, "destroy", config)
    _clear(store, GONE + place.id)


def _clear(store: int, name: str) -> None:
    """Remove a directory with its files."""
    fd = os.open(name, _DIRECTORY, dir_fd=store)
    try:
        for entry in os.listdir(fd):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(entry, dir_fd=fd)
    finally:
        os.close(fd)
    os.rmdir(name, dir_fd=store)


def _sweep(store: int) -> None:
    """The caller has the lock: whatever is on its way is nobody's."""
    for name in os.listdir(store):
        if name.startswith((NEW, GONE)):
            _clear(store, name)
        elif ID.fullmatch(name):
            with contextlib.suppress(UsageError), _open(store, name) as place:
                if not place.is_kept and place.config().remove:
                    _discard(store, place)
        elif name.startswith(NAMED) and _owner(store, name.removeprefix(NAMED)) is None:
            with contextlib.suppress(FileNotFoundError):  # it went with its container, above
                os.unlink(name, dir_fd=store)

