"""The directories between our start cgroup and the groups of containers: one owner's directory in each hierarchy.

Everything of one embedding process goes to ``<start>/sandbox-<pid>-<start time>-<pid namespace>``. The name tells any later
process whether the owner is alive: what a dead owner left (``kill -9``, when its janitor was killed too) is removed
by whoever comes next, as far as it is empty. We never leave the cgroup that we were started in.

v2 has a rule of its own, "no internal processes": a group whose controllers are enabled for its children can have no
processes, the real root excepted. Our start cgroup has at least us in it. So when only our own processes are there,
they are moved one level down (`make_room`); when others are there too, the caller has to say so.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import os
import threading
from collections.abc import Iterable

from sandbox.cg import files
from sandbox.cg.hosts import BUILT_INTO_V2, ROOM, Hierarchy, Host, detect
from sandbox.cg.limits import Write
from sandbox.errors import SetupError, UnsupportedError

PREFIX = "sandbox-"
CPUSET = (Write("cpuset", "cpuset.cpus", None), Write("cpuset", "cpuset.mems", None))


def start_time(pid: int) -> int:
    """Give when *pid* started, in clock ticks since boot: with the pid it names a process for ever.

    Raises: ProcessLookupError: there is no such process.
    """
    try:
        text = files.read_all(f"/proc/{pid}/stat")
    except FileNotFoundError:
        raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH), str(pid)) from None
    return int(text.rpartition(")")[2].split()[19])  # field 22; the name before it may hold anything


def _pid_namespace() -> int:
    return os.stat("/proc/self/ns/pid").st_ino


def parse_owner(name: str) -> tuple[int, int, int] | None:
    """Read (pid, start time, pid namespace) from an owner's directory name; None when it is not one."""
    parts = name.removeprefix(PREFIX).split("-")
    if not name.startswith(PREFIX) or len(parts) != 3 or not all(part.isascii() and part.isdecimal() for part in parts):
        return None
    pid, ticks, namespace = map(int, parts)
    return pid, ticks, namespace


def is_alive(pid: int, ticks: int) -> bool:
    """Say whether the process that started at *ticks* as *pid* is there; in doubt (hidden from us): yes."""
    try:
        os.kill(pid, 0)
        return start_time(pid) == ticks
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True


def sweep(start: str) -> list[str]:
    """Remove what dead owners left below *start*, as far as it is empty; give what was removed."""
    removed: list[str] = []
    namespace = _pid_namespace()
    try:
        names = os.listdir(start)
    except OSError:  # not ours to read: nothing to sweep
        return removed
    for name in names:
        owner = parse_owner(name)
        if owner is None or owner[2] != namespace or is_alive(owner[0], owner[1]):
            continue
        path = f"{start}/{name}"
        with contextlib.suppress(OSError):  # a process is left in it, or another sweeper was faster
            for place in [*files.subgroups(path), path]:
                os.rmdir(place)
            removed.append(path)
    return removed


