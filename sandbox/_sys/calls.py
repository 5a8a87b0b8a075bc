"""One wrapper per system call that Python's `os` does not offer, each under the kernel's own name.

Structures are packed into bytes, so that there is one foreign function in all, syscall(2), whose argument types are
bound once, at the first call; ctypes (about 5 ms) is not imported before that. A failure raises OSError whose
``strerror`` begins with the name of the system call. Interrupted calls are repeated (as PEP 475 has it).

A function that `os` or `signal` may offer (not every Python was built against recent headers) uses theirs.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from errno import EINTR, EINVAL, ESRCH
from typing import TYPE_CHECKING, Final, cast

from sandbox._sys.constants import (
    AT_FDCWD,
    LANDLOCK_CREATE_RULESET_VERSION,
    O_CLOEXEC,
    OPEN_TREE_CLOEXEC,
    SECCOMP_GET_ACTION_AVAIL,
    SECCOMP_SET_MODE_FILTER,
    STATX_BASIC_STATS,
)
from sandbox.errors import UnsupportedError

if TYPE_CHECKING:
    import ctypes

    Argument = int | bytes | None | ctypes.Array[ctypes.c_char]

__all__ = [
    "Statx",
    "bpf",
    "clone3",
    "close_range",
    "fallocate",
    "fsconfig",
    "fsmount",
    "fsopen",
    "fspick",
    "landlock_add_rule",
    "landlock_create_ruleset",
    "landlock_restrict_self",
    "memfd_create",
    "mount_setattr",
    "move_mount",
    "number",
    "open_tree",
    "openat2",
    "pidfd_getfd",
    "pidfd_open",
    "pidfd_send_signal",
    "prctl",
    "seccomp",
    "seccomp_action_available",
    "seccomp_set_filter",
    "setns",
    "statx",
    "unshare",
]

# <asm/unistd_64.h> of x86, <asm-generic/unistd.h> of aarch64. From 424 on the numbers are the same everywhere.
_COMMON: Final = {
    "pidfd_send_signal": 424,
    "open_tree": 428,
    "move_mount": 429,
    "fsopen": 430,
    "fsconfig": 431,
    "fsmount": 432,
    "fspick": 433,
    "pidfd_open": 434,
    "clone3": 435,
    "close_range": 436,
    "openat2": 437,
    "pidfd_getfd": 438,
    "mount_setattr": 442,
    "landlock_create_ruleset": 444,
    "landlock_add_rule": 445,
    "landlock_restrict_self": 446,
}
_NUMBERS: Final = {
    "x86_64": {
        **_COMMON, "prctl": 157, "unshare": 272, "fallocate": 285, "setns": 308, "seccomp": 317, "memfd_create": 319, "bpf": 321, "statx": 332,
    },
    "aarch64": {
        **_COMMON, "prctl": 167, "unshare": 97, "fallocate": 47, "setns": 268, "seccomp": 277, "memfd_create": 279, "bpf": 280, "statx": 291,
    },
}

_bound: Callable[..., int] | None = None
_get_errno: Callable[[], int]
_numbers: dict[str, int]


def number(name: str, machine: str | None = None) -> int:
    """The number of the system call *name* on *machine* (None: this one).

    Raises: UnsupportedError for a machine that is neither x86-64 nor aarch64.
    """
    return _table(machine or os.uname().machine)[name]


def _table(machine: str) -> dict[str, int]:
    if machine not in _NUMBERS:
        raise UnsupportedError(
            f"system calls of {machine} are not known", feature="architecture", remedy="run on x86_64 or aarch64 with a 64-bit Python"
        )
    return _NUMBERS[machine]


def _bind() -> Callable[..., int]:
    """Find libc's syscall(2) and bind its types; two threads at once do the same twice, which harms nobody."""
    global _bound, _get_errno, _numbers
    import ctypes

    _numbers = _table(os.uname().machine)
    _get_errno = ctypes.get_errno
    # None: what is loaded already. With glibc, musl and a static interpreter alike that contains syscall().
    function = ctypes.CDLL(None, use_errno=True).syscall
    # c_void_p takes int (also negative), bytes, None and buffers, each as one register, which is what syscall(2) passes on.
    function.argtypes = [ctypes.c_long, *[ctypes.c_void_p] * 6]
    function.restype = ctypes.c_long
    _bound = cast("Callable[..., int]", function)
    return _bound


def _call(name: str, *args: Argument) -> int:
    """Make the system call *name*; missing arguments are 0. Raises OSError."""
    function = _bound or _bind()
    padded = (*args, *(0,) * (6 - len(args)))
    while (result := function(_numbers[name], *padded)) < 0:
        if (code := _get_errno()) != EINTR:
            raise OSError(code, f"{name}: {os.strerror(code)}")
    return result


def _path(path: str | bytes | os.PathLike[str]) -> bytes:
    raw = os.fsencode(path)
    if b"\0" in raw:
        raise ValueError("embedded null byte")  # as os.open says it
    return raw


# --- descriptors and processes


