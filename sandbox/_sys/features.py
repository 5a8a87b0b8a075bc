"""What this kernel and this host offer, asked of them and never guessed from a version number.

Each function below asks once per process and remembers. A probe is a harmless system call: with arguments that a kernel which
knows the call must refuse (EINVAL), where one that does not says ENOSYS, and a seccomp filter around us EPERM. Only what
cannot be asked otherwise (`overlay_in_userns`, `idmap_supported`) starts a program, unshare(1). Nothing here forks Python.

For tests: ``with pretend(clone3=False): ...`` makes a probe answer otherwise, for all threads.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Generator
from contextlib import contextmanager
from errno import EBADF, EFAULT, EINVAL, ENODEV, ENOSYS
from typing import Any, Final, Generic, TypeVar

from attrs import frozen

from sandbox._sys import calls, constants, subid
from sandbox._sys.fds import Fd
from sandbox._sys.procfs import read_number, read_status, read_text
from sandbox.errors import UnsupportedError, UsageError

T = TypeVar("T")

_BAD_FLAGS: Final = 0x7FFFFFFF
_TIMEOUT_S: Final = 10.0
IGNORE_INVALID_RST: Final = "/proc/sys/net/netfilter/nf_conntrack_tcp_ignore_invalid_rst"
_NETLINK_NETFILTER: Final = 12
_NO_FLOW: Final = struct.pack("=IHHIIBBH", 20, 0x0101, 1, 0, 0, 2, 0, 0)  # IPCTNL_MSG_CT_GET, of IPv4


class Probe(Generic[T]):
    """One question to the host: call it for the answer. The first call asks; `pretend` overrides."""

    def __init__(self, ask: Callable[[], T]) -> None:
        self.name = ask.__name__
        self.__doc__ = ask.__doc__
        self._ask = ask
        self._answer: list[T] = []
        self._pretended: list[T] = []
        PROBES[self.name] = self

    def __call__(self) -> T:
        if self._pretended:
            return self._pretended[-1]
        if not self._answer:
            self._answer = [self._ask()]
        return self._answer[0]

    def known(self) -> T | None:
        """The answer where it is known without asking; else None."""
        given = self._pretended[-1:] or self._answer
        return given[0] if given else None

    def forget(self) -> None:
        """Ask anew at the next call (the host's settings may have been changed)."""
        self._answer = []
        _note_change()

    def push(self, value: T) -> None:
        """Answer *value* until `pop`; for `pretend`."""
        self._pretended.append(value)
        _note_change()

    def pop(self) -> None:
        """Undo the last `push`."""
        self._pretended.pop()
        _note_change()


PROBES: Final[dict[str, Probe[Any]]] = {}
_changes = 0  # of what probes would answer


def state() -> int:
    """A number that stays the same as long as every probe that was asked answers the same: for who remembers what follows from answers."""
    return _changes


def _note_change() -> None:
    global _changes
    _changes += 1


@contextmanager
def pretend(**answers: object) -> Generator[None]:
    """For tests: within the block, the probes named answer this. Blocks nest; all threads see it.

    Raises: UsageError for a name that is no probe.
    """
    unknown = answers.keys() - PROBES.keys()
    if unknown:
        raise UsageError(f"pretend: no such probe: {', '.join(sorted(unknown))}; there are {', '.join(sorted(PROBES))}")
    for name, value in answers.items():
        PROBES[name].push(value)
    try:
        yield
    finally:
        for name in answers:
            PROBES[name].pop()


def forget() -> None:
    """Forget all answers: the next question of each kind asks the host again."""
    for probe in PROBES.values():
        probe.forget()
    _idmaps.clear()


def _errno_of(ask: Callable[[], object]) -> int:
    """The errno with which *ask* fails; 0 when it does not."""
    try:
        ask()
    except OSError as error:
        return error.errno or 0
    return 0


# --- system calls


@Probe
def clone3() -> bool:
    """clone3(2), Linux 5.3. Some seccomp filters answer ENOSYS for it."""
    return _errno_of(lambda: calls.clone3(b"")) == EINVAL


@Probe
def clone_into_cgroup() -> bool:
    """clone3 with CLONE_INTO_CGROUP, Linux 5.7."""
    # A cgroup that is no int: EINVAL where the field is known, E2BIG (trailing bytes that are not 0) where it is not.
    args = struct.pack("=11Q", constants.CLONE_INTO_CGROUP, *[0] * 9, 1 << 63)
    return _errno_of(lambda: calls.clone3(args)) == EINVAL


@Probe
def openat2() -> bool:
    """openat2(2), Linux 5.6."""
    return _errno_of(lambda: calls.openat2("/", constants.O_PATH, resolve=_BAD_FLAGS)) == EINVAL


@Probe
def new_mount_api() -> bool:
    """fsopen, fsconfig, fsmount, open_tree and move_mount, which came together in Linux 5.2."""
    # These two look at their arguments before they look at our rights.
    if _errno_of(lambda: calls.open_tree("/", _BAD_FLAGS)) != EINVAL or _errno_of(lambda: calls.fsconfig(-1, 0)) != EINVAL:
        return False
    # These three look at our rights first: an ordinary user learns only whether they are there.
    asked: tuple[Callable[[], object], ...] = (
        lambda: calls.fsopen("", _BAD_FLAGS),
        lambda: calls.fsmount(-1, _BAD_FLAGS, 0),
        lambda: calls.move_mount(-1, "", -1, "", _BAD_FLAGS),
    )
    return all(_errno_of(ask) != ENOSYS for ask in asked)


@Probe
def mount_setattr() -> bool:
    """mount_setattr(2), Linux 5.12."""
    return _errno_of(lambda: calls.mount_setattr(-1, "", _BAD_FLAGS)) == EINVAL


@Probe
def pidfd() -> bool:
    """pidfd_open(2), Linux 5.3, and pidfd_send_signal(2), Linux 5.1."""

    def ask() -> None:
        os.close(calls.pidfd_open(os.getpid()))

    return _errno_of(ask) == 0 and _errno_of(lambda: calls.pidfd_send_signal(-1, 0)) == EBADF


@Probe
def close_range() -> bool:
    """close_range(2), Linux 5.9."""
    # Above all descriptors that a process can have: nothing is closed.
    return _errno_of(lambda: calls.close_range(_BAD_FLAGS, _BAD_FLAGS, 0)) == 0


@Probe
def memfd_seals() -> bool:
    """memfd_create(2) with seals, Linux 3.17."""
    return _memfd_errno(constants.MFD_ALLOW_SEALING) == 0


@Probe
def memfd_exec_flags() -> bool:
    """MFD_EXEC and MFD_NOEXEC_SEAL, Linux 6.3."""
    return _memfd_errno(constants.MFD_NOEXEC_SEAL | constants.MFD_ALLOW_SEALING) == 0


@Probe
def memfd_executable() -> bool:
    """Whether a memfd may be executed: sysctl vm.memfd_noexec=2 forbids it."""
    flag = constants.MFD_EXEC if memfd_exec_flags() else 0
    return _memfd_errno(flag) == 0


def _memfd_errno(flags: int) -> int:
    return _errno_of(lambda: os.close(calls.memfd_create("sandbox-probe", flags | constants.MFD_CLOEXEC)))


# --- walls


@Probe
def landlock_abi() -> int:
    """The version of Landlock's interface; 0 where the kernel has none, it is not among the active LSMs, or a filter forbids a part."""
    parts = (lambda: calls.landlock_add_rule(-1, 0, None), lambda: calls.landlock_restrict_self(-1))
    try:
        version = calls.landlock_create_ruleset(None, constants.LANDLOCK_CREATE_RULESET_VERSION)
    except OSError:
        return 0
    return version if all(_errno_of(part) != ENOSYS for part in parts) else 0


@Probe
def seccomp_user_notify() -> bool:
    """SECCOMP_RET_USER_NOTIF, Linux 5.0."""
    return _errno_of(lambda: calls.seccomp_action_available(constants.SECCOMP_RET_USER_NOTIF)) == 0


@Probe
def seccomp_wait_killable() -> bool:
    """SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV, Linux 5.19."""
    flags = constants.SECCOMP_FILTER_FLAG_NEW_LISTENER | constants.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV
    # No program at all: EFAULT once the flags have been accepted, EINVAL when one of them is not known.
    return _errno_of(lambda: calls.seccomp(constants.SECCOMP_SET_MODE_FILTER, flags, None)) == EFAULT


# --- namespaces


@Probe
def packet_programs() -> bool:
    """Programs of BPF that decide about packets (CAP_BPF and CAP_NET_ADMIN) and can ask for a time that costs nothing (Linux 5.11), beside a
    conntrack that believes a reset which it did not expect (Linux 5.14).
    """
    try:
        _packet_program().close()
        _have_conntrack()
    except OSError:
        return False
    return os.path.lexists(IGNORE_INVALID_RST)


def _packet_program() -> Fd:
    from sandbox._sys import bpf

    return Fd(bpf.load_program(bpf.SCHED_CLS, struct.pack("<QQ", 160 << 32 | 0x85, 0x95), "sandbox_probe"))  # call ktime_get_coarse_ns; exit


def _have_conntrack() -> None:
    """Have the kernel load conntrack, if it is a module, by asking it for no flow at all (EINVAL). Raises: OSError: it has no netfilter."""
    import socket

    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER) as sock:
        sock.send(_NO_FLOW)


