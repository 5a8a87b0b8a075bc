"""The codec of wire.md: values in, bytes out, and back. No I/O, so that drivers, tests and fuzzers share it."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple

from attrs import frozen

from sandbox import _plan as plan
from sandbox._launch import wire
from sandbox.errors import ProtocolError

_U16: Final = struct.Struct("<H").pack
_U32: Final = struct.Struct("<I").pack
_U64: Final = struct.Struct("<Q").pack
_ROLES: Final = {f"@{role}": wire.ROLE_SLOT + role for role in (plan.ROLE_ROOT, plan.ROLE_PROC, plan.ROLE_PTS, plan.ROLE_UPPER, plan.ROLE_UNSEALED)}
Slots = Mapping[str, int]


def text(value: str | bytes) -> bytes:
    """A string: u32 length, bytes, NUL (which the length does not count)."""
    raw = value if isinstance(value, bytes) else value.encode("utf-8", "surrogateescape")
    if b"\0" in raw:
        raise ProtocolError(f"a string with a NUL byte reached the codec: {raw[:40]!r}")
    return b"%b%b\0" % (_U32(len(raw)), raw)


def block(raw: bytes) -> bytes:
    """Bytes with their u32 length in front."""
    return _U32(len(raw)) + raw


class SlotTable(dict[str, int]):
    """Names of slots to numbers, given out in the order of first use; 0 is the channel.

    *names* are the descriptors that come with the request, from *first* on; what operations open is numbered from *own* on. So
    operations that take nothing from outside get the same bytes, whatever else a request has.
    """

    def number(self, name: str) -> int:
        """The number of *name*; HOST is NO_SLOT, ``@ROLE`` a directory that init keeps."""
        if name == plan.HOST:
            return wire.NO_SLOT
        if name[0] == "@":
            return _ROLES[name]
        found = self.get(name)
        if found is None:
            found = self[name] = self._next
            self._next += 1
            if found >= wire.SLOTS:
                raise ProtocolError(f"a plan with more than {wire.SLOTS} descriptors")
        return found

    def __init__(self, names: Iterable[str] = (), *, first: int = 1, own: int = wire.OWN_SLOTS) -> None:
        super().__init__()
        self._next = first
        for name in names:
            self.number(name)
        if self._next > own:
            raise ProtocolError(f"a request with more than {own - first} descriptors")
        self._next = own


def _new_fs(op: plan.NewFs, s: SlotTable) -> bytes:
    return _U16(s.number(op.out)) + text(op.fstype) + _U32(op.attrs) + _options(op.options, s)


def _new_overlay(op: plan.NewOverlay, s: SlotTable) -> bytes:
    place = _U16(s.number(op.place.slot)) + text(op.place.suffix) + bytes([op.classic])
    return _U16(s.number(op.out)) + place + _U32(op.attrs) + _options(op.options, s)


def _options(options: Sequence[tuple[str, str | plan.FdPath | None]], s: SlotTable) -> bytes:
    parts = [_U32(len(options))]
    for key, value in options:
        if value is None:
            parts.append(b"\0" + text(key))
        elif isinstance(value, plan.FdPath):
            parts.append(b"\2" + text(key) + _U16(s.number(value.slot)) + text(value.suffix))
        else:
            parts.append(b"\1" + text(key) + text(value))
    return b"".join(parts)


def _open(op: plan.Open, s: SlotTable) -> bytes:
    mode = op.mode if op.flags & (_O_CREAT | _O_TMPFILE) else 0
    head = _U16(s.number(op.out)) + _U16(s.number(op.at)) + _U16(s.number(op.same_as)) + text(op.path)
    return head + struct.pack("<QQQ", op.flags, mode, op.resolve)


def _file(op: plan.WriteFile | plan.WriteFrom, s: SlotTable) -> bytes:
    return _U16(s.number(op.at)) + text(op.path) + struct.pack("<IIIQ", op.mode, op.uid, op.gid, op.offset)


def _landlock(op: plan.Landlock, s: SlotTable) -> bytes:
    head = struct.pack("<QQQI", op.handled_fs, op.handled_net, op.scoped, len(op.rules))
    return head + b"".join(_U16(s.number(slot)) + _U64(access) for slot, access in op.rules)


_O_CREAT: Final = 0o100
_O_TMPFILE: Final = 0o20000000
_ENCODERS: Final[dict[type[plan.Op], Callable[[Any, SlotTable], bytes]]] = {
    plan.Unshare: lambda o, s: _U64(o.flags),
    plan.SetHostname: lambda o, s: text(o.name),
    plan.SetDomainname: lambda o, s: text(o.name),
    plan.LoopbackUp: lambda o, s: b"",
    plan.MakePrivate: lambda o, s: b"",
    plan.NewFs: _new_fs,
    plan.Attach: lambda o, s: _U16(s.number(o.slot)) + _U16(s.number(o.at)) + text(o.path),
    plan.Open: _open,
    plan.CloneTree: lambda o, s: _U16(s.number(o.out)) + _U16(s.number(o.src)) + text(o.path) + bytes([o.recursive]),
    plan.SetAttr: lambda o, s: _U16(s.number(o.slot)) + struct.pack("<QQQ???", o.set, o.clear, o.propagation, o.recursive, o.idmap, o.classic),
    plan.MakeDir: lambda o, s: _U16(s.number(o.at)) + text(o.path) + struct.pack("<III", o.mode, o.uid, o.gid),
    plan.Symlink: lambda o, s: _U16(s.number(o.at)) + text(o.path) + text(o.target) + struct.pack("<II", o.uid, o.gid),
    plan.WriteFile: lambda o, s: _file(o, s) + block(o.data),
    plan.WriteFrom: lambda o, s: _file(o, s) + struct.pack("<HQI", s.number(o.slot), o.start, o.size),
    plan.MakeTarget: lambda o, s: _U16(s.number(o.at)) + _U16(s.number(o.like)) + text(o.path),
    plan.Pivot: lambda o, s: _U16(s.number(o.slot)),
    plan.Chdir: lambda o, s: text(o.path),
    plan.WriteProc: lambda o, s: _U16(s.number(o.at)) + text(o.path) + block(o.data),
    plan.DropBounding: lambda o, s: _U64(o.keep),
    plan.NoNewPrivs: lambda o, s: b"",
    plan.Landlock: _landlock,
    plan.Seccomp: lambda o, s: _U32(o.flags) + bytes([o.listen]) + block(o.program) + block(o.policy),
    plan.Close: lambda o, s: _U16(s.number(o.slot)),
    plan.Mask: lambda o, s: _U16(s.number(o.at)) + _U16(s.number(o.file_slot)) + _U16(s.number(o.dir_slot)) + text(o.path),
    plan.ReadOnlyPath: lambda o, s: _U16(s.number(o.at)) + text(o.path) + bytes([o.classic]),
    plan.Sethook: lambda o, s: _U16(s.number(o.slot)) + _U32(o.role),
    plan.BindMount: lambda o, s: _U16(s.number(o.src)) + text(o.path),
    plan.Setns: lambda o, s: _U16(s.number(o.slot)) + _U32(o.kind),
    plan.Unlink: lambda o, s: _U16(s.number(o.at)) + text(o.path) + bytes([o.directory]),
    plan.Unmount: lambda o, s: text(o.path),
    plan.SetTimes: lambda o, s: _U16(s.number(o.at)) + text(o.path) + struct.pack("<qI", o.seconds, o.nanoseconds),
    plan.Remove: lambda o, s: _U16(s.number(o.at)) + text(o.path) + bytes([o.recursive]),
    plan.NewOverlay: _new_overlay,
    plan.Socket: lambda o, s: _U16(s.number(o.out)) + _U32(o.domain) + _U32(o.type) + _U32(o.protocol),
    plan.Netlink: lambda o, s: _U16(s.number(o.slot)) + _U16(s.number(o.named)) + _U32(o.mark) + _U32(o.last) + block(o.data),
    plan.LinkProgram: lambda o, s: _U16(s.number(o.out)) + _U16(s.number(o.slot)) + _U32(o.interface) + _U32(o.where),
    plan.CopyTree: lambda o, s: _U16(s.number(o.src)) + _U16(s.number(o.at)) + text(o.path),
}


def encode_op(op: plan.Op, slots: SlotTable) -> bytes:
    """One operation: u16 code, u16 flags, u32 length, body."""
    body = _ENCODERS[type(op)](op, slots)
    return struct.pack("<HHI", op.CODE, bool(getattr(op, "optional", False)), len(body)) + body


def encode_ops(ops: Sequence[plan.Op], slots: SlotTable) -> bytes:
    """Operations without the count in front, so that encoded pieces can be joined."""
    return b"".join([encode_op(op, slots) for op in ops])


def encode_maps(maps: Sequence[plan.IdMap]) -> bytes:
    """The text of uid_map and gid_map: ``inside outside count`` a line."""
    return text("".join(f"{m.inside} {m.outside} {m.count}\n" for m in maps))


@frozen
class ExecRequest:
    """One program to start. Descriptors are given as references: numbers in the list that travels with the message."""

    argv: tuple[bytes, ...]
    candidates: tuple[bytes, ...]
    env: tuple[bytes, ...] = ()
    cwd: bytes = b"/"
    uid: int = 0
    gid: int = 0
    groups: tuple[int, ...] | None = ()
    umask: int = 0o022
    wall_ns: int = 0
    cpu_ns: int = 0
    cpus_milli: int = 1000
    cpu_fd: int = wire.NO_SLOT
    cpu_format: int = 0
    into_cgroup: int = wire.NO_SLOT
    joins: tuple[int, ...] = ()
    fds: tuple[tuple[int, int], ...] = ()
    rlimits: tuple[tuple[int, int, int], ...] = ()
    rows: int = 0
    columns: int = 0
    flags: int = 0


def encode_exec(x: ExecRequest) -> bytes:
    """The body of EXEC, also the last block of CREATE."""
    return _U32(x.flags) + exec_head(x) + exec_links(x.cpu_fd, x.cpu_format, x.into_cgroup, x.joins, x.fds) + exec_tail(x)


def exec_head(x: ExecRequest) -> bytes:
    """The part between the flags and the descriptors: the same for each run of one program."""
    groups = b"\xff\xff\xff\xff" if x.groups is None else struct.pack(f"<I{len(x.groups)}I", len(x.groups), *x.groups)
    ids = struct.pack("<II", x.uid, x.gid)
    return ids + groups + text(x.cwd) + struct.pack("<IQQI", x.umask, x.wall_ns, x.cpu_ns, x.cpus_milli)


def exec_links(cpu_fd: int, cpu_format: int, into_cgroup: int, joins: Sequence[int], fds: Sequence[tuple[int, int]]) -> bytes:
    """The descriptors: references, which differ from run to run."""
    flat = [number for pair in fds for number in pair]
    return struct.pack(f"<HBHH{len(joins)}HH{'HI' * len(fds)}", cpu_fd, cpu_format, into_cgroup, len(joins), *joins, len(fds), *flat)


def exec_tail(x: ExecRequest) -> bytes:
    """The part after the descriptors: the same for each run of one program."""
    parts = [
        encode_rlimits(x.rlimits),
        struct.pack("<HHI", x.rows, x.columns, len(x.candidates)),
        encode_strings(x.candidates),
        struct.pack("<II", len(x.argv), len(x.env)),
        b"".join([text(arg) for arg in x.argv]),
        encode_strings(x.env),
    ]
    return b"".join(parts)


@lru_cache(maxsize=64)
def encode_rlimits(rlimits: tuple[tuple[int, int, int], ...]) -> bytes:
    """A count, and (resource, soft, hard) each. Cached: most programs of a container have the same."""
    return _U16(len(rlimits)) + b"".join([struct.pack("<IQQ", *limit) for limit in rlimits])


@lru_cache(maxsize=256)
def encode_strings(strings: tuple[bytes, ...]) -> bytes:
    """Strings without their count. Cached: environments and search paths come again and again."""
    return b"".join([text(string) for string in strings])


@frozen
class CreateRequest:
    """A container (or helper process) to clone; *host_ops* and *init_ops* are encoded, with their counts."""

    clone_flags: int
    flags: int
    uid: int
    gid: int
    uid_map: bytes
    gid_map: bytes
    joins: tuple[tuple[int, int], ...]
    cleanup: tuple[bytes, ...]
    groups: bytes
    host_ops: bytes
    init_ops: bytes
    exec: bytes
    into_cgroup: int = wire.NO_SLOT


def encode_create(c: CreateRequest) -> bytes:
    """The body of CREATE."""
    parts = [
        struct.pack("<QIII", c.clone_flags, c.flags, c.uid, c.gid),
        c.uid_map,
        c.gid_map,
        struct.pack("<HH", c.into_cgroup, len(c.joins)),
        b"".join([struct.pack("<HI", slot, kind) for slot, kind in c.joins]),
        encode_paths(c.cleanup),
        block(c.groups),
        block(c.host_ops),
        block(c.init_ops),
        block(c.exec),
    ]
    return b"".join(parts)


def encode_complete(pid: int, host_ops: bytes, init_ops: bytes) -> bytes:
    """The body of COMPLETE; both blocks with their counts."""
    return _U32(pid) + block(host_ops) + block(init_ops)


def encode_steps(steps: Iterable[tuple[wire.GroupStep, bytes, bytes]]) -> bytes:
    """Steps with control groups: what, path, and the value to write (empty for the others)."""
    return b"".join([b"%c%b%b" % (what, text(path), text(value)) for what, path, value in steps])


def named_steps(steps: Iterable[tuple[wire.GroupStep, bytes, bytes, bytes]], size: int) -> list[bytes]:
    """What a name of *size* bytes joins to encoded steps; each is what, the path before the name and after it, and the value to write."""
    pieces: list[bytes] = []
    last = b""
    for what, before, after, value in steps:
        path = text(before + b"?" * size + after)
        start = 4 + len(before)  # behind the length
        pieces.append(b"%b%c%b" % (last, what, path[:start]))
        last = path[start + size :] + text(value)
    return [*pieces, last]


def encode_groups(pid: int, steps: Iterable[bytes]) -> bytes:
    """The body of GROUPS, of encoded steps."""
    return _U32(pid) + b"".join(steps)


def encode_finish(pid: int, left: bytes) -> bytes:
    """The body of FINISH; *left* names the file that tells how much memory is left in the container's control group."""
    return _U32(pid) + text(left)


