"""What an outer container has put around this process: only for words, after something was refused. Nothing is decided by it."""

from __future__ import annotations

from typing import Final

from sandbox._sys import features
from sandbox._sys.procfs import read_mountinfo, read_status

SECCOMP_REMEDY: Final = (
    "start the outer container with one that allows it: docker run --security-opt seccomp=unconfined (podman: the same), "
    "or for one of this library's Security(nesting=True, masks=False)"
)
PROC_REMEDY: Final = (
    "show it whole in the outer container: docker run --security-opt systempaths=unconfined, podman run --security-opt unmask=ALL, "
    "bwrap --bind /proc /proc, procMount: Unmasked in Kubernetes, Security(nesting=True, masks=False) for a container of this library"
)
APPARMOR_REMEDY: Final = "start the outer container with a profile that allows it: docker run --security-opt apparmor=unconfined (podman: the same)"

_EMPTY: Final = frozenset({"/proc/sys/fs/binfmt_misc", "/proc/fs/nfsd"})


def is_filtered() -> bool:
    """Whether a seccomp filter is around this process (it may allow everything that matters)."""
    return read_status().get("Seccomp", "0") != "0"


def hidden_proc() -> tuple[str, ...]:
    """What is mounted on parts of /proc, which hides them: the kernel then refuses every other procfs to user namespaces.

    (mount_too_revealing in fs/namespace.c; since Linux 4.2. Mounts on directories that are always empty, as binfmt_misc, do not count there.)
    """
    return tuple(mount.mount_point for mount in read_mountinfo() if mount.mount_point.startswith("/proc/") and mount.mount_point not in _EMPTY)


def confinement() -> str:
    """The AppArmor profile or SELinux context of this process; "" when it is none that restricts."""
    label = features.security_label()
    return "" if label == "unconfined" else label


def suspects(errno: int) -> str:
    """Who around us may have refused a system call with that errno, and what would help; "" when there is nobody."""
    from errno import EACCES, EPERM

    if errno == EACCES and (label := confinement()):
        return f"the security profile {label!r} around this process may forbid it: {APPARMOR_REMEDY}"
    if errno == EPERM and is_filtered():
        return f"the seccomp filter around this process may forbid it: {SECCOMP_REMEDY}"
    return ""
