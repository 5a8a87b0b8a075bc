"""What a group used, as one frozen value for either version of control groups."""

from __future__ import annotations

from collections.abc import Callable, Mapping

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


Text = Callable[[Place, str], str | None]  # reads a file of a group; None: this kernel does not have it, or does not let it be read here


def read_once(place: Place, file: str) -> str | None:
    """Open a file of the group, read it, close it."""
    return files.read_or_none(f"{place.path}/{file}")


def _number(place: Place, file: str, text: Text) -> int | None:
    return files.parse_number(text(place, file) or "")


def _seconds(count: int | None, per_second: int) -> float | None:
    return None if count is None else count / per_second


def _memory(place: Place, text: Text) -> dict[str, int | None]:
    stat = files.parse_flat(text(place, "memory.stat") or "")
    if place.version == 2:
        peak, current, swap = (_number(place, f"memory.{name}", text) for name in ("peak", "current", "swap.current"))
        return {"memory": current, "memory_peak": peak, "anon": stat.get("anon"), "file": stat.get("file"), "swap": swap}
    return {
        "memory": _number(place, "memory.usage_in_bytes", text),
        "memory_peak": _number(place, "memory.max_usage_in_bytes", text),
        "anon": stat.get("total_rss"),
        "file": stat.get("total_cache"),
        "swap": stat.get("total_swap"),
    }


def split_cpu(total_ns: int, user_ns: int, system_ns: int) -> tuple[int, int]:
    """Split the exact *total_ns* as the two sampled times stand to one another (as cputime_adjust() in the kernel)."""
    sampled = user_ns + system_ns
    system = total_ns * system_ns // sampled if sampled else 0
    return total_ns - system, system


def _cpuacct(place: Place, text: Text) -> dict[str, float | None]:
    if place.version == 2:
        stat = files.parse_flat(text(place, "cpu.stat") or "")
        keys = (("cpu_time", "usage_usec"), ("user_time", "user_usec"), ("system_time", "system_usec"))
        return {name: _seconds(stat.get(key), 1_000_000) for name, key in keys}
    total, user, system = (_number(place, f"cpuacct.usage{name}", text) for name in ("", "_user", "_sys"))
    if total is None or user is None or system is None:
        return {"cpu_time": _seconds(total, 10**9)}
    user, system = split_cpu(total, user, system)
    return {"cpu_time": total / 1e9, "user_time": user / 1e9, "system_time": system / 1e9}


def _throttling(place: Place, text: Text) -> dict[str, float | None]:
    stat = files.parse_flat(text(place, "cpu.stat") or "")
    time = _seconds(stat.get("throttled_usec"), 10**6) if place.version == 2 else _seconds(stat.get("throttled_time"), 10**9)
    return {"periods": stat.get("nr_periods"), "throttled_periods": stat.get("nr_throttled"), "throttled_time": time}


def _pids(place: Place, text: Text) -> dict[str, int | None]:
    return {"pids": _number(place, "pids.current", text), "pids_peak": _number(place, "pids.peak", text)}


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


def _io(place: Place, text: Text) -> tuple[IoStats, ...] | None:
    if place.version == 2:
        lines = text(place, "io.stat")
        return None if lines is None else parse_io_v2(lines)
    byte_lines, operation_lines = (text(place, f"blkio.throttle.{name}_recursive") for name in ("io_service_bytes", "io_serviced"))
    return None if byte_lines is None or operation_lines is None else parse_io_v1(byte_lines, operation_lines)


def parse_pressure(text: str) -> Pressure | None:
    """Parse a ``*.pressure`` file; None when it has no line "some" (PSI is off)."""
    stalls: dict[str, Stall] = {}
    for line in text.splitlines():
        kind, *words = line.split()
        values = dict(word.split("=", 1) for word in words)
        stalls[kind] = Stall(float(values["avg10"]), float(values["avg60"]), float(values["avg300"]), int(values["total"]) / 1e6)
    return Pressure(stalls["some"], stalls.get("full")) if "some" in stalls else None


def _pressure(place: Place, text: Text) -> dict[str, Pressure]:
    found = ((name, parse_pressure(text(place, f"{name}.pressure") or "")) for name in ("cpu", "memory", "io"))
    return {name: pressure for name, pressure in found if pressure is not None}


def collect(bundle: Bundle, text: Text = read_once) -> Stats:
    """Read everything that the group's hierarchies tell; *text* reads their files."""
    values: dict[str, object] = {}
    for controller, read in (("memory", _memory), ("cpuacct", _cpuacct), ("cpu", _throttling), ("pids", _pids)):
        place = bundle.at(controller)
        if place is not None:
            values.update(read(place, text))
    io, unified = bundle.at("io"), bundle.at("pressure")
    return Stats(
        **values,  # type: ignore[arg-type]  # each reader gives the fields of its own part
        io=_io(io, text) if io is not None else None,
        pressure=_pressure(unified, text) if unified is not None else {},
    )
