"""Control files as typed attributes, by cgroupspy's file descriptors (in Python's sense), for v1, v2 and pids.

``group.files.memory.limit_in_bytes`` (v1), ``group.files.memory.max`` (v2), ``group.files.pids.max``: numbers, sets, flags
and mappings instead of text; None is "no limit". Names are the kernel's without the controller. Which of them there
are depends on the version (`Introspection.names`): an attribute whose file is missing raises UnsupportedError.
Import this module late: cgroupspy is loaded by those only who ask.
"""

from __future__ import annotations

from typing import Any, Final

from cgroupspy import controllers as spy  # pyright: ignore[reportMissingTypeStubs]
from cgroupspy.interfaces import (  # pyright: ignore[reportMissingTypeStubs]
    BaseFileInterface,
    CommaDashSetFile,
    DictFile,
    FlagFile,
    IntegerFile,
    IntegerListFile,
    MultiLineIntegerFile,
)

from sandbox.cg import files
from sandbox.cg.bundle import Bundle
from sandbox.cg.hosts import BUILT_INTO_V2, CONTROLLERS
from sandbox.cg.limits import Write
from sandbox.errors import UnsupportedError, UsageError


class MaxFile(BaseFileInterface):  # type: ignore[misc]  # cgroupspy is untyped
    """A number, or ``max``: None."""

    def sanitize_get(self, value: str) -> int | None:
        return None if value == "max" else int(value)

    def sanitize_set(self, value: int | None) -> int | str:
        return "max" if value is None else int(value)


class TextFile(BaseFileInterface):  # type: ignore[misc]  # cgroupspy is untyped
    """Text as it is."""


class RatesFile(DictFile):  # type: ignore[misc]  # cgroupspy is untyped
    """A line for each disk that has a limit, and none at first, which cgroupspy's class cannot read."""

    def sanitize_get(self, value: str) -> dict[str, int]:
        return {device: int(rate) for device, rate in (line.split() for line in value.splitlines())}


class TableFile(BaseFileInterface):  # type: ignore[misc]  # cgroupspy is untyped
    """Lines of ``NAME KEY=VALUE ...``, as ``io.stat``, ``io.max`` and the pressure files have: a mapping of mappings of text."""

    readonly = True

    def sanitize_get(self, value: str) -> dict[str, dict[str, str]]:
        rows = (line.split() for line in value.splitlines() if line.strip())
        return {row[0]: dict(word.split("=", 1) for word in row[1:] if "=" in word) for row in rows}


class QuotaFile(BaseFileInterface):  # type: ignore[misc]  # cgroupspy is untyped
    """``cpu.max``: (quota or None, period), in microseconds."""

    def sanitize_get(self, value: str) -> tuple[int | None, int]:
        quota, period = value.split()
        return None if quota == "max" else int(quota), int(period)

    def sanitize_set(self, value: tuple[int | None, int]) -> str:
        quota, period = value
        return f"{'max' if quota is None else int(quota)} {int(period)}"


class _V2:
    """The files that every v2 group has."""

    procs = MultiLineIntegerFile("cgroup.procs")
    type = TextFile("cgroup.type")
    controllers = TextFile("cgroup.controllers", readonly=True)
    subtree_control = TextFile("cgroup.subtree_control")
    freeze = FlagFile("cgroup.freeze")
    events = DictFile("cgroup.events", readonly=True)
    max_depth = MaxFile("cgroup.max.depth")
    max_descendants = MaxFile("cgroup.max.descendants")


class CpuV2(_V2):
    max = QuotaFile("cpu.max")
    weight = IntegerFile("cpu.weight")
    idle = FlagFile("cpu.idle")
    stat = DictFile("cpu.stat", readonly=True)
    pressure = TableFile("cpu.pressure")


class MemoryV2(_V2):
    current = IntegerFile("memory.current", readonly=True)
    peak = IntegerFile("memory.peak", readonly=True)
    min = MaxFile("memory.min")
    low = MaxFile("memory.low")
    high = MaxFile("memory.high")
    max = MaxFile("memory.max")
    oom_group = FlagFile("memory.oom.group")
    events = DictFile("memory.events", readonly=True)
    stat = DictFile("memory.stat", readonly=True)
    swap_current = IntegerFile("memory.swap.current", readonly=True)
    swap_max = MaxFile("memory.swap.max")
    pressure = TableFile("memory.pressure")


