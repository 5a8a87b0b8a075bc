"""The directory of a store: found, checked, locked; what is small in it is read and written here.

Theory of operation. All names are relative to a descriptor of the store's directory, which is opened for each operation and closed after it: a store
holds no descriptor between two calls, and so is as good in another thread and after a fork. Three kinds of lock, all flock(2), which belongs to an
open file and ends with the last process that has it:

- the mutex, the file ``lock``: shared by who adds, exclusive for who removes; moments only, and nobody else's code runs meanwhile;
- a stage, a directory of ``staging/``, locked by who writes in it;
- a lease, a file of ``leases/``, locked by who uses what it lists (`_leases`).

A fork copies descriptors, and a copy would keep the lock of a parent that has been killed: the child closes them at once. And who unlocks says
LOCK_UN, which counts for all copies.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import weakref
from collections.abc import Generator
from typing import Final, Self

from attrs import define, field, frozen

from sandbox._sys.fds import Fd
from sandbox._sys.places import absolute, user_directory
from sandbox._types import StrPath, to_text
from sandbox.errors import ImageError, SandboxError, SetupError, UsageError
from sandbox.image._hints import hint_of
from sandbox.image._removal import empty
from sandbox.image.digest import Digest
from sandbox.image.documents import MAX_DOCUMENT

VERSION: Final = b"1\n"
DIRECTORIES: Final = ("blobs", "blobs/sha256", "blobs/sha512", "layers", "short", "names", "images", "cache", "leases", "staging")
OPEN_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
_CREATE: Final = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_HELD: weakref.WeakSet[Fd] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for held in list(_HELD):
        held.close()


os.register_at_fork(after_in_child=_after_fork_in_child)


def default_store() -> str:
    """Where this user's images are: $SANDBOX_IMAGES, or /var/lib/sandbox/images for root, or else below $XDG_DATA_HOME (~/.local/share).

    Raises: UsageError: the variable is not an absolute path; another directory than the one that was meant would be taken.
    """
    return user_directory("images")


def blob_name(digest: Digest) -> str:
    """Where the blob *digest* is in a store."""
    return f"blobs/{digest.algorithm}/{digest.hex}"


def layer_name(diff_id: Digest) -> str:
    """Where the unpacked layer *diff_id*, and what is known of it, is in a store."""
    return f"layers/{diff_id.hex}"


def _to_path(value: StrPath | None) -> str:
    if value is None:
        return default_store()
    return absolute(os.fsdecode(to_text(value, what="image store")), what="image store")


@frozen(repr=False)
class Disk:
    """The place of a store; nothing is made there before somebody opens it to write."""

    path: str = field(default=None, converter=_to_path)

    @contextlib.contextmanager
    def opened(self, operation: str, *, make: bool = True) -> Generator[Root, None, None]:
        """Open the store for one operation; with *make*, after making what is missing of it.

        Raises: UsageError: the directory is somebody else's, open to others, or no store. ImageError: it is a store of another version, or
        (without *make*) there is none. SetupError: what the kernel refused, here or in the body.
        """
        try:
            with Root(Fd(_open(self.path, make=make))) as root:
                root.check(self.path, make=make)
                yield root
        except OSError as error:
            if isinstance(error, SandboxError):
                raise
            raise self.refused(operation, error) from error

    def refused(self, operation: str, error: OSError) -> SetupError:
        """Say that the kernel did not let us do *operation*."""
        return SetupError(f"image store {self.path}: {operation}", error.errno or errno.EIO, step="image", hint=hint_of(error))

    @property
    def exists(self) -> bool:
        """Whether there is a store; if not, there are no images, which is no error."""
        try:
            os.stat(f"{self.path}/version")
        except FileNotFoundError:
            return False
        except OSError:
            return True  # what is wrong with it is told by who opens it
        return True


def _open(path: str, *, make: bool) -> int:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    try:
        return os.open(path, flags)
    except FileNotFoundError:
        if not make:
            raise ImageError(f"image store {path}: there is none yet") from None
    except NotADirectoryError:
        raise UsageError(f"image store: {path!r} is not a directory") from None
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, 0o700)
    return os.open(path, flags)


@define(eq=False, repr=False)
class Root:
    """The open directory of a store, for one operation."""

    _fd: Fd

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._fd.close()

    def fileno(self) -> int:
        return self._fd.fileno()

    def check(self, path: str, *, make: bool) -> None:
        """See that it is a store, ours alone, and of our version; see `Disk.opened`."""
        status = os.fstat(self.fileno())
        if status.st_uid != os.geteuid():
            raise UsageError(f"image store: {path!r} is user {status.st_uid}'s; choose a directory of your own, or chown it")
        if status.st_mode & 0o077:
            raise UsageError(f"image store: {path!r} is open to other users; make it yours alone (chown, chmod 0700)")
        version = self.read("version", limit=64)
        if version == VERSION:
            return
        if version is not None:
            raise ImageError(f"image store {path}: it has version {version.strip()!r}, and only {VERSION.strip()!r} is read here; choose another")
        if not make:
            raise ImageError(f"image store {path}: there is none yet")
        self._lay_out(path)

    def _lay_out(self, path: str) -> None:
        """Make what is missing. The version comes last: whoever is killed before leaves what the next one goes on with."""
        strange = set(os.listdir(self.fileno())) - {name for name in DIRECTORIES if "/" not in name} - {"lock"}
        if strange - {"version"}:
            raise UsageError(f"image store: {path!r} is no store, and not empty ({min(strange)!r}); choose another directory")
        for name in DIRECTORIES:
            self.make_directory(name)
        with Fd.open("lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, mode=0o600, dir_fd=self.fileno()) as lock:
            os.fchmod(lock.fileno(), 0o600)
        with self.locked():
            self.replace("version", VERSION)

    # ---- Locks ----

    @contextlib.contextmanager
    def locked(self, *, exclusive: bool = False) -> Generator[None, None, None]:
        """Hold the mutex: shared to add, exclusive to remove. It must not be taken twice by one thread."""
        fd = hold(os.open("lock", _OPEN_FILE, dir_fd=self.fileno()))
        try:
            fcntl.flock(fd.fileno(), fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)
            yield
        finally:
            release(fd)

    # ---- Small things ----

    def make_directory(self, name: str) -> None:
        """Make a directory for us alone, whatever the umask; an existing one stays as it is."""
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=self.fileno())
            os.chmod(name, 0o700, dir_fd=self.fileno())

    def open_file(self, name: str) -> int:
        """A descriptor to read *name* by, the caller's own. Raises: OSError; ImageError: it is a link, which nobody makes there."""
        try:
            return os.open(name, _OPEN_FILE, dir_fd=self.fileno())
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise ImageError(f"image store: {name} is a symbolic link; it is not followed") from None
            raise

    def open_directory(self, name: str) -> int:
        """A descriptor of the directory *name*, the caller's own. Raises: OSError."""
        return os.open(name, OPEN_DIRECTORY, dir_fd=self.fileno())

    def read(self, name: str, *, limit: int = MAX_DOCUMENT) -> bytes | None:
        """The content of a small file; None when there is none. Raises: ImageError: it has more than *limit* bytes."""
        try:
            fd = self.open_file(name)
        except FileNotFoundError:
            return None
        with open(fd, "rb") as file:
            data = file.read(limit + 1)
        if len(data) > limit:
            raise ImageError(f"image store: {name} has more than {limit} bytes")
        return data

    def size(self, name: str) -> int | None:
        """Bytes of the file *name*; None when there is none."""
        try:
            return os.stat(name, dir_fd=self.fileno(), follow_symlinks=False).st_size
        except FileNotFoundError:
            return None

    def status(self, name: str) -> os.stat_result:
        """What is known of the file or directory *name*."""
        return os.stat(name, dir_fd=self.fileno(), follow_symlinks=False)

    def changed(self, name: str) -> float | None:
        """When *name* was written or touched, in seconds since 1970; None when there is none."""
        try:
            return os.stat(name, dir_fd=self.fileno(), follow_symlinks=False).st_mtime
        except FileNotFoundError:
            return None

    def touch(self, name: str) -> None:
        """Note that *name* was used now."""
        with contextlib.suppress(FileNotFoundError):
            os.utime(name, dir_fd=self.fileno())

    def exists(self, name: str) -> bool:
        return self.size(name) is not None

    def names(self, directory: str) -> list[str]:
        """What is in *directory*, sorted."""
        fd = self.open_directory(directory)
        try:
            return sorted(os.listdir(fd))
        finally:
            os.close(fd)

    def replace(self, name: str, data: bytes) -> None:
        """Write a small file, whole or not at all, and lastingly; the mutex is held. What is there already is not written again."""
        if self.read(name) == data:
            return
        temporary = f"staging/document-{os.urandom(8).hex()}"
        fd = os.open(temporary, _CREATE, 0o600, dir_fd=self.fileno())
        try:
            os.fchmod(fd, 0o600)
            write_all(fd, data)
            os.fsync(fd)
        finally:
            os.close(fd)
        self.move(temporary, name)

    def move(self, source: str, target: str) -> None:
        """rename(2) within the store."""
        os.rename(source, target, src_dir_fd=self.fileno(), dst_dir_fd=self.fileno())

    def unlink(self, name: str) -> bool:
        """Remove a file; False when there was none."""
        try:
            os.unlink(name, dir_fd=self.fileno())
        except FileNotFoundError:
            return False
        return True

    def sync(self, directory: str) -> None:
        """Make the names in *directory* last."""
        fd = self.open_directory(directory)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def write_all(fd: int, data: bytes) -> None:
    """write(2) until everything is written."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def hold(fd: int) -> Fd:
    """Own *fd*, on which a lock is or will be; a forked child closes its copy."""
    held = Fd(fd)
    _HELD.add(held)
    return held


def release(held: Fd) -> None:
    """Give the lock up, for all copies of the descriptor, and close it; a second time does nothing."""
    try:
        fd = held.detach()
    except SandboxError:
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_UN)
    finally:
        os.close(fd)


def try_lock(fd: Fd, kind: int = fcntl.LOCK_EX) -> bool:
    """Take the lock if nobody has it."""
    try:
        fcntl.flock(fd.fileno(), kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@define(eq=False, repr=False)
class Stage:
    """A directory below ``staging/`` that is ours alone until `release`."""

    name: str
    lock: Fd

    @classmethod
    def fresh(cls, root: Root) -> Self:
        """A new one."""
        name = f"new-{os.urandom(8).hex()}"
        with root.locked():
            stage = cls._open(root, name)
            fcntl.flock(stage.lock.fileno(), fcntl.LOCK_EX)
        return stage

    @classmethod
    def claim(cls, root: Root, name: str) -> Self:
        """The one called *name*, with what somebody who was killed has left in it. Waits for whoever has it."""
        while True:
            with root.locked():
                stage = cls._open(root, name)
                locked = try_lock(stage.lock)
            if not locked:
                fcntl.flock(stage.lock.fileno(), fcntl.LOCK_EX)  # for as long as another process is at it
            if stage.is_there(root):
                return stage
            release(stage.lock)

    @classmethod
    def _open(cls, root: Root, name: str) -> Self:
        while True:
            # Who had it before discards it without the mutex: it may go between any two of these calls.
            with contextlib.suppress(FileNotFoundError):
                root.make_directory(f"staging/{name}")
                return cls(name, hold(root.open_directory(f"staging/{name}")))

    @property
    def path(self) -> str:
        """Relative to the store."""
        return f"staging/{self.name}"

    def fileno(self) -> int:
        return self.lock.fileno()

    def is_there(self, root: Root) -> bool:
        """Whether our lock is on what bears the name: who had it before may have moved it to its place, or away."""
        try:
            found = os.stat(self.path, dir_fd=root.fileno(), follow_symlinks=False)
        except FileNotFoundError:
            return False
        return os.path.samestat(found, os.fstat(self.fileno()))

    def release(self) -> None:
        """Leave it; a second time does nothing."""
        release(self.lock)

    def discard(self, root: Root) -> None:
        """Remove it and what is in it."""
        try:
            empty(self.fileno())
            os.rmdir(self.path, dir_fd=root.fileno())
        finally:
            self.release()