def encode_paths(paths: tuple[bytes, ...]) -> bytes:
    """A count and strings: the body of CLEANUP, and a part of CREATE."""
    return _U32(len(paths)) + encode_strings(paths)


# ---- What comes back. The sender may be an init that was taken over: everything is bounded and checked. ----


@frozen
class Cloned:
    pid: int


@frozen
class Gone:
    status: int
    user_us: int
    system_us: int
    max_rss_kib: int


@frozen
class Failed:
    phase: int
    index: int
    step: int
    errno: int


@frozen
class Ready:
    skipped: tuple[tuple[int, int], ...]


@frozen
class Started:
    pid: int


class End(NamedTuple):  # one for each program that runs: a frozen class takes three times as long to make
    cause: int
    status: int
    detail: int
    wall_ns: int
    cpu_ns: int
    user_us: int
    system_us: int
    max_rss_kib: int
    minor_faults: int
    major_faults: int
    voluntary_switches: int
    involuntary_switches: int
    blocks_in: int
    blocks_out: int
    setup_ns: int


@frozen
class Done:
    errno: int
    index: int


Event = Cloned | Gone | Failed | Ready | Started | End | Done
CARRIERS: Final = (Cloned, Started, Done)  # the others come without descriptors
_MAX_ERRNO: Final = 4095  # linux/err.h


