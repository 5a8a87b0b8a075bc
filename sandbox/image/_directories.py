"""The directories of a layer that is being unpacked: found or made below its root, never beyond, some kept open."""

from __future__ import annotations

import errno
import os
import stat
from typing import Final

from attrs import define, field

from sandbox._sys.calls import openat2
from sandbox._sys.constants import RESOLVE_BENEATH, RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, RESOLVE_NO_XDEV
from sandbox.errors import ImageError, UnsupportedError
from sandbox.image.tar import UnpackLimits

_OPEN: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_RESOLVE: Final = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_XDEV
_KEPT: Final = 64
_MOST_LINKS: Final = 40  # what the kernel follows in one path (MAXSYMLINKS)
_MOST_STEPS: Final = 1_000_000  # components walked for links' sake in one layer; a layer that needs them needs few
_OPAQUE: Final = "user.overlay.opaque"  # not trusted.*: containers mount with `userxattr`
_MADE_MODE: Final = 0o755


def shown(path: bytes) -> str:
    """A path of an archive for a message: in one line, and of a length that can be read."""
    text = repr(path[:200].decode(errors="backslashreplace"))[1:-1]
    return text + "..." if len(path) > 200 else text


def join(parent: bytes, name: bytes) -> bytes:
    return parent + b"/" + name if parent else name


