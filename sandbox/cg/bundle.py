"""One group in every hierarchy that it needs: on v2 a single directory, on v1 one for each hierarchy, co-mounted ones once."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

from attrs import define, field, frozen

from sandbox._sys import calls
from sandbox.cg import files
from sandbox.cg.hosts import Hierarchy, Host, detect, missing_controller
from sandbox.cg.limits import Limits, Write, controllers, writes
from sandbox.cg.present import check_present
from sandbox.cg.tree import owner, prepare_v1
from sandbox.errors import SetupError, UsageError

PATIENCE_S = 10.0  # how long a killed or frozen process may take to be so before we call it an error
AT_ONCE = 64  # descriptors: a group may have thousands of processes, and this process few descriptors left


class Place(NamedTuple):
    """The directory *path* of a group in *hierarchy*."""

    hierarchy: Hierarchy
    path: str

    @property
    def version(self) -> int:
        return self.hierarchy.version

    def has(self, file: str) -> bool:
        return os.path.exists(f"{self.path}/{file}")


@frozen
class Events:
    """How often things happened in a group, since it was made; None: this kernel does not count it.

    *oom*: the memory limit was met and nothing could be reclaimed. *oom_kill*: processes killed for it. *max*: the memory
    limit was met. *pids_max*: fork or clone was refused.
    """

    oom: int | None
    oom_kill: int | None
    max: int | None
    pids_max: int | None


@lru_cache(maxsize=256)
def hierarchies_for(host: Host, needed: frozenset[str], wished: frozenset[str] = frozenset()) -> tuple[Hierarchy, ...]:
    """Give the hierarchies of the controllers *needed*, and of those *wished* for that exist; each once, v1's first.

    Raises: UnsupportedError: one that is needed does not exist.
    """
    found = {host.require(name): None for name in sorted(needed)}
    found.update({hierarchy: None for name in sorted(wished) if (hierarchy := host.find(name)) is not None})
    return tuple(sorted(found, key=lambda hierarchy: (hierarchy.version, hierarchy.controllers)))


@lru_cache(maxsize=1024)
def planned_writes(limits: Limits, host: Host) -> tuple[Write, ...]:
    """Give what *limits* mean on *host*.

    Raises: UnsupportedError: it lacks a controller, or cannot enforce a limit.
    """
    for name in sorted(controllers(limits)):
        if host.find(name) is None:
            raise missing_controller(name, host)
    return writes(limits, host.versions)


def checked_writes(limits: Limits, host: Host) -> tuple[Write, ...]:
    """As `planned_writes`, of what is there at this moment. Raises: also UsageError: it names CPUs that are not."""
    planned = planned_writes(limits, host)
    if limits.takes_more:
        check_present(limits, host)
    return planned


def check_limits(limits: Limits) -> None:
    """Say whether this host knows how to enforce *limits*; touches nothing, so we may still not be allowed to.

    Raises: UnsupportedError: it does not; UsageError: it names CPUs that are not there.
    """
    checked_writes(limits, detect())


def limits_need_v2(limits: Limits) -> bool:
    """Say whether any of *limits* is cgroup v2's to enforce here."""
    return _need_v2(limits, detect())


@lru_cache(maxsize=256)
def _need_v2(limits: Limits, host: Host) -> bool:
    return any(hierarchy.version == 2 for name in controllers(limits) if (hierarchy := host.find(name)) is not None)


