"""Time namespaces: other starting points for the monotonic and boot-time clocks. The wall clock belongs to no namespace."""

from __future__ import annotations

import math
from typing import Final

from attrs import field, frozen

from sandbox import _plan as plan
from sandbox._sys.constants import CLONE_NEWTIME, O_CLOEXEC
from sandbox.errors import UsageError
from sandbox.ns._pieces import Host, Join, Pieces, join_pieces

__all__ = ["Time", "check_clocks", "pieces", "to_offset"]

_NS: Final = 1_000_000_000
MOST: Final = (2**63 - 1) // _NS // 2  # KTIME_SEC_MAX / 2: a clock beyond it is ERANGE (proc_timens_set_offset)
_PROC: Final = f"@{plan.ROLE_PROC}"  # init's own procfs
_SLOT: Final = "ns.time.own"


def to_offset(value: float) -> float:
    """Check an offset: seconds, finite, at most 146 years either way."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or abs(value) > MOST:
        raise UsageError(f"time offset: {value!r} is out of range; give seconds from {-MOST} to {MOST}")
    return float(value)


@frozen
class Time:
    """A time namespace of its own: CLOCK_MONOTONIC is *monotonic* seconds ahead of the host's, CLOCK_BOOTTIME (and /proc/uptime) *boottime*."""

    monotonic: float = field(default=0.0, converter=to_offset)
    boottime: float = field(default=0.0, converter=to_offset)


def check_clocks(spec: Time) -> None:
    """Refuse offsets that would put a clock before 0, which the kernel would (ERANGE), but only once the container is being made."""
    import time

    for name, offset in (("monotonic", spec.monotonic), ("boottime", spec.boottime)):
        now = time.clock_gettime(time.CLOCK_MONOTONIC if name == "monotonic" else time.CLOCK_BOOTTIME)
        if now + offset < 0:
            raise UsageError(f"time offset: {name}={offset:g} would put the clock {-(now + offset):.0f} s before 0; it stands at {now:.0f} s")


def pieces(spec: Time | Host | Join) -> Pieces:
    """Pieces of a plan for *spec*. Its operations need init's own procfs, so they come after the mounts."""
    if isinstance(spec, Join):
        return join_pieces("time", spec)
    if isinstance(spec, Host):
        return Pieces()
    return Pieces(late_ops=tuple(_ops(spec)))


def _ops(spec: Time) -> list[plan.Op]:
    # unshare(CLONE_NEWTIME) is for children only. They are made by vfork, and those enter at their execve only since Linux 6.2
    # ("fs/exec: switch timens when a task gets a new mm"), so init enters itself, and children inherit. Offsets first: they
    # cannot be changed any more once somebody is inside.
    offsets = b"".join(b"%b %d %d\n" % (clock, *_parts(value)) for clock, value in ((b"monotonic", spec.monotonic), (b"boottime", spec.boottime)))
    return [
        plan.Unshare(CLONE_NEWTIME),
        plan.WriteProc("self/timens_offsets", offsets, _PROC),
        plan.Open(_SLOT, "/proc/self/ns/time_for_children", O_CLOEXEC),
        plan.Setns(_SLOT, CLONE_NEWTIME),
        plan.Close(_SLOT),
    ]


def _parts(seconds: float) -> tuple[int, int]:
    """Whole seconds and nanoseconds, the latter never negative, as the kernel reads them."""
    whole = math.floor(seconds)
    nanoseconds = round((seconds - whole) * _NS)
    return (whole + 1, 0) if nanoseconds == _NS else (whole, nanoseconds)
