"""Netlink's framing: messages and attributes to bytes and back. Pure; what they say is their readers' to know.

Lengths are of the host's byte order, and padding is to 4 bytes (<linux/netlink.h>). What comes from the kernel is whole, so what is not is an
error of ours: an answer that was cut off, or one that was taken for another.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

from sandbox.errors import ProtocolError

HEAD: Final = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port
_ATTRIBUTE: Final = struct.Struct("=HH")  # nlattr: length, type
NESTED: Final = 0x8000  # NLA_F_NESTED
_NUMBER: Final = 0x3FFF  # NLA_TYPE_MASK
_MOST: Final = 0xFFFF
REQUEST, ACK, ECHO = 0x1, 0x4, 0x8  # NLM_F_*
DUMP: Final = 0x300
REPLACE, EXCL, CREATE, APPEND = 0x100, 0x200, 0x400, 0x800
ERROR, DONE = 2, 3  # NLMSG_*


class Message(NamedTuple):
    """One message without its head's length and port."""

    kind: int
    flags: int
    sequence: int
    body: bytes


def message(kind: int, flags: int, body: bytes, *, sequence: int = 0) -> bytes:
    """One message."""
    return HEAD.pack(HEAD.size + len(body), kind, flags, sequence, 0) + body


def messages(data: bytes) -> Iterator[Message]:
    """Those in what the kernel sent at once. Raises: ProtocolError: a length leads out of it."""
    at = 0
    while at < len(data):
        length, kind, flags, sequence, _ = HEAD.unpack_from(data, at) if at + HEAD.size <= len(data) else (0, 0, 0, 0, 0)
        if length < HEAD.size or at + length > len(data):
            raise ProtocolError(f"a netlink message of {length} bytes at {at} of {len(data)}")
        yield Message(kind, flags, sequence, data[at + HEAD.size : at + length])
        at += (length + 3) & ~3


def code_of(body: bytes) -> int:
    """Of an ERROR or a DONE: the errno; 0: an acknowledgement. Raises: ProtocolError."""
    if len(body) < 4:
        raise ProtocolError("a netlink answer without its errno")
    return -int(struct.unpack_from("=i", body)[0])


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute, padded. Raises: ProtocolError: it is longer than its length can say."""
    if len(value) + _ATTRIBUTE.size > _MOST:
        raise ProtocolError(f"a netlink attribute of {len(value)} bytes, of which at most {_MOST - _ATTRIBUTE.size} fit")
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value + bytes(-len(value) % 4)


def attributes(data: bytes, *, strict: bool = True) -> Iterator[tuple[int, bytes]]:
    """Numbers, without what the kernel marks them with, and values, in order. Raises: ProtocolError: a length leads out of *data*; without
    *strict* there are only those before that.
    """
    at = 0
    while at < len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, at) if at + _ATTRIBUTE.size <= len(data) else (0, 0)
        if length < _ATTRIBUTE.size or at + length > len(data):
            if not strict:
                return
            raise ProtocolError(f"a netlink attribute of {length} bytes at {at} of {len(data)}")
        yield kind & _NUMBER, data[at + _ATTRIBUTE.size : at + length]
        at += (length + 3) & ~3