def _ready(body: bytes) -> Ready:
    (count,) = struct.unpack_from("<I", body)
    if len(body) != 4 + 8 * count:
        raise struct.error("wrong length")
    return Ready(tuple(struct.iter_unpack("<Ii", body[4:])))


def _fixed(layout: str, kind: Callable[..., Event]) -> Callable[[bytes], Event]:
    unpack = struct.Struct(layout).unpack
    return lambda body: kind(*unpack(body))


def _end() -> Callable[[bytes], Event]:
    unpack, make = struct.Struct("<Bii12Q").unpack, End._make

    def end(body: bytes) -> End:
        event = make(unpack(body))
        cause, status = event[0], event[1]
        if not cause and not status:  # by far the most
            return event
        if cause == wire.Cause.NOT_STARTED:
            _check_errno(event.detail)
        elif cause > wire.Cause.NOT_STARTED or not 0 <= status <= 0xFFFF or status & 0x7F == 0x7F:
            # wait(2): 0x7f stands for stopped, 0xffff for continued; neither is an end.
            raise ProtocolError(f"END with cause {cause} and wait status {status:#x}")
        return event

    return end


def _with_errno(layout: str, kind: Callable[..., Failed | Done]) -> Callable[[bytes], Event]:
    unpack = struct.Struct(layout).unpack

    def event(body: bytes) -> Event:
        made = kind(*unpack(body))
        _check_errno(made.errno)
        return made

    return event


