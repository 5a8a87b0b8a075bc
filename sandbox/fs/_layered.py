"""A root of many read-only layers, as plan operations; pure.

Theory of operation
-------------------
The layers of all images lie in one directory of the store. One copy of that mount, id-mapped, shows all of them: however many an image has,
that is one mount and one slot. Overlay takes them one by one (``lowerdir+``, Linux 6.5), by their names below that mount; what an older
kernel does instead, `NewOverlay` knows.

From the highest to the lowest: the upper layer, empty at first; ours, with /etc/hostname and the like, and with empty directories for /proc, /dev and
/sys; the image's. So the upper layer has what programs wrote and nothing else: what `diff` shows and `commit` keeps. Init holds a
descriptor of it for that (ROLE_UPPER): once init has let go of the host's tree, no path leads there any more.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from sandbox._plan import ROLE_UPPER, Attach, CloneTree, FdPath, MakeDir, MakeTarget, NewOverlay, Op, Open, Sethook, Slot
from sandbox._sys.constants import O_DIRECTORY, O_NOFOLLOW, O_PATH
from sandbox.fs._kernel import BASE, ITEM
from sandbox.fs._names import ROOT
from sandbox.fs._specs import Bind, FilesystemSpec, Layers

_UPPER: Final = "fs.upper"
_KERNELS: Final = ("/proc", "/sys", "/dev")
classic = False  # tests have it the way of kernels before Linux 6.5


def ours_in(spec: FilesystemSpec) -> str:
    """The directory of the base file system that gets our files."""
    return "ours" if isinstance(spec.root, Layers) else "upper"


def overlay_flags(spec: FilesystemSpec) -> Iterator[tuple[str, str | None]]:
    """What every overlay of a container is mounted with."""
    yield "userxattr", None  # trusted.* takes CAP_SYS_ADMIN in the first user namespace
    if spec.scratch is not None and spec.scratch.disk is not None:
        yield "volatile", None
    if spec.traceless:  # otherwise directories are numbered as they are looked up, and later programs see in which order that was
        yield "xino", "on"


def layered_root(spec: FilesystemSpec, layers: Layers, lower: Slot, attrs: int) -> Iterator[Op]:
    """Make the overlay of *layers*, which are in the directory behind *lower*."""
    below = (FdPath(BASE, "/ours"), *(FdPath(lower, f"/{name}") for name in reversed(layers.names)))
    places = ("upperdir", FdPath(BASE, "/upper")), ("workdir", FdPath(BASE, "/work"))
    options = (*(("lowerdir+", path) for path in below), *places, *overlay_flags(spec))
    yield MakeDir("links", BASE)
    yield NewOverlay(ROOT, options, FdPath(BASE, "links"), attrs, classic)
    yield Open(_UPPER, "upper", O_PATH | O_DIRECTORY | O_NOFOLLOW, BASE)
    yield Sethook(_UPPER, ROLE_UPPER)


def writable_places(spec: FilesystemSpec) -> Iterator[Op]:
    """Make each of them a mount of its own: of the very directory that it is in the root.

    Before anything is mounted in the root: a link of an image's can lead to another directory of it then, and to nothing else.
    """
    for path in spec.writable_places:
        yield MakeTarget(f"{path}/.", ROOT, ROOT)  # links are followed, within the root
        yield CloneTree(ITEM, ROOT, path, recursive=False)
        yield Attach(ITEM, path, ROOT)


def workdir(spec: FilesystemSpec) -> Iterator[Op]:
    """Make the working directory, unless it would be in a directory of the caller's, or in one that the kernel fills."""
    path = spec.workdir
    inside = [mount for mount in spec.mounts if f"{path}/".startswith(f"{mount.target}/")]
    if path != "/" and not path.startswith(_KERNELS) and not any(isinstance(mount, Bind) for mount in inside):
        yield MakeTarget(f"{path}/.", ROOT, ROOT)