def memfd_create(name: str, flags: int) -> int:
    """Make an anonymous file; its descriptor is the caller's. MFD_EXEC and MFD_NOEXEC_SEAL need Linux 6.3 (EINVAL before)."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create(name, flags)
    return _call("memfd_create", _path(name), flags)  # type: ignore[unreachable, unused-ignore]  # a Python built against old headers


def pidfd_open(pid: int, flags: int = 0) -> int:
    """Open a descriptor of process *pid*, readable (in poll) when it has ended; always close-on-exec. Raises: ProcessLookupError: there is none.

    Before Linux 6.16 the kernel says EINVAL of a number that no process has, and a group, a session or a thread has (still): ESRCH here.
    """
    try:
        if hasattr(os, "pidfd_open"):
            return os.pidfd_open(pid, flags)
        return _call("pidfd_open", pid, flags)  # type: ignore[unreachable, unused-ignore]  # a Python built against old headers
    except OSError as error:
        if error.errno != EINVAL or pid <= 0 or flags:
            raise
        raise ProcessLookupError(ESRCH, f"pidfd_open: {os.strerror(ESRCH)}") from error


def pidfd_send_signal(pidfd: int, signum: int) -> None:
    """Send *signum* (0: only check) to the process behind *pidfd*; never hits another process that got its number."""
    _call("pidfd_send_signal", pidfd, signum, None, 0)


def pidfd_getfd(pidfd: int, target_fd: int) -> int:
    """Copy descriptor *target_fd* of the process behind *pidfd* into this one; close-on-exec. Needs: ptrace rights over it."""
    return _call("pidfd_getfd", pidfd, target_fd, 0)


def close_range(first: int, last: int, flags: int) -> None:
    """Close, or with CLOSE_RANGE_CLOEXEC mark, all descriptors from *first* to *last*."""
    _call("close_range", first, last, flags)


# --- files


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """Change what room a file takes (FALLOC_FL_*); `os.posix_fallocate` has no mode."""
    _call("fallocate", fd, mode, offset, length)


def openat2(path: str | bytes | os.PathLike[str], flags: int, *, dir_fd: int = AT_FDCWD, mode: int = 0, resolve: int = 0) -> int:
    """Open *path* below *dir_fd*, resolved as RESOLVE_* demand; close-on-exec.

    Raises: OSError: EXDEV or ELOOP when *resolve* forbids the path; EAGAIN when a ``..`` raced with a rename (try again).
    """
    how = struct.pack("=QQQ", flags | O_CLOEXEC, mode, resolve)  # struct open_how
    return _call("openat2", dir_fd, _path(path), how, len(how))


class Statx:
    """What statx(2) says of one file, as far as `os.stat` does not."""

    __slots__ = ("attributes", "attributes_mask", "dev", "ino", "mask", "mnt_id", "mode")

    # struct statx: mask, blksize, attributes, nlink, uid, gid, mode, pad, ino, size, blocks, attributes_mask, 4 timestamps
    # of 16 bytes, rdev_major, rdev_minor, dev_major, dev_minor, mnt_id.
    _LAYOUT: Final = struct.Struct("=IIQIIIHHQQQQ64xIIIIQ")

    def __init__(self, raw: bytes) -> None:
        fields = self._LAYOUT.unpack_from(raw)
        self.mask: int = fields[0]
        self.attributes: int = fields[2]
        self.mode: int = fields[6]
        self.ino: int = fields[8]
        self.attributes_mask: int = fields[11]
        self.dev = os.makedev(fields[14], fields[15])
        self.mnt_id: int = fields[16]


def statx(path: str | bytes | os.PathLike[str], *, dir_fd: int = AT_FDCWD, flags: int = 0, mask: int = STATX_BASIC_STATS) -> Statx:
    """Ask for the mount id and the STATX_ATTR_* of *path*; with AT_EMPTY_PATH and ``""``, of *dir_fd* itself."""
    import ctypes

    buffer = ctypes.create_string_buffer(256)  # sizeof(struct statx), fixed for ever
    _call("statx", dir_fd, _path(path), flags, mask, buffer)
    return Statx(buffer.raw)


# --- mounts by descriptor


def open_tree(path: str | bytes | os.PathLike[str], flags: int, *, dir_fd: int = AT_FDCWD) -> int:
    """Open a mount; with OPEN_TREE_CLONE, make a detached copy of it (AT_RECURSIVE: and of what is mounted below)."""
    return _call("open_tree", dir_fd, _path(path), flags | OPEN_TREE_CLOEXEC)


def move_mount(from_fd: int, from_path: str, to_fd: int, to_path: str, flags: int) -> None:
    """Attach a detached mount, or move an attached one. Changes the mount namespace of the caller."""
    _call("move_mount", from_fd, _path(from_path), to_fd, _path(to_path), flags)


def mount_setattr(fd: int, path: str, flags: int, *, attr_set: int = 0, attr_clr: int = 0, propagation: int = 0, userns_fd: int = 0) -> None:
    """Change MOUNT_ATTR_* of the mount at *path* below *fd*; with MOUNT_ATTR_IDMAP, map its ids as *userns_fd* does.

    Needs: Linux 5.12; ask `features.mount_setattr` first.
    Raises: OSError: EPERM when a parent user namespace has locked the flag; EINVAL when the filesystem cannot be id-mapped.
    """
    attr = struct.pack("=QQQQ", attr_set, attr_clr, propagation, userns_fd)  # struct mount_attr
    _call("mount_setattr", fd, _path(path), flags, attr, len(attr))


def fsopen(fstype: str, flags: int) -> int:
    """Begin to configure a new superblock of *fstype*; the descriptor takes `fsconfig`. Needs: CAP_SYS_ADMIN over the mount namespace."""
    return _call("fsopen", _path(fstype), flags)


def fsconfig(fd: int, cmd: int, key: str | None = None, value: str | None = None, aux: int = 0) -> None:
    """Set one option of (FSCONFIG_SET_*), or create (FSCONFIG_CMD_CREATE), the superblock behind *fd*."""
    _call("fsconfig", fd, cmd, None if key is None else _path(key), None if value is None else _path(value), aux)


def fsmount(fd: int, flags: int, attrs: int) -> int:
    """Turn a created superblock into a detached mount with MOUNT_ATTR_* *attrs*."""
    return _call("fsmount", fd, flags, attrs)


def fspick(path: str, flags: int, *, dir_fd: int = AT_FDCWD) -> int:
    """Open the superblock below *path* to reconfigure it."""
    return _call("fspick", dir_fd, _path(path), flags)


# --- namespaces: of the calling thread, so the library itself never calls these two; helpers and tests do


def setns(fd: int, nstype: int) -> None:
    """Move the calling thread into the namespace behind *fd* (or, *fd* being a pidfd, into those that *nstype* names)."""
    _call("setns", fd, nstype)


def unshare(flags: int) -> None:
    """Give the calling thread new namespaces."""
    _call("unshare", flags)


def clone3(args: bytes) -> int:
    """Probe clone3(2) with arguments that the kernel must refuse: a child would run Python on the parent's stack.

    Raises: ValueError for arguments that could succeed; OSError.
    """
    # struct clone_args: 8 words, then set_tid, set_tid_size, cgroup. The first version has 64 bytes; a cgroup that is no int is EINVAL.
    if len(args) >= 64 and (len(args) < 88 or struct.unpack_from("=Q", args, 80)[0] <= 0x7FFFFFFF):
        raise ValueError("clone3 is here for probes that must fail; programs are started by the launcher")
    return _call("clone3", args, len(args))


# --- walls


def landlock_create_ruleset(attr: bytes | None, flags: int = 0) -> int:
    """Make a ruleset; with None and LANDLOCK_CREATE_RULESET_VERSION, return the ABI's version (from 1 on)."""
    if attr is None and flags == 0:
        flags = LANDLOCK_CREATE_RULESET_VERSION
    return _call("landlock_create_ruleset", attr, len(attr) if attr else 0, flags)


