"""Strategies for every operation and request that the codec encodes."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from sandbox import _plan as plan
from sandbox._launch import codec, wire

U8, U16, U32, U64 = (st.integers(0, 2**bits - 1) for bits in (8, 16, 32, 64))
WORDS = st.binary(max_size=40).map(lambda raw: raw.replace(b"\0", b"\1"))
TEXTS = WORDS.map(lambda raw: raw.decode("utf-8", "surrogateescape"))
FLAGS = st.booleans()
SLOTS = st.sampled_from([f"slot{n}" for n in range(8)])
PLACES = st.one_of(SLOTS, st.just(plan.HOST), st.sampled_from([f"@{role}" for role in (plan.ROLE_ROOT, plan.ROLE_PROC, plan.ROLE_PTS, plan.ROLE_UPPER)]))
OPTIONS = st.tuples(TEXTS, st.one_of(st.none(), TEXTS, st.builds(plan.FdPath, SLOTS, TEXTS)))

# By name of field; the same field has the same meaning in every operation.
FIELDS: dict[str, SearchStrategy[object]] = {
    **dict.fromkeys(("optional", "recursive", "idmap", "directory", "listen", "classic"), FLAGS),
    **dict.fromkeys(("out", "slot", "like", "file_slot", "dir_slot"), SLOTS),
    **dict.fromkeys(("at", "src", "same_as"), PLACES),
    **dict.fromkeys(("path", "name", "target", "fstype"), TEXTS),
    **dict.fromkeys(("set", "clear", "propagation", "resolve", "keep", "handled_fs", "handled_net", "scoped"), U64),
    **dict.fromkeys(("uid", "gid", "attrs", "kind", "domain", "type", "protocol"), U32),
    **dict.fromkeys(("offset", "start"), U64),
    **dict.fromkeys(("last", "mark", "interface", "where"), U32),
    "named": st.one_of(SLOTS, st.just(plan.HOST)),
    "size": st.integers(0, 1 << 20),
    "seconds": st.integers(-(2**63), 2**63 - 1),
    "nanoseconds": U32,
    "mode": st.integers(0, 0o7777),
    "flags": U32,
    "data": st.binary(max_size=60),
    "options": st.lists(OPTIONS, max_size=4).map(tuple),
    "rules": st.lists(st.tuples(SLOTS, U64), max_size=4).map(tuple),
    "program": st.binary(min_size=1, max_size=6).map(lambda raw: raw * 8),
    "policy": st.binary(max_size=6).map(lambda raw: raw * 8),
    "role": st.sampled_from([plan.ROLE_ROOT, plan.ROLE_PROC, plan.ROLE_PTS, plan.ROLE_LAST_PID, plan.ROLE_UPPER]),
    "place": st.builds(plan.FdPath, SLOTS, TEXTS),
}


def _operation(kind: type[plan.Op]) -> SearchStrategy[plan.Op]:
    return st.builds(kind, **{a.name: FIELDS[a.name] for a in kind.__attrs_attrs__})  # type: ignore[attr-defined]


# Not Op.__subclasses__(): attrs makes a second class for the slots, and the first one lingers.
KINDS = [kind for kind in vars(plan).values() if isinstance(kind, type) and issubclass(kind, plan.Op) and kind is not plan.Op]
BY_KIND = {kind: _operation(kind) for kind in KINDS}
OPERATIONS: SearchStrategy[plan.Op] = st.one_of(*BY_KIND.values())


@st.composite
def executions(draw: st.DrawFn, fds: int) -> codec.ExecRequest:
    """A request that the C side takes, with *fds* descriptors beside it."""
    references = st.integers(0, fds - 1)
    maybe = st.one_of(st.just(wire.NO_SLOT), references)
    return codec.ExecRequest(
        argv=tuple(draw(st.lists(WORDS, min_size=1, max_size=6))) * draw(st.sampled_from([1, 1, 1, 600])),
        candidates=tuple(draw(st.lists(WORDS, min_size=1, max_size=5))),
        env=tuple(draw(st.lists(WORDS, max_size=5))),
        cwd=draw(WORDS),
        uid=draw(U32),
        gid=draw(U32),
        groups=draw(st.one_of(st.none(), st.lists(U32, max_size=64).map(tuple))),
        umask=draw(U32),
        wall_ns=draw(U64),
        cpu_ns=draw(U64),
        cpus_milli=draw(U32),
        cpu_fd=draw(maybe),
        cpu_format=draw(U8),
        into_cgroup=draw(maybe),
        joins=tuple(draw(st.lists(references, max_size=16))),
        fds=tuple(draw(st.lists(st.tuples(references, st.integers(0, 1 << 20)), max_size=20))),
        rlimits=tuple(draw(st.lists(st.tuples(U32, U64, U64), max_size=16))),
        rows=draw(U16),
        columns=draw(U16),
        flags=draw(U32),
    )


@st.composite
def creations(draw: st.DrawFn, fds: int) -> codec.CreateRequest:
    """A creation that the launcher takes; slot 0 is the channel."""
    slots = st.integers(1, fds - 1)
    paths = WORDS.map(lambda raw: b"/" + raw.replace(b".", b"-"))
    return codec.CreateRequest(
        clone_flags=draw(U64),
        flags=draw(U32),
        uid=draw(U32),
        gid=draw(U32),
        uid_map=codec.text(draw(WORDS)),
        gid_map=codec.text(draw(WORDS)),
        joins=tuple(draw(st.lists(st.tuples(slots, U32), max_size=16))),
        cleanup=tuple(draw(st.lists(paths, max_size=5))),
        groups=draw(st.binary(max_size=50)),
        host_ops=draw(st.binary(max_size=50)),
        init_ops=draw(st.binary(max_size=50)),
        exec=draw(st.binary(max_size=50)),
        into_cgroup=draw(st.one_of(st.just(wire.NO_SLOT), slots)),
    )
