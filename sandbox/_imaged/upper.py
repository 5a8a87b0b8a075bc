"""The layer that a container writes to, seen from outside.

Init keeps a descriptor of it, and gives it on request; programs never see it. What is behind it is hostile, and may be in motion: it is
walked on descriptors, below that one only, following nothing.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Generator
from typing import TYPE_CHECKING, Final

from attrs import frozen

from sandbox import _plan as plan
from sandbox._sys.calls import openat2
from sandbox._sys.constants import RESOLVE_BENEATH, RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, RESOLVE_NO_XDEV
from sandbox.errors import ProtocolError, UsageError
from sandbox.fs._names import NAME_FILES

if TYPE_CHECKING:
    from sandbox._started import Started
    from sandbox.image import Image

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_WITHIN: Final = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_XDEV
_UPPER: Final = f"@{plan.ROLE_UPPER}"


@frozen
class Upper:
    """A container's own layer: a descriptor of its directory, what its owners are shifted by, and the paths in it that are no part of an image."""

    fd: int
    shift: int
    owner: tuple[int, int] | None  # instead of all owners
    not_ours: tuple[str, ...]


def image_of(live: Started, what: str) -> Image:
    """Raises: UsageError: the container is of no image."""
    image = live.spec.image
    if image is None:
        raise UsageError(f"{what}: the container is of no image; Container('debian:12') is one, say")
    return image


@contextlib.contextmanager
def opened(live: Started) -> Generator[Upper]:
    """The layer, within the block."""
    (given,) = live.session.request([plan.Open("upper", ".", os.O_PATH | os.O_DIRECTORY, _UPPER)], ["upper"])
    try:
        if not stat.S_ISDIR(os.fstat(given).st_mode):
            raise ProtocolError("what was to be the container's upper layer is no directory")
        fd = openat2(".", _DIRECTORY, dir_fd=given, resolve=_WITHIN)
    finally:
        os.close(given)
    try:
        filesystem = live.spec.filesystem
        about_us = (f"/etc/{name}" for name in NAME_FILES)  # which every container has of its own, whatever its image says
        not_ours = (*filesystem.writable_places, *(mount.target for mount in filesystem.mounts), *about_us)
        is_many = live.ids.only is None
        yield Upper(fd, live.ids.root - live.ids.init_uid if is_many else 0, None if is_many else (0, 0), not_ours)
    finally:
        os.close(fd)


@contextlib.contextmanager
def at_rest(live: Started, *, pause: bool) -> Generator[None]:
    """Freeze all programs within the block, if *pause* says so and they are in a control group by which they can be frozen."""
    if not pause or live.is_paused or not live.can_pause:
        yield
        return
    live.pause()
    try:
        yield
    finally:
        live.resume()
