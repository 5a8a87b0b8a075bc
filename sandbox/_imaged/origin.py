"""From an image's name to what a container is made of."""

from __future__ import annotations

import os
import posixpath
import threading
import time
from functools import lru_cache
from typing import Final

from attrs import define, field, frozen

from sandbox._types import StrPath, to_env, to_inside_path
from sandbox.errors import ImageError, ImageNotFoundError, UsageError
from sandbox.fs import Layers
from sandbox.image import Image, Settings, Store

# Where an image's volumes are not made: these are the kernel's own, or ours. (Images for systemd declare /sys/fs/cgroup.)
_KERNELS: Final = ("proc", "sys", "dev")
_SETTLED_NS: Final = 50_000_000  # a directory that was changed longer ago than this has another time when it is changed again
_MOST_KNOWN: Final = 128


@frozen(eq=False)
class Origin:
    """An image, and what it says of containers, in their words. Compared by identity: `find` gives the same one for the same image."""

    image: Image
    root: Layers
    env: tuple[tuple[str, str], ...]
    cwd: str
    user: str
    volumes: tuple[str, ...]


@lru_cache(maxsize=_MOST_KNOWN)
def of_image(image: Image) -> Origin:
    """What *image* gives. Raises: ImageError: it says something that no container can be."""
    settings = image.settings
    names = tuple(f"{diff_id.hex}/tree" for diff_id in image.stack)
    shown = image.names[0] if image.names else image.id.short
    try:
        return Origin(
            image=image,
            root=Layers(f"{image.store}/layers", names),
            env=to_env([_variable(line) for line in settings.env]),
            cwd=_workdir(settings.working_dir),
            user=settings.user or "0:0",
            volumes=_volumes(settings),
        )
    except UsageError as error:
        raise ImageError(f"image {shown}: {error}") from error


def _variable(line: str) -> tuple[str, str]:
    name, _, value = line.partition("=")
    return name, value


def _inside(path: str, what: str) -> str:
    """A path that an image says: absolute, without ``..`` that would lead anywhere (Docker's builder has made it so already)."""
    return to_inside_path(posixpath.normpath(f"/{path}"), what=what)


def _workdir(path: str) -> str:
    found = _inside(path, "WorkingDir")
    if found.startswith("/proc/") and "/fd" in found:  # CVE-2024-21626
        raise UsageError(f"WorkingDir: {found!r} leads through a descriptor")
    return found


def _volumes(settings: Settings) -> tuple[str, ...]:
    paths = (_inside(path, "Volumes") for path in settings.volumes)
    return tuple(sorted({path for path in paths if path != "/" and path.split("/")[1] not in _KERNELS}))


# ---- Names ----


@define(eq=False)
class _Known:
    """What names stood for, and the times of the directories that say so: they change with every name that comes, goes or moves."""

    found: dict[tuple[str, str], tuple[object, Origin]] = field(factory=dict[tuple[str, str], tuple[object, Origin]])
    lock: threading.Lock = field(factory=threading.Lock)


_known = _Known()


def find(name: str, store: Store | StrPath | None) -> Origin:
    """The image that *name* means in *store*. To look it up takes milliseconds, so it is remembered while nothing changes there.

    Raises: ImageNotFoundError, with the remedy; UsageError: it is no name; ImageError.
    """
    place = store if isinstance(store, Store) else Store(store)
    key, state = (place.path, name), _state_of(place.path)
    with _known.lock:
        known = _known.found.get(key)
    if known is not None and state is not None and known[0] == state:
        return known[1]
    origin = of_image(_look_up(place, name))
    if state is not None and state == _state_of(place.path):
        with _known.lock:
            if len(_known.found) >= _MOST_KNOWN:
                _known.found.clear()
            _known.found[key] = state, origin
    return origin


def _look_up(store: Store, name: str) -> Image:
    hint = "" if "/" in name else f"; a directory of that name is written ./{name}"
    try:
        return store.get(name)
    except ImageNotFoundError:
        raise ImageNotFoundError(f"image {name!r}: it is not in the store {store.path}; sandbox pull {name} gets it") from None
    except UsageError as error:
        raise UsageError(f"{error}{hint}") from None


def _state_of(path: str) -> tuple[int, ...] | None:
    """The times of what tells names and images; None: they were changed just now, and may be again within the same tick of the clock."""
    try:
        found = [os.stat(f"{path}/{name}") for name in ("names", "images")]
    except OSError:
        return None
    if time.time_ns() - max(one.st_mtime_ns for one in found) < _SETTLED_NS:
        return None
    return tuple(number for one in found for number in (one.st_dev, one.st_ino, one.st_mtime_ns))


def _after_fork_in_child() -> None:
    _known.lock = threading.Lock()


os.register_at_fork(after_in_child=_after_fork_in_child)
