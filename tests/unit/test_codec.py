"""The codec against a second, plainer one that is written here; and against bytes that nobody meant to send."""

from __future__ import annotations

import struct

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox import _plan as plan
from sandbox._launch import codec, wire
from sandbox.errors import ProtocolError
from tests.unit.plans import BY_KIND, KINDS, OPERATIONS, U32, U64, WORDS, creations, executions

I32 = st.integers(-(2**31), 2**31 - 1)


class Bytes:
    """Reads what wire.md describes, one field at a time."""

    def __init__(self, raw: bytes) -> None:
        self.raw = raw

    def take(self, size: int) -> bytes:
        assert size <= len(self.raw)
        taken, self.raw = self.raw[:size], self.raw[size:]
        return taken

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")

    def numbers(self, *sizes: int) -> tuple[int, ...]:
        return tuple(self.number(size) for size in sizes)

    def block(self) -> bytes:
        return self.take(self.number(4))

    def text(self) -> bytes:
        value = self.block()
        assert self.take(1) == b"\0"
        return value

    def texts(self, count: int) -> tuple[bytes, ...]:
        return tuple(self.text() for _ in range(count))

    def end(self) -> None:
        assert self.raw == b""


def read_exec(raw: bytes) -> codec.ExecRequest:
    b = Bytes(raw)
    flags, uid, gid, count = b.numbers(4, 4, 4, 4)
    groups = None if count == 0xFFFFFFFF else b.numbers(*[4] * count)
    cwd = b.text()
    umask, wall, cpu, milli, cpu_fd, cpu_format, into = b.numbers(4, 8, 8, 4, 2, 1, 2)
    joins = b.numbers(*[2] * b.number(2))
    fds = tuple((b.number(2), b.number(4)) for _ in range(b.number(2)))
    limits = tuple((b.number(4), b.number(8), b.number(8)) for _ in range(b.number(2)))
    rows, columns, count = b.numbers(2, 2, 4)
    candidates = b.texts(count)
    argc, envc = b.numbers(4, 4)
    argv, env = b.texts(argc), b.texts(envc)
    b.end()
    return codec.ExecRequest(
        argv, candidates, env, cwd, uid, gid, groups, umask, wall, cpu, milli, cpu_fd, cpu_format, into, joins, fds, limits, rows, columns, flags
    )


def read_create(raw: bytes) -> codec.CreateRequest:
    b = Bytes(raw)
    clone_flags, flags, uid, gid = b.numbers(8, 4, 4, 4)
    maps = [codec.text(b.text()), codec.text(b.text())]
    into, count = b.numbers(2, 2)
    joins = tuple((b.number(2), b.number(4)) for _ in range(count))
    cleanup = b.texts(b.number(4))
    groups, host_ops, init_ops, request = b.block(), b.block(), b.block(), b.block()
    b.end()
    return codec.CreateRequest(clone_flags, flags, uid, gid, maps[0], maps[1], joins, cleanup, groups, host_ops, init_ops, request, into)


@given(executions(250))
def test_executions_come_back(request: codec.ExecRequest) -> None:
    assert read_exec(codec.encode_exec(request)) == request


@given(creations(250))
def test_creations_come_back(request: codec.CreateRequest) -> None:
    assert read_create(codec.encode_create(request)) == request


def test_every_operation_has_an_encoder() -> None:
    assert set(codec._ENCODERS) == set(KINDS)


def test_every_operation_has_its_own_code() -> None:
    codes = sorted(op.CODE for op in KINDS)
    assert codes == list(range(1, len(codes) + 1))


@pytest.mark.parametrize("kind", BY_KIND, ids=lambda kind: kind.__name__)
def test_every_operation_encodes(kind: type[plan.Op]) -> None:
    @given(BY_KIND[kind])
    def check(op: plan.Op) -> None:
        b = Bytes(codec.encode_op(op, codec.SlotTable()))
        assert b.numbers(2, 2) == (kind.CODE, int(bool(getattr(op, "optional", False))))
        b.block()
        b.end()

    check()


