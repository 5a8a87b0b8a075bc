"""What stands in a rule of nf_tables: fields that are compared, and what is done then.

A `Field` called with a value is a match: ``tcp_dport(80)``, ``tcp_dport(Range(8000, 8010))``, ``ip_daddr(ip_network("10.0.0.0/8"))``,
``iifname("sandbox*")``; ``field.is_not(value)`` is its contrary. Fields side by side are the key of a lookup: ``in_set(s, ip_daddr, tcp_dport)``.
A match brings what it takes for granted (that the packet is TCP, say), once per rule, and only where the table's family does not say so.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import TYPE_CHECKING, Any, Final

from attrs import frozen

from sandbox.errors import UsageError
from sandbox.net._nft_wire import FAMILIES, Attribute, text, u32, u64

if TYPE_CHECKING:
    from sandbox.net.nft import Chain, Set

Address = IPv4Address | IPv6Address

_REGISTER: Final = 1  # NFT_REG_1: 16 bytes, the same as four from NFT_REG32_00 on
_WORDS: Final = 8  # NFT_REG32_00: registers of 4 bytes, for concatenations
_EQ, _NEQ = 0, 1  # NFT_CMP_*, NFT_RANGE_*
_L4: Final = {"icmp": 1, "tcp": 6, "udp": 17, "icmpv6": 58, "sctp": 132}
_STATES: Final = {"invalid": 1, "established": 2, "related": 4, "new": 8, "untracked": 64}  # NF_CT_STATE_BIT
_STATUS: Final = {"expected": 1, "seen-reply": 2, "assured": 4, "confirmed": 8, "snat": 16, "dnat": 32}  # <linux/netfilter/nf_conntrack_common.h>
_UPDATE: Final = 1  # NFT_DYNSET_OP_UPDATE
_UDP_HEAD: Final = 8  # bytes
_SECONDS: Final = {"second": 1, "minute": 60, "hour": 3600, "day": 86400}


@frozen
class Range:
    """From *low* to *high*, both of them included."""

    low: Any
    high: Any


@frozen
class Kind:
    """A type of values. *number* is nft's, for whoever lists rules; *ordered*: big-endian, so that intervals make sense."""

    name: str
    number: int
    length: int
    ordered: bool = True

    def pack(self, value: Any) -> bytes:  # noqa: ANN401 - each kind takes its own
        """The kernel's bytes for *value*. Raises: UsageError: it is no such value."""
        try:
            found = self._pack(value)
        except (ValueError, KeyError, TypeError, AttributeError, struct.error, OverflowError) as error:
            raise UsageError(f"nft: {value!r} is no {self.name}: {error}") from None
        if len(found) != self.length:
            raise UsageError(f"nft: {value!r} is no {self.name}")
        return found

    def _pack(self, value: Any) -> bytes:  # noqa: ANN401
        if isinstance(value, bytes):
            return value
        if self in (IPV4, IPV6):
            return bytes(ip_address(value).packed)
        if self is MAC:
            return bytes.fromhex(value.replace(":", ""))
        if self is IFNAME:
            if not value or len(value.encode()) >= self.length:
                raise ValueError("names of interfaces have 1 to 15 bytes")
            return bytes(value.encode().ljust(self.length, b"\0"))
        number = _L4[value] if self is PROTOCOL and isinstance(value, str) else int(value)
        return number.to_bytes(self.length, "big") if self.ordered else struct.pack("=I", number)


IPV4, IPV6, MAC = Kind("ipv4_addr", 7, 4), Kind("ipv6_addr", 8, 16), Kind("ether_addr", 9, 6)
PROTOCOL, PORT, ETHERTYPE = Kind("inet_proto", 12, 1), Kind("inet_service", 13, 2), Kind("ether_type", 10, 2)
MARK, IFNAME = Kind("mark", 19, 4, ordered=False), Kind("ifname", 41, 16, ordered=False)
_IFINDEX: Final = Kind("iface_index", 20, 4, ordered=False)
BYTE: Final = Kind("integer", 4, 1)
WORD: Final = Kind("integer", 4, 4, ordered=False)