class CpusetV2(_V2):
    cpus = CommaDashSetFile("cpuset.cpus")
    cpus_effective = CommaDashSetFile("cpuset.cpus.effective", readonly=True)
    mems = CommaDashSetFile("cpuset.mems")
    mems_effective = CommaDashSetFile("cpuset.mems.effective", readonly=True)


class IoV2(_V2):
    max = TableFile("io.max")
    stat = TableFile("io.stat")
    weight = TextFile("io.weight")
    pressure = TableFile("io.pressure")


class _Pids:
    current = IntegerFile("pids.current", readonly=True)
    peak = IntegerFile("pids.peak", readonly=True)
    max = MaxFile("pids.max")
    events = DictFile("pids.events", readonly=True)


class PidsV2(_Pids, _V2):
    pass


class HugetlbV2(_V2):
    max_2mb = MaxFile("hugetlb.2MB.max")
    current_2mb = IntegerFile("hugetlb.2MB.current", readonly=True)
    max_1gb = MaxFile("hugetlb.1GB.max")
    current_1gb = IntegerFile("hugetlb.1GB.current", readonly=True)


class PressureV2(_V2):
    cpu = TableFile("cpu.pressure")
    memory = TableFile("memory.pressure")
    io = TableFile("io.pressure")


class _V1:
    tasks = MultiLineIntegerFile("tasks")
    procs = MultiLineIntegerFile("cgroup.procs")
    notify_on_release = FlagFile("notify_on_release")
    clone_children = FlagFile("cgroup.clone_children")


class PidsV1(_Pids, _V1):
    pass


class IoV1(_V1):
    """What is left of blkio: throttling, and BFQ's weight; cgroupspy's class is of the CFQ scheduler's days, gone in v5.0."""

    throttle_read_bps_device = RatesFile("blkio.throttle.read_bps_device")
    throttle_write_bps_device = RatesFile("blkio.throttle.write_bps_device")
    throttle_read_iops_device = RatesFile("blkio.throttle.read_iops_device")
    throttle_write_iops_device = RatesFile("blkio.throttle.write_iops_device")
    throttle_io_service_bytes = TextFile("blkio.throttle.io_service_bytes", readonly=True)
    throttle_io_serviced = TextFile("blkio.throttle.io_serviced", readonly=True)
    bfq_weight = TextFile("blkio.bfq.weight")


class HugetlbV1(_V1):
    limit_2mb = IntegerFile("hugetlb.2MB.limit_in_bytes")
    usage_2mb = IntegerFile("hugetlb.2MB.usage_in_bytes", readonly=True)
    limit_1gb = IntegerFile("hugetlb.1GB.limit_in_bytes")
    usage_1gb = IntegerFile("hugetlb.1GB.usage_in_bytes", readonly=True)


class MemoryV1(spy.MemoryController):  # type: ignore[misc]  # cgroupspy is untyped
    force_empty = IntegerFile("memory.force_empty", writeonly=True)  # cgroupspy takes it for a flag that can be read


class FreezerV1(_V1):
    state = TextFile("freezer.state")
    self_freezing = FlagFile("freezer.self_freezing", readonly=True)
    parent_freezing = FlagFile("freezer.parent_freezing", readonly=True)


class CpuacctV1(_V1):
    usage = IntegerFile("cpuacct.usage")
    usage_percpu = IntegerListFile("cpuacct.usage_percpu", readonly=True)
    usage_user = IntegerFile("cpuacct.usage_user", readonly=True)
    usage_sys = IntegerFile("cpuacct.usage_sys", readonly=True)
    stat = DictFile("cpuacct.stat", readonly=True)


