"""Single files and directories of a container: read, write, list, look at, remove."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import stat
import time
from typing import Final

from sandbox import _plan as plan
from sandbox._files.batch import IN_REQUEST, MOST_DATA, Batch
from sandbox._files.inside import ROOT, Inside
from sandbox._files.walk import CHUNK, OPEN, kind
from sandbox._ids import Ids
from sandbox.errors import LimitError, SetupError, UsageError

_MISSING: Final = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
_NOBODY: Final = 65534  # who has no id inside; kernel.overflowuid


def read_bytes(inside: Inside, path: str, *, max_size: int) -> bytes:
    """Read one regular file."""
    fd = inside.open(path, OPEN)
    try:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):
            raise UsageError(f"{path}: {kind(info.st_mode)}, not a regular file")
        return _read_bounded(fd, path, max_size)
    except OSError as error:
        if isinstance(error, SetupError):
            raise
        raise inside.failed(error, path) from error
    finally:
        os.close(fd)


def _read_bounded(fd: int, path: str, max_size: int) -> bytes:
    chunks: list[bytes] = []
    size = 0
    while data := os.read(fd, min(CHUNK, max_size + 1 - size)):
        chunks.append(data)
        size += len(data)
        if size > max_size:
            raise LimitError(f"{path}: larger than {max_size} bytes; pass a larger max_size", limit="max_size")
    return b"".join(chunks)


def write_bytes(inside: Inside, path: str, data: bytes, *, mode: int, uid: int, gid: int) -> None:
    """Create or replace one regular file."""
    if len(data) <= IN_REQUEST:
        inside.do([plan.WriteFile(path, data, ROOT, mode, uid, gid)])
        return
    view = memoryview(data)
    with contextlib.closing(Batch(inside, uid, gid)) as batch:
        for at in range(0, len(data), MOST_DATA):
            batch.write(path, view[at : at + MOST_DATA], mode=mode, offset=at or plan.NEW_FILE)
        batch.flush()


def make_dirs(inside: Inside, path: str, *, uid: int, gid: int) -> None:
    """mkdir -p; what exists stays as it is."""
    if ops := dir_ops(path, uid=uid, gid=gid):
        inside.do(ops)


def dir_ops(path: str, *, uid: int, gid: int, mode: int = 0o755) -> list[plan.Op]:
    """Operations that make *path* with *mode*, and its parents."""
    parts = [part for part in path.split("/") if part]
    names = ["/" + "/".join(parts[: i + 1]) for i in range(len(parts))]
    return [plan.MakeDir(name, ROOT, mode if name == names[-1] else 0o755, uid, gid) for name in names]


def is_dir(inside: Inside, path: str) -> bool:
    """Whether *path* is a directory inside (through links inside the root)."""
    try:
        fd = inside.open(path, os.O_PATH | os.O_DIRECTORY)
    except SetupError:
        return False
    os.close(fd)
    return True


def exists(inside: Inside, path: str) -> bool:
    """Whether *path* leads to something."""
    try:
        fd = inside.open(path, os.O_PATH)
    except SetupError as error:
        if error.errno in _MISSING:
            return False
        raise
    os.close(fd)
    return True


def look(inside: Inside, path: str, ids: Ids, *, follow_symlinks: bool) -> os.stat_result:
    """stat(2), with the ids as they are inside."""
    fd = inside.open(path, os.O_PATH if follow_symlinks else os.O_PATH | os.O_NOFOLLOW)
    try:
        info = os.fstat(fd)
    finally:
        os.close(fd)
    fields, named = list(info), {name: getattr(info, name) for name in dir(info) if name.startswith("st_")}
    fields[stat.ST_UID] = _inside_id(info.st_uid, ids.maps.uid_map)
    fields[stat.ST_GID] = _inside_id(info.st_gid, ids.maps.gid_map)
    return os.stat_result(fields, named)


def _inside_id(outside: int, maps: tuple[plan.IdMap, ...]) -> int:
    return next((m.inside + outside - m.outside for m in maps if 0 <= outside - m.outside < m.count), _NOBODY)


def list_dir(inside: Inside, path: str, *, max_entries: int) -> list[str]:
    """The names in a directory, sorted."""
    fd = inside.open(path, OPEN | os.O_DIRECTORY)
    try:
        with os.scandir(fd) as entries:
            names = sorted(entry.name for entry in itertools.islice(entries, max_entries + 1))
    except OSError as error:
        raise inside.failed(error, path) from error
    finally:
        os.close(fd)
    if len(names) > max_entries:
        raise LimitError(f"{path}: more than {max_entries} entries; pass a larger max_entries", limit="max_entries")
    return names


def remove(inside: Inside, path: str, *, recursive: bool, missing_ok: bool, timeout: float | None) -> None:
    """Remove a file, a link, an empty directory, or a tree. Init does a part at a time, for it has programs to look after."""
    began = time.monotonic()
    while True:
        try:
            inside.do([plan.Remove(path, ROOT, recursive=recursive)])
        except SetupError as error:
            if missing_ok and error.errno in (errno.ENOENT, errno.ENOTDIR):
                return
            if error.errno != errno.EAGAIN:
                raise
        else:
            return
        if timeout is not None and time.monotonic() - began > timeout:
            raise TimeoutError(f"remove: {path}: not done within {timeout:g} s; a program may be adding to it")
