"""A request to run a program: what it is, its bytes, and words for one that did not start."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from errno import E2BIG, EACCES, EAGAIN, ELOOP, ENOENT, ENOEXEC, ENOMEM, ENOSYS, ENOTDIR, EPERM, ETIMEDOUT
from functools import lru_cache
from typing import Final, Protocol

from attrs import field, frozen

from sandbox._launch import codec, wire
from sandbox._wiring import NULL, Wiring
from sandbox.cg import Layout, Leaf
from sandbox.errors import ProgramNotFoundError, ProtocolError, SetupError, UsageError


class Decode(Protocol):
    """Bytes to text, piece by piece; *final*: nothing more comes."""

    def __call__(self, data: bytes, *, final: bool) -> str: ...


def _nanoseconds(seconds: float | None) -> int:
    # 0 means no deadline on the wire: less than a nanosecond is one.
    return 0 if seconds is None else math.ceil(seconds * 1e9)


_QUIET: Final = ((wire.OWN_NULL, 0), (wire.OWN_NULL, 1), (wire.OWN_NULL, 2))  # /dev/null as all three standard streams


@frozen
class Spec:
    """A validated request to run a program, before it has descriptors and a control group."""

    argv: tuple[bytes, ...]
    candidates: tuple[bytes, ...]
    env: tuple[bytes, ...]
    cwd: bytes
    uid: int
    gid: int
    groups: tuple[int, ...] | None
    umask: int
    wall_s: float | None
    cpu_s: float | None
    cpus_milli: int
    rlimits: tuple[tuple[int, int, int], ...]
    output_limit: int
    tty: bool = False
    rows: int = 0
    columns: int = 0
    same_cpu: bool = False
    is_detailed: bool = False  # its result shall have `Details`
    error_limit: int | None = None  # of stderr, where it is another than that of stdout
    discards: bool = False  # what goes beyond a limit is thrown away, and the program goes on
    encoded: tuple[bytes, bytes] = field(init=False, eq=False, repr=False)  # what of the request is the same for each run
    quiet: dict[tuple[Layout, int], bytes] = field(factory=dict[tuple[Layout, int], bytes], init=False, eq=False, repr=False)  # see `encode`
    flags: int = field(init=False, eq=False, repr=False)
    plain: bytes = field(init=False, eq=False, repr=False)  # all of it, with /dev/null as all three standard streams and no control group
    args: tuple[str, ...] = field(init=False, eq=False, repr=False)  # argv, for people

    @encoded.default  # type: ignore[attr-defined, unused-ignore]  # attrs' own decorator
    def _encoded(self) -> tuple[bytes, bytes]:
        request = codec.ExecRequest(
            argv=self.argv,
            candidates=self.candidates,
            env=self.env,
            cwd=self.cwd,
            uid=self.uid,
            gid=self.gid,
            groups=self.groups,
            umask=self.umask,
            wall_ns=_nanoseconds(self.wall_s),
            cpu_ns=_nanoseconds(self.cpu_s),
            cpus_milli=self.cpus_milli,
            rlimits=self.rlimits,
            rows=self.rows,
            columns=self.columns,
        )
        return codec.exec_head(request), codec.exec_tail(request)

    @flags.default  # type: ignore[attr-defined, unused-ignore]
    def _flags(self) -> int:
        return (wire.EXEC_TTY if self.tty else 0) | (wire.EXEC_SAME_CPU if self.same_cpu else 0)

    @plain.default  # type: ignore[attr-defined, unused-ignore]
    def _plain(self) -> bytes:
        head, tail = self.encoded
        links = codec.exec_links(wire.NO_SLOT, 0, wire.NO_SLOT, (), _QUIET)
        return self.flags.to_bytes(4, "little") + head + links + tail

    @args.default  # type: ignore[attr-defined, unused-ignore]
    def _args(self) -> tuple[str, ...]:
        return tuple(map(os.fsdecode, self.argv))


@frozen
class Text:
    """How captured bytes become text; None encoding keeps bytes."""

    encoding: str | None = None
    errors: str = "strict"

    def decode(self, raw: bytes | None, *, cut: bool = False) -> bytes | str | None:
        """Bytes as text, with universal newlines as in subprocess. *cut*: at a limit, perhaps in the middle of a character, which is left out."""
        if raw is None or self.encoding is None:
            return raw
        text = self.decoder()(raw, final=False) if cut else raw.decode(self.encoding, self.errors)
        return text.replace("\r\n", "\n").replace("\r", "\n")

    def decoder(self) -> Decode:
        """For a stream that comes in pieces: remembers half a character until the next."""
        import codecs

        decoder = codecs.getincrementaldecoder(self.encoding or "utf-8")(self.errors)

        def decode(data: bytes, *, final: bool) -> str:
            return decoder.decode(data, final)

        return decode


class Leaves(Protocol):
    """Who makes and removes the control groups of runs."""

    def tidy(self, has_ended: Callable[[], bool]) -> None:
        """Do what can be done while a program runs; *has_ended* says whether it was too short for that."""

    def retire(self, leaf: Leaf) -> None:
        """Take a run's leaf back."""


