"""`Leaf`: the control group of one program, made and removed around each run; and what it tells when the run has ended.

This is the hot path: plain system calls relative to open directories, bytes names, no formatting. A leaf costs
one mkdir in each hierarchy that accounts (on v1: memory, pids, cpuacct), and one open of each file that is needed while
the program runs.
"""

from __future__ import annotations

import contextlib
import enum
import itertools
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from attrs import frozen

from sandbox._sys.fds import close_all
from sandbox.cg import files
from sandbox.cg.bundle import kill_members
from sandbox.cg.limits import Write
from sandbox.cg.stats import split_cpu
from sandbox.errors import SandboxError

if TYPE_CHECKING:
    from sandbox.cg.details import Details
    from sandbox.cg.group import Group


class CpuFormat(enum.IntEnum):
    """What the file behind `Leaf.cpu_fd` holds (the numbers go over the wire to init)."""

    NONE = 0
    NANOSECONDS = 1  # v1 cpuacct.usage: one number
    CPU_STAT = 2  # v2 cpu.stat: the line "usage_usec N"


Layout = tuple[int, int, bool]  # of `Leaf.sent_fds`: how many to join by, a `CpuFormat`, whether its directory comes last
NO_LAYOUT: Final[Layout] = (0, CpuFormat.NONE, False)
OF_V2: Final[Layout] = (0, CpuFormat.CPU_STAT, True)


class Usage(NamedTuple):
    """What one program, with all that it started, used: bytes, seconds, counts. None: this host does not tell."""

    memory_peak: int | None
    oom_kills: int | None
    pids_peak: int | None
    cpu_time: float | None
    user_time: float | None
    system_time: float | None


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
    """In which order somebody else has opened a leaf's files: those to join by (on v2: its directory), of `Shape.told`, and, if the shape has one,
    that of the CPU time.
    """

    joined: int  # how many there are
    told: tuple[int, ...]  # the place of each; -1: this kernel does not have it
    is_whole: bool  # all of `Shape.told` are there

    @classmethod
    def of(cls, joined: int, told: Iterable[bool]) -> Opened:
        """*told*: which of `Shape.told` are there."""
        places: list[int] = []
        at = joined
        for is_there in told:
            places.append(at if is_there else -1)
            at += is_there
        return cls(joined, tuple(places), -1 not in places)


@frozen
class Ahead:
    """What somebody else can do ahead for leaves of one kind."""

    steps: tuple[tuple[bytes, bytes, bytes | None], ...]  # path before the leaf's name, and after it; what to write (None: make a directory)
    last: int | None  # the directory where a leaf is made last; None: that it is there does not say that all has been done
    owned: tuple[bytes, bytes, int] | None  # then the file to be given to a user, in two pieces as well, and that one's number
    opens: tuple[tuple[bytes, bytes, bool], ...]  # what to open then, and whether it is to be written to
    opened: Opened


def opens_of(shape: Shape, places: Mapping[int, bytes]) -> tuple[tuple[tuple[bytes, bytes, bool], ...], Opened]:
    """Give `Ahead.opens`, and their order, for leaves of *shape*; *places*: the paths of its directories, with a slash at the end."""
    opens = [(places[directory], b"/tasks", True) for directory in shape.v1] if shape.v2 is None else [(places[shape.v2], b"", False)]
    joined = len(opens)
    told = [(places[directory], file, False) for directory, file in shape.told]
    is_there = [os.path.exists(path + file[1:]) for path, file, _ in told]  # what the directory above has, a leaf will have
    opens += itertools.compress(told, is_there)
    if shape.cpu is not None:
        opens.append((places[shape.cpu[1]], _CPU_FILE[shape.cpu[0]], False))
    return tuple(opens), Opened.of(joined, is_there)


