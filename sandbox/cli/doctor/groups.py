"""Control groups: how they are mounted, which limits can be enforced by us, and which hold from above."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Final

from sandbox import cg
from sandbox.cli.doctor.finding import Finding, State, read_number

_SECTION: Final = "control groups"
# Files that say how much everything below may have, by controller: v1's, v2's. (A huge number, or "max": no limit.)
_ABOVE: Final = (
    ("memory", "bytes", "memory.limit_in_bytes", "memory.max"),
    ("pids", "processes and threads", "pids.max", "pids.max"),
)
_UNLIMITED: Final = 1 << 60
_NO_REMEDY: Final = "run as root, or on a host that has this controller"


def findings() -> list[Finding]:
    """All about control groups."""
    host = cg.detect()
    return [_mode(host), *_limits(host), *_above(host)]


def _mode(host: cg.Host) -> Finding:
    if host.mode is cg.Mode.NONE:
        return Finding(_SECTION, "mounted", State.MISSING, "none: no limits on memory, CPU or processes", "mount -t cgroup2 none /sys/fs/cgroup")
    places = sorted({f"v{hierarchy.version} {hierarchy.start}" for hierarchy in host.hierarchies})
    return Finding(_SECTION, "mounted", State.OK, f"{host.mode.value}: {', '.join(places)}")


def _limits(host: cg.Host) -> Iterator[Finding]:
    for item in cg.available(host):
        what = f"limit {item.limit}"
        if item.is_available:
            yield Finding(_SECTION, what, State.OK, "can be enforced")
        else:
            yield Finding(_SECTION, what, State.MISSING, item.reason.removesuffix(f"; {item.remedy}"), item.remedy or _NO_REMEDY)


def _above(host: cg.Host) -> Iterator[Finding]:
    """The least of the limits of our own group and of all above it: containers cannot have more."""
    for controller, unit, v1, v2 in _ABOVE:
        hierarchy = host.find(controller)
        if hierarchy is None:
            continue
        name = v1 if hierarchy.version == 1 else v2
        numbers = [number for path in _upwards(hierarchy) if (number := read_number(f"{path}/{name}")) is not None and number < _UNLIMITED]
        value = f"at most {min(numbers)} {unit}" if numbers else "none that we can see"
        yield Finding(_SECTION, f"limit from above, {controller}", State.NOTE, value)


def _upwards(hierarchy: cg.Hierarchy) -> Iterator[str]:
    path = hierarchy.start
    while path.startswith(hierarchy.mount):
        yield path
        path = os.path.dirname(path)