def encode(spec: Spec, wiring: Wiring, leaf: Leaf | None, *, flags: int = 0, apart: bool = False) -> tuple[bytes, list[int]]:
    """The body of EXEC and its descriptors, each once. *apart*: with a *leaf* the caller has something else to do while the program starts."""
    if leaf is None:
        layout: Layout = (0, 0, False)
        fds: list[int] = []
        if wiring.is_quiet and not flags:
            return spec.plain, fds
    else:
        layout, fds = leaf.layout, leaf.sent_fds
    flags |= spec.flags & ~wire.EXEC_SAME_CPU if apart else spec.flags
    if wiring.is_quiet:
        key = layout, flags
        body = spec.quiet.get(key)
        if body is None:
            body = spec.quiet[key] = _body(spec, flags, _QUIET, 0, layout)
        return body, fds
    own: list[int] = []
    for fd in wiring.inside.values():
        if fd != NULL and fd not in own:
            own.append(fd)
    targets = tuple([(wire.OWN_NULL if fd == NULL else own.index(fd), target) for target, fd in wiring.inside.items()])
    return _body(spec, flags, targets, len(own), layout), [*own, *fds]


def _body(spec: Spec, flags: int, targets: tuple[tuple[int, int], ...], count: int, layout: Layout) -> bytes:
    head, tail = spec.encoded
    return flags.to_bytes(4, "little") + head + _links(targets, count, *layout) + tail


@lru_cache(maxsize=64)
def _links(targets: tuple[tuple[int, int], ...], count: int, joins: int, cpu_format: int, has_cgroup: bool) -> bytes:
    """The references of descriptors: *count* to be passed on, then a leaf's, then the one that tells the CPU time, then its directory."""
    cpu_fd = count + joins if cpu_format else wire.NO_SLOT
    into = count + joins + bool(cpu_format) if has_cgroup else wire.NO_SLOT
    return codec.exec_links(cpu_fd, cpu_format, into, range(count, count + joins), targets)


STEP_WORDS: Final = {
    wire.Step.CLONE: "clone a process for the program",
    wire.Step.CGROUP: "put the program into its control group",
    wire.Step.MARK: "give the program a cgroup namespace of its own",
    wire.Step.TTY: "open a terminal",
    wire.Step.FDS: "arrange the program's descriptors",
    wire.Step.RLIMIT: "set the program's resource limits",
    wire.Step.CWD: "enter the working directory",
    wire.Step.IDS: "take on the user and group",
    wire.Step.EXECVE: "execute the program",
    wire.Step.REQUEST: "read the request",
    wire.Step.BUSY: "start a second program on one channel",
}
MEMORY_HINT: Final = "the container's memory= is used up, by files on its tmpfs perhaps; remove some, or start another container"
_SLOW: Final = "other programs of its user stopped it, or its file could not be read in time: the host is very busy, or its disk slow"
# The second: clone(2) says EAGAIN too when there is no memory for the counters of its user (set_cred_ucounts).
_NO_PROCESS: Final = (
    "a limit on processes is reached (pids=, RLIMIT_NPROC, RLIMIT_SIGPENDING, kernel.pid_max), or the container's memory is used up (memory=)"
)
_HINTS: Final[dict[tuple[int, int], str]] = {
    (wire.Step.EXECVE, ETIMEDOUT): _SLOW,
    (wire.Step.EXECVE, ENOEXEC): "is it a script without '#!', or for another machine?",
    (wire.Step.EXECVE, E2BIG): "argv and env take more than a quarter of RLIMIT_STACK (ulimit -s); pass data by a file or by input",
    (wire.Step.CLONE, EAGAIN): _NO_PROCESS,
    (wire.Step.CGROUP, EAGAIN): _NO_PROCESS,
    (wire.Step.CLONE, EPERM): "init needs clone, timer_create and timer_settime: do not deny them",
    (wire.Step.CLONE, ENOSYS): "init needs clone, timer_create and timer_settime: do not deny them",
}
_MISSING: Final = (ENOENT, ENOTDIR)
_NO_DIRECTORY: Final = {
    ENOENT: "create it first",
    ENOTDIR: "give a directory",
    EACCES: "let that user enter it, or give another user=",
    ELOOP: "it leads through a descriptor, or in a circle; give the directory itself",
}


def start_error(spec: Spec, step: int, errno: int) -> Exception:
    """Words for a program that did not start."""
    program = os.fsdecode(spec.argv[0])
    if step == wire.Step.EXECVE and errno in _MISSING:
        message = f"{program}: no such program inside the container, or none as its '#!' line or ELF header names; looked at {_listed(spec)}"
        return ProgramNotFoundError(message, errno=errno, filename=program)
    if step == wire.Step.EXECVE and errno == 13:
        message = f"{program}: found, but user {spec.uid} may not execute it; is it a file? check its mode, and 'noexec' of its mount"
        return ProgramNotFoundError(message, errno=errno, filename=program)
    if step == wire.Step.CWD and errno in _NO_DIRECTORY:
        advice = _NO_DIRECTORY[errno]
        return UsageError(f"cwd: {os.fsdecode(spec.cwd)}: {os.strerror(errno)} inside the container, for user {spec.uid}; {advice}")
    try:
        words = STEP_WORDS[wire.Step(step)]
    except ValueError:
        return ProtocolError(f"init reports the unknown step {step}")
    return SetupError(f"{words}: {program}", errno, step="exec", hint=_HINTS.get((step, errno), MEMORY_HINT if errno == ENOMEM else ""))


def _listed(spec: Spec) -> str:
    return ", ".join(os.fsdecode(path) for path in spec.candidates[:8])


@lru_cache(maxsize=512)
def candidates_for(program: bytes, path: str) -> tuple[bytes, ...]:
    """Where execve looks: the program itself when it names a path, else each directory of PATH."""
    if b"/" in program:
        return (program,)
    places = [part for part in os.fsencode(path).split(b":") if part.startswith(b"/")]
    if not places:
        raise UsageError(f"argv: {os.fsdecode(program)!r} has no '/', and PATH names no absolute directory to look for it")
    return tuple(place.rstrip(b"/") + b"/" + program for place in places[:64])
