"""`Leaf`: the control group of one program, made and removed around each run; and what it tells when the run has ended.

This is the hot path: plain system calls relative to open directories, bytes names, no formatting. A leaf costs
one mkdir in each hierarchy that accounts (on v1: memory, pids, cpuacct), and one open of each file that is needed while
the program runs.
"""

from __future__ import annotations

import contextlib
import enum
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from attrs import frozen

from sandbox.cg import files
from sandbox.cg.bundle import kill_members
from sandbox.cg.limits import Write
from sandbox.cg.stats import split_cpu

if TYPE_CHECKING:
    from sandbox.cg.details import Details
    from sandbox.cg.group import Group


class CpuFormat(enum.IntEnum):
    """What the file behind `Leaf.cpu_fd` holds (the numbers go over the wire to init)."""

    NONE = 0
    NANOSECONDS = 1  # v1 cpuacct.usage: one number
    CPU_STAT = 2  # v2 cpu.stat: the line "usage_usec N"


class Usage(NamedTuple):
    """What one program, with all that it started, used: bytes, seconds, counts. None: this host does not tell."""

    memory_peak: int | None
    oom_kills: int | None
    cpu_time: float | None
    user_time: float | None
    system_time: float | None
    pids_peak: int | None


class Shape(NamedTuple):
    """What every leaf of one kind has in common. The descriptors are the group's, and open as long as it has leaves."""

    v1: tuple[int, ...]  # directories that get a group each
    shared: tuple[int, ...]  # `tasks` files of the container's own groups, for hierarchies without a leaf
    v2: int | None  # the payload's directory
    memory: tuple[int, int] | None  # (version, directory)
    cpu: tuple[int, int] | None
    pids: tuple[int, int] | None
    writes: tuple[tuple[int, Write], ...]
    scheduler: tuple[int, int] | None  # for `Leaf.details` only
    told: tuple[tuple[int, bytes], ...]  # the files, with their directories, that tell what a run used

    def over(self, fds: Sequence[int], shared: Sequence[int]) -> Shape:
        """Give the shape of a group whose directories are *fds*, and *shared* its `tasks` files: this one has places in them instead. On v1."""
        v1, _, _, memory, cpu, pids, writes, scheduler, told = self
        return Shape(
            tuple([fds[at] for at in v1]),
            tuple(shared),
            None,
            None if memory is None else (memory[0], fds[memory[1]]),
            None if cpu is None else (cpu[0], fds[cpu[1]]),
            None if pids is None else (pids[0], fds[pids[1]]),
            tuple([(fds[at], write) for at, write in writes]) if writes else (),
            None if scheduler is None else (scheduler[0], fds[scheduler[1]]),
            tuple([(fds[at], file) for at, file in told]),
        )


def told_by(memory: tuple[int, int] | None, pids: tuple[int, int] | None) -> tuple[tuple[int, bytes], ...]:
    """Give `Shape.told`."""
    found: list[tuple[int, bytes]] = []
    if memory is not None:
        version, directory = memory
        found += [(directory, MEMORY_PEAK[version]), (directory, MEMORY_EVENTS[version])]
    if pids is not None:
        found.append((pids[1], PIDS_PEAK))
    return tuple(found)


@frozen
class Opened:
    """In which order somebody else has opened a leaf's files: those to join by, those of `Shape.told`, the one that tells the CPU time."""

    joined: int  # how many there are
    told: tuple[bytes, ...]
    missing: tuple[bytes, ...]  # what of `Shape.told` this kernel does not have


@frozen
class Ahead:
    """What somebody else can do ahead for leaves of one kind."""

    steps: tuple[tuple[bytes, bytes, bytes | None], ...]  # path before the leaf's name, and after it; what to write (None: make a directory)
    last: int  # the directory where a leaf is made last


_TASKS = os.O_WRONLY | os.O_CLOEXEC
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_CLOEXEC
MEMORY_PEAK = {1: b"/memory.max_usage_in_bytes", 2: b"/memory.peak"}
MEMORY_EVENTS = {1: b"/memory.oom_control", 2: b"/memory.events"}
PIDS_PEAK = b"/pids.peak"
CPU_USAGE: Final = b"/cpuacct.usage"  # of v1


def _read(name: bytes, directory: int, most: int = 4096) -> bytes | None:
    try:
        fd = os.open(name, _READ, dir_fd=directory)
    except FileNotFoundError:  # an older kernel
        return None
    try:
        return os.read(fd, most)
    finally:
        os.close(fd)


def _value(text: bytes, key: bytes) -> int | None:
    """Give N of the line "*key* N"; *key* brings its blank."""
    at = text.find(b"\n" + key) + 1
    if not at and not text.startswith(key):
        return None
    return int(text[at + len(key) :].split(None, 1)[0])


