"""What control groups this host offers, and where we stand in them: pure parsers, one detection per process.

A host has up to about a dozen v1 hierarchies (each with its own controllers and its own tree) and at most one v2
hierarchy. *v1*, *v2* or *hybrid* is only a name for what is mounted: a controller lives in exactly one hierarchy,
and everything here asks per controller. Three words of v1 that v2 has built in are accepted for either:
``cpuacct`` (``cpu.stat`` of v2), ``freezer`` (``cgroup.freeze``); ``pressure`` exists in v2 only; ``io`` is ``blkio`` in v1.
"""

from __future__ import annotations

import enum
import os
from collections.abc import Callable, Iterable
from typing import Final

from attrs import Factory, field, frozen

from sandbox.errors import UnsupportedError

CONTROLLERS: Final = ("memory", "cpu", "cpuacct", "cpuset", "pids", "io", "hugetlb", "devices", "freezer", "pressure")
BUILT_INTO_V2: Final = frozenset({"cpuacct", "freezer", "pressure"})  # no entry in cgroup.controllers, no need to enable
ROOM: Final = "sandbox-supervisor"  # where `make_room` puts the processes of a v2 start cgroup
# For one that runs inside another container. (Docker's --privileged does so too, and opens much more.)
IN_A_CONTAINER: Final = (
    "in an outer container: docker run --cgroupns=host --volume /sys/fs/cgroup:/sys/fs/cgroup, or bwrap --bind /sys/fs/cgroup /sys/fs/cgroup "
    "without --unshare-cgroup"
)


class Mode(enum.Enum):
    """How the host mounts its control groups."""

    NONE = "none"
    V1 = "v1"
    V2 = "v2"
    HYBRID = "hybrid"


@frozen
class Membership:
    """One line of /proc/PID/cgroup; v2's has no controllers."""

    hierarchy_id: int
    controllers: tuple[str, ...]
    path: str

    @property
    def version(self) -> int:
        return 2 if self.hierarchy_id == 0 and not self.controllers else 1


@frozen
class CgroupMount:
    """One cgroup line of /proc/PID/mountinfo: *root* is the cgroup that is seen at *point*."""

    version: int
    controllers: frozenset[str]
    root: str
    point: str
    is_writable: bool


@frozen(cache_hash=True)
class Hierarchy:
    """One tree of control groups: *start* is the directory of the cgroup that we were started in."""

    version: int
    controllers: tuple[str, ...]
    mount: str
    start: str


@frozen(cache_hash=True)
class Host:
    """All hierarchies that can be used from here; *unusable* says why others cannot."""

    hierarchies: tuple[Hierarchy, ...]
    unusable: tuple[tuple[str, str], ...] = ()
    _homes: dict[str, Hierarchy] = field(init=False, eq=False, repr=False, default=Factory(lambda self: _homes(self.hierarchies), takes_self=True))
    versions: tuple[tuple[str, int], ...] = field(
        init=False, eq=False, repr=False, default=Factory(lambda self: _versions(self._homes), takes_self=True)
    )

    mode: Mode = field(init=False, eq=False, repr=False, default=Factory(lambda self: _mode(self.hierarchies), takes_self=True))
    unified: Hierarchy | None = field(
        init=False, eq=False, repr=False, default=Factory(lambda self: next((h for h in self.hierarchies if h.version == 2), None), takes_self=True)
    )

    def find(self, controller: str) -> Hierarchy | None:
        """Give the hierarchy that *controller* (a word of `CONTROLLERS`) lives in, None when it lives in none."""
        return self._homes.get(controller)

    def require(self, controller: str) -> Hierarchy:
        """Give the hierarchy of *controller*.

        Raises: UnsupportedError: it is not mounted, not delegated to us, or off.
        """
        hierarchy = self.find(controller)
        if hierarchy is None:
            raise missing_controller(controller, self)
        return hierarchy


