"""What a control group may use, as one frozen value, and the files that say so in v1 and in v2: pure functions only."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import ClassVar, Final, cast

import attrs
from attrs import field, frozen

from sandbox._types import MAX_SIZE, Size, to_count, to_items, to_size
from sandbox.cg.hosts import devices_need_ebpf
from sandbox.errors import UsageError

PERIOD_US: Final = 100_000  # the kernel's and Docker's default period of a CPU quota
MIN_CPUS: Final = 0.01  # the kernel's shortest quota is 1 ms (min_cfs_quota_period in kernel/sched/core.c)
MAX_CPUS: Final = 65_536.0
MAX_PIDS: Final = 1 << 22  # PID_MAX_LIMIT
MIN_MEMORY: Final = 4096  # below one page the kernel rounds to nothing at all
MAX_CPU_NUMBER: Final = 65_535

_DEVICE: Final = re.compile(r"(\d{1,4}):(\d{1,8})", re.ASCII)
_RULE: Final = re.compile(r"(a|[bc] (?:\*|\d{1,10}):(?:\*|\d{1,10}) [rwm]{1,3})", re.ASCII)
_RANGE: Final = re.compile(r"(\d{1,6})(?:-(\d{1,6}))?", re.ASCII)


@frozen
class IoMax:
    """The most that may pass to or from one whole disk each second: bytes (*rbps*, *wbps*) and operations; None: no limit."""

    device: str
    rbps: int | None = None
    wbps: int | None = None
    riops: int | None = None
    wiops: int | None = None


@frozen
class Write:
    """Write *value* into *file* of *controller*'s directory (None: copy what the parent directory has).

    A missing file is fatal unless *optional*, or *instead* says what to write then.
    """

    controller: str
    file: str
    value: str | None
    optional: bool = False
    instead: Write | None = None


def _cpus(value: float | None) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or not MIN_CPUS <= value <= MAX_CPUS:
        raise UsageError(f"cpus: {value!r} is out of range; give a number of CPUs from {MIN_CPUS} to {MAX_CPUS:g}")
    return float(value)


def _memory_size(value: Size | None) -> int | None:
    return None if value is None else to_size(value, what="memory", least=MIN_MEMORY)


def _swap_size(value: Size | None) -> int | None:
    return None if value is None else to_size(value, what="swap")


def _weight(value: int | None) -> int | None:
    return None if value is None else to_count(value, what="weight (cpu_weight, io_weight)", most=10_000)


def _pid_count(value: int | None) -> int | None:
    return None if value is None else to_count(value, what="pids", most=MAX_PIDS)


def format_cpuset(numbers: Iterable[int]) -> str:
    """Write CPU numbers the kernel's way: ``0-2,5``."""
    parts: list[list[int]] = []
    for number in sorted(set(numbers)):
        if parts and parts[-1][1] == number - 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)


def parse_cpuset(text: str) -> frozenset[int]:
    """Read the kernel's list of CPUs, ``0-2,5``.

    Raises: UsageError: malformed, or a number above 65,535.
    """
    result: set[int] = set()
    for part in text.strip().split(","):
        match = _RANGE.fullmatch(part.strip())
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not first <= last <= MAX_CPU_NUMBER:
            raise UsageError(f"cpuset: {text[:60]!r} is not a list of CPUs; write it as '0-2,5'")
        result.update(range(first, last + 1))
    return frozenset(result)


def _cpu_numbers(value: Iterable[int]) -> set[int]:
    return {to_count(n, what="cpuset", least=0, most=MAX_CPU_NUMBER) for n in to_items(value, what="cpuset", like="[0, 1]")}


def _cpuset(value: str | Iterable[int] | None) -> str | None:
    if value is None:
        return None
    numbers = parse_cpuset(value) if isinstance(value, str) else _cpu_numbers(value)
    if not numbers:
        raise UsageError("cpuset: empty; name at least one CPU, or leave it out")
    return format_cpuset(numbers)


def _whole_disk(device: str) -> str:
    """Turn ``MAJ:MIN`` or a path (of a block device, or of a file on one) into the number of the whole disk; rates are per disk."""
    if _DEVICE.fullmatch(device):
        return device
    try:
        status = os.stat(device)
    except OSError as error:
        raise UsageError(f"io_max: {device!r}: {error.strerror}; give 'MAJ:MIN' or the path of a block device") from None
    number = status.st_rdev if status.st_mode & 0o170000 == 0o060000 else status.st_dev  # S_IFBLK
    link = f"/sys/dev/block/{os.major(number)}:{os.minor(number)}"
    if os.path.exists(f"{link}/partition"):
        with open(f"{link}/../dev", encoding="ascii") as file:
            return file.read().strip()
    if not os.path.exists(link):
        raise UsageError(f"io_max: {device!r} is not on a block device; give 'MAJ:MIN' or the path of a block device")
    return f"{os.major(number)}:{os.minor(number)}"


