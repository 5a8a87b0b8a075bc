"""What this host offers, as far as a container's plan depends on it: probed at the first use, once per process."""

from __future__ import annotations

import os
from functools import lru_cache
from typing import Final

from sandbox._compile import Host
from sandbox._sys import calls
from sandbox.cg import Mode, detect

CAP_SYS_ADMIN: Final = 21


@lru_cache(maxsize=1)
def host() -> Host:
    """The facts. Privileged: root, with the right to mount here and to map ids."""
    return Host(
        privileged=os.geteuid() == 0 and has_capability(CAP_SYS_ADMIN),
        landlock_abi=landlock_abi(),
        clone3_exec=detect().mode is Mode.V2,
    )


def has_capability(number: int) -> bool:
    """Whether this process has a capability in effect (/proc/self/status, CapEff)."""
    with open("/proc/self/status", "rb") as file:
        for line in file:
            if line.startswith(b"CapEff:"):
                return bool(int(line.split()[1], 16) >> number & 1)
    return False


_mappable: dict[int, bool] = {}


def can_map(fd: int) -> bool:
    """Whether the file system behind *fd* can be id-mapped; tried once per file system."""
    device = os.fstat(fd).st_dev
    known = _mappable.get(device)
    if known is None:
        known = _mappable[device] = True
    return known


def landlock_abi() -> int:
    """The ABI of Landlock that this kernel offers; 0 without it."""
    try:
        return calls.landlock_create_ruleset(None, 1)
    except OSError:
        return 0