class Leaf:
    """The control group of one program. Made by `Group.make_leaf`; owns its descriptors until `close`."""

    __slots__ = ("_group", "_own_fds", "_shape", "_watched", "cpu_fd", "cpu_format", "into_fd", "join_fds", "name")

    def __init__(self, group: Group, name: bytes, shape: Shape, fds: list[int]) -> None:
        self._group = group
        self._shape = shape
        self._own_fds = fds
        self._watched: dict[bytes, int | None] = {}
        self.name = name
        #: v1: open ``tasks`` files; the single-threaded child joins by writing ``0`` to each
        self.join_fds: list[int] = []
        #: v2: the directory for CLONE_INTO_CGROUP
        self.into_fd: int | None = None
        #: tells the CPU time used so far, at offset 0, in `cpu_format`
        self.cpu_fd: int | None = None
        self.cpu_format = CpuFormat.NONE

    @classmethod
    def make(cls, group: Group, name: bytes, shape: Shape, owner_uid: int | None, *, last: int | None = None) -> Leaf:
        """Make its directories, and set its limits. *last*: somebody else has, if this one is there."""
        leaf = cls(group, name, shape, [])
        made: list[int] = []
        try:
            leaf._create(owner_uid, made, last=last)
        except BaseException:
            leaf._discard(made)
            raise
        return leaf

    @classmethod
    def opened(cls, group: Group, name: bytes, shape: Shape, files: Opened, fds: list[int]) -> Leaf:
        """Take what somebody else has made, and opened: *fds*, which are the leaf's then, as *files* lists them."""
        leaf = cls(group, name, shape, fds)
        leaf.join_fds = [*fds[: files.joined], *shape.shared]
        leaf._watched = dict.fromkeys(files.missing)
        leaf._watched.update(zip(files.told, fds[files.joined :], strict=False))
        if shape.cpu is not None:
            leaf.cpu_fd, leaf.cpu_format = fds[-1], CpuFormat.NANOSECONDS
        return leaf

    def _create(self, owner_uid: int | None, made: list[int], *, last: int | None) -> None:
        name, shape, own, mkdir, open_ = self.name, self._shape, self._own_fds, os.mkdir, os.open
        tasks = name + b"/tasks"
        is_set = last is not None  # by somebody else, there last
        if last is not None:  # that one first: where it is not there yet, the others need not be complete
            own.append(open_(tasks, _TASKS, dir_fd=last))
            own.extend(open_(tasks, _TASKS, dir_fd=directory) for directory in shape.v1 if directory != last)
        for directory in () if is_set else shape.v1:
            mkdir(name, 0o755, dir_fd=directory)
            made.append(directory)
            own.append(open_(tasks, _TASKS, dir_fd=directory))
        self.join_fds = [*own, *shape.shared]
        if shape.v2 is not None:
            mkdir(name, 0o755, dir_fd=shape.v2)
            made.append(shape.v2)
            self.into_fd = open_(name, _DIRECTORY, dir_fd=shape.v2)
            own.append(self.into_fd)
            if owner_uid is not None:
                os.chown(b"cgroup.procs", owner_uid, -1, dir_fd=self.into_fd)
        for directory, write in () if is_set else shape.writes:
            files.apply(name.decode(), write, dir_fd=directory)
        if shape.cpu is not None:
            version, directory = shape.cpu
            self.cpu_fd = open_(name + (CPU_USAGE if version == 1 else b"/cpu.stat"), _READ, dir_fd=directory)
            own.append(self.cpu_fd)
            self.cpu_format = CpuFormat.NANOSECONDS if version == 1 else CpuFormat.CPU_STAT

    def limit(self, shape: Shape) -> bool:
        """Set the limits of *shape* on a fresh leaf that has none; False: *shape* takes other directories."""
        mine = self._shape
        if (shape.v1, shape.v2, shape.shared) != (mine.v1, mine.v2, mine.shared):
            return False
        for directory, write in shape.writes:
            files.apply(self.name.decode(), write, dir_fd=directory)
        self._shape = shape
        return True

    def _directories(self) -> tuple[int, ...]:
        return self._shape.v1 if self._shape.v2 is None else (*self._shape.v1, self._shape.v2)

    def watch(self) -> None:
        """Open what `usage` reads: while the program runs this takes no time from anybody."""
        name, watched, own, open_ = self.name, self._watched, self._own_fds, os.open
        for directory, file in () if watched else self._shape.told:
            try:
                watched[file] = fd = open_(name + file, _READ, dir_fd=directory)
                own.append(fd)
            except FileNotFoundError:  # an older kernel
                watched[file] = None
            except OSError:  # out of descriptors, say: `usage` opens it when it is needed
                return

    def _text(self, directory: int, file: bytes) -> bytes | None:
        """Read one of its files; None where the kernel has no such file."""
        fd = self._watched.get(file, -1)
        if fd == -1:
            return _read(self.name + file, directory)
        return None if fd is None else os.pread(fd, 4096, 0)

    def usage(self, waited_for: tuple[float, float] | None = None) -> Usage:
        """Read everything at once; exact when the program and all that it started have ended.

        *waited_for*: user and system time, in seconds, of its first process and what that waited for. On v1 these tell how the
        exact total is split where they are all but 5 % of it, or 10 ms: the group's own two are counted in ticks.
        """
        return Usage(self.memory_peak, self.oom_kills, *self._cpu(waited_for), self.pids_peak)

    def details(self) -> Details | None:
        """Read what else the kernel tells when the run has ended; None: it was not made for that (see `DetailedLimits`)."""
        if self._shape.scheduler is None:
            return None
        from sandbox.cg.details import read_details

        return read_details(self.name, self._shape.memory, self._shape.scheduler)

    @property
    def memory_peak(self) -> int | None:
        """The most memory used at once, in bytes, page cache included."""
        if self._shape.memory is None:
            return None
        version, directory = self._shape.memory
        text = self._text(directory, MEMORY_PEAK[version])
        return None if text is None else int(text)

    @property
    def oom_kills(self) -> int | None:
        """How many of its processes were killed because a memory limit, its own or its container's, was met."""
        if self._shape.memory is None:
            return None
        version, directory = self._shape.memory
        text = self._text(directory, MEMORY_EVENTS[version])
        return None if text is None else _value(text, b"oom_kill ")

    @property
    def pids_peak(self) -> int | None:
        """The most processes and threads at once (Linux 6.11)."""
        if self._shape.pids is None:
            return None
        text = self._text(self._shape.pids[1], PIDS_PEAK)
        return None if text is None else int(text)

    @property
    def cpu_usage(self) -> float | None:
        """The CPU time used so far, in seconds."""
        return self._cpu()[0]

    def _cpu(self, waited_for: tuple[float, float] | None = None) -> tuple[float | None, float | None, float | None]:
        if self.cpu_fd is None or self._shape.cpu is None:
            return None, None, None
        text = os.pread(self.cpu_fd, 4096, 0)
        if self.cpu_format is CpuFormat.CPU_STAT:
            total, user, system = (_value(text, key) for key in (b"usage_usec ", b"user_usec ", b"system_usec "))
            return _micro(total), _micro(user), _micro(system)
        exact = int(text)
        if waited_for is not None:
            user, system = int(waited_for[0] * 1e9), int(waited_for[1] * 1e9)
            if exact - user - system <= max(exact // 20, 10_000_000):
                user, system = split_cpu(exact, user, system)
                return exact / 1e9, user / 1e9, system / 1e9
        sampled = _read(self.name + b"/cpuacct.usage_all", self._shape.cpu[1], 1 << 20)
        if sampled is None:  # before Linux 4.8
            return exact / 1e9, None, None
        rows = [line.split() for line in sampled.splitlines()[1:]]  # under "cpu user system", a line for each CPU
        user, system = split_cpu(exact, sum(int(row[1]) for row in rows), sum(int(row[2]) for row in rows))
        return exact / 1e9, user / 1e9, system / 1e9

    def pids(self) -> set[int]:
        """List the processes in it, as this process's pid namespace numbers them."""
        result: set[int] = set()
        for directory in self._directories():
            text = _read(self.name + b"/cgroup.procs", directory)
            result.update(map(int, text.split()) if text else ())
        result.discard(0)
        return result

    def kill(self) -> None:
        """Kill every process in it that is left, one that forks all the time too, and wait until they have ended."""
        for _ in range(100):
            pids = self.pids()
            if not pids:
                return
            if self.into_fd is not None:
                with contextlib.suppress(FileNotFoundError):  # before Linux 5.14: one by one, below
                    files.write_bytes(b"cgroup.kill", b"1", dir_fd=self.into_fd)
            if self._shape.pids is not None:
                files.write_bytes(self.name + b"/pids.max", b"0", dir_fd=self._shape.pids[1])
            kill_members(pids, self.pids)

    def close(self) -> None:
        """Close the descriptors; twice is fine. What the leaf tells can still be read, but for the CPU time."""
        fds, self._own_fds = self._own_fds, []
        self._watched = {}
        self.join_fds = []
        self.into_fd = self.cpu_fd = None
        for fd in fds:
            os.close(fd)

    def remove(self) -> None:
        """Close it and remove it; twice is fine.

        Raises: OSError: EBUSY: a process is still in it (`kill` first).
        """
        self.close()
        name, rmdir = self.name, os.rmdir
        for directory in self._directories() if self._group.has_leaf(self) else ():
            try:
                rmdir(name, dir_fd=directory)
            except OSError:
                files.remove_directory(name, dir_fd=directory)
        self._group.forget_leaf(self)

    def _discard(self, made: list[int]) -> None:
        """Take back what a failed creation made, and nothing else: a leaf of the same name may be somebody's."""
        self.close()
        for directory in made:
            with contextlib.suppress(OSError):  # the first error is the one to be told
                os.rmdir(self.name, dir_fd=directory)


def _micro(count: int | None) -> float | None:
    return None if count is None else count / 1e6