@Probe
def packet_links() -> bool:
    """Programs of BPF that see an interface's packets as long as somebody holds a link (tcx, Linux 6.6)."""
    from sandbox._sys import bpf

    try:
        with _packet_program() as program:
            return _errno_of(lambda: bpf.link(program.fileno(), _BAD_FLAGS, bpf.TCX_INGRESS)) == ENODEV
    except OSError:
        return False


@Probe
def time_namespace() -> bool:
    """Time namespaces, Linux 5.6 with CONFIG_TIME_NS."""
    return os.path.lexists("/proc/self/ns/time")


@frozen
class Obstacle:
    """Why something cannot be had here, and what would provide it."""

    reason: str
    remedy: str


@Probe
def userns_obstacle() -> Obstacle | None:
    """What keeps this process from making user namespaces; None when nothing does."""
    # Debian's patch refuses before flags are looked at, as a seccomp filter does: its setting comes first.
    for check in (_userns_missing, _userns_sysctls, _userns_sealed, _userns_apparmor, _userns_chroot):
        if (obstacle := check()) is not None:
            return obstacle
    return None


@Probe
def user_namespaces() -> bool:
    """Whether this process can make user namespaces; `userns_obstacle` says why not."""
    return userns_obstacle() is None


@Probe
def privileged() -> bool:
    """Whether this process has CAP_SYS_ADMIN, CAP_SETUID and CAP_SETGID in its user namespace: enough to map any id that it knows."""
    needed = 1 << constants.CAP_SYS_ADMIN | 1 << constants.CAP_SETUID | 1 << constants.CAP_SETGID
    return int(read_status()["CapEff"], 16) & needed == needed


