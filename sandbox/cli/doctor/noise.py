"""What makes measurements differ from run to run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Final

from sandbox.cli.doctor.finding import Finding, State, read

_SECTION: Final = "noise in measurements"
_CPU: Final = "/sys/devices/system/cpu"
_UNKNOWN: Final = "the kernel does not tell"


def findings() -> list[Finding]:
    """All sources of noise."""
    return [_swap(), _smt(), _governor(), _turbo(), _aslr(), _huge_pages(), _virtual(), _load()]


def _switch(what: str, *, noisy: bool | None, value: str, remedy: str) -> Finding:
    if noisy is None:
        return Finding(_SECTION, what, State.NOTE, _UNKNOWN)
    return Finding(_SECTION, what, State.NOTE if noisy else State.OK, value, remedy if noisy else "")


def _swap() -> Finding:
    text = read("/proc/swaps")
    used = None if text is None else [line.split()[0] for line in text.splitlines()[1:]]
    return _switch("swap", noisy=None if used is None else bool(used), value=", ".join(used or ()) or "off", remedy="as root: swapoff -a")


def _smt() -> Finding:
    active = read(f"{_CPU}/smt/active")
    noisy = {"0": False, "1": True}.get(active or "")
    return _switch("SMT", noisy=noisy, value="on" if noisy else "off", remedy=f"as root: echo off > {_CPU}/smt/control; or use one CPU of each core")


def _governor() -> Finding:
    names = set(_each_cpu("cpufreq/scaling_governor"))
    noisy = None if not names else names != {"performance"}
    return _switch("CPU governor", noisy=noisy, value=", ".join(sorted(names)), remedy="as root: cpupower frequency-set -g performance")


def _each_cpu(file: str) -> Iterator[str]:
    for number in sorted(os.sched_getaffinity(0)):
        text = read(f"{_CPU}/cpu{number}/{file}")
        if text is not None:
            yield text


def _turbo() -> Finding:
    no_turbo, boost = read(f"{_CPU}/intel_pstate/no_turbo"), read(f"{_CPU}/cpufreq/boost")
    if no_turbo is not None:
        noisy, remedy = no_turbo == "0", f"as root: echo 1 > {_CPU}/intel_pstate/no_turbo"
    else:
        noisy, remedy = boost == "1", f"as root: echo 0 > {_CPU}/cpufreq/boost"
    told = no_turbo is not None or boost is not None
    return _switch("turbo", noisy=noisy if told else None, value="on" if noisy else "off", remedy=remedy)


def _aslr() -> Finding:
    level = read("/proc/sys/kernel/randomize_va_space")
    value = {"0": "off", "1": "on, but for the heap", "2": "on"}.get(level or "")
    return _switch("ASLR", noisy=None if value is None else level != "0", value=value or "", remedy="run the program by setarch -R")


def _huge_pages() -> Finding:
    text = read("/sys/kernel/mm/transparent_hugepage/enabled")
    chosen = None if text is None else text.partition("[")[2].partition("]")[0]
    remedy = "as root: echo madvise > /sys/kernel/mm/transparent_hugepage/enabled"
    return _switch("transparent huge pages", noisy=None if chosen is None else chosen == "always", value=chosen or "", remedy=remedy)


def _virtual() -> Finding:
    words = (read("/proc/cpuinfo") or "").partition("flags")[2].partition("\n")[0].split()
    noisy = "hypervisor" in words if words else None
    value = "yes" if noisy else "no"
    return _switch("virtual machine", noisy=noisy, value=value, remedy="measure on the bare machine; neighbours take time unseen")


def _load() -> Finding:
    load, cpus = os.getloadavg()[0], len(os.sched_getaffinity(0))
    value = f"{load:.2f} on {cpus} CPUs in the last minute"
    return _switch("load", noisy=load > 0.1 * cpus, value=value, remedy="wait until other work has ended")
