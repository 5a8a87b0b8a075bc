"""Tables, chains, rules and sets of nf_tables as values, and the transaction that says what becomes of them. Touches nothing."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, Literal, Self, cast

from attrs import define, field, frozen

from sandbox.errors import UsageError
from sandbox.net import _nft_wire as wire
from sandbox.net import netlink
from sandbox.net._nft_rules import Kind, Range, Statement, Verdict, expressions_of
from sandbox.net._nft_wire import Attribute, Message, text, u32, u64

Family = Literal["ip", "ip6", "inet", "bridge", "netdev"]
VERDICT: Final = "verdict"  # the data of a map for `vmap`

_HOOKS: Final = {"prerouting": 0, "input": 1, "forward": 2, "output": 3, "postrouting": 4}
_HOOKS_OF: Final = {"netdev": {"ingress": 0, "egress": 1}, "inet": {**_HOOKS, "ingress": 5}}
POLICIES: Final = ("drop", "accept")  # NF_DROP, NF_ACCEPT
_OWNER: Final = 2  # NFT_TABLE_F_OWNER
_INTERVAL, _MAP, _TIMEOUT, _EVAL, _CONCAT = 0x4, 0x8, 0x10, 0x20, 0x80  # NFT_SET_*
INTERVAL_END: Final = 1  # NFT_SET_ELEMINTERVAL_END
_VERDICT_DATA: Final = 0xFFFFFF00  # NFT_DATA_VERDICT
_TYPE_BITS: Final = 6  # of each type in the number of a concatenation, nft's
_PER_MESSAGE: Final = 400  # elements: the list's length is 16 bits, an element has at most about 120 bytes


@frozen
class Table:
    """*owner*: of the socket that makes it, with which it goes. Needs then: Linux 5.12."""

    family: Family
    name: str
    owner: bool = field(default=False, kw_only=True)


@frozen
class Chain:
    """Rules in their order. *hook*: where packets come into it (*priority*: among those of that hook, lower is earlier); None: by a jump.

    device: of family netdev, the interface. policy: what becomes of a packet that comes to the end.
    """

    table: Table
    name: str
    hook: str | None = field(default=None, kw_only=True)
    priority: int = field(default=0, kw_only=True)
    type: Literal["filter", "nat", "route"] = field(default="filter", kw_only=True)
    policy: Literal["accept", "drop"] = field(default="accept", kw_only=True)
    device: str | None = field(default=None, kw_only=True)

    def __attrs_post_init__(self) -> None:
        hooks = _HOOKS_OF.get(self.table.family, _HOOKS)
        if self.hook is not None and self.hook not in hooks:
            raise UsageError(f"nft: hook {self.hook!r} of family {self.table.family} is none of {', '.join(hooks)}")
        if (self.device is None) != (self.table.family != "netdev" and self.hook != "ingress"):
            raise UsageError("nft: chains of family netdev, and of hook ingress, take a device, others none")


@frozen
class Set:
    """Values, or with *data* a map of them. *key*, *data*: kinds, several for a concatenation; *data*: `VERDICT` for `vmap`.

    intervals: elements may be a `Range`, or a network. timeouts: elements may have one. dynamic: rules put elements in, by `update`.
    size: how many there may be; None: as many as come.
    """

    table: Table
    name: str
    key: tuple[Kind, ...]
    data: tuple[Kind, ...] | str | None = field(default=None, kw_only=True)
    intervals: bool = field(default=False, kw_only=True)
    timeouts: bool = field(default=False, kw_only=True)
    dynamic: bool = field(default=False, kw_only=True)
    size: int | None = field(default=None, kw_only=True)

    def __attrs_post_init__(self) -> None:
        if not self.key or not (self.data is None or self.data == VERDICT or (isinstance(self.data, tuple) and self.data)):
            raise UsageError(f"nft: set {self.name}: give a key, and as data kinds, VERDICT or nothing")
        if self.intervals and not all(kind.ordered for kind in self.key):
            raise UsageError(f"nft: set {self.name}: there are no intervals of {', '.join(kind.name for kind in self.key if not kind.ordered)}")
        if (self.dynamic and self.intervals) or (self.size is not None and not 0 < self.size < 1 << 32):
            raise UsageError(f"nft: set {self.name}: rules put no intervals into sets, and a size is above 0, of 32 bits")


@frozen
class Element:
    """Of a set. *key*, *data*: one value, or a tuple of them for a concatenation; in a set of intervals, each a value, a `Range` or a network."""

    key: Any
    data: Any = None
    timeout_s: float | None = field(default=None, kw_only=True)


@frozen
class Rule:
    """Made by `rule`."""

    chain: Chain
    statements: tuple[Statement, ...]
    comment: str | None = field(default=None, kw_only=True)


def rule(chain: Chain, statements: Iterable[Statement], *, comment: str | None = None) -> Rule:
    """What is done in *chain* with packets that match: ``rule(chain, [tcp_dport(80), accept])``. Raises: UsageError."""
    made = Rule(chain, tuple(statements), comment=comment)
    expressions_of(made.statements, chain.table.family)
    if comment is not None and not 0 < len(comment.encode()) < 128:  # nft's NFTNL_UDATA_COMMENT_MAXLEN
        raise UsageError("nft: a comment has 1 to 127 bytes")
    return made


# ---- Transactions ----


@frozen
class Step:
    message: Message
    words: str
    needs: str = ""  # what the kernel may not know


@define
class Transaction:
    """What is to be changed, in its order; `Nftables.commit` has it done, all or nothing. Each method gives the transaction itself."""

    steps: list[Step] = field(factory=list[Step], init=False)

    def add(self, what: Table | Chain | Set | Rule, *, exist_ok: bool = False) -> Self:
        """Make it. It must not be there yet, unless *exist_ok*; a rule goes to the end of its chain."""
        exclusive = 0 if exist_ok else netlink.EXCL
        match what:
            case Table():
                attributes = ((1, text(what.name)), (2, u32(_OWNER if what.owner else 0)))
                return self._step(wire.NEWTABLE, what, exclusive | netlink.CREATE, attributes, f"add table {what.family} {what.name}")
            case Chain():
                return self._step(wire.NEWCHAIN, what.table, exclusive | netlink.CREATE, tuple(_chain(what)), f"add chain {_path(what)}")
            case Set():
                number = len(self.steps) + 1
                return self._step(wire.NEWSET, what.table, exclusive | netlink.CREATE, tuple(_set(what, number)), f"add set {_path(what)}")
            case Rule():
                return self._rule(what, netlink.APPEND)

    def insert(self, what: Rule) -> Self:
        """Put a rule before all others of its chain."""
        return self._rule(what, 0)

    def _rule(self, what: Rule, flag: int) -> Self:
        flags = netlink.CREATE | netlink.ECHO | flag
        steps = expressions_of(what.statements, what.chain.table.family)
        attributes: list[Attribute] = [(1, text(what.chain.table.name)), (2, text(what.chain.name)), (4, tuple((1, step.tree) for step in steps))]
        if what.comment is not None:
            body = text(what.comment)
            attributes.append((7, bytes((0, len(body))) + body))  # NFTNL_UDATA_RULE_COMMENT
        words = f"add rule to {_path(what.chain)}: {' '.join(step.name for step in steps)}"
        return self._step(wire.NEWRULE, what.chain.table, flags, tuple(attributes), words)

    def add_elements(self, where: Set, elements: Iterable[Element], *, exist_ok: bool = False) -> Self:
        """Put elements into a set. Those that are there already stay as they are, *exist_ok*, or fail it all."""
        flags = netlink.CREATE | (0 if exist_ok else netlink.EXCL)
        return self._elements(wire.NEWSETELEM, where, elements, flags, "add elements to")

    def delete_elements(self, where: Set, elements: Iterable[Element]) -> Self:
        """Take them out; all of them must be there. Their data and time-outs do not matter."""
        return self._elements(wire.DELSETELEM, where, (Element(element.key) for element in elements), 0, "delete elements of")

    def _elements(self, kind: int, where: Set, elements: Iterable[Element], flags: int, words: str) -> Self:
        trees = [tree for element in elements for tree in _element(where, element, adding=kind == wire.NEWSETELEM)]
        for start in range(0, len(trees), _PER_MESSAGE):
            lot = tuple((1, tree) for tree in trees[start : start + _PER_MESSAGE])
            self._step(kind, where.table, flags, ((1, text(where.table.name)), (2, text(where.name)), (3, lot)), f"{words} {_path(where)}")
        return self

    def flush(self, what: Chain | Set) -> Self:
        """Take out all rules of a chain, or all elements of a set."""
        kind = wire.DELRULE if isinstance(what, Chain) else wire.DELSETELEM
        return self._step(kind, what.table, 0, ((1, text(what.table.name)), (2, text(what.name))), f"flush {_path(what)}")

    def delete(self, what: Table | Chain | Set) -> Self:
        """Remove it: a table with all that is in it; a chain that nobody jumps to, a set that no rule uses."""
        if isinstance(what, Table):
            return self._step(wire.DELTABLE, what, 0, ((1, text(what.name)),), f"delete table {what.family} {what.name}")
        kind, number = (wire.DELCHAIN, 3) if isinstance(what, Chain) else (wire.DELSET, 2)
        return self._step(kind, what.table, 0, ((1, text(what.table.name)), (number, text(what.name))), f"delete {_path(what)}")

    def delete_rule(self, chain: Chain, handle: int) -> Self:
        """Remove the rule that has this handle, which `Nftables.commit` gave."""
        attributes = ((1, text(chain.table.name)), (2, text(chain.name)), (3, u64(handle)))
        return self._step(wire.DELRULE, chain.table, 0, attributes, f"delete rule {handle} of {_path(chain)}")

    def _step(self, kind: int, table: Table, flags: int, attributes: tuple[Attribute, ...], words: str) -> Self:
        owner = "NFT_TABLE_F_OWNER" if kind == wire.NEWTABLE and table.owner else ""
        self.steps.append(Step(Message(kind, table.family, flags | netlink.REQUEST, attributes), words, owner))
        return self

    def encode(self, sequence: int) -> bytes:
        """The batch; its messages have the numbers from *sequence* on, the first is its beginning."""
        last = len(self.steps) - 1
        parts = [wire.begin(sequence)]
        for at, step in enumerate(self.steps):
            message = step.message
            flags = message.flags | (netlink.ACK if at == last else 0)
            parts.append(wire.encode(Message(message.kind, message.family, flags, message.attributes), sequence + 1 + at))
        return b"".join([*parts, wire.end(sequence + 2 + last)])


def _path(what: Chain | Set) -> str:
    return f"{what.table.family} {what.table.name} {what.name}"


def _chain(what: Chain) -> Iterator[Attribute]:
    yield from ((1, text(what.table.name)), (3, text(what.name)))
    if what.hook is None:
        return
    number = _HOOKS_OF.get(what.table.family, _HOOKS)[what.hook]
    device: tuple[Attribute, ...] = () if what.device is None else ((3, text(what.device)),)
    yield from ((4, ((1, u32(number)), (2, u32(what.priority)), *device)), (5, u32(POLICIES.index(what.policy))), (7, text(what.type)))


def _set(what: Set, number: int) -> Iterator[Attribute]:
    concatenated = len(what.key) > 1
    flags = (_INTERVAL if what.intervals else 0) | (_TIMEOUT if what.timeouts else 0) | (_MAP if what.data is not None else 0)
    flags |= (_CONCAT if concatenated and what.intervals else 0) | (_EVAL if what.dynamic else 0)
    yield from ((1, text(what.table.name)), (2, text(what.name)), (3, u32(flags)), (4, u32(_type(what.key))), (5, u32(_length(what.key))))
    if what.data == VERDICT:
        yield 6, u32(_VERDICT_DATA)
    elif isinstance(what.data, tuple):
        yield from ((6, u32(_type(what.data))), (7, u32(_length(what.data))))
    described: list[Attribute] = [] if what.size is None else [(1, u32(what.size))]
    if concatenated and what.intervals:  # the kernel has to know where one field ends
        described.append((2, tuple((1, ((1, u32(kind.length)),)) for kind in what.key)))
    if described:
        yield 9, tuple(described)
    yield 10, u32(number)  # NFTA_SET_ID, which must be there
    data = what.data if isinstance(what.data, tuple) else ()
    records = b"".join(bytes((kind, 4)) + struct.pack("=I", 1) for kind, kinds in enumerate((what.key, data)) if _is_hosts(kinds))
    if records:
        yield 13, records  # NFTNL_UDATA_SET_KEYBYTEORDER, _DATABYTEORDER: so that nft shows names as such


def _is_hosts(kinds: tuple[Kind, ...]) -> bool:
    """Whether the values are in the host's order of bytes."""
    return len(kinds) == 1 and not kinds[0].ordered