def _userns_missing() -> Obstacle | None:
    if os.path.lexists("/proc/self/ns/user"):
        return None
    return Obstacle("the kernel has no user namespaces, or /proc is not mounted", "use a kernel with CONFIG_USER_NS=y, and mount /proc")


def _userns_sealed() -> Obstacle | None:
    # Bit 0 is no flag of unshare: a kernel that looks at the call at all says EINVAL, and nothing is unshared.
    if _errno_of(lambda: calls.unshare(constants.CLONE_NEWUSER | 1)) == EINVAL:
        return None
    return Obstacle(
        "a seccomp filter forbids unshare (this process runs in a container)",
        "allow it in the outer container, e.g. docker run --security-opt seccomp=unconfined",
    )


def _userns_sysctls() -> Obstacle | None:
    if read_number("/proc/sys/user/max_user_namespaces") == 0:
        return Obstacle("user.max_user_namespaces is 0", "as root: sysctl -w user.max_user_namespaces=28633")
    # Debian's and Arch's patch; root is not bound by it.
    if not privileged() and read_number("/proc/sys/kernel/unprivileged_userns_clone") == 0:
        return Obstacle("kernel.unprivileged_userns_clone is 0", "as root: sysctl -w kernel.unprivileged_userns_clone=1")
    return None


