"""Namespaces that a container has together with others: which, as its caller says it, and how they are opened when it starts.

Theory of operation
-------------------
The launcher's child that clones init joins them first; init's user namespace is its own all the same, so it has no rights over what it shares.
Who shares the IPC namespace of a container is to reach what its programs make there, which the kernel allows by uids: so it has the same
range of ids. And what is of that namespace but a file, POSIX shared memory and message queues, it sees as well: copies of that container's mounts
of /dev/shm and /dev/mqueue. Who copies a mount makes, for a moment, a namespace that the kernel counts against the user namespace of the mount; ours
allow none (`sec.profiles`), so this is allowed while the copies are made. (Meanwhile only programs with CAP_SYS_ADMIN could use that, and inside.)
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, cast

from attrs import define, evolve, field

from sandbox import _plan as plan
from sandbox import ns
from sandbox._ids import Ids, allot
from sandbox._sys import calls, features
from sandbox._sys import constants as sys
from sandbox.errors import SetupError, UnsupportedError, UsageError
from sandbox.ns.namespace import FLAGS
from sandbox.ns.user import COUNT

if TYPE_CHECKING:
    from sandbox._compile import Host
    from sandbox._networks.wishes import Wishes
    from sandbox._spec import ContainerSpec

Whose = Any  # a `Container`, a `sandbox.ns.Resident` or a `sandbox.ns.Namespace`
KINDS: Final = ("cgroup", "ipc", "time", "uts")
_PLACES: Final = ("/dev/shm", "/dev/mqueue")  # noqa: S108 - inside
_ORDER: Final = ("cgroup", "ipc", "uts", "net", "time")  # in which they are joined
_NEVER: Final = {
    "pid": "a container's programs end with its own PID 1, for sure, and are seen by nobody else's; to run one among those of another container, "
    "exec it there (Container.exec, `sandbox exec NAME`)",
    "net": "say net=, which takes the same",
    "mount": "give both the same Volume or Bind",
    "user": "a container has a user namespace of its own, always; with share={'ipc': other} it has the same ids as the other",
}
_lock = threading.Lock()  # one raises a limit at a time


def _after_fork() -> None:
    global _lock
    _lock = threading.Lock()  # another thread of the parent may have held it


os.register_at_fork(after_in_child=_after_fork)


# ---- What the caller says ----


def to_shares(
    share: Iterable[str] | Mapping[str, Whose], wishes: Wishes, hostname: str, said: Mapping[str, object]
) -> tuple[Iterable[str], Wishes, str]:
    """The kinds that are not its own, *wishes* with whose they are where that is not the host, and the host name, for /etc/hosts.

    *said*: other arguments that it could contradict.

    Raises: UsageError.
    """
    if not isinstance(share, Mapping):
        _check_said(share, {}, hostname, said)
        return share, wishes, hostname
    found = _of_mapping(cast("Mapping[str, object]", share))
    kinds = tuple(kind for kind, _ in found if kind != "time")  # the host's clocks it has anyway, as far as the plan is concerned
    joins = tuple((kind, whose) for kind, whose in found if whose != "host")
    _check_said(kinds, dict(joins), hostname, said)
    if not joins:
        return kinds, wishes, hostname
    return kinds, evolve(wishes, shares=joins, kinds=(*wishes.kinds, *dict(joins))), _name_of(dict(joins).get("uts"), hostname)


def _of_mapping(share: Mapping[str, object]) -> list[tuple[str, Whose]]:
    found: list[tuple[str, Whose]] = []
    for kind, whose in share.items():
        if kind in _NEVER:
            raise UsageError(f"share: {kind!r} is never shared so: {_NEVER[kind]}")
        if kind not in KINDS:
            raise UsageError(f"share: {kind!r} is none of {', '.join(KINDS)}")
        if kind == "time" and whose == "host":
            continue  # what it has without time_offsets=
        found.append((kind, _to_whose(kind, whose)))
    return found


def _to_whose(kind: str, whose: object) -> Whose:
    from sandbox.container import Container

    if isinstance(whose, ns.Namespace):
        if whose.kind != kind:
            raise UsageError(f"share: {whose!r} is a namespace of kind {whose.kind!r}; give one of kind {kind!r}")
    elif whose != "host" and not isinstance(whose, (Container, ns.Resident)):
        raise UsageError(f"share: {kind}: {whose!r} is none of 'host', a Container, a sandbox.ns.Resident or a sandbox.ns.Namespace")
    return whose


def _check_said(kinds: object, joins: Mapping[str, Whose], hostname: str, said: Mapping[str, object]) -> None:
    """Refuse what would be said in vain."""
    if "time" in joins and said["time_offsets"] is not None:
        raise UsageError("time_offsets: the clocks are those of whose time namespace is shared; leave one of the two out")
    if isinstance(kinds, (tuple, list)) and "uts" in kinds and (hostname != "sandbox" or said["domainname"] is not None):
        raise UsageError("hostname, domainname: they are those of whose UTS namespace is shared; leave one of the two out")
    if "ipc" in joins and not isinstance(joins["ipc"], ns.Namespace) and said["shm"] != "64M":
        raise UsageError("shm: /dev/shm is that of the container whose IPC namespace is shared; leave it out")


def _name_of(whose: Whose, otherwise: str) -> str:
    from sandbox.container import Container

    name = whose.spec.hostname if isinstance(whose, Container) else whose.hostname if isinstance(whose, ns.Resident) else None
    return otherwise if name is None else str(name)


def opened(kind: str, whose: Whose) -> ns.Namespace | ns.Resident:
    """What is to be joined at a start. Raises: ClosedError: that container does not run."""
    from sandbox.container import Container

    if not isinstance(whose, Container):
        return cast("ns.Namespace | ns.Resident", whose)
    resident = ns.Resident.of(whose.pid)
    if not whose.is_running:  # then the number may be another's by now
        resident.close()
        whose.pid  # noqa: B018 - says why
        raise UsageError(f"share: {kind}: that container has ended")
    return resident


# ---- At a start ----


@define(eq=False)
class Joined:
    """What is joined by a container that starts: *namespaces*, which it owns until `close`; *places*: mounts that `Joined.given` hands on."""

    namespaces: list[ns.Namespace] = field(factory=list[ns.Namespace])
    places: dict[str, int] = field(factory=dict[str, int])
    ids_of: int | None = None  # whose private range of ids it is to have: the first uid

    def given(self) -> dict[str, int]:
        """The mounts, by their targets: the caller's from now on."""
        found, self.places = self.places, {}
        return found

    def close(self) -> None:
        """Let go of what is left. May be called twice."""
        for namespace in self.namespaces:
            namespace.close()
        for fd in self.given().values():
            os.close(fd)

    def allot(self, shape: Ids) -> Ids:
        """The ids that it is to have: those of the one whose IPC namespace it shares, or some of its own."""
        if self.ids_of is None:
            return allot(shape)
        taken = ns.id_ranges().hold(self.ids_of)
        return evolve(shape, maps=taken.maps, root=taken.base, release=taken.release)

    def joins(self) -> Iterator[tuple[ns.Namespace, int]]:
        """The namespaces in the order in which they are joined, and their CLONE_NEW*."""
        for namespace in sorted(self.namespaces, key=lambda one: _ORDER.index(one.kind)):
            yield namespace, FLAGS[namespace.kind]


