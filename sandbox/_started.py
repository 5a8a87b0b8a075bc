"""A container that lives: its runs' control groups, what is done while it runs, and all of it taken back at its end."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

from attrs import define, evolve, field

from sandbox import _host
from sandbox._arguments import Prepared, as_key, text_of
from sandbox._cleaning import announce
from sandbox._ids import Ids
from sandbox._launch import driver
from sandbox._leaves import Leaves
from sandbox._run import MEMORY_HINT
from sandbox._session import Session
from sandbox._spares import spares
from sandbox._spec import ContainerSpec
from sandbox._undo import Undo
from sandbox._users import Identity
from sandbox._wiring import Wiring, wire_up
from sandbox.cg import LEAF_ACCOUNTING, Group, Leaf, Limits, Stats, limits_need_v2
from sandbox.errors import BrokenError, SandboxError, SetupError, UnsupportedError, UsageError, raise_shortage

if TYPE_CHECKING:
    from sandbox._start import Starting
    from sandbox.cg.series import Sampler


@define(eq=False)
class Started:
    """A running container and what belongs to it, in the order in which it is undone."""

    parts: ClassVar = (as_key, text_of, wire_up)  # what `Container.exec` is made of, which it would import late

    session: Session
    spec: ContainerSpec
    name: str
    ids: Ids
    degraded: tuple[str, ...]
    identity: Identity | None  # of the container's own user, where the files that tell it are known already
    _starting: Starting
    _stack: Undo
    _ready_group: Group | None = field(alias="group")  # made with the container, as cgroup v2 asks
    _leaves: Leaves = field(alias="leaves")
    _has_successor: bool = False
    _group: Group | None = field(init=False, default=None)  # that its programs come into; without limits, from the first on that needs one
    _has_outsiders: bool = False  # a program was started that is in no group
    _lacking: set[str] = field(factory=set[str])  # what runs asked for in vain
    is_paused: bool = False
    _lock: threading.Lock = field(factory=threading.Lock)

    def __attrs_post_init__(self) -> None:
        if self._starting.is_limited:
            self._group = self._ready_group

    def close(self) -> None:
        """Undo everything. A failure does not hide an earlier one. In a forked child only its copies are closed: the rest is the parent's."""
        if self.session.owner != os.getpid():
            self._abandon()
            return
        try:
            self._prepare_end()
            self.session.end(self._left)
            # Meanwhile the launcher reaps init. (Where init's end takes long, not before: both would take the kernel's locks from one another.)
            self._leaves.clear(self._group)
            if self._starting.adopts or self._leaves.has_asked:  # the launcher removes the group, or may be making some in it
                if self._group is not None and self._starting.adopts:
                    self._group.close_if_empty()  # there is time for it now
                has_gone = self.session.close()
                if self._group is not None and self._starting.adopts and has_gone:
                    self._group.forget()
            if self._group is not None and self._group.init_fd is None:
                self._group.remove_if_idle()
        finally:  # Ctrl-C, say
            self._stack.close()
        self._complete_successors()

    def begin_close(self) -> None:
        """Kill everything, and do not wait: once `Session.take_end` says so, neither does `close`."""
        self._prepare_end()
        self.session.begin_end(self._left)

    def _prepare_end(self) -> None:
        self._prepare_successor()
        if self.is_paused:
            self.resume()  # what is frozen does not die

    @property
    def _left(self) -> bytes | None:
        """What tells how much memory is left in its group, if nothing in the container can be in the caller's way after its end (see held.c)."""
        starting, group = self._starting, self._group
        if group is None or (group.init_fd is None and not starting.adopts):  # on v1, what the launcher has not made goes before it looks
            return None
        if starting.kind is None or starting.compiled is None or not starting.compiled.is_complete:
            return None
        return group.memory_file

    @property
    def memory_file(self) -> bytes | None:
        """What tells how much memory its programs have; None without a control group."""
        return None if self._group is None else self._group.memory_file

    def _abandon(self) -> None:
        self._stack.keep()
        self.session.abandon()
        self._leaves.abandon()
        for group in (self._ready_group, self._group):
            if group is not None:
                group.abandon()

    def _prepare_successor(self) -> None:
        """Ask for the next container of this kind to be made ahead, once."""
        if self._has_successor or self._starting.kind is None:
            return
        if self.session.launcher is driver.known():  # else it has died, or was shut down
            self._has_successor = True
            spares().prepare(self._starting.kind, self._starting.spare)

    def at_end(self, undo: Callable[[], object]) -> None:
        """Have *undo* called when it has ended."""
        self._stack.callback(undo)

    def _complete_successors(self) -> None:
        """Have those made ahead connected to the network, as far as they have got."""
        kind, attach = self._starting.kind, self._starting.attach
        if kind is not None and attach is not None and kind.network is not None:
            spares().complete(kind, attach.prepare)

    def leaf(self, prepared: Prepared, wiring: Wiring) -> Leaf | None:
        """The run's own control group, where there is a reason for one; closes *wiring* when that fails."""
        is_plain = not (prepared.accounted or self._starting.is_limited)
        if is_plain and self._group is None and self._stays_outside():
            return None
        if self.session.owner != os.getpid():
            wiring.close()
            driver.check_owner(self.session.owner)
        if self.is_paused:
            wiring.close()
            raise UsageError("the container is paused; resume() it before it can run a program")
        try:
            if self._starting.runs_may_need_v2:
                self._check_v2(prepared.limits)
            group = self._group or self.group()
            return self._leaves.take(group, prepared.limits)
        except UnsupportedError as error:
            if self.spec.strict:
                wiring.close()
                raise
            return self._leaf_without(error, prepared, wiring)
        except OSError as error:
            wiring.close()
            if not self.session.is_alive:
                raise BrokenError("the container has ended; start another one") from error
            if isinstance(error, SandboxError):
                raise
            hint = MEMORY_HINT if error.errno == errno.ENOMEM else ""
            if not hint:
                raise_shortage(error, "make the control group of a run")
            raise SetupError("make the control group of a run", error.errno or errno.EIO, step="cgroup", hint=hint) from error
        except BaseException:
            wiring.close()
            raise

    def _leaf_without(self, error: UnsupportedError, prepared: Prepared, wiring: Wiring) -> Leaf | None:
        """What is to be had although a control group as asked for is not."""
        if error.feature not in self._lacking:  # once, though each run's group has another name
            self._lacking.add(error.feature)
            self.degraded = (*self.degraded, f"a run's control group: {error}")
        if self._group is not None and prepared.limits is not None:
            return self.leaf(evolve(prepared, limits=None), wiring)  # those of the container hold
        self._has_outsiders = True
        return None  # init adds the CPU time of processes up, which a program that disowns its children escapes

    def _stays_outside(self) -> bool:
        """Whether a program without limits comes into no group."""
        if not self._has_outsiders:
            with self._lock:  # not while the group is being made
                self._has_outsiders = self._group is None
        return self._has_outsiders

    def _check_v2(self, limits: Limits | None) -> None:
        _host.check_groups(limits)
        if limits is not None and not self._starting.clones_into_group and limits_need_v2(limits):
            raise UnsupportedError(
                "that limit is cgroup v2's on this host, and the container's filter does not allow init to put programs into such groups",
                feature="cgroup:v2",
                remedy="give the container a limit of the same kind too, in Container(...)",
            )

    def retire(self, leaf: Leaf) -> None:
        """Take back the leaf of a run that has ended."""
        self._leaves.retire(leaf)

    def tidy(self, has_ended: Callable[[], bool]) -> None:
        """Work that can be done while a program runs."""
        self._prepare_successor()
        self._complete_successors()
        if self._group is not None:
            self._leaves.tidy(self._group, self.session, has_ended)

    def group(self) -> Group:
        """The container's control group, made now if it had none. From now on all programs come into it.

        Raises: as `Group.create`: UnsupportedError: none is to be had.
        """
        if self._group is None:
            driver.check_owner(self.session.owner)
            with self._lock:
                if self._group is None:
                    group = self._ready_group
                    if group is None:
                        group = make_group(self.name, self.spec.limits)
                        self._stack.callback(group.remove)
                    self._group = group
        return self._group

    def pause(self) -> None:
        """Freeze all programs."""
        group = self._group_for("pause")
        if self._has_outsiders:
            raise UsageError("pause: programs were started before the container had a control group; give it a limit (memory=, pids= ...)")
        self.is_paused = True  # first: what a freeze that fails has frozen has to be thawed as well
        self.session.hold()  # who is frozen before its execve would keep init waiting, and who comes into its group later would go on
        group.freeze()

    def resume(self) -> None:
        """Let them go on."""
        self._group_for("resume").thaw()
        self.session.release()
        self.is_paused = False

    def stats(self) -> Stats:
        """What all programs used."""
        return self._group_for("stats").stats()

    def update(self, limits: Limits) -> None:
        """Change what all programs together may use."""
        self._group_for("update").update(limits)

    def sampler(self) -> Sampler:
        """What reads that again and again; the caller closes it."""
        return self._group_for("monitor").sampler()

    @property
    def can_pause(self) -> bool:
        """Whether all programs are in a control group."""
        return self._group is not None and not self._has_outsiders

    def _group_for(self, what: str) -> Group:
        if self._group is None and self._has_outsiders:  # one that is made now would be without the programs that run already
            raise UsageError(f"{what}: the container has no control group; give it a limit (memory=, pids= ...)")
        return self.group()


def make_group(name: str, limits: Limits) -> Group:
    """Make a control group; the launcher is told first what to remove if we cannot."""
    announce()
    return Group(name, limits, controllers=LEAF_ACCOUNTING).create()