@given(st.lists(OPERATIONS))
def test_operations_are_joined_without_a_gap(ops: list[plan.Op]) -> None:
    b = Bytes(codec.encode_ops(ops, codec.SlotTable()))
    codes = []
    while b.raw:
        codes.append(b.number(2))
        b.take(2)
        b.block()
    assert codes == [op.CODE for op in ops]


@given(st.lists(st.text(min_size=1).filter(lambda name: name[0] != "@"), max_size=100), st.integers(0, 3))
def test_slots_are_numbered_in_the_order_of_first_use(names: list[str], first: int) -> None:
    theirs, own = names[:3], names[3:]
    table = codec.SlotTable(theirs, first=first)
    given_out = [table.number(name) for name in names]
    order = list(dict.fromkeys(theirs))
    ours = [name for name in dict.fromkeys(own) if name not in order]
    assert given_out == [first + order.index(name) if name in order else wire.OWN_SLOTS + ours.index(name) for name in names]
    assert [table.number(name) for name in names] == given_out


def test_host_and_roles_are_no_numbers_of_the_table() -> None:
    table = codec.SlotTable()
    assert (table.number(plan.HOST), table.number(f"@{plan.ROLE_PROC}")) == (wire.NO_SLOT, wire.ROLE_SLOT + plan.ROLE_PROC)
    assert table == {}


def test_more_slots_than_there_are_is_an_error() -> None:
    table = codec.SlotTable()
    for n in range(wire.OWN_SLOTS, wire.SLOTS):
        table.number(str(n))
    with pytest.raises(ProtocolError, match="more than"):
        table.number("one more")
    with pytest.raises(ProtocolError, match="more than"):
        codec.SlotTable(str(n) for n in range(wire.OWN_SLOTS))


def test_operations_that_take_nothing_from_outside_have_the_same_bytes_in_every_request() -> None:
    ops = [plan.NewFs("a", "tmpfs"), plan.Attach("a", "/")]
    alone, beside = codec.SlotTable(), codec.SlotTable(["x", "y"])
    assert codec.encode_ops(ops, alone) == codec.encode_ops(ops, beside)


def test_a_nul_in_a_string_never_reaches_the_wire() -> None:
    with pytest.raises(ProtocolError, match="NUL"):
        codec.text("a\0b")


@given(WORDS)
def test_names_that_are_not_utf8_pass_unchanged(raw: bytes) -> None:
    assert Bytes(codec.text(raw.decode("utf-8", "surrogateescape"))).text() == codec.text(raw)[4:-1] == raw


# ---- What comes back: from an init that may have been taken over ----

ERRNO = st.integers(0, 4095)
WAIT_STATUS = st.one_of(st.integers(0, 255).map(lambda code: code << 8), st.integers(1, 0x7E), st.integers(0x81, 0xFE))
ENDS = st.one_of(
    st.builds(codec.End, st.integers(0, 4), WAIT_STATUS, I32, *[U64] * 12),
    st.builds(codec.End, st.just(5), I32, ERRNO, *[U64] * 12),
)
EVENTS: dict[type, st.SearchStrategy[codec.Event]] = {
    codec.Cloned: st.builds(codec.Cloned, U32),
    codec.Gone: st.builds(codec.Gone, I32, U64, U64, U64),
    codec.Failed: st.builds(codec.Failed, st.integers(0, 255), U32, U32, ERRNO),
    codec.Ready: st.builds(codec.Ready, st.lists(st.tuples(U32, I32), max_size=32).map(tuple)),
    codec.Started: st.builds(codec.Started, U32),
    codec.End: ENDS,
    codec.Done: st.builds(codec.Done, ERRNO, U32),
}
LAYOUTS = {codec.Cloned: "I", codec.Gone: "iQQQ", codec.Failed: "BIII", codec.Started: "I", codec.End: "Bii12Q", codec.Done: "II"}
EVENT = st.one_of(*EVENTS.values())


def write_event(event: codec.Event) -> bytes:
    """What the C side sends: `wr_u8` and its kin, one after the other."""
    kind = wire.Msg[type(event).__name__.upper()]
    if isinstance(event, codec.Ready):
        body = struct.pack("<I", len(event.skipped)) + b"".join(struct.pack("<Ii", *entry) for entry in event.skipped)
    else:
        body = struct.pack("<" + LAYOUTS[type(event)], *(event if isinstance(event, codec.End) else attrs.astuple(event, recurse=False)))
    return struct.pack("<HHI", kind, 0, len(body)) + body


