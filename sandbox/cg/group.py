"""`Group`: the control groups of one container, with a fresh `Leaf` in them for every program that it runs.

v1: ``<owner>/<name>/<leaf>`` in each hierarchy that is needed. The container's limits sit on ``<name>``; init is in none of it.
v2: ``<owner>/<name>/{init,payload/<leaf>}``: processes may only be in the outermost groups, and init must have a group of
its own below ``<name>``, for CLONE_INTO_CGROUP asks for the right to write the common ancestor's ``cgroup.procs``. The
container's limits sit on ``payload``, so that init can neither be starved nor be killed for its programs. A program without limits, in a
container without, stays with init: to join another group costs a tenth of its run.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from sandbox.cg import files
from sandbox.cg.blueprint import Blueprint
from sandbox.cg.bundle import Bundle, Events, Place, checked_writes, hierarchies_for, reordered
from sandbox.cg.hosts import Hierarchy, detect
from sandbox.cg.inforce import read_limits
from sandbox.cg.leaf import Ahead, Leaf, Opened, Shape, opens_of
from sandbox.cg.limits import Limits
from sandbox.cg.limits import controllers as controllers_of
from sandbox.cg.outline import NO_LIMITS, outline, shape, template
from sandbox.cg.stats import Stats, collect
from sandbox.cg.tree import CPUSET, enable, owner, wanted_v2
from sandbox.errors import ClosedError, UsageError

if TYPE_CHECKING:
    from sandbox.cg.introspect import Introspection
    from sandbox.cg.series import Sampler

LEAF_ACCOUNTING: Final = frozenset({"memory", "pids", "cpuacct"})
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class Group:
    """The control groups of one container. `make_leaf` and `Leaf.remove` may be called by any thread."""

    def __init__(self, name: str, limits: Limits = NO_LIMITS, *, controllers: Iterable[str] = LEAF_ACCOUNTING) -> None:
        """Prepare; nothing is touched before `create`.

        *controllers*: what leaves shall account for, as far as the host has it; the limits' own are added.
        """
        self._fds: dict[str, int] = {}  # mount point -> the directory that leaves are made in
        self._tasks: dict[str, int] = {}  # v1: mount point -> `tasks` of the container's own group
        self._shapes: dict[tuple[Limits | None, frozenset[str]], Shape] = {}
        self._aheads: dict[Shape, Ahead | None] = {}
        self._leaves: set[Leaf] = set()
        #: v2: the directory that init is cloned into; None when the group is on v1 alone
        self.init_fd: int | None = None
        self._name = files.check_name(name)
        self._limits = limits
        self._wished = frozenset(controllers)
        self._bundle: Bundle | None = None
        self._container: str | None = None  # v2: the directory that holds init and payload
        self._enabled: set[str] = set()  # v2: for leaves
        self._uid: int | None = None
        self._lock = threading.Lock()

    def __del__(self) -> None:
        # Not the plan: for the leaf of a program that was started and then forgotten, which nobody gives back. (Nearly always there is
        # nothing to do, and an interrupt that comes in here is lost.)
        if getattr(self, "_fds", None):
            for leaf in self._leaves:
                leaf.close()
            self._close()

    def __repr__(self) -> str:
        return f"Group({self._name!r}, {'live' if self._bundle else 'not created'})"

    def create(self) -> Self:
        """Make the directories, and set the limits.

        Raises: UnsupportedError: the host lacks a controller, or we may not use it; UsageError: a CPU is not there.
        """
        host = detect()
        planned = checked_writes(self._limits, host)
        self._bundle = Bundle(host, self._name, {})
        try:
            needed = controllers_of(self._limits)
            for hierarchy in hierarchies_for(host, needed, self._wished):
                self._add(hierarchy, needed | self._wished)
            self._bundle.apply(planned)
        except BaseException:
            self._take_back()
            raise
        return self

    def adopt(self, blueprint: Blueprint, fds: list[int]) -> Leaf:
        """Take, in place of `create`, what somebody else has made of *blueprint*, and opened: *fds*, which are then ours. Gives the first leaf."""
        host, name = detect(), self._name
        places = {at.mount: Place(at, above + name) for at, above in zip(blueprint.hierarchies, blueprint.above_text, strict=True)}
        self._bundle = Bundle(host, name, places)
        count = len(places)
        shared = fds[count : count + len(blueprint.shared)]
        self._fds = dict(zip(places, fds, strict=False))
        self._tasks = dict(zip(blueprint.shared, shared, strict=True))
        first = self._shapes[None, self._wished] = template(host, self._wished, blueprint).over(fds, shared)
        leaf = Leaf.opened(self, blueprint.leaf, first, blueprint.opened, fds[count + len(shared) :])
        self._leaves.add(leaf)
        return leaf

    def update(self, limits: Limits) -> None:
        """Set the limits that *limits* names while programs run; the others stay.

        Raises: UsageError: the group has none of that kind, and so nothing that counts; SetupError: EBUSY: more memory is in use.
        """
        bundle = self._live()
        merged = self._limits.updated(limits)
        planned = checked_writes(limits.changing(merged), bundle.host)
        for write in planned:
            place = bundle.at(write.controller)
            if place is None or not (write.optional or place.has(write.file)):
                raise UsageError(f"the control group has no limit of {write.controller} to change; give it one when it is made")
        bundle.apply(reordered(planned, bundle))
        self._limits = merged

    def _add(self, hierarchy: Hierarchy, wanted: frozenset[str]) -> None:
        bundle = self._live()
        path = f"{owner().directory(hierarchy, wanted)}/{self._name}"
        if hierarchy.version == 2:
            path = self._add_v2(hierarchy, path, wanted_v2(hierarchy, wanted))
        else:
            bundle.add(hierarchy, path)
        self._fds[hierarchy.mount] = os.open(path, _DIRECTORY)

    def _add_v2(self, hierarchy: Hierarchy, path: str, wanted: set[str]) -> str:
        files.make_directory(path)
        self._container = path
        if wanted:
            enable(path, wanted)  # while it is empty of processes
        files.make_directory(f"{path}/init")
        self._live().add(hierarchy, f"{path}/payload")
        if wanted:
            enable(f"{path}/payload", wanted)
        self._enabled = wanted
        self.init_fd = os.open(f"{path}/init", _DIRECTORY)
        return f"{path}/payload"

    def _live(self) -> Bundle:
        if self._bundle is None:
            raise ClosedError(f"the control groups of {self._name} are not there: call create() first")
        return self._bundle

    def own(self, uid: int) -> None:
        """Let *uid* (as the host numbers it) join leaves from inside its user namespace. v1 needs nothing.

        v2's CLONE_INTO_CGROUP checks that the caller may write ``cgroup.procs`` of the leaf and of the common ancestor
        of init's group and the leaf. No cgroup file system may then be writable inside. Call it before `make_leaf`.

        Raises: UnsupportedError: we may not. SetupError: anything else, as when somebody has removed the group.
        """
        self._uid = uid
        if self._container is not None:
            try:
                os.chown(f"{self._container}/cgroup.procs", uid, -1)
            except OSError as error:
                raise files.refusal(f"give {self._container}/cgroup.procs to uid {uid}", error) from error

    def make_leaf(self, name: str, limits: Limits | None = None, *, controllers: frozenset[str] | None = None) -> Leaf:
        """Make a fresh group for one program.

        *limits* are its own, beside the container's. *controllers*: what to account for (None: what the group was made for);
        for the container's other hierarchies the program joins the container's own group.
        Raises: UnsupportedError, SetupError: a limit cannot be set. OSError: mkdir failed (EEXIST: the name is taken).
        """
        leaf = Leaf.make(self, name.encode(), self._shape_of(limits, controllers), self._uid)
        self._leaves.add(leaf)
        return leaf

    def shape(self, limits: Limits | None = None) -> Shape:
        """Give what leaves with *limits* are now: the same object until the group has got more hierarchies."""
        return self._shape_of(limits, None)

    def ahead(self, shape: Shape) -> Ahead | None:
        """Give what somebody else may do for `open_leaf`: the steps first, then the opens.

        None: not for such leaves: those of cpusets want more.
        """
        if shape not in self._aheads:  # two threads at once would both find the same: no lock
            self._aheads[shape] = self._ahead(shape)
        return self._aheads[shape]

    def open_leaf(self, name: bytes, shape: Shape) -> Leaf | None:
        """Give the leaf for which all the steps of `ahead` have been taken; None: not yet, or nobody can tell."""
        ahead = self.ahead(shape)
        if ahead is None or ahead.last is None:
            return None
        try:
            leaf = Leaf.make(self, name, shape, self._uid, last=ahead.last)
        except FileNotFoundError:
            return None
        self._leaves.add(leaf)
        return leaf

    def take_leaf(self, name: bytes, shape: Shape, opened: Opened, fds: list[int]) -> Leaf:
        """As `open_leaf`, where somebody else has taken the opens of `ahead` too: *fds*, which are the leaf's then."""
        leaf = Leaf.opened(self, name, shape, opened, fds)
        self._leaves.add(leaf)
        return leaf

    def leaf_places(self) -> list[bytes]:
        """Give every directory that leaves may be in; each ends with a slash."""
        places = self._live().places
        return [os.fsencode(places[mount].path) + b"/" for mount in self._fds]

    def remove_leaves(self, names: Iterable[bytes]) -> None:
        """Remove leaves by their names, as far as they are there and empty: those of `ahead`, opened or not."""
        for name in names:
            for directory in self._fds.values():
                with contextlib.suppress(OSError):  # not made, or the container's to remove
                    os.rmdir(name, dir_fd=directory)

    def limit_leaf(self, leaf: Leaf, limits: Limits) -> bool:
        """Give a fresh leaf that has no limits its own; False: not on a leaf like this one, make another.

        Raises: as `make_leaf`.
        """
        return leaf.limit(self._shape_of(limits, None))

    def _shape_of(self, limits: Limits | None, controllers: frozenset[str] | None) -> Shape:
        self._live()
        wanted = self._wished if controllers is None else controllers
        found = self._shapes.get((limits, wanted))
        if found is None:
            with self._lock:
                found = self._shapes.get((limits, wanted))
                if found is None:
                    found = self._shapes[limits, wanted] = self._shape(limits or NO_LIMITS, wanted)
        return found

    def _shape(self, limits: Limits, wanted: frozenset[str]) -> Shape:
        bundle = self._live()
        host = bundle.host
        if limits.IS_DETAILED:
            wanted |= {"cpu"}
        checked_writes(limits, host)
        needed = controllers_of(limits)
        for hierarchy in hierarchies_for(host, needed, wanted):
            if self._container is not None or hierarchy.mount not in bundle.places:
                self._extend(hierarchy, wanted | needed)
        found = outline(host, limits, wanted, tuple(bundle.places))
        return shape(found, self._fds, {mount: self._tasks_fd(bundle.places[mount]) for mount in found.shared})

    def _ahead(self, shape: Shape) -> Ahead | None:
        """Where limits are set comes first, so that the last directory says that all is done, on v1. None: a leaf takes more than that."""
        if shape.v2 is not None and shape.v1:
            return None
        known = self._live().places
        taken = shape.v1 if shape.v2 is None else (shape.v2,)
        places = {directory: known[mount].path for mount, directory in self._fds.items() if directory in taken}
        settings: dict[int, list[tuple[bytes, bytes]]] = {directory: [] for directory in places}
        for directory, write in shape.writes:
            if write in CPUSET:
                return None
            there = files.existing(places[directory], write)
            if there is not None and there.value is not None:
                settings[directory].append((f"/{there.file}".encode(), there.value.encode()))
            elif there is not None or (not write.optional and write.instead is None):
                return None
        order = sorted(settings, key=lambda directory: not settings[directory])
        if not order or (shape.v2 is None and settings[order[-1]]):
            return None
        steps: list[tuple[bytes, bytes, bytes | None]] = []
        for directory in order:
            before = os.fsencode(places[directory]) + b"/"
            steps.append((before, b"", None))
            steps += [(before, file, value) for file, value in settings[directory]]
        opens, opened = opens_of(shape, {directory: os.fsencode(path) + b"/" for directory, path in places.items()})
        if shape.v2 is None:
            return Ahead(tuple(steps), order[-1], None, opens, opened)
        owned = None if self._uid is None else (os.fsencode(places[shape.v2]) + b"/", b"/cgroup.procs", self._uid)
        return Ahead(tuple(steps), None, owned, opens, opened)

    def _extend(self, hierarchy: Hierarchy, wanted: frozenset[str]) -> None:
        """Make sure that leaves can be made in *hierarchy* with *wanted* controllers."""
        bundle = self._live()
        if hierarchy.mount not in bundle.places:
            self._wished |= wanted
            self._add(hierarchy, self._wished | controllers_of(self._limits))
        elif self._container is not None and (missing := wanted_v2(hierarchy, wanted) - self._enabled):
            owner().directory(hierarchy, missing)
            enable(self._container, missing)
            enable(f"{self._container}/payload", missing)
            self._enabled |= missing

    def _tasks_fd(self, place: Place) -> int:
        mount = place.hierarchy.mount
        if mount not in self._tasks:
            self._tasks[mount] = os.open(f"{place.path}/tasks", os.O_WRONLY | os.O_CLOEXEC)
        return self._tasks[mount]

    def has_leaf(self, leaf: Leaf) -> bool:
        """Say whether *leaf* was made here and not removed."""
        return leaf in self._leaves

    def forget_leaf(self, leaf: Leaf) -> None:
        """Let go of a removed *leaf*; the last one of a removed group closes the group's descriptors."""
        self._leaves.discard(leaf)
        if self._bundle is None and not self._leaves:
            self._close()

    def paths(self) -> tuple[str, ...]:
        """Give the absolute directories that a janitor has to remove, with all below them; some may not exist (yet)."""
        bundle = self._live()
        found = [place.path for place in bundle.places.values() if place.version == 1]
        if self._container is not None:
            found.append(self._container)
        freezer = bundle.host.find("freezer")
        if freezer is not None and freezer.version == 1 and freezer.mount not in bundle.places:
            found.append(bundle.freezer_path(freezer))  # made by the first `freeze`
        return tuple(found)

    def pids(self) -> set[int]:
        """List the programs' processes (not init), as this process's pid namespace numbers them."""
        return self._live().pids()

    def freeze(self) -> None:
        """Stop all programs where they stand. No program may be started before `thaw`."""
        self._live().freeze()

    def thaw(self) -> None:
        """Let them go on."""
        self._live().thaw()

    def kill(self) -> None:
        """Kill all programs (not init) and wait until they have ended."""
        self._live().kill()

    def stats(self) -> Stats:
        """Read what all programs together used, ended ones included (init is not counted)."""
        return collect(self._live())

    def sampler(self) -> Sampler:
        """Give what reads that again and again, for little; the caller closes it."""
        from sandbox.cg.series import Sampler  # few ask

        return Sampler(self._live())

    def events(self) -> Events:
        """Read how often the container's limits were met; on v1, kills in leaves that were removed are no longer counted."""
        return self._live().events()

    def in_force(self) -> Limits:
        """Read back the container's limits."""
        return read_limits(self._live())

    @property
    def files(self) -> Introspection:
        """The container's control files as typed attributes: ``group.files.memory.limit_in_bytes``."""
        from sandbox.cg.introspect import Introspection  # cgroupspy is loaded by those only who ask

        return Introspection(self._live())

    @property
    def memory_file(self) -> bytes | None:
        """The file that tells how much memory the programs have now; None: no controller does, or the group has been removed."""
        place = None if self._bundle is None else self._bundle.at("memory")
        if place is None:
            return None
        return os.fsencode(place.path) + (b"/memory.usage_in_bytes" if place.version == 1 else b"/memory.current")

    def close_if_empty(self) -> None:
        """Close the descriptors ahead of `remove` or `forget`, if no leaf is left; nothing else may be asked of it then."""
        if not self._leaves:
            self._close()

    def forget(self) -> None:
        """Let go of it: somebody else has removed it."""
        self._bundle = None
        self.close_if_empty()

    def remove_if_idle(self) -> bool:
        """Remove everything if nobody is in it; False: somebody is, and what is left waits for `remove`."""
        bundle = self._bundle
        if bundle is None:
            return True
        if not self._rmdir_all(bundle):
            return False
        self._bundle = None
        if not self._leaves:
            self._close()
        return True

    def remove(self) -> None:
        """Remove everything; programs that are left are killed first. Twice is fine. Init must have ended."""
        bundle = self._bundle
        if bundle is None:
            return
        try:
            self._remove_directories(bundle)
        finally:
            self._bundle = None
            if not self._leaves:
                self._close()

    def abandon(self) -> None:
        """Close our copies of the descriptors and leave the group as it is: in a forked child, whose parent it belongs to."""
        self._bundle = None
        self._close()

    def _directories(self, bundle: Bundle) -> list[str]:
        found = [place.path for place in bundle.places.values()]
        return found if self._container is None else [*found, f"{self._container}/init", self._container]

    def _rmdir_all(self, bundle: Bundle) -> bool:
        for path in self._directories(bundle):
            try:
                os.rmdir(path)
            except FileNotFoundError:
                pass  # a janitor was faster
            except OSError:
                return False
        return True

    def _remove_directories(self, bundle: Bundle) -> None:
        if not self._rmdir_all(bundle):  # a leaf or a process is left
            bundle.kill()
            bundle.remove()
            if self._container is not None:
                files.remove_tree(self._container)

    def _take_back(self) -> None:
        """Take back what a failed `create` made; the first error is the one to be told."""
        bundle, self._bundle = self._live(), None
        with contextlib.suppress(OSError):
            bundle.remove(patience_s=0.0)
        if self._container is not None:
            with contextlib.suppress(OSError):
                files.remove_tree(self._container, patience_s=0.0)
        self._close()

    def _close(self) -> None:
        fds = [*self._fds.values(), *self._tasks.values()]
        self._fds, self._tasks, self._shapes, self._aheads = {}, {}, {}, {}
        if self.init_fd is not None:
            fds.append(self.init_fd)
            self.init_fd = None
        for fd in fds:
            os.close(fd)

    def __enter__(self) -> Self:
        return self.create() if self._bundle is None else self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.remove()