@frozen
class Expression:
    """One step of the kernel's machine."""

    name: str
    attributes: tuple[Attribute, ...] = ()

    @property
    def tree(self) -> tuple[Attribute, ...]:
        return (1, text(self.name)), (2, self.attributes)


@frozen
class Statement:
    """Part of a rule. *needs*: what must hold for it to mean anything, as (what, value)."""

    expressions: tuple[Expression, ...]
    needs: tuple[tuple[str, str], ...] = ()


@frozen
class Field:
    """Something about a packet that can be compared, or looked up in a set. Called with a value it is a match."""

    name: str
    kind: Kind
    expression: str
    source: tuple[Attribute, ...]
    needs: tuple[tuple[str, str], ...] = ()

    def load(self, register: int) -> Expression:
        """The step that puts it into *register*."""
        return Expression(self.expression, ((1, u32(register)), *self.source))  # meta's, payload's, ct's, fib's and immediate's attribute is the same

    def __call__(self, value: Any) -> Statement:  # noqa: ANN401
        """It is *value*: one, a `Range`, a network, or, of an interface's name, ``"sandbox*"``."""
        return self.match(value)

    def is_not(self, value: Any) -> Statement:  # noqa: ANN401
        """It is anything else."""
        return self.match(value, negate=True)

    def match(self, value: Any, *, negate: bool = False) -> Statement:  # noqa: ANN401
        """As calling it, or with *negate* `is_not`. Raises: UsageError: it cannot be that."""
        load, op = self.load(_REGISTER), _NEQ if negate else _EQ
        if isinstance(value, Range):
            bounds = self.kind.pack(value.low), self.kind.pack(value.high)
            if not self.kind.ordered or bounds[0] > bounds[1]:
                raise UsageError(f"nft: {self.name}: {value} is no range of {self.kind.name}")
            between = ((1, u32(_REGISTER)), (2, u32(op)), (3, _data(bounds[0])), (4, _data(bounds[1])))
            return Statement((load, Expression("range", between)), self.needs)
        if isinstance(value, (IPv4Network, IPv6Network)):
            want = self.kind.pack(value.network_address)
            mask = _bitwise(len(want), bytes(value.netmask.packed))
            return Statement((load, mask, _cmp(op, want)), self.needs)
        if self.kind is IFNAME and isinstance(value, str) and value.endswith("*"):
            return Statement((load, _cmp(op, self.kind.pack(value[:-1]).rstrip(b"\0"))), self.needs)
        return Statement((load, _cmp(op, self.kind.pack(value))), self.needs)


def _data(value: bytes) -> tuple[Attribute, ...]:
    return ((1, value),)


def _cmp(op: int, value: bytes) -> Expression:
    return Expression("cmp", ((1, u32(_REGISTER)), (2, u32(op)), (3, _data(value))))


def _bitwise(length: int, mask: bytes) -> Expression:
    return Expression("bitwise", ((1, u32(_REGISTER)), (2, u32(_REGISTER)), (3, u32(length)), (4, _data(mask)), (5, _data(bytes(length)))))


# ---- Fields ----

_LINK, _NETWORK, _TRANSPORT = 0, 1, 2  # NFT_PAYLOAD_*_HEADER


def _meta(name: str, kind: Kind, key: int) -> Field:
    return Field(name, kind, "meta", ((2, u32(key)),))


def _header(name: str, kind: Kind, base: int, offset: int, *needs: tuple[str, str]) -> Field:
    return Field(name, kind, "payload", ((2, u32(base)), (3, u32(offset)), (4, u32(kind.length))), needs)


_IP4, _IP6, _ARP = ("network", "ip"), ("network", "ip6"), ("network", "arp")