@define(eq=False)
class Directories:
    """Paths here are canonical: components joined by ``/``, no link among them, b"" for the root."""

    _root: int
    limits: UnpackLimits = field(kw_only=True)
    keep_owners: bool = field(kw_only=True)
    _open: dict[bytes, int] = field(factory=dict[bytes, int], init=False)  # the last used last
    _aliases: dict[bytes, bytes] = field(factory=dict[bytes, bytes], init=False)
    _marks: dict[bytes, tuple[int, int]] = field(factory=dict[bytes, tuple[int, int]], init=False)  # mode, mtime
    _named: int = field(default=0, init=False)
    _made: int = field(default=0, init=False)
    _steps: int = field(default=0, init=False)

    def clean(self, name: bytes) -> bytes:
        """Make a member's name a path below the root, whether it begins with ``/``, ``./`` or nothing.

        Raises: ImageError: empty, ``..`` in it, or beyond a limit.
        """
        if not name or len(name) > self.limits.name:
            raise ImageError(f"{shown(name)}: a name of {len(name)} bytes; 1 to {self.limits.name} are taken (limits.name)")
        path = name.strip(b"/")
        if path.startswith(b".") or b"//" in path or b"/." in path:
            parts = [part for part in path.split(b"/") if part not in (b"", b".")]
            if b".." in parts:
                raise ImageError(f"{shown(name)}: a name with '..' in it")
            path = b"/".join(parts)
        if path.count(b"/") >= self.limits.depth:
            raise ImageError(f"{shown(name)}: deeper than {self.limits.depth} directories (limits.depth)")
        if len(path) > 255 and max(map(len, path.split(b"/"))) > 255:
            raise ImageError(f"{shown(name)}: a component of more than 255 bytes")
        return path

    def parent(self, path: bytes, *, mtime_ns: int = 0) -> tuple[int, bytes]:
        """Open the directory *path*; where it is missing it is made, with what it lies in.

        The descriptor stays ours, and open until two others were asked. Returns it with its canonical path, which is another one where links lead.
        Raises: ImageError: something else is there.
        """
        if not path:
            return self._root, path
        if (fd := self._try(path)) is None:
            path = self._resolve(path)
            if not path:
                return self._root, path
            fd = self._try(path)
        if fd is None:
            fd = self._make_all(path, mtime_ns)
        return fd, path

    def find(self, path: bytes) -> tuple[int, bytes] | None:
        """Open the directory *path* if it is there."""
        if not path:
            return self._root, path
        if (fd := self._try(path)) is None:
            path = self._resolve(path)
            fd = self._try(path) if path else self._root
        return None if fd is None else (fd, path)

    def open(self, path: bytes) -> int:
        """Open what is known to be there."""
        fd = self._try(path) if path else self._root
        if fd is None:
            raise ImageError(f"{shown(path)}: no directory")
        return fd

    def make(self, at: int, parent: bytes, name: bytes) -> bytes:
        """Make *name* in *at* a directory, in the place of whatever else is there; its path."""
        path = join(parent, name)
        try:
            os.mkdir(name, 0o700, dir_fd=at)
        except FileExistsError:
            mode = os.stat(name, dir_fd=at, follow_symlinks=False).st_mode
            if stat.S_ISDIR(mode):
                return path
            self.remove(at, parent, name)
            os.mkdir(name, 0o700, dir_fd=at)
            if stat.S_ISCHR(mode):
                # Only whiteouts are character devices here: what lower layers have below that name stays hidden.
                self.make_opaque(path)
        return path

    def note(self, path: bytes, mode: int, mtime_ns: int) -> None:
        """Remember what `finish` gives to the directory *path*. Raises: ImageError: too many."""
        if path not in self._marks:
            self._named += len(path)
            if self._named > self.limits.names:
                raise ImageError(f"the paths of all directories have more than {self.limits.names} bytes (limits.names)")
        self._marks[path] = mode, mtime_ns

    def make_opaque(self, path: bytes) -> None:
        """Say that nothing of lower layers is seen in the directory *path*."""
        try:
            os.setxattr(self.open(path), _OPAQUE, b"y")
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
            raise UnsupportedError(
                f"{shown(path)}: the file system has no user.* attributes, and so no opaque directories",
                feature="user xattrs",
                remedy="put the store on ext4, xfs, btrfs or a tmpfs of Linux 6.6",
            ) from error

    def white_out(self, at: int, parent: bytes, name: bytes) -> None:
        """Hide what lower layers have as *name* in *at*, not what this one has (image-spec, layer.md)."""
        try:
            # Without any privilege since Linux 5.8 ("vfs: allow unprivileged whiteout creation").
            os.mknod(name, stat.S_IFCHR, os.makedev(0, 0), dir_fd=at)
        except FileExistsError:
            if stat.S_ISDIR(os.stat(name, dir_fd=at, follow_symlinks=False).st_mode):
                self.make_opaque(join(parent, name))

    def remove(self, at: int, parent: bytes, name: bytes) -> None:
        """Remove *name* from *at*, with all that is in it."""
        path = join(parent, name)
        inside = path + b"/"
        for known in [known for known in self._open if known == path or known.startswith(inside)]:
            os.close(self._open.pop(known))
        self._aliases.clear()
        self._marks.pop(path, None)
        _remove(at, name)

    def finish(self) -> None:
        """Give all directories their modes and times, the deepest first: one may lose the right to enter those above."""
        self._close_all()
        for path, (mode, mtime_ns) in sorted(self._marks.items(), reverse=True):
            fd = os.dup(self._root) if not path else _open(self._root, path)
            if fd is None:
                continue  # something else took its place later
            try:
                os.fchmod(fd, mode)
                os.utime(fd, ns=(mtime_ns, mtime_ns))
            finally:
                os.close(fd)

    def close(self) -> None:
        """Close what is open."""
        self._close_all()

    def _close_all(self) -> None:
        while self._open:
            os.close(self._open.popitem()[1])

    def _keep(self, path: bytes, fd: int) -> int:
        if (before := self._open.pop(path, None)) is not None:
            os.close(before)
        elif len(self._open) >= _KEPT:
            os.close(self._open.pop(next(iter(self._open))))
        self._open[path] = fd
        return fd

    def _try(self, path: bytes) -> int | None:
        if (fd := self._open.pop(path, None)) is not None:
            self._open[path] = fd
            return fd
        fd = _open(self._root, path)
        return None if fd is None else self._keep(path, fd)

    def _make_all(self, path: bytes, mtime_ns: int) -> int:
        """Make *path*, a canonical one that is missing, with what is missing above it."""
        above, _, name = path.rpartition(b"/")
        missing, fd = [name], None
        while above and (fd := self._try(above)) is None:
            above, _, name = above.rpartition(b"/")
            missing.append(name)
        at = os.dup(self._root if fd is None else fd)
        try:
            while missing:
                name = missing.pop()
                above = self._make_one(at, above, name, mtime_ns)
                at, before = os.open(name, _OPEN, dir_fd=at), at
                os.close(before)
        except BaseException:
            os.close(at)
            raise
        return self._keep(path, at)

    def _make_one(self, at: int, parent: bytes, name: bytes, mtime_ns: int) -> bytes:
        path = join(parent, name)
        self._made += 1
        if self._made > self.limits.entries:
            raise ImageError(f"more than {self.limits.entries} directories are missing (limits.entries)")
        try:
            os.mkdir(name, 0o700, dir_fd=at)
        except FileExistsError:
            if not stat.S_ISCHR(os.stat(name, dir_fd=at, follow_symlinks=False).st_mode):
                raise ImageError(f"{shown(path)}: no directory, and something is to lie in it") from None
            self.make(at, parent, name)
        if self.keep_owners and (os.geteuid() or os.getegid()):
            os.chown(name, 0, 0, dir_fd=at, follow_symlinks=False)
        self.note(path, _MADE_MODE, mtime_ns)
        return path

    # --- links where directories should be

    def _resolve(self, path: bytes) -> bytes:
        """Follow the links in *path* as if the layer's root were ``/``; what is missing is taken as it stands.

        Raises: ImageError: too many links.
        """
        if (known := self._aliases.get(path)) is not None:
            return known
        links, done, pending = 0, list[bytes](), path.split(b"/")[::-1]
        while pending:
            self._steps += 1
            if links > _MOST_LINKS or self._steps > _MOST_STEPS:
                raise ImageError(f"{shown(path)}: too many links on the way")
            name = pending.pop()
            if name == b"..":
                done = done[:-1]
            elif name not in (b"", b"."):
                target = self._read_link(b"/".join(done), name)
                if target is None:
                    done.append(name)
                    continue
                links += 1
                done = [] if target.startswith(b"/") else done
                pending.extend(target.split(b"/")[::-1])
        canonical = self.clean(b"/".join(done) or b"/")
        if len(self._aliases) < _KEPT:
            self._aliases[path] = canonical
        return canonical

    def _read_link(self, parent: bytes, name: bytes) -> bytes | None:
        at = self._try(parent) if parent else self._root
        try:
            return None if at is None else os.readlink(name, dir_fd=at)
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.ENOENT, errno.ENAMETOOLONG):  # no link, or nothing
                return None
            raise


