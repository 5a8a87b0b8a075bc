"""What makes measurements differ from run to run: what this host has of it, and what happened while something was measured."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Final, Self

from attrs import define, field, frozen

__all__ = ["Source", "Watch", "sources"]

_CPU: Final = "/sys/devices/system/cpu"
_LOADED: Final = 0.1  # load per CPU above which other work is in the way
_STOLEN: Final = 0.005  # shares of the time above which a measurement is suspect
_WAITED: Final = 0.02
_STEAL: Final = 7  # the eighth time of a line of /proc/stat (proc_stat(5))


@frozen
class Source:
    """One source of noise. *is_noisy*: None when the kernel does not tell. *remedy*: what would help, when it is noisy."""

    what: str
    is_noisy: bool | None
    value: str
    remedy: str


def sources() -> tuple[Source, ...]:
    """Look at each: swap, SMT, the CPUs' governor and turbo, ASLR, huge pages, a virtual machine, load."""
    return (_swap(), _smt(), _governor(), _turbo(), _aslr(), _huge_pages(), _virtual(), _load())


def _read(path: str) -> str | None:
    """A file of /proc or /sys without its last newline; None when it is not there or not ours to read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(1 << 16).strip()
    except OSError:
        return None


def _swap() -> Source:
    text = _read("/proc/swaps")
    used = None if text is None else [line.split()[0] for line in text.splitlines()[1:]]
    return Source("swap", None if used is None else bool(used), ", ".join(used or ()) or "off", "as root: swapoff -a")


def _smt() -> Source:
    noisy = {"0": False, "1": True}.get(_read(f"{_CPU}/smt/active") or "")
    return Source("SMT", noisy, "on" if noisy else "off", f"as root: echo off > {_CPU}/smt/control; or use one CPU of each core")


def _governor() -> Source:
    names = set(_each_cpu("cpufreq/scaling_governor"))
    noisy = None if not names else names != {"performance"}
    return Source("CPU governor", noisy, ", ".join(sorted(names)), "as root: cpupower frequency-set -g performance")


def _each_cpu(file: str) -> Iterator[str]:
    for number in sorted(os.sched_getaffinity(0)):
        text = _read(f"{_CPU}/cpu{number}/{file}")
        if text is not None:
            yield text


def _turbo() -> Source:
    no_turbo, boost = _read(f"{_CPU}/intel_pstate/no_turbo"), _read(f"{_CPU}/cpufreq/boost")
    if no_turbo is not None:
        noisy, remedy = no_turbo == "0", f"as root: echo 1 > {_CPU}/intel_pstate/no_turbo"
    else:
        noisy, remedy = boost == "1", f"as root: echo 0 > {_CPU}/cpufreq/boost"
    told = no_turbo is not None or boost is not None
    return Source("turbo", noisy if told else None, "on" if noisy else "off", remedy)


def _aslr() -> Source:
    level = _read("/proc/sys/kernel/randomize_va_space")
    value = {"0": "off", "1": "on, but for the heap", "2": "on"}.get(level or "")
    return Source("ASLR", None if value is None else level != "0", value or "", "run the program by setarch -R")


def _huge_pages() -> Source:
    text = _read("/sys/kernel/mm/transparent_hugepage/enabled")
    chosen = None if text is None else text.partition("[")[2].partition("]")[0]
    remedy = "as root: echo madvise > /sys/kernel/mm/transparent_hugepage/enabled"
    return Source("transparent huge pages", None if chosen is None else chosen == "always", chosen or "", remedy)


def _virtual() -> Source:
    words = (_read("/proc/cpuinfo") or "").partition("flags")[2].partition("\n")[0].split()
    noisy = "hypervisor" in words if words else None
    return Source("virtual machine", noisy, "yes" if noisy else "no", "measure on the bare machine; neighbours take time unseen")


def _load() -> Source:
    load, cpus = os.getloadavg()[0], len(os.sched_getaffinity(0))
    value = f"{load:.2f} on {cpus} CPUs in the last minute"
    return Source("load", load > _LOADED * cpus, value, "wait until other work has ended")


@frozen
class Counters:
    """What the kernel had counted at one moment; None: it does not tell."""

    time: float
    cpu: tuple[int, ...] | None  # ticks in each state, of the CPUs that we may use
    waited: int | None  # microseconds in which some process of the host waited for a CPU
    swapped: int | None  # pages, both ways

    @classmethod
    def read(cls) -> Self:
        """Read them now."""
        stall = _read("/proc/pressure/cpu") or ""
        waited = stall.partition("\n")[0].rpartition("total=")[2]
        return cls(time.monotonic(), parse_cpu(_read("/proc/stat") or "", os.sched_getaffinity(0)), _whole(waited), _swapped())


def _whole(text: str) -> int | None:
    return int(text) if text.isdecimal() else None


def parse_cpu(text: str, cpus: set[int]) -> tuple[int, ...] | None:
    """Add up the lines of *cpus* in /proc/stat; None when there are none."""
    names = {f"cpu{number}" for number in cpus}
    rows = [[int(word) for word in words[1:]] for line in text.splitlines() if (words := line.split()) and words[0] in names]
    return tuple(map(sum, zip(*rows, strict=True))) if rows else None


def _swapped() -> int | None:
    counts = [int(line.split()[1]) for line in (_read("/proc/vmstat") or "").splitlines() if line.startswith(("pswpin ", "pswpout "))]
    return sum(counts) if counts else None


@define
class Watch:
    """Looks at the host before and after something is measured: ``with Watch() as watch: ...``, then `Watch.complaints`."""

    _before: Counters = field(factory=Counters.read)
    _after: Counters | None = None

    def __enter__(self) -> Self:
        self._before = Counters.read()
        return self

    def __exit__(self, *exc: object) -> None:
        self._after = Counters.read()

    def complaints(self) -> tuple[str, ...]:
        """What disturbed it, a sentence each."""
        return compare(self._before, self._after or Counters.read())


def compare(before: Counters, after: Counters) -> tuple[str, ...]:
    """What happened between two moments and disturbs measurements, a sentence each."""
    found: list[str] = []
    passed = after.time - before.time
    if before.cpu and after.cpu and len(after.cpu) > _STEAL:
        ticks = [b - a for a, b in zip(before.cpu, after.cpu, strict=True)]
        share = ticks[_STEAL] / total if (total := sum(ticks[:8])) > 0 else 0.0  # what follows, guests' time, is part of the others
        if share > _STOLEN:
            found.append(f"steal: the hypervisor took {share:.1%} of the CPU time meanwhile; measure on a machine of your own")
    if before.waited is not None and after.waited is not None and passed > 0:
        share = (after.waited - before.waited) / 1e6 / passed
        if share > _WAITED:
            found.append(f"busy CPUs: {share:.0%} of the time some process waited for one; end other work, or give the program fewer threads")
    if before.swapped is not None and after.swapped is not None and after.swapped > before.swapped:
        found.append(f"swapping: {after.swapped - before.swapped} pages went to or from swap meanwhile; end other work, or swapoff -a")
    return tuple(found)