def join(shares: Sequence[tuple[str, Whose]], host: Host, spec: ContainerSpec) -> Joined:
    """Open what is to be joined.

    Raises: UnsupportedError: without privileges; ClosedError; SetupError. Nothing is left open then.
    """
    if not host.privileged:
        raise UnsupportedError(
            f"{shares[0][0]}: a namespace of another container belongs to that one's user namespace, which an ordinary user's "
            "second container cannot join",
            feature=f"a {shares[0][0]} namespace of another container",
            remedy="put both on a Network(), or run as root" if shares[0][0] == "net" else "run as root; or run both programs in one container",
        )
    joined = Joined()
    try:
        for kind, whose in shares:
            _join_one(joined, kind, whose, spec)
    except BaseException:
        joined.close()
        raise
    return joined


def _join_one(joined: Joined, kind: str, whose: Whose, spec: ContainerSpec) -> None:
    target = opened(kind, whose)
    if isinstance(target, ns.Namespace):
        joined.namespaces.append(ns.Namespace.adopt(os.dup(target.fileno())))
        return
    try:
        joined.namespaces.append(target.namespace(kind))
        if kind == "ipc":
            joined.ids_of = _private_base(target)
            taken = {mount.target for mount in spec.filesystem.mounts}
            if joined.ids_of is not None:
                _copy_places(joined.places, target, [path for path in _PLACES if path not in taken])
    finally:
        if target is not whose:
            target.close()