@define
class Bundle:
    """The places of one group; *name* is its path below the owner's directory."""

    host: Host
    name: str
    places: dict[str, Place]  # by mount point
    pid: int = field(factory=os.getpid)  # who made it, and may remove it

    @property
    def paths(self) -> tuple[str, ...]:
        return tuple(place.path for place in self.places.values())

    def at(self, controller: str) -> Place | None:
        """Give the place where *controller* (a word of `hosts.CONTROLLERS`) acts on this group; None: it does not."""
        hierarchy = self.host.find(controller)
        if hierarchy is None:
            return None
        return self.places.get(hierarchy.mount)

    def apply(self, wanted: Sequence[Write]) -> None:
        """Carry out *wanted*, each in the directory of its controller."""
        for write in wanted:
            place = self.at(write.controller)
            if place is None:
                raise missing_controller(write.controller, self.host)
            files.apply(place.path, write)

    def add(self, hierarchy: Hierarchy, path: str) -> Place:
        """Make the group's directory *path* in *hierarchy*."""
        files.make_directory(path)
        try:
            prepare_v1(path, hierarchy)
        except BaseException:
            os.rmdir(path)
            raise
        place = self.places[hierarchy.mount] = Place(hierarchy, path)
        return place

    def pids(self, *, recursive: bool = True) -> set[int]:
        """Give the processes of the group, whichever of its hierarchies they are in."""
        result: set[int] = set()
        for place in self.places.values():
            result |= files.pids_in(place.path, recursive=recursive)
        return result

    def attach(self, pid: int) -> None:
        """Move process *pid*, with all its threads, into the group, in each of its hierarchies."""
        for place in self.places.values():
            path = f"{place.path}/cgroup.procs"
            try:
                files.write_bytes(path, str(pid).encode())
            except OSError as error:
                if error.errno == errno.EBUSY and place.version == 2:
                    hint = "cgroup v2 takes no processes beside child groups that have limits; attach to the child"
                    raise SetupError(f"write {pid} to {path}", errno.EBUSY, step="cgroup", hint=hint) from error
                raise files.refusal(f"write {pid} to {path}", error) from error

    def _freezer(self) -> Place:
        """Give the place that can freeze. v1: made now if need be, and every process of the group moved into it."""
        place = self.at("freezer")
        if place is None:
            hierarchy = self.host.require("freezer")
            owner().directory(hierarchy, ())
            place = self.add(hierarchy, self.freezer_path(hierarchy))
        if len(self.places) > 1:
            self._gather(place)
        return place

    def freezer_path(self, hierarchy: Hierarchy) -> str:
        """Give where the v1 freezer's directory of this group is, or would be."""
        return f"{owner().path(hierarchy)}/{self.name.replace('/', '+')}"

    def _gather(self, place: Place) -> None:
        known: set[int] = set()
        while missing := self.pids() - files.pids_in(place.path) - known:  # children born meanwhile come with the next round
            for pid in missing:
                with contextlib.suppress(ProcessLookupError):
                    files.write_bytes(f"{place.path}/cgroup.procs", str(pid).encode())
            known = missing

    def freeze(self) -> None:
        """Stop every process of the group where it stands, and wait until all have stopped.

        Needs: v2 (Linux 5.2) or the v1 freezer. Raises: SetupError: ETIMEDOUT: one hangs in the kernel.
        """
        place = self._freezer()
        if place.version == 2:
            files.write_bytes(f"{place.path}/cgroup.freeze", b"1")
            self._await(place, "cgroup.events", "frozen 1")
        else:
            # Said once, it passes over who is about to wait for its vfork(2), and whose child is frozen before execve: that one is
            # found asleep when it is said again.
            self._await(place, "freezer.state", "FROZEN", say=b"FROZEN")

    def thaw(self) -> None:
        """Let the processes go on; a group that was never frozen is left alone."""
        place = self.at("freezer")
        if place is not None and place.version == 2:
            files.write_bytes(f"{place.path}/cgroup.freeze", b"0")
        elif place is not None:
            files.write_bytes(f"{place.path}/freezer.state", b"THAWED")

    @property
    def is_frozen(self) -> bool:
        """Say whether the group was told to freeze."""
        place = self.at("freezer")
        if place is None:
            return False
        if place.version == 2:
            return files.read_all(f"{place.path}/cgroup.freeze").strip() == "1"
        return files.read_all(f"{place.path}/freezer.state").strip() != "THAWED"

    @staticmethod
    def _await(place: Place, file: str, line: str, *, say: bytes = b"") -> None:
        # v2 tells a change by POLLPRI on cgroup.events; v1 tells nothing, so both are looked at in short steps
        deadline, pause = time.monotonic() + PATIENCE_S, 0.0002
        while True:
            if say:
                files.write_bytes(f"{place.path}/{file}", say)
            if line in files.read_all(f"{place.path}/{file}").splitlines():
                return
            if time.monotonic() >= deadline:
                raise SetupError(f"wait for {line!r} in {place.path}/{file}", errno.ETIMEDOUT, step="cgroup")
            time.sleep(pause)
            pause = min(pause * 2, 0.01)

    def kill(self) -> None:
        """Kill every process of the group and of the groups below it, and wait until they are gone.

        With v2's ``cgroup.kill`` (Linux 5.14) it is one step. Otherwise they are kept from forking and killed one by one
        until none is left: by pids.max 0 where the group has it, else by the freezer (the second choice, for it waits for
        processes that hang in the kernel). Frozen processes are thawed: v1 lets them die only then.
        Raises: UsageError: the caller is in the group. SetupError: ETIMEDOUT: one does not die.
        """
        pids = self.pids()
        if os.getpid() in pids:
            raise UsageError(f"kill the control group {self.name}: this process is in it; move it out first (Cgroup.attach of another group)")
        for place in self.places.values():
            if place.version == 2 and place.has("cgroup.kill"):
                files.write_bytes(f"{place.path}/cgroup.kill", b"1")
        if not pids:
            return
        deadline = time.monotonic() + PATIENCE_S
        with self._no_forks():
            while pids := self.pids():
                if time.monotonic() >= deadline:
                    hint = "they hang in the kernel"
                    raise SetupError(f"kill the processes {sorted(pids)[:10]}", errno.ETIMEDOUT, step="cgroup", hint=hint)
                kill_members(pids, self.pids, thaw=self.thaw)

    @contextlib.contextmanager
    def _no_forks(self) -> Generator[None, None, None]:
        """Keep the processes of the group from forking (as far as this host can) for a while."""
        pids = self.at("pids")
        if pids is not None and pids.has("pids.max"):
            before = files.read_bytes(f"{pids.path}/pids.max")
            files.write_bytes(f"{pids.path}/pids.max", b"0")
            try:
                yield
            finally:
                files.write_bytes(f"{pids.path}/pids.max", before)
            return
        if self.at("freezer") is not None:
            self.freeze()
        yield

    def events(self) -> Events:
        """Read how often limits were met."""
        memory, pids = self.at("memory"), self.at("pids")
        refused = _flat(pids, "pids.events").get("max")
        if memory is None or memory.version == 2:
            found = _flat(memory, "memory.events")
            return Events(found.get("oom"), found.get("oom_kill"), found.get("max"), refused)
        # v1 counts each event in the very group of the process, so what groups below saw has to be added
        found = _flat(memory, "memory.oom_control")
        kills = found.get("oom_kill")
        if kills is not None:
            below = (Place(memory.hierarchy, path) for path in files.subgroups(memory.path))
            kills += sum(_flat(place, "memory.oom_control").get("oom_kill", 0) for place in below)
        return Events(None, kills, _limit_met_v1(memory), refused)

    def remove(self, *, patience_s: float = 1.0) -> None:
        """Remove the group and the groups below it, in every hierarchy; their processes must be gone.

        Raises: SetupError: EBUSY: some are still there. What could be removed is.
        """
        errors: list[SetupError] = []
        for mount, place in list(self.places.items()):
            try:
                files.remove_tree(place.path, patience_s=patience_s)
                del self.places[mount]
            except SetupError as error:
                errors.append(error)
        if errors:
            raise errors[0]