class Owner:
    """The directories of this process, made as they are needed. Thread-safe."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.pid = os.getpid()
        self.name = f"{PREFIX}{self.pid}-{start_time(self.pid)}-{_pid_namespace()}"
        self._paths = tuple(self.path(hierarchy) for hierarchy in host.hierarchies)
        self._made: dict[str, str] = {}
        self._enabled: dict[str, set[str]] = {}
        self._lock = threading.Lock()

    @property
    def has_made(self) -> bool:
        """Whether there are any."""
        return bool(self._made)

    def directory(self, hierarchy: Hierarchy, controllers: Iterable[str]) -> str:
        """Give our directory in *hierarchy*, made if need be, with *controllers* (v2) enabled for the groups in it.

        Raises: UnsupportedError: it cannot be made, or they cannot be enabled.
        """
        path = self._made.get(hierarchy.mount)
        if path is not None and hierarchy.version == 1:
            return path
        wanted = wanted_v2(hierarchy, controllers)
        if path is not None and wanted <= self._enabled[hierarchy.mount]:
            return path
        with self._lock:
            path = self._made.get(hierarchy.mount) or self._make(hierarchy)
            done = self._enabled[hierarchy.mount]
            if wanted - done:
                _enable_at_start(hierarchy.start, wanted - done)
                enable(path, wanted - done)
                self._enabled[hierarchy.mount] = done | wanted
            return path

    def _make(self, hierarchy: Hierarchy) -> str:
        sweep(hierarchy.start)
        path = self.path(hierarchy)
        if not os.path.isdir(path):
            files.make_directory(path)
        prepare_v1(path, hierarchy)
        if "memory" in hierarchy.controllers and files.read_or_none(f"{path}/memory.use_hierarchy") == "0\n":
            # v1 before v5.11: limits held for the group alone unless this was set above, before there were children
            files.apply(path, Write("memory", "memory.use_hierarchy", "1"))
        self._made[hierarchy.mount] = path
        self._enabled[hierarchy.mount] = set()
        return path

    def path(self, hierarchy: Hierarchy) -> str:
        """Give where our directory in *hierarchy* is, or would be."""
        return f"{hierarchy.start}/{self.name}"

    def paths(self) -> tuple[str, ...]:
        """Give our directories in all hierarchies, made or not: what a janitor has to remove when this process has ended."""
        return self._paths

    def close(self) -> None:
        """Remove the directories that are empty; they are made again when needed."""
        with self._lock:
            for mount, path in list(self._made.items()):
                try:
                    os.rmdir(path)
                except FileNotFoundError:
                    pass  # the janitor was faster
                except OSError:
                    continue  # a group lives in it: it is removed with the last one
                del self._made[mount]


def prepare_v1(path: str, hierarchy: Hierarchy) -> None:
    """Fill in what a fresh v1 group needs before it can have processes or groups."""
    if hierarchy.version == 1 and "cpuset" in hierarchy.controllers:
        for write in CPUSET:
            files.apply(path, write)


def wanted_v2(hierarchy: Hierarchy, controllers: Iterable[str]) -> set[str]:
    """Give those of *controllers* that have to be enabled, in *hierarchy*, for a child group to have them."""
    return (set(controllers) & set(hierarchy.controllers)) - BUILT_INTO_V2 if hierarchy.version == 2 else set()


def enable(directory: str, controllers: Iterable[str]) -> None:
    """Enable v2 *controllers* for the groups in *directory*."""
    value = " ".join(f"+{name}" for name in sorted(controllers))
    path = f"{directory}/cgroup.subtree_control"
    try:
        files.write_bytes(path, value.encode())
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise _internal_processes(directory, value) from error
        raise files.refusal(f"write {value!r} to {path}", error) from error


def _internal_processes(directory: str, value: str) -> UnsupportedError:
    count = len(files.pids_in(directory, recursive=False))
    return UnsupportedError(
        f"cannot enable {value} in {directory}: cgroup v2 allows no processes beside child groups, and {count} are there",
        feature="cgroup:delegation",
        remedy="start the program in a cgroup of its own (systemd-run --user --scope -p Delegate=yes python ...), or call early "
        f"sandbox.cg.delegate(), which asks systemd for one, or sandbox.cg.make_room(), which moves those {count} processes one level down",
    )


def _enable_at_start(start: str, controllers: set[str]) -> None:
    missing = controllers - set(files.read_all(f"{start}/cgroup.subtree_control").split())
    if not missing:
        return
    try:
        enable(start, missing)
    except UnsupportedError as error:
        if error.feature != "cgroup:delegation" or not _all_ours(files.pids_in(start, recursive=False)):
            raise
        _move_down(start)
        enable(start, missing)


def check_can_enable(start: str) -> None:
    """Say whether a controller could be enabled for groups below *start*, without doing it.

    Raises: UnsupportedError: it could not.
    """
    for path in (start, f"{start}/cgroup.subtree_control", f"{start}/cgroup.procs"):
        if not os.access(path, os.W_OK, effective_ids=True):
            raise files.refusal(f"write to {path}", PermissionError(errno.EACCES, os.strerror(errno.EACCES)))
    if os.path.exists(f"{start}/cgroup.type") and not _all_ours(files.pids_in(start, recursive=False)):
        raise _internal_processes(start, "controllers")


def count_as_ours(pid: int) -> None:
    """Let *pid*, a process that works for this one but is no child of it, be moved with it."""
    if pid not in _helpers:
        with contextlib.suppress(ProcessLookupError):  # it has died: nothing to move
            _helpers[pid] = start_time(pid)


def helpers() -> set[int]:
    """Give those of `count_as_ours` that live."""
    return {pid for pid, ticks in _helpers.items() if is_alive(pid, ticks)}


_helpers: dict[int, int] = {}


def _all_ours(pids: set[int]) -> bool:
    """Say whether *pids* are this process, its helpers, and their descendants only."""
    ours = {os.getpid(), *helpers()}
    return all(not ours.isdisjoint(_ancestors(pid)) for pid in pids)


def _ancestors(pid: int) -> set[int]:
    result: set[int] = set()
    while pid > 1 and pid not in result:
        result.add(pid)
        try:
            pid = int(files.read_all(f"/proc/{pid}/stat").rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            break
    result.add(pid)
    return result


def _move_down(start: str) -> str:
    room = f"{start}/{ROOM}"
    try:
        with contextlib.suppress(FileExistsError):
            os.mkdir(room, 0o755)
        for _ in range(100):  # those moved may fork meanwhile; a child that is born here is moved in the next round
            pids = files.pids_in(start, recursive=False)
            if not pids:
                return room
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    files.write_bytes(f"{room}/cgroup.procs", str(pid).encode())
    except OSError as error:
        raise files.refusal(f"move the processes of {start} to {room}", error) from error
    raise SetupError(f"move the processes of {start} to {room}", errno.EBUSY, step="cgroup", hint="new ones keep coming")


def make_room() -> str | None:
    """Move all processes of our v2 start cgroup one level down, so that it can have groups with limits; give the new place.

    Call it when the start cgroup is yours (delegated) and has processes other than this one and its children; those alone
    are moved without being asked. None: there is nothing to do (no v2, or we are in the real root).
    Raises: UnsupportedError: we may not.
    """
    unified = detect().unified
    if unified is None or not os.path.exists(f"{unified.start}/cgroup.type"):  # only the real root lacks that file
        return None
    return _move_down(unified.start)


_owner: Owner | None = None
_owner_lock = threading.Lock()


def owner() -> Owner:
    """Give this process's `Owner`; a forked child gets its own."""
    global _owner  # a cache of one value, keyed by the process
    if _owner is None or _owner.pid != os.getpid():
        with _owner_lock:
            if _owner is None or _owner.pid != os.getpid():
                _owner = Owner(detect())
                atexit.register(_close, _owner)
    return _owner


def has_owner() -> bool:
    """Say whether this process has directories of its own already."""
    return _owner is not None and _owner.pid == os.getpid() and _owner.has_made


def forget_owner() -> None:
    """Look for the start cgroup anew at the next use: this process was moved."""
    global _owner
    with _owner_lock:
        _owner = None


def owner_paths() -> tuple[str, ...]:
    """Give this process's own directories (some may not exist), for a janitor to remove after the groups in them."""
    return owner().paths()


def close_owner() -> None:
    """Remove this process's own directories, as far as no group is left in them; they are made again when needed."""
    if _owner is not None:
        _close(_owner)


def _close(mine: Owner) -> None:
    if mine.pid == os.getpid():  # a forked child inherits the registration, but not the directories
        mine.close()


def _after_fork() -> None:
    global _owner_lock  # the parent's lock may be held by a thread that the child does not have
    _owner_lock = threading.Lock()
    _helpers.clear()


os.register_at_fork(after_in_child=_after_fork)