is_ip6 = Statement((), (_IP6,))  # where the table's family does not say so

iifname, oifname = _meta("iifname", IFNAME, 6), _meta("oifname", IFNAME, 7)
iif = _meta("iif", _IFINDEX, 4)  # by its index: a quarter of the bytes
mark, l4proto, protocol = _meta("mark", MARK, 3), _meta("l4proto", PROTOCOL, 16), _meta("protocol", ETHERTYPE, 1)
_nfproto = _meta("nfproto", BYTE, 15)
ether_daddr, ether_saddr = _header("ether daddr", MAC, _LINK, 0), _header("ether saddr", MAC, _LINK, 6)
ether_type = _header("ether type", ETHERTYPE, _LINK, 12)
ip_saddr, ip_daddr = _header("ip saddr", IPV4, _NETWORK, 12, _IP4), _header("ip daddr", IPV4, _NETWORK, 16, _IP4)
ip6_saddr, ip6_daddr = _header("ip6 saddr", IPV6, _NETWORK, 8, _IP6), _header("ip6 daddr", IPV6, _NETWORK, 24, _IP6)
# Of ARP over Ethernet for IPv4 (RFC 826): who says so.
arp_saddr_ether, arp_saddr_ip = _header("arp saddr ether", MAC, _NETWORK, 8, _ARP), _header("arp saddr ip", IPV4, _NETWORK, 14, _ARP)
tcp_sport, tcp_dport = _header("tcp sport", PORT, _TRANSPORT, 0, ("l4", "tcp")), _header("tcp dport", PORT, _TRANSPORT, 2, ("l4", "tcp"))
udp_sport, udp_dport = _header("udp sport", PORT, _TRANSPORT, 0, ("l4", "udp")), _header("udp dport", PORT, _TRANSPORT, 2, ("l4", "udp"))
# Of whatever protocol has ports at the usual place: say which one by `l4proto`, in the rule or in the key.
th_sport, th_dport = _header("th sport", PORT, _TRANSPORT, 0), _header("th dport", PORT, _TRANSPORT, 2)
icmp_type = _header("icmp type", BYTE, _TRANSPORT, 0, ("l4", "icmp"))
icmpv6_type = _header("icmpv6 type", BYTE, _TRANSPORT, 0, ("l4", "icmpv6"))
# Of the first packet of a flow, whatever it was translated to, also to errors about it: NFT_CT_PROTOCOL and _PROTO_DST of IP_CT_DIR_ORIGINAL.
ct_original_protocol = Field("ct original protocol", PROTOCOL, "ct", ((2, u32(10)), (3, bytes(1))))
ct_original_dport = Field("ct original proto-dst", PORT, "ct", ((2, u32(12)), (3, bytes(1))))
_daddr_type = Field("fib daddr type", WORD, "fib", ((2, u32(3)), (3, u32(2))))  # NFT_FIB_RESULT_ADDRTYPE of NFTA_FIB_F_DADDR
_saddr_type = Field("fib saddr type", WORD, "fib", ((2, u32(3)), (3, u32(1))))
_ADDRESS_TYPES: Final = {"unicast": 1, "local": 2, "broadcast": 3, "anycast": 4, "multicast": 5}  # RTN_*


def fib_daddr(kind: str, *, negate: bool = False) -> Statement:
    """The destination is, to this namespace, ``"local"``, ``"unicast"``, ``"broadcast"``, ``"anycast"`` or ``"multicast"``."""
    return _daddr_type.match(_word(kind, _ADDRESS_TYPES), negate=negate)


def fib_saddr(kind: str, *, negate: bool = False) -> Statement:
    """As `fib_daddr`, of the source."""
    return _saddr_type.match(_word(kind, _ADDRESS_TYPES), negate=negate)


def ct_state(*states: str) -> Statement:
    """The connection is in one of these states: new, established, related, invalid, untracked."""
    return _bits(Expression("ct", ((1, u32(_REGISTER)), (2, u32(0)))), sum(_word(state, _STATES) for state in set(states)))


