"""The plan's vocabulary: what is to be done to set a container up, as plain values.

Theory of operation.
A plan is two lists of operations. *host_ops* are carried out by the launcher, in the caller's mount and user namespaces, after the container's init
has been cloned and its user namespace has its id maps (so that mounts can be id-mapped). *init_ops* are carried out by init itself, PID 1 of the
container, with no rights but those its own user namespace gives. Each operation is about one system call.

Operations pass file descriptors to one another through **slots**: a slot is a name, given by whoever makes the operations; `encode` turns names into
small numbers. The descriptors that the caller hands in are slots too (`Plan.fds`: name -> descriptor). Slots filled by host_ops are handed to init
with the others. `HOST` instead of a slot means: no directory; paths are absolute and seen from where the process stands (in init, before `Pivot`: the
host's tree; after: the container's). Any other directory confines the path: resolution never leaves it (``openat2`` with ``RESOLVE_IN_ROOT |
RESOLVE_NO_MAGICLINKS``), whatever links lie inside.

An operation with ``optional=True`` may fail: the failure is reported to the caller beside success, and the operation is skipped. Everything here is
pure: plans can be printed, compared and fuzzed without a kernel.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Final

import attrs
from attrs import field, frozen

from sandbox._types import Shown

Slot = str
HOST: Final[Slot] = ""
NO_ID: Final = 0xFFFFFFFF
NEW_FILE: Final = 0xFFFFFFFFFFFFFFFF  # instead of an offset


@frozen(repr=False)
class Op(Shown):
    """One operation; `CODE` is its number in wire.md."""

    CODE: ClassVar[int] = 0

    def describe(self) -> str:
        """Say it in one line, for ``--explain`` and for error messages."""
        fields = [f"{a.name}={getattr(self, a.name)!r}" for a in attrs.fields(type(self)) if getattr(self, a.name) != a.default]
        return f"{type(self).__name__}({', '.join(fields)})"


@frozen(repr=False)
class Unshare(Op):
    """unshare(2): give init new namespaces (CLONE_NEW* in *flags*, owned by the container's user namespace)."""

    CODE: ClassVar[int] = 1
    flags: int


@frozen(repr=False)
class SetHostname(Op):
    CODE: ClassVar[int] = 2
    name: str


@frozen(repr=False)
class SetDomainname(Op):
    CODE: ClassVar[int] = 3
    name: str


@frozen(repr=False)
class LoopbackUp(Op):
    """Bring ``lo`` of the current network namespace up (ioctl, no netlink)."""

    CODE: ClassVar[int] = 4


@frozen(repr=False)
class MakePrivate(Op):
    """Stop mount propagation of the whole tree, both ways (MS_REC | MS_PRIVATE on ``/``)."""

    CODE: ClassVar[int] = 5


@frozen(repr=False)
class NewFs(Op):
    """fsopen + fsconfig + fsmount: make a detached mount of *fstype* in slot *out*.

    An option is ``(key, None)`` for a flag, ``(key, "text")``, or ``(key, FdPath("slot"))``: the path
    ``/proc/self/fd/N`` of that slot's descriptor (needs the host's /proc: only before `Pivot`). *attrs* are MOUNT_ATTR_*.
    """

    CODE: ClassVar[int] = 6
    out: Slot
    fstype: str
    options: tuple[tuple[str, str | FdPath | None], ...] = ()
    attrs: int = 0
    optional: bool = False


@frozen(repr=False)
class FdPath(Shown):
    """An option's value: the path of a slot's descriptor, with *suffix* appended (``"/upper"``)."""

    slot: Slot
    suffix: str = ""


@frozen(repr=False)
class Attach(Op):
    """move_mount: attach the detached mount in *slot* at *path* below directory *at*."""

    CODE: ClassVar[int] = 7
    slot: Slot
    path: str
    at: Slot = HOST
    optional: bool = False


@frozen(repr=False)
class Open(Op):
    """openat2 *path* below *at* into slot *out*; with *same_as*, fail (ESTALE) unless it is the same inode as that slot's."""

    CODE: ClassVar[int] = 8
    out: Slot
    path: str
    flags: int
    at: Slot = HOST
    resolve: int = 0
    same_as: Slot = HOST
    mode: int = 0  # for O_CREAT and O_TMPFILE
    optional: bool = False


@frozen(repr=False)
class CloneTree(Op):
    """open_tree(OPEN_TREE_CLONE) of *path* (empty: the slot itself) below *src*: a detached copy of a mount, in slot *out*."""

    CODE: ClassVar[int] = 9
    out: Slot
    src: Slot
    path: str = ""
    recursive: bool = True
    optional: bool = False


@frozen(repr=False)
class SetAttr(Op):
    """mount_setattr on *slot*: MOUNT_ATTR_*, MS_PRIVATE... as *propagation*; *idmap* (host_ops only): mapped with the container's user namespace."""

    CODE: ClassVar[int] = 10
    slot: Slot
    set: int = 0
    clear: int = 0
    propagation: int = 0
    recursive: bool = True
    idmap: bool = False
    classic: bool = False  # by mount(2), which takes an attached mount, the first four attributes, and nothing to clear (`_classic`)
    optional: bool = False


@frozen(repr=False)
class MakeDir(Op):
    """mkdir *path* below *at* (an existing directory is fine, it keeps its mode and owner). NO_ID leaves the owner."""

    CODE: ClassVar[int] = 11
    path: str
    at: Slot
    mode: int = 0o755
    uid: int = NO_ID
    gid: int = NO_ID


@frozen(repr=False)
class Symlink(Op):
    """Make the symbolic link *path* below *at*. NO_ID leaves the owner."""

    CODE: ClassVar[int] = 12
    path: str
    target: str
    at: Slot
    uid: int = NO_ID
    gid: int = NO_ID


@frozen(repr=False)
class WriteFile(Op):
    """Create or replace the regular file *path* below *at* (symlinks are not followed at the last name).

    With an *offset*, write there into a file that exists; it then ends no earlier than there, so that without data it grows by a hole.
    A file that cannot be written to because it runs is removed first: its process keeps the old one.
    """

    CODE: ClassVar[int] = 13
    path: str
    data: bytes
    at: Slot
    mode: int = 0o644
    uid: int = NO_ID
    gid: int = NO_ID
    offset: int = NEW_FILE

    def describe(self) -> str:
        """Say it without the data: a plan is printed, and an error logged, where secrets are not to be."""
        ids = "" if self.uid == self.gid == NO_ID else f", uid={self.uid}, gid={self.gid}"
        where = "" if self.offset == NEW_FILE else f", offset={self.offset}"
        return f"WriteFile(path={self.path!r}, {len(self.data)} bytes, at={self.at!r}, mode={self.mode:#o}{ids}{where})"


@frozen(repr=False)
class MakeTarget(Op):
    """Make sure that *path* below *at* can be mounted on by *like*: missing parents and a last directory or empty file are made."""

    CODE: ClassVar[int] = 14
    path: str
    at: Slot
    like: Slot


@frozen(repr=False)
class Pivot(Op):
    """pivot_root into the (attached) mount in *slot*, drop the old tree, chdir to ``/``."""

    CODE: ClassVar[int] = 15
    slot: Slot


@frozen(repr=False)
class Chdir(Op):
    CODE: ClassVar[int] = 16
    path: str


@frozen(repr=False)
class WriteProc(Op):
    """Write *data* to the existing file *path* below the procfs in *at* (``sys/...``, ``self/timens_offsets``)."""

    CODE: ClassVar[int] = 17
    path: str
    data: bytes
    at: Slot
    optional: bool = False


@frozen(repr=False)
class DropBounding(Op):
    """Keep only *keep* (a mask of capabilities) in the bounding set that all programs of the container inherit; clear inheritable and ambient."""

    CODE: ClassVar[int] = 18
    keep: int


@frozen(repr=False)
class NoNewPrivs(Op):
    CODE: ClassVar[int] = 19


@frozen(repr=False)
class Landlock(Op):
    """Make a Landlock ruleset and enforce it on init and all that it starts. *rules*: (slot, allowed access)."""

    CODE: ClassVar[int] = 20
    handled_fs: int
    handled_net: int
    scoped: int
    rules: tuple[tuple[Slot, int], ...]
    optional: bool = False


@frozen(repr=False)
class Seccomp(Op):
    """Install a classic BPF program on init and all that it starts. *listen*: SECCOMP_RET_USER_NOTIF kills the exec, with Status.SYSCALL_DENIED.

    *policy*: a program that init asks first, of each call that is reported: what that allows is noted, and goes on (`sec.traces`).
    """

    CODE: ClassVar[int] = 21
    program: bytes
    flags: int = 0
    listen: bool = False
    policy: bytes = b""

    def describe(self) -> str:
        """Say how long it is: its bytes tell nobody anything."""
        asks = f", policy={len(self.policy) // 8} instructions" if self.policy else ""
        return f"Seccomp({len(self.program) // 8} instructions, flags={self.flags:#x}, listen={self.listen}{asks})"


@frozen(repr=False)
class Close(Op):
    CODE: ClassVar[int] = 22
    slot: Slot


@frozen(repr=False)
class Mask(Op):
    """Hide *path* below *at*: a copy of the mount in *file_slot* goes over a file, of *dir_slot* over a directory; a missing path is skipped."""

    CODE: ClassVar[int] = 23
    path: str
    at: Slot
    file_slot: Slot
    dir_slot: Slot


@frozen(repr=False)
class ReadOnlyPath(Op):
    """Bind *path* below *at* read-only onto itself, with everything below it; a missing path is skipped. *classic*: as of `SetAttr`."""

    CODE: ClassVar[int] = 24
    path: str
    at: Slot
    classic: bool = False


@frozen(repr=False)
class Sethook(Op):
    """Keep the descriptor in *slot* for init's own use: *role* is one of the ROLE_* numbers."""

    CODE: ClassVar[int] = 25
    slot: Slot
    role: int


ROLE_ROOT: Final = 1  # the container's root: where paths of exec and file requests start
ROLE_PROC: Final = 2  # init's own procfs of the container's pid namespace, never seen by programs
ROLE_PTS: Final = 3  # the container's devpts, where terminals are made
ROLE_LAST_PID: Final = 4  # traceless containers: ns_last_pid, to be written to
ROLE_UPPER: Final = 5  # of a root of layers: the directory that has what was written, for the caller to read; never seen by programs
ROLE_UNSEALED: Final = 6  # of a root whose mount is read-only: one more mount of it, in which init can write; never seen by programs

@frozen(repr=False)
class BindMount(Op):
    """mount(2) MS_BIND of *src*'s path ``/proc/self/fd/N`` onto *path* (host_ops only): for names that last, as /run/netns/NAME."""

    CODE: ClassVar[int] = 26
    src: Slot
    path: str


@frozen(repr=False)
class Setns(Op):
    """setns(2) into the namespace in *slot*; *kind* is its CLONE_NEW* (0: whatever it is)."""

    CODE: ClassVar[int] = 27
    slot: Slot
    kind: int = 0


@frozen(repr=False)
class Unlink(Op):
    """unlinkat *path* below *at*; *directory*: rmdir."""

    CODE: ClassVar[int] = 28
    path: str
    at: Slot = HOST
    directory: bool = False
    optional: bool = False


@frozen(repr=False)
class Unmount(Op):
    """umount2(MNT_DETACH | UMOUNT_NOFOLLOW) of *path* as the process sees it."""

    CODE: ClassVar[int] = 29
    path: str
    optional: bool = False


@frozen(repr=False)
class SetTimes(Op):
    """utimensat(2): the time of the last change of *path* below *at*, in seconds and nanoseconds; a symlink's own."""

    CODE: ClassVar[int] = 30
    path: str
    at: Slot
    seconds: int
    nanoseconds: int = 0


@frozen(repr=False)
class Remove(Op):
    """Remove *path* below *at*, a file, a link or an empty directory; *recursive*: with all that is in it, however deep, never through a
    link or into another mount. EAGAIN: there is more than is done at once; ask again.
    """

    CODE: ClassVar[int] = 31
    path: str
    at: Slot
    recursive: bool = False


@frozen(repr=False)
class WriteFrom(Op):
    """As `WriteFile`; the data are *size* bytes (at most 1 MiB) from *start* on of the file in *slot*, outside the request."""

    CODE: ClassVar[int] = 32
    path: str
    at: Slot
    slot: Slot
    start: int
    size: int
    mode: int = 0o644
    uid: int = NO_ID
    gid: int = NO_ID
    offset: int = NEW_FILE


@frozen(repr=False)
class CopyTree(Op):
    """Copy what is in the directory *src* into *path* below *at*; what is there stays. Mounts below *src* and devices are left out."""

    CODE: ClassVar[int] = 33
    src: Slot
    at: Slot
    path: str


@frozen(repr=False)
class NewOverlay(Op):
    """Make a detached overlay mount in slot *out*; *options* as in `NewFs`, with one ``lowerdir+`` for each layer, the topmost first."""

    # Kernels before Linux 6.5 take all layers in one option of less than a page: then *place*, an empty directory, gets short links to
    # them, and what is mounted. *classic*: do so in any case.
    CODE: ClassVar[int] = 34
    out: Slot
    options: tuple[tuple[str, str | FdPath | None], ...]
    place: FdPath
    attrs: int = 0
    classic: bool = False

    def describe(self) -> str:
        """Say it without the layers' names, of which there may be hundreds."""
        layers = sum(key == "lowerdir+" for key, _ in self.options)
        others = tuple(option for option in self.options if option[0] != "lowerdir+")
        return f"NewOverlay(out={self.out!r}, {layers} layers, options={others!r})"


@frozen(repr=False)
class Socket(Op):
    """socket(2) into slot *out*: it belongs to the network namespace that the process is in just then."""

    CODE: ClassVar[int] = 35
    out: Slot
    domain: int
    type: int
    protocol: int = 0


@frozen(repr=False)
class Netlink(Op):
    """Carry out netlink messages, numbered from 0 to *last*, of which only that asks for an answer. The first failure is the operation's."""

    CODE: ClassVar[int] = 36
    slot: Slot
    data: bytes
    last: int = 0
    named: Slot = HOST  # a descriptor, whose number is put into *data* at *mark*
    mark: int = 0

    def describe(self) -> str:
        """Say it without bytes that nobody reads."""
        return f"Netlink(slot={self.slot!r}, {self.last + 1} messages)"


@frozen(repr=False)
class LinkProgram(Op):
    """bpf(BPF_LINK_CREATE): have the program in *slot* see packets of an interface here (its index), while *out* lives; *where*: BPF_TCX_*."""

    CODE: ClassVar[int] = 37
    out: Slot
    slot: Slot
    interface: int
    where: int


@frozen(repr=False)
class IdMap(Shown):
    """One line of uid_map or gid_map: *count* ids from *inside* on are those from *outside* on."""

    inside: int
    outside: int
    count: int


@frozen(repr=False)
class Plan(Shown):
    """A whole set-up. *clone_flags*: CLONE_NEW* of the clone itself (user, pid); the others are made by `Unshare` in init."""

    clone_flags: int = 0
    uid_map: tuple[IdMap, ...] = ()
    gid_map: tuple[IdMap, ...] = ()
    deny_setgroups: bool = False
    joins: tuple[tuple[Slot, int], ...] = ()  # setns before the clone, in a child that exists for this only
    host_ops: tuple[Op, ...] = ()
    init_ops: tuple[Op, ...] = ()
    fds: Mapping[Slot, int] = field(factory=dict[Slot, int], eq=False)

    def explain(self) -> str:
        """List the plan, a line each, as ``sandbox run --explain`` prints it."""
        maps = [",".join(f"{m.inside}:{m.outside}:{m.count}" for m in one) or "-" for one in (self.uid_map, self.gid_map)]
        lines = [f"clone flags={self.clone_flags:#x} uid_map={maps[0]} gid_map={maps[1]}"]
        lines += [f"host {index:3d} {op.describe()}" for index, op in enumerate(self.host_ops)]
        lines += [f"init {index:3d} {op.describe()}" for index, op in enumerate(self.init_ops)]
        return "\n".join(lines)
