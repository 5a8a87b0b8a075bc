"""What limits take beside control files: CPUs, disks and pages that are there, disks that heed a weight. Looked at before a group is made."""

from __future__ import annotations

import os
from typing import Final

from sandbox.cg import files
from sandbox.cg.hosts import Hierarchy, Host
from sandbox.cg.limits import Limits, format_cpuset, parse_cpuset
from sandbox.errors import UnsupportedError, UsageError

__all__ = ["check_present", "weighing_disks"]

_BLOCK: Final = "/sys/block"
_NUMBERS: Final = "/sys/dev/block"
_PAGES: Final = "/sys/kernel/mm/hugepages"
_WEIGHT_FILES: Final = {1: ("blkio.bfq.weight",), 2: ("io.weight", "io.bfq.weight")}


def check_present(limits: Limits, host: Host, *, block: str = _BLOCK) -> None:
    """Refuse CPUs that no group here can have, disks and sizes of pages that are not there, and a weight that no disk would heed. Touches nothing.

    The kernel itself refuses most of that once the group is there; on v2 it gives a group all CPUs of its parent instead, and it takes a weight
    and does nothing.

    Raises: UsageError, UnsupportedError.
    """
    if limits.cpuset is not None and (hierarchy := host.find("cpuset")) is not None:
        _check_cpus(parse_cpuset(limits.cpuset), hierarchy)
    if limits.io_weight is not None and (hierarchy := host.find("io")) is not None:
        _check_weight(hierarchy, block)
    for disk in limits.io_max or ():
        _check_disk(disk.device)
    for size, _ in limits.hugetlb or ():
        _check_pages(size)


def _check_disk(device: str) -> None:
    if os.path.isdir(_NUMBERS) and not os.path.exists(f"{_NUMBERS}/{device}"):
        raise UsageError(f"io_max: there is no disk {device}; `lsblk` lists those that there are, with their numbers")
    if os.path.exists(f"{_NUMBERS}/{device}/partition"):
        raise UsageError(f"io_max: {device} is a part of a disk, and rates are of whole ones; give its path, and the disk is found")


def _check_pages(size: int) -> None:
    there = [int(name.removeprefix("hugepages-").removesuffix("kB")) << 10 for name in _names(_PAGES)]
    if there and size not in there:
        known = ", ".join(map(str, sorted(there)))
        raise UnsupportedError(f"this host has no pages of {size} bytes", feature="hugetlb", remedy=f"give hugetlb= one of its sizes: {known}")


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
    found = {disk for disk in _names(block) if "[bfq]" in (files.read_or_none(f"{block}/{disk}/queue/scheduler") or "").split()}
    if hierarchy.version == 2:  # a file of the root group only: from inside another container, what cannot be seen does not count
        lines = (files.read_or_none(f"{hierarchy.mount}/io.cost.qos") or "").splitlines()
        found |= {words[0] for line in lines if "enable=1" in (words := line.split())}
    return frozenset(found)


def _names(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except OSError:  # no sysfs here
        return []