def _type(kinds: tuple[Kind, ...]) -> int:
    number = 0
    for kind in kinds:
        number = number << _TYPE_BITS | kind.number
    return number


def _length(kinds: tuple[Kind, ...]) -> int:
    return kinds[0].length if len(kinds) == 1 else sum((kind.length + 3) & ~3 for kind in kinds)


def _joined(parts: Sequence[bytes]) -> bytes:
    return parts[0] if len(parts) == 1 else b"".join(part + bytes(-len(part) % 4) for part in parts)


def _fields(kinds: tuple[Kind, ...], value: Any, what: str) -> tuple[Any, ...]:  # noqa: ANN401 - each kind takes its own
    values: tuple[Any, ...] = (value,)
    if len(kinds) > 1 and isinstance(value, tuple):
        values = tuple(cast("Iterable[Any]", value))
    if len(values) != len(kinds):
        raise UsageError(f"nft: {what}: {value!r} is not {', '.join(kind.name for kind in kinds)}")
    return values


def _element(where: Set, element: Element, *, adding: bool) -> Iterator[tuple[Attribute, ...]]:
    """One element; two, where an interval is told by its beginning and by what is behind it."""
    values = _fields(where.key, element.key, where.name)
    bounds = [_bounds(kind, value) if where.intervals else (kind.pack(value),) * 2 for kind, value in zip(where.key, values, strict=True)]
    low, high = _joined([pair[0] for pair in bounds]), _joined([pair[1] for pair in bounds])
    more = _more(where, element) if adding else ()
    if where.intervals and len(where.key) > 1:
        yield ((1, ((1, low),)), (10, ((1, high),)), *more)
        return
    yield ((1, ((1, low),)), *more)
    behind = int.from_bytes(high, "big") + 1
    if where.intervals and behind < 1 << 8 * len(high):  # one that reaches to the last value has no end
        yield (1, ((1, behind.to_bytes(len(high), "big")),)), (3, u32(INTERVAL_END))