def landlock_add_rule(ruleset: int, kind: int, attr: bytes | None, flags: int = 0) -> None:
    """Ask landlock_add_rule(2). The library asks only; rules are added by init."""
    _call("landlock_add_rule", ruleset, kind, attr, flags)


def landlock_restrict_self(ruleset: int, flags: int = 0) -> None:
    """Ask landlock_restrict_self(2), with arguments that must fail: the wall would be this process's own."""
    if ruleset >= 0:
        raise ValueError("landlock_restrict_self is here for probes that must fail; init builds the wall")
    _call("landlock_restrict_self", ruleset, flags)


def seccomp(operation: int, flags: int, args: bytes | None) -> int:
    """Ask seccomp(2), which the library does in its own process; a container's filters are installed by init."""
    return _call("seccomp", operation, flags, args)


def seccomp_action_available(action: int) -> None:
    """Raise OSError (EOPNOTSUPP) unless the kernel knows the SECCOMP_RET_* *action*."""
    seccomp(SECCOMP_GET_ACTION_AVAIL, 0, struct.pack("=I", action))


def seccomp_set_filter(program: bytes) -> None:
    """Install a filter, an array of struct sock_filter, on the calling thread for good. Needs: no new privileges, or CAP_SYS_ADMIN."""
    import ctypes

    code = ctypes.create_string_buffer(program, len(program))
    seccomp(SECCOMP_SET_MODE_FILTER, 0, struct.pack("=HxxxxxxQ", len(program) // 8, ctypes.addressof(code)))  # struct sock_fprog


def prctl(option: int, arg2: int = 0, arg3: int = 0, arg4: int = 0, arg5: int = 0) -> int:
    """Ask prctl(2), for the options that answer by their return value (PR_GET_*, PR_CAPBSET_READ, PR_CAP_AMBIENT_IS_SET)."""
    return _call("prctl", option, arg2, arg3, arg4, arg5)


def bpf(command: int, attributes: bytes) -> int:
    """Ask bpf(2); *attributes* is a union bpf_attr as far as the command has it. `_sys.bpf` has what is made of it."""
    return _call("bpf", command, attributes, len(attributes))