def _mode(hierarchies: tuple[Hierarchy, ...]) -> Mode:
    found = {hierarchy.version for hierarchy in hierarchies}
    if found == {2}:
        return Mode.V2
    if found == {1}:
        return Mode.V1
    return Mode.HYBRID if found else Mode.NONE


def local_name(controller: str, version: int) -> str:
    """Name *controller* as the kernel does in that version."""
    return "blkio" if controller == "io" and version == 1 else controller


def missing_controller(controller: str, host: Host) -> UnsupportedError:
    """Say why *controller* cannot be had on *host*, and what would help."""
    if controller == "devices" and host.mode is Mode.V2:
        return devices_need_ebpf()
    name = local_name(controller, 1)
    reason = next((why for what, why in host.unusable if name in what.split(",") or what == "v2"), "")
    if reason:
        return UnsupportedError(
            f"the cgroup controller {controller!r} cannot be reached from here: {reason}",
            feature=f"cgroup:{controller}",
            remedy=f"mount the cgroup file system where it shows the cgroup of this process; {IN_A_CONTAINER}",
        )
    unified = host.unified
    if unified is not None and unified.start != unified.mount:
        remedy = f"have it delegated to {unified.start} (systemd: Delegate=yes), or see that the kernel has it (/proc/cgroups, cgroup_disable=)"
    elif host.mode is Mode.NONE:
        remedy = "mount it: mount -t cgroup2 none /sys/fs/cgroup"
    else:
        remedy = "see that the kernel has it (/proc/cgroups, the boot option cgroup_disable=) and that it is mounted below /sys/fs/cgroup"
    return UnsupportedError(f"this host has no cgroup controller {controller!r}", feature=f"cgroup:{controller}", remedy=remedy)


def devices_need_ebpf() -> UnsupportedError:
    """Say why device rules cannot be had from v2, which has no files for them."""
    return UnsupportedError(
        "device rules need an eBPF program on cgroup v2, which this library does not load",
        feature="cgroup:devices",
        remedy="leave devices out: a container has only the device nodes that its /dev holds, and cannot make others",
    )


def _homes(hierarchies: tuple[Hierarchy, ...]) -> dict[str, Hierarchy]:
    """Give where each controller lives: in the hierarchy that has it, else in v2 if that has it built in."""
    unified = next((h for h in hierarchies if h.version == 2), None)
    result: dict[str, Hierarchy] = {}
    for name in CONTROLLERS:
        built_in = unified if name in BUILT_INTO_V2 else None
        home = next((h for h in hierarchies if local_name(name, h.version) in h.controllers), built_in)
        if home is not None:
            result[name] = home
    return result


def _versions(homes: dict[str, Hierarchy]) -> tuple[tuple[str, int], ...]:
    return tuple((name, home.version) for name, home in homes.items())


def parse_memberships(text: str) -> tuple[Membership, ...]:
    """Parse /proc/PID/cgroup (``ID:CONTROLLERS:PATH`` lines; see cgroups(7)). A path may contain colons."""
    result: list[Membership] = []
    for line in text.splitlines():
        number, _, rest = line.partition(":")
        names, colon, path = rest.partition(":")
        if not colon or not number.isdecimal() or not path.startswith("/"):
            continue  # not a line of this file as any kernel writes it
        result.append(Membership(int(number), tuple(name for name in names.split(",") if name), path))
    return tuple(result)


def parse_mounts(text: str) -> tuple[CgroupMount, ...]:
    """Parse the cgroup and cgroup2 lines of /proc/PID/mountinfo (see proc_pid_mountinfo(5)), in their order."""
    result: list[CgroupMount] = []
    for line in text.splitlines():
        left, dash, right = line.partition(" - ")
        fields, tail = left.split(" "), right.split(" ")
        if not dash or len(fields) < 6 or len(tail) < 3 or tail[0] not in ("cgroup", "cgroup2"):
            continue
        version = 2 if tail[0] == "cgroup2" else 1
        options = frozenset(tail[2].split(","))
        names: frozenset[str] = frozenset() if version == 2 else options - {"rw", "ro"}
        writable = "rw" in fields[5].split(",") and "rw" in options
        result.append(CgroupMount(version, names, _unescape(fields[3]), _unescape(fields[4]), writable))
    return tuple(result)


