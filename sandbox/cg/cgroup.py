"""`Cgroup`: one control group to be used alone, whatever version of control groups the host has."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from sandbox.cg import files
from sandbox.cg import limits as limits_module
from sandbox.cg.bundle import Bundle, Events, checked_writes, hierarchies_for, reordered
from sandbox.cg.hosts import CONTROLLERS, Hierarchy, detect
from sandbox.cg.inforce import read_limits
from sandbox.cg.limits import Limits, Write
from sandbox.cg.stats import Stats, collect
from sandbox.cg.tree import enable, owner, wanted_v2
from sandbox.errors import ClosedError, SetupError, UsageError

if TYPE_CHECKING:
    from sandbox.cg.introspect import Introspection

ACCOUNTING: Final = ("memory", "cpu", "cpuacct", "pids", "io", "freezer", "pressure")


class Cgroup:
    """A control group below the one that this process was started in. Use it with ``with``, or `create` and `remove` it.

    *limits* are set when it is made, and again by `set`. *controllers* are those wanted for statistics, as far as
    the host has them, beside those that *limits* need; fewer make v1 cheaper. With *parent* it lies in that
    group, and shares its limits; on v2 a parent can then have no processes of its own.
    Not thread-safe. Leaving the ``with`` kills what is still in the group.
    """

    def __init__(self, name: str, limits: Limits | None = None, *, parent: Cgroup | None = None, controllers: Iterable[str] = ACCOUNTING) -> None:
        self._name = files.check_name(name)
        if not isinstance(limits, (Limits, type(None))):
            raise UsageError(f"limits: {limits!r} is not a Limits; give Limits(memory='64M'), say")
        self._limits = limits or Limits()
        self._parent = parent
        self._wished = frozenset(controllers)
        unknown = self._wished - set(CONTROLLERS)
        if unknown:
            raise UsageError(f"controllers: {sorted(unknown)} are unknown; choose from {', '.join(CONTROLLERS)}")
        self._bundle: Bundle | None = None

    def __repr__(self) -> str:
        return f"Cgroup({self._name!r}, {'live' if self._bundle else 'not created'})"

    @property
    def name(self) -> str:
        """Its name below this process's own directory, with its parents' names before it."""
        return f"{self._parent.name}/{self._name}" if self._parent else self._name

    @property
    def limits(self) -> Limits:
        """What was asked for so far; `in_force` tells what the kernel made of it."""
        return self._limits

    @property
    def paths(self) -> tuple[str, ...]:
        """Its directories, one for each hierarchy."""
        return self._live().paths

    def path(self, controller: str) -> str:
        """Give its directory in the hierarchy of *controller*."""
        place = self._live().at(controller)
        if place is None:
            raise UsageError(f"the control group {self.name} has no controller {controller!r}; name it in controllers=")
        return place.path

    def create(self) -> Self:
        """Make the group and set its limits.

        Raises: UnsupportedError: the host lacks a controller, or we may not use it. UsageError: the name is taken, a CPU is not there.
        """
        if self._bundle is not None:
            raise UsageError(f"the control group {self.name} was created already")
        host = detect()
        planned = checked_writes(self._limits, host)
        self._bundle = Bundle(host, self.name, {})
        try:
            for hierarchy in hierarchies_for(host, frozenset(write.controller for write in planned), self._wished):
                self._ensure(hierarchy, self._wished | limits_module.controllers(self._limits))
            self._bundle.apply(planned)
        except BaseException:
            bundle, self._bundle = self._bundle, None
            bundle.remove(patience_s=0.0)
            raise
        return self

    def _ensure(self, hierarchy: Hierarchy, wanted: frozenset[str]) -> str:
        """Make the directory in *hierarchy* unless it is there, and the parents' before; enable *wanted* in it; give it."""
        bundle = self._live()
        if self._parent is None:
            above = owner().directory(hierarchy, wanted)
        else:
            above = self._parent._ensure(hierarchy, wanted)  # noqa: SLF001 - of our own class
            if needed := wanted_v2(hierarchy, wanted):
                enable(above, needed)
        if hierarchy.mount not in bundle.places:
            bundle.add(hierarchy, f"{above}/{self._name}")
        return bundle.places[hierarchy.mount].path

    def _live(self) -> Bundle:
        if self._bundle is None:
            raise ClosedError(f"the control group {self.name} is not there: call create(), or use it with 'with'")
        return self._bundle

    def set(self, limits: Limits) -> None:
        """Set the limits that *limits* names; the others stay as they are.

        On v1 memory and swap together may pass through a smaller value, never through a larger one.
        Raises: SetupError: EBUSY: more memory than that is in use and cannot be reclaimed.
        """
        bundle = self._live()
        if not isinstance(limits, Limits):
            raise UsageError(f"limits: {limits!r} is not a Limits; give Limits(memory='64M'), say")
        merged = self._limits.updated(limits)
        planned = checked_writes(limits.changing(merged), bundle.host)
        for hierarchy in hierarchies_for(bundle.host, frozenset(write.controller for write in planned)):
            if hierarchy.mount not in bundle.places and bundle.pids():
                raise UsageError(f"the control group {self.name} has processes, but none of {hierarchy.controllers}; name it in controllers=")
            self._ensure(hierarchy, limits_module.controllers(limits))
        bundle.apply(reordered(planned, bundle))
        self._limits = merged

    def in_force(self) -> Limits:
        """Read back the limits that this group itself has (the kernel rounds: 100000 bytes of memory become 98304)."""
        return read_limits(self._live())

    def read(self, controller: str, file: str) -> str:
        """Read one control file, such as ``("memory", "memory.stat")``, as it is."""
        path = f"{self.path(controller)}/{_control_file(file)}"
        try:
            return files.read_all(path)
        except OSError as error:
            raise SetupError(f"read {path}", error.errno or errno.EIO, step="cgroup") from error

    def write(self, controller: str, file: str, value: str) -> None:
        """Write one control file as it is."""
        files.apply(self.path(controller), Write(controller, _control_file(file), value))

    def attach(self, pid: int) -> None:
        """Move process *pid* and its threads into the group (0: the caller).

        May cost some 5 ms in all on an idle machine: the kernel waits for an RCU grace period.
        """
        if isinstance(pid, bool) or not isinstance(pid, int) or pid < 0:
            raise UsageError(f"attach: {pid!r} is not a process id")
        self._live().attach(pid)

    def pids(self, *, recursive: bool = False) -> list[int]:
        """List its processes, with *recursive* those of the groups below it too."""
        return sorted(self._live().pids(recursive=recursive))

    def freeze(self) -> None:
        """Stop all its processes where they stand, and wait until they have stopped. They do not notice."""
        self._live().freeze()

    def thaw(self) -> None:
        """Let frozen processes go on."""
        self._live().thaw()

    def kill(self) -> None:
        """Kill all its processes, those of the groups below it too, and wait until they have ended."""
        self._live().kill()

    def events(self) -> Events:
        """Read how often limits were met."""
        return self._live().events()

    def stats(self) -> Stats:
        """Read what it used so far."""
        return collect(self._live())

    @property
    def files(self) -> Introspection:
        """Its control files as typed attributes: ``cg.files.memory.limit_in_bytes``."""
        from sandbox.cg.introspect import Introspection  # cgroupspy is loaded by those only who ask

        return Introspection(self._live())

    def remove(self) -> None:
        """Kill what is in the group and remove it, with the groups below it; twice is fine.

        In a forked child it is only forgotten: it belongs to the process that created it.
        """
        if self._bundle is None:
            return
        if self._bundle.pid == os.getpid():
            self._bundle.kill()
            self._bundle.remove()
        self._bundle = None

    def __enter__(self) -> Self:
        return self.create() if self._bundle is None else self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.remove()


def _control_file(file: str) -> str:
    if "/" in file or not file or file.startswith(".") or "\0" in file:
        raise UsageError(f"{file!r} is not the name of a control file")
    return file
