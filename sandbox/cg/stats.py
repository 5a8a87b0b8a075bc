"""What a group used, as one frozen value for either version of control groups."""

from __future__ import annotations

from collections.abc import Mapping

from attrs import field, frozen

from sandbox.cg import files
from sandbox.cg.bundle import Bundle, Place


@frozen
class IoStats:
    """Bytes and operations that passed to and from one disk (``MAJ:MIN``)."""

    device: str
    read_bytes: int = 0
    written_bytes: int = 0
    reads: int = 0
    writes: int = 0


@frozen
class Stall:
    """Share of time (percent, running averages) and seconds in which processes waited for a resource."""

    avg10: float
    avg60: float
    avg300: float
    total: float


@frozen
class Pressure:
    """Pressure stall information: *some* process waited; *full*: all did (None: the kernel does not tell)."""

    some: Stall
    full: Stall | None = None


@frozen
class Stats:
    """Bytes, seconds and counts of a group and all below it. None: this host, or the group's choice of controllers, does not tell.

    *swap* is what of *memory* is swapped out; *memory_peak* is v1's ``max_usage_in_bytes`` or v2's ``memory.peak`` (Linux 5.19);
    *pids_peak* needs Linux 6.11. *pressure* has ``"cpu"``, ``"memory"``, ``"io"`` as far as there are.
    """

    memory: int | None = None
    memory_peak: int | None = None
    anon: int | None = None
    file: int | None = None
    swap: int | None = None
    cpu_time: float | None = None
    user_time: float | None = None
    system_time: float | None = None
    periods: int | None = None
    throttled_periods: int | None = None
    throttled_time: float | None = None
    pids: int | None = None
    pids_peak: int | None = None
    io: tuple[IoStats, ...] | None = None
    pressure: Mapping[str, Pressure] = field(factory=dict[str, Pressure], hash=False)


def _text(place: Place, file: str) -> str:
    return files.read_or_none(f"{place.path}/{file}") or ""


def _seconds(count: int | None, per_second: int) -> float | None:
    return None if count is None else count / per_second


def _memory(place: Place) -> dict[str, int | None]:
    stat = files.parse_flat(_text(place, "memory.stat"))
    if place.version == 2:
        peak, current, swap = (files.parse_number(_text(place, f"memory.{name}")) for name in ("peak", "current", "swap.current"))
        return {"memory": current, "memory_peak": peak, "anon": stat.get("anon"), "file": stat.get("file"), "swap": swap}
    return {
        "memory": files.parse_number(_text(place, "memory.usage_in_bytes")),
        "memory_peak": files.parse_number(_text(place, "memory.max_usage_in_bytes")),
        "anon": stat.get("total_rss"),
        "file": stat.get("total_cache"),
        "swap": stat.get("total_swap"),
    }


def split_cpu(total_ns: int, user_ns: int, system_ns: int) -> tuple[int, int]:
    """Split the exact *total_ns* as the two sampled times stand to one another (as cputime_adjust() in the kernel)."""
    sampled = user_ns + system_ns
    system = total_ns * system_ns // sampled if sampled else 0
    return total_ns - system, system


def _cpuacct(place: Place) -> dict[str, float | None]:
    if place.version == 2:
        stat = files.parse_flat(_text(place, "cpu.stat"))
        keys = (("cpu_time", "usage_usec"), ("user_time", "user_usec"), ("system_time", "system_usec"))
        return {name: _seconds(stat.get(key), 1_000_000) for name, key in keys}
    total, user, system = (files.parse_number(_text(place, f"cpuacct.usage{name}")) for name in ("", "_user", "_sys"))
    if total is None or user is None or system is None:
        return {"cpu_time": _seconds(total, 10**9)}
    user, system = split_cpu(total, user, system)
    return {"cpu_time": total / 1e9, "user_time": user / 1e9, "system_time": system / 1e9}


def _throttling(place: Place) -> dict[str, float | None]:
    stat = files.parse_flat(_text(place, "cpu.stat"))
    time = _seconds(stat.get("throttled_usec"), 10**6) if place.version == 2 else _seconds(stat.get("throttled_time"), 10**9)
    return {"periods": stat.get("nr_periods"), "throttled_periods": stat.get("nr_throttled"), "throttled_time": time}


def _pids(place: Place) -> dict[str, int | None]:
    return {"pids": files.parse_number(_text(place, "pids.current")), "pids_peak": files.parse_number(_text(place, "pids.peak"))}


def parse_io_v2(text: str) -> tuple[IoStats, ...]:
    """Parse v2's ``io.stat``: ``8:0 rbytes=1 wbytes=2 rios=3 wios=4 ...``."""
    result: list[IoStats] = []
    for line in text.splitlines():
        device, *words = line.split()
        values = dict(word.split("=", 1) for word in words if "=" in word)
        numbers = [int(values.get(key, "0")) for key in ("rbytes", "wbytes", "rios", "wios")]
        if words:  # a disk that was not used has a line without values
            result.append(IoStats(device, *numbers))
    return tuple(result)


def parse_io_v1(byte_lines: str, operation_lines: str) -> tuple[IoStats, ...]:
    """Parse v1's ``8:0 Read 4096`` lines of bytes and of operations."""
    table: dict[str, dict[str, int]] = {}
    for text, keys in ((byte_lines, ("read_bytes", "written_bytes")), (operation_lines, ("reads", "writes"))):
        names = dict(zip(("Read", "Write"), keys, strict=True))
        for line in text.splitlines():
            words = line.split()
            if len(words) == 3 and words[1] in names:
                table.setdefault(words[0], {})[names[words[1]]] = int(words[2])
    return tuple(IoStats(device, **values) for device, values in table.items())


def _io(place: Place) -> tuple[IoStats, ...] | None:
    if place.version == 2:
        text = files.read_or_none(f"{place.path}/io.stat")
        return None if text is None else parse_io_v2(text)
    texts = [files.read_or_none(f"{place.path}/blkio.throttle.{name}_recursive") for name in ("io_service_bytes", "io_serviced")]
    if texts[0] is None or texts[1] is None:
        return None
    return parse_io_v1(texts[0], texts[1])


def parse_pressure(text: str) -> Pressure | None:
    """Parse a ``*.pressure`` file; None when it has no line "some" (PSI is off)."""
    stalls: dict[str, Stall] = {}
    for line in text.splitlines():
        kind, *words = line.split()
        values = dict(word.split("=", 1) for word in words)
        stalls[kind] = Stall(float(values["avg10"]), float(values["avg60"]), float(values["avg300"]), int(values["total"]) / 1e6)
    return Pressure(stalls["some"], stalls.get("full")) if "some" in stalls else None


def _pressure(place: Place) -> dict[str, Pressure]:
    found = ((name, parse_pressure(_text(place, f"{name}.pressure"))) for name in ("cpu", "memory", "io"))
    return {name: pressure for name, pressure in found if pressure is not None}


def collect(bundle: Bundle) -> Stats:
    """Read everything that the group's hierarchies tell."""
    values: dict[str, object] = {}
    for controller, read in (("memory", _memory), ("cpuacct", _cpuacct), ("cpu", _throttling), ("pids", _pids)):
        place = bundle.at(controller)
        if place is not None:
            values.update(read(place))
    io, unified = bundle.at("io"), bundle.at("pressure")
    return Stats(
        **values,  # type: ignore[arg-type]  # each reader gives the fields of its own part
        io=_io(io) if io is not None else None,
        pressure=_pressure(unified) if unified is not None else {},
    )