def _check_errno(number: int) -> None:
    # strerror(3) takes an int, and raises OverflowError for what is none.
    if not 0 <= number <= _MAX_ERRNO:
        raise ProtocolError(f"{number} is no error number")


_DECODERS: Final[dict[int, Callable[[bytes], Event]]] = {
    wire.Msg.CLONED: _fixed("<I", Cloned),
    wire.Msg.GONE: _fixed("<iQQQ", Gone),
    wire.Msg.FAILED: _with_errno("<BIII", Failed),
    wire.Msg.READY: _ready,
    wire.Msg.STARTED: _fixed("<I", Started),
    wire.Msg.END: _end(),
    wire.Msg.DONE: _with_errno("<II", Done),
}


def decode(raw: bytes) -> Event:
    """One datagram from the launcher or from init.

    Raises: ProtocolError when it is anything but one whole message of wire.md.
    """
    try:
        kind, flags, length = wire.HEAD.unpack_from(raw)
        if flags or length != len(raw) - wire.HEAD.size:
            raise ProtocolError(f"a message of kind {kind} with flags {flags} and length {length} in {len(raw)} bytes")
        return _DECODERS[kind](raw[wire.HEAD.size :])
    except (struct.error, KeyError) as error:
        raise ProtocolError(f"not a message of wire.md: {raw[:32]!r} ({error})") from None
