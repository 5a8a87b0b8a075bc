"""What the kernel tells of a program's group beyond `Usage`, for those who ask for it: some files more to read at each end."""

from __future__ import annotations

import os
from typing import ClassVar

from attrs import frozen

from sandbox.cg import files
from sandbox.cg.limits import Limits


@frozen
class DetailedLimits(Limits):
    """Limits of a program whose leaf shall tell `Details`: that takes a group of the scheduler's, so they are leaves of another kind."""

    IS_DETAILED: ClassVar[bool] = True


@frozen
class Details:
    """What a run left, and what held it up: bytes and seconds. None: this kernel, or this version of control groups, does not tell.

    No kernel remembers how memory was split when its peak was reached, and what was anonymous is gone with its processes. So these
    are the kernel memory's own peak (v1; it need not have been at the same time), and what was charged to the run when all it had
    started was dead: page cache (*file_left*, files on tmpfs included), of that files on tmpfs and shared memory (*shm_left*), and
    *kernel_left*. *throttled_time*: how long a quota on CPU time, its own or one around it, held the run up, summed over CPUs
    (Linux 6.6; before, its own only).
    """

    kernel_peak: int | None = None
    file_left: int | None = None
    shm_left: int | None = None
    kernel_left: int | None = None
    throttled_time: float | None = None


def read_details(name: bytes, memory: tuple[int, int] | None, cpu: tuple[int, int] | None) -> Details:
    """Read what leaf *name* tells; *memory*, *cpu*: the version, and the directory that it was made in."""
    values: dict[str, int | None] = {}
    if memory is not None:
        values = (_memory_v1 if memory[0] == 1 else _memory_v2)(name, memory[1])
    return Details(**values, throttled_time=None if cpu is None else _throttled(name, cpu))


def _memory_v1(name: bytes, directory: int) -> dict[str, int | None]:
    stat = _flat(name + b"/memory.stat", directory)
    peak, left = (_text(name + b"/memory.kmem." + file, directory) for file in (b"max_usage_in_bytes", b"usage_in_bytes"))
    return {
        "kernel_peak": None if peak is None else files.parse_number(peak),
        "file_left": stat.get("cache"),
        "shm_left": stat.get("shmem"),
        "kernel_left": None if left is None else files.parse_number(left),
    }


def _memory_v2(name: bytes, directory: int) -> dict[str, int | None]:
    stat = _flat(name + b"/memory.stat", directory)
    return {"file_left": stat.get("file"), "shm_left": stat.get("shmem"), "kernel_left": stat.get("kernel")}


def _throttled(name: bytes, cpu: tuple[int, int]) -> float | None:
    version, directory = cpu
    key, unit = ("throttled_time", 10**9) if version == 1 else ("throttled_usec", 10**6)
    for file in (b"/cpu.stat.local", b"/cpu.stat"):
        found = _flat(name + file, directory).get(key)
        if found is not None:
            return found / unit
    return None


def _flat(path: bytes, directory: int) -> dict[str, int]:
    return files.parse_flat(_text(path, directory) or "")


def _text(path: bytes, directory: int) -> str | None:
    try:
        return os.fsdecode(files.read_bytes(path, dir_fd=directory))
    except FileNotFoundError:  # an older kernel, or one without the part
        return None