@given(EVENT)
def test_events_come_back(event: codec.Event) -> None:
    found = codec.decode(write_event(event))
    assert (type(found), found) == (type(event), event)


IMPOSSIBLE = {
    "stopped": codec.End(0, 0x137F, 0, *[0] * 12),
    "continued": codec.End(0, 0xFFFF, 0, *[0] * 12),
    "negative status": codec.End(0, -1, 0, *[0] * 12),
    "unknown cause": codec.End(6, 0, 0, *[0] * 12),
    "negative errno": codec.End(5, 9, -1, *[0] * 12),
    "large errno": codec.Done(4096, 0),
    "errno that is no int": codec.Failed(4, 0, 0, 2**32 - 1),
}


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_events_that_cannot_be_are_refused(name: str) -> None:
    with pytest.raises(ProtocolError):
        codec.decode(write_event(IMPOSSIBLE[name]))


def test_every_answer_is_decoded() -> None:
    events = {kind for kind in wire.Msg if kind >= wire.Msg.CLONED} - {wire.Msg.OPENED}  # which comes on a socket of its own: see `Deliveries`
    assert set(codec._DECODERS) == events == {wire.Msg[kind.__name__.upper()] for kind in EVENTS}


def decode_or_refuse(raw: bytes) -> codec.Event | None:
    try:
        return codec.decode(raw)
    except ProtocolError:
        return None


@given(st.binary(max_size=200))
def test_random_bytes_are_refused_as_such(raw: bytes) -> None:
    decode_or_refuse(raw)


@given(st.sampled_from([*wire.Msg, 0, 63, 71, 65535]), st.binary(max_size=120))
def test_random_bodies_are_refused_as_such(kind: int, body: bytes) -> None:
    event = decode_or_refuse(wire.HEAD.pack(kind, 0, len(body)) + body)
    assert event is None or write_event(event)[8:] == body


@given(EVENT, st.data())
def test_mutated_events_are_refused_or_mean_what_they_say(event: codec.Event, data: st.DataObject) -> None:
    raw = bytearray(write_event(event))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    decoded = decode_or_refuse(bytes(raw))
    assert decoded is None or write_event(decoded) == bytes(raw)


@given(EVENT, st.data())
def test_truncated_and_lengthened_events_are_refused(event: codec.Event, data: st.DataObject) -> None:
    raw = write_event(event)
    assert decode_or_refuse(raw[: data.draw(st.integers(0, len(raw) - 1))]) is None
    assert decode_or_refuse(raw + data.draw(st.binary(min_size=1, max_size=20))) is None


def test_a_body_in_a_memfd_is_not_for_us() -> None:
    with pytest.raises(ProtocolError):
        codec.decode(wire.HEAD.pack(wire.Msg.CLONED, wire.HEAD_MEMFD, 4) + b"\0\0\0\0")


_path = st.binary(max_size=20).map(lambda raw: raw.replace(b"\0", b"/"))
_named = st.tuples(st.sampled_from(wire.GroupStep), _path, _path, _path)


@given(st.lists(_named, max_size=8), st.binary(min_size=1, max_size=12).map(lambda raw: raw.replace(b"\0", b"?")))
def test_a_name_joins_its_steps_to_their_encoding(steps: list[tuple[wire.GroupStep, bytes, bytes, bytes]], name: bytes) -> None:
    whole = codec.encode_steps([(what, before + name + after, value) for what, before, after, value in steps])
    assert name.join(codec.named_steps(steps, len(name))) == whole


def test_values_that_share_a_repr_have_the_one_that_attrs_would_make():
    one = plan.NewFs("out", "tmpfs", (("size", "1M"),), optional=True)
    made = attrs.make_class("NewFs", [field.name for field in attrs.fields(plan.NewFs)], slots=True)
    assert repr(one) == repr(made(*attrs.astuple(one, recurse=False))) == "NewFs(out='out', fstype='tmpfs', options=(('size', '1M'),), attrs=0, optional=True)"