_TASKS = os.O_WRONLY | os.O_CLOEXEC
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_CLOEXEC
MEMORY_PEAK = {1: b"/memory.max_usage_in_bytes", 2: b"/memory.peak"}
MEMORY_EVENTS = {1: b"/memory.oom_control", 2: b"/memory.events"}
PIDS_PEAK = b"/pids.peak"
CPU_USAGE: Final = b"/cpuacct.usage"  # of v1
_CPU_FILE: Final = {1: CPU_USAGE, 2: b"/cpu.stat"}
ALL_TOLD: Final = 3  # files, where memory and processes are counted
MOST_TOLD: Final = 4096  # bytes of one


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

    __slots__ = ("_group", "_own_fds", "_shape", "_watched", "layout", "name", "sent_fds")

    def __init__(
        self, group: Group, name: bytes, shape: Shape, fds: list[int], *, sent: list[int], layout: Layout = NO_LAYOUT, watched: Sequence[int] = ()
    ) -> None:
        self._group = group
        self._shape = shape
        self._own_fds = fds
        self._watched = watched  # of `Shape.told`, once all are open; -1: this kernel has no such file
        self.name = name
        #: what init gets, as *layout* says: v1's ``tasks`` files, what tells the CPU time used so far (at offset 0), v2's directory
        self.sent_fds = sent
        self.layout = layout

    @property
    def cpu_fd(self) -> int | None:
        """The one that tells the CPU time."""
        joined, cpu_format, _ = self.layout
        return self.sent_fds[joined] if cpu_format and self.sent_fds else None

    @property
    def cpu_format(self) -> CpuFormat:
        """What it holds."""
        return CpuFormat(self.layout[1])

    @property
    def into_fd(self) -> int | None:
        """v2: the directory, for CLONE_INTO_CGROUP."""
        return self.sent_fds[-1] if self.layout[2] and self.sent_fds else None

    @property
    def join_fds(self) -> list[int]:
        """v1: open ``tasks`` files; the single-threaded child joins by writing ``0`` to each."""
        return self.sent_fds[: self.layout[0]]

    @classmethod
    def make(cls, group: Group, name: bytes, shape: Shape, owner_uid: int | None, *, last: int | None = None) -> Leaf:
        """Make its directories, and set its limits. *last*: somebody else has, if this one is there."""
        leaf = cls(group, name, shape, [], sent=[])
        made: list[int] = []
        try:
            leaf._create(owner_uid, made, last=last)
        except BaseException as error:
            leaf._discard(made)
            if isinstance(error, OSError) and not isinstance(error, SandboxError) and error.errno in files.NO_MORE:
                raise files.not_made("of a run", error) from error
            raise
        return leaf

    @classmethod
    def opened(cls, group: Group, name: bytes, shape: Shape, files: Opened, fds: list[int]) -> Leaf:
        """Take what somebody else has made, and opened: *fds*, which are the leaf's then, as *files* lists them."""
        joined, told = files.joined, files.told
        watched = fds[joined : joined + len(told)] if files.is_whole else [-1 if at < 0 else fds[at] for at in told]
        if shape.v2 is not None:
            sent, layout = ([fds[-1], fds[0]], OF_V2) if shape.cpu is not None else ([fds[0]], (0, CpuFormat.NONE, True))
        elif shape.cpu is not None:
            sent = [*fds[:joined], *shape.shared, fds[-1]]
            layout = (len(sent) - 1, CpuFormat.NANOSECONDS, False)
        else:
            sent = [*fds[:joined], *shape.shared]
            layout = (len(sent), CpuFormat.NONE, False)
        return cls(group, name, shape, fds, sent=sent, layout=layout, watched=watched)

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
        sent = [*own, *shape.shared]
        joined, cpu_format = len(sent), CpuFormat.NONE
        into = None
        if shape.v2 is not None:
            mkdir(name, 0o755, dir_fd=shape.v2)
            made.append(shape.v2)
            into = open_(name, _DIRECTORY, dir_fd=shape.v2)
            own.append(into)
            if owner_uid is not None:
                os.chown(b"cgroup.procs", owner_uid, -1, dir_fd=into)
        for directory, write in () if is_set else shape.writes:
            files.apply(name.decode(), write, dir_fd=directory)
        if shape.cpu is not None:
            version, directory = shape.cpu
            own.append(open_(name + _CPU_FILE[version], _READ, dir_fd=directory))
            sent.append(own[-1])
            cpu_format = CpuFormat.NANOSECONDS if version == 1 else CpuFormat.CPU_STAT
        if into is not None:
            sent.append(into)
        self.sent_fds, self.layout = sent, (joined, cpu_format, into is not None)

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
        if self._watched:
            return
        watched: list[int] = []
        for directory, file in self._shape.told:
            try:
                fd = os.open(self.name + file, _READ, dir_fd=directory)
            except FileNotFoundError:  # an older kernel
                watched.append(-1)
                continue
            except OSError:  # out of descriptors, say: `usage` opens them when they are needed
                return
            watched.append(fd)
            self._own_fds.append(fd)
        self._watched = watched

    def _told(self) -> Sequence[bytes | None]:
        """Read the files of `Shape.told`; None where the kernel has no such file."""
        pread, watched = os.pread, self._watched
        if not watched:
            return [_read(self.name + file, directory) for directory, file in self._shape.told]
        if len(watched) == ALL_TOLD and -1 not in watched:
            peak, events, pids = watched
            return pread(peak, MOST_TOLD, 0), pread(events, MOST_TOLD, 0), pread(pids, MOST_TOLD, 0)
        return [None if fd < 0 else pread(fd, MOST_TOLD, 0) for fd in watched]

    def usage(self, waited_for: tuple[int, int] | None = None) -> Usage:
        """Read everything at once; exact when the program and all that it started have ended.

        *waited_for*: user and system time, in nanoseconds, of its first process and what that waited for. On v1 these tell how the
        exact total is split where they are all but 5 % of it, or 10 ms: the group's own two are counted in ticks.
        """
        return Usage(*self._counts(), *self._cpu(waited_for))

    def _counts(self) -> tuple[int | None, int | None, int | None]:
        told = self._told()
        peak = kills = pids = None
        if self._shape.memory is not None:
            most, events, *told = told
            if events is not None:
                kills = 0 if b"\noom_kill 0\n" in events else _value(events, b"oom_kill ")
            peak = None if most is None else int(most)
        if told and told[0] is not None:
            pids = int(told[0])
        return peak, kills, pids

    @property
    def memory_peak(self) -> int | None:
        """The most memory used at once, in bytes, page cache included."""
        return self._counts()[0]

    @property
    def oom_kills(self) -> int | None:
        """How many of its processes were killed because a memory limit, its own or its container's, was met."""
        return self._counts()[1]

    @property
    def pids_peak(self) -> int | None:
        """The most processes and threads at once (Linux 6.11)."""
        return self._counts()[2]

    def details(self) -> Details | None:
        """Read what else the kernel tells when the run has ended; None: it was not made for that (see `DetailedLimits`)."""
        if self._shape.scheduler is None:
            return None
        from sandbox.cg.details import read_details

        return read_details(self.name, self._shape.memory, self._shape.scheduler)

    @property
    def cpu_usage(self) -> float | None:
        """The CPU time used so far, in seconds."""
        return self._cpu()[0]

    def _cpu(self, waited_for: tuple[int, int] | None = None) -> tuple[float | None, float | None, float | None]:
        joined, cpu_format, _ = self.layout
        if not cpu_format or not self.sent_fds or self._shape.cpu is None:
            return None, None, None
        text = os.pread(self.sent_fds[joined], MOST_TOLD, 0)
        if cpu_format != CpuFormat.NANOSECONDS:
            total, user, system = (_value(text, key) for key in (b"usage_usec ", b"user_usec ", b"system_usec "))
            return _micro(total), _micro(user), _micro(system)
        exact = int(text)
        if waited_for is not None:
            user, system = waited_for
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
            if (into := self.into_fd) is not None:
                with contextlib.suppress(FileNotFoundError):  # before Linux 5.14: one by one, below
                    files.write_bytes(b"cgroup.kill", b"1", dir_fd=into)
            if self._shape.pids is not None:
                files.write_bytes(self.name + b"/pids.max", b"0", dir_fd=self._shape.pids[1])
            kill_members(pids, self.pids)

    def close(self) -> None:
        """Close the descriptors; twice is fine. What the leaf tells can still be read, but for the CPU time."""
        fds, self._own_fds = self._own_fds, []
        self._watched = ()
        self.sent_fds = []
        close_all(fds)

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
