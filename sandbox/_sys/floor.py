"""What every container needs of the kernel: the floor, said once, and asked feature by feature.

A release number alone proves nothing: distributions port features back, and an outer container's seccomp filter takes calls away.
"""

from __future__ import annotations

import os
from typing import Final

from attrs import frozen

from sandbox._sys import features, outer
from sandbox.errors import UnsupportedError

# close_range (5.9) is the youngest of what has no substitute; 5.10 is the oldest kernel that the tests have run on. (mount_setattr has one:
# `sandbox._classic`; clone3: clone.)
FLOOR: Final = "5.10"


@frozen
class Need:
    """One probe of `features` that every container depends on; *words* name it, *remedy* says what would provide it."""

    probe: str
    words: str
    remedy: str = f"boot Linux {FLOOR} or later; inside another container, its seccomp filter must allow it"


NEEDS: Final = (
    Need("pidfd", "pidfd_open and pidfd_send_signal"),
    Need("memfd_seals", "memfd_create with seals"),
    Need("memfd_executable", "executable memfds", "as root: sysctl -w vm.memfd_noexec=1"),
    Need("openat2", "openat2"),
    Need("new_mount_api", "fsopen, fsconfig, fsmount, open_tree and move_mount"),
    Need("close_range", "close_range"),
)


def check_floor() -> None:
    """Refuse a host on which no container can be made.

    Raises: UnsupportedError: it names all that is missing; nothing was touched.
    """
    missing = [need for need in NEEDS if not features.PROBES[need.probe]()]
    if not missing:
        return
    remedy = "; ".join(dict.fromkeys(need.remedy for need in missing))
    if outer.is_filtered():
        remedy = f"a seccomp filter is around this process: {outer.SECCOMP_REMEDY}; without one: {remedy}"
    raise UnsupportedError(
        f"this host (Linux {os.uname().release}) does not offer {', '.join(need.words for need in missing)}, which every container needs",
        feature=missing[0].probe,
        remedy=remedy,
    )
