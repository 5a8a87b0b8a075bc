"""Folding: copying what several layers show together; see `_folds`. Layers are strangers' work: no link in them is followed."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Final

from attrs import define, field, frozen

from sandbox._sys.calls import openat2
from sandbox.image._disk import OPEN_DIRECTORY, Root, layer_name
from sandbox.image._merged import DIRECTORY, FILE, RESOLVE, Directory, is_opaque, is_whiteout, merge, xattr_names
from sandbox.image.digest import Digest

_OPAQUE: Final = "user.overlay.opaque"


@frozen
class Made:
    """What folding tells, as unpacking does of a layer."""

    diff_id: Digest
    size: int
    entries: int
    bytes_on_disk: int


def fold(root: Root, digest: Digest, below: Sequence[Digest], parts: Sequence[Digest], tree: int) -> Made:
    """Fill the directory *tree* with what the layers *parts* show over the layers *below*, both the lowest first.

    Raises: OSError: something cannot be copied.
    """
    with ExitStack() as opened:
        layers: list[int] = []
        for diff_id in (*dict.fromkeys(reversed(parts)), *dict.fromkeys(reversed(below))):  # one that comes twice is taken where it is highest
            layers.append(root.open_directory(f"{layer_name(diff_id)}/tree"))
            opened.callback(os.close, layers[-1])
        copier = _Copier(layers, len(set(parts)), tree)
        copier.run()
    return Made(digest, 0, copier.entries, copier.disk)


@define
class _Copier:
    """Copies what the first *count* of *layers* (descriptors, the uppermost first) show over the others to the directory *target*."""

    layers: Sequence[int]
    count: int
    target: int
    entries: int = 0
    disk: int = 0
    copies: dict[tuple[int, int], str] = field(factory=dict[tuple[int, int], str])  # of files with several names, where the first one is

    def run(self) -> None:
        """Copy everything. A directory gets its mode and times when all below it is there, for writing in it changes them."""
        pending = [Directory("", tuple(range(len(self.layers))))]
        done: list[tuple[Directory, bool]] = [(pending[0], False)]
        while pending:
            below = self._visit(pending.pop())
            pending += [one for one, _ in below]
            done += below
        for one, closed in reversed(done):
            self._finish(one, closed=closed)

    def _visit(self, directory: Directory) -> list[tuple[Directory, bool]]:
        """Copy what is in *directory*; its directories are made, empty, and given back, each with whether it hides what is below the fold."""
        with ExitStack() as opened:
            fds: dict[int, int] = {}
            for layer in directory.layers:
                fds[layer] = openat2(directory.path or ".", DIRECTORY, dir_fd=self.layers[layer], resolve=RESOLVE)
                opened.callback(os.close, fds[layer])
            into = openat2(directory.path or ".", OPEN_DIRECTORY, dir_fd=self.target, resolve=RESOLVE)
            opened.callback(os.close, into)
            lower = [fd for layer, fd in fds.items() if layer >= self.count]
            below: list[tuple[Directory, bool]] = []
            for name, found in sorted(merge({layer: fd for layer, fd in fds.items() if layer < self.count}).items()):
                path = f"{directory.path}/{name}" if directory.path else name
                if stat.S_ISDIR(found.status.st_mode):
                    os.mkdir(name, 0o700, dir_fd=into)
                    lowest = () if found.closed else _parts_in({layer: fd for layer, fd in fds.items() if layer >= self.count}, name)
                    below.append((Directory(path, (*found.layers, *lowest)), found.closed))
                elif not is_whiteout(found.status) or _shows(lower, name):
                    self._leaf(fds[found.layer], into, name, path, found.status)
                else:
                    continue
                self.entries += 1
            return below

    def _leaf(self, source: int, into: int, name: str, path: str, status: os.stat_result) -> None:
        key = status.st_dev, status.st_ino
        if status.st_nlink > 1 and (first := self.copies.get(key)) is not None:
            os.link(first, name, src_dir_fd=self.target, dst_dir_fd=into, follow_symlinks=False)
            return
        self.copies[key] = path
        if stat.S_ISREG(status.st_mode):
            self._file(source, into, name, status)
        elif stat.S_ISLNK(status.st_mode):
            os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=into)
        elif stat.S_ISFIFO(status.st_mode) or is_whiteout(status):
            os.mknod(name, status.st_mode, status.st_rdev, dir_fd=into)
            os.chmod(name, stat.S_IMODE(status.st_mode), dir_fd=into)
        else:
            raise OSError(f"{path}: neither a file nor a link")
        if not stat.S_ISREG(status.st_mode):
            if os.geteuid() == 0:
                os.chown(name, status.st_uid, status.st_gid, dir_fd=into, follow_symlinks=False)
            os.utime(name, ns=(status.st_atime_ns, status.st_mtime_ns), dir_fd=into, follow_symlinks=False)

    def _file(self, source: int, into: int, name: str, status: os.stat_result) -> None:
        with ExitStack() as opened:
            old = os.open(name, FILE, dir_fd=source)
            opened.callback(os.close, old)
            new = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=into)
            opened.callback(os.close, new)
            _copy_content(old, new, status.st_size)
            _copy_facts(old, new, status)
            self.disk += os.fstat(new).st_blocks * 512

    def _finish(self, directory: Directory, *, closed: bool) -> None:
        with ExitStack() as opened:
            old = openat2(directory.path or ".", DIRECTORY, dir_fd=self.layers[directory.layers[0]], resolve=RESOLVE)
            opened.callback(os.close, old)
            new = openat2(directory.path or ".", OPEN_DIRECTORY, dir_fd=self.target, resolve=RESOLVE)
            opened.callback(os.close, new)
            if closed:
                os.setxattr(new, _OPAQUE, b"y")
            _copy_facts(old, new, os.fstat(old))
            self.disk += os.fstat(new).st_blocks * 512


def _parts_in(fds: dict[int, int], name: str) -> Iterator[int]:
    """Which of the directories *fds*, the uppermost first, have a part in their directory *name*."""
    for layer, fd in fds.items():
        status = _status(fd, name)
        if status is None:
            continue
        if not stat.S_ISDIR(status.st_mode):
            return
        yield layer
        if is_opaque(fd, name):
            return


def _shows(fds: Sequence[int], name: str) -> bool:
    """Whether the directories *fds*, the uppermost first, show something of that name."""
    highest = next(filter(None, (_status(fd, name) for fd in fds)), None)
    return highest is not None and not is_whiteout(highest)


def _status(fd: int, name: str) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=fd, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _copy_content(old: int, new: int, size: int) -> None:
    """Copy a file of *size* bytes; holes stay holes, however large they are."""
    os.ftruncate(new, size)
    at = 0
    while at < size:
        try:
            at = os.lseek(old, at, os.SEEK_DATA)
        except OSError:  # ENXIO: nothing but a hole
            return
        end = os.lseek(old, at, os.SEEK_HOLE)
        while at < end:
            data = os.pread(old, min(end - at, 1 << 20), at)
            if not data:
                return
            at += os.pwrite(new, data, at)


def _copy_facts(old: int, new: int, status: os.stat_result) -> None:
    """Give owner, mode, extended attributes and times. In that order: a new owner takes set-id bits and capabilities away."""
    if os.geteuid() == 0:
        os.fchown(new, status.st_uid, status.st_gid)
    for name in xattr_names(old):
        if name != _OPAQUE:
            os.setxattr(new, name, os.getxattr(old, name))
    os.fchmod(new, stat.S_IMODE(status.st_mode))
    os.utime(new, ns=(status.st_atime_ns, status.st_mtime_ns))