def ct_status(*statuses: str, negate: bool = False) -> Statement:
    """The connection has one of these marks, or with *negate* none: dnat, snat, seen-reply, assured, confirmed, expected."""
    wanted = sum(_word(status, _STATUS) for status in set(statuses))
    return _bits(Expression("ct", ((1, u32(_REGISTER)), (2, u32(2)))), wanted, _EQ if negate else _NEQ)


def _bits(load: Expression, wanted: int, op: int = _NEQ) -> Statement:
    return Statement((load, _bitwise(4, struct.pack("=I", wanted)), _cmp(op, bytes(4))))


def _word(word: str, table: Mapping[str, int]) -> int:
    if word not in table:
        raise UsageError(f"nft: {word!r} is none of {', '.join(table)}")
    return table[word]


# ---- What is done ----


@frozen
class Verdict(Statement):
    """What becomes of the packet; also a value in a map. *code* is the kernel's; *chain*: to which it jumps."""

    code: int = 0
    chain: str = ""

    @property
    def data(self) -> tuple[Attribute, ...]:
        return ((2, ((1, u32(self.code)), *(((2, text(self.chain)),) if self.chain else ()))),)


def _verdict(code: int, chain: str = "") -> Verdict:
    inner = Verdict((), (), code, chain)
    return Verdict((Expression("immediate", ((1, u32(0)), (2, inner.data))),), (), code, chain)


accept, drop, return_ = _verdict(1), _verdict(0), _verdict(-5)


def jump(chain: Chain) -> Verdict:
    """Go on in *chain*, and come back at its end."""
    return _verdict(-3, chain.name)


def goto(chain: Chain) -> Verdict:
    """Go on in *chain*; its end is the end of this one too."""
    return _verdict(-4, chain.name)


def reject(*, tcp_reset: bool = False, code: str = "admin-prohibited") -> Statement:
    """Drop it and say so: by ICMP, or, of TCP, by a reset. In a chain of hook input, forward or output (bridge: prerouting, input)."""
    codes = {"no-route": 0, "port-unreachable": 1, "host-unreachable": 2, "admin-prohibited": 3}
    if tcp_reset:
        return Statement((Expression("reject", ((1, u32(1)),)),), (("l4", "tcp"),))
    return Statement((_Reject("reject", ((1, u32(2)), (2, bytes([_word(code, codes)])))),))


class _Reject(Expression):
    """In families inet and bridge one code stands for those of both ICMPs; ip and ip6 have their own."""


def counter() -> Statement:
    """Count what comes by here."""
    return Statement((Expression("counter", ((1, u64(0)), (2, u64(0)))),))


def limit(rate: int, per: str = "second", *, burst: int = 5, over: bool = False) -> Statement:
    """At most *rate* packets per second, minute, hour or day; with *over*, what is beyond that."""
    unit = _word(per, _SECONDS)
    if rate < 1 or burst < 0:
        raise UsageError(f"nft: a limit of {rate} per {per}, burst {burst}: give numbers above 0")
    return Statement((Expression("limit", ((1, u64(rate)), (2, u64(unit)), (3, u32(burst)), (4, u32(0)), (5, u32(int(over))))),))


def set_mark(number: int) -> Statement:
    """Mark the packet, for routing and for other rules."""
    give = Expression("immediate", ((1, u32(_REGISTER)), (2, _data(MARK.pack(number)))))
    return Statement((give, Expression("meta", ((2, u32(3)), (3, u32(_REGISTER))))))


def mark_as(field: Field) -> Statement:
    """Mark the packet with what *field*, of four bytes at most, says of it: its first byte is the mark's lowest."""
    return Statement((field.load(_REGISTER), Expression("meta", ((2, u32(3)), (3, u32(_REGISTER))))), field.needs)