def _unescape(text: str) -> str:
    r"""Undo mountinfo's octal escapes (``\040`` is a space)."""
    first, *rest = text.split("\\")
    parts = [first]
    for piece in rest:
        digits = piece[:3]
        if len(digits) == 3 and all(digit in "01234567" for digit in digits) and int(digits, 8) < 256:
            parts.append(chr(int(digits, 8)) + piece[3:])
        else:
            parts.append("\\" + piece)
    return "".join(parts)


def assemble(memberships: Iterable[Membership], mounts: Iterable[CgroupMount], read_controllers: Callable[[str], Iterable[str]]) -> Host:
    """Join what we are members of with what is mounted.

    *read_controllers* gives the words of ``cgroup.controllers`` of a v2 directory: what was delegated to us.
    """
    mounts = sorted(mounts, key=lambda mount: not mount.is_writable)  # stable: a writable mount before a read-only one
    usable: list[Hierarchy] = []
    unusable: list[tuple[str, str]] = []
    for member in memberships:
        if member.version == 1 and all(name.startswith("name=") for name in member.controllers):
            continue  # a named hierarchy (systemd's) has no controllers
        found = _place(member, mounts)
        if isinstance(found, str):
            unusable.append((",".join(member.controllers) or "v2", found))
            continue
        point, start = found
        names = member.controllers if member.version == 1 else tuple(read_controllers(start))
        usable.append(Hierarchy(member.version, names, point, start))
    return Host(tuple(usable), tuple(unusable))


def _place(member: Membership, mounts: Iterable[CgroupMount]) -> tuple[str, str] | str:
    """Give (mount point, start directory) of the first mount that shows *member*'s cgroup, or why there is none."""
    reason = "it is not mounted"
    for mount in mounts:
        if mount.version != member.version or not set(member.controllers) <= mount.controllers:
            continue
        rest = _below(member.path, mount.root)
        if rest is None:
            reason = f"{mount.point} shows the cgroup {mount.root}, which our cgroup {member.path} is not below"
            continue
        if member.version == 2 and rest.rpartition("/")[2] == ROOM:
            rest = rest.rpartition("/")[0]  # `make_room` was here, for us or for our parent: one up is where it all began
        return mount.point, mount.point.rstrip("/") + rest if rest else mount.point
    return reason


def _below(path: str, root: str) -> str | None:
    """Give *path* relative to *root*: "" or "/...", None when it is elsewhere."""
    if path == root:
        return ""
    rest = path if root == "/" else path[len(root) :] if path.startswith(root + "/") else ""
    # "/.." (a cgroup outside of our cgroup namespace) cannot be named through this mount
    return rest if rest and ".." not in rest.split("/") else None


def read_text(path: str) -> str:
    """Read a whole small file of procfs or cgroupfs."""
    with open(path, "rb", buffering=0) as file:
        return os.fsdecode(file.readall() or b"")


def _read_controllers(directory: str) -> list[str]:
    try:
        return read_text(f"{directory}/cgroup.controllers").split()
    except OSError:  # the directory is not there or not ours to read: nothing was delegated
        return []


_detected: tuple[int, Host] | None = None


def detect(*, refresh: bool = False) -> Host:
    """Give what this host offers to this process; read once per process (again after a fork), or with *refresh*."""
    global _detected  # a cache of one value, keyed by the process
    pid, known = os.getpid(), _detected
    if known is None or known[0] != pid or refresh:  # two threads at once would both find the same: no lock
        host = assemble(parse_memberships(read_text("/proc/self/cgroup")), parse_mounts(read_text("/proc/self/mountinfo")), _read_controllers)
        _detected = known = pid, host
    return known[1]
