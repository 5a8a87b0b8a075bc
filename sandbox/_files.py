"""Files in and out of a live container.

Every path inside is resolved by init, inside the container's root and without magic links, so that nothing planted
there leads the host astray. Writing is done by init too (its ids are the container's, and no descriptor open for
writing ever exists outside, so a program just written is never "busy"). Reading happens here, on descriptors that
init opened or that were opened name by name without following links; all of it is bounded.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from attrs import define, field

from sandbox import _plan as plan
from sandbox.errors import SetupError, UsageError

ROOT: Final = f"@{plan.ROLE_ROOT}"
CHUNK: Final = 1 << 20
MAX_DEPTH: Final = 256
MAX_FILES: Final = 100_000
_OPEN: Final = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
Request = Callable[[Sequence[plan.Op], Sequence[str]], list[int]]  # carry operations out in init; descriptors of these slots come back


def read_bytes(request: Request, path: str, *, max_size: int) -> bytes:
    """Read one regular file."""
    (fd,) = request([plan.Open("file", path, _OPEN, at=ROOT)], ["file"])
    try:
        _check_regular(os.fstat(fd), path)
        return _read_bounded(fd, path, max_size)
    finally:
        os.close(fd)


def _check_regular(info: os.stat_result, path: str) -> None:
    if not stat.S_ISREG(info.st_mode):
        raise UsageError(f"{path}: {_kind(info.st_mode)}, not a regular file")


def _kind(mode: int) -> str:
    kinds = {stat.S_IFDIR: "a directory", stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}
    return kinds.get(stat.S_IFMT(mode), "a symbolic link" if stat.S_ISLNK(mode) else "of an unknown kind")


def _read_bounded(fd: int, path: str, max_size: int) -> bytes:
    chunks: list[bytes] = []
    size = 0
    while data := os.read(fd, min(CHUNK, max_size + 1 - size)):
        chunks.append(data)
        size += len(data)
        if size > max_size:
            raise UsageError(f"{path}: larger than {max_size} bytes; pass a larger max_size")
    return b"".join(chunks)


def write_bytes(request: Request, path: str, data: bytes, *, mode: int, uid: int, gid: int) -> None:
    """Create or replace one regular file."""
    view = memoryview(data)
    for at in range(0, max(1, len(data)), CHUNK):
        request([plan.WriteFile(path, bytes(view[at : at + CHUNK]), ROOT, mode=mode, uid=uid, gid=gid, append=at > 0)], [])


def make_dirs(request: Request, path: str, *, uid: int, gid: int) -> None:
    """mkdir -p; what exists stays as it is."""
    parts = path.strip("/").split("/")
    ops = ["/" + "/".join(parts[: i + 1]) for i in range(len(parts)) if parts[i]]
    if ops:
        request([plan.MakeDir(name, ROOT, uid=uid, gid=gid) for name in ops], [])


def is_dir(request: Request, path: str) -> bool:
    """Whether *path* is a directory inside (through links inside the root)."""
    try:
        (fd,) = request([plan.Open("file", path, os.O_PATH | os.O_DIRECTORY, at=ROOT)], ["file"])
    except SetupError:
        return False
    os.close(fd)
    return True


def copy_in(request: Request, source: str, target: str, *, uid: int, gid: int) -> None:
    """Copy a file or a tree from the host; links are copied as links, special files are refused."""
    info = os.lstat(source)
    if stat.S_ISDIR(info.st_mode):
        _check_tree(source)
        make_dirs(request, target, uid=uid, gid=gid)
        _copy_tree_in(request, source, target, uid, gid)
        return
    if is_dir(request, target):
        target = f"{target.rstrip('/')}/{os.path.basename(os.path.abspath(source))}"
    _copy_entry_in(request, source, os.stat(source) if stat.S_ISLNK(info.st_mode) else info, target, uid=uid, gid=gid)


def _check_tree(source: str) -> None:
    """Refuse what cannot be copied before anything is touched."""
    for entry in _walk(source):
        mode = entry.stat(follow_symlinks=False).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISLNK(mode)):
            raise UsageError(f"copy_in: {entry.path}: {_kind(mode)} cannot be copied")


def _walk(source: str) -> Iterator[os.DirEntry[str]]:
    with os.scandir(source) as entries:
        for entry in entries:
            yield entry
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(entry.path)


def _copy_tree_in(request: Request, source: str, target: str, uid: int, gid: int) -> None:
    with os.scandir(source) as entries:
        for entry in entries:
            inside = f"{target.rstrip('/')}/{entry.name}"
            info = entry.stat(follow_symlinks=False)
            if stat.S_ISDIR(info.st_mode):
                request([plan.MakeDir(inside, ROOT, mode=stat.S_IMODE(info.st_mode) & 0o777, uid=uid, gid=gid)], [])
                _copy_tree_in(request, entry.path, inside, uid, gid)
            else:
                _copy_entry_in(request, entry.path, info, inside, uid=uid, gid=gid)


def _copy_entry_in(request: Request, source: str, info: os.stat_result, inside: str, *, uid: int, gid: int) -> None:
    if stat.S_ISLNK(info.st_mode):
        request([plan.Symlink(inside, os.readlink(source), ROOT)], [])
        return
    fd = os.open(source, _OPEN)
    try:
        _check_regular(os.fstat(fd), source)
        append = False
        while True:
            data = os.read(fd, CHUNK)
            if not data and append:
                return
            mode = stat.S_IMODE(info.st_mode) & 0o777
            request([plan.WriteFile(inside, data, ROOT, mode=mode, uid=uid, gid=gid, append=append)], [])
            append = True
    finally:
        os.close(fd)


@define
class _Budget:
    """What a copy to the host may still use."""

    size: int
    files: int = MAX_FILES
    what: str = field(default="")

    def take(self, size: int = 0, files: int = 0) -> None:
        self.size -= size
        self.files -= files
        if self.size < 0:
            raise UsageError(f"copy_out: {self.what}: larger than allowed; pass a larger max_size")
        if self.files < 0:
            raise UsageError(f"copy_out: {self.what}: more than {MAX_FILES} files")


def copy_out(request: Request, source: str, target: str, *, max_size: int) -> None:
    """Copy a file or a tree to the host. Links are copied as links, never followed; special files are refused."""
    (fd,) = request([plan.Open("file", source, _OPEN, at=ROOT)], ["file"])
    budget = _Budget(max_size, what=source)
    try:
        info = os.fstat(fd)
        if stat.S_ISDIR(info.st_mode):
            os.makedirs(target, exist_ok=True)
            _with_dir(target, lambda out: _copy_dir_out(fd, out, budget, source, 0))
        else:
            _check_regular(info, source)
            if os.path.isdir(target):
                target = os.path.join(target, os.path.basename(source))
            parent = os.path.dirname(os.path.abspath(target))
            _with_dir(parent, lambda out: _copy_file_out(fd, info, os.path.basename(target), out, budget))
    finally:
        os.close(fd)


def _with_dir(path: str, work: Callable[[int], None]) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        work(fd)
    finally:
        os.close(fd)


def _copy_file_out(fd: int, info: os.stat_result, name: str, out: int, budget: _Budget) -> None:
    budget.take(files=1)
    if info.st_size > budget.size:  # a sparse file of a petabyte costs nothing to refuse
        budget.take(size=info.st_size)
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    new = os.open(name, flags, 0o600, dir_fd=out)
    try:
        while data := os.read(fd, CHUNK):
            budget.take(size=len(data))
            view = memoryview(data)
            while view:
                view = view[os.write(new, view) :]
        os.fchmod(new, stat.S_IMODE(info.st_mode) & 0o777)
    finally:
        os.close(new)


def _copy_dir_out(fd: int, out: int, budget: _Budget, path: str, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise UsageError(f"copy_out: {budget.what}: directories nested deeper than {MAX_DEPTH}")
    with os.scandir(fd) as entries:
        for entry in entries:
            budget.take(files=1)
            name = entry.name
            info = os.stat(name, dir_fd=fd, follow_symlinks=False)
            if stat.S_ISLNK(info.st_mode):
                _replace_link(os.readlink(name, dir_fd=fd), name, out)
            elif stat.S_ISDIR(info.st_mode) or stat.S_ISREG(info.st_mode):
                _copy_child_out(fd, out, name, budget, path=f"{path}/{name}", depth=depth)
            else:
                raise UsageError(f"copy_out: {path}/{name}: {_kind(info.st_mode)} cannot be copied")


def _replace_link(link: str, name: str, out: int) -> None:
    try:
        os.symlink(link, name, dir_fd=out)
    except FileExistsError:
        os.unlink(name, dir_fd=out)
        os.symlink(link, name, dir_fd=out)


def _copy_child_out(fd: int, out: int, name: str, budget: _Budget, *, path: str, depth: int) -> None:
    # O_NOFOLLOW, and looked at again: the program may have exchanged it since.
    child = os.open(name, _OPEN | os.O_NOFOLLOW, dir_fd=fd)
    try:
        info = os.fstat(child)
        if stat.S_ISDIR(info.st_mode):
            with contextlib.suppress(FileExistsError):  # merged, as cp does; it is opened below without following a link
                os.mkdir(name, 0o700, dir_fd=out)
            below = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=out)
            try:
                _copy_dir_out(child, below, budget, path, depth + 1)
                os.fchmod(below, stat.S_IMODE(info.st_mode) & 0o777 | 0o700)
            finally:
                os.close(below)
        else:
            _check_regular(info, path)
            _copy_file_out(child, info, name, out, budget)
    finally:
        os.close(child)