def _flat(place: Place | None, file: str) -> dict[str, int]:
    return files.parse_flat(files.read_or_none(f"{place.path}/{file}") or "") if place is not None else {}


def _limit_met_v1(memory: Place) -> int | None:
    """Count how often the memory limit was met on v1.

    Memory and swap together are charged first, so with no swap allowed theirs is the limit that is met; and v6.18 does not
    count in memory.memsw.failcnt. What was met but not counted is None, not 0.
    """
    names = ("failcnt", "memsw.failcnt", "max_usage_in_bytes", "limit_in_bytes")
    single, both, peak, limit = (files.parse_number(files.read_or_none(f"{memory.path}/memory.{name}") or "") for name in names)
    if single is None:
        return None
    count = single + (both or 0)
    return None if count == 0 and peak is not None and limit is not None and peak >= limit else count


def reordered(planned: Iterable[Write], bundle: Bundle) -> list[Write]:
    """Put v1's memsw before memory when memory grows beyond what memsw is now: it may never be the smaller one."""
    result = list(planned)
    place = bundle.at("memory")
    index = next((i for i, w in enumerate(result) if w.file == "memory.memsw.limit_in_bytes"), 0)
    if not index or place is None:
        return result
    now = files.parse_number(files.read_or_none(f"{place.path}/memory.memsw.limit_in_bytes") or "")
    if now is not None and int(result[index - 1].value or 0) > now:
        result[index - 1], result[index] = result[index], result[index - 1]
    return result


def kill_members(pids: Iterable[int], members: Callable[[], set[int]], *, thaw: Callable[[], None] | None = None) -> None:
    """Send SIGKILL to those of *pids* that *members* still names, and wait for them to end; with *thaw*, which lets them, for the last ones only.

    Waiting takes at most 0.1 s for each AT_ONCE of them.
    """
    everybody = [*pids]
    for first in range(0, len(everybody), AT_ONCE):
        is_last = first + AT_ONCE >= len(everybody)
        _kill_some(everybody[first : first + AT_ONCE], members, thaw=thaw if is_last else None, waits=is_last or thaw is None)


def _kill_some(pids: Iterable[int], members: Callable[[], set[int]], *, thaw: Callable[[], None] | None, waits: bool) -> None:
    with contextlib.ExitStack() as stack:
        opened: dict[int, int] = {}
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                opened[pid] = calls.pidfd_open(pid)
                stack.callback(os.close, opened[pid])
        # A number read above may have been given to a stranger before it was opened; whoever is a member *now* is the one we hold.
        confirmed = members()
        poller = select.poll()
        waiting = {fd for pid, fd in opened.items() if pid in confirmed}
        for fd in waiting:
            poller.register(fd, select.POLLIN)
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(fd, signal.SIGKILL)
        if thaw is not None:
            thaw()
        deadline = time.monotonic() + 0.1
        while waits and waiting and (left := deadline - time.monotonic()) > 0:
            for fd, _ in poller.poll(left * 1000):
                waiting.discard(fd)
                poller.unregister(fd)
