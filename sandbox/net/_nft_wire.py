"""Netlink attributes and messages of nf_tables: trees to bytes and back. Knows layout, and nothing of what the numbers mean.

An attribute is a number and either bytes or the attributes inside it. Which are nested is a matter of the kernel's policies, not of the
bytes: nf_tables itself leaves NLA_F_NESTED out of what it tells, so reading takes a schema. Depth is the schema's, so it is bounded.
Numbers are those of <linux/netfilter/nf_tables.h>, and integers are big-endian, but for values that are compared with what the kernel keeps.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from typing import Final, TypeAlias

from attrs import frozen

from sandbox.errors import ProtocolError
from sandbox.net import netlink
from sandbox.net.netlink import HEAD

Value: TypeAlias = "bytes | tuple[Attribute, ...]"
Attribute: TypeAlias = tuple[int, "Value"]
Schema: TypeAlias = "Mapping[int, Schema]"

NETLINK_NETFILTER: Final = 12
SUBSYSTEM: Final = 10  # NFNL_SUBSYS_NFTABLES
BATCH_BEGIN, BATCH_END = 0x10, 0x11

NEWTABLE, GETTABLE, DELTABLE, NEWCHAIN, GETCHAIN, DELCHAIN, NEWRULE, GETRULE, DELRULE = range(9)
NEWSET, DELSET, NEWSETELEM, GETSETELEM, DELSETELEM = 9, 11, 12, 13, 14

FAMILIES: Final = {"unspec": 0, "inet": 1, "ip": 2, "arp": 3, "netdev": 5, "bridge": 7, "ip6": 10}
_FAMILY_OF: Final = {number: name for name, number in FAMILIES.items()}

_NFGEN: Final = struct.Struct(">BBH")  # nfgenmsg: family, version, resource

_FLAT: Final[Schema] = {}
_VALUE: Final[Schema] = {2: _FLAT}  # nft_data: bytes, or a verdict
EXPRESSION: Final[Schema] = {2: _FLAT}  # what is inside goes by the name, see _INSIDE
_EXPRESSIONS: Final[Schema] = {1: EXPRESSION}
_INSIDE: Final[Mapping[bytes, Schema]] = {
    b"immediate": {2: _VALUE},
    b"bitwise": {4: _VALUE, 5: _VALUE, 7: _VALUE},
    b"cmp": {3: _VALUE},
    b"range": {3: _VALUE, 4: _VALUE},
}
_ELEMENT: Final[Schema] = {1: _VALUE, 2: _VALUE, 7: EXPRESSION, 10: _VALUE, 11: _EXPRESSIONS}
_TABLE, _CHAIN, _RULE = _FLAT, {4: {4: _FLAT}, 8: _FLAT}, {4: _EXPRESSIONS}
_SET: Final[Schema] = {9: {2: {1: _FLAT}}, 17: EXPRESSION, 18: _EXPRESSIONS}
_ELEMENTS: Final[Schema] = {3: {1: _ELEMENT}}
_SCHEMAS: Final[Mapping[int, Schema]] = {
    **dict.fromkeys((NEWTABLE, DELTABLE), _TABLE),
    **dict.fromkeys((NEWCHAIN, GETCHAIN, DELCHAIN), _CHAIN),
    **dict.fromkeys((NEWRULE, GETRULE, DELRULE), _RULE),
    **dict.fromkeys((NEWSET, DELSET), _SET),
    **dict.fromkeys((NEWSETELEM, GETSETELEM, DELSETELEM), _ELEMENTS),
}


@frozen
class Message:
    """One message to or from nf_tables. *flags* are NLM_F_*."""

    kind: int
    family: str
    flags: int
    attributes: tuple[Attribute, ...] = ()


def u32(number: int) -> bytes:
    return struct.pack(">I", number & 0xFFFFFFFF)


def u64(number: int) -> bytes:
    return struct.pack(">Q", number)


def text(string: str) -> bytes:
    return string.encode() + b"\0"


def pack(attributes: Iterable[Attribute]) -> bytes:
    """Put attributes into bytes. Raises: ProtocolError: one is longer than its length can say."""
    return b"".join(
        netlink.attribute(number, value) if isinstance(value, bytes) else netlink.attribute(number | netlink.NESTED, pack(value))
        for number, value in attributes
    )


def unpack(data: bytes, schema: Schema) -> tuple[Attribute, ...]:
    """Read attributes. Raises: ProtocolError: a length leads out of *data*."""
    found: list[Attribute] = []
    name = b""
    for number, body in netlink.attributes(data):
        if schema is EXPRESSION and number == 1:
            name = body.rstrip(b"\0")
        inner = schema.get(number)
        if inner is not None and schema is EXPRESSION:
            inner = _INSIDE.get(name, _FLAT)
        found.append((number, body if inner is None else unpack(body, inner)))
    return tuple(found)


def encode(message: Message, sequence: int) -> bytes:
    """One message of nf_tables as bytes."""
    return _message(SUBSYSTEM << 8 | message.kind, message.flags, sequence, family=FAMILIES[message.family], body=pack(message.attributes))


def begin(sequence: int) -> bytes:
    return _message(BATCH_BEGIN, netlink.REQUEST, sequence, resource=SUBSYSTEM)


def end(sequence: int) -> bytes:
    return _message(BATCH_END, netlink.REQUEST, sequence, resource=SUBSYSTEM)


def _message(kind: int, flags: int, sequence: int, *, family: int = 0, resource: int = 0, body: bytes = b"") -> bytes:
    return netlink.message(kind, flags, _NFGEN.pack(family, 0, resource) + body, sequence=sequence)


def decode(kind: int, flags: int, body: bytes) -> Message:
    """Read one message of nf_tables, as `netlink.messages` gives it. Raises: ProtocolError: it is another subsystem's, or malformed."""
    if kind >> 8 != SUBSYSTEM or len(body) < _NFGEN.size or body[0] not in _FAMILY_OF:
        raise ProtocolError(f"a netlink message of type {kind:#x} where one of nf_tables was expected")
    number = kind & 0xFF
    return Message(number, _FAMILY_OF[body[0]], flags, unpack(body[_NFGEN.size :], _SCHEMAS.get(number, _FLAT)))


def error_of(body: bytes, flags: int) -> tuple[int, int, str]:
    """Of an NLMSG_ERROR: the errno (0: an acknowledgement), the sequence number it is about, and the kernel's words, if any."""
    if len(body) < 4 + HEAD.size:
        raise ProtocolError("a netlink error without the head of what it is about")
    length, _, _, sequence, _ = HEAD.unpack_from(body, 4)
    capped, tlvs = flags & 0x100, flags & 0x200  # NLM_F_CAPPED, NLM_F_ACK_TLVS
    words = ""
    if tlvs:
        rest = body[4 + (HEAD.size if capped else (length + 3) & ~3) :]
        words = next((value.rstrip(b"\0").decode(errors="replace") for number, value in netlink.attributes(rest) if number == 1), "")
    return netlink.code_of(body), sequence, words
