"""Which limits this host can enforce for this process, and why not the others."""

from __future__ import annotations

import contextlib
import os

from attrs import frozen

from sandbox.cg import files
from sandbox.cg.bundle import Bundle, checked_writes
from sandbox.cg.hosts import Host, detect
from sandbox.cg.limits import CONTROLLER_OF, Limits
from sandbox.cg.tree import check_can_enable, owner
from sandbox.errors import SandboxError, UnsupportedError

_PROBES = {
    "memory": Limits(memory="64M"),
    "swap": Limits(memory="64M", swap="64M"),
    "cpus": Limits(cpus=1),
    "cpu_weight": Limits(cpu_weight=50),
    "cpuset": None,  # which CPUs there are is the host's business: see _cpuset
    "pids": Limits(pids=64),
    "io_weight": Limits(io_weight=50),
    "hugetlb": None,
    "devices": Limits(devices=["c 1:3 rwm"]),
}


@frozen
class Availability:
    """Whether *limit* (a field of `Limits`) can be enforced here; if not, *reason* says why, and *remedy* what would help."""

    limit: str
    is_available: bool
    reason: str = ""
    remedy: str = ""


def available(host: Host | None = None) -> tuple[Availability, ...]:
    """Find out, for each limit, whether it can be enforced, by setting it on a group made for the purpose.

    Features are probed, never guessed from a version. Costs a few milliseconds; changes nothing that stays: a v2 controller that
    is not enabled yet is judged by the right to enable it, and by the processes that would forbid it.
    """
    host = host or detect()
    return tuple(_probe(name, host) for name in CONTROLLER_OF)


def _probe(limit: str, host: Host) -> Availability:
    try:
        _try(limit, host)
    except UnsupportedError as error:
        return Availability(limit, is_available=False, reason=str(error.args[0]), remedy=error.remedy)
    except SandboxError as error:
        return Availability(limit, is_available=False, reason=str(error))
    return Availability(limit, is_available=True)


def _try(limit: str, host: Host) -> None:
    controller = CONTROLLER_OF[limit]
    hierarchy = host.require(controller)
    limits = _PROBES.get(limit) if limit not in ("cpuset", "hugetlb") else _of_host(limit, hierarchy.start)
    planned = checked_writes(limits, host) if limits is not None else ()
    if hierarchy.version == 2 and controller not in files.read_all(f"{hierarchy.start}/cgroup.subtree_control").split():
        check_can_enable(hierarchy.start)
        return
    bundle = Bundle(host, f"probe-{limit}-{os.urandom(4).hex()}", {})
    try:
        bundle.add(hierarchy, f"{owner().directory(hierarchy, [controller])}/{bundle.name}")
        bundle.apply(planned)
    finally:
        with contextlib.suppress(SandboxError):  # an error of the probe itself is the one to be told
            bundle.remove()


def _of_host(limit: str, start: str) -> Limits | None:
    """Make a limit of what this host has; None (io_max, hugetlb without huge pages): the files' being there has to do."""
    if limit == "cpuset":
        return Limits(cpuset=os.sched_getaffinity(0))
    sizes = [int(name.removeprefix("hugepages-").removesuffix("kB")) for name in _names("/sys/kernel/mm/hugepages")]
    return Limits(hugetlb=[(size << 10, size << 10) for size in sizes]) if sizes and files.read_or_none(f"{start}/cgroup.procs") is not None else None


def _names(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except FileNotFoundError:
        return []