_CLASSES: Final[dict[tuple[str, int], type]] = {
    ("memory", 1): MemoryV1,
    ("cpu", 1): spy.CpuController,
    ("cpuacct", 1): CpuacctV1,
    ("cpuset", 1): spy.CpuSetController,
    ("devices", 1): spy.DevicesController,
    ("io", 1): IoV1,
    ("pids", 1): PidsV1,
    ("hugetlb", 1): HugetlbV1,
    ("freezer", 1): FreezerV1,
    ("memory", 2): MemoryV2,
    ("cpu", 2): CpuV2,
    ("cpuacct", 2): CpuV2,
    ("cpuset", 2): CpusetV2,
    ("io", 2): IoV2,
    ("pids", 2): PidsV2,
    ("hugetlb", 2): HugetlbV2,
    ("pressure", 2): PressureV2,
    ("freezer", 2): _V2,
}


class ControlFiles:
    """The files of one controller of one group, as attributes."""

    __slots__ = ("_controller", "_kind", "_path")

    def __init__(self, controller: str, kind: type, path: str) -> None:
        object.__setattr__(self, "_controller", controller)
        object.__setattr__(self, "_kind", kind)
        object.__setattr__(self, "_path", path)

    def __dir__(self) -> list[str]:
        return self.names()

    def names(self) -> list[str]:
        """List the attributes that there can be."""
        return sorted(name for name in dir(self._kind) if isinstance(_static(self._kind, name), BaseFileInterface))

    def _interface(self, name: str) -> Any:  # noqa: ANN401 - cgroupspy is untyped
        interface = _static(self._kind, name)
        if not isinstance(interface, BaseFileInterface):
            raise AttributeError(f"{self._controller} has no {name!r} here; there are {', '.join(self.names())}")  # noqa: TRY004 - a missing name
        return interface

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - what a file holds is known when it is read
        interface = self._interface(name)
        if interface.writeonly:
            raise UsageError(f"{self._controller}.{name} can only be written")
        return interface.sanitize_get(self.get_property(interface.filename))

    def __setattr__(self, name: str, value: object) -> None:
        interface = self._interface(name)
        if interface.readonly:
            raise UsageError(f"{self._controller}.{name} can only be read")
        try:
            word = interface.sanitize_set(value)
        except (TypeError, ValueError) as error:
            raise UsageError(f"{self._controller}.{name}: {value!r}: {error}") from error
        files.apply(self._path, Write(self._controller, _name(interface), str(word)))

    def get_property(self, filename: bytes | str) -> str:
        """Read one file; the name is cgroupspy's, whose classes call it."""
        name = filename.decode() if isinstance(filename, bytes) else filename
        try:
            return files.read_all(f"{self._path}/{name}").strip()
        except FileNotFoundError:
            raise UnsupportedError(
                f"this kernel has no file {name} (looked in {self._path})", feature=f"cgroup:{name}", remedy="boot a kernel that was built with it"
            ) from None


def _static(kind: type, name: str) -> object:
    """Look *name* up without asking a descriptor for its value."""
    return next((base.__dict__[name] for base in kind.__mro__ if name in base.__dict__), None)


def _name(interface: Any) -> str:  # noqa: ANN401 - cgroupspy is untyped
    filename = interface.filename
    return filename.decode() if isinstance(filename, bytes) else str(filename)


class Introspection:
    """The controllers of one group, as attributes: ``files.memory``, ``files.cpu``, ``files.pids`` ..."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle

    def __dir__(self) -> list[str]:
        return self.names()

    def names(self) -> list[str]:
        """List the controllers that act on the group."""
        return [name for name in CONTROLLERS if self._find(name) is not None]

    def _find(self, name: str) -> ControlFiles | None:
        place = self._bundle.at(name)
        kind = None if place is None else _CLASSES.get((name, place.version))
        if place is None or kind is None:
            return None
        is_on = place.version == 1 or name in BUILT_INTO_V2 or name in files.read_all(f"{place.path}/cgroup.controllers").split()
        return ControlFiles(name, kind, place.path) if is_on else None

    def __getattr__(self, name: str) -> ControlFiles:
        if name not in CONTROLLERS:
            raise AttributeError(f"{name!r} is not a controller; there are {', '.join(self.names())}")
        found = self._find(name)
        if found is None:
            raise AttributeError(f"the group has no controller {name!r}; it has {', '.join(self.names())}")
        return found
