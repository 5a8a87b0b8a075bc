"""What limits take beside their control files: CPUs that are there, and disks that heed a weight. Looked at before a group is made."""

from __future__ import annotations

import os
from typing import Final

from sandbox.cg import files
from sandbox.cg.hosts import Hierarchy, Host
from sandbox.cg.limits import Limits, format_cpuset, parse_cpuset
from sandbox.errors import UnsupportedError, UsageError

__all__ = ["check_present", "weighing_disks"]

_BLOCK: Final = "/sys/block"
_WEIGHT_FILES: Final = {1: ("blkio.bfq.weight",), 2: ("io.weight", "io.bfq.weight")}


def check_present(limits: Limits, host: Host, *, block: str = _BLOCK) -> None:
    """Refuse CPUs that no group here can have, and a weight that no disk would heed. Touches nothing.

    The kernel itself refuses the first only on v1, and only once the group is there; on v2 it gives the group all CPUs of its parent instead.
    The second it takes, and does nothing.

    Raises: UsageError, UnsupportedError.
    """
    if limits.cpuset is not None and (hierarchy := host.find("cpuset")) is not None:
        _check_cpus(parse_cpuset(limits.cpuset), hierarchy)
    if limits.io_weight is not None and (hierarchy := host.find("io")) is not None:
        _check_weight(hierarchy, block)


def _check_cpus(wanted: frozenset[int], hierarchy: Hierarchy) -> None:
    names = ("cpuset.cpus.effective", "cpuset.cpus") if hierarchy.version == 2 else ("cpuset.effective_cpus", "cpuset.cpus")
    text = next((found for name in names if (found := (files.read_or_none(f"{hierarchy.start}/{name}") or "").strip())), "")
    there = parse_cpuset(text) if text else frozenset(range(os.cpu_count() or 1))
    if missing := wanted - there:
        raise UsageError(f"cpuset: {format_cpuset(missing)}: no such CPU here; choose from {format_cpuset(there)}")


def _check_weight(hierarchy: Hierarchy, block: str) -> None:
    if weighing_disks(hierarchy, block):
        return
    remedy = "as root: echo bfq > /sys/block/DISK/queue/scheduler, for the disk that counts (modprobe bfq, where it does not offer that)"
    if hierarchy.version == 2:
        remedy += f"; or echo 'MAJ:MIN enable=1' > {hierarchy.mount}/io.cost.qos"
    raise UnsupportedError(
        "no disk of this host heeds io_weight=: none has the scheduler BFQ" + (", nor io.cost" if hierarchy.version == 2 else ""),
        feature=f"cgroup:{_WEIGHT_FILES[hierarchy.version][0]}",
        remedy=f"{remedy}; or give io_max=, which every disk heeds",
    )


def weighing_disks(hierarchy: Hierarchy, block: str = _BLOCK) -> frozenset[str]:
    """The disks on which groups of *hierarchy* get time by their weights: names (BFQ), and on v2 numbers (io.cost)."""
    found = {disk for disk in _disks(block) if "[bfq]" in (files.read_or_none(f"{block}/{disk}/queue/scheduler") or "").split()}
    if hierarchy.version == 2:  # a file of the root group only: from inside another container, what cannot be seen does not count
        lines = (files.read_or_none(f"{hierarchy.mount}/io.cost.qos") or "").splitlines()
        found |= {words[0] for line in lines if "enable=1" in (words := line.split())}
    return frozenset(found)


def _disks(block: str) -> list[str]:
    try:
        return os.listdir(block)
    except OSError:  # no sysfs here
        return []