IoMaxes = Mapping[str, IoMax | Mapping[str, Size]]


def _by_device(value: Iterable[IoMax]) -> dict[str, IoMax]:
    items = to_items(value, what="io_max", like="[IoMax('8:0', rbps='1M')]")
    for item in items:
        if not isinstance(item, IoMax):
            raise UsageError(f"io_max: {item!r} is not an IoMax; give [IoMax('8:0', rbps='1M')], say")
    return {item.device: item for item in items}


def _io_max(value: IoMaxes | Iterable[IoMax] | None) -> tuple[IoMax, ...] | None:
    if value is None:
        return None
    disks = cast("IoMaxes", value) if isinstance(value, Mapping) else _by_device(value)
    result: dict[str, IoMax] = {}
    for device, rates in disks.items():
        if not isinstance(device, (str, os.PathLike)) or not isinstance(rates, (IoMax, Mapping)):
            raise UsageError(f"io_max: {device!r}: {rates!r} is not a disk and its rates; give {{'8:0': {{'rbps': '1M'}}}}, say")
        raw = attrs.asdict(rates) if isinstance(rates, IoMax) else dict(rates)
        raw.pop("device", None)
        unknown = sorted(set(raw) - {"rbps", "wbps", "riops", "wiops"})
        given = {name: to_size(rate, what=f"io_max[{device!r}].{name}", least=1) for name, rate in raw.items() if rate is not None}
        if unknown or not given:
            raise UsageError(f"io_max[{device!r}]: {unknown or 'empty'}; give some of rbps, wbps, riops, wiops")
        number = _whole_disk(os.fspath(device))
        if number in result:
            raise UsageError(f"io_max: {device!r} names the disk {number} a second time; give each disk once")
        result[number] = IoMax(number, **given)
    return tuple(result[number] for number in sorted(result))


def _hugetlb(value: Mapping[int, Size] | Mapping[str, Size] | Iterable[tuple[Size, Size]] | None) -> tuple[tuple[int, int], ...] | None:
    if value is None:
        return None
    pairs = cast("Mapping[Size, Size]", value).items() if isinstance(value, Mapping) else value
    items = to_items(pairs, what="hugetlb", like="{'2M': '64M'}")
    for item in items:
        if not isinstance(item, tuple) or len(item) != 2:
            raise UsageError(f"hugetlb: {item!r} is not a size of page and a limit; give {{'2M': '64M'}}, say")
    pages = {to_size(page, what="hugetlb", least=1024): to_size(most, what=f"hugetlb[{page!r}]") for page, most in items}
    if any(page & (page - 1) for page in pages):
        raise UsageError(f"hugetlb: {sorted(pages)} are not all sizes of pages; give such as '2M' or '1G'")
    return tuple(sorted(pages.items()))


def _devices(value: Iterable[str] | None) -> tuple[str, ...] | None:
    if value is None:
        return None
    if isinstance(value, str):
        raise UsageError(f"devices: {value!r} is one string; give a list such as ['c 1:3 rwm']")
    rules = to_items(value, what="devices", like="['c 1:3 rwm']")
    for rule in rules:
        if not isinstance(rule, str) or not _RULE.fullmatch(rule):
            raise UsageError(f"devices: {rule!r} is not a rule; write it as 'c 1:3 rwm' (type, major:minor or *, access)")
    return rules