def set_ether_daddr(mac: str) -> Statement:
    """Give the frame another receiver. In a chain of family netdev."""
    give = Expression("immediate", ((1, u32(_REGISTER)), (2, _data(MAC.pack(mac)))))
    # NFTA_PAYLOAD_BASE, OFFSET, LEN, SREG
    return Statement((give, Expression("payload", ((2, u32(_LINK)), (3, u32(0)), (4, u32(MAC.length)), (5, u32(_REGISTER))))))


def forward(index: int) -> Statement:
    """Send it out by the interface with this index, at once. In a chain of family netdev."""
    give = Expression("immediate", ((1, u32(_REGISTER)), (2, _data(struct.pack("=I", index)))))
    return Statement((give, Expression("fwd", ((1, u32(_REGISTER)),))))


def masquerade() -> Statement:
    """Give it the address of the interface that it leaves by. In a chain of type nat, hook postrouting."""
    return Statement((Expression("masq"),))


def dnat(address: Address | str, port: int | None = None) -> Statement:
    """Send it to *address* (and *port*) instead. In a chain of type nat, hook prerouting or output. A port takes a match of TCP or UDP."""
    return _nat(1, ip_address(address), port)


def snat(address: Address | str, port: int | None = None) -> Statement:
    """Let it come from *address* (and *port*). In a chain of type nat, hook postrouting or input."""
    return _nat(0, ip_address(address), port)


def _nat(kind: int, address: Address, port: int | None) -> Statement:
    family = "ip" if address.version == 4 else "ip6"
    steps = [Expression("immediate", ((1, u32(1)), (2, _data(address.packed))))]
    attributes: list[Attribute] = [(1, u32(kind)), (2, u32(FAMILIES[family])), (3, u32(1))]
    if port is not None:
        steps.append(Expression("immediate", ((1, u32(2)), (2, _data(PORT.pack(port))))))
        attributes.append((5, u32(2)))
    return Statement((*steps, Expression("nat", tuple(attributes))), (("network", family),))


def redirect(port: int) -> Statement:
    """Send it to *port* of this namespace's own. In a chain of type nat, hook prerouting or output."""
    return Statement((Expression("immediate", ((1, u32(1)), (2, _data(PORT.pack(port))))), Expression("redir", ((1, u32(1)),))))


# ---- Sets ----


def in_set(which: Set, *fields: Field, negate: bool = False) -> Statement:
    """*fields* together are an element of the set; with *negate*, they are not."""
    flags: tuple[Attribute, ...] = ((5, u32(1)),) if negate else ()
    return _lookup(which, fields, flags)


def vmap(which: Set, *fields: Field) -> Statement:
    """Do what the map says of *fields* together (`Set` with ``data=VERDICT``); go on where it says nothing."""
    return _lookup(which, fields, ((3, u32(0)),))


def dnat_to(which: Set, *fields: Field) -> Statement:
    """Send it where the map says: its data is an address, or an address and a port. Go on where it says nothing."""
    return _nat_to(1, which, fields)


def snat_to(which: Set, *fields: Field) -> Statement:
    """Let it come from where the map says, as `dnat_to`."""
    return _nat_to(0, which, fields)