def _more(where: Set, element: Element) -> tuple[Attribute, ...]:
    found: list[Attribute] = []
    if where.data == VERDICT:
        if not isinstance(element.data, Verdict):
            raise UsageError(f"nft: {where.name}: {element.data!r} is no verdict")
        found.append((2, element.data.data))
    elif isinstance(where.data, tuple):
        values = _fields(where.data, element.data, where.name)
        found.append((2, ((1, _joined([kind.pack(value) for kind, value in zip(where.data, values, strict=True)])),)))
    elif element.data is not None:
        raise UsageError(f"nft: {where.name} is no map, and takes no data")
    if element.timeout_s is not None:
        if not where.timeouts or element.timeout_s <= 0:
            raise UsageError(f"nft: {where.name}: a time-out is above 0, and of a set with timeouts=True")
        found.append((4, u64(max(1, round(element.timeout_s * 1000)))))
    return tuple(found)


def _bounds(kind: Kind, value: Any) -> tuple[bytes, bytes]:  # noqa: ANN401
    if isinstance(value, Range):
        low, high = kind.pack(value.low), kind.pack(value.high)
        if low > high:
            raise UsageError(f"nft: {value} ends before it begins")
        return low, high
    if hasattr(value, "network_address"):
        return kind.pack(value.network_address), kind.pack(value.broadcast_address)
    packed = kind.pack(value)
    return packed, packed
