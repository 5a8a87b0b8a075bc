"""Looking into layers from outside, without mounting them: what the files of an image would be, by overlay's rules.

Every name is looked up by itself, and no link is followed: what lies in a layer was written by whoever made the image.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Sequence
from typing import Concatenate, Final, ParamSpec, TypeVar, cast

from sandbox.fs._specs import Layers

_PATH: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_DIRECTORY: Final = _PATH | os.O_DIRECTORY


def is_whiteout(found: os.stat_result) -> bool:
    """Whether it is what overlay has for a name that is gone."""
    return stat.S_ISCHR(found.st_mode) and found.st_rdev == 0


def is_opaque(directory: int) -> bool:
    """Whether nothing of the directories below shows in *directory* (a descriptor, O_PATH too)."""
    try:
        return os.getxattr(f"/proc/self/fd/{directory}", "user.overlay.opaque") == b"y"
    except OSError:
        return False


_T = TypeVar("_T")
_P = ParamSpec("_P")
_remembered: dict[object, object] = {}
_MOST_REMEMBERED: Final = 256


def remembered(look: Callable[Concatenate[int, _P], _T], root: int, *args: _P.args, **more: _P.kwargs) -> _T:
    """``look(root, *args)``, or what it gave last time: to look into 120 layers takes as long as to start a container.

    Layers never change. One that was removed, and came again with other content, has left their directory with another time.
    """
    now = os.fstat(root)
    key = (look, now.st_dev, now.st_ino, now.st_mtime_ns, now.st_ctime_ns, args)
    try:
        return cast("_T", _remembered[key])
    except KeyError:
        found = look(root, *args, **more)
    if len(_remembered) >= _MOST_REMEMBERED:
        _remembered.clear()
    _remembered[key] = found
    return found


def highest_with(root: int, names: Sequence[str], entry: str) -> str | None:
    """The highest of the layers *names*, directories in *root*, that has *entry* or says that it is gone."""
    for name in reversed(names):
        try:
            os.stat(f"{name}/{entry}", dir_fd=root, follow_symlinks=False)
        except OSError:
            continue
        return name
    return None


def read_layered(root: int, names: Sequence[str], path: str, most: int) -> bytes:
    """Up to *most* bytes of the regular file *path* as programs would see it; b"" when it is none, or a link stands in the way."""
    *parents, last = path.strip("/").split("/")
    opened = [fd for name in reversed(names) if (fd := _try_open(name, root, _DIRECTORY)) is not None]
    try:
        for parent in parents:
            below = list(_descend(opened, parent))
            opened.extend(below)
            opened, done = below, opened[: -len(below) or None]
            for fd in done:
                os.close(fd)
        return _read_first(opened, last, most)
    finally:
        for fd in opened:
            os.close(fd)


def read_file(layers: Layers, path: str, most: int) -> bytes:
    """Up to *most* bytes of the file *path* of *layers*, as `read_layered`; b"" also when they are not there."""
    try:
        root = os.open(layers.path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return remembered(read_layered, root, layers.names, path, most)
    finally:
        os.close(root)


def _descend(directories: Sequence[int], name: str) -> Iterator[int]:
    """The directories *name* in *directories* that show, the highest first: what lies below something else, or below an opaque one, does not."""
    for directory in directories:
        found = _try_open(name, directory, _PATH)
        if found is None:
            continue
        if not stat.S_ISDIR(os.fstat(found).st_mode):
            os.close(found)
            return
        yield found
        if is_opaque(found):
            return


def _read_first(directories: Sequence[int], name: str, most: int) -> bytes:
    for directory in directories:
        found = _try_open(name, directory, _PATH)
        if found is not None:
            try:
                return read_regular(found, most)
            finally:
                os.close(found)
    return b""


def _try_open(name: str, directory: int, flags: int) -> int | None:
    try:
        return os.open(name, flags, dir_fd=directory)
    except OSError:
        return None


def read_regular(found: int, most: int) -> bytes:
    """Up to *most* bytes of what *found*, a descriptor of O_PATH, stands for; b"" when it is no regular file, or closed to us."""
    # Looked at before it is opened: to open a device, which an image may have, can do something.
    if not stat.S_ISREG(os.fstat(found).st_mode):
        return b""
    try:
        fd = os.open(f"/proc/self/fd/{found}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.read(fd, most)
    finally:
        os.close(fd)
