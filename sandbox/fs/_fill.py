"""The content of a root at one place, copied into an empty directory: how a new volume gets what the image has where it is mounted.

Theory of operation
-------------------
The root may be many layers. What an overlay of them shows is worked out here, without mounting one: it takes no privileges, and it is done
before there is a container, by who holds the volume's lock, who then waits for nobody. Owners are those that the layers have, which are
those inside: a volume is id-mapped as its root is.

Directories are taken one at a time, by their path below the top of each layer, with openat2(BENEATH | NO_SYMLINKS): however deep a tree is, no
more descriptors are open than there are layers, and whatever is exchanged meanwhile, nothing outside is ever reached. Kept are owners, modes,
times of change, hard links, holes and user attributes; left out are devices, sockets and other attributes (no mount of ours lets
file capabilities work).
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Final

from attrs import define, field, frozen

from sandbox._sys.calls import openat2
from sandbox._sys.constants import RESOLVE_BENEATH, RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, RESOLVE_NO_XDEV
from sandbox.errors import LimitError

MAX_BYTES: Final = 16 << 30
MAX_ENTRIES: Final = 1_000_000
MAX_LINKS: Final = 40  # of symbolic links on the way, as the kernel's own limit
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
BENEATH: Final = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_XDEV
_CHUNK: Final = 1 << 24
_NO_RANGE: Final = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM)


@frozen
class Merged:
    """One directory of the merged tree: its path, and the layers that it is made of, the topmost first."""

    path: str
    layers: tuple[int, ...]


@define(eq=False)
class MergedTree:
    """Directories as an overlay shows them. *tops*: their descriptors, the topmost first, which stay the caller's."""

    tops: Sequence[int]

    def find(self, path: str) -> Merged | None:
        """The directory at *path*, following links within the tree; None when there is none, or something is mounted on the way."""
        waiting, links = [part for part in path.split("/") if part][::-1], 0
        at = [Merged(".", tuple(range(len(self.tops))))]
        while waiting:
            name = waiting.pop()
            if name in (".", ".."):
                del at[max(len(at) - (name == ".."), 1) :]
                continue
            found = self._step(at[-1], name)
            if isinstance(found, str):
                links += 1
                if links > MAX_LINKS:
                    return None
                del at[1 if found.startswith("/") else len(at) :]
                waiting += [part for part in found.split("/") if part][::-1]
            elif found is None:
                return None
            else:
                at.append(found)
        return at[-1]

    def _step(self, parent: Merged, name: str) -> Merged | str | None:
        """The directory *name* in *parent*; what the link of that name says; or None."""
        with self.opened(parent) as fds:
            for number, fd in enumerate(fds):
                info = _look(name, fd)
                if info is None:
                    continue
                if stat.S_ISLNK(info.st_mode):
                    return os.readlink(name, dir_fd=fd)
                return Merged(f"{parent.path}/{name}", self.below(parent, fds, name, number)) if stat.S_ISDIR(info.st_mode) else None
        return None

    @contextlib.contextmanager
    def opened(self, directory: Merged) -> Generator[list[int]]:
        """Descriptors of its parts, the topmost first."""
        with contextlib.ExitStack() as stack:
            fds: list[int] = []
            for layer in directory.layers:
                fds.append(openat2(directory.path, _DIRECTORY, dir_fd=self.tops[layer], resolve=BENEATH))
                stack.callback(os.close, fds[-1])
            yield fds

    @staticmethod
    def below(parent: Merged, fds: Sequence[int], name: str, first: int) -> tuple[int, ...]:
        """The layers that make up the directory *name* of *parent*, whose topmost part is in its *first* one."""
        found: list[int] = []
        for layer, fd in zip(parent.layers[first:], fds[first:], strict=True):
            info = _look(name, fd)
            if info is None:
                continue
            if not stat.S_ISDIR(info.st_mode):  # a whiteout, or something else that ends the directory
                break
            found.append(layer)
            if _is_opaque(name, fd):
                break
        return tuple(found)


def _look(name: str, directory: int) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _is_opaque(name: str, directory: int) -> bool:
    for attribute in ("user.overlay.opaque", "trusted.overlay.opaque"):
        with contextlib.suppress(OSError):
            if os.getxattr(f"/proc/self/fd/{directory}/{name}", attribute, follow_symlinks=False) == b"y":
                return True
    return False


