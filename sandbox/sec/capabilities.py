"""Linux capabilities as bit masks: names in, masks out, and the sets that containers start from."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from sandbox.errors import UsageError

__all__ = ["ALL", "DEFAULT", "NAMES", "capability_mask", "capability_names"]

# <linux/capability.h>, in the order of their numbers; the last came with Linux 5.9.
NAMES: Final = tuple(
    f"CAP_{name}"
    for name in (
        "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE NET_BROADCAST "
        "NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE "
        "SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM "
        "BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE"
    ).split()
)
_NUMBERS: Final = {name: number for number, name in enumerate(NAMES)}
ALL: Final = (1 << len(NAMES)) - 1


def capability_mask(names: Iterable[str]) -> int:
    """Turn names (``"CAP_CHOWN"``, ``"chown"``; ``"ALL"``) into a mask. No names make an empty mask: nothing, never "no restriction".

    Raises: UsageError: an unknown name, or one string in place of a list.
    """
    if isinstance(names, str):
        raise UsageError(f"capabilities: {names!r} is one string; give a list such as [{names!r}]")
    mask = 0
    for name in names:
        mask |= _one(name)
    return mask


def _one(name: str) -> int:
    if not isinstance(name, str):
        raise UsageError(f"capabilities: {name!r} is not a name such as 'CAP_CHOWN'")
    upper = name.upper()
    if upper in ("ALL", "CAP_ALL"):
        return ALL
    number = _NUMBERS.get(upper if upper.startswith("CAP_") else f"CAP_{upper}")
    if number is None:
        raise UsageError(f"capabilities: {name!r} is unknown; see capabilities(7) for the names")
    return 1 << number


def capability_names(mask: int) -> tuple[str, ...]:
    """Name the capabilities in *mask*, in the order of their numbers.

    Raises: UsageError: bits that no known capability has.
    """
    if mask & ~ALL:
        raise UsageError(f"capabilities: {mask:#x} has bits that no capability has")
    return tuple(name for number, name in enumerate(NAMES) if mask >> number & 1)


# Docker's default set less MKNOD (a device made inside could not be opened anyway), NET_RAW (spoofed packets on a
# shared bridge) and AUDIT_WRITE (the host's audit log). All count inside the container's user namespace only.
DEFAULT: Final = capability_mask("CHOWN DAC_OVERRIDE FSETID FOWNER SETGID SETUID SETFCAP SETPCAP NET_BIND_SERVICE SYS_CHROOT KILL".split())