def _userns_apparmor() -> Obstacle | None:
    # Ubuntu 23.10 and later: only programs with a profile that says `userns,` may; the rest are "unconfined".
    if privileged() or read_number("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") != 1:
        return None
    if security_label() != "unconfined":
        return None  # a profile decides, and whether it allows shows when it is tried
    return Obstacle(
        "kernel.apparmor_restrict_unprivileged_userns is 1",
        "as root: sysctl -w kernel.apparmor_restrict_unprivileged_userns=0, or give this interpreter an AppArmor profile with `userns,`",
    )


def security_label() -> str:
    """The AppArmor profile of this process, or another security module's word for it; "unconfined" where there is none."""
    for path in ("/proc/self/attr/apparmor/current", "/proc/self/attr/current"):
        try:
            return read_text(path).rstrip("\0\n").partition(" ")[0]
        except OSError:
            continue
    return "unconfined"


def _userns_chroot() -> Obstacle | None:
    # current_chrooted() in the kernel: EPERM for a process whose root is not that of its mount namespace. What is told is whether it is a
    # mount at all (Linux 5.8), so that a chroot into one is not found; the clone tells then.
    found = calls.statx("/")
    known = found.attributes_mask & constants.STATX_ATTR_MOUNT_ROOT
    if not known or found.attributes & constants.STATX_ATTR_MOUNT_ROOT:
        return None
    return Obstacle("this process runs in a chroot", "enter it by pivot_root, or: mount --bind DIR DIR; cd DIR; mount --move . /; chroot .")


@Probe
def subordinate_ids() -> subid.Owned:
    """What /etc/subuid and /etc/subgid give to our effective user."""
    return subid.of_user(os.geteuid())


@Probe
def newuidmap() -> tuple[str, str] | None:
    """The paths of newuidmap and newgidmap; None when either is missing."""
    return subid.helpers()


# --- overlay


@Probe
def overlay() -> bool:
    """Whether the kernel knows overlay now; a module that is not loaded yet is loaded by the first mount, as root."""
    return any(line.split()[-1:] == ["overlay"] for line in read_text("/proc/filesystems").split("\n")) or _overlay_option(None)


@Probe
def overlay_lowerdir_add() -> bool:
    """Overlay's ``lowerdir+``, one layer at a time (Linux 6.8)."""
    if not privileged():
        return _in_namespaces("mount -t overlay probe -o lowerdir+=/tmp/a,lowerdir+=/tmp/b /tmp/m")
    return _overlay_option(constants.FSCONFIG_SET_STRING)


@Probe
def overlay_layer_fds() -> bool:
    """Overlay layers by descriptor (FSCONFIG_SET_FD, Linux 6.13).

    Needs CAP_SYS_ADMIN to be asked; without it the answer is False, and ``/proc/self/fd/N`` as text does the same.
    """
    return privileged() and _overlay_option(constants.FSCONFIG_SET_FD)


@Probe
def overlay_in_userns() -> bool:
    """Overlay mounts by a user namespace's root, with ``userxattr`` (Linux 5.11). Starts unshare(1), about 10 ms."""
    return _in_namespaces("mount -t overlay probe -o userxattr,lowerdir=/tmp/a,upperdir=/tmp/u,workdir=/tmp/w /tmp/m")


