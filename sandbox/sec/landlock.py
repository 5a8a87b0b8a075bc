"""Landlock as a second wall behind the mounts: reading and executing everywhere below the root, writing only where mounts are writable.

What it stops that mounts do not: a descriptor of the host's tree that leaked in is worth nothing, and no device node is made
anywhere. It also keeps signals and abstract Unix sockets inside, where the kernel can (ABI 6).

Sources: Documentation/userspace-api/landlock.rst, <linux/landlock.h>. Everything here is pure: the caller says which ABI the
kernel has (landlock_create_ruleset(NULL, 0, LANDLOCK_CREATE_RULESET_VERSION)).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from sandbox._plan import HOST, Landlock, Slot
from sandbox.errors import UsageError

__all__ = ["MIN_ABI", "handled_access", "landlock_op"]

# LANDLOCK_ACCESS_FS_*, with the ABI that brought each beyond the first.
EXECUTE: Final = 1 << 0
WRITE_FILE: Final = 1 << 1
READ_FILE: Final = 1 << 2
READ_DIR: Final = 1 << 3
REMOVE_DIR: Final = 1 << 4
REMOVE_FILE: Final = 1 << 5
MAKE_CHAR: Final = 1 << 6
MAKE_DIR: Final = 1 << 7
MAKE_REG: Final = 1 << 8
MAKE_SOCK: Final = 1 << 9
MAKE_FIFO: Final = 1 << 10
MAKE_BLOCK: Final = 1 << 11
MAKE_SYM: Final = 1 << 12
REFER: Final = 1 << 13  # ABI 2, Linux 5.19
TRUNCATE: Final = 1 << 14  # ABI 3, Linux 6.2
IOCTL_DEV: Final = 1 << 15  # ABI 5, Linux 6.10

# LANDLOCK_SCOPE_*: ABI 6, Linux 6.12
SCOPE_ABSTRACT_UNIX_SOCKET: Final = 1 << 0
SCOPE_SIGNAL: Final = 1 << 1

# ABI 1 has no REFER, so every rename and link between directories would fail (EXDEV): git, gcc and dpkg live on those.
MIN_ABI: Final = 2

_FS_1: Final = (1 << 13) - 1
_READ: Final = EXECUTE | READ_FILE | READ_DIR
_MAKE: Final = REMOVE_DIR | REMOVE_FILE | MAKE_DIR | MAKE_REG | MAKE_SOCK | MAKE_FIFO | MAKE_SYM | REFER
_WRITE: Final = _READ | WRITE_FILE | TRUNCATE | IOCTL_DEV | _MAKE
_WRITE_ONE: Final = EXECUTE | READ_FILE | WRITE_FILE | TRUNCATE | IOCTL_DEV  # all that the kernel takes for what is no directory
_DEVICES: Final = READ_FILE | READ_DIR | WRITE_FILE | TRUNCATE | IOCTL_DEV


def handled_access(abi: int) -> int:
    """Return the filesystem accesses that a ruleset controls under *abi* (0: no Landlock)."""
    added = ((1, _FS_1), (2, REFER), (3, TRUNCATE), (5, IOCTL_DEV))
    return sum(access for since, access in added if abi >= since)


def landlock_op(
    abi: int,
    *,
    root: Slot,
    writable: Iterable[Slot] = (),
    writable_files: Iterable[Slot] = (),
    devices: Iterable[Slot] = (),
) -> Landlock | None:
    """Return the operation that confines init and all programs, or None when the kernel's *abi* cannot (below 2).

    The slots hold O_PATH descriptors opened inside the finished tree: *root* the container's ``/``, *writable* the directories of
    writable mounts (the root again, when it is writable), *writable_files* writable mounts of single files, *devices*
    directories of device nodes (``/dev``, ``/dev/pts``). It must come after the last mount: Landlock forbids mounting.
    An ABI newer than 7 is used as 7: unknown rights stay with the kernel's other walls.
    """
    if abi < MIN_ABI:
        return None
    if not root:
        raise UsageError("landlock: name the slot of the container's root")
    allowed: dict[Slot, int] = {root: _READ}
    for slots, access in ((writable, _WRITE), (writable_files, _WRITE_ONE), (devices, _DEVICES)):
        for slot in slots:
            if slot == HOST:
                raise UsageError("landlock: an empty slot names no directory")
            allowed[slot] = allowed.get(slot, 0) | access
    handled = handled_access(abi)
    scoped = SCOPE_ABSTRACT_UNIX_SOCKET | SCOPE_SIGNAL if abi >= 6 else 0
    # Networks are the network namespace's business: with handled_net, even a loopback of one's own would need a rule.
    return Landlock(handled, 0, scoped, tuple((slot, access & handled) for slot, access in allowed.items()))