def _private_base(resident: ns.Resident) -> int | None:
    """Where the private range of a container of ours begins; None: it has none, so whoever it is is no such container."""
    lines = resident.id_map()
    if len(lines) == 1 and ns.id_ranges().is_private(lines[0].outside) and (lines[0].inside, lines[0].count) == (0, COUNT):
        return lines[0].outside
    return None


def _copy_places(places: dict[str, int], resident: ns.Resident, paths: Sequence[str]) -> None:
    """Copies, attached nowhere, of *resident*'s mounts on *paths*, as far as there are mounts."""
    from sandbox._spawner import start_helper

    with resident.namespace("mount") as mounts:
        planned = plan.Plan(clone_flags=sys.CLONE_NEWPID, joins=(("ns.mount", sys.CLONE_NEWNS),), fds={"ns.mount": mounts.fileno()})
        helper = start_helper(planned, 0)
        try:
            for path in paths:
                if (fd := _copy_place(helper.request, resident, path)) is not None:
                    places[path] = fd
        finally:
            helper.close()


def _copy_place(request: Any, resident: ns.Resident, path: str) -> int | None:  # noqa: ANN401 - Session.request
    flags = sys.O_PATH | sys.O_DIRECTORY | sys.O_NOFOLLOW
    try:
        (found,) = request([plan.Open("at", path, flags, resolve=sys.RESOLVE_NO_SYMLINKS)], ["at"])
    except SetupError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return None
        raise
    try:
        if not calls.statx(f"/proc/self/fd/{found}").attributes & sys.STATX_ATTR_MOUNT_ROOT:
            return None
        return _clone(request, resident, found)
    finally:
        os.close(found)


def _clone(request: Any, resident: ns.Resident, place: int) -> int:  # noqa: ANN401 - as above
    copy: list[plan.Op] = [plan.CloneTree("copy", "at", recursive=False)]
    if features.mount_setattr():  # before it only what is attached can be given them; what a container of ours has there has them, and is private
        attrs = sys.MOUNT_ATTR_NOSUID | sys.MOUNT_ATTR_NODEV | sys.MOUNT_ATTR_NOEXEC
        copy.append(plan.SetAttr("copy", set=attrs, propagation=sys.MS_PRIVATE, recursive=False))
    try:
        return int(request(copy, ["copy"], {"at": place})[0])
    except SetupError as error:
        if error.errno != errno.ENOSPC:
            raise
    with _lock:
        _allow_mounts(resident, b"64")
        try:
            return int(request(copy, ["copy"], {"at": place})[0])
        finally:
            _allow_mounts(resident, b"0")


def _allow_mounts(resident: ns.Resident, most: bytes) -> None:
    """Let there be *most* mount namespaces in a container's user namespace: the limit is that of whoever writes it."""
    from sandbox._launch import wire
    from sandbox._spawner import start_helper

    with resident.namespace("user") as user:
        planned = plan.Plan(
            joins=(("ns.user", sys.CLONE_NEWUSER),),
            init_ops=(plan.Open("proc", "/proc", sys.O_PATH | sys.O_DIRECTORY), plan.WriteProc("sys/user/max_mnt_namespaces", most, "proc")),
            fds={"ns.user": user.fileno()},
        )
        start_helper(planned, wire.CREATE_DIRECT).close()