@define(eq=False)
class Filling:
    """One copy of a directory of *tree* into *target*, a descriptor of an empty directory of ours."""

    tree: MergedTree
    target: int
    max_bytes: int = MAX_BYTES
    max_entries: int = MAX_ENTRIES
    _bytes: int = 0
    _entries: int = 0
    _links: dict[tuple[int, int], str] = field(factory=dict[tuple[int, int], str])

    def fill(self, source: Merged) -> None:
        """Copy what is in *source*, and give *target* its owner, mode and time.

        Raises: LimitError: there is too much; OSError.
        """
        waiting, done = [(source, ".")], list[tuple[str, os.stat_result]]()
        while waiting:
            directory, place = waiting.pop()
            with _unless_mounted(), self.tree.opened(directory) as fds, _opened(place, self.target) as to:
                done.append((place, os.fstat(fds[0])))
                waiting += [(inner, f"{place}/{name}") for name, inner in self._copy_entries(directory, fds, to, place)]
        # Children first: to write into a directory changes its time, and its mode may forbid it.
        for place, info in reversed(done):
            self._settle(place, info)

    def _copy_entries(self, directory: Merged, fds: Sequence[int], to: int, place: str) -> Iterator[tuple[str, Merged]]:
        seen: set[str] = set()
        for number, fd in enumerate(fds):
            for name in os.listdir(fd):
                info = None if name in seen else _look(name, fd)
                if info is None:
                    continue
                seen.add(name)
                self._count(entries=1)
                if stat.S_ISDIR(info.st_mode):
                    os.mkdir(name, 0o700, dir_fd=to)
                    yield name, Merged(f"{directory.path}/{name}", self.tree.below(directory, fds, name, number))
                else:
                    self._copy(name, info, fd, to, f"{place}/{name}")

    def _copy(self, name: str, info: os.stat_result, source: int, to: int, place: str) -> None:
        if info.st_nlink > 1 and (first := self._links.get((info.st_dev, info.st_ino))) is not None:
            os.link(first, name, src_dir_fd=self.target, dst_dir_fd=to, follow_symlinks=False)
            return
        if stat.S_ISREG(info.st_mode):
            self._copy_file(name, source, to)
        elif stat.S_ISLNK(info.st_mode):
            os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=to)
        elif stat.S_ISFIFO(info.st_mode):
            os.mkfifo(name, 0o600, dir_fd=to)
            os.chmod(name, stat.S_IMODE(info.st_mode), dir_fd=to)
        else:
            return
        if info.st_nlink > 1:
            self._links[info.st_dev, info.st_ino] = place
        if not stat.S_ISREG(info.st_mode):
            _own(lambda: os.chown(name, info.st_uid, info.st_gid, dir_fd=to, follow_symlinks=False))
            os.utime(name, ns=(info.st_atime_ns, info.st_mtime_ns), dir_fd=to, follow_symlinks=False)

    def _copy_file(self, name: str, source: int, to: int) -> None:
        # O_NONBLOCK: what was a file a moment ago may be a FIFO now.
        with _unless_mounted(), _opened(name, source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK) as fd:
            info = os.fstat(fd)
            if not stat.S_ISREG(info.st_mode):
                return
            with _opened(name, to, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600) as out:
                self._copy_data(fd, out, info.st_size)
                _give(out, fd, info)

    def _copy_data(self, source: int, to: int, size: int) -> None:
        os.ftruncate(to, size)
        for start, end in _extents(source, size):
            at = start
            while at < end:
                self._count(size=min(_CHUNK, end - at))
                copied = _copy_range(source, to, at, min(_CHUNK, end - at))
                if not copied:  # it was cut short meanwhile
                    return
                at += copied

    def _settle(self, place: str, info: os.stat_result) -> None:
        with _opened(place, self.target) as fd:
            _own(lambda: os.fchown(fd, info.st_uid, info.st_gid))
            os.fchmod(fd, stat.S_IMODE(info.st_mode))
            os.utime(fd, ns=(info.st_atime_ns, info.st_mtime_ns))

    def _count(self, *, size: int = 0, entries: int = 0) -> None:
        self._bytes += size
        self._entries += entries
        if self._bytes > self.max_bytes:
            raise LimitError(f"more than {self.max_bytes} bytes", limit="max_bytes")
        if self._entries > self.max_entries:
            raise LimitError(f"more than {self.max_entries} files", limit="max_entries")


@contextlib.contextmanager
def _opened(path: str, directory: int, flags: int = _DIRECTORY, mode: int = 0) -> Generator[int]:
    fd = openat2(path, flags, dir_fd=directory, mode=mode, resolve=BENEATH)
    try:
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def _unless_mounted() -> Generator[None]:
    """Leave out what is mounted below a directory that is the root: containers do not see it either."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise


def _extents(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """Where there is data in a file: its holes stay holes."""
    at = 0
    while at < size:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # only a hole is left
                return
            raise
        at = min(os.lseek(fd, start, os.SEEK_HOLE), size)
        yield start, at


def _copy_range(source: int, to: int, at: int, size: int) -> int:
    try:
        return os.copy_file_range(source, to, size, at, at)
    except OSError as error:
        if error.errno not in _NO_RANGE:
            raise
    return os.pwrite(to, os.pread(source, size, at), at)


def _give(out: int, source: int, info: os.stat_result) -> None:
    # The owner first: its change takes set-id bits away. The time last.
    _own(lambda: os.fchown(out, info.st_uid, info.st_gid))
    os.fchmod(out, stat.S_IMODE(info.st_mode))
    for name in os.listxattr(source):
        if name.startswith("user.") and not name.startswith("user.overlay."):
            with contextlib.suppress(OSError):  # a file system without them
                os.setxattr(out, name, os.getxattr(source, name))
    os.utime(out, ns=(info.st_atime_ns, info.st_mtime_ns))


def _own(change: Callable[[], None]) -> None:
    """Change an owner, where we may; an ordinary user's files are all its own."""
    if os.geteuid() == 0:
        change()