def _nat_to(kind: int, which: Set, fields: tuple[Field, ...]) -> Statement:
    data = which.data if isinstance(which.data, tuple) else ()
    if not data or data[0] not in (IPV4, IPV6) or data[1:] not in ((), (PORT,)):
        raise UsageError(f"nft: the data of {which.name} is not an address, or an address and a port")
    family = "ip" if data[0] is IPV4 else "ip6"
    found = _lookup(which, fields, ((3, u32(_REGISTER)),))
    attributes: list[Attribute] = [(1, u32(kind)), (2, u32(FAMILIES[family])), (3, u32(_REGISTER))]
    if len(data) > 1:
        attributes.append((5, u32(_WORDS + data[0].length // 4)))
    return Statement((*found.expressions, Expression("nat", tuple(attributes))), (*found.needs, ("network", family)))


def update(which: Set, *fields: Field, timeout_s: float) -> Statement:
    """Put *fields* together into a set that is ``dynamic``, for so long from now on. Where it is full, the rule ends here.

    An element that is there gets the new time, be it shorter.
    """
    if not (which.dynamic and which.timeouts) or timeout_s <= 0:
        raise UsageError(f"nft: {which.name}: rules put elements into sets with dynamic=True and timeouts=True, for a time above 0")
    register, loads = _key(which, fields)
    timeout = u64(max(1, round(timeout_s * 1000)))
    step = Expression("dynset", ((1, text(which.name)), (3, u32(_UPDATE)), (4, u32(register)), (6, timeout)))
    return Statement((*loads, step), tuple(need for field in fields for need in field.needs))


def constant(kind: Kind, value: Any) -> Field:  # noqa: ANN401
    """What is the same for every packet, as part of the key of a set."""
    return Field(f"constant {value}", kind, "immediate", ((2, _data(kind.pack(value))),))


def payload_field(name: str, kind: Kind, offset: int) -> Field:
    """Of a datagram of UDP, what lies *offset* bytes behind its head. Where it is too short, the rule ends here."""
    return _header(name, kind, _TRANSPORT, _UDP_HEAD + offset, ("l4", "udp"))


def _lookup(which: Set, fields: tuple[Field, ...], more: tuple[Attribute, ...]) -> Statement:
    register, loads = _key(which, fields)
    lookup = Expression("lookup", ((1, text(which.name)), (2, u32(register)), *more))
    return Statement((*loads, lookup), tuple(need for field in fields for need in field.needs))


def _key(which: Set, fields: tuple[Field, ...]) -> tuple[int, list[Expression]]:
    """The register that the key begins in, and the steps that put it there."""
    if tuple(field.kind for field in fields) != which.key:
        raise UsageError(f"nft: the key of {which.name} is {[kind.name for kind in which.key]}, not {[field.name for field in fields]}")
    register = _WORDS if len(fields) > 1 else _REGISTER
    loads: list[Expression] = []
    at = register
    for field in fields:
        loads.append(field.load(at))
        at += (field.kind.length + 3) // 4
    return register, loads


# ---- Rules ----


def expressions_of(statements: tuple[Statement, ...], family: str) -> tuple[Expression, ...]:
    """All steps of a rule in a table of *family*, each need once, before what needs it. Raises: UsageError: it can never hold there."""
    found: list[Expression] = []
    held: set[tuple[str, str]] = {("network", family)} if family in ("ip", "ip6", "arp") else set()
    for statement in statements:
        for need in statement.needs:
            if need not in held:
                found += _needed(need, family)
                held.add(need)
        found += (_of_family(step, family) for step in statement.expressions)
    return tuple(found)


def _needed(need: tuple[str, str], family: str) -> tuple[Expression, ...]:
    what, value = need
    if what == "l4":
        return l4proto(value).expressions
    if family in ("ip", "ip6", "arp") or (family == "inet" and value == "arp"):
        raise UsageError(f"nft: a table of family {family} sees no packets of {value}")
    if family == "inet":
        return _nfproto(FAMILIES[value]).expressions
    return protocol({"ip": 0x0800, "ip6": 0x86DD, "arp": 0x0806}[value]).expressions


def _of_family(step: Expression, family: str) -> Expression:
    if not isinstance(step, _Reject) or family not in ("ip", "ip6"):
        return Expression(step.name, step.attributes)
    # What the one code of inet stands for: <linux/icmp.h>, <linux/icmpv6.h>.
    code = dict(step.attributes)[2]
    table = {"ip": (0, 3, 1, 13), "ip6": (0, 4, 3, 1)}[family]
    return Expression("reject", ((1, u32(0)), (2, bytes([table[code[0] if isinstance(code, bytes) else 0]]))))