@frozen(cache_hash=True)
class Limits:
    """What the processes of one control group may use, together. None: no limit of its own (the parent's hold anyway).

    *memory*: bytes of memory, page cache and kernel memory included; *swap*: bytes of swap beyond it (None: none at all when
    *memory* is set). *cpus*: how many CPUs' worth of time per 100 ms; *cpu_weight*: 1 to 10,000, the share when CPUs are
    scarce (100 is everybody's default; turned into v1's shares). *cpuset*: the CPUs that may be used (``"0-1"`` or numbers).
    *pids*: processes and threads. *io_weight*: 1 to 10,000. *io_max*: disk (``"MAJ:MIN"`` or a path) to `IoMax` or a mapping
    of rbps, wbps, riops, wiops. *hugetlb*: size of page to bytes. *devices*: the only device nodes that may be used, as rules
    of devices.allow (v1 only); an empty list forbids all.

    Raises: UsageError: a value makes no sense; a path of *io_max* is not there.
    """

    memory: int | None = field(default=None, converter=_memory_size)
    swap: int | None = field(default=None, converter=_swap_size)
    cpus: float | None = field(default=None, converter=_cpus)
    cpu_weight: int | None = field(default=None, converter=_weight)
    cpuset: str | None = field(default=None, converter=_cpuset)
    pids: int | None = field(default=None, converter=_pid_count)
    io_weight: int | None = field(default=None, converter=_weight)
    io_max: tuple[IoMax, ...] | None = field(default=None, converter=_io_max)
    hugetlb: tuple[tuple[int, int], ...] | None = field(default=None, converter=_hugetlb)
    devices: tuple[str, ...] | None = field(default=None, converter=_devices)

    IS_DETAILED: ClassVar[bool] = False  # see `DetailedLimits`

    def __attrs_post_init__(self) -> None:
        if self.swap is not None and self.memory is None:
            raise UsageError("swap: given without memory; swap is counted beyond a memory limit, so give memory too")
        if self.memory is not None and self.memory + (self.swap or 0) > MAX_SIZE:
            raise UsageError(f"memory + swap: {self.memory} + {self.swap} is out of range; give at most {MAX_SIZE} bytes in all")

    @property
    def takes_more(self) -> bool:
        """Whether something else than control files has to be there for it: see `present`."""
        return any(value is not None for value in (self.cpuset, self.io_weight, self.io_max, self.hugetlb))

    def updated(self, newer: Limits) -> Limits:
        """Give these limits with those that *newer* sets in their place."""
        changes = {name: getattr(newer, name) for name in FIELDS if getattr(newer, name) is not None}
        return attrs.evolve(self, **changes)

    def only(self, names: Iterable[str]) -> Limits:
        """Give those of *names* alone."""
        return Limits(**{name: getattr(self, name) for name in names})

    def without(self, names: Iterable[str]) -> Limits:
        """Give these but for those of *names*."""
        return attrs.evolve(self, **dict.fromkeys(names))

    def changing(self, merged: Limits) -> Limits:
        """What to write to set these where they make *merged*: memory and swap hang together, as on v1 the second file holds their sum."""
        return self if self.memory is None and self.swap is None else Limits(memory=merged.memory, swap=merged.swap).updated(self)


FIELDS: Final = tuple(a.name for a in attrs.fields(Limits))
CONTROLLER_OF: Final = {
    "memory": "memory",
    "swap": "memory",
    "cpus": "cpu",
    "cpu_weight": "cpu",
    "cpuset": "cpuset",
    "pids": "pids",
    "io_weight": "io",
    "io_max": "io",
    "hugetlb": "hugetlb",
    "devices": "devices",
}


@lru_cache(maxsize=1024)
def controllers(limits: Limits) -> frozenset[str]:
    """Name the controllers that *limits* need."""
    return frozenset(CONTROLLER_OF[name] for name in FIELDS if getattr(limits, name) is not None)


@lru_cache(maxsize=1024)
def writes(limits: Limits, versions: tuple[tuple[str, int], ...]) -> tuple[Write, ...]:
    """Turn *limits* into what to write into a new group, in order; *versions* tells the cgroup version of each controller.

    Raises: UnsupportedError: a limit that its version of the controller cannot enforce. KeyError: a controller is missing.
    """
    version = dict(versions)
    result: list[Write] = []
    for controller, make in _MAKERS.items():
        if controller in controllers(limits):
            result += make(limits, version[controller])
    return tuple(result)


def _memory(limits: Limits, version: int) -> list[Write]:
    memory, swap = limits.memory, limits.swap
    if memory is None:
        return []
    # Swap that nobody asked for: a kernel without swap accounting has no file for it, then at least nothing is swapped by choice.
    if version == 2:
        limit = Write("memory", "memory.swap.max", str(swap or 0), optional=swap is None)
        # one killed process of a group would leave the rest in a state nobody planned
        return [Write("memory", "memory.max", str(memory)), limit, Write("memory", "memory.oom.group", "1", optional=True)]
    instead = Write("memory", "memory.swappiness", "0", optional=True) if swap is None else None
    both = Write("memory", "memory.memsw.limit_in_bytes", str(memory + (swap or 0)), instead=instead)
    # memsw may never be the smaller one: in a new group (both unlimited) the order is memory, memsw
    return [Write("memory", "memory.limit_in_bytes", str(memory)), both]


