"""What a container's file systems are to be, as frozen values; converters refuse what makes no sense before anything is touched."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterable
from typing import Final

from attrs import field, frozen

from sandbox._sys.places import absolute
from sandbox._types import Size, StrPath, to_count, to_inside_path, to_size, to_text
from sandbox.errors import UnsupportedError, UsageError

PAGE: Final = 4096
MAX_ID: Final = (1 << 32) - 2
MAX_MOUNTS: Final = 96  # each takes a slot for its source, and one for its rule of Landlock: wire.OWN_SLOTS
MAX_LAYERS: Final = 498  # OVL_MAX_STACK in fs/overlayfs/params.c is 500; one is ours
DEFAULT_SCRATCH: Final = 256 << 20
MIN_VOLUME: Final = 16 << 20  # of a volume with a size: ext4's journal alone takes 4 MiB
MAX_VOLUME: Final = (16 << 40) - PAGE  # the longest file that ext4 can hold
_VOLUME_NAME: Final = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}", re.ASCII)
_LAYER_NAME: Final = re.compile(r"(?=.{1,200}\Z)[a-zA-Z0-9][a-zA-Z0-9_.-]*(?:/[a-zA-Z0-9][a-zA-Z0-9_.-]*)*", re.ASCII)
_USER_NAME: Final = re.compile(r"[a-z_][a-z0-9_-]{0,30}", re.ASCII)

# Docker's lists: moby, daemon/pkg/oci/defaults.go, "DefaultLinuxSpec"; thermal_throttle is added for each CPU that has it.
MASKED_PATHS: Final = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
)
READ_ONLY_PATHS: Final = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")

# Ours: a mount there would hide what we mount, or lie about the kernel (CVE-2019-16884, CVE-2025-52881).
_OWN_TREES: Final = ("/proc", "/sys")
DEVICES: Final = ("null", "zero", "full", "random", "urandom", "tty")
_OWN_DEV: Final = frozenset((*DEVICES, "pts", "ptmx", "mqueue", "fd", "stdin", "stdout", "stderr", "console"))


def _to_source(value: StrPath) -> str:
    path = os.fsdecode(to_text(value, what="source"))
    if not path:
        raise UsageError("source: empty; give the path of a file or directory of the host")
    # Not abspath(): it would take "link/.." for nothing.
    return absolute(path, what="source")


def _to_optional_source(value: StrPath | None) -> str | None:
    return None if value is None else _to_source(value)


def _to_target(value: StrPath) -> str:
    target = to_inside_path(value, what="target")
    first, _, rest = target[1:].partition("/")
    if target in ("/", "/dev"):
        raise UsageError(f"target: {target!r} is made by us; choose a directory below it, or another root")
    if f"/{first}" in _OWN_TREES:
        raise UsageError(f"target: {target!r} lies in /{first}, which shows the kernel's own view; choose another place")
    if first == "dev" and rest.split("/", 1)[0] in _OWN_DEV:
        raise UsageError(f"target: {target!r} is one of our own devices; choose another name")
    return target


def _to_flag(value: bool) -> bool:
    if not isinstance(value, bool):
        raise UsageError(f"{value!r} is neither True nor False")
    return value


def _to_optional_flag(value: bool | None) -> bool | None:
    return None if value is None else _to_flag(value)


def _to_tmpfs_size(value: Size) -> int:
    # tmpfs takes 0 for "no limit"; the kernel rounds up to pages.
    return to_size(value, what="size", least=PAGE)


def _to_shm(value: Size) -> int:
    return to_size(value, what="shm", least=PAGE)


def _to_optional_size(value: Size | None) -> int | None:
    return None if value is None else _to_tmpfs_size(value)


def _to_inodes(value: int | None) -> int | None:
    # tmpfs takes 0 for "no limit"; the root directory itself is one.
    return None if value is None else to_count(value, what="inodes", least=2)


def _to_mode(value: int) -> int:
    return to_count(value, what="mode", least=0, most=0o7777)


def _to_id(value: int) -> int:
    return to_count(value, what="id", least=0, most=MAX_ID)


def to_volume_name(value: str) -> str:
    """Check the name of a volume. Raises: UsageError."""
    if not isinstance(value, str) or _VOLUME_NAME.fullmatch(value) is None:
        raise UsageError(f"volume: {value!r} is not a name; use up to 128 letters, digits, '_', '.', '-', starting with a letter or digit")
    return value


def to_volume_size(value: Size) -> int:
    """Check the size of a volume, and round it up to whole blocks. Raises: UsageError."""
    size = to_size(value, what="size", least=MIN_VOLUME)
    if size > MAX_VOLUME:
        raise UsageError(f"size: {value!r} is out of range; a volume has {MAX_VOLUME} bytes at most")
    return -(-size // PAGE) * PAGE


def _to_optional_volume_size(value: Size | None) -> int | None:
    return None if value is None else to_volume_size(value)


def _to_optional_volume_name(value: str | None) -> str | None:
    return None if value is None else to_volume_name(value)


def _to_subpath(value: StrPath) -> str:
    path = os.fsdecode(to_text(value, what="subpath"))
    if not path:
        return ""
    if path.startswith("/"):
        raise UsageError(f"subpath: {path!r} is absolute; give a path below the top of the volume")
    return to_inside_path(f"/{path}", what="subpath")[1:]


def _to_user_name(value: str) -> str:
    if not isinstance(value, str) or _USER_NAME.fullmatch(value) is None or value in ("root", "nobody"):
        raise UsageError(f"user: {value!r} is not a free user name; use up to 31 of a-z, 0-9, '_', '-'")
    return value


def default_inodes(size: int) -> int:
    """Derive an inode limit from a size in bytes: one for each page, as each inode costs about 1 kB that *size* does not count."""
    return min(max(size // PAGE, 64), 1 << 20)


def _to_layers(value: Iterable[str]) -> tuple[str, ...]:
    if isinstance(value, str):
        raise UsageError(f"names: {value!r} is one string; give a tuple of names, the lowest layer first")
    names = tuple(value)
    for name in names:
        if not isinstance(name, str) or _LAYER_NAME.fullmatch(name) is None:
            raise UsageError(f"names: {name!r} is not the name of a layer; use up to 200 letters, digits, '_', '.', '-', and '/'")
    # Overlay refuses a layer that is there twice (ELOOP), and the lower one shows nothing that the higher one does not.
    unique = tuple(reversed(dict.fromkeys(reversed(names))))
    if len(unique) > MAX_LAYERS:
        raise UsageError(f"names: {len(unique)} layers; overlay takes {MAX_LAYERS} at most")
    return unique


@frozen(cache_hash=True)
class Bind:
    """Show the host's file or directory *source* at *target*.

    *source* may be relative to the current directory; *target* is absolute. With *recursive*, what is mounted below
    the source is seen too; *read_only* then holds for all of it. Set-user-id bits and device nodes have no effect.
    """

    source: str = field(converter=_to_source)
    target: str = field(converter=_to_target)
    read_only: bool = field(default=False, kw_only=True, converter=_to_flag)
    recursive: bool = field(default=True, kw_only=True, converter=_to_flag)


@frozen(cache_hash=True)
class Tmpfs:
    """Mount an empty file system in memory at *target*, limited to *size* bytes and *inodes* files (None: derived from the size)."""

    target: str = field(converter=_to_target)
    size: int = field(default=64 << 20, kw_only=True, converter=_to_tmpfs_size)
    mode: int = field(default=0o1777, kw_only=True, converter=_to_mode)
    inodes: int | None = field(default=None, kw_only=True, converter=_to_inodes)


@frozen(cache_hash=True)
class Volume:
    """Mount the directory that is kept under *name* in a `VolumeStore` at *target*; it is made at first use, and lasts.

    *name* None: an anonymous one, which is removed with the container. *subpath*: a directory in the volume, to be mounted instead of its top;
    it must be there, and no link leads to it. A volume that is empty, and that nobody else uses, first gets what a `Directory` has at *target*,
    with owners and modes, unless *nocopy*. *size*: bytes that a new one may hold, from 16M on, which only root can have; one that is there must have
    been made with the same. None: whatever it has.
    """

    name: str | None = field(converter=_to_optional_volume_name)
    target: str = field(converter=_to_target)
    read_only: bool = field(default=False, kw_only=True, converter=_to_flag)
    subpath: str = field(default="", kw_only=True, converter=_to_subpath)
    nocopy: bool = field(default=False, kw_only=True, converter=_to_flag)
    size: int | None = field(default=None, kw_only=True, converter=_to_optional_volume_size)

    def __attrs_post_init__(self) -> None:
        if self.subpath and self.name is None:
            raise UsageError("subpath: an anonymous volume is empty; give it a name, or leave out the sub-path")


Mount = Bind | Tmpfs | Volume


@frozen(cache_hash=True)
class Scratch:
    """The writable layer: in memory, limited to *size* bytes and *inodes* files in all, or on *disk* below that directory.

    On disk, only the disk itself limits it (*size* and *inodes* are refused): give a partition or a project quota.
    A directory of its own is made below *disk*, and removed by `FsPlan.close`; nothing is synced (overlay's ``volatile``).

    *copy*: fill it with a copy of the `Directory` first, instead of mounting an overlay: for hosts where users may not. All of the directory then
    counts against *size* and *inodes*, takes that memory, and the time to read it. Hard links become files of their own; what is
    mounted below it, devices, sockets and extended attributes are left out.
    """

    size: int | None = field(default=None, converter=_to_optional_size)
    inodes: int | None = field(default=None, kw_only=True, converter=_to_inodes)
    disk: str | None = field(default=None, kw_only=True, converter=_to_optional_source)
    copy: bool = field(default=False, kw_only=True, converter=_to_flag)

    def __attrs_post_init__(self) -> None:
        if self.disk is not None and self.copy:
            raise UsageError("scratch: a copy is kept in memory; leave out disk=, or leave out copy=True")
        if self.disk is not None and not (self.size is None and self.inodes is None):
            raise UsageError("scratch: size and inodes cannot be enforced on disk; leave them out, or leave out disk=")

    @property
    def limits(self) -> tuple[int, int]:
        """Bytes and inodes of a scratch layer in memory."""
        size = DEFAULT_SCRATCH if self.size is None else self.size
        return size, default_inodes(size) if self.inodes is None else self.inodes


@frozen(cache_hash=True)
class HostView:
    """A root that shows the host's programs and libraries, and the few files of /etc that they need; never its homes or secrets.

    Programs are seen with the rights of "others" only: files of /usr that not everybody may read stay closed, to the
    container's root too. With *overlay* (privileged callers only) /usr can be written to, on the scratch layer;
    id-mapping then makes the container's root the owner of all of it, and **gives it what only root may read there**.

    *user*, *uid* and *gid* are written to the synthesised /etc/passwd; a *uid* of 0 stands for no user but root.
    """

    overlay: bool = field(default=False, kw_only=True, converter=_to_flag)
    user: str = field(default="sandbox", kw_only=True, converter=_to_user_name)
    uid: int = field(default=1000, kw_only=True, converter=_to_id)
    gid: int = field(default=1000, kw_only=True, converter=_to_id)


@frozen(cache_hash=True)
class Directory:
    """A root that is a directory of the host. It is never written to: changes go to the scratch layer.

    What is mounted below *path* on the host is not seen.
    """

    path: str = field(converter=_to_source)


@frozen(cache_hash=True)
class Layers:
    """A root of many read-only layers, each a directory *names* (the lowest first) below the directory *path*; changes go to the scratch layer.

    A layer hides what is below it as overlay's do: a character device 0:0 stands for what is not there any more, and ``user.overlay.opaque``
    says that nothing of the directories below is. A layer that comes twice counts where it is highest: there it hides all that it
    could do below. Layers are what nobody changes: whoever puts another one in the place of one removes
    the first part of its name from *path* before.
    """

    path: str = field(converter=_to_source)
    names: tuple[str, ...] = field(converter=_to_layers)


Root = HostView | Directory | Layers


def _to_mounts(value: Iterable[Mount]) -> tuple[Mount, ...]:
    mounts = tuple(value)
    for mount in mounts:
        if not isinstance(mount, (Bind, Tmpfs, Volume)):
            raise UsageError(f"mounts: {mount!r} is not a Bind, Tmpfs or Volume")
    # By components, so that a parent comes before what is mounted inside it.
    ordered = sorted(mounts, key=lambda mount: mount.target.split("/"))
    if len(ordered) > MAX_MOUNTS:
        raise UsageError(f"mounts: {len(ordered)} are too many; give {MAX_MOUNTS} at most")
    for left, right in itertools.pairwise(ordered):
        if left.target == right.target:
            raise UsageError(f"mounts: two mounts on {left.target!r}; keep one")
    return tuple(ordered)


def _to_paths(value: Iterable[str]) -> tuple[str, ...]:
    if isinstance(value, str):
        raise UsageError(f"paths: {value!r} is one string; give a tuple of paths")
    paths = tuple(to_inside_path(path, what="path") for path in value)
    if "/" in paths:
        raise UsageError("paths: '/' cannot be masked; for a read-only root leave out the scratch layer")
    return paths


def _to_places(value: Iterable[str]) -> tuple[str, ...]:
    # By components, as mounts: a place inside another one is mounted after it.
    places = sorted({_to_target(path) for path in value}, key=lambda path: path.split("/"))
    if len(places) > MAX_MOUNTS:
        raise UsageError(f"writable_places: {len(places)} are too many; give {MAX_MOUNTS} at most")
    return tuple(places)


def _to_root(value: Root) -> Root:
    if not isinstance(value, (HostView, Directory, Layers)):
        raise UsageError(f"root: {value!r} is none of HostView, Directory and Layers")
    return value


def _to_scratch(value: Scratch | None) -> Scratch | None:
    if not isinstance(value, (Scratch, type(None))):
        raise UsageError(f"scratch: {value!r} is neither a Scratch nor None")
    return value


@frozen(cache_hash=True, kw_only=True)
class FilesystemSpec:
    """All file systems of one container.

    *scratch*: the writable layer; None makes the root read-only (mounts are not: each has its own `read_only`).
    *shm*: bytes of /dev/shm. *mqueue* needs a private IPC namespace, *sysfs* a private network namespace; None for
    *sysfs* means: for a `Directory`, where the host allows it. *suid*: let set-user-id bits of the root work.
    *traceless*: reading changes no access times, and /proc shows programs only what they could trace, so not init.
    *masked* and *read_only_paths* hide or close what procfs and sysfs show beyond the container.

    *writable_places*: directories of the root that can be written to even when it is read-only, and that are mounts of their own, with what the root
    has there: an image's volumes. *workdir*: made when it is missing. Both are of a root of `Layers` only.

    *given*: those of /dev/shm and /dev/mqueue that are mounts of somebody else's, which `ops` is handed.
    """

    root: Root = field(factory=HostView, converter=_to_root)
    scratch: Scratch | None = field(default=None, converter=_to_scratch)
    mounts: tuple[Mount, ...] = field(default=(), converter=_to_mounts)
    shm: int = field(default=64 << 20, converter=_to_shm)
    mqueue: bool = field(default=True, converter=_to_flag)
    sysfs: bool | None = field(default=None, converter=_to_optional_flag)
    suid: bool = field(default=False, converter=_to_flag)
    traceless: bool = field(default=False, converter=_to_flag)
    masked: tuple[str, ...] = field(default=MASKED_PATHS, converter=_to_paths)
    read_only_paths: tuple[str, ...] = field(default=READ_ONLY_PATHS, converter=_to_paths)
    writable_places: tuple[str, ...] = field(default=(), converter=_to_places)
    workdir: str = "/"
    given: tuple[str, ...] = ()

    def __attrs_post_init__(self) -> None:
        if isinstance(self.root, HostView) and self.root.overlay and self.scratch is None:
            raise UsageError("root: an overlay needs a scratch layer to write to; give scratch=Scratch()")
        if not isinstance(self.root, Layers) and (self.writable_places or self.workdir != "/"):
            raise UsageError("writable_places, workdir: are of a root of Layers; leave them out")
        if len(self.mounts) + len(self.writable_places) > MAX_MOUNTS:
            raise UsageError(f"mounts: more than {MAX_MOUNTS}, with the writable places; give fewer")
        if isinstance(self.root, Layers) and self.scratch is not None and self.scratch.copy:
            raise UsageError("scratch: copy=True copies the directory that is the root; layers take an overlay: leave it out")
        if isinstance(self.root, HostView) and self.scratch is not None and self.scratch.copy:
            raise UsageError("scratch: copy=True copies the directory that is the root, and a view of the host is none; leave it out")

    @property
    def takes_overlay(self) -> bool:
        """Whether the kernel has to mount an overlay for it, with the rights of a user namespace."""
        return self.root.overlay if isinstance(self.root, HostView) else self.scratch is None or not self.scratch.copy


def no_overlay() -> UnsupportedError:
    """Say that this host mounts no overlay in a user namespace (Linux 5.11; the module may not be loaded)."""
    return UnsupportedError(
        "a directory as the root, or a writable view of the host, takes overlay mounts in a user namespace, which this host does not offer",
        feature="overlay",
        remedy="Linux 5.11 or later, and as root: modprobe overlay; or have the directory copied into memory, by scratch='copy' "
        "or Scratch('1G', copy=True); or use the view of the host without overlay=True",
    )
