"""Trees that are read by descriptors only: a build context, or the layers of an image over one another. No path within leads out of one.

Theory of operation. A path is followed a component at a time, each opened without following links from the directory before it. Links are
resolved here, as if the tree were the root: an absolute one begins at its top, and ``..`` of the top is the top. So whoever exchanges a
directory for a link meanwhile, in a context on a shared disk, gets an error at most. A place is remembered as its components, all of
them real directories, and found again from the top; no descriptor is kept for it, however deep and however many layers.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from attrs import define, field, frozen

from sandbox.errors import ImageError

MAX_LINKS: Final = 40  # the kernel's own bound, path_resolution(7)
MAX_DEPTH: Final = 1000
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_OPAQUE: Final = ("user.overlay.opaque", "trusted.overlay.opaque")

Parts = tuple[str, ...]


@frozen(eq=False, repr=False)
class Entry:
    """What is at a place: *parts* leads there without any link."""

    parts: Parts
    status: os.stat_result
    link: str = ""  # where it leads, for a symbolic link

    @property
    def is_directory(self) -> bool:
        """Whether it is one."""
        return stat.S_ISDIR(self.status.st_mode)

    @property
    def is_file(self) -> bool:
        """Whether it is a regular file."""
        return stat.S_ISREG(self.status.st_mode)

    @property
    def path(self) -> str:
        """Relative to the top of its tree."""
        return "/".join(self.parts)


@frozen(eq=False, repr=False)
class Located:
    """Where a path leads once all links are followed: *entry* is None when nothing is there yet."""

    parts: Parts
    entry: Entry | None


@define(eq=False, repr=False)
class Tree:
    """A directory of the host (one path), or layers, the lowest first, as overlay shows them."""

    paths: Sequence[str]
    layered: bool = False
    _fd: int | None = field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        if not self.layered:  # pinned: what the caller named is what is read, to the end
            self._fd = os.open(self.paths[0], os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def close(self) -> None:
        """Give the pinned directory back."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    # ---- Looking ----

    def locate(self, path: str, *, follow: bool = True) -> Located:
        """Follow *path*; the last component only with *follow*. Raises: ImageError: links without end."""
        todo = list(reversed(path.split("/")))
        parts: Parts = ()
        found = self.entry(())
        links = 0
        while todo:
            name = todo.pop()
            if name in ("", "."):
                continue
            parts, found = (parts[:-1], None) if name == ".." else ((*parts, name), found)
            found = self.entry(parts) if name == ".." or found is not None else None
            if found is None or not found.link or not (follow or any(todo)):
                continue
            links += 1
            if links > MAX_LINKS or len(todo) > MAX_DEPTH:
                raise ImageError(f"{path!r}: more than {MAX_LINKS} links to follow")
            parts = () if found.link.startswith("/") else parts[:-1]
            todo.extend(reversed(found.link.split("/")))
            found = self.entry(parts)
        return Located(parts, found)

    def find(self, path: str, *, follow: bool = True) -> Entry | None:
        """What is at *path*; None: nothing."""
        return self.locate(path, follow=follow).entry

    def entry(self, parts: Parts) -> Entry | None:
        """What is at a place; None when nothing is, or something other than directories leads there."""
        if not parts:
            with self._directory(()) as tops:
                return Entry((), os.fstat(tops[0])) if tops else None
        with self._directory(parts[:-1]) as directories:
            found = self._top(directories, parts[-1])
            if found is None:
                return None
            fd, status = found
            link = os.readlink(parts[-1], dir_fd=fd) if stat.S_ISLNK(status.st_mode) else ""
            return Entry(parts, status, link)

    def names(self, parts: Parts) -> list[str]:
        """The names in a directory, in order."""
        with self._directory(parts) as directories:
            names: set[str] = set()
            for fd in directories:
                names.update(os.listdir(fd))
            if not self.layered:
                return sorted(names)
            return sorted(name for name in names if self._top(directories, name) is not None)

    def walk(self, parts: Parts) -> Iterator[Entry]:
        """Give a place and all below it, directories before what they hold, in order."""
        found = self.entry(parts)
        if found is None:
            return
        yield found
        if found.is_directory:
            if len(parts) > MAX_DEPTH:
                raise ImageError(f"{found.path[:100]!r}...: directories more than {MAX_DEPTH} deep")
            for name in self.names(parts):
                yield from self.walk((*parts, name))

    # ---- Reading ----

    def open(self, entry: Entry) -> int:
        """Open a regular file for reading; the descriptor is the caller's. Raises: ImageError: something else is there by now."""
        with self._directory(entry.parts[:-1]) as directories:
            found = self._top(directories, entry.parts[-1])
            if found is None or not stat.S_ISREG(found[1].st_mode):
                raise ImageError(f"{entry.path!r} was changed while it was read")
            # O_NONBLOCK: should it be a FIFO by now, this does not wait for anybody.
            with _readable(entry.parts):
                fd = os.open(entry.parts[-1], os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=found[0])
        if stat.S_ISREG(os.fstat(fd).st_mode):
            return fd
        os.close(fd)
        raise ImageError(f"{entry.path!r} was changed while it was read")

    def read(self, path: str, most: int) -> bytes:
        """Up to *most* bytes of the file at *path*; b"" when it is no regular file."""
        entry = self.find(path)
        if entry is None or not entry.is_file:
            return b""
        with os.fdopen(self.open(entry), "rb") as file:
            return file.read(most)

    def open_directory(self, entry: Entry) -> int:
        """Open a directory of a tree that is not layered, for others to mount; the descriptor is the caller's."""
        with self._directory(entry.parts) as directories:
            if not directories:
                raise ImageError(f"{entry.path!r} was changed while it was read")
            return os.dup(directories[0])

    # ---- Layers ----

    @contextmanager
    def _directory(self, parts: Parts) -> Generator[list[int]]:
        """Descriptors of a directory in all layers that show through, the highest first; empty when it is none."""
        current = self._tops()
        try:
            for count, name in enumerate(parts, 1):
                with _readable(parts[:count]):
                    following = self._step(current, name)
                _close(current)
                current = following
            yield current
        finally:
            _close(current)

    def _tops(self) -> list[int]:
        if self._fd is not None:
            return [os.dup(self._fd)]
        opened: list[int] = []
        try:
            for path in reversed(self.paths):
                opened.append(os.open(path, _DIRECTORY))
                if _is_opaque(opened[-1]):
                    break
        except BaseException:
            _close(opened)
            raise
        return opened

    def _step(self, directories: list[int], name: str) -> list[int]:
        opened: list[int] = []
        try:
            for fd in directories:
                status = _status(fd, name)
                if status is None:
                    continue
                if not stat.S_ISDIR(status.st_mode):
                    break  # a whiteout, or something that hides what is below
                opened.append(os.open(name, _DIRECTORY, dir_fd=fd))
                if self.layered and _is_opaque(opened[-1]):
                    break
        except FileNotFoundError:
            _close(opened)
            return []
        except BaseException:
            _close(opened)
            raise
        return opened

    def _top(self, directories: list[int], name: str) -> tuple[int, os.stat_result] | None:
        """The highest of *directories* that has *name*, and its status; None: none has, or it is whited out."""
        for fd in directories:
            status = _status(fd, name)
            if status is not None:
                return None if self.layered and _is_whiteout(status) else (fd, status)
        return None


@contextmanager
def _readable(parts: Parts) -> Generator[None]:
    try:
        yield
    except PermissionError as error:
        hint = "let whoever builds read it, or leave it out by .dockerignore"
        raise ImageError(f"{'/'.join(parts)!r} cannot be read ({error.strerror}); {hint}") from error


def _close(fds: list[int]) -> None:
    while fds:
        os.close(fds.pop())


def _status(directory: int, name: str) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=directory, follow_symlinks=False)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _is_whiteout(status: os.stat_result) -> bool:
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def _is_opaque(fd: int) -> bool:
    for name in _OPAQUE:
        try:
            if os.getxattr(fd, name) == b"y":
                return True
        except OSError:
            continue  # it has none
    return False
