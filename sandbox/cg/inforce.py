"""Read the limits of a group back from the kernel, into the same `Limits` that were asked for."""

from __future__ import annotations

import os
from collections.abc import Callable

from sandbox.cg import files
from sandbox.cg.bundle import Bundle, Place
from sandbox.cg.limits import IoMax, Limits, shares_to_weight

_UNLIMITED_V1 = 1 << 62  # v1 shows "no limit" as the largest count of pages: 2**63 less one page, by whatever size of page
_UNITS = {"KB": 10, "MB": 20, "GB": 30}
_V1_RATES = {"read_bps": "rbps", "write_bps": "wbps", "read_iops": "riops", "write_iops": "wiops"}


def _number(place: Place, file: str) -> int | None:
    value = files.parse_number(files.read_or_none(f"{place.path}/{file}") or "")
    return None if value is not None and value >= _UNLIMITED_V1 else value


def _memory(place: Place) -> dict[str, object]:
    if place.version == 2:
        memory, swap = _number(place, "memory.max"), _number(place, "memory.swap.max")
    else:
        memory, both = _number(place, "memory.limit_in_bytes"), _number(place, "memory.memsw.limit_in_bytes")
        swap = both - memory if both is not None and memory is not None else None
    return {"memory": memory, "swap": swap if memory is not None else None}


def _cpu(place: Place) -> dict[str, object]:
    if place.version == 2:
        quota, _, period = (files.read_or_none(f"{place.path}/cpu.max") or "max 100000").strip().partition(" ")
        cpus = None if quota == "max" else int(quota) / int(period)
        return {"cpus": cpus, "cpu_weight": _number(place, "cpu.weight")}
    quota_us, period_us = _number(place, "cpu.cfs_quota_us"), _number(place, "cpu.cfs_period_us")
    shares = _number(place, "cpu.shares")
    weight = None if shares is None else shares_to_weight(shares)
    return {"cpus": quota_us / period_us if quota_us is not None and period_us else None, "cpu_weight": weight}


def _cpuset(place: Place) -> dict[str, object]:
    return {"cpuset": (files.read_or_none(f"{place.path}/cpuset.cpus") or "").strip() or None}


def _pids(place: Place) -> dict[str, object]:
    return {"pids": _number(place, "pids.max")}


def parse_io_max(text: str) -> dict[str, dict[str, int]]:
    """Parse v2's ``io.max``: ``8:0 rbps=1 wbps=max riops=max wiops=max``."""
    result: dict[str, dict[str, int]] = {}
    for line in text.splitlines():
        device, *words = line.split()
        rates = dict(word.split("=", 1) for word in words)
        result[device] = {name: int(rate) for name, rate in rates.items() if rate != "max"}
    return result


def _io(place: Place) -> dict[str, object]:
    table: dict[str, dict[str, int]] = {}
    if place.version == 2:
        table = parse_io_max(files.read_or_none(f"{place.path}/io.max") or "")
        weight = files.parse_flat(files.read_or_none(f"{place.path}/io.weight") or "").get("default")
    else:
        for word, rate in _V1_RATES.items():
            for device, value in files.parse_flat(files.read_or_none(f"{place.path}/blkio.throttle.{word}_device") or "").items():
                table.setdefault(device, {})[rate] = value
        weight = None  # BFQ's scale cannot be turned back exactly; read its file for it
    disks = tuple(IoMax(device, **rates) for device, rates in sorted(table.items()) if rates)
    return {"io_max": disks or None, "io_weight": weight}


def _hugetlb(place: Place) -> dict[str, object]:
    tail = ".max" if place.version == 2 else ".limit_in_bytes"
    pages: dict[int, int] = {}
    for name in os.listdir(place.path):
        parts = name.removesuffix(tail).split(".")
        if name.startswith("hugetlb.") and name.endswith(tail) and len(parts) == 2:  # not "hugetlb.2MB.rsvd.max"
            value = _number(place, name)
            if value is not None:
                pages[int(parts[1][:-2]) << _UNITS[parts[1][-2:]]] = value
    return {"hugetlb": pages or None}


def _devices(place: Place) -> dict[str, object]:
    rules = tuple((files.read_or_none(f"{place.path}/devices.list") or "").splitlines())
    return {"devices": None if place.version == 2 or rules == ("a *:* rwm",) else rules}


_READERS: dict[str, Callable[[Place], dict[str, object]]] = {
    "memory": _memory,
    "cpu": _cpu,
    "cpuset": _cpuset,
    "pids": _pids,
    "io": _io,
    "hugetlb": _hugetlb,
    "devices": _devices,
}


def read_limits(bundle: Bundle) -> Limits:
    """Give the limits that the group itself has; its parents' hold too, and may be tighter."""
    values: dict[str, object] = {}
    for controller, read in _READERS.items():
        place = bundle.at(controller)
        if place is not None:
            values.update(read(place))
    return Limits(**values)  # type: ignore[arg-type]  # each reader gives the fields of its own controller