def _open(root: int, path: bytes) -> int | None:
    """Open the directory *path* below *root*; None: there is none, or a link on the way."""
    try:
        return openat2(path, _OPEN, dir_fd=root, resolve=_RESOLVE)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return None
        raise


def _remove(at: int, name: bytes) -> None:
    try:
        os.unlink(name, dir_fd=at)
    except IsADirectoryError:
        _remove_directory(at, name)


def _remove_directory(at: int, name: bytes) -> None:
    """Remove a directory and what is in it; as deep as `limits.depth` at most, which all paths were held to."""
    stack = [(os.open(name, _OPEN, dir_fd=at), name, _Names())]
    try:
        while stack:
            fd, name, names = stack[-1]
            if (below := names.empty(fd)) is not None:
                stack.append((os.open(below, _OPEN, dir_fd=fd), below, _Names()))
                continue
            os.close(stack.pop()[0])
            os.rmdir(name, dir_fd=stack[-1][0] if stack else at)
    finally:
        for fd, _, _ in stack:
            os.close(fd)


@define(eq=False)
class _Names:
    """What is in a directory that is being removed; read once."""

    _left: list[str] | None = None

    def empty(self, fd: int) -> bytes | None:
        """Remove files up to the next directory, and name that one; None: nothing is left."""
        if self._left is None:
            self._left = os.listdir(fd)
        while self._left:
            raw = os.fsencode(self._left.pop())
            try:
                os.unlink(raw, dir_fd=fd)
            except IsADirectoryError:
                return raw
        return None