def _cpu(limits: Limits, version: int) -> list[Write]:
    result: list[Write] = []
    if limits.cpus is not None:
        quota = round(limits.cpus * PERIOD_US)
        if version == 2:
            result.append(Write("cpu", "cpu.max", f"{quota} {PERIOD_US}"))
        else:
            # The period is left at the kernel's default, which is PERIOD_US: each write to either file walks the tree of all groups.
            result.append(Write("cpu", "cpu.cfs_quota_us", str(quota)))
    if limits.cpu_weight is not None:
        if version == 2:
            result.append(Write("cpu", "cpu.weight", str(limits.cpu_weight)))
        else:
            result.append(Write("cpu", "cpu.shares", str(weight_to_shares(limits.cpu_weight))))
    return result


def weight_to_shares(weight: int) -> int:
    """Turn v2's weight (1..10000, default 100) into v1's shares (default 1024), as the kernel itself relates them.

    Source: sched_weight_from_cgroup() in kernel/sched/sched.h; at least 2 (MIN_SHARES).
    """
    return max(2, (weight * 1024 + 50) // 100)


def shares_to_weight(shares: int) -> int:
    """Undo `weight_to_shares` as well as its rounding lets us."""
    return min(10_000, max(1, (shares * 100 + 512) // 1024))


def _cpuset_writes(limits: Limits, version: int) -> list[Write]:
    # v1 accepts a process only when both files are filled; they start empty
    mems = [Write("cpuset", "cpuset.mems", None)] if version == 1 else []
    return [*mems, Write("cpuset", "cpuset.cpus", limits.cpuset)]


def _pids(limits: Limits, _version: int) -> list[Write]:
    return [Write("pids", "pids.max", str(limits.pids))]


def weight_to_bfq(weight: int) -> int:
    """Turn v2's io.weight (1..10000) into BFQ's (1..1000), both with 100 as the default (as systemd's BFQ_WEIGHT)."""
    return weight if weight <= 100 else 100 + (weight - 100) * 900 // 9900


_V1_RATES: Final = {
    "rbps": "blkio.throttle.read_bps_device",
    "wbps": "blkio.throttle.write_bps_device",
    "riops": "blkio.throttle.read_iops_device",
    "wiops": "blkio.throttle.write_iops_device",
}


def _io(limits: Limits, version: int) -> list[Write]:
    result: list[Write] = []
    if limits.io_weight is not None:
        bfq = str(weight_to_bfq(limits.io_weight))
        if version == 2:  # io.weight: the kernel has CONFIG_BLK_CGROUP_IOCOST; io.bfq.weight: the BFQ scheduler. Each disk heeds one of them.
            bfq_weight = Write("io", "io.bfq.weight", bfq, optional=True)
            result += [Write("io", "io.weight", f"default {limits.io_weight}", instead=attrs.evolve(bfq_weight, optional=False)), bfq_weight]
        else:
            result.append(Write("io", "blkio.bfq.weight", bfq))
    for disk in limits.io_max or ():
        rates = {name: rate for name in _V1_RATES if (rate := getattr(disk, name)) is not None}
        if version == 2:
            result.append(Write("io", "io.max", f"{disk.device} " + " ".join(f"{name}={rate}" for name, rate in rates.items())))
        else:
            result += [Write("io", _V1_RATES[name], f"{disk.device} {rate}") for name, rate in rates.items()]
    return result


def page_name(size: int) -> str:
    """Name a size of huge pages as the files do: ``64KB``, ``2MB``, ``1GB`` (mem_fmt() in mm/hugetlb_cgroup.c)."""
    for shift, unit in ((30, "GB"), (20, "MB")):
        if size >= 1 << shift:
            return f"{size >> shift}{unit}"
    return f"{size >> 10}KB"


def _hugetlb_writes(limits: Limits, version: int) -> list[Write]:
    file = "max" if version == 2 else "limit_in_bytes"
    return [Write("hugetlb", f"hugetlb.{page_name(page)}.{file}", str(most)) for page, most in limits.hugetlb or ()]


def _devices_writes(limits: Limits, version: int) -> list[Write]:
    if version == 2:
        raise devices_need_ebpf()
    denied = Write("devices", "devices.deny", "a")
    return [denied, *(Write("devices", "devices.allow", rule) for rule in limits.devices or ())]


_MAKERS: Final = {
    "memory": _memory,
    "cpu": _cpu,
    "cpuset": _cpuset_writes,
    "pids": _pids,
    "io": _io,
    "hugetlb": _hugetlb_writes,
    "devices": _devices_writes,
}
