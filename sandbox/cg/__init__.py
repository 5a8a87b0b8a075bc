"""Control groups: v2, v1 and both at once (hybrid) behind one interface; usable alone.

Theory of operation
-------------------
`detect` reads once what this host offers. `Limits` say what a group may use; pure functions (`writes`) turn them into
the files of either version. `Cgroup` is one group for everyday use; `Group` and `Leaf` are the container's and its
programs' groups, made for speed. Everything lies below the cgroup that this process was started in, in a directory of
this process (`owner_paths`), which a janitor can remove when the process was killed.
"""

from __future__ import annotations

from sandbox.cg.available import Availability, available
from sandbox.cg.blueprint import Blueprint, blueprint
from sandbox.cg.bundle import Events, check_limits, limits_need_v2
from sandbox.cg.cgroup import Cgroup
from sandbox.cg.group import LEAF_ACCOUNTING, Group
from sandbox.cg.hosts import Hierarchy, Host, Mode, detect
from sandbox.cg.leaf import CpuFormat, Layout, Leaf, Usage
from sandbox.cg.limits import FIELDS as LIMIT_NAMES
from sandbox.cg.limits import IoMax, Limits, Write, writes
from sandbox.cg.stats import IoStats, Pressure, Stall, Stats
from sandbox.cg.systemd import delegate
from sandbox.cg.tree import close_owner, count_as_ours, make_room, owner_paths

__all__ = [
    "LEAF_ACCOUNTING",
    "LIMIT_NAMES",
    "Availability",
    "Blueprint",
    "Cgroup",
    "CpuFormat",
    "Events",
    "Group",
    "Hierarchy",
    "Host",
    "IoMax",
    "IoStats",
    "Layout",
    "Leaf",
    "Limits",
    "Mode",
    "Pressure",
    "Stall",
    "Stats",
    "Usage",
    "Write",
    "available",
    "blueprint",
    "check_limits",
    "close_owner",
    "count_as_ours",
    "delegate",
    "detect",
    "limits_need_v2",
    "make_room",
    "owner_paths",
    "writes",
]
