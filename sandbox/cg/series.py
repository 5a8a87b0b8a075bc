"""The figures of one group again and again, for little: its files stay open, and are read at offset 0."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Final, NamedTuple, Self

from sandbox.cg.bundle import Bundle, Place
from sandbox.cg.stats import IoStats, Pressure, Stats, collect

_READ: Final = os.O_RDONLY | os.O_CLOEXEC
_MOST: Final = 65536  # memory.stat has about 2 kB; the others less
_ABSENT: Final = frozenset({errno.ENOENT, errno.EACCES, errno.EPERM, errno.EOPNOTSUPP})  # not in this kernel, not for us, switched off


class Sample(NamedTuple):
    """What a group and all below it use at one moment, or used until then. None: this host, or the group's choice of controllers, does not tell.

    *time*: seconds since the series began (monotonic). At that moment: bytes of *memory*, of these *anon* and *file* (page cache, tmpfs), *swap*;
    *pids* (processes and threads). Until then: the most *memory_peak*; seconds of *cpu_time*, *user_time*, *system_time*, and *throttled_time*
    (a quota made it wait); of all disks, *read_bytes*, *written_bytes*, *reads*, *writes*; seconds in which some process waited for a
    resource, or all did (*_full*): *cpu_pressure*, *memory_pressure*, *memory_pressure_full*, *io_pressure*, *io_pressure_full*. In the
    networks that the container is in at that moment, since it joined each: *net_received_bytes*, *net_sent_bytes*, *net_dropped* packets.
    """

    time: float
    memory: int | None = None
    memory_peak: int | None = None
    anon: int | None = None
    file: int | None = None
    swap: int | None = None
    cpu_time: float | None = None
    user_time: float | None = None
    system_time: float | None = None
    throttled_time: float | None = None
    pids: int | None = None
    read_bytes: int | None = None
    written_bytes: int | None = None
    reads: int | None = None
    writes: int | None = None
    cpu_pressure: float | None = None
    memory_pressure: float | None = None
    memory_pressure_full: float | None = None
    io_pressure: float | None = None
    io_pressure_full: float | None = None
    net_received_bytes: int | None = None
    net_sent_bytes: int | None = None
    net_dropped: int | None = None


def sample_of(time: float, stats: Stats) -> Sample:
    """Put one row together."""
    s, pressure = stats, stats.pressure.get
    memory = (s.memory, s.memory_peak, s.anon, s.file, s.swap)
    cpu = (s.cpu_time, s.user_time, s.system_time, s.throttled_time)
    return Sample(time, *memory, *cpu, s.pids, *_sums(s.io), _some(pressure("cpu")), *_both(pressure("memory")), *_both(pressure("io")))


def _sums(disks: tuple[IoStats, ...] | None) -> tuple[int | None, int | None, int | None, int | None]:
    if disks is None:
        return None, None, None, None
    rows = [(disk.read_bytes, disk.written_bytes, disk.reads, disk.writes) for disk in disks]
    read, written, reads, writes = (sum(column) for column in zip((0, 0, 0, 0), *rows, strict=True))
    return read, written, reads, writes


def _some(pressure: Pressure | None) -> float | None:
    return None if pressure is None else pressure.some.total


def _both(pressure: Pressure | None) -> tuple[float | None, float | None]:
    return _some(pressure), None if pressure is None or pressure.full is None else pressure.full.total


class Sampler:
    """Reads one group. Owns its descriptors until `close`. For one thread at a time."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self._fds: dict[str, int] = {}  # by path

    def read(self, clock: Callable[[], float]) -> Sample | None:
        """Read everything, and ask *clock* in the middle of it; None: the group was removed.

        Raises: OSError: out of descriptors, say.
        """
        try:
            before = clock()
            stats = collect(self._bundle, self._text)
            return sample_of((before + clock()) / 2, stats)
        except OSError as error:
            if error.errno == errno.ENODEV:  # of a file that is open; v2 and v1 alike
                return None
            raise

    def _text(self, place: Place, name: str) -> str | None:
        path = f"{place.path}/{name}"
        try:
            fd = self._fds.get(path)
            if fd is None:  # also what was not there before: a run may have brought one more controller
                fd = self._fds[path] = os.open(path, _READ)
            return os.pread(fd, _MOST, 0).decode("ascii", "replace")
        except OSError as error:
            if error.errno not in _ABSENT:
                raise
            if error.errno == errno.ENOENT and not os.path.isdir(place.path):
                raise OSError(errno.ENODEV, os.strerror(errno.ENODEV), path) from None
            return None

    def close(self) -> None:
        """Close the descriptors; twice is fine."""
        fds, self._fds = self._fds, {}
        for fd in fds.values():
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