def _overlay_option(command: int | None) -> bool:
    """Whether overlay's option parser takes ``lowerdir+`` by *command* (None: whether overlay is there at all). Nothing is mounted."""

    def ask() -> None:
        with Fd(calls.fsopen("overlay", constants.FSOPEN_CLOEXEC)) as context, Fd.open("/", constants.O_PATH | constants.O_DIRECTORY) as root:
            if command == constants.FSCONFIG_SET_STRING:
                calls.fsconfig(context.fileno(), command, "lowerdir+", "/")
            elif command is not None:
                calls.fsconfig(context.fileno(), command, "lowerdir+", None, root.fileno())

    return _errno_of(ask) == 0


def _in_namespaces(script: str) -> bool:
    """Whether *script* succeeds as root of a new user and mount namespace, with a tmpfs on /tmp that has the directories a, b, u, w, m."""
    import subprocess

    setup = "mount -t tmpfs probe /tmp && mkdir /tmp/a /tmp/b /tmp/u /tmp/w /tmp/m && "
    try:
        done = subprocess.run(
            ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", setup + script],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=_TIMEOUT_S, check=False, cwd="/",
        )  # fmt: skip
    except FileNotFoundError:
        raise _needs_unshare("overlay in user namespaces") from None
    return done.returncode == 0


def _needs_unshare(what: str) -> UnsupportedError:
    return UnsupportedError(f"cannot find out about {what}", feature="unshare(1)", remedy="install util-linux")


# --- id-mapped mounts


@Probe
def idmapped_mounts() -> bool:
    """Whether the kernel knows MOUNT_ATTR_IDMAP, Linux 5.12; `idmap_supported` says of which file systems. False without privileges."""
    # The attribute is looked at before the user namespace's descriptor: EINVAL where it is not known.
    attr = {"attr_set": constants.MOUNT_ATTR_IDMAP, "userns_fd": _BAD_FLAGS}
    return _errno_of(lambda: calls.mount_setattr(-1, "", constants.AT_EMPTY_PATH, **attr)) == EBADF


_idmaps: Final[dict[int, bool]] = {}


def idmap_supported(path: str, userns: int | None = None) -> bool:
    """Whether mounts of the filesystem at *path* can be id-mapped. Remembered by filesystem (st_dev).

    *userns*: a descriptor of a user namespace that has maps; None: one is made by unshare(1), about 10 ms. The probe is
    a detached mount, which nobody sees. Without privileges the answer is False: the kernel demands CAP_SYS_ADMIN over the filesystem.

    Raises: OSError when *path* cannot be opened; UnsupportedError when *userns* is None and unshare(1) is missing.
    """
    if not (privileged() and new_mount_api() and idmapped_mounts()):
        return False
    device = os.stat(path).st_dev
    if device not in _idmaps:
        _idmaps[device] = _probe_idmap(path, userns)
    return _idmaps[device]


def _probe_idmap(path: str, userns: int | None) -> bool:
    if userns is None:
        with _mapped_userns() as made:
            return _probe_idmap(path, made)
    with Fd(calls.open_tree(path, constants.OPEN_TREE_CLONE)) as tree:
        attr = {"attr_set": constants.MOUNT_ATTR_IDMAP, "userns_fd": userns}
        return _errno_of(lambda: calls.mount_setattr(tree.fileno(), "", constants.AT_EMPTY_PATH, **attr)) == 0


@contextmanager
def _mapped_userns() -> Generator[int]:
    """A user namespace with maps, as a descriptor; its only process has ended, or ends with the block."""
    import subprocess

    # The shell says "ready" once it is inside, and ends when its standard input does.
    command = ["unshare", "--user", "--map-root-user", "sh", "-c", "echo ready; read end"]
    try:
        helper = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd="/")
    except FileNotFoundError:
        raise _needs_unshare("id-mapped mounts") from None
    with helper:
        if helper.stdout is None or helper.stdout.readline() != b"ready\n":
            raise UnsupportedError("unshare --user failed", feature="user namespaces", remedy="see `sandbox doctor`")
        with Fd.open(f"/proc/{helper.pid}/ns/user", os.O_RDONLY) as userns:
            yield userns.fileno()
